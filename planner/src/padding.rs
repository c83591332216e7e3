//! Which padding mode a batch meets, and how many rows the feed-forward block then works on.
//!
//! Under attention data parallelism every rank brings its own tokens to a feed-forward block that
//! all of them share. The engine either pads every rank to the longest (max_len) and moves rows by
//! all-gather and reduce-scatter, or lays the ranks end to end (sum_len) and moves rows by
//! all-reduce, or moves exact sizes. The rule is data of the engine's profile; this file is the one
//! function for each kind of rule.

use crate::layout::Layout;
use parplan_profiles::engine::rules::{ExpertExchange, GatherCost, PaddingRule};
use serde::{Deserialize, Serialize};
use std::fmt;

/// How the rows of data-parallel ranks are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PaddingMode {
    /// Every rank padded to the longest: an all-gather there, a reduce-scatter back.
    MaxLen,
    /// Ranks end to end: an all-reduce there and back, or exact sizes where the engine has them.
    SumLen,
}

impl PaddingMode {
    /// The name in JSON and tables.
    pub const fn name(self) -> &'static str {
        match self {
            PaddingMode::MaxLen => "max_len",
            PaddingMode::SumLen => "sum_len",
        }
    }
}

impl fmt::Display for PaddingMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The collectives that move the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GatherForm {
    /// Attention-TP reduce-scatter, then all-gather; back by reduce-scatter, then attention-TP
    /// all-gather. The attention-TP parts fall away when attention TP is 1.
    AllGather,
    /// All-reduce of a zeroed buffer; back by all-reduce and a local copy.
    AllReduce,
    /// All-gather and reduce-scatter with a size for each rank.
    Exact,
}

/// Token rows of the attention-DP ranks, each rounded up to a multiple of attention TP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RankTokens {
    /// Ranks: the attention-DP width.
    pub ranks: u32,
    /// Rows of the fullest rank.
    pub max: u64,
    /// Rows of the emptiest rank.
    pub min: u64,
    /// Rows of all ranks.
    pub sum: u64,
    /// Tokens before rounding.
    pub tokens: u64,
}

impl RankTokens {
    /// From a count for each rank, in any order; an empty list is one idle rank.
    pub fn of(tokens: &[u32], attention_tp: u32) -> Self {
        let align = u64::from(attention_tp.max(1));
        let mut out = Self {
            ranks: u32::try_from(tokens.len()).unwrap_or(u32::MAX).max(1),
            max: 0,
            min: if tokens.is_empty() { 0 } else { u64::MAX },
            sum: 0,
            tokens: 0,
        };
        for &count in tokens {
            let rows = u64::from(count).next_multiple_of(align);
            out.max = out.max.max(rows);
            out.min = out.min.min(rows);
            out.sum = out.sum.saturating_add(rows);
            out.tokens = out.tokens.saturating_add(u64::from(count));
        }
        out
    }

    /// `tokens` spread as evenly as whole tokens allow.
    pub fn balanced(tokens: u64, ranks: u32, attention_tp: u32) -> Self {
        let ranks = ranks.max(1);
        let align = u64::from(attention_tp.max(1));
        let (low, rest) = (tokens / u64::from(ranks), tokens % u64::from(ranks));
        let row = |count: u64| count.div_ceil(align).saturating_mul(align);
        let (few, many) = (row(low), row(low.saturating_add(u64::from(rest > 0))));
        Self {
            ranks,
            max: many,
            min: few,
            sum: few
                .saturating_mul(u64::from(ranks) - rest)
                .saturating_add(many.saturating_mul(rest)),
            tokens,
        }
    }

    /// `tokens` spread so that mean over max is at most `mean_over_max` (1 is balanced): one rank
    /// is fullest, the others share the rest evenly. The ratio is clamped to `1/ranks ..= 1`,
    /// because one rank cannot hold more than everything.
    pub fn imbalanced(tokens: u64, ranks: u32, attention_tp: u32, mean_over_max: f64) -> Self {
        let ranks = ranks.max(1);
        let least = 1.0 / f64::from(ranks);
        let ratio = if mean_over_max.is_finite() {
            mean_over_max.clamp(least, 1.0)
        } else {
            1.0
        };
        let mean = tokens as f64 / f64::from(ranks);
        let fullest = ((mean / ratio).ceil() as u64).min(tokens);
        if ranks == 1 || u128::from(fullest) * u128::from(ranks) <= u128::from(tokens) {
            return Self::balanced(tokens, ranks, attention_tp);
        }
        let rest = Self::balanced(tokens - fullest, ranks - 1, attention_tp);
        let top = Self::balanced(fullest, 1, attention_tp).max;
        Self {
            ranks,
            max: top.max(rest.max),
            min: top.min(rest.min),
            sum: rest.sum.saturating_add(top),
            tokens,
        }
    }

    /// `requests` of `width` tokens each, sent to ranks at random from `seed` (SplitMix64, so that
    /// the same seed is the same batch everywhere). Beyond 2^20 requests they travel in bunches.
    pub fn drawn(requests: u32, width: u32, ranks: u32, attention_tp: u32, seed: u64) -> Self {
        let ranks = ranks.max(1);
        let mut counts = vec![0u32; ranks as usize];
        let bunch = requests.div_ceil(1 << 20).max(1);
        let mut state = seed;
        let mut left = requests;
        while left > 0 {
            let here = bunch.min(left);
            left -= here;
            let rank = (u128::from(split_mix(&mut state)) * u128::from(ranks)) >> 64;
            if let Some(count) = counts.get_mut(rank as usize) {
                *count = count.saturating_add(here.saturating_mul(width.max(1)));
            }
        }
        Self::of(&counts, attention_tp)
    }

    /// Mean over max of the rows: 1 when balanced, near `1/ranks` when one rank has everything.
    pub fn balance(&self) -> f64 {
        if self.max == 0 {
            return 1.0;
        }
        self.sum as f64 / (self.max as f64 * f64::from(self.ranks))
    }
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): enough for a seeded draw.
pub(crate) fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// What else the rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct GatherContext<'a> {
    /// A rank has prefill or extend in its batch.
    pub extend: bool,
    /// Tokens of one rank in the decode graph that replays; none when eager.
    pub graph_rows: Option<u64>,
    /// Tokens of one rank in the prefill graph that replays; none when eager.
    pub prefill_graph_rows: Option<u64>,
    /// Bytes of a row: hidden size times the bytes of an activation.
    pub row_bytes: u64,
    /// Expert all-to-all backend, as the engine names it.
    pub expert_backend: &'a str,
    /// Speculative decoding is on.
    pub speculation: bool,
    /// The engine's own all-reduce is on for the stage's ranks (links allow it, not disabled).
    pub custom_all_reduce: bool,
    /// The model mixes attention with state-space or linear-attention layers.
    pub hybrid: bool,
    /// The environment asks for max_len where a backend leaves the choice.
    pub max_len_requested: bool,
    /// The mode that a plan names, for engines that do as planned.
    pub planned: Option<PaddingMode>,
}

/// The padding that a batch meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Padding {
    /// The mode.
    pub mode: PaddingMode,
    /// The collectives.
    pub form: GatherForm,
    /// Rows of the gathered buffer, on which the feed-forward block works.
    pub buffer_rows: u64,
    /// Rows of one rank's part under max_len; of the fullest rank otherwise.
    pub rank_rows: u64,
    /// Rows of the buffer that carry no token.
    pub padded_rows: u64,
    /// Why this mode.
    pub reason: PaddingReason,
}

/// Why a padding mode was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PaddingReason {
    /// The version knows one mode only.
    OnlyMode,
    /// One rank: both modes are the same.
    OneRank,
    /// The expert backend needs equal rows.
    ExpertBackend,
    /// A rank is in prefill.
    Extend,
    /// A hybrid model has an idle rank during prefill.
    IdleHybrid,
    /// The summed buffer fits the custom all-reduce.
    CustomAllReduce,
    /// Twice the sum is above longest times ranks.
    Balanced,
    /// Both cost the same, and the version breaks the tie this way.
    Tie,
    /// Twice the sum is below longest times ranks.
    Imbalanced,
    /// A captured graph has one size for all ranks.
    Graph,
    /// Exact sizes move where no graph runs.
    Eager,
    /// The plan says so.
    Planned,
}

impl fmt::Display for PaddingReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PaddingReason::OnlyMode => "this version has no other mode",
            PaddingReason::OneRank => "one rank, nothing to gather",
            PaddingReason::ExpertBackend => "the expert backend needs equal rows on every rank",
            PaddingReason::Extend => "a rank is in prefill",
            PaddingReason::IdleHybrid => "a hybrid model has an idle rank during prefill",
            PaddingReason::CustomAllReduce => "the summed rows fit the custom all-reduce",
            PaddingReason::Balanced => "mean over max is above one half",
            PaddingReason::Tie => "mean over max is exactly one half; the version decides the tie",
            PaddingReason::Imbalanced => "mean over max is below one half",
            PaddingReason::Graph => "the captured graph has one size for all ranks",
            PaddingReason::Eager => "no graph runs, so exact sizes move",
            PaddingReason::Planned => "as planned",
        })
    }
}

/// What a layout brings together around feed-forward blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Gathering {
    /// Rows of all data-parallel ranks meet in one buffer, and all ranks replay the same graph.
    pub over_stage: bool,
    /// Rows of an attention-TP group are split over its ranks and gathered again.
    pub over_attention_tp: bool,
}

impl Gathering {
    /// Either kind: graphs then align to attention TP.
    pub fn any(&self) -> bool {
        self.over_stage || self.over_attention_tp
    }
}

/// What a layout gathers (SGLang `utils/common.py` `require_mlp_tp_gather`,
/// `require_attn_tp_gather`): with an expert all-to-all, unsplit dense layers and an output
/// projection of each data-parallel rank, nothing crosses data-parallel ranks any more, and each
/// picks its graph by its own batch.
pub fn gathering(
    experts: &ExpertExchange,
    layout: &Layout,
    backend: Option<&str>,
    dense_unsplit: bool,
) -> Gathering {
    let backend = backend.unwrap_or(&experts.default);
    let exchanges = backend != experts.default;
    let same_graph = experts.same_graph.iter().any(|name| name == backend);
    Gathering {
        over_stage: layout.attention_dp > 1 && !(dense_unsplit && exchanges && !same_graph),
        over_attention_tp: (exchanges || dense_unsplit) && layout.attention_tp() > 1,
    }
}

/// The padding that an engine picks for a batch.
pub fn padding(rule: &PaddingRule, rows: &RankTokens, context: &GatherContext<'_>) -> Padding {
    let (mode, reason) = mode(rule, rows, context);
    let graph = context.graph_rows.or(context.prefill_graph_rows);
    let form = match (rule, mode) {
        (PaddingRule::Exact, _) => GatherForm::Exact,
        (PaddingRule::GraphMax, PaddingMode::SumLen) => GatherForm::Exact,
        (_, PaddingMode::MaxLen) => GatherForm::AllGather,
        (_, PaddingMode::SumLen) => GatherForm::AllReduce,
    };
    // A replayed graph works on its captured rows in either mode.
    let (rank_rows, buffer_rows) = match (graph, mode) {
        (Some(captured), _) if form != GatherForm::Exact => {
            let captured = captured.max(rows.max);
            (captured, captured.saturating_mul(u64::from(rows.ranks)))
        }
        (_, PaddingMode::MaxLen) => (rows.max, rows.max.saturating_mul(u64::from(rows.ranks))),
        (_, PaddingMode::SumLen) => (rows.max, rows.sum),
    };
    Padding {
        mode,
        form,
        buffer_rows,
        rank_rows,
        padded_rows: buffer_rows.saturating_sub(rows.tokens),
        reason,
    }
}

/// The mode alone, and why.
pub fn mode(
    rule: &PaddingRule,
    rows: &RankTokens,
    context: &GatherContext<'_>,
) -> (PaddingMode, PaddingReason) {
    use PaddingMode::{MaxLen, SumLen};
    match rule {
        PaddingRule::SumOnly => (SumLen, PaddingReason::OnlyMode),
        PaddingRule::Exact => (SumLen, PaddingReason::OnlyMode),
        PaddingRule::GraphMax => {
            if context.graph_rows.is_some() {
                (MaxLen, PaddingReason::Graph)
            } else {
                (SumLen, PaddingReason::Eager)
            }
        }
        PaddingRule::Planned => match context.planned {
            Some(mode) => (mode, PaddingReason::Planned),
            None => by_cost(rows, true),
        },
        PaddingRule::GatherCost(cost) => gather_cost(cost, rows, context),
    }
}

fn gather_cost(
    cost: &GatherCost,
    rows: &RankTokens,
    context: &GatherContext<'_>,
) -> (PaddingMode, PaddingReason) {
    use PaddingMode::{MaxLen, SumLen};
    if let Some(captured) = context.graph_rows {
        // The mode is fixed when the graph is captured, with every rank at the captured size.
        let captured = RankTokens {
            max: captured,
            min: captured,
            sum: captured.saturating_mul(u64::from(rows.ranks)),
            ..*rows
        };
        return if fits_custom_all_reduce(cost, &captured, context) {
            (SumLen, PaddingReason::CustomAllReduce)
        } else {
            (MaxLen, PaddingReason::Graph)
        };
    }
    if cost.prefill_graph_is_max && context.prefill_graph_rows.is_some() {
        return (MaxLen, PaddingReason::Graph);
    }
    let backend = |list: &[String]| list.iter().any(|name| name == context.expert_backend);
    if backend(&cost.max_len_backends)
        || (context.max_len_requested && backend(&cost.max_len_on_request))
    {
        return (MaxLen, PaddingReason::ExpertBackend);
    }
    if cost.extend_forces_sum && context.extend && (rows.ranks > 1 || !cost.extend_needs_width) {
        if cost.idle_hybrid_is_max && context.hybrid && rows.min == 0 {
            return (MaxLen, PaddingReason::IdleHybrid);
        }
        return (SumLen, PaddingReason::Extend);
    }
    if !context.extend && fits_custom_all_reduce(cost, rows, context) {
        return (SumLen, PaddingReason::CustomAllReduce);
    }
    by_cost(rows, cost.tie_is_max)
}

/// Bytes on a ring: twice the sum for two all-reduces against longest times ranks.
fn by_cost(rows: &RankTokens, tie_is_max: bool) -> (PaddingMode, PaddingReason) {
    use PaddingMode::{MaxLen, SumLen};
    let twice = u128::from(rows.sum) * 2;
    let padded = u128::from(rows.max) * u128::from(rows.ranks);
    match twice.cmp(&padded) {
        _ if rows.ranks == 1 && rows.max > 0 => (MaxLen, PaddingReason::OneRank),
        std::cmp::Ordering::Greater => (MaxLen, PaddingReason::Balanced),
        std::cmp::Ordering::Less => (SumLen, PaddingReason::Imbalanced),
        std::cmp::Ordering::Equal => {
            let mode = if tie_is_max { MaxLen } else { SumLen };
            (mode, PaddingReason::Tie)
        }
    }
}

fn fits_custom_all_reduce(
    cost: &GatherCost,
    rows: &RankTokens,
    context: &GatherContext<'_>,
) -> bool {
    let Some(limit) = cost.custom_all_reduce_bytes else {
        return false;
    };
    rows.ranks > 1
        && rows.min > 0
        && context.custom_all_reduce
        && !context.speculation
        && matches!(context.expert_backend, "" | "none")
        && u128::from(rows.sum) * u128::from(context.row_bytes) <= u128::from(limit)
}

#[cfg(test)]
mod tests;
