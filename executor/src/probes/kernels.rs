//! Experiments on the kernels of a decoder layer: products, experts, attention.

use std::path::Path;
use std::rc::Rc;

use parplan_kernels::layer::Grouped;
use parplan_profiles::Dtype;
use parplan_profiles::calibration::{ExpertsShape, Probe};

use super::prepare::{OWN, Outcome, Prepared};
use super::series::Work;
use crate::attention::{
    Batch, Cache, Capacity, Kind, KvType, LATENT, Parts, Queries, ROPE, Shape, Shard,
};
use crate::jobs::Context;
use crate::stack::{Compute, CudaCompute, Format, GroupedRows, Routing, Rows, Weight, tile_bytes};
use crate::{Buffer, CpuDevice, Device, Error, Result, View};

/// What computes, and the name of its library of products.
type Named = (Rc<dyn Compute>, String);

/// Inputs of an operation on a GPU take at least this much memory together, so that none is in the L2
/// cache when its turn comes again: layers of a model do not meet each other's weights there.
const PAST_CACHE: usize = 192 << 20;
/// Copies of an input, at most.
const COPIES: usize = 48;

/// Tokens of a page of the KV cache.
const PAGE: usize = 64;

/// The device as the stack uses it, with room for products of that many rows and columns, and who
/// computes them; or why there is none.
fn compute(
    context: &Context,
    cublas: Option<&Path>,
    [rows, columns]: [usize; 2],
) -> Result<std::result::Result<Named, String>> {
    let Some(gpu) = &context.gpu else {
        return Ok(Ok((Rc::new(CpuDevice::new()), format!("{OWN} cpu"))));
    };
    match CudaCompute::new(gpu, cublas) {
        Ok(mut device) => {
            let name = device.products();
            device.reserve(rows, columns)?;
            Ok(Ok((Rc::new(device), name)))
        }
        // A machine without the library has much else to measure.
        Err(error @ Error::Library { .. }) => Ok(Err(error.to_string())),
        Err(error) => Err(error),
    }
}

/// How many copies of an input of that many bytes go round.
fn copies(context: &Context, bytes: usize) -> usize {
    match context.gpu {
        Some(_) => PAST_CACHE.div_ceil(bytes.max(1)).clamp(1, COPIES),
        None => 1,
    }
}

fn format(dtype: Dtype) -> Option<Format> {
    match dtype {
        Dtype::Bf16 => Some(Format::Bf16),
        Dtype::Fp8 => Some(Format::Fp8),
        _ => None,
    }
}

/// Random numbers that repeat (Knuth's MMIX generator).
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
}

/// Random values of about one: kernels draw less power, and run at higher clocks, on constants.
fn fill(device: &dyn Device, view: &View, format: Format) -> Result<()> {
    const TILE: usize = 1 << 20;
    let mut draws = Draws(view.len() as u64);
    let tile: Vec<u8> = match format {
        // Sign and mantissa at random, exponents of 2⁻⁴ to 2⁰.
        Format::Bf16 => (0..TILE / 2)
            .flat_map(|_| {
                let bits = draws.next();
                let exponent = 123 + (bits >> 16) % 5;
                (((bits & 0x807f) | (exponent << 7)) as u16).to_le_bytes()
            })
            .collect(),
        Format::Fp8 => (0..TILE)
            .map(|_| {
                let bits = draws.next();
                let exponent = 3 + (bits >> 16) % 5;
                ((bits & 0x87) | (exponent << 3)) as u8
            })
            .collect(),
    };
    let first = view.len().min(TILE);
    device.write(&view.sub(0, first)?, &tile[..first])?;
    // The rest from what is there already, twice as much each time.
    let mut there = first;
    while there < view.len() {
        let more = there.min(view.len() - there);
        device.copy(&view.sub(there, more)?, &view.sub(0, more)?)?;
        there += more;
    }
    device.synchronize()
}

fn random(device: &dyn Device, name: &str, bytes: usize, format: Format) -> Result<Buffer> {
    let buffer = device.alloc(name, bytes)?;
    fill(device, &buffer.all(), format)?;
    Ok(buffer)
}

fn words(device: &dyn Device, name: &str, values: &[u32]) -> Result<View> {
    let view = device.alloc(name, values.len() * 4)?.all();
    device.write(&view, bytemuck::cast_slice(values))?;
    Ok(view)
}

fn work(enqueue: super::series::Enqueue) -> Outcome {
    Outcome::Work(Work {
        enqueue,
        at_least: 1,
    })
}

fn weight(
    device: &dyn Device,
    name: &str,
    format: Format,
    [batch, n, k]: [usize; 3],
) -> Result<Weight> {
    Ok(Weight {
        data: random(device, name, batch * n * k * format.bytes(), format)?,
        format,
        unit: 1.0,
        batch,
        n,
        k,
    })
}

/// An experiment on a kernel of a layer.
pub(super) fn any(context: &Context, cublas: Option<&Path>, probe: &Probe) -> Result<Prepared> {
    match probe {
        Probe::Gemm { .. } => gemm(context, cublas, probe),
        Probe::Experts(shape) => experts(context, cublas, shape),
        _ => attention(context, probe),
    }
}

/// A row of norms over few rows, each on what the one before wrote: what a memory-bound kernel of a
/// layer costs when it has next to nothing to move. A kernel that also does nothing takes a fifth.
pub(super) fn norms(context: &Context, cublas: Option<&Path>, nodes: usize) -> Result<Prepared> {
    // A CPU has no threads to spread a row over: it shows what a call costs by as good as no row.
    let (rows, width) = match context.gpu {
        Some(_) => (8, 4096),
        None => (1, 64),
    };
    let (device, _) = match compute(context, cublas, [rows, width])? {
        Ok(found) => found,
        Err(why) => return Ok(Err(why)),
    };
    let dev = device.as_ref();
    let view = |name| Ok::<View, Error>(random(dev, name, rows * width * 2, Format::Bf16)?.all());
    let (out, residual) = (view("normed rows")?, view("residual rows")?);
    let weight = random(dev, "norm weight", width * 2, Format::Bf16)?.all();
    let enqueue = Box::new(move |_: &mut Context, _: usize| {
        device.add_rms_norm(&out, &residual, None, &weight, 1e-6)
    });
    Ok(Ok((
        OWN.into(),
        Outcome::Work(Work {
            enqueue,
            at_least: nodes,
        }),
    )))
}

/// A dense product.
fn gemm(context: &Context, cublas: Option<&Path>, probe: &Probe) -> Result<Prepared> {
    let Probe::Gemm { m, n, k, weights } = *probe else {
        return Ok(Err("not a product".into()));
    };
    let Some(format) = format(weights) else {
        return Ok(Err(format!("no kernel multiplies {weights}")));
    };
    let (m, n, k) = (m as usize, n as usize, k as usize);
    let (device, name) = match compute(context, cublas, [m, k])? {
        Ok(found) => found,
        Err(why) => return Ok(Err(why)),
    };
    let all: Vec<Weight> = (0..copies(context, n * k * format.bytes()))
        .map(|_| weight(device.as_ref(), "weight", format, [1, n, k]))
        .collect::<Result<_>>()?;
    let x = random(device.as_ref(), "rows", m * k * 2, Format::Bf16)?.all();
    let y = device.alloc("products", m * n * 2)?.all();
    let enqueue = Box::new(move |_: &mut Context, turn: usize| {
        let w = &all[turn % all.len()];
        device.linear(w, Rows::dense(&x, k), Rows::dense(&y, n), m, false)
    });
    Ok(Ok((name, work(enqueue))))
}

/// Sorting by expert, grouped products, activation, weighted sum: one layer's experts.
fn experts(context: &Context, cublas: Option<&Path>, shape: &ExpertsShape) -> Result<Prepared> {
    let Some(format) = format(shape.weights) else {
        return Ok(Err(format!("no kernel multiplies {}", shape.weights)));
    };
    let [rows, experts, top_k, hidden, intermediate] = [
        shape.tokens,
        shape.experts,
        shape.top_k,
        shape.hidden,
        shape.intermediate,
    ]
    .map(|x| x as usize);
    if top_k > experts {
        return Ok(Err(format!(
            "{top_k} of {experts} experts cannot be chosen"
        )));
    }
    let pairs = rows * top_k;
    let widest = hidden.max(intermediate);
    let (device, _) = match compute(context, cublas, [pairs, widest])? {
        Ok(found) => found,
        Err(why) => return Ok(Err(why)),
    };
    let bytes = 3 * experts * hidden * intermediate * format.bytes();
    let dev = device.as_ref();
    let all: Vec<(Weight, Weight)> = (0..copies(context, bytes))
        .map(|_| {
            Ok((
                weight(
                    dev,
                    "gates and ups",
                    format,
                    [experts, 2 * intermediate, hidden],
                )?,
                weight(dev, "downs", format, [experts, hidden, intermediate])?,
            ))
        })
        .collect::<Result<_>>()?;
    let x = random(dev, "rows", rows * hidden * 2, Format::Bf16)?.all();
    let mut draws = Draws(7);
    let mut chosen = Vec::with_capacity(pairs);
    for _ in 0..rows {
        // Distinct experts of a row, each set equally likely.
        let mut left: Vec<u32> = (0..experts as u32).collect();
        for _ in 0..top_k {
            chosen.push(left.swap_remove(draws.next() as usize % left.len()));
        }
    }
    let ids = words(dev, "chosen experts", &chosen)?;
    let shares = words(
        dev,
        "their weights",
        &vec![(1.0 / top_k as f32).to_bits(); pairs],
    )?;
    let order = dev.alloc("pairs by expert", pairs * 4)?.all();
    let offsets = dev.alloc("slots of experts", (experts + 1) * 4)?.all();
    let end = offsets.sub(experts * 4, 4)?;
    let middle = dev
        .alloc("expert gates and ups", pairs * 2 * intermediate * 2)?
        .all();
    let narrow = dev
        .alloc("expert activations", pairs * intermediate * 2)?
        .all();
    let results = dev.alloc("expert results", pairs * hidden * 2)?.all();
    let out = dev.alloc("experts out", rows * hidden * 2)?.all();
    let wide = pairs / experts.max(1) >= Grouped::WIDE_FROM;
    let tiles = dev.alloc("tiles", tile_bytes(wide, pairs, experts))?.all();
    let ordered = dev
        .ordered_bytes(format, wide, rows, hidden)
        .max(dev.ordered_bytes(format, wide, pairs, intermediate));
    let ordered = match ordered {
        0 => None,
        bytes => Some(dev.alloc("rows in a product's order", bytes)?.all()),
    };
    let enqueue = Box::new(move |_: &mut Context, turn: usize| {
        let routing = Routing {
            ids: &ids,
            weights: &shares,
            order: &order,
            offsets: &offsets,
            rows,
            top_k,
            first: 0,
            experts,
            tiles: &tiles,
            ordered: ordered.as_ref(),
            wide,
            format,
        };
        let (up, down) = &all[turn % all.len()];
        device.sort_pairs(&routing)?;
        device.grouped(
            up,
            Rows::dense(&x, hidden),
            &middle,
            &routing,
            GroupedRows::TokensToSlots,
        )?;
        device.silu_mul(&narrow, &middle, intermediate, Some(&end))?;
        device.grouped(
            down,
            Rows::dense(&narrow, intermediate),
            &results,
            &routing,
            GroupedRows::SlotsToPairs,
        )?;
        device.sum_experts(&out, &results, &routing, hidden, None)
    });
    Ok(Ok((format!("{OWN} experts"), work(enqueue))))
}

/// One attention: what is asked for, in the kernels' terms.
struct Asked {
    kind: Kind,
    kv: Dtype,
    requests: usize,
    /// New tokens of each.
    queries: usize,
    /// Tokens of each, the new ones included.
    context: usize,
    heads: usize,
    /// Columns of a query and of an output.
    widths: [usize; 2],
    scale: f32,
}

/// Decode or prefill attention over a paged cache.
fn attention(context: &Context, probe: &Probe) -> Result<Prepared> {
    let width = |dim: u32| 1.0 / (dim as f32).sqrt();
    let asked = match *probe {
        Probe::DecodeGqa(s) => Asked {
            kind: gqa(s.q_heads, s.kv_heads, s.head_dim),
            kv: s.kv,
            requests: s.requests as usize,
            queries: 1,
            context: s.context as usize,
            heads: s.q_heads as usize,
            widths: [s.head_dim as usize; 2],
            scale: width(s.head_dim),
        },
        Probe::PrefillGqa(s) => Asked {
            kind: gqa(s.q_heads, s.kv_heads, s.head_dim),
            kv: s.kv,
            requests: s.sequences as usize,
            queries: s.tokens as usize,
            context: s.tokens as usize,
            heads: s.q_heads as usize,
            widths: [s.head_dim as usize; 2],
            scale: width(s.head_dim),
        },
        Probe::DecodeMla(s) => {
            if [s.kv_lora_rank as usize, s.rope_dim as usize] != [LATENT, ROPE] {
                return Ok(Err(format!(
                    "the kernels have latent rows of {LATENT} + {ROPE}"
                )));
            }
            Asked {
                kind: Kind::Mla {
                    heads: s.heads as usize,
                },
                kv: s.kv,
                requests: s.requests as usize,
                queries: 1,
                context: s.context as usize,
                heads: s.heads as usize,
                widths: [LATENT + ROPE, LATENT],
                // The head before absorption (128 + 64) of DeepSeek's published models; no kernel's
                // time depends on it.
                scale: width(192),
            }
        }
        _ => return Ok(Err("not an attention".into())),
    };
    prepared(context, &asked)
}

fn gqa(heads: u32, kv_heads: u32, head_dim: u32) -> Kind {
    Kind::Gqa {
        heads: heads as usize,
        kv_heads: kv_heads as usize,
        head_dim: head_dim as usize,
    }
}

fn prepared(context: &Context, asked: &Asked) -> Result<Prepared> {
    let (kv, format) = match asked.kv {
        Dtype::Bf16 => (KvType::Bf16, Format::Bf16),
        Dtype::Fp8 => (KvType::Fp8, Format::Fp8),
        other => return Ok(Err(format!("no kernel reads a cache of {other}"))),
    };
    let shape = Shape {
        scale: asked.scale,
        ..Shape::new(asked.kind, kv, PAGE)
    };
    if let Err(why) = shape.check() {
        return Ok(Err(why.to_string()));
    }
    let device = context.device.as_ref();
    let tokens = asked.requests * asked.queries;
    let capacity = Capacity {
        requests: asked.requests,
        tokens,
        max_query: asked.queries,
    };
    let workspace = device.attention_workspace(&shape, capacity)?;
    let pages = asked.context.div_ceil(PAGE);
    let all_pages = pages * asked.requests;
    // Pages lie at random, as they do once a server has run for a while.
    let mut table: Vec<u32> = (0..all_pages as u32).collect();
    let mut draws = Draws(11);
    for at in (1..table.len()).rev() {
        table.swap(at, draws.next() as usize % (at + 1));
    }
    let offsets: Vec<u32> = (0..=asked.requests)
        .map(|r| (r * asked.queries) as u32)
        .collect();
    let batch = Batch {
        requests: asked.requests,
        tokens,
        max_query: asked.queries,
        max_pages: pages,
        page_table: words(device, "page table", &table)?,
        kv_lens: words(
            device,
            "lengths",
            &vec![asked.context as u32; asked.requests],
        )?,
        query_offsets: words(device, "query offsets", &offsets)?,
    };
    let bytes = all_pages * shape.page_bytes();
    let latent = matches!(asked.kind, Kind::Mla { .. });
    let caches: Vec<Cache> = (0..copies(context, bytes * if latent { 1 } else { 2 }))
        .map(|_| {
            let k = random(device, "keys", bytes, format)?.all();
            let v = match latent {
                true => k.clone(),
                false => random(device, "values", bytes, format)?.all(),
            };
            Ok(Cache { k, v })
        })
        .collect::<Result<_>>()?;
    let queries = Queries {
        q: random(
            device,
            "queries",
            tokens * asked.heads * asked.widths[0] * 2,
            Format::Bf16,
        )?
        .all(),
        out: device
            .alloc("attention out", tokens * asked.heads * asked.widths[1] * 2)?
            .all(),
        lse: Some(device.alloc("lse", tokens * asked.heads * 4)?.all()),
        parts: Parts::WHOLE,
    };
    // The plan is made once a step and shared by its layers; a layer's time is without it.
    device.plan_attention(&shape, &Shard::WHOLE, &batch, &workspace)?;
    let enqueue = Box::new(move |c: &mut Context, turn: usize| {
        let cache = &caches[turn % caches.len()];
        c.device
            .attention(&shape, &Shard::WHOLE, &batch, cache, &workspace, &queries)
    });
    Ok(Ok((format!("{OWN} attention"), work(enqueue))))
}
