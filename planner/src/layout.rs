//! How a model is split over GPUs.

use serde::{Deserialize, Serialize};

/// A split of one model over `replicas * tp * pp` GPUs.
///
/// Sizes follow SGLang's meaning: `tp` counts every GPU of a pipeline stage, and attention data
/// parallelism divides it. vLLM's `--tensor-parallel-size` is [`Layout::attention_tp`] and its
/// `--data-parallel-size` is `attention_dp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Independent copies of the whole engine.
    pub replicas: u32,
    /// GPUs of one pipeline stage of one replica.
    pub tp: u32,
    /// Groups of ranks that each hold different requests in attention; divides `tp`.
    pub attention_dp: u32,
    /// Ranks that share the KV cache of a request token by token; divides `attention_tp`.
    pub dcp: u32,
    /// Ranks that hold different experts; divides `tp`.
    pub ep: u32,
    /// Pipeline stages.
    pub pp: u32,
    /// Nodes that one replica spans.
    pub nodes: u32,
}

impl Layout {
    /// Ranks that split the heads of one request: `tp / attention_dp`.
    pub fn attention_tp(&self) -> u32 {
        self.tp / self.attention_dp.max(1)
    }

    /// Ranks that split one expert: `tp / ep`.
    pub fn moe_tp(&self) -> u32 {
        self.tp / self.ep.max(1)
    }

    /// GPUs in all.
    pub fn gpus(&self) -> u32 {
        // Sizes of a file may be anything; no product of them is a panic.
        self.replicas
            .saturating_mul(self.tp)
            .saturating_mul(self.pp)
    }
}
