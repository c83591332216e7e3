//! What does happen: ranks as processes, communicators, collectives, timing.
//!
//! Everything that a rank does is written once against two traits: a [`Device`]
//! (memory and local work) and a [`Communicator`] (collectives of a group). The CPU
//! and the CUDA backends are held to the same [`conformance`] suite.

pub mod attention;
pub mod bench;
mod buffer;
pub mod comm;
pub mod conformance;
pub mod cublaslt;
pub mod cuda;
mod deadline;
mod device;
mod dtype;
mod error;
pub mod gather;
pub mod jobs;
mod loading;
pub mod nccl;
pub mod peer;
pub mod probes;
pub mod ranks;
pub mod rendezvous;
pub mod stack;
pub mod symmetric;
pub mod sync;

pub use buffer::{Buffer, MemoryMeter, View};
pub use comm::Communicator;
pub use deadline::Deadline;
pub use device::{CpuDevice, Device};
pub use dtype::{DType, ReduceOp};
pub use error::{Error, Result};
