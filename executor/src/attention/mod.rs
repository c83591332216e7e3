//! Attention over a paged KV cache, on one rank and over the ranks that share the KV.
//!
//! A step first plans how its work is cut ([`Device::plan_attention`](crate::Device)),
//! once for all layers of one shape, and then attends layer by layer. Lengths, offsets
//! and the page table are in device memory, so a captured graph serves every batch of
//! its bucket.

mod cpu;
mod dcp;
mod exchange;
mod gpu;
mod share;
mod types;

pub(crate) use cpu::{
    attention as on_cpu, correct_rank as correct_on_cpu, merge_ranks as merge_on_cpu,
    workspace as workspace_on_cpu,
};
pub use dcp::DcpAttention;
pub use exchange::{MERGE_PACKET_BYTES, PeerExchange, Peers};
pub(crate) use gpu::{
    attention as on_gpu, correct_rank as correct_on_gpu, merge_ranks as merge_on_gpu,
    plan as plan_on_gpu, workspace as workspace_on_gpu,
};
pub use parplan_kernels::attention::{Kind, KvType, LATENT, ROPE, Shape, Shard};
pub use share::{Gather, Group, Merge, Partial, message_bytes};
pub(crate) use types::check_batch;
pub use types::{Batch, Cache, Capacity, Parts, Queries, Workspace};
