//! The kinds of work in a step, by the names that the planner's breakdown has.

use serde::{Deserialize, Serialize};

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Op {
    /// Norms, residuals, rotary embedding, KV write, activations.
    #[serde(rename = "norms, rope, copies")]
    Elementwise,
    /// Query, key and value projections (MLA: compressions and expansions).
    #[serde(rename = "qkv projection")]
    QkvProjection,
    /// Decode attention.
    #[serde(rename = "decode attention")]
    DecodeAttention,
    /// Prefill attention.
    #[serde(rename = "prefill attention")]
    PrefillAttention,
    /// Attention output projection.
    #[serde(rename = "output projection")]
    OutProjection,
    /// Sum of the attention output over ranks.
    #[serde(rename = "attention all-reduce")]
    AttentionReduce,
    /// DCP's collectives and merge.
    #[serde(rename = "dcp exchange")]
    Dcp,
    /// Gather of hidden states before the feed-forward block.
    #[serde(rename = "dp gather")]
    Gather,
    /// Router and choice of experts.
    #[serde(rename = "router")]
    Router,
    /// Sorting by expert, grouped products, weighted sum.
    #[serde(rename = "routed experts")]
    Experts,
    /// Shared experts.
    #[serde(rename = "shared experts")]
    SharedExperts,
    /// Dense feed-forward blocks.
    #[serde(rename = "dense ffn")]
    DenseFfn,
    /// Sum or scatter after the feed-forward block.
    #[serde(rename = "ffn combine")]
    Combine,
    /// Expert all-to-all.
    #[serde(rename = "expert all-to-all")]
    ExpertExchange,
}

impl Op {
    /// All kinds, in order of execution.
    pub const ALL: [Op; 14] = [
        Op::Elementwise,
        Op::QkvProjection,
        Op::DecodeAttention,
        Op::PrefillAttention,
        Op::OutProjection,
        Op::AttentionReduce,
        Op::Dcp,
        Op::Gather,
        Op::Router,
        Op::Experts,
        Op::SharedExperts,
        Op::DenseFfn,
        Op::Combine,
        Op::ExpertExchange,
    ];

    /// The name in tables and JSON: that of the planner's breakdown.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Op::Elementwise => "norms, rope, copies",
            Op::QkvProjection => "qkv projection",
            Op::DecodeAttention => "decode attention",
            Op::PrefillAttention => "prefill attention",
            Op::OutProjection => "output projection",
            Op::AttentionReduce => "attention all-reduce",
            Op::Dcp => "dcp exchange",
            Op::Gather => "dp gather",
            Op::Router => "router",
            Op::Experts => "routed experts",
            Op::SharedExperts => "shared experts",
            Op::DenseFfn => "dense ffn",
            Op::Combine => "ffn combine",
            Op::ExpertExchange => "expert all-to-all",
        }
    }
}
