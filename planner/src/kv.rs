//! What a request keeps on a rank between steps: KV rows, sliding windows, recurrent state.
//!
//! Row sizes follow SGLang 0.5.23 `mem_cache/pool_configurator.py` and vLLM 0.33
//! `v1/kv_cache_interface.py`; the copies of a token's KV across an attention-TP group follow
//! vLLM's `docs/serving/context_parallel_deployment.md`.

use crate::layout::Layout;
use parplan_profiles::{
    Attention, Compressed, Dtype, GatedDelta, Gqa, Indexer, KimiDelta, Mamba2, Mla, ModelProfile,
};

/// Cache bytes of one request on one rank, as a function of its length.
#[derive(Debug, Clone, PartialEq)]
pub struct KvFootprint {
    /// Bytes a logical token, over the layers that keep every token.
    pub bytes_per_token: f64,
    /// Layers that keep only the last `tokens` tokens: `(bytes a token, tokens)`.
    pub windows: Vec<(f64, u32)>,
    /// Recurrent state, bytes a request, whatever its length.
    pub state_bytes: f64,
}

impl KvFootprint {
    /// Bytes that one request of `tokens` tokens holds on one rank.
    pub fn request_bytes(&self, tokens: f64) -> f64 {
        self.windows.iter().fold(
            self.bytes_per_token * tokens + self.state_bytes,
            |sum, &(bytes, window)| sum + bytes * tokens.min(f64::from(window)),
        )
    }

    /// Longest single request that `budget_bytes` can hold, tokens.
    pub fn longest_request(&self, budget_bytes: f64) -> f64 {
        let capped: f64 = self
            .windows
            .iter()
            .map(|&(bytes, window)| bytes * f64::from(window))
            .sum();
        let free = budget_bytes - self.state_bytes - capped;
        if self.bytes_per_token > 0.0 {
            // Where even the windows do not fit, every layer grows with the request.
            if free <= 0.0 {
                let all = self.bytes_per_token + self.windows.iter().map(|w| w.0).sum::<f64>();
                return ((budget_bytes - self.state_bytes) / all).max(0.0);
            }
            free / self.bytes_per_token
        } else if free >= 0.0 {
            f64::INFINITY
        } else {
            0.0
        }
    }
}

/// KV heads that a rank stores: `max(1, kv_heads / (attention_tp / dcp))`.
///
/// Ranks of one DCP group hold the same heads and share the tokens, so a wider DCP group
/// re-unites heads that attention TP had split.
pub fn kv_heads_per_rank(kv_heads: u32, layout: &Layout) -> f64 {
    let head_ranks = f64::from(layout.attention_tp()) / f64::from(layout.dcp.max(1));
    (f64::from(kv_heads) / head_ranks).max(1.0)
}

fn gqa_row(a: &Gqa, layout: &Layout, kv: Dtype) -> f64 {
    let dcp = f64::from(layout.dcp.max(1));
    // MiniMax-M3's index keys are bf16, one a token, and every rank scores all of them.
    let index = a
        .sparse
        .map_or(0.0, |s| f64::from(s.head_dim) * Dtype::Bf16.bytes());
    kv_heads_per_rank(a.kv_heads, layout) * f64::from(a.head_dim + a.v_head_dim) * kv.bytes() / dcp
        + index
}

/// Bytes of one latent row: `kv_lora_rank + rope` values, or, for sparse attention with fp8 KV,
/// SGLang's scaled layout (1 B a latent value, a 4 B scale for 128 of them, bf16 rope).
fn mla_row(a: &Mla, kv: Dtype) -> f64 {
    let latent = f64::from(a.kv_lora_rank);
    let rope = f64::from(a.qk_rope_head_dim);
    if a.indexer.is_some() && matches!(kv, Dtype::Fp8 | Dtype::Fp8Block) {
        latent + latent / 128.0 * 4.0 + rope * 2.0
    } else {
        (latent + rope) * kv.bytes()
    }
}

/// Bytes of one indexer row: fp8 keys and one fp32 scale for 128 of them.
fn indexer_row(i: &Indexer) -> f64 {
    if i.owned {
        f64::from(i.head_dim) + f64::from(i.head_dim) / 128.0 * 4.0
    } else {
        0.0
    }
}

/// Recurrent state of a gated-delta layer, bytes a request and rank: an fp32 matrix per value head
/// and a bf16 convolution tail over Q, K and V channels.
fn gated_delta_state(a: &GatedDelta, ranks: f64) -> f64 {
    let state = f64::from(a.v_heads) * f64::from(a.k_head_dim) * f64::from(a.v_head_dim) * 4.0;
    let channels = 2.0 * f64::from(a.k_heads) * f64::from(a.k_head_dim)
        + f64::from(a.v_heads) * f64::from(a.v_head_dim);
    (state + channels * f64::from(a.conv_kernel.saturating_sub(1)) * 2.0) / ranks
}

/// Recurrent state of a Kimi Delta layer: as a gated-delta layer with equal heads.
fn kimi_delta_state(a: &KimiDelta, ranks: f64) -> f64 {
    let same = GatedDelta {
        k_heads: a.heads,
        v_heads: a.heads,
        k_head_dim: a.head_dim,
        v_head_dim: a.head_dim,
        conv_kernel: a.conv_kernel,
    };
    gated_delta_state(&same, ranks)
}

/// Bytes of one cached entry of DeepSeek-V4 attention: fp8 with the rotary part in bf16 and a scale
/// byte for 64 values, or the plain format. One shared KV head serves as key and value.
fn compressed_row(a: &Compressed, kv: Dtype) -> f64 {
    let rope = f64::from(a.qk_rope_head_dim);
    let rest = f64::from(a.head_dim) - rope;
    if kv.bytes() < 1.5 {
        rest + rest / 64.0 + rope * Dtype::Bf16.bytes()
    } else {
        f64::from(a.head_dim) * kv.bytes()
    }
}

/// Recurrent state of a Mamba-2 layer, bytes a request and rank.
fn mamba2_state(a: &Mamba2, ranks: f64) -> f64 {
    let state = f64::from(a.heads) * f64::from(a.head_dim) * f64::from(a.state_size) * 4.0;
    let channels = f64::from(a.heads) * f64::from(a.head_dim)
        + 2.0 * f64::from(a.groups) * f64::from(a.state_size);
    (state + channels * f64::from(a.conv_kernel.saturating_sub(1)) * 2.0) / ranks
}

/// The footprint of a request on one rank of the first pipeline stage's share of layers.
///
/// Layers are spread evenly over pipeline stages. `draft_tokens_layers` MTP layers, when
/// speculation runs them, cache like the model's own and are never sharded by DCP.
pub fn footprint(model: &ModelProfile, layout: &Layout, kv: Dtype, with_mtp: bool) -> KvFootprint {
    let stages = f64::from(layout.pp.max(1));
    let attention_tp = f64::from(layout.attention_tp());
    let dcp = f64::from(layout.dcp.max(1));
    let mut out = KvFootprint {
        bytes_per_token: 0.0,
        windows: Vec::new(),
        state_bytes: 0.0,
    };
    let mut add = |attention: &Attention, layers: f64, sharded: bool| {
        let whole = if sharded {
            *layout
        } else {
            Layout { dcp: 1, ..*layout }
        };
        let (row, window) = match attention {
            Attention::Gqa(a) => (gqa_row(a, &whole, kv), a.window),
            Attention::Mla(a) => {
                let share = if sharded { dcp } else { 1.0 };
                let index = a.indexer.as_ref().map_or(0.0, indexer_row);
                (mla_row(a, kv) / share + index, a.window)
            }
            Attention::GatedDelta(a) => {
                out.state_bytes += layers * gated_delta_state(a, attention_tp);
                return;
            }
            Attention::KimiDelta(a) => {
                out.state_bytes += layers * kimi_delta_state(a, attention_tp);
                return;
            }
            Attention::Compressed(a) => {
                let row = compressed_row(a, kv);
                if a.compress_ratio > 0 {
                    let index = a.indexer.as_ref().map_or(0.0, indexer_row);
                    out.bytes_per_token += layers * (row + index) / f64::from(a.compress_ratio);
                }
                (row, Some(a.window))
            }
            Attention::Mamba2(a) => {
                out.state_bytes += layers * mamba2_state(a, attention_tp);
                return;
            }
        };
        match window {
            None => out.bytes_per_token += layers * row,
            Some(tokens) => out.windows.push((layers * row, tokens)),
        }
    };
    for group in &model.layers {
        if let Some(attention) = &group.attention {
            add(attention, f64::from(group.count) / stages, true);
        }
    }
    if with_mtp
        && let Some(attention) = model
            .mtp_layer
            .as_ref()
            .and_then(|group| group.attention.as_ref())
    {
        add(
            attention,
            f64::from(model.mtp_layers.min(1)) / stages,
            false,
        );
    }
    out
}

/// Copies of a token's KV across an attention-TP group: `max(1, attention_tp / (kv_heads · dcp))`,
/// with MLA counting as one KV head. 1 means that none is redundant.
pub fn redundancy(model: &ModelProfile, layout: &Layout) -> f64 {
    let heads = model
        .layers
        .iter()
        .filter_map(|group| match group.attention.as_ref()? {
            Attention::Gqa(a) => Some(a.kv_heads),
            Attention::Mla(_) | Attention::Compressed(_) => Some(1),
            Attention::GatedDelta(_) | Attention::Mamba2(_) | Attention::KimiDelta(_) => None,
        })
        .min()
        .unwrap_or(layout.attention_tp());
    (f64::from(layout.attention_tp()) / (f64::from(heads.max(1)) * f64::from(layout.dcp.max(1))))
        .max(1.0)
}
