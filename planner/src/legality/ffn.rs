//! Rules of experts, dense blocks and pipeline stages.

use super::{Ground, Rule, Sink, nearest_common_divisor, nearest_divisor};
use crate::layout::Layout;
use parplan_profiles::Dtype;
use parplan_profiles::engine::EngineRules;
use parplan_profiles::engine::rules::{DenseFfnSplit, ExpertWidths};
use std::ops::ControlFlow;

pub(super) fn experts(
    layout: &Layout,
    ground: &Ground<'_>,
    sink: &mut Sink<'_>,
) -> ControlFlow<()> {
    let (tp, ep) = (layout.tp, layout.ep);
    let (rules, model) = (ground.rules, ground.model);
    if !tp.is_multiple_of(ep) {
        let right = nearest_divisor(tp, ep);
        let reason =
            || format!("ep {ep} does not divide tp {tp}; the nearest that does is {right}");
        return sink(Rule::EpDividesTp, &reason, Some(right));
    }
    if ep > 1 {
        if model.experts.is_empty() {
            let reason = || format!("ep {ep} needs experts, and this model has none; use ep 1");
            return sink(Rule::EpModel, &reason, Some(1));
        }
        if rules.geometry.expert == ExpertWidths::OneOrAll && ep != tp {
            let reason = || {
                format!(
                    "{} {} switches expert parallelism on or off: ep {ep} must be 1 or {tp}",
                    rules.name, rules.version
                )
            };
            sink(
                Rule::EpWidth,
                &reason,
                Some(if ep * 2 > tp { tp } else { 1 }),
            )?;
        }
    }
    let backend = ground
        .options
        .expert_backend
        .unwrap_or(&rules.experts.default);
    if !rules.experts.backends.iter().any(|name| name == backend) {
        let reason = || {
            format!(
                "{} {} has no expert backend '{backend}'; it has {}",
                rules.name,
                rules.version,
                rules.experts.backends.join(", ")
            )
        };
        sink(Rule::ExpertBackend, &reason, None)?;
    } else if backend != rules.experts.default && ground.machines.sm < rules.experts.all_to_all_sm {
        let least = rules.experts.all_to_all_sm;
        let reason = || {
            format!(
                "the expert backend '{backend}' runs on NVIDIA GPUs from compute capability {}.{}; \
                 gather and reduce instead",
                least / 10,
                least % 10
            )
        };
        sink(Rule::ExpertBackend, &reason, None)?;
    } else if backend != rules.experts.default && ep != tp {
        // All-to-all kernels send to every rank of the stage; the engines set ep = tp themselves.
        let reason = || {
            format!("the expert backend '{backend}' runs over every rank: ep {ep} must be tp {tp}")
        };
        sink(Rule::ExpertBackend, &reason, Some(tp))?;
    }
    let moe_tp = tp / ep;
    for block in &model.experts {
        if backend != rules.experts.default && rules.experts.gathered_formats.contains(&block.dtype)
        {
            let reason = || {
                format!(
                    "{} {} has no all-to-all for experts in {}; gather and reduce instead of '{backend}'",
                    rules.name, rules.version, block.dtype
                )
            };
            sink(Rule::ExpertBackend, &reason, None)?;
        }
        if !block.count.is_multiple_of(ep) {
            let right = nearest_common_divisor(block.count, tp, ep);
            let reason = || {
                format!(
                    "ep {ep} does not divide {} experts; the nearest that does, and divides tp {tp}, \
                     is {right}",
                    block.count
                )
            };
            sink(Rule::EpDividesExperts, &reason, Some(right))?;
        }
        let step = block_step(block.dtype, rules);
        if !whole(block.intermediate, moe_tp, step) {
            let right = (1..=tp)
                .filter(|&ep| tp.is_multiple_of(ep) && whole(block.intermediate, tp / ep, step))
                .min_by_key(|right| right.abs_diff(ep));
            let reason = || {
                format!(
                    "experts of width {} do not split over {moe_tp} ranks (tp {tp} / ep {ep}){}; \
                     use ep {}",
                    block.intermediate,
                    in_blocks(step),
                    right.unwrap_or(tp)
                )
            };
            sink(Rule::ExpertShard, &reason, right)?;
        }
    }
    let dense_ranks = match rules.geometry.dense_ffn {
        _ if ground.options.dense_unsplit => 1,
        DenseFfnSplit::Stage => tp,
        DenseFfnSplit::AttentionTp => layout.attention_tp().max(1),
    };
    for block in &model.dense {
        let step = block_step(block.dtype, rules);
        if !whole(block.intermediate, dense_ranks, step) {
            let right = (1..=dense_ranks)
                .filter(|&ranks| whole(block.intermediate, ranks, step))
                .max();
            let reason = || {
                format!(
                    "dense layers of width {} do not split over {dense_ranks} ranks{}; at most {} \
                     ranks, or dense layers left unsplit",
                    block.intermediate,
                    in_blocks(step),
                    right.unwrap_or(1)
                )
            };
            sink(Rule::DenseShard, &reason, right)?;
        }
    }
    ControlFlow::Continue(())
}

/// The embedding and the output projection are split by tokens of the vocabulary.
pub(super) fn vocabulary(
    layout: &Layout,
    ground: &Ground<'_>,
    sink: &mut Sink<'_>,
) -> ControlFlow<()> {
    let multiple = ground.rules.geometry.vocabulary_multiple;
    let ranks = match ground.rules.geometry.dense_ffn {
        DenseFfnSplit::Stage => layout.tp,
        DenseFfnSplit::AttentionTp => layout.attention_tp().max(1),
    };
    let padded = match ground.model.vocabulary.checked_next_multiple_of(multiple) {
        Some(padded) => padded,
        // No multiple is asked for.
        None => return ControlFlow::Continue(()),
    };
    if padded.is_multiple_of(ranks) {
        return ControlFlow::Continue(());
    }
    let right = nearest_divisor(padded, ranks);
    let reason = || {
        format!(
            "the vocabulary of {} tokens, padded to {padded}, does not split over {ranks} ranks in {} \
             {}; {right} is the nearest number that divides it",
            ground.model.vocabulary, ground.rules.name, ground.rules.version
        )
    };
    sink(Rule::Vocabulary, &reason, Some(right))
}

pub(super) fn pipeline(
    layout: &Layout,
    ground: &Ground<'_>,
    sink: &mut Sink<'_>,
) -> ControlFlow<()> {
    let (rules, pp) = (ground.rules, layout.pp);
    if pp > ground.model.layers {
        let reason = || {
            format!(
                "pp {pp} has more stages than the model has layers; pp may be at most {}",
                ground.model.layers
            )
        };
        sink(Rule::PpLayers, &reason, Some(ground.model.layers.max(1)))?;
    }
    if pp > 1 && ground.options.speculation && !rules.geometry.pipeline_with_speculation {
        let reason = || {
            format!(
                "{} {} does not draft under pipeline stages; use pp 1 or no speculation",
                rules.name, rules.version
            )
        };
        sink(Rule::PpSpeculation, &reason, Some(1))?;
    }
    if pp > 1 && layout.attention_dp > 1 && !rules.geometry.pipeline_with_attention_dp {
        let reason = || {
            format!(
                "{} does not combine pp {pp} with attention dp {}; one of them must be 1",
                rules.name, layout.attention_dp
            )
        };
        sink(Rule::PpAttentionDp, &reason, Some(1))?;
    }
    ControlFlow::Continue(())
}

/// Columns that a shard is a multiple of: 128 where block scales must stay whole.
fn block_step(dtype: Dtype, rules: &EngineRules) -> u32 {
    if dtype == Dtype::Fp8Block && rules.geometry.fp8_whole_blocks {
        128
    } else {
        1
    }
}

fn in_blocks(step: u32) -> &'static str {
    if step > 1 {
        " in whole blocks of 128"
    } else {
        ""
    }
}

fn whole(width: u32, ranks: u32, step: u32) -> bool {
    ranks > 0 && width.is_multiple_of(ranks) && (ranks == 1 || (width / ranks).is_multiple_of(step))
}
