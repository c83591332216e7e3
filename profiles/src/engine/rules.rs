//! The kinds of rule that decide how an engine behaves, with their parameters as data.
//!
//! Each kind is read by one function of the planner. A profile names, for every range of versions,
//! which kind holds and with which numbers; nothing else in the project asks which engine it is.

use crate::dtype::Dtype;
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

/// How CUDA graphs are captured and picked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphRule {
    /// What a captured size counts.
    pub unit: GraphUnit,
    /// The default list for plain decode, in order; cut at the largest size.
    pub plain: Vec<Span>,
    /// The default list with speculative decoding.
    pub speculative: Vec<Span>,
    /// The largest default size.
    pub largest: LargestGraph,
    /// The largest size joins the list even where the steps miss it.
    pub append_largest: bool,
    /// Sizes that survive alignment.
    pub alignment: GraphAlignment,
    /// What the request pool does to the list.
    pub pool: PoolCap,
    /// One rank that cannot replay sends every rank to eager.
    pub unanimous: bool,
    /// A rank in prefill sends the decode of every rank to eager.
    pub prefill_blocks_decode: bool,
    /// Prefill graphs; none where the version has none.
    #[serde(default)]
    pub prefill: Option<PrefillGraphs>,
}

/// What a captured graph size counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GraphUnit {
    /// Requests of one attention-DP rank.
    RequestsPerRank,
    /// Requests of all attention-DP ranks together (SGLang before PR #8278).
    RequestsOfAllRanks,
    /// Tokens of one engine (one attention-DP rank).
    Tokens,
}

/// `first, first + step, …` up to `last`; without `last`, up to the largest size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Span {
    /// First size.
    pub first: u32,
    /// Last size, included when the steps reach it.
    #[serde(default)]
    pub last: Option<u32>,
    /// Distance between sizes.
    pub step: u32,
}

/// How the largest default size is found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum LargestGraph {
    /// From the GPU memory, by the size table (SGLang).
    ByMemory {
        /// A smaller `max_running_requests` (the global number) lowers it.
        capped_by_running: bool,
    },
    /// `factor · max_num_seqs · query length`, capped (vLLM).
    ByRequests {
        /// Multiplier on the request limit.
        factor: u32,
        /// Cap, tokens.
        cap: u32,
        /// Cap on GPUs of compute capability 10.x, tokens.
        cap_sm100: u32,
        /// The query length of speculative decoding multiplies the request limit.
        query_length: bool,
        /// The token budget of a step joins the list when it is small enough.
        append_token_budget: bool,
        /// Sizes that a uniform decode batch meets join the list (request counts times the query
        /// length, or the request limit).
        uniform_decode_sizes: bool,
    },
    /// The largest batch of the plan (our own executor).
    Planned,
}

/// Which sizes survive alignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GraphAlignment {
    /// All.
    None,
    /// Multiples of attention TP (twice that under two-batch overlap), counted in requests.
    RequestsToAttentionTp,
    /// The same, counted in tokens: requests times the captured width.
    TokensToAttentionTp,
    /// Multiples of the query length of speculative decoding.
    QueryLength,
}

/// What the pool of running requests does to the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolCap {
    /// Nothing.
    None,
    /// Larger sizes go; the pool size joins, then alignment may drop it.
    Exact,
    /// The same with the pool size rounded up to the alignment first.
    AlignedUp,
}

/// Graphs of prefill, by token count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefillGraphs {
    /// Buckets, tokens; cut at the largest.
    pub buckets: Vec<Span>,
    /// Largest bucket of MLA models, tokens; other models go to the chunk size.
    pub mla_largest: u32,
    /// On without being asked for.
    pub default_on: bool,
    /// Off with decode context parallelism.
    pub off_with_dcp: bool,
    /// Off with pipeline stages.
    pub off_with_pp: bool,
}

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

/// How requests become steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerRule {
    /// What shares a step.
    pub batching: Batching,
    /// The chunk size on the command line is divided by attention DP.
    pub chunk_divided_by_attention_dp: bool,
    /// What the request limit on the command line counts.
    pub requests: RequestLimit,
    /// The CPU prepares the next step while the GPU runs this one, by default.
    pub overlap: bool,
    /// Pipeline stages turn that off.
    pub overlap_off_with_pp: bool,
    /// Steps that prompts wait, at most, until every attention-DP rank has one to prefill, as the
    /// launch command sets it; 0 where a rank prefills as soon as it can.
    #[serde(default)]
    pub context_balance_steps: u32,
    /// Decode steps between two looks for new requests, as the launch command sets them without
    /// attention DP; the last entry that holds counts, and none means every step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub receive: Vec<Receive>,
}

/// How often a scheduler looks for new requests while it decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receive {
    /// On GPUs of this compute capability (times ten) or later.
    pub sm: u16,
    /// With so many clients or more.
    pub clients: u32,
    /// Decode steps from one look to the next.
    pub steps: u32,
}

impl SchedulerRule {
    /// Decode steps between two looks for new requests, at least 1.
    pub fn receive_interval(&self, sm: u16, clients: f64, attention_dp: u32) -> u32 {
        let holds = |entry: &&Receive| sm >= entry.sm && clients >= f64::from(entry.clients);
        match self.receive.iter().rfind(holds) {
            Some(entry) if attention_dp <= 1 => entry.steps.max(1),
            _ => 1,
        }
    }
}

/// What shares a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Batching {
    /// A step is prefill or decode; waiting prefill goes first (SGLang).
    PrefillFirst,
    /// A step holds every decode and fills up with prefill chunks (vLLM, TensorRT-LLM).
    Mixed,
}

/// What the limit of running requests counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestLimit {
    /// All requests of the server; divided by attention DP.
    Server,
    /// Requests of one engine: one attention-DP rank.
    Engine,
}

/// The exchange of batch shapes between data-parallel ranks before each step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SyncRule {
    /// Every rank of the stage gathers a row from every other.
    AllGather {
        /// Integers of a row.
        fields: u32,
        /// Bytes of an integer.
        field_bytes: u32,
        /// Over the device group by default; otherwise over gloo on the CPU.
        device: bool,
        /// More than two ranks gather to one and broadcast, on the CPU path.
        tree: bool,
    },
    /// Data-parallel ranks sum a tensor of `fields` rows with one column a rank.
    AllReduce {
        /// Integers for each rank.
        fields: u32,
        /// Integers besides them.
        extra: u32,
        /// Bytes of an integer.
        field_bytes: u32,
        /// Over the device group by default.
        device: bool,
    },
    /// The single-process CPU path has nothing to exchange (our own executor exchanges shapes with
    /// the plan).
    None,
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

/// The kernels that an engine launches, where they are known one by one: those between the products of
/// a layer, each a small memory-bound kernel, and how many an attention and a layer's experts are.
/// Engines without the rule have the usual numbers, and the fit of their overheads what is around them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelRule {
    /// Between the projection of grouped queries and their attention: norms, rotary embedding, cache
    /// write.
    pub gqa: u32,
    /// The same in latent attention, its compressions and expansions being products.
    pub mla: u32,
    /// Choosing experts from the router's logits.
    pub route: u32,
    /// Placing rows before a gather over DP ranks, and taking them back after the block, together.
    pub gather: u32,
    /// One attention.
    pub attention: u32,
    /// The routed experts of a layer.
    pub experts: u32,
    /// A pass beside its layers: the residual stream in and out, the plan of attention.
    pub pass: u32,
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
}

impl ExpertExchange {
    /// The all-to-all backend that is planned and launched: DeepEP, where the version has it.
    pub fn all_to_all(&self) -> Option<&str> {
        let found = self.backends.iter().find(|name| name.starts_with("deepep"));
        found.map(String::as_str)
    }
}
