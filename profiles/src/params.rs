//! Parameters counted from dimensions: by layer, by tensor class, and by what tensor parallelism
//! can split.
//!
//! Only counts are made here. Bytes per rank follow from them, the formats of
//! [`WeightFormats`](crate::WeightFormats) and a layout, in the planner.

use crate::model::{Attention, Ffn, LayerGroup, ModelProfile};
use serde::Serialize;

mod attention;
mod ffn;
mod published;

pub use attention::AttentionParams;
pub use ffn::FfnParams;
pub use published::{PublishedMismatch, rounds_to};

/// Parameters of one layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LayerParams {
    /// The token mixer.
    pub attention: AttentionParams,
    /// The feed-forward block.
    pub ffn: FfnParams,
    /// Norms before and after the blocks and hyper-connection maps; on every rank.
    pub norms: u64,
}

impl LayerParams {
    /// All parameters of the layer.
    pub fn total(&self) -> u64 {
        self.attention.total() + self.ffn.total() + self.norms
    }

    /// Parameters that one token meets: `top_k` of the routed experts and everything else.
    pub fn active(&self) -> u64 {
        self.attention.total() + self.ffn.active() + self.norms
    }
}

/// Parameters of a model, summed over its layers by tensor class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ModelParams {
    /// Token mixers without indexers and small vectors.
    pub attention: u64,
    /// DSA indexers.
    pub indexer: u64,
    /// Dense feed-forward layers.
    pub dense_ffn: u64,
    /// Routed experts.
    pub routed_experts: u64,
    /// Routed experts that one token visits.
    pub routed_experts_active: u64,
    /// Shared experts.
    pub shared_experts: u64,
    /// Routers, and the projections into and out of a latent expert width.
    pub router: u64,
    /// Norms, biases, convolutions, decays and sinks.
    pub norms: u64,
    /// The embedding table.
    pub embedding: u64,
    /// The output projection; 0 when it is the embedding table.
    pub lm_head: u64,
    /// MTP layers with what each brings of its own (the projection that joins the hidden state
    /// with the embedding of the next token, and three norms), without the embedding and output
    /// tables that it shares with the main model.
    pub mtp: u64,
}

impl ModelParams {
    /// Parameters of the main model, embeddings included and MTP layers left out.
    pub fn total(&self) -> u64 {
        self.total_without_embeddings() + self.embedding + self.lm_head
    }

    /// Parameters of the main model without the embedding table and the output projection.
    pub fn total_without_embeddings(&self) -> u64 {
        self.attention
            + self.indexer
            + self.dense_ffn
            + self.routed_experts
            + self.shared_experts
            + self.router
            + self.norms
    }

    /// Parameters in the layers that one token passes.
    pub fn active_in_layers(&self) -> u64 {
        self.total_without_embeddings() - self.routed_experts + self.routed_experts_active
    }

    /// Parameters that are read to make one token: the layers it passes and the output
    /// projection, which is the embedding table where the two are tied.
    pub fn active(&self) -> u64 {
        let head = if self.lm_head == 0 {
            self.embedding
        } else {
            self.lm_head
        };
        self.active_in_layers() + head
    }

    fn add_layers(&mut self, layer: &LayerParams, count: u64) {
        let mixer = &layer.attention;
        let ffn = &layer.ffn;
        self.attention += count * (mixer.heads + mixer.kv_heads + mixer.output + mixer.replicated);
        self.indexer += count * mixer.indexer;
        self.dense_ffn += count * ffn.dense;
        self.routed_experts += count * ffn.routed;
        self.routed_experts_active += count * ffn.routed_active();
        self.shared_experts += count * ffn.shared;
        self.router += count * (ffn.router + ffn.latent);
        self.norms += count * (layer.norms + mixer.small + ffn.small);
    }
}

impl ModelProfile {
    /// Parameters of one layer of a group (`group.count` is not multiplied in).
    pub fn layer_params(&self, group: &LayerGroup) -> LayerParams {
        let hidden = u64::from(self.hidden_size);
        let attention = group
            .attention
            .as_ref()
            .map(|mixer| AttentionParams::of(mixer, hidden))
            .unwrap_or_default();
        let ffn = group
            .ffn
            .as_ref()
            .map(|ffn| FfnParams::of(ffn, hidden))
            .unwrap_or_default();
        let blocks = u64::from(group.attention.is_some()) + u64::from(group.ffn.is_some());
        LayerParams {
            attention,
            ffn,
            norms: blocks * (hidden + hyper_connection(u64::from(self.hyper_connections), hidden)),
        }
    }

    /// Parameters of one MTP layer, its joining projection and norms included; 0 when the
    /// checkpoint has none.
    ///
    /// The joining projection maps the concatenation of hidden state and embedding back to the
    /// hidden width (DeepSeek-V3 report, arXiv 2412.19437, section 2.2, matrix `M_k`).
    pub fn mtp_layer_params(&self) -> u64 {
        let hidden = u64::from(self.hidden_size);
        self.mtp_layer.as_ref().map_or(0, |group| {
            self.layer_params(group).total() + 2 * hidden * hidden + 3 * hidden
        })
    }

    /// Parameters of the whole model by tensor class.
    pub fn params(&self) -> ModelParams {
        let table = u64::from(self.vocab_size) * u64::from(self.hidden_size);
        let mut params = ModelParams {
            norms: u64::from(self.hidden_size),
            embedding: table,
            lm_head: if self.tied_embeddings { 0 } else { table },
            mtp: u64::from(self.mtp_layers) * self.mtp_layer_params(),
            ..ModelParams::default()
        };
        for group in &self.layers {
            params.add_layers(&self.layer_params(group), u64::from(group.count));
        }
        params
    }

    /// Whether any layer routes tokens to experts.
    pub fn is_moe(&self) -> bool {
        self.layers
            .iter()
            .any(|group| matches!(group.ffn, Some(Ffn::Moe(_))))
    }

    /// Whether any layer keeps a recurrent state instead of a cache that grows with the context.
    pub fn has_recurrent_state(&self) -> bool {
        self.layers.iter().any(|group| {
            matches!(
                group.attention,
                Some(Attention::GatedDelta(_) | Attention::Mamba2(_) | Attention::KimiDelta(_))
            )
        })
    }
}

/// Maps of one hyper-connection: `(2 + n)·n` mixing weights for each of the `n·hidden` entries of
/// the widened stream, their biases and three scales (DeepSeek-V4, `hc_attn_fn` and `hc_ffn_fn`).
fn hyper_connection(streams: u64, hidden: u64) -> u64 {
    if streams == 0 {
        return 0;
    }
    let mixes = (2 + streams) * streams;
    mixes * streams * hidden + mixes + 3
}
