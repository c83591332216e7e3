//! What a prediction looks like: plain data, in the shape of parplan's documented JSON.

use crate::layout::Layout;
use crate::volume::{Call, Exchange};
use parplan_profiles::Dtype;
use serde::{Deserialize, Serialize};

/// A predicted quantity with its 90 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Predicted {
    /// Expected value.
    pub value: f64,
    /// 5th percentile.
    pub low: f64,
    /// 95th percentile.
    pub high: f64,
}

impl Predicted {
    /// Standard normal 95th percentile: half of a two-sided 90 % interval.
    const Z90: f64 = 1.6449;

    /// A value whose logarithm has the standard deviation `sigma`.
    pub fn log_normal(value: f64, sigma: f64) -> Predicted {
        let factor = (Self::Z90 * sigma).exp();
        Predicted {
            value,
            low: value / factor,
            high: value * factor,
        }
    }

    /// A rate that arrivals set: no more than `value` comes, and less gets through only where `most`,
    /// whose logarithm has the standard deviation `sigma`, is below it.
    pub fn arriving(value: f64, most: f64, sigma: f64) -> Predicted {
        Predicted {
            value,
            low: Predicted::log_normal(most, sigma).low.min(value),
            high: value,
        }
    }

    /// The same, in other units.
    pub fn scaled(self, factor: f64) -> Predicted {
        Predicted {
            value: self.value * factor,
            low: self.low * factor,
            high: self.high * factor,
        }
    }

    /// The reciprocal quantity times `factor` (a rate from a time).
    pub fn inverse(self, factor: f64) -> Predicted {
        Predicted {
            value: factor / self.value,
            low: factor / self.high,
            high: factor / self.low,
        }
    }
}

/// What is decided beside the layout.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// The split.
    pub layout: Layout,
    /// KV cache format.
    pub kv_dtype: Dtype,
    /// Decode runs from CUDA graphs.
    pub cuda_graphs: bool,
    /// Collective buffers live in symmetric memory.
    pub symmetric_memory: bool,
    /// Drafted tokens a step; 0 without speculation.
    pub speculative_steps: u32,
    /// Expert all-to-all instead of gather and reduce.
    pub expert_all_to_all: bool,
}

/// Predicted service of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Performance {
    /// Mean time of an output token after the first, ms; none where a request has one output token.
    #[serde(default)]
    pub tpot_ms: Option<Predicted>,
    /// Mean time to the first token, ms.
    pub ttft_ms: Predicted,
    /// Output tokens a second, divided by all GPUs.
    pub output_tokens_per_s_per_gpu: Predicted,
    /// Output tokens a second of everything.
    pub output_tokens_per_s: Predicted,
    /// Finished requests a second of everything.
    pub requests_per_s: Predicted,
    /// One decode step of the fullest rank, ms.
    pub decode_step_ms: Predicted,
    /// One prefill pass of the planned chunk, ms.
    pub prefill_pass_ms: Predicted,
    /// Part of the TTFT spent waiting: for a place in the batch, and behind the first burst.
    pub ttft_waiting_ms: f64,
    /// Requests being decoded, an attention-DP rank, on average.
    pub decoding_per_rank: f64,
    /// Share of the time that prefill holds decoding back.
    pub prefill_load: f64,
}

/// Memory of one rank, bytes. The parts sum to `total`, the whole card.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryMap {
    /// Weights, MTP layers included where speculation runs them.
    pub weights: f64,
    /// KV cache and recurrent state.
    pub kv_cache: f64,
    /// Gathered hidden states of DP attention in the largest eager step.
    pub gathered_buffers: f64,
    /// Logits of the largest step.
    pub logits: f64,
    /// Activations of the largest prefill pass.
    pub activations: f64,
    /// Captured CUDA graphs.
    pub cuda_graphs: f64,
    /// Symmetric-memory pool.
    pub symmetric_pool: f64,
    /// NCCL's own buffers.
    pub nccl: f64,
    /// CUDA context and what the driver keeps.
    pub context: f64,
    /// Request-to-token tables.
    pub request_tables: f64,
    /// Left free by the engine's rule.
    pub headroom: f64,
    /// The card.
    pub total: f64,
}

impl MemoryMap {
    /// A map of nothing.
    pub const fn empty() -> MemoryMap {
        MemoryMap {
            weights: 0.0,
            kv_cache: 0.0,
            gathered_buffers: 0.0,
            logits: 0.0,
            activations: 0.0,
            cuda_graphs: 0.0,
            symmetric_pool: 0.0,
            nccl: 0.0,
            context: 0.0,
            request_tables: 0.0,
            headroom: 0.0,
            total: 0.0,
        }
    }

    /// Everything but the headroom and the total.
    pub fn used(&self) -> f64 {
        self.weights
            + self.kv_cache
            + self.gathered_buffers
            + self.logits
            + self.activations
            + self.cuda_graphs
            + self.symmetric_pool
            + self.nccl
            + self.context
            + self.request_tables
    }

    /// The parts by name, in the order of the map.
    pub fn parts(&self) -> [(&'static str, f64); 11] {
        [
            ("weights", self.weights),
            ("kv_cache", self.kv_cache),
            ("gathered_buffers", self.gathered_buffers),
            ("logits", self.logits),
            ("activations", self.activations),
            ("cuda_graphs", self.cuda_graphs),
            ("symmetric_pool", self.symmetric_pool),
            ("nccl", self.nccl),
            ("context", self.context),
            ("request_tables", self.request_tables),
            ("headroom", self.headroom),
        ]
    }
}

/// One term of a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Term {
    /// What runs, for example `attention`.
    pub name: String,
    /// How often in the step.
    pub count: f64,
    /// All of them, microseconds.
    pub us: f64,
    /// What the GPU could do at best, microseconds; none for host time.
    pub roofline_us: Option<f64>,
    /// 90 % interval of `us`.
    pub low_us: f64,
    /// 90 % interval of `us`.
    pub high_us: f64,
    /// Implementation that the figure describes, for example `nccl`, `sglang custom all-reduce`.
    pub implementation: String,
    /// Where the figure comes from.
    pub source: String,
}

/// A step, term by term.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Breakdown {
    /// What is stepped, for example `decode, 64 requests a rank at 2048 tokens`.
    pub title: String,
    /// Its terms, in order of execution.
    pub terms: Vec<Term>,
    /// Their sum, microseconds.
    pub total_us: f64,
}

/// Collectives of one layer of a kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerVolume {
    /// How many such layers a rank runs.
    pub layers: f64,
    /// Which layers, for example `mla + moe`.
    pub layer: String,
    /// The calls.
    pub calls: Vec<Call>,
}

/// CUDA graphs of a configuration.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GraphPlan {
    /// Sizes to capture: what the launch command asks for.
    pub batch_sizes: Vec<u32>,
    /// What a size counts: `requests_per_rank` or `tokens`.
    pub unit: &'static str,
    /// The engine's own list, had it not been told.
    pub engine_default: Vec<u32>,
    /// The bucket that the planned decode batch replays; none when it runs eagerly.
    pub bucket: Option<u32>,
    /// Padded share of that bucket.
    pub waste: f64,
    /// Why decode would run eagerly.
    pub eager_reason: Option<String>,
}

/// One fixed configuration and all that is predicted of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// What was chosen; its parts are reported on their own.
    #[serde(skip)]
    pub choice: Choice,
    /// The split, with its derived sizes.
    pub layout: LayoutReport,
    /// Service.
    pub predicted: Performance,
    /// Memory of one rank.
    pub memory_bytes: MemoryMap,
    /// Cache bytes of a logical token on one rank, sliding windows left out.
    pub kv_bytes_per_token_per_rank: f64,
    /// Copies of a token's KV across the ranks that share a request; 1 is none redundant.
    pub kv_redundancy: f64,
    /// KV tokens of one attention-DP rank (all DCP shares together).
    pub max_kv_tokens: f64,
    /// Longest single request, tokens: what the KV cache holds, and no more than the engine takes.
    pub max_request_tokens: f64,
    /// `max_len`, `sum_len`, `exact`, or `none` without DP attention, in the planned decode step.
    pub padding_mode: &'static str,
    /// How decode rows reach the feed-forward block.
    pub exchange: Exchange,
    /// CUDA graphs.
    pub graphs: GraphPlan,
    /// Same as `graphs.batch_sizes`.
    pub graph_batch_sizes: Vec<u32>,
    /// Requests that the whole deployment runs at once, at most.
    pub max_running_requests: u32,
    /// Requests that KV memory holds at the planned lengths, whole deployment.
    pub kv_concurrency: f64,
    /// Fraction of GPU memory that the launch command gives the engine.
    pub memory_fraction: f64,
    /// Decode steps between two looks for new requests.
    pub receive_interval: u32,
    /// Prefill tokens of one pass, as the launch command gives them.
    pub chunk_tokens: u32,
    /// What someone should know about this configuration.
    pub warnings: Vec<String>,
}

/// A layout as reported, derived sizes included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LayoutReport {
    /// Independent copies.
    pub replicas: u32,
    /// GPUs of one stage.
    pub tp: u32,
    /// Attention-DP ranks.
    pub attention_dp: u32,
    /// `tp / attention_dp`.
    pub attention_tp: u32,
    /// DCP ranks.
    pub dcp: u32,
    /// Expert-parallel ranks.
    pub ep: u32,
    /// `tp / ep`.
    pub moe_tp: u32,
    /// Pipeline stages.
    pub pp: u32,
    /// Nodes of one replica.
    pub nodes: u32,
    /// GPUs in all.
    pub gpus: u32,
}

impl From<Layout> for LayoutReport {
    fn from(l: Layout) -> Self {
        LayoutReport {
            replicas: l.replicas,
            tp: l.tp,
            attention_dp: l.attention_dp,
            attention_tp: l.attention_tp(),
            dcp: l.dcp,
            ep: l.ep,
            moe_tp: l.moe_tp(),
            pp: l.pp,
            nodes: l.nodes,
            gpus: l.gpus(),
        }
    }
}
