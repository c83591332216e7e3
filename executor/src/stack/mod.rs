//! A decoder layer and a stack of them, model-shaped, with synthetic weights.
//!
//! [`StackSpec`] says what runs, fully resolved; [`Stack`] is one rank's share of it and
//! is written once against [`Compute`] (the operations of a layer, on the CPU or a GPU)
//! and the communicators of [`Groups`]. [`reference`] computes the same stack in float64
//! on one rank, from the same specification and by other code.

mod absent;
mod attend;
mod batch;
mod block;
mod check;
mod compute;
mod cpu;
mod cuda;
mod ffn;
mod groups;
mod matrices;
mod memory;
mod mixer;
mod op;
mod place;
pub mod reference;
mod run;
mod runner;
mod size;
mod spec;
mod stamps;
mod tensors;
mod timing;
mod weights;

pub use attend::{Attention, attention_op};
pub use batch::{Batch, Cache, Paging};
pub use check::{Distance, uses_fp8};
pub use compute::{CacheWrite, Compute, GroupedRows, Routing, Rows, Weight, tile_bytes};
pub use cuda::CudaCompute;
pub use groups::{Groups, Over, Path};
pub use memory::Work;
pub use op::Op;
pub use place::{BlockShape, MixerShape, Place};
pub use run::{Marks, Stack, Step, StepRows};
pub use runner::{Prepared, Runner};
pub use spec::{
    BlockSpec, DcpMerge, ExpertPath, Format, LayerSpec, MixerSpec, Narrowed, Phase, StackLayout,
    StackSpec, StepSpec,
};
pub use stamps::graph_mark_us;
pub use timing::{Breakdown, MarkCount, Quantiles, Timeline};
pub use weights::Layer;
