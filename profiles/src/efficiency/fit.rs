//! The parameters of each class of operation. Times are microseconds; fractions are of the
//! spec-sheet figure and lie in (0, 1]. The formulas are in the planner's `cost` module.

use crate::dtype::{Dtype, TensorRate};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where a fit comes from and how much it leaves unexplained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Note {
    /// Standard deviation of ln(predicted / measured) that remained.
    pub sigma: f64,
    /// Rows that were fitted; 0 when the figures were carried over from another class.
    pub samples: u32,
    /// The table and its version, or what the figures were carried over from.
    pub source: String,
    /// For a collective whose figures were measured at some rank counts: which, and how much less
    /// sure they are at others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carried: Option<Carried>,
    /// Measured on the machine that is planned for, rather than on others of its kind.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub here: bool,
}

/// Figures of a collective that were measured at some rank counts only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Carried {
    /// The rank counts that were measured.
    pub ranks: Vec<u32>,
    /// What is added to the spread at any other, in quadrature.
    pub sigma: f64,
}

/// A dense or batched matrix product.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GemmFit {
    /// Launch and drain, µs.
    pub base_us: f64,
    /// Time to walk down K in one tile, µs per 1000 of K, at one row.
    pub depth_us: f64,
    /// What is added to `depth_us` as the tile grows to 256 rows, µs per 1000 of K.
    pub depth_tile_us: f64,
    /// Fraction of the peak memory bandwidth.
    pub memory: f64,
    /// Fraction of the peak tensor rate.
    pub compute: f64,
    /// The products that the tensor cores run.
    pub rate: TensorRate,
    /// Passes over the bf16 output that loads and products do not hide.
    pub output_passes: f64,
    /// Bytes an activation element takes when the product reads it.
    pub activation_bytes: f64,
    /// The activation is quantised by a kernel of its own, which these figures leave out.
    pub separate_quantise: bool,
    /// Provenance.
    pub note: Note,
}

/// Decode attention: few query tokens, a long cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecodeFit {
    /// Launch and drain, µs.
    pub base_us: f64,
    /// Fixed work of one (request, KV head) or, for MLA, (request, query head), SM·µs.
    pub item_us: f64,
    /// What splitting a long context and merging the parts adds at most, µs.
    pub split_us: f64,
    /// Context at which half of `split_us` is reached, tokens.
    pub split_context: f64,
    /// Fraction of the peak memory bandwidth.
    pub memory: f64,
    /// Fraction of the peak tensor rate.
    pub compute: f64,
    /// The products that the tensor cores run.
    pub rate: TensorRate,
    /// Rows that the query heads sharing a cache are padded to.
    pub pad_rows: f64,
    /// Query rows of a tile that one block walks with, where the kernel deals equal chunks of all tiles'
    /// keys to the SMs: beginning and ending a tile is then seen once however few there are, and what is
    /// cut less the more tiles there are. 0 for kernels that are not known so well.
    #[serde(default)]
    pub tile_rows: f64,
    /// Provenance.
    pub note: Note,
}

/// Prefill attention: many query tokens, causal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefillFit {
    /// Launch and drain, µs.
    pub base_us: f64,
    /// Fixed work of one (head, 128 query rows), SM·µs.
    pub item_us: f64,
    /// Time of one tile to walk the keys, µs per 1000 keys at head width 128.
    pub depth_us: f64,
    /// Fraction of the peak memory bandwidth.
    pub memory: f64,
    /// Fraction of the peak tensor rate at long sequences and head width 128.
    pub compute: f64,
    /// How the rate falls with narrow heads: width · (128 + x) / (128 · (width + x)).
    pub width_half: f64,
    /// The products that the tensor cores run.
    pub rate: TensorRate,
    /// Provenance.
    pub note: Note,
}

/// The kernels of DeepSeek sparse attention.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparseFit {
    /// Indexer logits in decode.
    pub logits_decode: DecodeFit,
    /// Indexer logits in prefill.
    pub logits_prefill: PrefillFit,
    /// Picking the top-k: launch, µs.
    pub topk_base_us: f64,
    /// Fraction of the memory bandwidth that top-k reads its logits at.
    pub topk_memory: f64,
    /// Fixed work of one row of top-k, SM·µs.
    pub topk_row_us: f64,
    /// Time of one row to walk its logits, µs per 1000 of them.
    pub topk_depth_us: f64,
    /// Spread and source of the top-k figures.
    pub topk_note: Note,
    /// Sparse attention over the picked tokens, decode.
    pub attention_decode: BTreeMap<Dtype, DecodeFit>,
    /// Sparse attention over the picked tokens, prefill.
    pub attention_prefill: BTreeMap<Dtype, PrefillFit>,
}

/// A recurrent mixer: convolution, state update, gates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScanFit {
    /// All kernels of a decode step, µs.
    pub decode_base_us: f64,
    /// Fraction of the memory bandwidth at which decode reads and writes the state.
    pub decode_memory: f64,
    /// All kernels of a prefill, µs.
    pub prefill_base_us: f64,
    /// Serial part of one sequence, µs per 1000 tokens.
    pub prefill_depth_us: f64,
    /// Fraction of the memory bandwidth in prefill.
    pub prefill_memory: f64,
    /// Fraction of the bf16 tensor rate in prefill.
    pub prefill_compute: f64,
    /// Provenance, decode.
    pub decode_note: Note,
    /// Provenance, prefill.
    pub prefill_note: Note,
}

/// Routed experts: routing, permutation, two grouped products, activation, reduction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeFit {
    /// All launches, µs.
    pub base_us: f64,
    /// Added for each expert with work, µs per 1000 experts.
    pub expert_us: f64,
    /// Added for each expert on the rank, with or without work, µs per 1000 experts.
    pub local_expert_us: f64,
    /// Fraction of the peak memory bandwidth at which expert weights are read.
    pub memory: f64,
    /// Fraction of the peak tensor rate.
    pub compute: f64,
    /// Rows that each expert with work is padded by.
    pub pad_rows: f64,
    /// Passes over the (token, expert) rows of the hidden width, in bf16.
    pub hidden_passes: f64,
    /// Passes over the (token, expert) rows of the intermediate width, in bf16.
    pub intermediate_passes: f64,
    /// Passes over rows of the hidden width that belong to experts of other ranks, where tokens
    /// are gathered rather than dispatched.
    pub remote_passes: f64,
    /// Added where only a part of the experts is on this rank and tokens are gathered, µs.
    pub remote_us: f64,
    /// The products that the tensor cores run.
    pub rate: TensorRate,
    /// Provenance.
    pub note: Note,
}

/// Memory-bound kernels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ElementwiseFit {
    /// One kernel in a CUDA graph, µs.
    pub kernel_us: f64,
    /// Fraction of the peak memory bandwidth.
    pub memory: f64,
    /// Provenance.
    pub note: Note,
}

/// Collectives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectiveFit {
    /// NCCL all-gather (total bytes of the gathered buffer).
    pub all_gather: RingFit,
    /// NCCL reduce-scatter (total bytes of the input buffer).
    pub reduce_scatter: RingFit,
    /// NCCL all-reduce (bytes of the buffer).
    pub all_reduce: RingFit,
    /// NCCL all-to-all (bytes that a rank holds).
    pub all_to_all: RingFit,
    /// NCCL's symmetric kernels on registered windows.
    pub symmetric: RingFit,
    /// The all-gather among them, where it was measured on its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symmetric_all_gather: Option<RingFit>,
    /// The reduce-scatter among them, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symmetric_reduce_scatter: Option<RingFit>,
    /// The all-reduce among them, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symmetric_all_reduce: Option<RingFit>,
    /// Queries of ranks that share a KV cache gathered by the engine's own kernel over peer memory
    /// (total bytes of the gathered buffer), where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_gather: Option<RingFit>,
    /// Their partial outputs merged likewise (bytes that a rank holds, as of an all-to-all).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_merge: Option<RingFit>,
    /// The engine's own one-shot and two-shot all-reduce.
    pub custom_all_reduce: AllReduceFit,
    /// The same collectives between nodes and over PCIe.
    pub network: NetworkFit,
}

/// A bandwidth-bound collective with a latency that grows with the ranks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RingFit {
    /// Latency at two ranks, µs.
    pub base_us: f64,
    /// Added latency for each rank beyond two, µs.
    pub rank_us: f64,
    /// Ramp between the latency and the bandwidth regime, µs per √MiB on the wire.
    pub ramp_us: f64,
    /// Fraction of the link bandwidth at 2, 4 and 8 ranks, for the bytes a ring puts on the wire.
    /// May exceed 1 where the switch reduces (NVLink SHARP).
    pub link: [f64; 3],
    /// What an eager launch adds over a CUDA graph, µs.
    pub eager_us: f64,
    /// A kernel of its own for small messages, where there is one: NCCL's symmetric ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_latency: Option<LowLatencyFit>,
    /// Provenance.
    pub note: Note,
}

/// A kernel that sends every word with a flag beside it, and so waits for no barrier.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LowLatencyFit {
    /// Latency at two ranks, µs.
    pub base_us: f64,
    /// Added latency for each rank beyond two, µs.
    pub rank_us: f64,
    /// Ramp between latency and bandwidth, µs per √MiB that a rank receives.
    pub ramp_us: f64,
    /// Fraction of the link bandwidth for the bytes that a rank receives, flags not counted.
    pub link: f64,
}

/// One-shot (every rank reads all) and two-shot (reduce-scatter, all-gather) all-reduce.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllReduceFit {
    /// One-shot latency at two ranks, µs.
    pub one_shot_us: f64,
    /// Two-shot latency at two ranks, µs.
    pub two_shot_us: f64,
    /// Added latency for each rank beyond two, µs.
    pub rank_us: f64,
    /// The same of two-shot, whose two hops wait for every rank twice; as `rank_us` where it
    /// was not told apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub two_shot_rank_us: Option<f64>,
    /// Fraction of the link bandwidth, one-shot.
    pub one_shot_link: f64,
    /// Fraction of the link bandwidth, two-shot.
    pub two_shot_link: f64,
    /// The largest buffer that it takes, bytes; larger ones go to NCCL.
    pub max_bytes: f64,
    /// What an eager launch adds over a CUDA graph, µs.
    pub eager_us: f64,
    /// Provenance.
    pub note: Note,
}

impl AllReduceFit {
    /// Added latency of two-shot for each rank beyond two, µs.
    pub fn two_shot_rank_us(&self) -> f64 {
        self.two_shot_rank_us.unwrap_or(self.rank_us)
    }
}

/// Transfers that leave the NVLink domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkFit {
    /// Latency of one hop between nodes, µs.
    pub hop_us: f64,
    /// Host node that hands a collective of a captured graph to the network threads, microseconds.
    #[serde(default)]
    pub graph_host_us: f64,
    /// Fraction of the network bandwidth.
    pub network: f64,
    /// Latency of a collective over PCIe at two ranks, µs.
    pub pcie_us: f64,
    /// Fraction of the PCIe bandwidth.
    pub pcie: f64,
    /// Provenance.
    pub note: Note,
}

/// Expert dispatch and combine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeepEpFit {
    /// Low-latency dispatch.
    pub low_latency_dispatch: A2aFit,
    /// Low-latency combine.
    pub low_latency_combine: A2aFit,
    /// Normal dispatch.
    pub normal_dispatch: A2aFit,
    /// Normal combine.
    pub normal_combine: A2aFit,
}

/// One direction of an expert all-to-all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct A2aFit {
    /// Launch, layout and barrier inside a node, µs.
    pub base_us: f64,
    /// Added for each further node, µs.
    pub node_us: f64,
    /// Fixed work a (token, expert) row, µs per 1000 rows.
    pub row_us: f64,
    /// Fraction of the NVLink bandwidth.
    pub link: f64,
    /// Fraction of the network bandwidth.
    pub network: f64,
    /// Provenance.
    pub note: Note,
}
