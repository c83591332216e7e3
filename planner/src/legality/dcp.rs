//! Rules of decode context parallelism.

use super::{Ground, Rule, Sink, nearest_divisor};
use crate::layout::Layout;
use parplan_profiles::Dtype;
use parplan_profiles::engine::rules::{DcpMerge, DcpRule};
use std::ops::ControlFlow;

pub(super) fn dcp(layout: &Layout, ground: &Ground<'_>, sink: &mut Sink<'_>) -> ControlFlow<()> {
    let rules = ground.rules;
    let Some(rule) = &rules.dcp else {
        let reason = || match rules.dcp_since {
            Some(since) => format!(
                "{} {} has no decode context parallelism; {since} is the first version that does",
                rules.name, rules.version
            ),
            None => format!(
                "{} has no decode context parallelism; use dcp 1",
                rules.name
            ),
        };
        return sink(Rule::DcpVersion, &reason, Some(1));
    };
    groups(layout, ground, rule, sink)?;
    kinds(ground, rule, sink)?;
    merges(layout, ground, rule, sink)
}

/// Groups are consecutive ranks of TP, over which heads and copies of the cache divide.
fn groups(
    layout: &Layout,
    ground: &Ground<'_>,
    rule: &DcpRule,
    sink: &mut Sink<'_>,
) -> ControlFlow<()> {
    let (width, model) = (layout.dcp, ground.model);
    let attention_tp = layout.attention_tp().max(1);
    if !attention_tp.is_multiple_of(width) {
        // Groups are consecutive ranks of TP, so another width would straddle data-parallel ranks.
        let right = nearest_divisor(attention_tp, width);
        let reason = || {
            format!(
                "dcp {width} does not divide attention tp {attention_tp} (tp {} / attention dp {}); \
                 the nearest that does is {right}",
                layout.tp, layout.attention_dp
            )
        };
        sink(Rule::DcpDividesAttentionTp, &reason, Some(right))?;
    }
    for heads in &model.attention {
        if heads.latent {
            if !heads.query.is_multiple_of(width) {
                let right = nearest_divisor(heads.query, width);
                let reason = || {
                    format!(
                        "dcp {width} does not divide the {} query heads; {right} does",
                        heads.query
                    )
                };
                sink(Rule::DcpQueryGroup, &reason, Some(right))?;
            }
            continue;
        }
        let copies = (attention_tp / heads.kv.max(1)).max(1);
        if width > copies || (rule.strict_kv_heads && attention_tp <= heads.kv) {
            let reason = || {
                format!(
                    "dcp {width} is wider than the copies of KV: {} KV heads on attention tp \
                     {attention_tp} are kept {}; dcp may be at most {copies}",
                    heads.kv,
                    match copies {
                        1 => "once".to_owned(),
                        more => format!("{more} times"),
                    }
                )
            };
            sink(Rule::DcpCopies, &reason, Some(copies))?;
        }
        let group = heads.query / heads.kv.max(1);
        if rule.group_divides && !group.is_multiple_of(width) {
            let right = nearest_divisor(group, width);
            let reason = || {
                format!(
                    "dcp {width} does not divide the {group} query heads of a KV head; {right} does"
                )
            };
            sink(Rule::DcpQueryGroup, &reason, Some(right))?;
        }
    }
    ControlFlow::Continue(())
}

/// Attention, cache formats and drafts that the engine's merge can take.
fn kinds(ground: &Ground<'_>, rule: &DcpRule, sink: &mut Sink<'_>) -> ControlFlow<()> {
    let (rules, options, model) = (ground.rules, &ground.options, ground.model);
    let missing = [
        (model.window && !rule.sliding_window, "sliding-window"),
        (model.sinks && !rule.sinks, "attention-sink"),
        (model.compressed, "compressed"),
    ];
    for (broken, kind) in missing {
        if broken {
            let reason = || {
                format!(
                    "{} {} cannot merge the {kind} layers of this model over a DCP group; use dcp 1",
                    rules.name, rules.version
                )
            };
            sink(Rule::DcpAttention, &reason, Some(1))?;
        }
    }
    let narrow = matches!(options.kv_dtype, Dtype::Nvfp4 | Dtype::Mxfp4 | Dtype::Mxfp8);
    if narrow && !rule.four_bit_kv {
        let reason = || {
            format!(
                "a KV cache in {} cannot be split over a DCP group by {} {}; fp8 and bf16 can",
                options.kv_dtype, rules.name, rules.version
            )
        };
        sink(Rule::DcpKvFormat, &reason, None)?;
    }
    if options.speculation && !rule.speculation {
        let reason = || {
            format!(
                "{} {} does not draft under DCP; use dcp 1 or no speculation",
                rules.name, rules.version
            )
        };
        sink(Rule::DcpSpeculation, &reason, Some(1))?;
    }
    ControlFlow::Continue(())
}

/// The way that partial outputs are merged, and what it asks for.
fn merges(
    layout: &Layout,
    ground: &Ground<'_>,
    rule: &DcpRule,
    sink: &mut Sink<'_>,
) -> ControlFlow<()> {
    let (rules, options) = (ground.rules, &ground.options);
    let merge = options.dcp_merge.unwrap_or(rule.default_merge);
    let listed = rule.merges.contains(&merge);
    let one_domain = ground.machines.sm / 10 == 10 && ground.machines.link_domain >= layout.dcp;
    if !listed || (merge == DcpMerge::FiA2a && !one_domain) {
        let reason = || {
            let names: Vec<_> = rule.merges.iter().map(|merge| merge.name()).collect();
            if listed {
                format!(
                    "fi_a2a needs compute capability 10.x and one NVLink domain over the DCP group; \
                     use {}",
                    rule.default_merge.name()
                )
            } else {
                format!(
                    "{} {} cannot merge by {}; it knows {}",
                    rules.name,
                    rules.version,
                    merge.name(),
                    names.join(", ")
                )
            }
        };
        sink(Rule::DcpMerge, &reason, None)?;
    }
    let replicable = rule.replicate_q && rule.replicate_q_merges.contains(&merge);
    if options.replicate_q && !replicable {
        let reason = || {
            let names: Vec<_> = rule.replicate_q_merges.iter().map(|m| m.name()).collect();
            if rule.replicate_q {
                format!(
                    "replicated queries need the merge {}, not {}",
                    names.join(" or "),
                    merge.name()
                )
            } else {
                format!(
                    "{} {} cannot replicate the query projection; leave it off",
                    rules.name, rules.version
                )
            }
        };
        sink(Rule::DcpReplicatedQ, &reason, None)?;
    }
    ControlFlow::Continue(())
}
