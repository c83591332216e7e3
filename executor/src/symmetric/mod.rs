//! Symmetric memory: buffers that every rank allocates alike and registers with the
//! communicator, so that kernels of one rank can reach those of the others.

mod choice;
mod pool;

pub use choice::{Sides, sides_needed};
pub use pool::{Registrar, Registration, WindowPool};
