//! What will happen: pure prediction. No files, clocks, devices or environment in here.

pub mod calibrate;
pub mod compare;
pub mod cost;
pub mod deployment;
pub mod engine_comm;
pub mod estimate;
pub mod formats;
pub mod gather;
pub mod graphs;
pub mod kv;
pub mod kv_split;
pub mod launch;
pub mod layout;
pub mod legality;
pub mod memory;
pub mod padding;
mod parallel;
pub mod plan;
pub mod question;
pub mod reserve;
pub mod search;
pub mod serve;
pub mod setup;
pub mod shard;
#[cfg(test)]
mod simulate;
pub mod step;
pub mod sweep;
pub mod sync;
pub mod volume;

pub use layout::Layout;
