//! What things are: validated descriptions of models, GPUs, engines and workloads.

pub mod calibration;
pub mod dtype;
pub mod efficiency;
pub mod engine;
pub mod fault;
pub mod gpu;
pub mod hf;
pub mod library;
pub mod model;
pub mod observed;
pub mod overheads;
pub mod params;
mod validate;
pub mod workload;

pub use calibration::Calibration;
pub use dtype::{Dtype, TensorRate, UnknownDtype};
pub use efficiency::{EfficiencyError, EfficiencyProfile, GpuArchitecture};
pub use fault::{Fault, Faults};
pub use gpu::{GpuProfile, Link, LinkKind, TensorRates, Vendor};
pub use library::{Library, LibraryError, Listed, Sourced};
pub use model::{
    ActiveCounts, Attention, BlockSparse, Compressed, DenseFfn, Ffn, GatedDelta, Gqa, Indexer,
    KimiDelta, LayerGroup, Mamba2, Mla, ModelProfile, MoeFfn, Published, WeightFormats,
};
pub use overheads::{FrontEnd, Gaps, ModelCode, Overheads, OverheadsError, SyncCosts};
pub use params::{AttentionParams, FfnParams, LayerParams, ModelParams};
pub use workload::{Imbalance, Lengths, Load, Slo, Speculation, Trace, TraceRequest, Workload};
