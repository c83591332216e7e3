//! Launches of the attention kernels.

use std::sync::Arc;

use parplan_kernels::attention::{
    AttentionArgs, CORRECT, Combine, Kernel, MERGE, MERGE_THREADS, MergeArgs, PLAN, PLAN_THREADS,
    Shape, Shard, plan_bytes,
};
use parplan_kernels::peer::MAX_RANKS;

use super::types::{Launch, check_batch, check_call, check_correct, check_merge};
use super::{Batch, Cache, Capacity, Queries, Workspace};
use crate::cuda::{Argument, Gpu, Grid};
use crate::{Device, Error, Result, View};

/// Chooses the kernel, loads it, and allocates what it needs.
pub(crate) fn workspace(gpu: &Arc<Gpu>, shape: &Shape, capacity: Capacity) -> Result<Workspace> {
    let unusable = |why: String| Error::Arguments {
        op: "attention",
        why,
    };
    shape.check().map_err(|e| unusable(e.to_string()))?;
    let capability = gpu.compute_capability()?;
    let kernel = Kernel::choose(shape, capacity.max_query, capability)
        .ok_or_else(|| unusable(format!("no kernel for {shape:?}")))?;
    let kernels = gpu.kernels()?;
    kernels.prepare(gpu, PLAN, 0)?;
    kernels.prepare(gpu, kernel.name, kernel.shared)?;
    kernels.prepare(gpu, kernel.combine, 0)?;
    kernels.prepare(gpu, CORRECT, 0)?;
    kernels.prepare(gpu, MERGE, 0)?;
    let chunks = (gpu.multiprocessors()? * kernel.resident as usize
        / kernel.blocks_per_chunk as usize)
        .max(1);
    let max_tiles = kernel.max_tiles(shape, capacity.requests, capacity.tokens);
    // Each chunk begins at most one item that it does not end, and ends at most one
    // that it did not begin.
    let rows = 2 * chunks * kernel.rows as usize;
    Ok(Workspace {
        shape: *shape,
        capacity,
        launch: Some(Launch {
            kernel,
            chunks,
            max_tiles,
            plan: gpu.alloc(
                "attention plan",
                plan_bytes(capacity.requests, max_tiles, chunks),
            )?,
            partial_out: gpu.alloc("attention pieces", rows * shape.value_dim() * 4)?,
            partial_lse: gpu.alloc("LSE of attention pieces", rows * 4)?,
        }),
    })
}

fn launch_of(workspace: &Workspace) -> Result<&Launch> {
    workspace.launch.as_ref().ok_or_else(|| Error::Arguments {
        op: "attention",
        why: "the workspace was made for the CPU".into(),
    })
}

/// All arguments that a plan needs; the rest is zero.
fn arguments(
    shape: &Shape,
    shard: &Shard,
    batch: &Batch,
    launch: &Launch,
) -> Result<AttentionArgs> {
    Ok(AttentionArgs {
        page_table: batch.page_table.address()?,
        kv_lens: batch.kv_lens.address()?,
        query_offsets: batch.query_offsets.address()?,
        plan: launch.plan.all().address()?,
        partial_out: launch.partial_out.all().address()?,
        partial_lse: launch.partial_lse.all().address()?,
        requests: batch.requests as u32,
        tokens: batch.tokens as u32,
        max_pages: batch.max_pages as u32,
        chunks: launch.chunks as u32,
        max_tiles: launch.max_tiles as u32,
        ..AttentionArgs::of(shape, shard, &launch.kernel)
    })
}

/// Enqueues the plan of a step.
pub(crate) fn plan(
    gpu: &Arc<Gpu>,
    shape: &Shape,
    shard: &Shard,
    batch: &Batch,
    workspace: &Workspace,
) -> Result<()> {
    check_batch(shape, shard, batch, workspace)?;
    let launch = launch_of(workspace)?;
    let arguments = [Argument::Attention(arguments(shape, shard, batch, launch)?)];
    gpu.bind()?;
    // SAFETY: the views have the sizes that the counts say, which was checked; the plan
    // has room for the workspace's capacity, which the batch does not exceed. Lengths
    // and offsets in device memory are the caller's promise, see `Batch`.
    unsafe {
        gpu.kernels()?
            .launch(gpu, PLAN, Grid::linear(1, PLAN_THREADS), &arguments)
    }
}

/// Enqueues an attention and the merge of its pieces.
pub(crate) fn attention(
    gpu: &Arc<Gpu>,
    shape: &Shape,
    shard: &Shard,
    batch: &Batch,
    cache: &Cache,
    workspace: &Workspace,
    queries: &Queries,
) -> Result<()> {
    check_call(shape, shard, batch, cache, workspace, queries)?;
    let launch = launch_of(workspace)?;
    let arguments = AttentionArgs {
        q: queries.q.address()?,
        k: cache.k.address()?,
        v: cache.v.address()?,
        out: queries.out.address()?,
        lse: match &queries.lse {
            Some(lse) => lse.address()?,
            None => 0,
        },
        q_part_heads: (shape.heads() / queries.parts.q) as u32,
        out_part_heads: (shape.heads() / queries.parts.out) as u32,
        ..arguments(shape, shard, batch, launch)?
    };
    let group = shape.heads() / shape.kv_heads();
    let rows = (group * batch.max_query)
        .min(launch.kernel.rows as usize)
        .max(1);
    let arguments = [Argument::Attention(arguments)];
    let kernel = &launch.kernel;
    let attend = Grid {
        shared: kernel.shared,
        ..Grid::linear(
            launch.chunks as u32 * kernel.blocks_per_chunk,
            kernel.threads,
        )
    };
    let tiles = kernel.max_tiles(shape, batch.requests, batch.tokens);
    let merge = Combine::of(tiles * shape.kv_heads(), launch.chunks, rows);
    let combine = Grid {
        y: rows as u32,
        ..Grid::linear(merge.columns, merge.threads).early()
    };
    gpu.bind()?;
    let kernels = gpu.kernels()?;
    // SAFETY: as for the plan. Pages in the table lie in the cache: the caller's promise. The
    // merge waits for the attention before it reads what that wrote.
    unsafe {
        kernels.launch(gpu, kernel.name, attend, &arguments)?;
        kernels.launch(gpu, kernel.combine, combine, &arguments)
    }
}

/// Blocks of the merges that no other rank waits for.
fn merge_grid(elements: usize) -> Grid {
    let blocks = (elements / 4)
        .div_ceil(MERGE_THREADS as usize)
        .clamp(1, 2048);
    Grid::linear(blocks as u32, MERGE_THREADS)
}

/// Enqueues the correction of one rank's partial outputs.
pub(crate) fn correct_rank(
    gpu: &Arc<Gpu>,
    parts: &View,
    lses: &View,
    rank: usize,
    size: usize,
    dim: usize,
    lse: &View,
) -> Result<()> {
    check_correct(parts, lses, rank, size, dim, lse)?;
    let arguments = MergeArgs {
        lse_out: lse.address()?,
        parts: parts.address()?,
        lses: lses.address()?,
        rows: (lse.len() / 4) as u32,
        dim: dim as u32,
        rank: rank as u32,
        size: size as u32,
        ..MergeArgs::default()
    };
    launch_merge(gpu, CORRECT, merge_grid(parts.len() / 2), size, arguments)
}

/// Enqueues the merge of what all ranks sent.
pub(crate) fn merge_ranks(
    gpu: &Arc<Gpu>,
    parts: &View,
    lses: &View,
    size: usize,
    dim: usize,
    out: &View,
    lse: &View,
) -> Result<()> {
    check_merge(parts, lses, out, lse, dim, size)?;
    let arguments = MergeArgs {
        out: out.address()?,
        lse_out: lse.address()?,
        parts: parts.address()?,
        lses: lses.address()?,
        rows: (lse.len() / 4) as u32,
        dim: dim as u32,
        rank: 0,
        size: size as u32,
    };
    launch_merge(gpu, MERGE, merge_grid(out.len() / 2), size, arguments)
}

fn launch_merge(
    gpu: &Arc<Gpu>,
    name: &'static str,
    grid: Grid,
    size: usize,
    arguments: MergeArgs,
) -> Result<()> {
    if size > MAX_RANKS {
        return Err(Error::Arguments {
            op: "attention",
            why: format!("{size} ranks to merge, at most {MAX_RANKS} are right"),
        });
    }
    gpu.bind()?;
    // SAFETY: the views' sizes were checked against rows, dim and size.
    unsafe {
        gpu.kernels()?
            .launch(gpu, name, grid, &[Argument::Merge(arguments)])
    }
}
