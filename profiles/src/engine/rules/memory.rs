//! Chunk and graph sizes by GPU memory, and what is left free of weights and KV cache.

use serde::{Deserialize, Serialize};

/// Sizes that an engine derives from the GPU's memory; the first step that fits holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SizeDefaults {
    /// Steps in ascending order of memory.
    pub steps: Vec<SizeStep>,
    /// KV page, tokens.
    pub page: u32,
}

/// One step of [`SizeDefaults`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SizeStep {
    /// GPU memory below this many MiB; none for all the rest.
    #[serde(default)]
    pub below_mib: Option<u64>,
    /// Only for GPUs whose name contains one of these.
    #[serde(default)]
    pub gpus: Vec<String>,
    /// Tokens of a step or a prefill chunk, before any division by attention DP.
    pub tokens: u32,
    /// Requests that may run, in the unit of the scheduler rule; none where it follows from the KV
    /// cache.
    #[serde(default)]
    pub requests: Option<u32>,
    /// Largest graph below 4 GPUs of TP, where the graph rule reads it here.
    #[serde(default)]
    pub graph_small_tp: Option<u32>,
    /// Largest graph from 4 GPUs of TP.
    #[serde(default)]
    pub graph: Option<u32>,
}

/// How much GPU memory the engine leaves for weights and KV cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum MemoryRule {
    /// A reserve estimated from chunk, graphs and parallel sizes (SGLang from 0.5.3).
    Reserve(ReserveRule),
    /// A reserve by GPU memory and parallel size (SGLang before 0.5.3).
    ReserveSteps(ReserveSteps),
    /// A fraction of the card for everything; activations and graphs are profiled within it (vLLM).
    Utilization {
        /// Fraction of the card used when none is given.
        default: f64,
        /// The graphs' own memory is estimated and kept free of KV cache.
        estimates_graphs: bool,
    },
    /// A fraction of what is free after the weights and a profiled step (TensorRT-LLM).
    FreeFraction {
        /// Fraction used when none is given.
        default: f64,
    },
    /// Exactly what the plan says (our own executor).
    Planned,
}

/// The terms of SGLang's reserve, MiB.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReserveRule {
    /// Constant part.
    pub base_mib: f64,
    /// For each token of the prefill chunk.
    pub token_mib: f64,
    /// Smallest chunk that is counted, tokens.
    pub least_tokens: u32,
    /// For each GPU of TP times PP.
    pub gpu_mib: f64,
    /// For each unit of the largest decode graph.
    pub graph_mib: f64,
    /// Switching decode graphs off drops the graph term.
    pub graph_off_is_free: bool,
    /// With attention DP, for each unit of the largest graph and each DP rank.
    pub dp_graph_mib: f64,
    /// Added to it when the largest graph is above [`Self::dp_graph_large`].
    pub dp_graph_large_mib: f64,
    /// See [`Self::dp_graph_large_mib`].
    pub dp_graph_large: u32,
    /// Prefill graphs.
    pub prefill: PrefillReserve,
    /// At least this much on large GPUs.
    pub floor_mib: f64,
    /// GPUs above this many MiB are large.
    pub floor_above_mib: u64,
    /// After the floor: a standalone draft model.
    pub standalone_mib: f64,
    /// After the floor: an EAGLE or MTP draft.
    pub eagle_mib: f64,
    /// Breakable prefill graphs with DeepEP.
    pub deepep_prefill_mib: f64,
    /// After the floor: DeepEP buffers in decode graphs.
    pub deepep_decode_mib: f64,
    /// The fraction where the GPU memory is unknown.
    pub unknown: f64,
}

/// What prefill graphs add to the reserve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum PrefillReserve {
    /// Nothing.
    None,
    /// A share of the largest bucket, after the floor.
    LargestAfterFloor {
        /// MiB for each token of the largest bucket.
        token_mib: f64,
    },
    /// So much a bucket, before the floor.
    Buckets {
        /// MiB for each bucket.
        bucket_mib: f64,
        /// MiB for MLA models instead, whatever the buckets; none where they count alike.
        #[serde(default)]
        mla_mib: Option<f64>,
    },
}

/// The reserve of SGLang before 0.5.3.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReserveSteps {
    /// Steps in ascending order of memory.
    pub steps: Vec<ReserveStep>,
    /// Any draft model but a standalone one, MiB.
    pub speculation_mib: f64,
    /// A standalone draft model, MiB.
    pub standalone_mib: f64,
    /// Attention DP, MiB.
    pub attention_dp_mib: f64,
    /// The fraction where the GPU memory is unknown.
    pub unknown: f64,
}

/// How the cache memory of a model with recurrent layers is divided before the first request.
///
/// Fixed at start: what one side does not use the other cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatePoolRule {
    /// Memory for recurrent states over memory for KV rows.
    pub over_kv: f64,
    /// States that the engine keeps for one running request: its own, those that the prefix cache holds for
    /// it, and those that it is about to store there.
    pub slots_per_request: u32,
}

/// One step of [`ReserveSteps`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReserveStep {
    /// GPU memory below this many MiB; none for all the rest.
    #[serde(default)]
    pub below_mib: Option<u64>,
    /// Constant part, MiB.
    pub base_mib: f64,
    /// For each GPU of TP times PP, MiB.
    pub gpu_mib: f64,
}
