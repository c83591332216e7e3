//! Measuring: repeated timings, their statistics, and bandwidth as nccl-tests counts it.

mod bandwidth;
mod timing;

pub use bandwidth::{Collective, bus_factor};
pub(crate) use timing::start_together;
pub use timing::{Launch, Stats, Timer};
