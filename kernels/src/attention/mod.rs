//! Attention over a paged KV cache: what is computed, in which layout, by which kernel.
//!
//! `cuda/attention.cuh` describes how the work is cut; [`crate::reference::attention`]
//! is the same computation in plain f64.

mod gather;
mod launch;
mod merge;
mod shape;

pub use gather::{
    ALL_GATHER_LINES, LINE_BLOCKS, LINE_WORD, LineArgs, LineGrid, line_grid, line_staging_bytes,
    lines,
};
pub use launch::{AttentionArgs, Combine, Kernel, PLAN, PLAN_THREADS, plan_bytes};
pub use merge::{
    BULK_BLOCKS, BulkArgs, CORRECT, EXCHANGE_THREADS, MERGE, MERGE_BULK, MERGE_KERNELS,
    MERGE_PACKETS, MERGE_THREADS, MergeArgs, PACKET_BLOCKS, PACKET_SLOTS, SMALL_EXCHANGE_THREADS,
    bulk_bytes, packet_blocks, packet_threads,
};
pub use shape::{Kind, KvType, LATENT, ROPE, Shape, ShapeError, Shard};
