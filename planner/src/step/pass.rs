//! One forward pass of one rank: which operations run, and how long they take together.
//!
//! The fullest rank decides: all ranks of a stage meet in every layer's collectives, so a pass is
//! as long as its slowest rank. Shapes are those of [`crate::shard`]; each operation is priced by
//! [`crate::cost`].

use super::meter::Meter;
use super::record::Record;
use super::tally::{Op, Tally};
use crate::cost::{
    Collective, Implementation, Launch, OpCosts, Operation, Registration, Span, Transfer,
};
use crate::shard::{Block, Linear, Mixer, Shard, ShardGroup};
use crate::volume::{self, Call, DcpMerge, Exchange, Group, Kind, Purpose, Rows};
use parplan_profiles::Dtype;
use parplan_profiles::engine::rules::KernelRule;

/// Bytes of an activation element: hidden states are bf16 in every engine modelled.
pub const ACTIVATION_BYTES: f64 = 2.0;

/// What a pass computes, on the fullest attention-DP rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pass {
    /// Requests in decode.
    pub decode_requests: f64,
    /// Query tokens of each of them (above 1 when drafts are verified).
    pub query_tokens: f64,
    /// Tokens in the cache of each of them.
    pub context: f64,
    /// New prompt tokens.
    pub prefill_tokens: f64,
    /// Prompts that those tokens belong to.
    pub prefill_prompts: f64,
    /// Tokens in the cache before them, a prompt.
    pub prefill_before: f64,
    /// Rows of the fullest rank, padded to its CUDA graph and aligned to attention TP.
    pub rows_max: f64,
    /// Rows of all ranks of the stage.
    pub rows_sum: f64,
    /// Replayed from a CUDA graph.
    pub graph: bool,
    /// How rows reach the feed-forward blocks.
    pub exchange: Exchange,
}

/// Which all-reduce runs over a group: the engine's own up to a size, NCCL above it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReducePath {
    /// Largest buffer that the engine's own kernel takes in a graph, bytes.
    pub custom_graph_bytes: f64,
    /// The same, launched eagerly.
    pub custom_eager_bytes: f64,
    /// NCCL's buffers are registered symmetric windows.
    pub symmetric: bool,
}

/// Which kernels before a product that is quantised per tensor write its format, so that no kernel of its
/// own does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quantised {
    /// Norms.
    pub by_norm: bool,
    /// Attention.
    pub by_attention: bool,
    /// The activation of a dense block.
    pub by_activation: bool,
}

/// What stays the same over the passes of one configuration.
#[derive(Debug, Clone, Copy)]
pub struct Fixed<'a> {
    /// The model on one rank.
    pub shard: &'a Shard,
    /// Prices of operations.
    pub costs: &'a OpCosts<'a>,
    /// Attention-DP ranks.
    pub dp: u32,
    /// Attention-TP ranks.
    pub attention_tp: u32,
    /// Expert-parallel ranks.
    pub ep: u32,
    /// DCP ranks.
    pub dcp: u32,
    /// How DCP merges MLA layers, and with how many bytes a value.
    pub dcp_mla: (DcpMerge, f64),
    /// The same for grouped-query layers.
    pub dcp_gqa: (DcpMerge, f64),
    /// Queries are replicated over a DCP group.
    pub dcp_replicated_q: bool,
    /// DCP's all-to-all merge sends the LSE by a collective of its own.
    pub dcp_lse_apart: bool,
    /// The engine's kernels, where they are known one by one.
    pub kernels: Option<KernelRule>,
    /// The sum over ranks adds the residual and norms.
    pub fused_norms: bool,
    /// Kernels that write the format of the product that follows.
    pub quantised: Quantised,
    /// Ranks exchange what a layer needs of each other. Off, where one rank runs alone what it would
    /// run in a group.
    pub exchanges: bool,
    /// Dense blocks are split over the attention-TP group only, each DP rank with its own copy.
    pub dense_on_attention_tp: bool,
    /// The output projection is split over the attention-TP group only.
    pub head_on_attention_tp: bool,
    /// Ranks of a stage that share an NVLink domain.
    pub ranks_per_domain: u32,
    /// 2 where pipeline stages share an NVLink domain, 1 where the network joins them.
    pub stage_neighbours: u32,
    /// KV cache format.
    pub kv_dtype: Dtype,
    /// All-reduce over the whole stage.
    pub reduce_tp: ReducePath,
    /// All-reduce over an attention-TP group.
    pub reduce_attention_tp: ReducePath,
    /// Gathers and scatters run on symmetric windows.
    pub symmetric_gathers: bool,
    /// Expert all-to-all uses its low-latency kernels in decode.
    pub low_latency_experts: bool,
    /// Share of the tokens that choose experts independently ([`Moe::spread`]).
    pub expert_spread: f64,
    /// By how many standard deviations the busiest expert-parallel rank is above the mean: see
    /// [`super::block::busiest`].
    pub busiest_rank: f64,
    /// Most rows of a captured pass whose shared experts run beside the routed ones.
    pub shared_beside_rows: f64,
    /// Collects rooflines too.
    pub explain: bool,
    /// Collects every operation with its shapes.
    pub record: Option<&'a Record>,
}

impl Fixed<'_> {
    /// Sends `bytes` from one pipeline stage to the next, microseconds: half of a two-rank
    /// all-to-all moves them one way.
    pub fn hand_over(&self, bytes: f64) -> f64 {
        self.costs.collective(&Transfer {
            kind: Collective::AllToAll,
            bytes: 2.0 * bytes,
            span: Span {
                ranks: 2.0,
                ranks_per_domain: f64::from(self.stage_neighbours).min(2.0),
            },
            implementation: Implementation::Nccl,
            launch: Launch::Eager,
            registration: Registration::None,
        })
    }
}

/// Adds one pass over all layers of a stage to `tally`.
pub fn layers(fixed: &Fixed<'_>, pass: &Pass, tally: &mut Tally) {
    let launch = if pass.graph {
        Launch::Graph
    } else {
        Launch::Eager
    };
    let mut meter = Meter {
        fixed,
        tally,
        launch,
    };
    for group in &fixed.shard.groups {
        layer_group(&mut meter, group, pass);
    }
    if let Some(rule) = fixed.kernels {
        // The residual stream is copied in and the last block's result added to it.
        let bytes = pass.rows_max * fixed.shard.hidden * ACTIVATION_BYTES * 5.0;
        meter.elementwise(1.0, bytes, f64::from(rule.pass));
    }
}

/// The rows that a block works on, and how they reach it: those of the stage, or, where every DP rank
/// holds the block for itself or there is none, the rank's own (said by the last value).
pub fn meeting(
    fixed: &Fixed<'_>,
    block: &Block,
    stage: Rows,
    exchange: Exchange,
) -> (Rows, Exchange, bool) {
    let own = matches!(block, Block::Dense { .. }) && fixed.dense_on_attention_tp;
    if own || (matches!(block, Block::None) && fixed.dp > 1) {
        let rows = Rows {
            sum: stage.max,
            dp: 1,
            ..stage
        };
        (rows, Exchange::AllReduce, true)
    } else {
        (stage, exchange, false)
    }
}

fn layer_group(meter: &mut Meter<'_, '_>, group: &ShardGroup, pass: &Pass) {
    let fixed = meter.fixed;
    let hidden = fixed.shard.hidden;
    let stage = Rows {
        max: pass.rows_max,
        sum: pass.rows_sum,
        dp: fixed.dp,
        attention_tp: fixed.attention_tp,
        row_bytes: hidden * ACTIVATION_BYTES,
    };
    let (rows, exchange, alone) = meeting(fixed, &group.block, stage, pass.exchange);
    let has_mixer = !matches!(group.mixer, Mixer::None);
    let has_block = !matches!(group.block, Block::None);
    meter.mixer(group, pass, hidden);
    meter.block(group, pass, &rows, exchange, hidden);
    if let Some(rule) = fixed.kernels.filter(|_| rows.gathered(exchange) > 0.0) {
        let bytes = rows.max * rows.row_bytes * 4.0;
        let kernels = f64::from(rule.gather);
        let copies = Operation::Elementwise { bytes, kernels };
        meter.add(Op::Gather, group.layers, &copies);
    }
    for call in volume::layer(&rows, exchange, has_mixer, has_block).as_slice() {
        let op = match call.purpose {
            Purpose::SharedNorm | Purpose::AttentionOutput => Op::AttentionReduce,
            Purpose::Gather => Op::Gather,
            _ => Op::Combine,
        };
        // With one DP rank the group of a stage is an attention-TP group.
        let call = if alone {
            Call {
                group: Group::AttentionTp,
                ..*call
            }
        } else {
            *call
        };
        meter.call(op, group.layers, &call);
    }
}

/// Adds collectives on their own, in a graph or not.
pub fn collectives(fixed: &Fixed<'_>, calls: &[Call], graph: bool, tally: &mut Tally) {
    let launch = if graph { Launch::Graph } else { Launch::Eager };
    let mut meter = Meter {
        fixed,
        tally,
        launch,
    };
    for call in calls {
        meter.call(Op::Gather, 1.0, call);
    }
}

/// Adds the output projection for `rows` rows (of the rank, or of all DP ranks where they share it)
/// and the gather of their logits.
pub fn head(fixed: &Fixed<'_>, rows: f64, graph: bool, tally: &mut Tally) {
    let launch = if graph { Launch::Graph } else { Launch::Eager };
    let mut meter = Meter {
        fixed,
        tally,
        launch,
    };
    let (ranks, group) = if fixed.head_on_attention_tp {
        (fixed.attention_tp, Group::AttentionTp)
    } else {
        (fixed.attention_tp * fixed.dp, Group::Tp)
    };
    let weight = &fixed.shard.lm_head;
    meter.linear(Op::LmHead, 1.0, rows, weight);
    let gather = Call {
        purpose: Purpose::Gather,
        kind: Kind::AllGather,
        group,
        ranks,
        bytes: rows * weight.n * f64::from(ranks) * ACTIVATION_BYTES,
    };
    if ranks > 1 {
        meter.call(Op::LmHead, 1.0, &gather);
    }
}

/// Adds `steps` drafted tokens by the model's MTP layer: each joins two rows of the residual
/// stream, runs one layer and the output projection.
pub fn draft(fixed: &Fixed<'_>, pass: &Pass, steps: f64, tally: &mut Tally) {
    let Some(group) = &fixed.shard.mtp else {
        return;
    };
    let mut own = Tally::new();
    let one = Pass {
        query_tokens: 1.0,
        rows_max: pass.rows_max / pass.query_tokens,
        rows_sum: pass.rows_sum / pass.query_tokens,
        ..*pass
    };
    let launch = if pass.graph {
        Launch::Graph
    } else {
        Launch::Eager
    };
    let hidden = fixed.shard.hidden;
    let mut meter = Meter {
        fixed,
        tally: &mut own,
        launch,
    };
    layer_group(&mut meter, group, &one);
    let join = Linear {
        n: hidden,
        k: 2.0 * hidden,
        dtype: Dtype::Bf16,
    };
    meter.linear(Op::QkvProjection, 1.0, one.rows_max, &join);
    let rows = if fixed.head_on_attention_tp {
        one.decode_requests
    } else {
        one.rows_sum
    };
    head(fixed, rows, pass.graph, &mut own);
    tally.add(Op::Draft, steps, own.total_us());
    if fixed.explain {
        tally.add_roofline(
            Op::Draft,
            steps,
            Op::ALL.iter().map(|&op| own.roofline_us(op)).sum(),
        );
    }
}
