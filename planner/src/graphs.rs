//! Which CUDA graphs an engine captures, and which one a batch lands in.
//!
//! A captured graph replays one size. A batch goes to the smallest captured size that holds it and
//! pays for the rows between; above the largest, or when a rank cannot replay, every rank silently
//! runs eager. Units differ: SGLang counts requests of one attention-DP rank, vLLM counts tokens of
//! one engine.

use crate::layout::Layout;
use parplan_profiles::engine::EngineRules;
use parplan_profiles::engine::rules::{
    GraphAlignment, GraphUnit, LargestGraph, PoolCap, PrefillGraphs, RequestLimit, SizeStep, Span,
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// More sizes than this are never captured; a longer list is a slip of the pen.
const MOST_SIZES: usize = 4096;

/// What the captured sizes depend on, besides the engine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GraphContext<'a> {
    /// The split.
    pub layout: Layout,
    /// GPU memory, MiB; none when unknown.
    pub gpu_mib: Option<u64>,
    /// Name of the GPU, for steps that single one out.
    pub gpu: &'a str,
    /// Compute capability times ten.
    pub sm: u16,
    /// The limit of running requests on the command line, in the unit of the scheduler rule.
    pub running_requests: Option<u32>,
    /// Requests that one rank's pool holds, when known.
    pub pool: Option<u32>,
    /// Tokens a request brings to a decode step: 1, or the draft tokens to verify.
    pub query_length: u32,
    /// Speculative decoding is on.
    pub speculation: bool,
    /// Rows of data-parallel or attention-TP ranks are gathered, so graphs align to attention TP.
    pub gathers: bool,
    /// Two micro-batches overlap.
    pub two_batch_overlap: bool,
    /// The largest size asked for; none for the engine's default.
    pub largest: Option<u32>,
    /// Tokens of a step or chunk on the command line; none for the engine's default.
    pub tokens: Option<u32>,
    /// The model uses multi-head latent attention.
    pub mla: bool,
}

/// The sizes that an engine captures for decode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CaptureList {
    /// What a size counts.
    pub unit: GraphUnit,
    /// Captured sizes, ascending.
    pub sizes: Vec<u32>,
    /// Sizes of the list that alignment or the pool dropped, ascending.
    pub lost: Vec<u32>,
}

impl CaptureList {
    /// The largest size; none when nothing is captured.
    pub fn largest(&self) -> Option<u32> {
        self.sizes.last().copied()
    }
}

/// The step of the size table that a GPU falls in.
pub fn size_step<'a>(
    rules: &'a EngineRules,
    gpu_mib: Option<u64>,
    gpu: &str,
) -> Option<&'a SizeStep> {
    let gpu = gpu.to_ascii_lowercase();
    let named = |step: &&SizeStep| {
        step.gpus.is_empty() || step.gpus.iter().any(|name| gpu.contains(name.as_str()))
    };
    let memory = gpu_mib.unwrap_or(u64::MAX);
    rules
        .sizes
        .steps
        .iter()
        .filter(named)
        .find(|step| step.below_mib.is_none_or(|below| memory < below))
}

/// Tokens of a step or chunk, as the command line counts them: what was asked for, or the default.
pub fn step_tokens(rules: &EngineRules, context: &GraphContext<'_>) -> u32 {
    context
        .tokens
        .or_else(|| size_step(rules, context.gpu_mib, context.gpu).map(|step| step.tokens))
        .unwrap_or(2048)
}

/// The largest decode graph when none is asked for, in the unit of the rule.
pub fn default_largest(rules: &EngineRules, context: &GraphContext<'_>) -> u32 {
    let step = size_step(rules, context.gpu_mib, context.gpu);
    match rules.graphs.largest {
        LargestGraph::ByMemory { capped_by_running } => {
            let largest = step
                .and_then(|step| match context.layout.tp {
                    0..4 => step.graph_small_tp,
                    _ => step.graph,
                })
                .unwrap_or(160);
            match context.running_requests {
                Some(limit) if capped_by_running => largest.min(limit.max(1)),
                _ => largest,
            }
        }
        LargestGraph::ByRequests {
            factor,
            cap,
            cap_sm100,
            query_length,
            ..
        } => {
            let cap = if context.sm / 10 == 10 {
                cap_sm100
            } else {
                cap
            };
            let width = if query_length {
                context.query_length.max(1)
            } else {
                1
            };
            request_limit(rules, context)
                .saturating_mul(width)
                .saturating_mul(factor)
                .min(cap)
                .min(step_tokens(rules, context))
                .max(1)
        }
        LargestGraph::Planned => context.running_requests.map_or_else(
            || step.and_then(|step| step.graph).unwrap_or(512),
            |limit| per_rank(rules, context, limit),
        ),
    }
}

/// The limit of running requests on the command line or its default, in the scheduler's unit.
fn request_limit(rules: &EngineRules, context: &GraphContext<'_>) -> u32 {
    context
        .running_requests
        .or_else(|| size_step(rules, context.gpu_mib, context.gpu).and_then(|step| step.requests))
        .unwrap_or(256)
        .max(1)
}

/// A request limit of the command line as one attention-DP rank meets it, at least 1.
pub fn per_rank(rules: &EngineRules, context: &GraphContext<'_>, limit: u32) -> u32 {
    match rules.scheduler.requests {
        RequestLimit::Server => (limit / context.layout.attention_dp.max(1)).max(1),
        RequestLimit::Engine => limit.max(1),
    }
}

/// The multiple that captured sizes must keep.
pub fn alignment(rules: &EngineRules, context: &GraphContext<'_>) -> u32 {
    match rules.graphs.alignment {
        GraphAlignment::None => 1,
        GraphAlignment::QueryLength => context.query_length.max(1),
        GraphAlignment::RequestsToAttentionTp | GraphAlignment::TokensToAttentionTp => {
            let gather = if context.gathers {
                context.layout.attention_tp().max(1)
            } else {
                1
            };
            gather.saturating_mul(if context.two_batch_overlap { 2 } else { 1 })
        }
    }
}

/// The sizes that the engine captures when it is given none.
pub fn default_list(rules: &EngineRules, context: &GraphContext<'_>) -> CaptureList {
    let largest = context
        .largest
        .unwrap_or_else(|| default_largest(rules, context));
    let spans = if context.speculation {
        &rules.graphs.speculative
    } else {
        &rules.graphs.plain
    };
    let mut sizes = expand(spans, largest);
    if rules.graphs.append_largest {
        sizes.push(largest);
    }
    if let LargestGraph::ByRequests {
        append_token_budget,
        uniform_decode_sizes,
        ..
    } = rules.graphs.largest
    {
        let budget = step_tokens(rules, context);
        if append_token_budget && budget <= largest {
            sizes.push(budget);
        }
        if uniform_decode_sizes {
            let requests = request_limit(rules, context);
            let width = context.query_length.max(1);
            if width > 1 {
                let most = requests.min(largest / width);
                sizes.extend(expand(spans, most).iter().map(|count| count * width));
                if requests.saturating_mul(width) <= largest {
                    sizes.push(requests * width);
                }
            } else if requests <= largest {
                sizes.push(requests);
            }
            sizes.retain(|&size| size <= budget);
        }
    }
    survivors(rules, context, sizes)
}

/// What is captured of a list that the command line names.
pub fn explicit_list(
    rules: &EngineRules,
    context: &GraphContext<'_>,
    sizes: &[u32],
) -> CaptureList {
    survivors(rules, context, sizes.to_vec())
}

/// Alignment and the pool, in the engine's order.
fn survivors(rules: &EngineRules, context: &GraphContext<'_>, mut sizes: Vec<u32>) -> CaptureList {
    sizes.retain(|&size| size > 0);
    sizes.sort_unstable();
    sizes.dedup();
    sizes.truncate(MOST_SIZES);
    let multiple = alignment(rules, context);
    let asked = sizes.clone();
    let pool = context.pool.or_else(|| {
        let limit = context.running_requests?;
        (rules.graphs.unit == GraphUnit::RequestsPerRank).then(|| per_rank(rules, context, limit))
    });
    let pool = match rules.graphs.pool {
        PoolCap::None => None,
        PoolCap::Exact => pool,
        PoolCap::AlignedUp => pool.map(|pool| pool.div_ceil(multiple).saturating_mul(multiple)),
    };
    if let Some(pool) = pool
        && sizes.last().is_some_and(|&last| last > pool)
    {
        sizes.push(pool);
    }
    if rules.graphs.alignment == GraphAlignment::QueryLength {
        // Sizes are rounded up rather than dropped, as long as they stay within the largest.
        let largest = asked.last().copied().unwrap_or(0);
        for size in &mut sizes {
            *size = size.div_ceil(multiple).saturating_mul(multiple);
        }
        sizes.retain(|&size| size <= largest);
        if sizes.is_empty() && multiple <= largest {
            sizes.push(multiple);
        }
    } else {
        let width = match rules.graphs.alignment {
            GraphAlignment::TokensToAttentionTp if !context.two_batch_overlap => {
                context.query_length.max(1)
            }
            _ => 1,
        };
        sizes.retain(|&size| {
            u64::from(size)
                .saturating_mul(u64::from(width))
                .is_multiple_of(u64::from(multiple))
        });
    }
    if let Some(pool) = pool {
        sizes.retain(|&size| size <= pool);
    }
    sizes.sort_unstable();
    sizes.dedup();
    CaptureList {
        unit: rules.graphs.unit,
        lost: asked
            .into_iter()
            .filter(|size| sizes.binary_search(size).is_err())
            .collect(),
        sizes,
    }
}

/// The steps of a list up to `largest`.
fn expand(spans: &[Span], largest: u32) -> Vec<u32> {
    let mut sizes = Vec::new();
    for span in spans {
        let last = span.last.unwrap_or(largest).min(largest);
        let mut size = span.first;
        while size <= last && sizes.len() < MOST_SIZES {
            sizes.push(size);
            let Some(next) = size.checked_add(span.step.max(1)) else {
                break;
            };
            size = next;
        }
    }
    sizes
}

/// Prefill buckets, tokens, for a chunk of `chunk` tokens; empty where the engine captures none by
/// default or this layout turns them off.
pub fn prefill_buckets(rules: &EngineRules, context: &GraphContext<'_>, chunk: u32) -> Vec<u32> {
    match &rules.graphs.prefill {
        Some(prefill) if prefill_graphs_on(prefill, &context.layout) => {
            bucket_list(prefill, context.mla, chunk)
        }
        _ => Vec::new(),
    }
}

/// The buckets of a chunk, whether or not they are on.
pub fn bucket_list(prefill: &PrefillGraphs, mla: bool, chunk: u32) -> Vec<u32> {
    let largest = if mla {
        chunk.min(prefill.mla_largest)
    } else {
        chunk
    };
    expand(&prefill.buckets, largest)
}

/// Whether a layout captures prefill graphs without being asked to.
pub fn prefill_graphs_on(prefill: &PrefillGraphs, layout: &Layout) -> bool {
    prefill.default_on
        && !(prefill.off_with_dcp && layout.dcp > 1)
        && !(prefill.off_with_pp && layout.pp > 1)
}

/// A decode step as the graphs see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeBatch {
    /// Requests of the fullest attention-DP rank.
    pub most_requests: u32,
    /// Requests of all attention-DP ranks.
    pub all_requests: u32,
    /// Tokens a request brings.
    pub query_length: u32,
    /// A rank is in prefill in this step.
    pub rank_in_prefill: bool,
}

/// How a decode step is launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "launch", rename_all = "snake_case")]
pub enum Landing {
    /// A graph replays.
    Graph {
        /// The captured size, in the unit of the list.
        size: u32,
        /// Token rows that every rank works on.
        rank_rows: u64,
        /// Of those, rows of the fullest rank that carry no token.
        waste_rows: u64,
    },
    /// Kernels are launched one by one.
    Eager {
        /// Why.
        reason: EagerReason,
    },
}

/// Why a step runs without a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EagerReason {
    /// Nothing was captured.
    NothingCaptured,
    /// The batch is above the largest captured size.
    AboveLargest {
        /// The batch, in the unit of the list.
        batch: u32,
        /// The largest captured size.
        largest: u32,
    },
    /// A data-parallel rank is in prefill, and its vote holds for all.
    RankInPrefill,
}

impl fmt::Display for EagerReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EagerReason::NothingCaptured => f.write_str("no graph is captured"),
            EagerReason::AboveLargest { batch, largest } => write!(
                f,
                "a batch of {batch} is above the largest captured size {largest}; capture {batch}"
            ),
            EagerReason::RankInPrefill => {
                f.write_str("a data-parallel rank is in prefill, which sends every rank to eager")
            }
        }
    }
}

/// Where a decode step lands.
pub fn landing(rules: &EngineRules, list: &CaptureList, batch: &DecodeBatch) -> Landing {
    let eager = |reason| Landing::Eager { reason };
    let Some(largest) = list.largest() else {
        return eager(EagerReason::NothingCaptured);
    };
    if batch.rank_in_prefill && rules.graphs.prefill_blocks_decode {
        return eager(EagerReason::RankInPrefill);
    }
    let width = batch.query_length.max(1);
    let tokens = u64::from(batch.most_requests).saturating_mul(u64::from(width));
    let wanted = match list.unit {
        GraphUnit::RequestsPerRank => batch.most_requests,
        GraphUnit::RequestsOfAllRanks => batch.all_requests,
        GraphUnit::Tokens => u32::try_from(tokens).unwrap_or(u32::MAX),
    };
    let at = list.sizes.partition_point(|&size| size < wanted);
    let Some(&size) = list.sizes.get(at) else {
        return eager(EagerReason::AboveLargest {
            batch: wanted,
            largest,
        });
    };
    let rank_rows = match list.unit {
        GraphUnit::Tokens => u64::from(size),
        // Before per-rank sizes, one buffer of the summed length held every rank's rows.
        GraphUnit::RequestsPerRank | GraphUnit::RequestsOfAllRanks => {
            u64::from(size).saturating_mul(u64::from(width))
        }
    };
    Landing::Graph {
        size,
        rank_rows,
        waste_rows: rank_rows.saturating_sub(tokens),
    }
}

/// The fewest sizes, with the smallest largest one, so that every batch of `unit, 2 · unit, …` up to
/// `count · unit` replays a graph and pads by at most `waste` of its rows (or by the alignment, where
/// that is more).
///
/// Batches are in the unit of the engine's list. The greedy choice from the largest batch down is the
/// fewest possible, because each size must cover the largest batch that is still uncovered.
pub fn covering_list(
    rules: &EngineRules,
    context: &GraphContext<'_>,
    count: u32,
    unit: u32,
    waste: f64,
) -> CaptureList {
    let multiple = capture_multiple(rules, context);
    let up = |batch: u32| batch.div_ceil(multiple).saturating_mul(multiple);
    let unit = unit.max(1);
    let mut sizes = Vec::new();
    let mut left = count.min(u32::MAX / unit);
    while left > 0 {
        let size = up(left * unit);
        sizes.push(size);
        // The largest batch that this size wastes too much on: below size / (1 + waste) there is
        // none nearer, so the walk back is at most one alignment long.
        let covered = |n: u32| {
            let most = (f64::from(n * unit) * (1.0 + waste)).floor() as u32;
            most.max(up(n * unit)) >= size
        };
        let near = (f64::from(size) / (1.0 + waste) / f64::from(unit)).ceil() as u32 + 1;
        left = near.min(left - 1);
        while left > 0 && covered(left) {
            left -= 1;
        }
    }
    sizes.sort_unstable();
    CaptureList {
        unit: rules.graphs.unit,
        sizes,
        lost: Vec::new(),
    }
}

/// The multiple that sizes of a capture list of ours keep.
fn capture_multiple(rules: &EngineRules, context: &GraphContext<'_>) -> u32 {
    match rules.graphs.alignment {
        GraphAlignment::TokensToAttentionTp if !context.two_batch_overlap => {
            let align = alignment(rules, context);
            align / gcd(align, context.query_length.max(1))
        }
        _ => alignment(rules, context),
    }
    .max(1)
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests;
