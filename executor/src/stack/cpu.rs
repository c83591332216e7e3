//! The operations on the host, by the plain references: f32, rounded to bf16 where the
//! kernels store.

use bytemuck::{Pod, cast_slice, pod_read_unaligned};
use half::bf16;
use parplan_kernels::reference::{self, GqaRow, Synthetic, e4m3_to_f64, f32_to_e4m3};

use super::compute::{
    CacheWrite, Compute, GroupedRows, Routing, Rows, Weight, check_linear, expect, packed_row,
};
use super::spec::Format;
use super::tensors::FP8_ACTIVATION_UNIT;
use crate::{CpuDevice, Device, Error, Result, View};

fn e4m3_to_f32(v: u8) -> f32 {
    // Exact: four significant bits.
    e4m3_to_f64(v) as f32
}

fn get<T: Pod>(view: &View) -> Result<Vec<T>> {
    view.with_host(|b| {
        b.chunks_exact(size_of::<T>())
            .map(pod_read_unaligned)
            .collect()
    })
}

fn put<T: Pod>(view: &View, values: &[T]) -> Result<()> {
    expect("host operation", view, size_of_val(values))?;
    view.with_host(|b| b.copy_from_slice(cast_slice(values)))
}

/// Values of a weight or a cache as f32.
fn stored(view: &View, format: Format, unit: f32) -> Result<Vec<f32>> {
    Ok(match format {
        Format::Bf16 => get::<bf16>(view)?.iter().map(|v| v.to_f32()).collect(),
        Format::Fp8 => get::<u8>(view)?
            .iter()
            .map(|v| e4m3_to_f32(*v) * unit)
            .collect(),
    })
}

/// An activation as an fp8 product sees it.
fn quantised(v: f32) -> f32 {
    e4m3_to_f32(f32_to_e4m3(v / FP8_ACTIVATION_UNIT)) * FP8_ACTIVATION_UNIT
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Writes rows of `kv_heads` heads into a cache at their slots.
fn store(write: &CacheWrite<'_>, cache: &View, kv_heads: usize, values: &[bf16]) -> Result<()> {
    let slots = get::<i32>(write.slots)?;
    if slots.is_empty() {
        return Ok(());
    }
    let (dim, page) = (values.len() / slots.len() / kv_heads, write.page_size);
    let width = dim * write.kv.bytes();
    let fits = cache.len() / (kv_heads * width);
    if let Some(slot) = slots.iter().find(|s| **s >= 0 && **s as usize >= fits) {
        return Err(Error::Arguments {
            op: "KV write",
            why: format!("slot {slot}, the cache has {fits}"),
        });
    }
    cache.with_host(|bytes| {
        for (i, values) in values.chunks_exact(dim).enumerate() {
            let (slot, head) = (slots[i / kv_heads], i % kv_heads);
            if slot < 0 {
                continue;
            }
            let slot = slot as usize;
            let row = (slot / page * kv_heads + head) * page + slot % page;
            let at = &mut bytes[row * width..][..width];
            match write.kv {
                Format::Bf16 => at.copy_from_slice(cast_slice(values)),
                Format::Fp8 => {
                    for (b, v) in at.iter_mut().zip(values) {
                        *b = f32_to_e4m3(v.to_f32());
                    }
                }
            }
        }
    })
}

impl Compute for CpuDevice {
    fn device(&self) -> &(dyn Device + 'static) {
        self
    }

    fn synthetic(
        &self,
        out: &View,
        format: Format,
        unit: f32,
        what: &Synthetic,
        rows: &[u64],
    ) -> Result<()> {
        match format {
            Format::Bf16 => put(out, &what.bf16(rows)),
            Format::Fp8 => put(out, &what.e4m3(rows, unit)),
        }
    }

    fn reserve(&mut self, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn linear(&self, w: &Weight, x: Rows<'_>, y: Rows<'_>, rows: usize, wide: bool) -> Result<()> {
        check_linear(w, &x, &y, rows, wide)?;
        let weight = stored(&w.data.all(), w.format, w.unit)?;
        let input: Vec<f32> = get::<bf16>(x.view)?
            .iter()
            .map(|v| v.to_f32())
            .map(|v| {
                if w.format == Format::Fp8 {
                    quantised(v)
                } else {
                    v
                }
            })
            .collect();
        let mut out = Vec::with_capacity(w.batch * rows * w.n);
        for b in 0..w.batch {
            for r in 0..rows {
                let row = &input[b * x.stride + r * x.pitch..][..w.k];
                let weights = weight[b * w.n * w.k..][..w.n * w.k].chunks_exact(w.k);
                out.extend(weights.map(|column| dot(row, column)));
            }
        }
        y.view.with_host(|bytes| {
            for (i, value) in out.iter().enumerate() {
                let (b, r, c) = (i / (rows * w.n), i / w.n % rows, i % w.n);
                let at = b * y.stride + r * y.pitch + c;
                if wide {
                    bytes[at * 4..][..4].copy_from_slice(&value.to_le_bytes());
                } else {
                    bytes[at * 2..][..2].copy_from_slice(&bf16::from_f32(*value).to_le_bytes());
                }
            }
        })
    }

    fn add_rms_norm(
        &self,
        out: &View,
        residual: &View,
        delta: Option<&View>,
        weight: &View,
        eps: f32,
    ) -> Result<()> {
        let mut rows = get::<bf16>(residual)?;
        let delta = delta.map(get::<bf16>).transpose()?;
        let normed =
            reference::add_rms_norm(&mut rows, delta.as_deref(), &get::<bf16>(weight)?, eps);
        put(residual, &rows)?;
        put(out, &normed)
    }

    fn add_bf16(&self, dst: &View, src: &View) -> Result<()> {
        let (a, b) = (get::<bf16>(dst)?, get::<bf16>(src)?);
        let sum: Vec<bf16> = a
            .iter()
            .zip(&b)
            .map(|(a, b)| bf16::from_f32(a.to_f32() + b.to_f32()))
            .collect();
        put(dst, &sum)
    }

    fn rope_gqa(
        &self,
        shape: GqaRow,
        qkv: &View,
        q: &View,
        norms: Option<[&View; 2]>,
        eps: f32,
        write: &CacheWrite<'_>,
    ) -> Result<()> {
        let norms = match norms {
            Some([a, b]) => Some([get::<bf16>(a)?, get::<bf16>(b)?]),
            None => None,
        };
        let norms = norms.as_ref().map(|[a, b]| [a.as_slice(), b.as_slice()]);
        let (rows, cos_sin) = (get::<bf16>(qkv)?, get::<f32>(write.cos_sin)?);
        let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for (row, turn) in rows
            .chunks_exact(shape.columns())
            .zip(cos_sin.chunks_exact(shape.head_dim))
        {
            let (q, k, v) = reference::rope_gqa(shape, row, turn, norms, eps);
            queries.extend(q);
            keys.extend(k);
            values.extend(v);
        }
        put(q, &queries)?;
        store(write, write.keys, shape.kv_heads, &keys)?;
        store(write, write.values, shape.kv_heads, &values)
    }

    fn rope_latent(
        &self,
        row: &View,
        q: &View,
        q_lora: usize,
        kv_lora: usize,
        norms: [&View; 2],
        eps: f32,
        write: &CacheWrite<'_>,
    ) -> Result<()> {
        let [q_norm, kv_norm] = [get::<bf16>(norms[0])?, get::<bf16>(norms[1])?];
        let (rows, cos_sin) = (get::<bf16>(row)?, get::<f32>(write.cos_sin)?);
        let count = write.slots.len() / 4;
        if count == 0 {
            return Ok(());
        }
        let rope = cos_sin.len() / count;
        let (mut queries, mut latents) = (Vec::new(), Vec::new());
        for (row, turn) in rows
            .chunks_exact(q_lora + kv_lora + rope)
            .zip(cos_sin.chunks_exact(rope))
        {
            let norms = [q_norm.as_slice(), kv_norm.as_slice()];
            let (q, latent) = reference::rope_latent(row, q_lora, kv_lora, turn, norms, eps);
            queries.extend(q);
            latents.extend(latent);
        }
        if q_lora > 0 {
            put(q, &queries)?;
        }
        store(write, write.keys, 1, &latents)
    }

    fn rope_queries(
        &self,
        from: Rows<'_>,
        nope: usize,
        to: Rows<'_>,
        kv_lora: usize,
        heads: usize,
        cos_sin: &View,
    ) -> Result<()> {
        let (input, turns) = (get::<bf16>(from.view)?, get::<f32>(cos_sin)?);
        let rope = from.pitch - nope;
        let mut out = get::<bf16>(to.view)?;
        for (i, head) in input.chunks_exact(from.pitch).enumerate() {
            let turn = &turns[i / heads * rope..][..rope];
            let rotated = reference::rope_head(&head[nope..], turn);
            out[i * to.pitch + kv_lora..][..rope].copy_from_slice(&rotated);
        }
        put(to.view, &out)
    }

    fn silu_mul(
        &self,
        out: &View,
        gate_up: &View,
        width: usize,
        limit: Option<&View>,
    ) -> Result<()> {
        let rows = match limit {
            Some(limit) => get::<i32>(limit)?.first().copied().unwrap_or(0).max(0) as usize,
            None => out.len() / (width * 2),
        };
        let input = get::<bf16>(&gate_up.sub(0, rows * width * 4)?)?;
        put(
            &out.sub(0, rows * width * 2)?,
            &reference::silu_mul(&input, width),
        )
    }

    fn route(
        &self,
        logits: &View,
        experts: usize,
        top_k: usize,
        ids: &View,
        weights: &View,
    ) -> Result<()> {
        let (mut chosen, mut shares) = (Vec::new(), Vec::new());
        for row in get::<f32>(logits)?.chunks_exact(experts) {
            let (i, w) = reference::route(row, top_k);
            chosen.extend(i);
            shares.extend(w);
        }
        put(ids, &chosen)?;
        put(weights, &shares)
    }

    fn sort_pairs(&self, routing: &Routing<'_>) -> Result<()> {
        let ids = get::<i32>(routing.ids)?;
        let sorted = reference::sort_pairs(&ids, routing.first as i32, routing.experts);
        put(
            &routing.order.sub(0, sorted.order.len() * 4)?,
            &sorted.order,
        )?;
        put(routing.offsets, &sorted.offsets)
    }

    fn grouped(
        &self,
        w: &Weight,
        x: Rows<'_>,
        y: &View,
        routing: &Routing<'_>,
        rows: GroupedRows,
    ) -> Result<()> {
        let (order, offsets) = (get::<i32>(routing.order)?, get::<i32>(routing.offsets)?);
        let (weight, input) = (
            stored(&w.data.all(), w.format, w.unit)?,
            get::<bf16>(x.view)?,
        );
        let mut out = get::<bf16>(y)?;
        for e in 0..routing.experts {
            let matrix = &weight[e * w.n * w.k..][..w.n * w.k];
            let slots = offsets[e] as usize..offsets[e + 1] as usize;
            for (slot, pair) in slots.clone().zip(&order[slots]) {
                let pair = *pair as usize;
                let (from, to) = match rows {
                    GroupedRows::TokensToSlots => (pair / routing.top_k, slot),
                    GroupedRows::SlotsToPairs => (slot, pair),
                };
                let row: Vec<f32> = input[from * x.pitch..][..w.k]
                    .iter()
                    .map(|v| v.to_f32())
                    .collect();
                for (o, column) in out[to * w.n..][..w.n]
                    .iter_mut()
                    .zip(matrix.chunks_exact(w.k))
                {
                    *o = bf16::from_f32(dot(&row, column));
                }
            }
        }
        put(y, &out)
    }

    fn sum_experts(
        &self,
        out: &View,
        outputs: &View,
        routing: &Routing<'_>,
        hidden: usize,
        base: Option<&View>,
    ) -> Result<()> {
        let base = base.map(get::<bf16>).transpose()?;
        let (first, end) = (
            routing.first as i32,
            (routing.first + routing.experts) as i32,
        );
        let sum = reference::sum_experts(
            &get::<bf16>(outputs)?,
            &get::<i32>(routing.ids)?,
            &get::<f32>(routing.weights)?,
            first..end,
            routing.top_k,
            hidden,
            base.as_deref(),
        );
        put(out, &sum)
    }

    fn pack_rows(
        &self,
        packed: &View,
        rows: &View,
        routing: &Routing<'_>,
        parts: usize,
        hidden: usize,
    ) -> Result<()> {
        let (values, ids) = (self.read(rows)?, get::<i32>(routing.ids)?);
        let weights = get::<f32>(routing.weights)?;
        let (row, k) = (packed_row(hidden, routing.top_k), routing.top_k);
        let mut out = Vec::with_capacity(parts * routing.rows * row);
        for part in 0..parts {
            for r in 0..routing.rows {
                let begin = out.len();
                out.extend_from_slice(&values[r * hidden * 2..][..hidden * 2]);
                for id in &ids[r * k..][..k] {
                    let here = *id >= 0 && *id as usize / routing.experts == part;
                    out.extend_from_slice(&(if here { *id } else { -1 }).to_le_bytes());
                }
                out.extend_from_slice(cast_slice(&weights[r * k..][..k]));
                out.resize(begin + row, 0);
            }
        }
        put(packed, &out)
    }

    fn unpack_choices(&self, routing: &Routing<'_>, packed: &View, hidden: usize) -> Result<()> {
        let (row, k) = (packed_row(hidden, routing.top_k), routing.top_k);
        let bytes = self.read(packed)?;
        let (mut ids, mut weights) = (Vec::new(), Vec::new());
        for row in bytes.chunks_exact(row) {
            ids.extend_from_slice(&row[hidden * 2..][..k * 4]);
            weights.extend_from_slice(&row[hidden * 2 + k * 4..][..k * 4]);
        }
        put(routing.ids, &ids)?;
        put(routing.weights, &weights)
    }

    fn sum_parts(&self, out: &View, parts: &View, count: usize, base: Option<&View>) -> Result<()> {
        let values = get::<bf16>(parts)?;
        let part = values.len() / count.max(1);
        let base = base.map(get::<bf16>).transpose()?;
        let sum: Vec<bf16> = (0..part)
            .map(|i| {
                let start = base.as_ref().map_or(0.0, |b| b[i].to_f32());
                bf16::from_f32((0..count).fold(start, |s, p| s + values[p * part + i].to_f32()))
            })
            .collect();
        put(out, &sum)
    }
}
