//! Plain Rust references: what each kernel must compute, written for clarity and
//! checked against first principles by property tests.

mod merge;

pub use merge::{LogBase, MergeError, Merged, Real, Shard, merge_by_lse};
