//! Parameters of token mixers.

use crate::model::{Attention, Compressed, GatedDelta, Gqa, Indexer, KimiDelta, Mamba2, Mla};
use serde::Serialize;

/// Parameters of one token mixer, by what tensor parallelism can split.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct AttentionParams {
    /// Input projections that are split by head over the attention-TP ranks: Q (MLA: the
    /// expansions `q_b` and `kv_b`), output gates, the projections of linear attention.
    pub heads: u64,
    /// Projections that are split by KV head (Mamba-2: by B/C group), so that a rank holds at
    /// least one of `kv_splits` parts however many ranks there are.
    pub kv_heads: u64,
    /// Parts that `kv_heads` can be cut into; 0 when there is nothing to cut.
    pub kv_splits: u32,
    /// The output projection, split by head.
    pub output: u64,
    /// Projections that every rank holds whole: MLA's compressions `q_a` and `kv_a`.
    pub replicated: u64,
    /// The sparse-attention indexer; every rank holds it whole.
    pub indexer: u64,
    /// Norms, biases, sinks, convolutions and decays, kept in bf16 or fp32 by every checkpoint.
    /// Counted as held whole by every rank: under 0.2 % of a layer.
    pub small: u64,
}

impl AttentionParams {
    /// All parameters of the mixer.
    pub fn total(&self) -> u64 {
        self.heads + self.kv_heads + self.output + self.replicated + self.indexer + self.small
    }

    pub(super) fn of(mixer: &Attention, hidden: u64) -> Self {
        match mixer {
            Attention::Gqa(dims) => gqa(dims, hidden),
            Attention::Mla(dims) => mla(dims, hidden),
            Attention::GatedDelta(dims) => gated_delta(dims, hidden),
            Attention::Mamba2(dims) => mamba2(dims, hidden),
            Attention::Compressed(dims) => compressed(dims, hidden),
            Attention::KimiDelta(dims) => kimi_delta(dims, hidden),
        }
    }
}

fn gqa(dims: &Gqa, hidden: u64) -> AttentionParams {
    let q = u64::from(dims.q_heads) * u64::from(dims.head_dim);
    let k = u64::from(dims.kv_heads) * u64::from(dims.head_dim);
    let v = u64::from(dims.kv_heads) * u64::from(dims.v_head_dim);
    let out = u64::from(dims.q_heads) * u64::from(dims.v_head_dim);
    let gate = if dims.output_gate { out } else { 0 };
    let mut small = 0;
    if dims.bias {
        small += q + k + v + hidden;
    }
    if dims.qk_norm {
        small += 2 * u64::from(dims.head_dim);
    }
    if dims.sinks {
        small += u64::from(dims.q_heads);
    }
    // MiniMax-M3: index queries, one index key, and a norm on each.
    let indexer = dims.sparse.map_or(0, |index| {
        let width = u64::from(index.head_dim);
        hidden * (u64::from(index.heads) + 1) * width + 2 * width
    });
    AttentionParams {
        heads: hidden * (q + gate),
        kv_heads: hidden * (k + v),
        kv_splits: dims.kv_heads,
        output: out * hidden,
        replicated: 0,
        indexer,
        small,
    }
}

fn mla(dims: &Mla, hidden: u64) -> AttentionParams {
    let heads = u64::from(dims.q_heads);
    let q_width = heads * (u64::from(dims.qk_nope_head_dim) + u64::from(dims.qk_rope_head_dim));
    let q_rank = u64::from(dims.q_lora_rank);
    let kv_rank = u64::from(dims.kv_lora_rank);
    let rope = u64::from(dims.qk_rope_head_dim);
    let out = heads * u64::from(dims.v_head_dim);
    let kv_b = kv_rank * (heads * u64::from(dims.qk_nope_head_dim) + out);
    let (q_a, q_in) = if q_rank == 0 {
        (0, hidden)
    } else {
        (hidden * q_rank, q_rank)
    };
    let gate = if dims.output_gate { hidden * out } else { 0 };
    AttentionParams {
        heads: q_in * q_width + kv_b + gate,
        kv_heads: 0,
        kv_splits: 0,
        output: out * hidden,
        replicated: q_a + hidden * (kv_rank + rope),
        indexer: dims
            .indexer
            .map_or(0, |index| indexer(&index, hidden, q_in)),
        small: q_rank + kv_rank,
    }
}

/// The lightning indexer of DeepSeek-V3.2 (`inference/model.py`, class `Indexer`): queries from
/// the compressed query, one key from the stream, a weight a head, a layer norm with bias on keys.
fn indexer(dims: &Indexer, hidden: u64, q_in: u64) -> u64 {
    if !dims.owned {
        return 0;
    }
    let (heads, width) = (u64::from(dims.heads), u64::from(dims.head_dim));
    q_in * heads * width + hidden * width + hidden * heads + 2 * width
}

/// Qwen3-Next's `in_proj_qkvz` and `in_proj_ba`, a convolution over Q, K and V, a decay and a time
/// bias a value head, a norm on the output.
fn gated_delta(dims: &GatedDelta, hidden: u64) -> AttentionParams {
    let k = u64::from(dims.k_heads) * u64::from(dims.k_head_dim);
    let v = u64::from(dims.v_heads) * u64::from(dims.v_head_dim);
    let v_heads = u64::from(dims.v_heads);
    AttentionParams {
        heads: hidden * (2 * k + 2 * v + 2 * v_heads),
        output: v * hidden,
        small: (2 * k + v) * u64::from(dims.conv_kernel) + 2 * v_heads + u64::from(dims.v_head_dim),
        ..AttentionParams::default()
    }
}

/// Nemotron-H's Mamba-2: one input projection to gate, stream, B, C and time step; a convolution
/// with bias over stream, B and C; decay, skip and time bias a head; a norm on the output.
fn mamba2(dims: &Mamba2, hidden: u64) -> AttentionParams {
    let inner = u64::from(dims.heads) * u64::from(dims.head_dim);
    let groups = 2 * u64::from(dims.groups) * u64::from(dims.state_size);
    let heads = u64::from(dims.heads);
    AttentionParams {
        heads: hidden * (2 * inner + heads),
        kv_heads: hidden * groups,
        kv_splits: dims.groups,
        output: inner * hidden,
        small: (inner + groups) * (u64::from(dims.conv_kernel) + 1) + 3 * heads + inner,
        ..AttentionParams::default()
    }
}

/// DeepSeek-V4 (`inference/model.py`, classes `Attention`, `Compressor`, `Indexer`).
fn compressed(dims: &Compressed, hidden: u64) -> AttentionParams {
    let width = u64::from(dims.head_dim);
    let q = u64::from(dims.q_heads) * width;
    let q_rank = u64::from(dims.q_lora_rank);
    let o_rank = u64::from(dims.o_lora_rank);
    let o_groups = u64::from(dims.o_groups);
    let ratio = u64::from(dims.compress_ratio);
    let (own, own_small) = compressor(hidden, width, ratio);
    let (index, index_small) = dims.indexer.map_or((0, 0), |index| {
        let (heads, index_width) = (u64::from(index.heads), u64::from(index.head_dim));
        let (keys, small) = compressor(hidden, index_width, ratio);
        (q_rank * heads * index_width + hidden * heads + keys, small)
    });
    AttentionParams {
        heads: q_rank * q,
        kv_heads: 0,
        kv_splits: 0,
        // Each group of heads is projected to its own rank, then all groups together to the stream.
        output: q * o_rank + o_groups * o_rank * hidden,
        replicated: hidden * q_rank + hidden * width + own,
        indexer: index,
        small: q_rank + width + u64::from(dims.q_heads) + own_small + index_small,
    }
}

/// Projections of a compressor (values and gates), and its small tensors (a position bias for each
/// of the `ratio` places, a norm). A ratio of 4 compresses overlapping spans, which doubles both.
fn compressor(hidden: u64, width: u64, ratio: u64) -> (u64, u64) {
    match ratio {
        0 => (0, 0),
        _ => {
            let wide = if ratio == 4 { 2 * width } else { width };
            (2 * hidden * wide, ratio * wide + width)
        }
    }
}

/// Kimi Linear's KDA: Q, K, V; a decay through a bottleneck of one head's width; a write strength
/// a head; an output gate.
fn kimi_delta(dims: &KimiDelta, hidden: u64) -> AttentionParams {
    let head = u64::from(dims.head_dim);
    let heads = u64::from(dims.heads);
    let width = heads * head;
    let low_rank = hidden * head + head * width;
    let gate = if dims.full_rank_gate {
        hidden * width
    } else {
        low_rank
    };
    AttentionParams {
        heads: 3 * hidden * width + low_rank + hidden * heads + gate,
        output: width * hidden,
        small: 3 * width * u64::from(dims.conv_kernel) + width + heads + head,
        ..AttentionParams::default()
    }
}
