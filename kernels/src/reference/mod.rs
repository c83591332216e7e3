//! Plain Rust references: what each kernel must compute, written for clarity and
//! checked against first principles by property tests.

mod attention;
mod layer;
mod merge;
mod ranks;
mod rows;
mod synthetic;
mod values;

pub use attention::{
    Attended, AttentionError, AttentionInputs, attention, e4m3_to_f64, f32_to_e4m3,
};
pub use layer::{
    GqaRow, Sorted, add_rms_norm, rope_gqa, rope_head, rope_latent, route, silu_mul, sort_pairs,
    sum_experts,
};
pub use merge::{LogBase, MergeError, Merged, Real, Shard, merge_by_lse};
pub use ranks::{correct_rank, merge_ranks};
pub use rows::{place_rows, scale_bf16, take_rows};
pub use synthetic::{E4M3_MAX, Synthetic, uniform};
pub use values::{fill_word, split_mix};
