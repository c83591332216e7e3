//! How much of a card an engine leaves for weights and KV cache when it is not told.
//!
//! The rule is data of the engine's profile; the sums are here. SGLang derives a fraction from the
//! chunk, the largest graph and the parallel sizes; vLLM takes a fraction of the card for
//! everything and profiles the rest; TensorRT-LLM takes a share of what is free after a profiled
//! step; our own executor reserves nothing of its own accord.

use crate::graphs::{self, GraphContext};
use parplan_profiles::engine::EngineRules;
use parplan_profiles::engine::rules::{MemoryRule, PrefillReserve, ReserveRule, ReserveSteps};
use serde::{Deserialize, Serialize};

/// What a draft model is, as far as the reserve cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Draft {
    /// No speculation, or n-grams, which need no model.
    #[default]
    None,
    /// EAGLE, MTP and kin: layers that share the target's embedding.
    Eagle,
    /// A model of its own.
    Standalone,
}

/// What the reserve depends on, besides [`GraphContext`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ReserveContext<'a> {
    /// Decode graphs are captured.
    pub decode_graphs: bool,
    /// The draft model.
    pub draft: Draft,
    /// Expert all-to-all backend, as the engine names it.
    pub expert_backend: &'a str,
}

/// What a fraction is a fraction of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FractionOf {
    /// The card's memory, for weights and KV cache together.
    CardForWeightsAndKv,
    /// The card's memory, for everything that the engine allocates.
    CardForEverything,
    /// What is free once weights are loaded and a step was profiled, for KV cache.
    FreeForKv,
    /// The engine has no fraction: it allocates what is planned.
    Nothing,
}

/// An engine's default memory fraction.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MemoryFraction {
    /// The fraction; 1 where [`FractionOf::Nothing`].
    pub value: f64,
    /// Of what.
    pub of: FractionOf,
    /// MiB that the fraction leaves free of weights and KV cache; none where the card is unknown or
    /// the engine profiles it.
    pub reserved_mib: Option<f64>,
    /// The memory that graphs will take is taken off KV cache beforehand.
    pub estimates_graphs: bool,
}

/// The fraction that the engine picks when none is given.
///
/// The largest decode graph comes from `context.largest` or the engine's default; the chunk is the
/// one of the command line, before any division by attention DP. The result may be zero or below
/// when the reserve exceeds the card, as the engine's own would be: check it against the weights.
pub fn memory_fraction(
    rules: &EngineRules,
    context: &GraphContext<'_>,
    reserve: &ReserveContext<'_>,
) -> MemoryFraction {
    let whole = |of| MemoryFraction {
        value: 1.0,
        of,
        reserved_mib: None,
        estimates_graphs: false,
    };
    let of = FractionOf::CardForWeightsAndKv;
    match &rules.memory {
        MemoryRule::Planned => whole(FractionOf::Nothing),
        MemoryRule::FreeFraction { default } => MemoryFraction {
            value: *default,
            ..whole(FractionOf::FreeForKv)
        },
        MemoryRule::Utilization {
            default,
            estimates_graphs,
        } => MemoryFraction {
            value: *default,
            estimates_graphs: *estimates_graphs,
            ..whole(FractionOf::CardForEverything)
        },
        MemoryRule::Reserve(rule) => match context.gpu_mib {
            Some(card) => of_card(card, terms(rule, rules, context, reserve, card), of),
            None => MemoryFraction {
                value: rule.unknown,
                ..whole(of)
            },
        },
        MemoryRule::ReserveSteps(rule) => match context.gpu_mib {
            Some(card) => of_card(card, steps(rule, context, reserve, card), of),
            None => MemoryFraction {
                value: rule.unknown,
                ..whole(of)
            },
        },
    }
}

/// Rounded to thousandths, as the engine does.
fn of_card(card_mib: u64, reserved: f64, of: FractionOf) -> MemoryFraction {
    let card = card_mib.max(1) as f64;
    MemoryFraction {
        value: ((card - reserved) / card * 1000.0).round_ties_even() / 1000.0,
        of,
        reserved_mib: Some(reserved),
        estimates_graphs: false,
    }
}

fn terms(
    rule: &ReserveRule,
    rules: &EngineRules,
    context: &GraphContext<'_>,
    reserve: &ReserveContext<'_>,
    card: u64,
) -> f64 {
    let chunk = graphs::step_tokens(rules, context);
    let largest = f64::from(
        context
            .largest
            .unwrap_or_else(|| graphs::default_largest(rules, context)),
    );
    let layout = &context.layout;
    let gpus = f64::from(layout.tp) * f64::from(layout.pp.max(1));
    let deepep = reserve.expert_backend == "deepep";

    let mut sum = rule.base_mib
        + rule.token_mib * f64::from(chunk.max(rule.least_tokens))
        + rule.gpu_mib * gpus;
    if reserve.decode_graphs || !rule.graph_off_is_free {
        sum += rule.graph_mib * largest;
    }
    if layout.attention_dp > 1 {
        let ranks = f64::from(layout.attention_dp);
        sum += rule.dp_graph_mib * largest * ranks;
        if largest > f64::from(rule.dp_graph_large) {
            sum += rule.dp_graph_large_mib * largest * ranks;
        }
    }
    let buckets = graphs::prefill_buckets(rules, context, chunk);
    if !buckets.is_empty() {
        if let PrefillReserve::Buckets {
            bucket_mib,
            mla_mib,
        } = rule.prefill
        {
            sum += match mla_mib {
                Some(mla) if context.mla => mla,
                _ => bucket_mib * buckets.len() as f64,
            };
        }
        if deepep {
            sum += rule.deepep_prefill_mib;
        }
    }
    if card > rule.floor_above_mib {
        sum = sum.max(rule.floor_mib);
    }
    sum += match reserve.draft {
        Draft::None => 0.0,
        Draft::Eagle => rule.eagle_mib,
        Draft::Standalone => rule.standalone_mib,
    };
    if let (PrefillReserve::LargestAfterFloor { token_mib }, Some(bucket)) =
        (rule.prefill, buckets.last())
    {
        sum += (token_mib * f64::from(*bucket)).floor();
    }
    if deepep && reserve.decode_graphs {
        sum += rule.deepep_decode_mib;
    }
    sum
}

fn steps(
    rule: &ReserveSteps,
    context: &GraphContext<'_>,
    reserve: &ReserveContext<'_>,
    card: u64,
) -> f64 {
    let layout = &context.layout;
    let gpus = f64::from(layout.tp) * f64::from(layout.pp.max(1));
    let base = rule
        .steps
        .iter()
        .find(|step| step.below_mib.is_none_or(|below| card < below))
        .map_or(0.0, |step| step.base_mib + step.gpu_mib * gpus);
    base + match reserve.draft {
        Draft::None => 0.0,
        Draft::Eagle => rule.speculation_mib,
        Draft::Standalone => rule.standalone_mib,
    } + if layout.attention_dp > 1 {
        rule.attention_dp_mib
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::layout::Layout;
    use parplan_profiles::engine::{embedded, select};

    fn rules(engine: &str) -> EngineRules {
        select(&embedded().unwrap(), engine, false).unwrap()
    }

    fn on(gpu_mib: u64, attention_dp: u32, largest: u32) -> GraphContext<'static> {
        GraphContext {
            layout: Layout {
                replicas: 1,
                tp: 8,
                attention_dp,
                dcp: 1,
                ep: 1,
                pp: 1,
                nodes: 1,
            },
            gpu_mib: Some(gpu_mib),
            gpu: "h100",
            sm: 90,
            running_requests: None,
            pool: None,
            query_length: 1,
            speculation: false,
            gathers: attention_dp > 1,
            two_batch_overlap: false,
            largest: Some(largest),
            tokens: Some(8192),
            mla: true,
        }
    }

    const GRAPHS: ReserveContext<'static> = ReserveContext {
        decode_graphs: true,
        draft: Draft::None,
        expert_backend: "none",
    };

    fn fraction(engine: &str, context: GraphContext<'_>, reserve: ReserveContext<'_>) -> f64 {
        memory_fraction(&rules(engine), &context, &reserve).value
    }

    #[test]
    fn golden_fractions_of_sglang_0_5_23() {
        let new = |mib, dp, largest| fraction("sglang@0.5.23", on(mib, dp, largest), GRAPHS);
        assert_eq!(new(81_559, 1, 512), 0.799);
        assert_eq!(new(81_559, 8, 512), 0.573);
        assert_eq!(new(81_559, 8, 256), 0.730);
        assert_eq!(new(143_771, 8, 512), 0.758);
    }

    #[test]
    fn golden_fractions_of_the_0_5_6_era() {
        // By hand, H100 tp8 chunk 8192 bs512: 512 + 12288 + 1024 + 1024 = 14848 MiB, no prefill term.
        let old = |dp, draft| {
            fraction(
                "sglang@0.5.6.post2",
                on(81_559, dp, 512),
                ReserveContext { draft, ..GRAPHS },
            )
        };
        assert_eq!(old(1, Draft::None), 0.818);
        assert_eq!(old(1, Draft::Eagle), 0.793);
        assert_eq!(old(1, Draft::Standalone), 0.743);
        // Plus (3 + 1.5) * 512 * 8 = 18432 MiB.
        assert_eq!(old(8, Draft::None), 0.592);
        // Before 0.5.3: (9.5 + 8/2) GiB, and 4 GiB for attention DP.
        let older = |dp| fraction("sglang@0.4.9.post6", on(81_559, dp, 512), GRAPHS);
        assert_eq!(older(1), 0.831);
        assert_eq!(older(8), 0.78);
    }

    #[test]
    fn what_changes_the_reserve() {
        let engine = "sglang@0.5.23";
        let base = on(81_559, 8, 512);
        let off = ReserveContext {
            decode_graphs: false,
            ..GRAPHS
        };
        assert!(fraction(engine, base, off) > fraction(engine, base, GRAPHS));
        let deepep = ReserveContext {
            expert_backend: "deepep",
            ..GRAPHS
        };
        let spared = fraction(engine, base, GRAPHS) - fraction(engine, base, deepep);
        assert!((spared - 3072.0 / 81_559.0).abs() < 1.1e-3, "{spared}");
        // DCP turns prefill graphs off and frees their share.
        let mut dcp = base;
        dcp.layout.dcp = 8;
        assert!(fraction(engine, dcp, GRAPHS) > fraction(engine, base, GRAPHS));
        // A tiny configuration on a large card keeps the floor of 10 GiB.
        let mut tiny = on(81_559, 1, 8);
        tiny.layout.tp = 1;
        tiny.tokens = Some(2048);
        assert_eq!(fraction(engine, tiny, GRAPHS), 0.874);
        let unknown = GraphContext {
            gpu_mib: None,
            ..base
        };
        assert_eq!(fraction(engine, unknown, GRAPHS), 0.95);
        assert_eq!(fraction("sglang@0.5.19", unknown, GRAPHS), 0.88);
    }

    #[test]
    fn other_engines() {
        let context = on(81_559, 1, 512);
        let vllm = memory_fraction(&rules("vllm"), &context, &GRAPHS);
        assert_eq!((vllm.value, vllm.of), (0.92, FractionOf::CardForEverything));
        assert!(vllm.estimates_graphs);
        assert_eq!(fraction("vllm@0.18.0", context, GRAPHS), 0.9);
        let trt = memory_fraction(&rules("trtllm"), &context, &GRAPHS);
        assert_eq!((trt.value, trt.of), (0.9, FractionOf::FreeForKv));
        let own = memory_fraction(&rules("builtin"), &context, &GRAPHS);
        assert_eq!(own.of, FractionOf::Nothing);
    }
}
