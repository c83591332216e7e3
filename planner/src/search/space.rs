//! The space of configurations.

use crate::deployment::Setup;
use crate::layout::Layout;
use crate::legality::ModelShape;
use crate::plan::Choice;
use crate::question::{Space, Traffic};

/// Divisors of `n`, ascending; those that are not powers of two times a common factor of usual
/// cluster sizes stay in, legality sorts them out.
fn divisors(n: u32) -> Vec<u32> {
    (1..=n.min(4096)).filter(|d| n.is_multiple_of(*d)).collect()
}

fn fixed_or(value: Option<u32>, all: Vec<u32>) -> Vec<u32> {
    match value {
        Some(value) => vec![value],
        None => all,
    }
}

/// GPUs above which sizes that do not divide the model are left out without a word.
///
/// A count with many divisors has millions of splits; a refusal of each helps nobody.
const MANY_GPUS: u32 = 256;

/// Whether some attention layer's heads spread evenly over `ranks`.
fn spreads(shape: &ModelShape, ranks: u32) -> bool {
    shape
        .attention
        .iter()
        .any(|heads| heads.query.is_multiple_of(ranks))
        || shape
            .recurrent_heads
            .iter()
            .any(|heads| heads.is_multiple_of(ranks))
}

/// Every split of the space's GPUs that its fixed sizes allow, in a fixed order.
///
/// Sizes that a person fixed are taken as they are, legal or not, so that a refusal can say why.
pub(crate) fn layouts(setup: &Setup<'_>, space: &Space) -> Vec<Layout> {
    let shape = ModelShape::of(setup.model);
    let many = space.gpus > MANY_GPUS;
    let most_experts = shape.experts.iter().map(|e| e.count).max().unwrap_or(1);
    let moe = setup.model.is_moe();
    let mut out = Vec::new();
    for replicas in fixed_or(space.replicas, divisors(space.gpus)) {
        let one = space.gpus / replicas.max(1);
        // Stages beyond one a node do not pay: inside a node tensor parallelism does better, and
        // deeper pipelines than 8 stages are not offered by any engine's recipe.
        for pp in fixed_or(
            space.pp,
            divisors(one).into_iter().filter(|&pp| pp <= 8).collect(),
        ) {
            for tp in fixed_or(space.tp, vec![one / pp.max(1)]) {
                // All GPUs are used, unless every size was fixed to something else: then
                // legality says what is wrong with it.
                let fixed = space.tp.is_some() && space.pp.is_some() && space.replicas.is_some();
                let used = tp.checked_mul(pp).and_then(|n| n.checked_mul(replicas));
                if !fixed && used != Some(space.gpus) {
                    continue;
                }
                for attention_dp in fixed_or(space.attention_dp, divisors(tp)) {
                    let attention_tp = tp / attention_dp.max(1);
                    if many && space.attention_dp.is_none() && !spreads(&shape, attention_tp.max(1))
                    {
                        continue;
                    }
                    for dcp in fixed_or(space.dcp, divisors(attention_tp.max(1))) {
                        let widths = if moe { divisors(tp) } else { vec![1] };
                        for ep in fixed_or(space.ep, widths) {
                            if many && space.ep.is_none() && ep > most_experts {
                                continue;
                            }
                            out.push(Layout {
                                replicas,
                                tp,
                                attention_dp,
                                dcp,
                                ep,
                                pp,
                                nodes: space.replica_nodes(tp, pp),
                            });
                        }
                    }
                }
            }
        }
    }
    out
}

/// Every choice beside the layout, in a fixed order.
pub(crate) fn choices(
    setup: &Setup<'_>,
    traffic: &Traffic,
    space: &Space,
    layout: Layout,
) -> Vec<Choice> {
    let drafts: &[u32] = &match traffic.speculation {
        Some(s) => [0, s.steps],
        None => [0, 0],
    };
    let drafts = if traffic.speculation.is_some() && setup.model.mtp_layer.is_some() {
        drafts
    } else {
        &drafts[..1]
    };
    let mut out = Vec::new();
    for &kv_dtype in &space.kv_dtypes {
        for &cuda_graphs in &space.cuda_graphs {
            for &symmetric_memory in &space.symmetric_memory {
                if symmetric_memory && (setup.rules.symmetric.is_none() || layout.tp == 1) {
                    continue;
                }
                for &expert_all_to_all in &space.expert_all_to_all {
                    if expert_all_to_all
                        && (layout.ep <= 1 || setup.rules.experts.all_to_all().is_none())
                    {
                        continue;
                    }
                    for &speculative_steps in drafts {
                        out.push(Choice {
                            layout,
                            kv_dtype,
                            cuda_graphs,
                            symmetric_memory,
                            speculative_steps,
                            expert_all_to_all,
                        });
                    }
                }
            }
        }
    }
    out
}
