//! What things are: validated descriptions of models, GPUs, engines and workloads.

pub mod dtype;
pub mod engine;
pub mod gpu;
pub mod model;
pub mod overheads;

pub use dtype::{Dtype, TensorRate};
pub use gpu::{GpuProfile, Link, LinkKind, TensorRates, Vendor};
pub use model::{
    Attention, DenseFfn, Ffn, GatedDelta, Gqa, Indexer, LayerGroup, Mamba2, Mla, ModelProfile,
    MoeFfn, Published, WeightFormats,
};
pub use overheads::Overheads;
