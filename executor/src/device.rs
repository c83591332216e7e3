//! Where a rank's memory lives, and the local work on it.

use std::sync::Arc;

use half::bf16;
use parplan_kernels::reference;

use crate::attention::{Batch, Cache, Capacity, KvType, Queries, Shape, Shard, Workspace};
use crate::{Buffer, MemoryMeter, Result, View};

/// Memory and local work of one rank. On a GPU, work is enqueued on the rank's stream
/// in call order; `read` waits for it.
pub trait Device: Send {
    /// Allocates `bytes` bytes whose content is undefined.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`] naming the buffer, the bytes asked for and free.
    fn alloc(&self, name: &str, bytes: usize) -> Result<Buffer>;

    /// Copies host bytes to the view; both must be equally long.
    ///
    /// # Errors
    /// [`crate::Error::Arguments`] when lengths differ; a device error.
    fn write(&self, dst: &View, bytes: &[u8]) -> Result<()>;

    /// The bytes of the view, after all work enqueued before.
    ///
    /// # Errors
    /// A device error or an overrun deadline.
    fn read(&self, src: &View) -> Result<Vec<u8>>;

    /// Sets every byte of the view.
    ///
    /// # Errors
    /// A device error.
    fn fill(&self, dst: &View, byte: u8) -> Result<()>;

    /// Fills the view with values of either sign between 0.25 and 2 that follow from the
    /// seed and their place, as `parplan_kernels::reference::fill_word` says. Whole
    /// 8-byte words.
    ///
    /// # Errors
    /// [`crate::Error::Arguments`] for another length; a device error.
    fn fill_values(&self, dst: &View, kv: KvType, seed: u64) -> Result<()>;

    /// Copies between two equally long views that do not overlap.
    ///
    /// # Errors
    /// [`crate::Error::Arguments`] when lengths differ; a device error.
    fn copy(&self, dst: &View, src: &View) -> Result<()>;

    /// Waits for all work enqueued so far.
    ///
    /// # Errors
    /// A device error or an overrun deadline.
    fn synchronize(&self) -> Result<()>;

    /// Rows `[place[0], place[0] + place[1])` of `global` become the first rows of
    /// `local`, all its other rows zero. `place` is two u64 in this device's memory, so
    /// that a captured graph can be replayed with other offsets. `row` bytes a row, a
    /// multiple of 16.
    ///
    /// # Errors
    /// [`crate::Error::Arguments`] when the views are not whole rows; a device error.
    fn place_rows(&self, global: &View, local: &View, place: &View, row: usize) -> Result<()>;

    /// The first `place[1]` rows of `local` become the rows of `global` from `place[0]`
    /// on; the other rows of `local` stay.
    ///
    /// # Errors
    /// As [`place_rows`](Device::place_rows).
    fn take_rows(&self, local: &View, global: &View, place: &View, row: usize) -> Result<()>;

    /// Each bf16 of `out` becomes that of `input` times `factor`. They may be the same.
    ///
    /// # Errors
    /// As [`copy`](Device::copy).
    fn scale_bf16(&self, out: &View, input: &View, factor: f32) -> Result<()>;

    /// Memory and the kernel for attentions of a shape, for batches up to a capacity.
    /// Made once; it cannot be made while a graph is captured.
    ///
    /// # Errors
    /// [`crate::Error::Arguments`] for a shape that no kernel runs;
    /// [`crate::Error::OutOfMemory`].
    fn attention_workspace(&self, shape: &Shape, capacity: Capacity) -> Result<Workspace>;

    /// Cuts the attention of a step into pieces. Once a step, after lengths, offsets and
    /// page table were written; serves all layers of the shape. Can be captured.
    ///
    /// # Errors
    /// [`crate::Error::Arguments`] for sizes that do not fit; a device error.
    fn plan_attention(
        &self,
        shape: &Shape,
        shard: &Shard,
        batch: &Batch,
        workspace: &Workspace,
    ) -> Result<()>;

    /// Attention of every query token over the KV on this rank up to its own position,
    /// as [`plan_attention`](Device::plan_attention) planned it for the same arguments.
    /// Where this rank holds nothing that a token sees, its output is 0 and its LSE
    /// negative infinity. Can be captured.
    ///
    /// # Errors
    /// As [`plan_attention`](Device::plan_attention).
    fn attention(
        &self,
        shape: &Shape,
        shard: &Shard,
        batch: &Batch,
        cache: &Cache,
        workspace: &Workspace,
        queries: &Queries,
    ) -> Result<()>;

    /// Weighs this rank's partial outputs for a sum over ranks: each row of `parts`
    /// `[ranks, rows, dim]` (bf16, in place) times its weight among `lses`
    /// `[ranks, ranks, rows]` (f32, natural logarithm, first index the rank it is from).
    /// `lse` `[rows]` gets the merged LSE of this rank's own part. `dim` is a multiple of 8.
    ///
    /// # Errors
    /// [`crate::Error::Arguments`] for misfit sizes; a device error.
    fn correct_rank(
        &self,
        parts: &View,
        lses: &View,
        rank: usize,
        ranks: usize,
        dim: usize,
        lse: &View,
    ) -> Result<()>;

    /// Merges the partial outputs of all ranks by their LSEs: `parts` `[ranks, rows, dim]`
    /// in bf16 and `lses` `[ranks, rows]` become `out` `[rows, dim]` and `lse` `[rows]`.
    ///
    /// # Errors
    /// As [`correct_rank`](Device::correct_rank).
    fn merge_ranks(
        &self,
        parts: &View,
        lses: &View,
        ranks: usize,
        dim: usize,
        out: &View,
        lse: &View,
    ) -> Result<()>;

    /// Bytes allocated through this device, now and at most.
    fn meter(&self) -> &Arc<MemoryMeter>;
}

/// The byte every output is set to before a run: as f16, bf16, f32 and f64 it is NaN,
/// as an integer it is −1, so an element that was not written cannot pass.
pub(crate) const POISON: u8 = 0xff;

pub(crate) fn same_len(op: &'static str, dst: usize, src: usize) -> Result<()> {
    if dst == src {
        return Ok(());
    }
    Err(crate::Error::Arguments {
        op,
        why: format!("the destination has {dst} bytes and the source {src}, they must be equal"),
    })
}

pub(crate) fn whole_words(dst: &View) -> Result<()> {
    if dst.len().is_multiple_of(8) {
        return Ok(());
    }
    Err(crate::Error::Arguments {
        op: "fill",
        why: format!(
            "'{}' has {} bytes, no whole 8-byte words",
            dst.buffer().name(),
            dst.len()
        ),
    })
}

/// The checks of the row operations.
pub(crate) fn rows(op: &'static str, views: [&View; 2], place: &View, row: usize) -> Result<()> {
    let why = if row == 0 || !row.is_multiple_of(16) {
        format!("rows of {row} bytes, they must be a multiple of 16")
    } else if let Some(v) = views.iter().find(|v| !v.len().is_multiple_of(row)) {
        format!(
            "'{}' has {} bytes, no multiple of the {row} bytes of a row",
            v.buffer().name(),
            v.len()
        )
    } else if place.len() != 16 {
        format!("the place has {} bytes, two u64 are needed", place.len())
    } else {
        return Ok(());
    };
    Err(crate::Error::Arguments { op, why })
}

/// The host as a device: the reference that every other one is held to.
#[derive(Debug, Default)]
pub struct CpuDevice {
    meter: Arc<MemoryMeter>,
}

impl CpuDevice {
    /// A device with nothing allocated.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Device for CpuDevice {
    fn alloc(&self, name: &str, bytes: usize) -> Result<Buffer> {
        let mut memory = Vec::new();
        memory
            .try_reserve_exact(bytes)
            .map_err(|_| crate::Error::OutOfMemory {
                place: "host".to_owned(),
                buffer: name.to_owned(),
                asked: bytes as u64,
                free: crate::probes::available_memory().unwrap_or(0),
                total: crate::probes::total_memory(),
            })?;
        // Poisoned rather than zeroed: code that relies on fresh memory being zero
        // must fail here, as it would on a GPU.
        memory.resize(bytes, POISON);
        Ok(Buffer::host(name, memory, self.meter.take(bytes as u64)))
    }

    fn write(&self, dst: &View, bytes: &[u8]) -> Result<()> {
        same_len("write", dst.len(), bytes.len())?;
        dst.with_host(|d| d.copy_from_slice(bytes))
    }

    fn read(&self, src: &View) -> Result<Vec<u8>> {
        src.with_host(|s| s.to_vec())
    }

    fn fill(&self, dst: &View, byte: u8) -> Result<()> {
        dst.with_host(|d| d.fill(byte))
    }

    fn fill_values(&self, dst: &View, kv: KvType, seed: u64) -> Result<()> {
        whole_words(dst)?;
        dst.with_host(|d| {
            for (i, word) in d.chunks_exact_mut(8).enumerate() {
                word.copy_from_slice(&reference::fill_word(seed, i as u64, kv));
            }
        })
    }

    fn copy(&self, dst: &View, src: &View) -> Result<()> {
        same_len("copy", dst.len(), src.len())?;
        // Through a copy: both views may lie in one buffer, behind one lock.
        let bytes = src.with_host(|s| s.to_vec())?;
        dst.with_host(|d| d.copy_from_slice(&bytes))
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn place_rows(&self, global: &View, local: &View, place: &View, row: usize) -> Result<()> {
        rows("place rows", [global, local], place, row)?;
        let (offset, count) = read_place(place)?;
        let placed =
            reference::place_rows(&self.read(local)?, offset, count, global.len() / row, row);
        let placed =
            placed.ok_or_else(|| outside("place rows", offset, count, global, local, row))?;
        self.write(global, &placed)
    }

    fn take_rows(&self, local: &View, global: &View, place: &View, row: usize) -> Result<()> {
        rows("take rows", [global, local], place, row)?;
        let (offset, count) = read_place(place)?;
        let taken =
            reference::take_rows(&self.read(local)?, &self.read(global)?, offset, count, row);
        let taken = taken.ok_or_else(|| outside("take rows", offset, count, global, local, row))?;
        self.write(local, &taken)
    }

    fn scale_bf16(&self, out: &View, input: &View, factor: f32) -> Result<()> {
        same_len("scale", out.len(), input.len())?;
        let bytes = self.read(input)?;
        let values: Vec<bf16> = bytes
            .chunks_exact(2)
            .map(bytemuck::pod_read_unaligned)
            .collect();
        self.write(
            out,
            bytemuck::cast_slice(&reference::scale_bf16(&values, factor)),
        )
    }

    fn attention_workspace(&self, shape: &Shape, capacity: Capacity) -> Result<Workspace> {
        crate::attention::workspace_on_cpu(shape, capacity)
    }

    fn plan_attention(
        &self,
        shape: &Shape,
        shard: &Shard,
        batch: &Batch,
        workspace: &Workspace,
    ) -> Result<()> {
        crate::attention::check_batch(shape, shard, batch, workspace)
    }

    fn attention(
        &self,
        shape: &Shape,
        shard: &Shard,
        batch: &Batch,
        cache: &Cache,
        workspace: &Workspace,
        queries: &Queries,
    ) -> Result<()> {
        crate::attention::on_cpu(self, shape, shard, batch, cache, workspace, queries)
    }

    fn correct_rank(
        &self,
        parts: &View,
        lses: &View,
        rank: usize,
        ranks: usize,
        dim: usize,
        lse: &View,
    ) -> Result<()> {
        crate::attention::correct_on_cpu(self, parts, lses, rank, ranks, dim, lse)
    }

    fn merge_ranks(
        &self,
        parts: &View,
        lses: &View,
        ranks: usize,
        dim: usize,
        out: &View,
        lse: &View,
    ) -> Result<()> {
        crate::attention::merge_on_cpu(self, parts, lses, ranks, dim, out, lse)
    }

    fn meter(&self) -> &Arc<MemoryMeter> {
        &self.meter
    }
}

fn read_place(place: &View) -> Result<(usize, usize)> {
    place.with_host(|p| {
        let word = |i: usize| bytemuck::pod_read_unaligned::<u64>(&p[i * 8..(i + 1) * 8]) as usize;
        (word(0), word(1))
    })
}

fn outside(
    op: &'static str,
    offset: usize,
    count: usize,
    global: &View,
    local: &View,
    row: usize,
) -> crate::Error {
    crate::Error::Arguments {
        op,
        why: format!(
            "rows {offset}..{} do not fit {} rows of '{}' and {} of '{}'",
            offset + count,
            global.len() / row,
            global.buffer().name(),
            local.len() / row,
            local.buffer().name()
        ),
    }
}
