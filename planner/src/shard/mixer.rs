//! Token mixers as one rank of a layout sees them.

use super::Linear;
use crate::kv::kv_heads_per_rank;
use crate::layout::Layout;
use parplan_profiles::{
    Attention, Compressed, Dtype, GatedDelta, Gqa, KimiDelta, Mamba2, Mla, WeightFormats,
};

/// The token mixer of a layer, as a rank sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mixer {
    /// No token mixer.
    None,
    /// Grouped-query attention.
    Gqa(GqaShard),
    /// Multi-head latent attention.
    Mla(MlaShard),
    /// Gated-delta linear attention.
    GatedDelta(GatedDeltaShard),
    /// Compressed and windowed attention (DeepSeek-V4).
    Compressed(CompressedShard),
    /// Mamba-2.
    Mamba2(Mamba2Shard),
}

impl Mixer {
    /// The shapes of `attention` on one rank of `layout`.
    pub(super) fn new(
        attention: &Attention,
        hidden: f64,
        weights: &WeightFormats,
        layout: &Layout,
    ) -> Mixer {
        let tp = f64::from(layout.attention_tp());
        match attention {
            Attention::Gqa(a) => Mixer::Gqa(GqaShard::new(a, hidden, weights, layout)),
            Attention::Mla(a) => Mixer::Mla(MlaShard::new(a, hidden, weights, tp)),
            Attention::GatedDelta(a) => {
                Mixer::GatedDelta(GatedDeltaShard::new(a, hidden, weights, tp))
            }
            Attention::KimiDelta(a) => {
                Mixer::GatedDelta(GatedDeltaShard::of_kimi(a, hidden, weights, tp))
            }
            Attention::Compressed(a) => {
                Mixer::Compressed(CompressedShard::new(a, hidden, weights, tp))
            }
            Attention::Mamba2(a) => Mixer::Mamba2(Mamba2Shard::new(a, hidden, weights, tp)),
        }
    }
}

/// Grouped-query attention on one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GqaShard {
    /// Query, key, value (and gate) projection.
    pub qkv: Linear,
    /// Output projection.
    pub out: Linear,
    /// Query heads of this rank.
    pub q_heads: f64,
    /// KV heads that this rank stores.
    pub kv_heads: f64,
    /// Width of a query head.
    pub head_dim: f64,
    /// Width of a value head.
    pub v_head_dim: f64,
    /// Sliding window, tokens.
    pub window: Option<u32>,
    /// The norm of Q and K spans the heads of all ranks.
    pub shared_norm: bool,
}

/// Multi-head latent attention on one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MlaShard {
    /// Fused compression of queries and KV, replicated on every rank.
    pub down: Linear,
    /// Query expansion, by heads.
    pub q_up: Linear,
    /// KV expansion, by heads; used in prefill, absorbed into the query and output in decode.
    pub kv_up: Linear,
    /// Output projection.
    pub out: Linear,
    /// Query heads of this rank.
    pub heads: f64,
    /// The model's dimensions.
    pub dims: Mla,
}

/// Gated-delta linear attention on one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GatedDeltaShard {
    /// Q, K, V and the output gate.
    pub input: Linear,
    /// The scalars of a head: decay and beta.
    pub scalars: Linear,
    /// Output projection.
    pub out: Linear,
    /// Key heads of this rank.
    pub k_heads: f64,
    /// Value heads of this rank.
    pub v_heads: f64,
    /// The model's dimensions.
    pub dims: GatedDelta,
}

/// Compressed and windowed attention (DeepSeek-V4) on one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CompressedShard {
    /// Query compression and the shared KV head, with the compressor where there is one; replicated.
    pub down: Linear,
    /// Query expansion, by heads.
    pub q_up: Linear,
    /// Grouped low-rank output projection: into the groups' ranks, and out of them.
    pub out: (Linear, Linear),
    /// Query heads of this rank.
    pub heads: f64,
    /// The model's dimensions.
    pub dims: Compressed,
}

/// Mamba-2 on one rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mamba2Shard {
    /// Input projection.
    pub input: Linear,
    /// Output projection.
    pub out: Linear,
    /// Heads of this rank.
    pub heads: f64,
    /// The model's dimensions.
    pub dims: Mamba2,
}

impl GqaShard {
    fn new(a: &Gqa, hidden: f64, weights: &WeightFormats, layout: &Layout) -> Self {
        let tp = f64::from(layout.attention_tp());
        let q_heads = f64::from(a.q_heads) / tp;
        // Weights are split over the whole attention-TP group whatever DCP does to the cache.
        let kv_split = kv_heads_per_rank(a.kv_heads, &Layout { dcp: 1, ..*layout });
        let q = q_heads * f64::from(a.head_dim) * if a.output_gate { 2.0 } else { 1.0 };
        let kv = kv_split * f64::from(a.head_dim + a.v_head_dim);
        GqaShard {
            qkv: Linear::new(q + kv, hidden, weights.attention),
            out: Linear::new(
                hidden,
                q_heads * f64::from(a.v_head_dim),
                weights.attention_output(),
            ),
            q_heads,
            kv_heads: kv_heads_per_rank(a.kv_heads, layout),
            head_dim: f64::from(a.head_dim),
            v_head_dim: f64::from(a.v_head_dim),
            window: a.window,
            shared_norm: a.qk_norm_all_heads,
        }
    }
}

impl MlaShard {
    fn new(a: &Mla, hidden: f64, weights: &WeightFormats, tp: f64) -> Self {
        let heads = f64::from(a.q_heads) / tp;
        let latent = f64::from(a.kv_lora_rank + a.qk_rope_head_dim);
        let qk = f64::from(a.qk_nope_head_dim + a.qk_rope_head_dim);
        let rank = f64::from(a.q_lora_rank);
        let (down_n, q_up_k) = if a.q_lora_rank > 0 {
            (rank + latent, rank)
        } else {
            (latent, hidden)
        };
        MlaShard {
            down: Linear::new(down_n, hidden, weights.attention),
            q_up: Linear::new(heads * qk, q_up_k, weights.attention),
            kv_up: Linear::new(
                heads * f64::from(a.qk_nope_head_dim + a.v_head_dim),
                f64::from(a.kv_lora_rank),
                weights.attention,
            ),
            out: Linear::new(
                hidden,
                heads * f64::from(a.v_head_dim),
                weights.attention_output(),
            ),
            heads,
            dims: *a,
        }
    }
}

impl GatedDeltaShard {
    fn new(a: &GatedDelta, hidden: f64, weights: &WeightFormats, tp: f64) -> Self {
        let k_heads = f64::from(a.k_heads) / tp;
        let v_heads = f64::from(a.v_heads) / tp;
        let keys = k_heads * f64::from(a.k_head_dim);
        let values = v_heads * f64::from(a.v_head_dim);
        GatedDeltaShard {
            input: Linear::new(2.0 * keys + 2.0 * values, hidden, weights.attention),
            // Engines keep these small ones in bf16.
            scalars: Linear::new(2.0 * v_heads, hidden, Dtype::Bf16),
            out: Linear::new(hidden, values, weights.attention_output()),
            k_heads,
            v_heads,
            dims: *a,
        }
    }

    /// Its decay, gates and keys make the same products as a gated-delta layer of equal heads.
    fn of_kimi(a: &KimiDelta, hidden: f64, weights: &WeightFormats, tp: f64) -> Self {
        let heads = f64::from(a.heads) / tp;
        let width = heads * f64::from(a.head_dim);
        let gate = if a.full_rank_gate {
            width
        } else {
            2.0 * f64::from(a.head_dim)
        };
        GatedDeltaShard {
            input: Linear::new(3.0 * width + gate, hidden, weights.attention),
            scalars: Linear::new(heads, hidden, Dtype::Bf16),
            out: Linear::new(hidden, width, weights.attention_output()),
            k_heads: heads,
            v_heads: heads,
            dims: GatedDelta {
                k_heads: a.heads,
                v_heads: a.heads,
                k_head_dim: a.head_dim,
                v_head_dim: a.head_dim,
                conv_kernel: a.conv_kernel,
            },
        }
    }
}

impl CompressedShard {
    fn new(a: &Compressed, hidden: f64, weights: &WeightFormats, tp: f64) -> Self {
        let heads = f64::from(a.q_heads) / tp;
        let width = f64::from(a.head_dim);
        let compressor = if a.compress_ratio > 0 {
            2.0 * width
        } else {
            0.0
        };
        let ranks = f64::from(a.o_groups) * f64::from(a.o_lora_rank) / tp;
        CompressedShard {
            down: Linear::new(
                f64::from(a.q_lora_rank) + width + compressor,
                hidden,
                weights.attention,
            ),
            q_up: Linear::new(heads * width, f64::from(a.q_lora_rank), weights.attention),
            out: (
                Linear::new(
                    ranks,
                    f64::from(a.q_heads) * width / f64::from(a.o_groups.max(1)),
                    weights.attention_output(),
                ),
                Linear::new(hidden, ranks, weights.attention_output()),
            ),
            heads,
            dims: *a,
        }
    }
}

impl Mamba2Shard {
    fn new(a: &Mamba2, hidden: f64, weights: &WeightFormats, tp: f64) -> Self {
        let heads = f64::from(a.heads) / tp;
        let inner = heads * f64::from(a.head_dim);
        let groups = (f64::from(a.groups) / tp).max(1.0);
        Mamba2Shard {
            input: Linear::new(
                2.0 * inner + 2.0 * groups * f64::from(a.state_size) + heads,
                hidden,
                weights.attention,
            ),
            out: Linear::new(hidden, inner, weights.attention_output()),
            heads,
            dims: *a,
        }
    }
}
