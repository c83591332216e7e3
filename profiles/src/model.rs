//! What a model is: the dimensions that decide its weights, its KV cache and its arithmetic.

use crate::dtype::Dtype;
use serde::{Deserialize, Serialize};

/// A decoder-only language model, as far as a planner has to know it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelProfile {
    /// Short name, for example `deepseek-v3`.
    pub name: String,
    /// Other names that select it: Hugging Face ids and common spellings.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Hugging Face repository that a launch command serves, for example `deepseek-ai/DeepSeek-V3`.
    pub repository: String,
    /// `architectures[0]` of the Hugging Face configuration.
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// Rows of the embedding table.
    pub vocab_size: u32,
    /// The output projection shares the embedding table.
    #[serde(default)]
    pub tied_embeddings: bool,
    /// Longest supported sequence, tokens.
    pub max_position: u32,
    /// Storage format of each tensor class.
    pub weights: WeightFormats,
    /// KV cache format that an engine picks when told `auto`.
    pub kv_dtype: Dtype,
    /// Layers in runs of equal ones, in order of first appearance; counts sum to the depth.
    pub layers: Vec<LayerGroup>,
    /// Multi-token-prediction layers shipped with the checkpoint (0 when it has none).
    #[serde(default)]
    pub mtp_layers: u32,
    /// The shape of one MTP layer, when `mtp_layers > 0`.
    #[serde(default)]
    pub mtp_layer: Option<LayerGroup>,
    /// Figures published for this model, that the dimensions must reproduce.
    #[serde(default)]
    pub published: Option<Published>,
}

/// Storage format by tensor class. Norms and biases are bf16 and not listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightFormats {
    /// Q, K, V (or MLA) and output projections; linear-attention projections.
    pub attention: Dtype,
    /// Dense feed-forward layers.
    pub dense_ffn: Dtype,
    /// Routed experts.
    pub experts: Dtype,
    /// Shared experts.
    pub shared_experts: Dtype,
    /// Router, embedding and output projection.
    pub embedding: Dtype,
}

/// `count` layers with the same attention and feed-forward shapes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerGroup {
    /// How many such layers.
    pub count: u32,
    /// Token mixer; none in layers that are a feed-forward block only (Nemotron-H).
    #[serde(default)]
    pub attention: Option<Attention>,
    /// Feed-forward block; none in layers that are a token mixer only (Nemotron-H).
    #[serde(default)]
    pub ffn: Option<Ffn>,
}

/// The token mixer of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Attention {
    /// Multi-head, grouped-query or multi-query attention.
    Gqa(Gqa),
    /// Multi-head latent attention (DeepSeek-V2/V3), with an optional sparse indexer (DSA).
    Mla(Mla),
    /// Gated DeltaNet linear attention (Qwen3-Next, Qwen3.5).
    GatedDelta(GatedDelta),
    /// Mamba-2 state-space mixer (Nemotron-H).
    Mamba2(Mamba2),
}

/// Dimensions of grouped-query attention. MHA has `kv_heads == q_heads`, MQA `kv_heads == 1`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gqa {
    /// Query heads.
    pub q_heads: u32,
    /// Key/value heads.
    pub kv_heads: u32,
    /// Width of a query and key head.
    pub head_dim: u32,
    /// Width of a value head.
    pub v_head_dim: u32,
    /// Sliding window in tokens; none when the layer sees the whole context.
    #[serde(default)]
    pub window: Option<u32>,
    /// Per-head RMS norm on Q and K.
    #[serde(default)]
    pub qk_norm: bool,
    /// The query projection also makes an output gate of the same width (Qwen3.5).
    #[serde(default)]
    pub output_gate: bool,
    /// Projections have biases; counted in the parameters.
    #[serde(default)]
    pub bias: bool,
    /// Learned attention sinks, one a query head (gpt-oss).
    #[serde(default)]
    pub sinks: bool,
}

/// Dimensions of multi-head latent attention.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mla {
    /// Query heads.
    pub q_heads: u32,
    /// Rank of the query compression; 0 when the query projection is direct.
    pub q_lora_rank: u32,
    /// Rank of the shared KV compression: what the cache stores.
    pub kv_lora_rank: u32,
    /// Per-head width without position.
    pub qk_nope_head_dim: u32,
    /// Width of the rotary part, shared by all heads in the cache.
    pub qk_rope_head_dim: u32,
    /// Width of a value head.
    pub v_head_dim: u32,
    /// DeepSeek sparse attention: each query reads the `top_k` tokens that an indexer picks.
    #[serde(default)]
    pub indexer: Option<Indexer>,
    /// Sliding window in tokens, where a layer has one.
    #[serde(default)]
    pub window: Option<u32>,
}

/// The lightning indexer of DeepSeek sparse attention.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Indexer {
    /// Index query heads.
    pub heads: u32,
    /// Width of an index head; one index key a token is cached.
    pub head_dim: u32,
    /// Tokens that attention reads.
    pub top_k: u32,
    /// This layer computes and caches its own index; `false` where it reuses an earlier layer's (GLM-5.2).
    pub owned: bool,
}

/// Dimensions of a gated-delta linear attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatedDelta {
    /// Key heads.
    pub k_heads: u32,
    /// Value heads.
    pub v_heads: u32,
    /// Width of a key head.
    pub k_head_dim: u32,
    /// Width of a value head.
    pub v_head_dim: u32,
    /// Taps of the causal convolution.
    pub conv_kernel: u32,
}

/// Dimensions of a Mamba-2 layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mamba2 {
    /// Heads of the state-space recurrence.
    pub heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// State size a head.
    pub state_size: u32,
    /// Groups that share B and C.
    pub groups: u32,
    /// Taps of the causal convolution.
    pub conv_kernel: u32,
}

/// The feed-forward block of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Ffn {
    /// One block for every token.
    Dense(DenseFfn),
    /// A router and experts.
    Moe(MoeFfn),
}

/// A dense feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseFfn {
    /// Width of the hidden layer.
    pub intermediate: u32,
    /// Gate and up projections (SwiGLU); otherwise one up projection.
    pub gated: bool,
}

/// A mixture-of-experts block.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeFfn {
    /// Routed experts.
    pub experts: u32,
    /// Routed experts a token visits.
    pub top_k: u32,
    /// Width of a routed expert's hidden layer.
    pub intermediate: u32,
    /// Hidden width of all shared experts together; 0 when there is none.
    #[serde(default)]
    pub shared_intermediate: u32,
    /// Gate and up projections (SwiGLU) in the experts.
    pub gated: bool,
    /// Expert biases (gpt-oss), counted in the parameters.
    #[serde(default)]
    pub bias: bool,
    /// Width at which routed experts work when they are fed a projection of the residual stream
    /// (Nemotron-3 latent MoE); 0 when they work on the stream itself.
    #[serde(default)]
    pub latent: u32,
    /// A sigmoid gate on the shared expert (Qwen3.5), one vector of parameters.
    #[serde(default)]
    pub shared_gate: bool,
}

/// Published figures and what they count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// Total parameters as printed, for example `"671B"`.
    pub total: String,
    /// Parameters active for a token as printed, for example `"37B"`.
    pub active: String,
    /// Whether the total counts the embedding table and the output projection.
    pub total_counts_embeddings: bool,
    /// Whether the total counts the MTP layers.
    pub total_counts_mtp: bool,
    /// Whether the active figure counts the embedding table, and the output projection.
    pub active_counts: String,
    /// Where the figures are printed.
    pub source: String,
}
