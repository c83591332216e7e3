//! Where a rank's memory goes, byte by byte; the parts sum to the card.

use crate::kv::KvFootprint;
use crate::plan::MemoryMap;
use crate::reserve::{FractionOf, MemoryFraction};
use crate::shard::{Block, Mixer, Shard};
use crate::step::pass::ACTIVATION_BYTES;
use parplan_profiles::engine::rules::StatePoolRule;
use serde::Serialize;

const MIB: f64 = 1024.0 * 1024.0;

/// CUDA context, driver and library state of an engine process: 140.4 GiB of an H200, less 2.0 GiB
/// for the communicators, less the 137.3 GiB that were then free (SGLang's start-up log in
/// sgl-project/sglang#11716, TP8). A device's profile may know its own.
pub(crate) const CONTEXT_BYTES: f64 = 1.1 * 1024.0 * MIB;

/// Communicators of an 8-rank stage (same log: "Init torch distributed ends. mem usage=2.01 GB").
const NCCL_BYTES_AT_8: f64 = 2.0 * 1024.0 * MIB;

/// A captured graph, for each layer: Llama-3.2-1B (16 layers) took 0.21 GiB for 35 graphs
/// (vllm-project/vllm#11349).
pub(crate) const GRAPH_LAYER_BYTES: f64 = 0.21 * 1024.0 * MIB / (35.0 * 16.0);

/// What the communicators of a stage of so many ranks hold on each, bytes.
pub(crate) fn communicators(ranks: f64) -> f64 {
    if ranks > 1.0 {
        NCCL_BYTES_AT_8 * (ranks / 8.0).min(1.0)
    } else {
        0.0
    }
}

/// Rows that decide the transient buffers of a rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Transients {
    /// Prompt tokens of the largest pass, a rank.
    pub prefill_rows: f64,
    /// Rows of all DP ranks in that pass, as the exchange lays them out; 0 where nothing is gathered.
    pub gathered_prefill_rows: f64,
    /// Rows of all DP ranks in the largest decode step; 0 where nothing is gathered.
    pub gathered_decode_rows: f64,
    /// That decode step replays a graph, whose buffers live in the graph's pool.
    pub decode_in_graph: bool,
    /// Requests of the largest decode step, a rank.
    pub decode_requests: f64,
    /// Requests of all DP ranks in it.
    pub decode_requests_all: f64,
    /// Drafted tokens a step; 0 without speculation.
    pub speculative_steps: f64,
    /// Every DP rank computes logits of all ranks' rows (a shared output projection).
    pub shared_head: bool,
    /// Ranks that split the vocabulary.
    pub head_ranks: f64,
}

/// The gathered hidden states of DP attention, rows by cause (SGLang `prepare_mlp_sync_batch`,
/// PR #8277: a graph's buffers are its own, so only eager steps allocate).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct GatheredRows {
    /// The largest prefill pass, always eager.
    pub prefill: f64,
    /// The largest decode step, when it runs eagerly.
    pub decode: f64,
    /// Draft decode, padded to `tokens · (steps + 1)`, when it runs eagerly.
    pub draft: f64,
    /// Rows whose logits are wanted: one a request (draft extend included), not one a token.
    pub logprob: f64,
}

impl GatheredRows {
    /// Rows of each cause under these transients.
    pub fn of(t: &Transients) -> GatheredRows {
        let eager = if t.decode_in_graph { 0.0 } else { 1.0 };
        let gathers = t.gathered_prefill_rows > 0.0;
        GatheredRows {
            prefill: t.gathered_prefill_rows,
            decode: eager * t.gathered_decode_rows,
            draft: if t.speculative_steps > 0.0 {
                eager * t.gathered_decode_rows * (t.speculative_steps + 1.0)
            } else {
                0.0
            },
            logprob: if gathers { t.decode_requests_all } else { 0.0 },
        }
    }

    /// Bytes that live at once: the largest step's buffer, and the logit rows after it.
    pub fn bytes(&self, row_bytes: f64) -> f64 {
        (self.prefill.max(self.decode).max(self.draft) + self.logprob) * row_bytes
    }
}

/// Peak of the activations in a pass of `rows` own rows and `ffn_rows` feed-forward rows: residual
/// stream and its norm, the widest projection, and what the feed-forward block holds at once.
pub fn activation_bytes(shard: &Shard, rows: f64, ffn_rows: f64) -> f64 {
    shard
        .groups
        .iter()
        .map(|group| {
            let mixer = match &group.mixer {
                Mixer::None => 0.0,
                Mixer::Gqa(a) => a.qkv.n + a.out.k,
                Mixer::Mla(a) => a.down.n + a.q_up.n + a.kv_up.n + a.out.k,
                Mixer::Compressed(a) => a.down.n + 2.0 * a.q_up.n + a.out.0.n,
                Mixer::GatedDelta(a) => a.input.n + a.out.k,
                Mixer::Mamba2(a) => a.input.n + a.out.k,
            };
            let ffn = match &group.block {
                Block::None => 0.0,
                Block::Dense { up, down } => up.n + down.k,
                Block::Moe(moe) => {
                    let share = moe.experts_local / f64::from(moe.dims.experts);
                    let routed = f64::from(moe.dims.top_k)
                        * share
                        * (3.0 * moe.intermediate + 2.0 * moe.width);
                    routed + moe.shared.map_or(0.0, |(up, down)| up.n + down.k)
                }
            };
            let stream = 3.0 * shard.hidden * rows;
            (stream + (mixer * rows).max(ffn * ffn_rows)) * ACTIVATION_BYTES
        })
        .fold(0.0, f64::max)
}

/// Everything that a memory map is made from.
#[derive(Debug, Clone, Copy)]
pub struct MemoryInput<'a> {
    /// The card, bytes.
    pub card_bytes: f64,
    /// What an engine process holds of it before it loads anything, bytes.
    pub context_bytes: f64,
    /// The model on one rank.
    pub shard: &'a Shard,
    /// Weight bytes of the rank, MTP included where it runs.
    pub weights: f64,
    /// The engine's fraction.
    pub fraction: MemoryFraction,
    /// Captured sizes.
    pub graphs: usize,
    /// What each of them keeps for a layer, bytes.
    pub graph_layer_bytes: f64,
    /// Rows of the largest captured graph, all DP ranks.
    pub graph_rows: f64,
    /// Rows that decide transient buffers.
    pub transients: Transients,
    /// Feed-forward rows of the largest prefill pass.
    pub prefill_ffn_rows: f64,
    /// Symmetric pool, bytes.
    pub symmetric_bytes: f64,
    /// Request-to-token table: running requests times the longest sequence, int32.
    pub request_table_bytes: f64,
    /// Ranks of a stage.
    pub ranks: f64,
}

/// The map, and what is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemoryResult {
    /// The parts.
    pub map: MemoryMap,
    /// Bytes that the weights alone exceed the engine's share by; 0 where they fit.
    pub missing: f64,
    /// Bytes that everything together exceeds the card by; 0 where it fits.
    pub overcommitted: f64,
}

/// Lays out one rank's memory.
///
/// What the engine's fraction covers decides the KV cache: SGLang `f · free − weights` of the memory
/// free before loading, vLLM `f · card −` everything else it profiled, TensorRT-LLM a share of what is
/// left after a profiled step (facts B1, B2, F). Never negative: `missing` says what lacks.
pub fn map(input: &MemoryInput<'_>) -> MemoryResult {
    let row = input.shard.hidden * ACTIVATION_BYTES;
    let t = &input.transients;
    let gathered = GatheredRows::of(t).bytes(row);
    let logit_rows = if t.shared_head {
        t.decode_requests_all
    } else {
        t.decode_requests
    };
    let width = 1.0 + t.speculative_steps;
    // fp32 logits of the whole vocabulary, gathered for sampling.
    let logits = logit_rows * width * input.shard.lm_head.n * t.head_ranks * 4.0;
    let activations = activation_bytes(input.shard, t.prefill_rows, input.prefill_ffn_rows);
    let graph_pool = activation_bytes(input.shard, input.graph_rows, input.graph_rows);
    let cuda_graphs = if input.graphs == 0 {
        0.0
    } else {
        input.graphs as f64 * input.shard.layers * input.graph_layer_bytes + graph_pool
    };
    let nccl = communicators(input.ranks);
    let around = gathered
        + logits
        + activations
        + cuda_graphs
        + input.symmetric_bytes
        + input.request_table_bytes;
    let free = input.card_bytes - input.context_bytes - nccl;
    let fraction = input.fraction.value;
    let kv = match input.fraction.of {
        FractionOf::CardForWeightsAndKv => fraction * free - input.weights,
        FractionOf::CardForEverything => {
            let graphs = if input.fraction.estimates_graphs {
                cuda_graphs
            } else {
                0.0
            };
            fraction * input.card_bytes
                - input.context_bytes
                - nccl
                - input.weights
                - gathered
                - logits
                - activations
                - graphs
        }
        FractionOf::FreeForKv => fraction * (free - input.weights - around),
        FractionOf::Nothing => free - input.weights - around,
    };
    let kv_cache = kv.max(0.0);
    let mut map = MemoryMap {
        weights: input.weights,
        kv_cache,
        gathered_buffers: gathered,
        logits,
        activations,
        cuda_graphs,
        symmetric_pool: input.symmetric_bytes,
        nccl,
        context: input.context_bytes,
        request_tables: input.request_table_bytes,
        headroom: 0.0,
        total: input.card_bytes,
    };
    map.headroom = input.card_bytes - map.used();
    if map.headroom.abs() < 1.0 {
        // A rule that leaves nothing leaves a rounding error of a byte's fraction.
        map.headroom = 0.0;
    }
    MemoryResult {
        map,
        missing: (-kv).max(0.0),
        overcommitted: (-map.headroom).max(0.0),
    }
}

/// The cache of a rank, divided as the engine divides it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CachePools {
    /// For rows, and for recurrent states where nothing is set apart for them, bytes.
    pub rows: f64,
    /// Requests whose recurrent states have a place of their own; none where states share `rows`.
    pub states: Option<f64>,
}

impl CachePools {
    /// Divides `kv_bytes`. States take their share in whole slots, and what is left over goes to rows.
    pub fn of(rule: Option<&StatePoolRule>, footprint: &KvFootprint, kv_bytes: f64) -> CachePools {
        match rule {
            Some(rule) if footprint.state_bytes > 0.0 => {
                let share = kv_bytes.max(0.0) * rule.over_kv / (1.0 + rule.over_kv);
                let slots = (share / footprint.state_bytes).floor();
                let requests = (slots / f64::from(rule.slots_per_request.max(1))).floor();
                CachePools {
                    rows: kv_bytes - slots * footprint.state_bytes,
                    states: Some(requests),
                }
            }
            _ => CachePools {
                rows: kv_bytes,
                states: None,
            },
        }
    }

    /// Requests of `tokens` tokens that fit.
    pub fn requests_held(&self, footprint: &KvFootprint, tokens: f64) -> f64 {
        let all = footprint.request_bytes(tokens);
        let each = match self.states {
            Some(_) => all - footprint.state_bytes,
            None => all,
        };
        let by_rows = if each > 0.0 {
            self.rows / each
        } else {
            f64::INFINITY
        };
        by_rows.min(self.states.unwrap_or(f64::INFINITY))
    }

    /// The longest single request that fits, tokens.
    pub fn longest_request(&self, footprint: &KvFootprint) -> f64 {
        match self.states {
            Some(requests) if requests < 1.0 => 0.0,
            // Its state lies elsewhere.
            Some(_) => footprint.longest_request(self.rows + footprint.state_bytes),
            None => footprint.longest_request(self.rows),
        }
    }
}
