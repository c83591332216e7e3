//! Plain Rust references: what each kernel must compute, written for clarity and
//! checked against first principles by property tests.

mod merge;
mod rows;

pub use merge::{LogBase, MergeError, Merged, Real, Shard, merge_by_lse};
pub use rows::{place_rows, scale_bf16, take_rows};
