//! Plain Rust references: what each kernel must compute, written for clarity and
//! checked against first principles by property tests.

mod attention;
mod merge;
mod rows;

pub use attention::{
    Attended, AttentionError, AttentionInputs, attention, e4m3_to_f64, f32_to_e4m3,
};
pub use merge::{LogBase, MergeError, Merged, Real, Shard, merge_by_lse};
pub use rows::{place_rows, scale_bf16, take_rows};
