//! The operations on a GPU: products by cuBLASLt, everything else by parplan's kernels.

use std::path::Path;
use std::sync::Arc;

use parplan_kernels::layer::{
    CacheArgs, Grouped, GroupedArgs, ROUTE_WARPS, SORT_THREADS, THREADS, names,
};
use parplan_kernels::reference::{GqaRow, Synthetic};

use super::compute::{
    CacheWrite, Compute, GroupedRows, Routing, Rows, Weight, check_linear, expect, packed_row,
    tile_bytes,
};
use super::spec::Format;
use super::tensors::FP8_ACTIVATION_UNIT;
use crate::cublaslt::{Operands, Product, Products};
use crate::cuda::{Argument, Gpu, Grid, Kernels};
use crate::{Buffer, Device, Error, Result, View};

/// A GPU with cuBLASLt.
pub struct CudaCompute {
    gpu: Arc<Gpu>,
    kernels: Arc<Kernels>,
    products: Products,
    capability: (i32, i32),
    /// Rows of an fp8 product.
    quantised: Option<Buffer>,
}

/// Blocks for that many elements: a few waves of the multiprocessors at most.
fn blocks(elements: usize) -> u32 {
    elements.div_ceil(THREADS as usize).clamp(1, 1056) as u32
}

fn address(view: &View) -> Result<Argument> {
    Ok(Argument::Address(view.address()?))
}

fn optional(view: Option<&View>) -> Result<Argument> {
    view.map_or(Ok(Argument::Address(0)), address)
}

impl CudaCompute {
    /// Opens cuBLASLt on `gpu` and loads every kernel, so that all may be captured.
    ///
    /// # Errors
    /// [`Error::Library`] where cuBLASLt is missing or too old; a device error.
    pub fn new(gpu: &Arc<Gpu>, cublas: Option<&Path>) -> Result<Self> {
        let products = Products::open(gpu, cublas)?;
        let kernels = gpu.kernels()?;
        let capability = gpu.compute_capability()?;
        for name in names::ALL {
            kernels.prepare(gpu, name, 0)?;
        }
        for (fp8, wide) in [(false, false), (false, true), (true, false), (true, true)] {
            let kernel = Grouped::choose(fp8, wide, capability);
            kernels.prepare(gpu, kernel.name, kernel.shared)?;
        }
        Ok(CudaCompute {
            gpu: Arc::clone(gpu),
            kernels,
            products,
            capability,
            quantised: None,
        })
    }

    /// Who computes products, with the version.
    #[must_use]
    pub fn products(&self) -> String {
        format!("cublaslt {}", self.products.library().version())
    }

    fn launch(&self, name: &'static str, grid: Grid, arguments: &[Argument]) -> Result<()> {
        if grid.x == 0 || grid.y == 0 {
            return Ok(());
        }
        self.gpu.bind()?;
        // SAFETY: every caller passes the arguments that the kernel's source declares,
        // and views as long as their shapes say; views are of live device memory.
        unsafe { self.kernels.launch(&self.gpu, name, grid, arguments) }
    }

    /// A block a row.
    fn by_row(&self, name: &'static str, rows: usize, arguments: &[Argument]) -> Result<()> {
        self.launch(name, Grid::linear(rows as u32, THREADS), arguments)
    }

    /// The rows that a grouped product reads, brought into the order that it reads them in; of slots only
    /// those that exist. Rows have a multiple of 16 columns, which was checked.
    fn in_pair_order(
        &self,
        w: &Weight,
        x: Rows<'_>,
        routing: &Routing<'_>,
        rows: GroupedRows,
    ) -> Result<View> {
        let (count, limit) = match rows {
            GroupedRows::TokensToSlots => (routing.rows, None),
            GroupedRows::SlotsToPairs => {
                let end = routing.offsets.sub(routing.experts * 4, 4)?;
                (routing.pairs(), Some(end))
            }
        };
        let bytes = count * w.k * 2;
        let room = match routing.ordered {
            Some(room) if room.len() >= bytes => room.sub(0, bytes)?,
            found => {
                return Err(Error::Arguments {
                    op: "grouped product",
                    why: format!(
                        "room for {} bytes of rows in order, {count} rows of {} columns need {bytes}",
                        found.map_or(0, View::len),
                        w.k
                    ),
                });
            }
        };
        let groups = w.k / 16;
        let arguments = [
            address(&room)?,
            address(x.view)?,
            Argument::U64(count as u64),
            Argument::U64(groups as u64),
            Argument::U64(x.pitch as u64),
            optional(limit.as_ref())?,
        ];
        self.by_element(names::PAIR_ORDER, count * groups, &arguments)?;
        Ok(room)
    }

    /// A stride over elements.
    fn by_element(&self, name: &'static str, count: usize, arguments: &[Argument]) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        self.launch(name, Grid::linear(blocks(count), THREADS), arguments)
    }
}

fn cache_args(write: &CacheWrite<'_>) -> Result<CacheArgs> {
    Ok(CacheArgs {
        slots: write.slots.address()?,
        cos_sin: write.cos_sin.address()?,
        keys: write.keys.address()?,
        values: write.values.address()?,
        page: write.page_size as u32,
        fp8: u32::from(write.kv == Format::Fp8),
    })
}

/// Words of 8 values in so many columns.
fn words(op: &'static str, columns: usize) -> Result<u64> {
    if columns > 0 && columns.is_multiple_of(8) {
        return Ok((columns / 8) as u64);
    }
    Err(Error::Arguments {
        op,
        why: format!("rows of {columns} columns, the kernels need a multiple of 8"),
    })
}

impl Compute for CudaCompute {
    fn device(&self) -> &(dyn Device + 'static) {
        &self.gpu
    }

    fn synthetic(
        &self,
        out: &View,
        format: Format,
        unit: f32,
        what: &Synthetic,
        rows: &[u64],
    ) -> Result<()> {
        expect(
            "synthetic rows",
            out,
            rows.len() * what.columns * format.bytes(),
        )?;
        let numbers = self.gpu.alloc("row numbers", rows.len() * 8)?;
        self.gpu.write(&numbers.all(), bytemuck::cast_slice(rows))?;
        let name = match format {
            Format::Bf16 => names::SYNTHETIC_BF16,
            Format::Fp8 => names::SYNTHETIC_E4M3,
        };
        let arguments = [
            address(out)?,
            address(&numbers.all())?,
            Argument::U64(rows.len() as u64),
            Argument::U64(what.columns as u64),
            Argument::U64(what.full_columns),
            Argument::U64(what.column),
            Argument::U64(what.seed),
            Argument::F32(what.scale),
            Argument::F32(what.offset),
            Argument::F32(unit),
        ];
        // Freed when this returns, which waits for the kernel that reads them.
        self.by_element(name, rows.len() * what.columns, &arguments)
    }

    fn reserve(&mut self, rows: usize, columns: usize) -> Result<()> {
        self.quantised = Some(self.gpu.alloc("quantised rows", rows * columns)?);
        Ok(())
    }

    fn linear(&self, w: &Weight, x: Rows<'_>, y: Rows<'_>, rows: usize, wide: bool) -> Result<()> {
        check_linear(w, &x, &y, rows, wide)?;
        if rows == 0 {
            return Ok(());
        }
        let product = Product {
            m: rows,
            n: w.n,
            k: w.k,
            batch: w.batch,
            x_pitch: x.pitch,
            x_stride: x.stride,
            y_pitch: y.pitch,
            y_stride: y.stride,
            fp8: w.format == Format::Fp8,
            wide,
        };
        let weight = w.data.all();
        if !product.fp8 {
            let operands = Operands {
                x: x.view,
                w: &weight,
                y: y.view,
            };
            return self.products.run(&product, operands, 1.0);
        }
        let room = self.quantised.as_ref().ok_or_else(|| Error::Arguments {
            op: "fp8 product",
            why: "no room was reserved for quantised rows".into(),
        })?;
        if w.batch != 1 || x.pitch != w.k || room.len() < rows * w.k {
            return Err(Error::Arguments {
                op: "fp8 product",
                why: format!(
                    "{} products of {rows} rows of {} columns, {} apart: one of dense rows is right, with room for {} values",
                    w.batch,
                    w.k,
                    x.pitch,
                    room.len()
                ),
            });
        }
        let quantised = room.view(0, rows * w.k)?;
        let count = rows * words("fp8 product", w.k)? as usize;
        let arguments = [
            address(&quantised)?,
            address(x.view)?,
            Argument::F32(1.0 / FP8_ACTIVATION_UNIT),
            Argument::U64(count as u64),
        ];
        self.by_element(names::QUANTISE_E4M3, count, &arguments)?;
        let operands = Operands {
            x: &quantised,
            w: &weight,
            y: y.view,
        };
        self.products
            .run(&product, operands, w.unit * FP8_ACTIVATION_UNIT)
    }

    fn add_rms_norm(
        &self,
        out: &View,
        residual: &View,
        delta: Option<&View>,
        weight: &View,
        eps: f32,
    ) -> Result<()> {
        let op = "norm";
        let words = words(op, weight.len() / 2)?;
        let rows = residual.len() / weight.len();
        for view in [Some(out), Some(residual), delta].into_iter().flatten() {
            expect(op, view, rows * weight.len())?;
        }
        let arguments = [
            address(out)?,
            address(residual)?,
            optional(delta)?,
            address(weight)?,
            Argument::F32(eps),
            Argument::U64(words),
        ];
        self.by_row(names::ADD_RMS_NORM, rows, &arguments)
    }

    fn add_bf16(&self, dst: &View, src: &View) -> Result<()> {
        expect("sum", src, dst.len())?;
        let count = dst.len() / 16;
        let arguments = [address(dst)?, address(src)?, Argument::U64(count as u64)];
        self.by_element(names::ADD_BF16, count, &arguments)
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
        let rows = write.slots.len() / 4;
        expect("rotary embedding", qkv, rows * shape.columns() * 2)?;
        expect(
            "rotary embedding",
            q,
            rows * shape.q_heads * shape.head_dim * 2,
        )?;
        expect("rotary embedding", write.cos_sin, rows * shape.head_dim * 4)?;
        let arguments = [
            address(qkv)?,
            address(q)?,
            optional(norms.map(|n| n[0]))?,
            optional(norms.map(|n| n[1]))?,
            Argument::Cache(cache_args(write)?),
            Argument::U32(shape.q_heads as u32),
            Argument::U32(shape.kv_heads as u32),
            Argument::U32(shape.head_dim as u32),
            Argument::F32(eps),
        ];
        self.by_row(names::ROPE_GQA, rows, &arguments)
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
        let rows = write.slots.len() / 4;
        if rows == 0 {
            return Ok(());
        }
        let rope = write.cos_sin.len() / (rows * 4);
        expect(
            "rotary embedding",
            row,
            rows * (q_lora + kv_lora + rope) * 2,
        )?;
        expect("rotary embedding", q, rows * q_lora * 2)?;
        let arguments = [
            address(row)?,
            address(q)?,
            address(norms[0])?,
            address(norms[1])?,
            Argument::Cache(cache_args(write)?),
            Argument::U32(q_lora as u32),
            Argument::U32(kv_lora as u32),
            Argument::U32(rope as u32),
            Argument::F32(eps),
        ];
        self.by_row(names::ROPE_LATENT, rows, &arguments)
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
        let rope = from.pitch - nope;
        let rows = cos_sin.len() / (rope * 4);
        expect("rotary embedding", from.view, rows * heads * from.pitch * 2)?;
        expect("rotary embedding", to.view, rows * heads * to.pitch * 2)?;
        let arguments = [
            address(from.view)?,
            address(to.view)?,
            address(cos_sin)?,
            Argument::U32(heads as u32),
            Argument::U32(nope as u32),
            Argument::U32(kv_lora as u32),
            Argument::U32(rope as u32),
        ];
        self.by_row(names::ROPE_QUERIES, rows, &arguments)
    }

    fn silu_mul(
        &self,
        out: &View,
        gate_up: &View,
        width: usize,
        limit: Option<&View>,
    ) -> Result<()> {
        let words = words("activation", width)?;
        expect("activation", gate_up, out.len() * 2)?;
        let rows = out.len() / (width * 2);
        let arguments = [
            address(out)?,
            address(gate_up)?,
            Argument::U64(rows as u64),
            Argument::U64(words),
            optional(limit)?,
        ];
        self.by_element(names::SILU_MUL, rows * words as usize, &arguments)
    }

    fn route(
        &self,
        logits: &View,
        experts: usize,
        top_k: usize,
        ids: &View,
        weights: &View,
    ) -> Result<()> {
        let rows = logits.len() / (experts * 4);
        expect("router", ids, rows * top_k * 4)?;
        expect("router", weights, rows * top_k * 4)?;
        let arguments = [
            address(logits)?,
            address(ids)?,
            address(weights)?,
            Argument::U32(rows as u32),
            Argument::U32(experts as u32),
            Argument::U32(top_k as u32),
        ];
        let blocks = (rows as u32).div_ceil(ROUTE_WARPS);
        self.launch(
            names::ROUTE,
            Grid::linear(blocks, 32 * ROUTE_WARPS),
            &arguments,
        )
    }

    fn sort_pairs(&self, routing: &Routing<'_>) -> Result<()> {
        let (pairs, experts) = (routing.pairs(), routing.experts);
        expect("sorting by expert", routing.ids, pairs * 4)?;
        expect("sorting by expert", routing.order, pairs * 4)?;
        expect("sorting by expert", routing.offsets, (experts + 1) * 4)?;
        let bytes = tile_bytes(routing.wide, pairs, experts);
        expect("sorting by expert", routing.tiles, bytes)?;
        let fp8 = routing.format == Format::Fp8;
        let kernel = Grouped::choose(fp8, routing.wide, self.capability);
        let arguments = [
            address(routing.ids)?,
            address(routing.order)?,
            address(routing.offsets)?,
            address(routing.tiles)?,
            Argument::U32(pairs as u32),
            Argument::U32(routing.first as u32),
            Argument::U32(experts as u32),
            Argument::U32(kernel.rows),
            Argument::U32(kernel.max_tiles(pairs, experts) as u32),
        ];
        self.launch(names::SORT_PAIRS, Grid::linear(1, SORT_THREADS), &arguments)
    }

    fn ordered_bytes(&self, format: Format, wide: bool, rows: usize, columns: usize) -> usize {
        let kernel = Grouped::choose(format == Format::Fp8, wide, self.capability);
        if kernel.pair_order {
            rows * columns * 2
        } else {
            0
        }
    }

    fn grouped(
        &self,
        w: &Weight,
        x: Rows<'_>,
        y: &View,
        routing: &Routing<'_>,
        rows: GroupedRows,
    ) -> Result<()> {
        let fp8 = w.format == Format::Fp8;
        let (pairs, unit) = (routing.pairs(), if fp8 { 16 } else { 8 });
        if !w.k.is_multiple_of(unit) || !x.pitch.is_multiple_of(8) || !w.n.is_multiple_of(2) {
            return Err(Error::Arguments {
                op: "grouped product",
                why: format!(
                    "{} to {} columns, rows {} apart: the kernels need input columns in multiples of {unit}, pitches of 8, output columns of 2",
                    w.k, w.n, x.pitch
                ),
            });
        }
        expect("grouped product", y, pairs * w.n * 2)?;
        let read = match rows {
            GroupedRows::TokensToSlots => routing.rows,
            GroupedRows::SlotsToPairs => pairs,
        };
        if w.batch != routing.experts
            || (read > 0 && x.view.len() < ((read - 1) * x.pitch + w.k) * 2)
        {
            return Err(Error::Arguments {
                op: "grouped product",
                why: format!(
                    "{} matrices for {} experts, '{}' of {} bytes for {read} rows of {} columns",
                    w.batch,
                    routing.experts,
                    x.view.buffer().name(),
                    x.view.len(),
                    w.k
                ),
            });
        }
        let kernel = Grouped::choose(fp8, routing.wide, self.capability);
        let max_tiles = kernel.max_tiles(pairs, routing.experts);
        let (from, pitch) = if kernel.pair_order {
            (self.in_pair_order(w, x, routing, rows)?, w.k)
        } else {
            (x.view.clone(), x.pitch)
        };
        let arguments = [Argument::Grouped(GroupedArgs {
            x: from.address()?,
            w: w.data.all().address()?,
            y: y.address()?,
            order: routing.order.address()?,
            offsets: routing.offsets.address()?,
            tiles: routing.tiles.address()?,
            n: w.n as u32,
            k: w.k as u32,
            x_pitch: pitch as u32,
            top_k: routing.top_k as u32,
            max_tiles: max_tiles as u32,
            to_slots: u32::from(rows == GroupedRows::TokensToSlots),
            // Of e4m3 the kernel reads 2^-8.
            scale: if fp8 { w.unit * 256.0 } else { 1.0 },
            pad: 0,
        })];
        let columns = (w.n as u32).div_ceil(kernel.columns);
        let (blocks, tiles) = match kernel.walks {
            true => {
                let most = (max_tiles * columns as usize).max(1);
                (self.gpu.multiprocessors()?.min(most) as u32, 1)
            }
            false => (columns, max_tiles as u32),
        };
        let grid = Grid {
            x: blocks,
            y: tiles,
            threads: kernel.threads,
            shared: kernel.shared,
            early: false,
        };
        self.launch(kernel.name, grid, &arguments)
    }

    fn sum_experts(
        &self,
        out: &View,
        outputs: &View,
        routing: &Routing<'_>,
        hidden: usize,
        base: Option<&View>,
    ) -> Result<()> {
        let words = words("sum of experts", hidden)?;
        for view in [Some(out), base].into_iter().flatten() {
            expect("sum of experts", view, routing.rows * hidden * 2)?;
        }
        expect("sum of experts", outputs, routing.pairs() * hidden * 2)?;
        let arguments = [
            address(out)?,
            address(outputs)?,
            address(routing.ids)?,
            address(routing.weights)?,
            optional(base)?,
            Argument::U32(routing.top_k as u32),
            Argument::U32(routing.first as u32),
            Argument::U32(routing.experts as u32),
            Argument::U64(words),
        ];
        self.by_row(names::SUM_EXPERTS, routing.rows, &arguments)
    }

    fn pack_rows(
        &self,
        packed: &View,
        rows: &View,
        routing: &Routing<'_>,
        parts: usize,
        hidden: usize,
    ) -> Result<()> {
        let row = packed_row(hidden, routing.top_k);
        expect("packed rows", packed, parts * routing.rows * row)?;
        expect("packed rows", rows, routing.rows * hidden * 2)?;
        let arguments = [
            address(packed)?,
            address(rows)?,
            address(routing.ids)?,
            address(routing.weights)?,
            Argument::U32(routing.rows as u32),
            Argument::U32(routing.top_k as u32),
            Argument::U32(routing.experts as u32),
            Argument::U64(words("packed rows", hidden)?),
            Argument::U64((row / 16) as u64),
        ];
        self.by_row(names::PACK_ROWS, parts * routing.rows, &arguments)
    }

    fn unpack_choices(&self, routing: &Routing<'_>, packed: &View, hidden: usize) -> Result<()> {
        let row = packed_row(hidden, routing.top_k);
        expect("packed rows", packed, routing.rows * row)?;
        let arguments = [
            address(routing.ids)?,
            address(routing.weights)?,
            address(packed)?,
            Argument::U32(routing.rows as u32),
            Argument::U32(routing.top_k as u32),
            Argument::U64(words("packed rows", hidden)?),
            Argument::U64((row / 16) as u64),
        ];
        self.by_element(names::UNPACK_CHOICES, routing.pairs(), &arguments)
    }

    fn sum_parts(&self, out: &View, parts: &View, count: usize, base: Option<&View>) -> Result<()> {
        expect("sum of parts", parts, out.len() * count)?;
        let words = out.len() / 16;
        let arguments = [
            address(out)?,
            address(parts)?,
            optional(base)?,
            Argument::U64(count as u64),
            Argument::U64(words as u64),
        ];
        self.by_element(names::SUM_PARTS, words, &arguments)
    }
}
