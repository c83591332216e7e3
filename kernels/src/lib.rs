//! CUDA kernel sources, the PTX built from them, and a plain Rust reference of each.
//!
//! This room never allocates device memory, never owns a communicator and never
//! measures time: it says what a kernel is and what it must compute.

pub mod attention;
pub mod launch;
pub mod layer;
pub mod peer;
pub mod reference;
pub mod stamp;
