//! The operations of a decoder layer on one rank.

use parplan_kernels::layer::Grouped;
use parplan_kernels::reference::{GqaRow, Synthetic};

use super::spec::Format;
use crate::{Buffer, Device, Error, Result, View};

/// A weight `[batch, n, k]`: products are `x · wᵀ`.
#[derive(Clone, Debug)]
pub struct Weight {
    /// The values, row by row.
    pub data: Buffer,
    /// Storage.
    pub format: Format,
    /// What stored fp8 values are multiplied by; 1 for bf16.
    pub unit: f32,
    /// Matrices, one behind the other: heads, or experts.
    pub batch: usize,
    /// Output columns.
    pub n: usize,
    /// Input columns.
    pub k: usize,
}

/// Rows in memory, bf16 unless said otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// Where they are.
    pub view: &'a View,
    /// Elements from one row to the next.
    pub pitch: usize,
    /// Elements from one matrix of a batch to the next.
    pub stride: usize,
}

impl<'a> Rows<'a> {
    /// Rows of `pitch` elements, one behind the other.
    #[must_use]
    pub fn dense(view: &'a View, pitch: usize) -> Self {
        Rows {
            view,
            pitch,
            stride: 0,
        }
    }
}

/// Where the experts' tokens are.
#[derive(Clone, Copy, Debug)]
pub struct Routing<'a> {
    /// i32 `[rows, top_k]`: chosen experts.
    pub ids: &'a View,
    /// f32 `[rows, top_k]`: their weights.
    pub weights: &'a View,
    /// i32 `[rows · top_k]`: pairs sorted by expert, as far as they are local.
    pub order: &'a View,
    /// i32 `[experts + 1]`: first slot of each local expert, and the end.
    pub offsets: &'a View,
    /// Scratch of the sorting, [`tile_bytes`] long; the grouped products read it.
    pub tiles: &'a View,
    /// Scratch of the grouped products, as long as [`Compute::ordered_bytes`] asks for each of them.
    pub ordered: Option<&'a View>,
    /// Tiles for many rows an expert, or for few.
    pub wide: bool,
    /// Of the experts' weights, which decides the tiles as well.
    pub format: Format,
    /// Rows.
    pub rows: usize,
    /// Choices of a row.
    pub top_k: usize,
    /// First local expert.
    pub first: usize,
    /// Local experts.
    pub experts: usize,
}

impl Routing<'_> {
    /// Pairs of a row and a choice.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.rows * self.top_k
    }
}

/// Bytes of [`Routing::tiles`] for so many pairs and local experts.
#[must_use]
pub fn tile_bytes(wide: bool, pairs: usize, experts: usize) -> usize {
    (Grouped::most_tiles(wide, pairs, experts) + 1) * 8
}

/// Which rows a grouped product reads, and which it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupedRows {
    /// Reads the row of a pair's token, writes the pair's slot in the sorted order.
    TokensToSlots,
    /// Reads the slot, writes the row of the pair.
    SlotsToPairs,
}

/// A row of the KV cache to write: from the projection's row, at its slot.
#[derive(Clone, Copy, Debug)]
pub struct CacheWrite<'a> {
    /// i32 `[rows]`: slot (page · page size + offset) of each row, −1 for none.
    pub slots: &'a View,
    /// Tokens of a page; the cache is `[pages, kv_heads, page size, dim]`.
    pub page_size: usize,
    /// f32 `[rows, dim]`: cosines and sines of each row's position, half and half.
    pub cos_sin: &'a View,
    /// Keys, or latent rows.
    pub keys: &'a View,
    /// Values; unused where latent.
    pub values: &'a View,
    /// Storage of the cache.
    pub kv: Format,
}

/// What a stack needs: the operations of a decoder layer, and the [`Device`] that they run
/// on. As there, work is enqueued in call order. Row counts are those of the views; counts
/// that change from replay to replay are read from device memory.
pub trait Compute {
    /// The device. `dyn Compute` derefs to it, so its operations are called alike.
    fn device(&self) -> &(dyn Device + 'static);

    /// Synthetic rows of a tensor, by their numbers in it; fp8 is divided by `unit` first.
    /// Not for graphs.
    ///
    /// # Errors
    /// [`Error::Arguments`] when the view does not hold them; a device error.
    fn synthetic(
        &self,
        out: &View,
        format: Format,
        unit: f32,
        what: &Synthetic,
        rows: &[u64],
    ) -> Result<()>;

    /// Room for what products of up to `rows` rows and `columns` input columns need
    /// besides their arguments. Before the first product, and not in a graph.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn reserve(&mut self, rows: usize, columns: usize) -> Result<()>;

    /// `y[b] = x[b] · w[b]ᵀ` for each matrix of the weight, `rows` rows; `y` is bf16, or
    /// f32 with `wide`.
    ///
    /// # Errors
    /// [`Error::Arguments`] for misfit sizes; a device or library error.
    fn linear(&self, w: &Weight, x: Rows<'_>, y: Rows<'_>, rows: usize, wide: bool) -> Result<()>;

    /// `residual += delta`, `out = norm(residual) · weight`, rows as wide as the weight.
    ///
    /// # Errors
    /// [`Error::Arguments`] for misfit sizes; a device error. So for all below.
    fn add_rms_norm(
        &self,
        out: &View,
        residual: &View,
        delta: Option<&View>,
        weight: &View,
        eps: f32,
    ) -> Result<()>;

    /// `dst += src`, bf16.
    ///
    /// # Errors
    /// See [`add_rms_norm`](Compute::add_rms_norm).
    fn add_bf16(&self, dst: &View, src: &View) -> Result<()>;

    /// Rows of Q, K and V: norms, rotation; Q goes to `q`, K and V into the cache.
    ///
    /// # Errors
    /// See [`add_rms_norm`](Compute::add_rms_norm).
    fn rope_gqa(
        &self,
        shape: GqaRow,
        qkv: &View,
        q: &View,
        norms: Option<[&View; 2]>,
        eps: f32,
        write: &CacheWrite<'_>,
    ) -> Result<()>;

    /// Rows of MLA's fused compression: the normed query compression goes to `q`, the
    /// normed latent row with its rotated part into the cache.
    ///
    /// # Errors
    /// See [`add_rms_norm`](Compute::add_rms_norm).
    #[allow(clippy::too_many_arguments)] // three widths and their memory
    fn rope_latent(
        &self,
        row: &View,
        q: &View,
        q_lora: usize,
        kv_lora: usize,
        norms: [&View; 2],
        eps: f32,
        write: &CacheWrite<'_>,
    ) -> Result<()>;

    /// The rotary columns of MLA queries: `[rows, heads, from.pitch]`, columns from
    /// `nope` on, rotated into `[rows, heads, to.pitch]`, columns from `kv_lora` on.
    ///
    /// # Errors
    /// See [`add_rms_norm`](Compute::add_rms_norm).
    fn rope_queries(
        &self,
        from: Rows<'_>,
        nope: usize,
        to: Rows<'_>,
        kv_lora: usize,
        heads: usize,
        cos_sin: &View,
    ) -> Result<()>;

    /// `silu(gate) · up` of rows `[gate | up]`, `width` wide each. With `limit`, an i32 in
    /// device memory, only that many rows count.
    ///
    /// # Errors
    /// See [`add_rms_norm`](Compute::add_rms_norm).
    fn silu_mul(
        &self,
        out: &View,
        gate_up: &View,
        width: usize,
        limit: Option<&View>,
    ) -> Result<()>;

    /// The chosen experts of each row of f32 logits and their weights.
    ///
    /// # Errors
    /// See [`add_rms_norm`](Compute::add_rms_norm).
    fn route(
        &self,
        logits: &View,
        experts: usize,
        top_k: usize,
        ids: &View,
        weights: &View,
    ) -> Result<()>;

    /// Fills `order`, `offsets` and `tiles` from `ids`.
    ///
    /// # Errors
    /// See [`add_rms_norm`](Compute::add_rms_norm).
    fn sort_pairs(&self, routing: &Routing<'_>) -> Result<()>;

    /// Bytes that a grouped product of `rows` rows of `columns` columns needs to bring them into the order
    /// that it reads them in; 0 where it reads them as they are. `wide`: for many rows an expert.
    fn ordered_bytes(&self, format: Format, wide: bool, rows: usize, columns: usize) -> usize {
        let _ = (format, wide, rows, columns);
        0
    }

    /// One product for each local expert over its rows.
    ///
    /// # Errors
    /// See [`add_rms_norm`](Compute::add_rms_norm).
    fn grouped(
        &self,
        w: &Weight,
        x: Rows<'_>,
        y: &View,
        routing: &Routing<'_>,
        rows: GroupedRows,
    ) -> Result<()>;

    /// Weighted sum of the local experts' outputs (`[rows · top_k, hidden]`, by pairs) and
    /// of `base`.
    ///
    /// # Errors
    /// See [`add_rms_norm`](Compute::add_rms_norm).
    fn sum_experts(
        &self,
        out: &View,
        outputs: &View,
        routing: &Routing<'_>,
        hidden: usize,
        base: Option<&View>,
    ) -> Result<()>;

    /// Rows with their choices behind them, once for each of `parts` ranks: part r gets
    /// row and choices, experts of other ranks replaced by −1; `local` experts a rank.
    /// A packed row is `packed_row` bytes.
    ///
    /// # Errors
    /// See [`add_rms_norm`](Compute::add_rms_norm).
    fn pack_rows(
        &self,
        packed: &View,
        rows: &View,
        routing: &Routing<'_>,
        parts: usize,
        hidden: usize,
    ) -> Result<()>;

    /// The choices of packed rows, apart.
    ///
    /// # Errors
    /// See [`add_rms_norm`](Compute::add_rms_norm).
    fn unpack_choices(&self, routing: &Routing<'_>, packed: &View, hidden: usize) -> Result<()>;

    /// Sum of `parts` equally long parts of bf16, in f32, and of `base`.
    ///
    /// # Errors
    /// See [`add_rms_norm`](Compute::add_rms_norm).
    fn sum_parts(&self, out: &View, parts: &View, count: usize, base: Option<&View>) -> Result<()>;
}

impl std::ops::Deref for dyn Compute + '_ {
    type Target = dyn Device;

    fn deref(&self) -> &Self::Target {
        self.device()
    }
}

/// Bytes of a row with its choices behind it: whole 16-byte words.
#[must_use]
pub(crate) fn packed_row(hidden: usize, top_k: usize) -> usize {
    (hidden * 2 + top_k * 8).next_multiple_of(16)
}

/// A size that a view must have.
pub(super) fn expect(op: &'static str, view: &View, bytes: usize) -> Result<()> {
    if view.len() == bytes {
        return Ok(());
    }
    Err(Error::Arguments {
        op,
        why: format!(
            "'{}' has {} bytes, {bytes} are needed",
            view.buffer().name(),
            view.len()
        ),
    })
}

/// The checks of a product.
pub(super) fn check_linear(
    w: &Weight,
    x: &Rows<'_>,
    y: &Rows<'_>,
    rows: usize,
    wide: bool,
) -> Result<()> {
    let out = if wide { 4 } else { 2 };
    let end = |r: &Rows<'_>, columns: usize| {
        (w.batch - 1) * r.stride + rows.saturating_sub(1) * r.pitch + columns
    };
    let why = if w.batch == 0 || w.n == 0 || w.k == 0 {
        format!("an empty weight: {} of {} by {}", w.batch, w.n, w.k)
    } else if w.data.len() != w.batch * w.n * w.k * w.format.bytes() {
        format!(
            "'{}' has {} bytes, {} matrices of {} by {} need {}",
            w.data.name(),
            w.data.len(),
            w.batch,
            w.n,
            w.k,
            w.batch * w.n * w.k * w.format.bytes()
        )
    } else if rows > 0 && (x.view.len() < end(x, w.k) * 2 || y.view.len() < end(y, w.n) * out) {
        format!(
            "{rows} rows of {} to {} columns do not fit '{}' ({} bytes) and '{}' ({} bytes)",
            w.k,
            w.n,
            x.view.buffer().name(),
            x.view.len(),
            y.view.buffer().name(),
            y.view.len()
        )
    } else {
        return Ok(());
    };
    Err(Error::Arguments {
        op: "matrix product",
        why,
    })
}
