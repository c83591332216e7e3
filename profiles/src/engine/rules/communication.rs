//! How rows, partial results and experts' tokens move between ranks.

use crate::dtype::Dtype;
use serde::{Deserialize, Serialize};

/// How the token rows of data-parallel ranks are brought together before a feed-forward block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum PaddingRule {
    /// Rows of every rank in one buffer of the summed length, by all-reduce (SGLang before the
    /// padding modes).
    SumOnly,
    /// The cheaper of max_len and sum_len by message size, with exceptions (SGLang).
    GatherCost(GatherCost),
    /// Every rank is padded to the longest where a graph runs, and exact sizes move otherwise
    /// (vLLM).
    GraphMax,
    /// Exact sizes always: an all-gather with a size for each rank (TensorRT-LLM).
    Exact,
    /// What the plan says (our own executor).
    Planned,
}

/// Parameters of [`PaddingRule::GatherCost`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatherCost {
    /// A rank in prefill or extend forces sum_len.
    pub extend_forces_sum: bool,
    /// The extend clause spares a gather over a single rank.
    pub extend_needs_width: bool,
    /// At equal cost (twice the sum equals longest times ranks) max_len wins.
    pub tie_is_max: bool,
    /// Expert all-to-all backends that always need max_len.
    pub max_len_backends: Vec<String>,
    /// Backends that need max_len only when an environment variable asks for it.
    pub max_len_on_request: Vec<String>,
    /// Hybrid state-space models use max_len in prefill when a rank is idle.
    pub idle_hybrid_is_max: bool,
    /// Decode uses sum_len whenever the summed buffer fits the custom all-reduce, bytes.
    pub custom_all_reduce_bytes: Option<u64>,
    /// A captured prefill graph forces max_len, every rank at one bucket.
    pub prefill_graph_is_max: bool,
}

/// Decode context parallelism.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DcpRule {
    /// Ways to merge partial attention.
    pub merges: Vec<DcpMerge>,
    /// The way used when none is named.
    pub default_merge: DcpMerge,
    /// Grouped-query models: TP must exceed the KV heads strictly.
    pub strict_kv_heads: bool,
    /// Query heads of a KV head must divide by DCP.
    pub group_divides: bool,
    /// The query projection can be replicated instead of gathered.
    pub replicate_q: bool,
    /// Merges under which it can.
    pub replicate_q_merges: Vec<DcpMerge>,
    /// Bytes of an element of partial output that MLA layers reduce-scatter.
    pub mla_merge_bytes: u32,
    /// Bytes of an element of partial output that grouped-query layers exchange.
    pub gqa_merge_bytes: u32,
    /// Grouped-query layers all-reduce and slice instead of reduce-scatter.
    pub gqa_all_reduce: bool,
    /// Sliding-window layers work.
    pub sliding_window: bool,
    /// Attention sinks work.
    pub sinks: bool,
    /// A quantised KV cache of less than 8 bits works.
    pub four_bit_kv: bool,
    /// Speculative decoding works.
    pub speculation: bool,
    /// An all-to-all merge sends the log-sum-exps by a collective of their own.
    #[serde(default)]
    pub lse_apart: bool,
}

/// Ways to merge the partial attention of a DCP group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DcpMerge {
    /// All-gather of log-sum-exps, then reduce-scatter of corrected outputs.
    AgRs,
    /// One all-to-all of outputs with their log-sum-exps.
    A2a,
    /// The same by FlashInfer over multi-node NVLink.
    FiA2a,
}

impl DcpMerge {
    /// The spelling on an engine's command line.
    pub const fn name(self) -> &'static str {
        match self {
            DcpMerge::AgRs => "ag_rs",
            DcpMerge::A2a => "a2a",
            DcpMerge::FiA2a => "fi_a2a",
        }
    }
}

/// Which all-reduce an engine launches; the first candidate that fits is taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllReduceRule {
    /// In the engine's own order; NCCL when none fits.
    pub candidates: Vec<AllReduceCandidate>,
}

/// One implementation and where it is used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllReduceCandidate {
    /// What runs.
    pub implementation: AllReduceKind,
    /// World sizes.
    pub worlds: Vec<u32>,
    /// Compute capabilities times ten (90, 100, 103); empty for any.
    #[serde(default)]
    pub sm: Vec<u16>,
    /// Only in graphs (`true`) or only eager (`false`).
    #[serde(default)]
    pub graph: Option<bool>,
    /// Message sizes above this, bytes.
    #[serde(default)]
    pub above: u64,
    /// Message sizes up to this, bytes.
    pub up_to: u64,
    /// Needs in-switch multicast.
    #[serde(default)]
    pub multicast: bool,
    /// Needs the symmetric-memory option.
    #[serde(default)]
    pub symmetric: bool,
}

/// Implementations of all-reduce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AllReduceKind {
    /// NCCL, whatever it picks.
    Nccl,
    /// NCCL with both buffers in a symmetric window.
    NcclSymmetric,
    /// Peer writes, every rank reduces everything, one kernel.
    OneShot,
    /// Reduce-scatter and all-gather over peer pointers, one kernel.
    TwoShot,
    /// In-switch reduction over a multicast address.
    Multicast,
}

/// What the symmetric-memory option of an engine does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SymmetricRule {
    /// Memory taken at the start, MiB, outside the engine's own reserve.
    pub prealloc_mib: u64,
    /// All-gather and reduce-scatter use it too; otherwise all-reduce alone.
    pub gathers: bool,
    /// Inputs and outputs are copied through registered buffers.
    pub copies: bool,
    /// Data-parallel buffers are registered only under max_len padding.
    pub max_len_only: bool,
    /// The engine turns NVLS on in its own processes.
    pub forces_nvls: bool,
    /// Smallest world size that uses it.
    pub least_world: u32,
}

/// Expert all-to-all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertExchange {
    /// Names that the command line takes.
    pub backends: Vec<String>,
    /// The one used when none is named.
    pub default: String,
    /// DeepEP picks low-latency kernels for decode and normal ones for prefill by itself.
    pub deepep_auto: bool,
    /// Tokens a rank may dispatch in the low-latency kernels.
    pub low_latency_tokens: u32,
    /// Formats of routed experts that no all-to-all runs.
    #[serde(default)]
    pub gathered_formats: Vec<Dtype>,
    /// Backends under which data-parallel ranks replay the same graph although nothing is gathered.
    #[serde(default)]
    pub same_graph: Vec<String>,
    /// Lowest compute capability times ten of GPUs that the planned all-to-all runs on; 0 for any
    /// device. DeepEP's low-latency and internode kernels are of Hopper and later.
    #[serde(default)]
    pub all_to_all_sm: u16,
    /// Most tokens of a captured step whose shared experts run on a stream of their own beside the routed
    /// ones; 0 where they run after them.
    #[serde(default)]
    pub shared_beside_tokens: u32,
}

impl ExpertExchange {
    /// The all-to-all backend that is planned and launched: DeepEP, where the version has it.
    pub fn all_to_all(&self) -> Option<&str> {
        let found = self.backends.iter().find(|name| name.starts_with("deepep"));
        found.map(String::as_str)
    }
}
