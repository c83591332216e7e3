//! Memory and the operations that every device has: those of the GPU itself.

use std::sync::Arc;

use super::CudaCompute;
use crate::attention::{Batch, Cache, Capacity, KvType, Queries, Shape, Shard, Workspace};
use crate::{Buffer, Device, MemoryMeter, Result, View};

impl Device for CudaCompute {
    fn alloc(&self, name: &str, bytes: usize) -> Result<Buffer> {
        self.gpu.alloc(name, bytes)
    }

    fn write(&self, dst: &View, bytes: &[u8]) -> Result<()> {
        self.gpu.write(dst, bytes)
    }

    fn read(&self, src: &View) -> Result<Vec<u8>> {
        self.gpu.read(src)
    }

    fn fill(&self, dst: &View, byte: u8) -> Result<()> {
        self.gpu.fill(dst, byte)
    }

    fn fill_values(&self, dst: &View, kv: KvType, seed: u64) -> Result<()> {
        self.gpu.fill_values(dst, kv, seed)
    }

    fn copy(&self, dst: &View, src: &View) -> Result<()> {
        self.gpu.copy(dst, src)
    }

    fn synchronize(&self) -> Result<()> {
        self.gpu.synchronize()
    }

    fn place_rows(&self, global: &View, local: &View, place: &View, row: usize) -> Result<()> {
        self.gpu.place_rows(global, local, place, row)
    }

    fn take_rows(&self, local: &View, global: &View, place: &View, row: usize) -> Result<()> {
        self.gpu.take_rows(local, global, place, row)
    }

    fn scale_bf16(&self, out: &View, input: &View, factor: f32) -> Result<()> {
        self.gpu.scale_bf16(out, input, factor)
    }

    fn attention_workspace(&self, shape: &Shape, capacity: Capacity) -> Result<Workspace> {
        self.gpu.attention_workspace(shape, capacity)
    }

    fn plan_attention(
        &self,
        shape: &Shape,
        shard: &Shard,
        batch: &Batch,
        workspace: &Workspace,
    ) -> Result<()> {
        self.gpu.plan_attention(shape, shard, batch, workspace)
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
        self.gpu
            .attention(shape, shard, batch, cache, workspace, queries)
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
        self.gpu.correct_rank(parts, lses, rank, ranks, dim, lse)
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
        self.gpu.merge_ranks(parts, lses, ranks, dim, out, lse)
    }

    fn meter(&self) -> &Arc<MemoryMeter> {
        self.gpu.meter()
    }
}
