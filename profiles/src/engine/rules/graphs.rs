//! How CUDA graphs are captured and picked.

use serde::{Deserialize, Serialize};

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
