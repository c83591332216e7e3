//! The operations that every device has, on a GPU's one stream.

use std::sync::Arc;

use cudarc::driver::{result, sys};
use parplan_kernels::launch::{FILL_VALUES, PLACE_ROWS, READ, SCALE_BF16, TAKE_ROWS};

use super::{Argument, DeviceMemory, Gpu, Grid, cuda};
use crate::attention::{Batch, Cache, Capacity, KvType, Queries, Shape, Shard, Workspace};
use crate::device::{rows, same_len, whole_words};
use crate::{Buffer, Device, MemoryMeter, Result, View};

/// Threads of a block of the row kernels.
const ROW_THREADS: u32 = 256;

/// Blocks for that many elements: a few for each multiprocessor at most.
fn grid(elements: u64) -> u32 {
    elements.div_ceil(u64::from(ROW_THREADS)).clamp(1, 528) as u32
}

impl Gpu {
    /// Enqueues a plain streaming read of the view, whole 16-byte words: how fast memory
    /// can be read at all. Its result is of no use; `sink` is 16 bytes.
    ///
    /// # Errors
    /// [`Error::Arguments`] for a sink of another length, [`Error::Cuda`].
    pub fn read_through(&self, view: &View, sink: &View) -> Result<()> {
        same_len("read", sink.len(), 16)?;
        let arguments = [
            Argument::Address(view.address()?),
            Argument::U64((view.len() / 16) as u64),
            Argument::Address(sink.address()?),
        ];
        let blocks = self.multiprocessors()? as u32 * 8;
        self.bind()?;
        // SAFETY: both views are live memory of those lengths.
        unsafe {
            self.kernels()?
                .launch(self, READ, Grid::linear(blocks, 512), &arguments)
        }
    }

    /// Launches one of the two row kernels; `bytes` of its first view are covered.
    fn row_kernel(
        &self,
        name: &'static str,
        views: [&View; 2],
        place: &View,
        bytes: usize,
        row: usize,
    ) -> Result<()> {
        let arguments = [
            Argument::Address(views[0].address()?),
            Argument::Address(views[1].address()?),
            Argument::Address(place.address()?),
            Argument::U64((bytes / row) as u64),
            Argument::U64((row / 16) as u64),
        ];
        // SAFETY: the views are live whole rows. The place is in device memory, written
        // by `StepShape`, which keeps offset and count within both views.
        unsafe {
            self.kernels()?.launch(
                self,
                name,
                Grid::linear(grid((bytes / 16) as u64), ROW_THREADS),
                &arguments,
            )
        }
    }
}

impl Device for Arc<Gpu> {
    fn alloc(&self, name: &str, bytes: usize) -> Result<Buffer> {
        self.bind()?;
        // The driver refuses 0 bytes, and an empty buffer still needs an address. Whole
        // words of 16 bytes: NCCL reads the last of them even where data ends inside it.
        let padded = bytes.max(1).next_multiple_of(16);
        // SAFETY: a plain allocation, owned by the DeviceMemory made of it.
        match unsafe { result::malloc_sync(padded) } {
            Ok(address) => {
                let memory = DeviceMemory::driver(
                    address,
                    Arc::clone(self.context()),
                    self.health().clone(),
                );
                Ok(Buffer::device(
                    name,
                    memory,
                    bytes,
                    self.meter.take(bytes as u64),
                ))
            }
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Err(self.out_of_memory(name, bytes))
            }
            Err(e) => cuda(|| format!("allocating {bytes} bytes for '{name}'"), Err(e)),
        }
    }

    fn write(&self, dst: &View, bytes: &[u8]) -> Result<()> {
        same_len("write", dst.len(), bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: `dst` is live device memory of that length; from pageable memory the
        // call returns after the bytes were taken.
        let r =
            unsafe { result::memcpy_htod_async(dst.address()?, bytes, self.stream().cu_stream()) };
        cuda(
            || format!("copying {} bytes to '{}'", bytes.len(), dst.buffer().name()),
            r,
        )
    }

    fn read(&self, src: &View) -> Result<Vec<u8>> {
        let mut bytes = vec![0; src.len()];
        // First with a deadline, then the copy, which cannot hang any more.
        self.wait(None)?;
        if !bytes.is_empty() {
            // SAFETY: `src` is live device memory of that length and its work is done.
            let r = unsafe { result::memcpy_dtoh_sync(&mut bytes, src.address()?) };
            cuda(
                || format!("copying {} bytes from '{}'", src.len(), src.buffer().name()),
                r,
            )?;
        }
        Ok(bytes)
    }

    fn fill(&self, dst: &View, byte: u8) -> Result<()> {
        if dst.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: `dst` is live device memory of that length.
        let r = unsafe {
            result::memset_d8_async(dst.address()?, byte, dst.len(), self.stream().cu_stream())
        };
        cuda(
            || format!("filling {} bytes of '{}'", dst.len(), dst.buffer().name()),
            r,
        )
    }

    fn fill_values(&self, dst: &View, kv: KvType, seed: u64) -> Result<()> {
        whole_words(dst)?;
        let words = (dst.len() / 8) as u64;
        let arguments = [
            Argument::Address(dst.address()?),
            Argument::U64(words),
            Argument::U64(u64::from(kv == KvType::Fp8)),
            Argument::U64(seed),
        ];
        self.bind()?;
        // SAFETY: the view is live memory of that many words.
        unsafe {
            self.kernels()?.launch(
                self,
                FILL_VALUES,
                Grid::linear(grid(words), ROW_THREADS),
                &arguments,
            )
        }
    }

    fn copy(&self, dst: &View, src: &View) -> Result<()> {
        same_len("copy", dst.len(), src.len())?;
        if dst.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: both are live device memory of that length.
        let r = unsafe {
            result::memcpy_dtod_async(
                dst.address()?,
                src.address()?,
                dst.len(),
                self.stream().cu_stream(),
            )
        };
        cuda(
            || format!("copying {} bytes to '{}'", dst.len(), dst.buffer().name()),
            r,
        )
    }

    fn synchronize(&self) -> Result<()> {
        self.wait(None)
    }

    fn place_rows(&self, global: &View, local: &View, place: &View, row: usize) -> Result<()> {
        rows("place rows", [global, local], place, row)?;
        self.row_kernel(PLACE_ROWS, [global, local], place, global.len(), row)
    }

    fn take_rows(&self, local: &View, global: &View, place: &View, row: usize) -> Result<()> {
        rows("take rows", [global, local], place, row)?;
        self.row_kernel(TAKE_ROWS, [local, global], place, local.len(), row)
    }

    fn scale_bf16(&self, out: &View, input: &View, factor: f32) -> Result<()> {
        same_len("scale", out.len(), input.len())?;
        let count = (out.len() / 2) as u64;
        let arguments = [
            Argument::Address(out.address()?),
            Argument::Address(input.address()?),
            Argument::F32(factor),
            Argument::U64(count),
        ];
        // SAFETY: both views hold `count` bf16 values and are live.
        unsafe {
            self.kernels()?.launch(
                self,
                SCALE_BF16,
                Grid::linear(grid(count), ROW_THREADS),
                &arguments,
            )
        }
    }

    fn attention_workspace(&self, shape: &Shape, capacity: Capacity) -> Result<Workspace> {
        crate::attention::workspace_on_gpu(self, shape, capacity)
    }

    fn plan_attention(
        &self,
        shape: &Shape,
        shard: &Shard,
        batch: &Batch,
        workspace: &Workspace,
    ) -> Result<()> {
        crate::attention::plan_on_gpu(self, shape, shard, batch, workspace)
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
        crate::attention::on_gpu(self, shape, shard, batch, cache, workspace, queries)
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
        crate::attention::correct_on_gpu(self, parts, lses, rank, ranks, dim, lse)
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
        crate::attention::merge_on_gpu(self, parts, lses, ranks, dim, out, lse)
    }

    fn meter(&self) -> &Arc<MemoryMeter> {
        &self.meter
    }
}
