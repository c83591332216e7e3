//! Measuring: repeated timings, their statistics, and bandwidth as nccl-tests counts it.

mod bandwidth;
mod timing;

pub use bandwidth::{Collective, bus_factor};
pub use timing::{Launch, Stats, Timer};
pub(crate) use timing::{Launches, mean_over_ranks, start_together};
