//! Which splits of a model an engine accepts.

use serde::{Deserialize, Serialize};

/// Which splits of a model an engine accepts, and what its sizes mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeometryRule {
    /// Expert-parallel widths that can be asked for.
    pub expert: ExpertWidths,
    /// Attention data-parallel widths that can be asked for.
    pub attention_dp: AttentionDpWidths,
    /// A model without experts can use attention data parallelism. Where it cannot (vLLM), ranks of
    /// a data-parallel group of a dense model are independent replicas.
    pub attention_dp_dense_model: bool,
    /// Ranks that split a dense (not expert) feed-forward block.
    pub dense_ffn: DenseFfnSplit,
    /// The engine serves several independent replicas from one command; otherwise each is a server.
    pub replicas_in_one_server: bool,
    /// Pipeline stages and speculative decoding can be combined.
    pub pipeline_with_speculation: bool,
    /// Pipeline stages and attention data parallelism can be combined.
    pub pipeline_with_attention_dp: bool,
    /// One engine may span several nodes.
    pub several_nodes: bool,
    /// Shards of weights in 128 by 128 fp8 blocks must hold whole blocks.
    pub fp8_whole_blocks: bool,
    /// Tokens that the vocabulary is padded to a multiple of, which the ranks that split it must divide;
    /// 0 where it is padded for any number of ranks.
    #[serde(default)]
    pub vocabulary_multiple: u32,
}

/// Expert-parallel widths an engine accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertWidths {
    /// Any divisor of the stage's GPUs.
    Divisors,
    /// 1, or every GPU of the stage (a switch, not a number).
    OneOrAll,
}

/// Attention data-parallel widths an engine accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionDpWidths {
    /// Any divisor of the stage's GPUs.
    Divisors,
    /// 1, or every GPU of the stage.
    OneOrAll,
}

/// Ranks that split a dense feed-forward block under attention data parallelism.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenseFfnSplit {
    /// Every GPU of the stage: tokens of all data-parallel ranks are gathered first.
    Stage,
    /// The attention-TP group: every data-parallel rank holds its own copy.
    AttentionTp,
}
