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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtp_layer: Option<LayerGroup>,
    /// Parallel residual streams of manifold-constrained hyper-connections (`hc_mult`,
    /// DeepSeek-V4); 0 for the ordinary single stream.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub hyper_connections: u32,
    /// Figures published for this model, that the dimensions must reproduce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<Published>,
}

impl ModelProfile {
    /// Layers of the main model (MTP layers not counted).
    pub fn depth(&self) -> u32 {
        self.layers
            .iter()
            .fold(0, |depth, group| depth.saturating_add(group.count))
    }

    /// Storage formats of a group of layers: its own, or the model's.
    pub fn formats_of(&self, group: &LayerGroup) -> WeightFormats {
        group.weights.unwrap_or(self.weights)
    }

    /// The same model stored in other formats: what an engine serves after quantising a bf16
    /// checkpoint while loading it. Formats of single layer groups give way to the new ones.
    pub fn with_weights(mut self, weights: WeightFormats) -> Self {
        self.weights = weights;
        for group in self.layers.iter_mut().chain(self.mtp_layer.as_mut()) {
            group.weights = None;
        }
        self
    }
}

/// Storage format by tensor class. Norms and biases are bf16 and not listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightFormats {
    /// Q, K, V (or MLA) and output projections; linear-attention projections.
    pub attention: Dtype,
    /// The output projection of the token mixer, where a checkpoint stores it in another format
    /// than the rest of `attention` (NVIDIA's DeepSeek-V3.1-NVFP4 quantises only this one).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_output: Option<Dtype>,
    /// The DSA indexer, where it is stored in another format than `attention`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub indexer: Option<Dtype>,
    /// Dense feed-forward layers.
    pub dense_ffn: Dtype,
    /// Routed experts.
    pub experts: Dtype,
    /// Shared experts.
    pub shared_experts: Dtype,
    /// Router, embedding and output projection.
    pub embedding: Dtype,
    /// The output projection, where it is stored in another format than the embedding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lm_head: Option<Dtype>,
}

impl WeightFormats {
    /// Every class in one format, embeddings, router and output projection in `embedding`.
    pub const fn uniform(linear: Dtype, embedding: Dtype) -> Self {
        WeightFormats {
            attention: linear,
            attention_output: None,
            indexer: None,
            dense_ffn: linear,
            experts: linear,
            shared_experts: linear,
            embedding,
            lm_head: None,
        }
    }

    /// Format of the token mixer's output projection.
    pub fn attention_output(&self) -> Dtype {
        self.attention_output.unwrap_or(self.attention)
    }

    /// Format of the DSA indexer.
    pub fn indexer(&self) -> Dtype {
        self.indexer.unwrap_or(self.attention)
    }

    /// Format of the output projection of the model.
    pub fn lm_head(&self) -> Dtype {
        self.lm_head.unwrap_or(self.embedding)
    }
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

fn is_zero_u64(value: &u64) -> bool {
    *value == 0
}

fn yes() -> bool {
    true
}

fn is_true(value: &bool) -> bool {
    *value
}

fn is_false(value: &bool) -> bool {
    !*value
}

/// `count` layers with the same attention and feed-forward shapes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerGroup {
    /// How many such layers.
    pub count: u32,
    /// Token mixer; none in layers that are a feed-forward block only (Nemotron-H).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention: Option<Attention>,
    /// Feed-forward block; none in layers that are a token mixer only (Nemotron-H).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ffn: Option<Ffn>,
    /// Storage formats of these layers, where a mixed-precision checkpoint keeps them in others
    /// than [`ModelProfile::weights`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<WeightFormats>,
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
    /// Compressed and windowed attention over one shared KV head (DeepSeek-V4).
    Compressed(Compressed),
    /// Kimi Delta Attention, linear attention with a per-channel decay (Kimi Linear, Kimi-K3).
    KimiDelta(KimiDelta),
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
    /// That norm spans all heads of Q and of K, so that tensor-parallel ranks add their squares up in
    /// one more all-reduce (MiniMax-M2).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub qk_norm_all_heads: bool,
    /// The query projection also makes an output gate of the same width (Qwen3.5).
    #[serde(default)]
    pub output_gate: bool,
    /// Projections have biases; counted in the parameters.
    #[serde(default)]
    pub bias: bool,
    /// Learned attention sinks, one a query head (gpt-oss).
    #[serde(default)]
    pub sinks: bool,
    /// Block-sparse reading of the cache, picked by a small index branch (MiniMax-M3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sparse: Option<BlockSparse>,
}

/// The index branch of block-sparse attention (MiniMax-M3): a query reads the `top_k_blocks`
/// blocks of the cache that score highest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockSparse {
    /// Index query heads.
    pub heads: u32,
    /// Width of an index head; one index key a token is cached.
    pub head_dim: u32,
    /// Tokens in a block.
    pub block_size: u32,
    /// Blocks that a query reads.
    pub top_k_blocks: u32,
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
    /// A projection of the residual stream gates the heads' output (Kimi-K3).
    #[serde(default, skip_serializing_if = "is_false")]
    pub output_gate: bool,
}

/// The lightning indexer of DeepSeek sparse attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

/// Dimensions of DeepSeek-V4 attention: multi-query attention whose one KV head is key and value
/// at once, over a sliding window of raw tokens and, where `compress_ratio > 0`, over entries that
/// each stand for `compress_ratio` tokens.
///
/// With a ratio of 4 (compressed sparse attention, CSA) an indexer picks `top_k` compressed
/// entries; with 128 (heavily compressed attention, HCA) all compressed entries are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compressed {
    /// Query heads.
    pub q_heads: u32,
    /// Width of a query head and of a cached entry, rotary part included.
    pub head_dim: u32,
    /// Width of the rotary part; engines that cache fp8 keep this part in bf16.
    pub qk_rope_head_dim: u32,
    /// Rank of the query compression.
    pub q_lora_rank: u32,
    /// Groups of the low-rank output projection.
    pub o_groups: u32,
    /// Rank of the output projection a group.
    pub o_lora_rank: u32,
    /// Raw tokens that every query sees.
    pub window: u32,
    /// Tokens that one compressed entry stands for; 0 in layers that see the window only.
    pub compress_ratio: u32,
    /// Picks the compressed entries to read (CSA layers); its keys are compressed by the same
    /// ratio.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub indexer: Option<Indexer>,
}

/// Dimensions of a Kimi Delta Attention layer. Keys, queries and values have the same heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KimiDelta {
    /// Heads; each keeps a `head_dim × head_dim` state.
    pub heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Taps of the causal convolutions on Q, K and V.
    pub conv_kernel: u32,
    /// The output gate is one full projection (Kimi-K3) rather than a low-rank pair of width
    /// `head_dim` (Kimi Linear).
    #[serde(default)]
    pub full_rank_gate: bool,
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
    /// Engines run the router's product in fp32, on fp32 weights (MiniMax-M2), which no tensor core does.
    #[serde(default, skip_serializing_if = "is_false")]
    pub router_fp32: bool,
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
    /// Parameters that the total counts but that are not planned, such as a vision tower's.
    #[serde(default, skip_serializing_if = "is_zero_u64")]
    pub total_counts_unplanned: u64,
    /// Whether both figures count the routers' weights; nearly all do.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub counts_routers: bool,
    /// Whether the active figure counts the embedding table, and the output projection.
    pub active_counts: ActiveCounts,
    /// Where the figures are printed.
    pub source: String,
    /// Cache bytes of a token in bf16 as printed: all layers, one copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_bytes_per_token: Option<u64>,
    /// Where that is printed, or that it is not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cache_source: String,
}

/// What a published figure of active parameters counts besides the layers a token passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActiveCounts {
    /// Neither the embedding table nor the output projection.
    Layers,
    /// The output projection too: every one of its parameters is used for every token, while a
    /// token reads only one row of the embedding table.
    LmHead,
    /// Both tables.
    Embeddings,
}
