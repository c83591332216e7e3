//! Which layouts an engine can run, and the reason for each that it cannot.
//!
//! Every rule is checked before a launch, also those that an engine finds out late (SGLang asserts
//! some only at the first decode) or never (KV that silently corrupts when the heads of a DCP group
//! differ). [`is_legal`] allocates nothing; [`check`] says everything that is wrong, each with the
//! nearest value that would pass.

mod shape;

pub use shape::ModelShape;

use crate::layout::Layout;
use parplan_profiles::Dtype;
use parplan_profiles::engine::EngineRules;
use parplan_profiles::engine::rules::{AttentionDpWidths, DcpMerge, ExpertWidths};
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;

/// The machines that a layout is placed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machines {
    /// GPUs in all.
    pub gpus: u32,
    /// GPUs of a node.
    pub gpus_per_node: u32,
    /// GPUs of one NVLink (or xGMI) domain.
    pub link_domain: u32,
    /// Compute capability times ten; 0 on AMD.
    pub sm: u16,
}

/// What is asked of the engine besides the split.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options<'a> {
    /// Expert all-to-all backend; none for the engine's default.
    pub expert_backend: Option<&'a str>,
    /// How partial attention is merged; none for the engine's default.
    pub dcp_merge: Option<DcpMerge>,
    /// The query projection is replicated over the DCP group.
    pub replicate_q: bool,
    /// Speculative decoding is on.
    pub speculation: bool,
    /// Format of the KV cache.
    pub kv_dtype: Dtype,
    /// Symmetric memory is asked for.
    pub symmetric_memory: bool,
    /// Dense feed-forward blocks are not split (`--moe-dense-tp-size 1`).
    pub dense_unsplit: bool,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            expert_backend: None,
            dcp_merge: None,
            replicate_q: false,
            speculation: false,
            kv_dtype: Dtype::Bf16,
            symmetric_memory: false,
            dense_unsplit: false,
        }
    }
}

/// Everything that legality depends on.
#[derive(Debug, Clone, Copy)]
pub struct Ground<'a> {
    /// The engine's rules.
    pub rules: &'a EngineRules,
    /// The model.
    pub model: &'a ModelShape,
    /// The machines.
    pub machines: Machines,
    /// What else is asked.
    pub options: Options<'a>,
}

/// Why a layout is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// The rule.
    pub rule: Rule,
    /// A sentence: what was wrong, the value, and what would be right.
    pub reason: String,
    /// The nearest value of the refused size that passes this rule, where one does.
    pub nearest: Option<u32>,
}

/// The rules of legality.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Every size is at least 1.
    Positive,
    /// The layout fits the GPUs there are.
    GpuCount,
    /// Nodes hold equal parts of a replica, and no more than they have.
    Nodes,
    /// The engine spans nodes.
    SeveralNodes,
    /// Attention DP divides TP.
    AttentionDpDividesTp,
    /// The engine takes this attention DP width.
    AttentionDpWidth,
    /// The engine runs this kind of model under attention DP.
    AttentionDpModel,
    /// Heads spread over attention TP.
    Heads,
    /// Heads of recurrent layers spread over attention TP.
    RecurrentHeads,
    /// The version has DCP.
    DcpVersion,
    /// DCP divides attention TP.
    DcpDividesAttentionTp,
    /// DCP is no wider than the copies of KV.
    DcpCopies,
    /// DCP divides the query heads of a KV head.
    DcpQueryGroup,
    /// The attention of the model can be merged.
    DcpAttention,
    /// The KV format can be split.
    DcpKvFormat,
    /// The version drafts under DCP.
    DcpSpeculation,
    /// The merge is one that the version and the machines have.
    DcpMerge,
    /// Replicated queries are available.
    DcpReplicatedQ,
    /// EP divides TP.
    EpDividesTp,
    /// The engine takes this EP width.
    EpWidth,
    /// EP needs experts.
    EpModel,
    /// EP divides the experts.
    EpDividesExperts,
    /// The all-to-all backend exists and fits.
    ExpertBackend,
    /// Expert shards are whole.
    ExpertShard,
    /// Dense shards are whole.
    DenseShard,
    /// No more stages than layers.
    PpLayers,
    /// The engine drafts under pipeline stages.
    PpSpeculation,
    /// The engine combines pipeline stages and attention DP.
    PpAttentionDp,
    /// The version has symmetric memory.
    SymmetricMemory,
}

/// Checks every rule.
///
/// # Errors
/// All refusals, in the order of [`Rule`].
pub fn check(layout: &Layout, ground: &Ground<'_>) -> Result<(), Vec<Refusal>> {
    let mut refusals = Vec::new();
    let _ = walk(layout, ground, &mut |rule, reason, nearest| {
        refusals.push(Refusal {
            rule,
            reason: reason(),
            nearest,
        });
        ControlFlow::Continue(())
    });
    if refusals.is_empty() {
        Ok(())
    } else {
        Err(refusals)
    }
}

/// Whether every rule holds. Allocates nothing.
pub fn is_legal(layout: &Layout, ground: &Ground<'_>) -> bool {
    walk(layout, ground, &mut |_, _, _| ControlFlow::Break(())).is_continue()
}

/// No cluster has more GPUs; the search for nearest values stays short below it.
const MOST: u32 = 1 << 16;

type Sink<'s> = dyn FnMut(Rule, &dyn Fn() -> String, Option<u32>) -> ControlFlow<()> + 's;

/// Visits the broken rules in order.
fn walk(layout: &Layout, ground: &Ground<'_>, sink: &mut Sink<'_>) -> ControlFlow<()> {
    let sizes = [
        ("replicas", layout.replicas),
        ("tp", layout.tp),
        ("attention dp", layout.attention_dp),
        ("dcp", layout.dcp),
        ("ep", layout.ep),
        ("pp", layout.pp),
        ("nodes", layout.nodes),
    ];
    let mut positive = true;
    for (name, value) in sizes {
        if value == 0 {
            positive = false;
            let reason = || format!("{name} is 0; every size of a layout is at least 1");
            sink(Rule::Positive, &reason, Some(1))?;
        }
    }
    if !positive {
        // The other rules divide by these.
        return ControlFlow::Continue(());
    }
    for (name, value) in sizes {
        if value > MOST {
            let reason =
                || format!("{name} {value} is absurd; no size of a layout is above {MOST}");
            return sink(
                Rule::GpuCount,
                &reason,
                Some(ground.machines.gpus.clamp(1, MOST)),
            );
        }
    }
    machines(layout, ground, sink)?;
    attention(layout, ground, sink)?;
    if layout.dcp > 1 {
        dcp(layout, ground, sink)?;
    }
    experts(layout, ground, sink)?;
    pipeline(layout, ground, sink)
}

fn machines(layout: &Layout, ground: &Ground<'_>, sink: &mut Sink<'_>) -> ControlFlow<()> {
    let machines = &ground.machines;
    let stage = u64::from(layout.tp) * u64::from(layout.pp);
    let wanted = stage.saturating_mul(u64::from(layout.replicas));
    if wanted > u64::from(machines.gpus) {
        let fits = u32::try_from(u64::from(machines.gpus) / stage).unwrap_or(u32::MAX);
        let reason = || {
            let mut text = format!(
                "replicas {} x tp {} x pp {} need {wanted} GPUs, and there are {}",
                layout.replicas, layout.tp, layout.pp, machines.gpus
            );
            match fits {
                0 => {
                    let tp = machines.gpus / layout.pp;
                    text.push_str(&format!(
                        "; tp x pp may be at most {}, for example tp {}",
                        machines.gpus,
                        largest_power_of_two(tp)
                    ));
                }
                _ => text.push_str(&format!("; replicas may be at most {fits}")),
            }
            text
        };
        sink(Rule::GpuCount, &reason, (fits > 0).then_some(fits))?;
    }
    let nodes = u64::from(layout.nodes);
    let per_node = u64::from(machines.gpus_per_node.max(1));
    if stage % nodes != 0 || stage / nodes > per_node || nodes > stage {
        let right = stage.div_ceil(per_node);
        let right = (right..=stage).find(|&count| stage % count == 0);
        let right = right.and_then(|count| u32::try_from(count).ok());
        let reason = || {
            format!(
                "tp {} x pp {} on {nodes} nodes of {per_node} GPUs: every node must hold an equal \
                 part that fits; {} nodes would",
                layout.tp,
                layout.pp,
                right.unwrap_or(1)
            )
        };
        sink(Rule::Nodes, &reason, right)?;
    }
    if layout.nodes > 1 && !ground.rules.geometry.several_nodes {
        let reason = || {
            format!(
                "{} does not span nodes; use nodes 1 and at most {per_node} GPUs a replica",
                ground.rules.name
            )
        };
        sink(Rule::SeveralNodes, &reason, Some(1))?;
    }
    if ground.options.symmetric_memory && ground.rules.symmetric.is_none() {
        let reason = || {
            format!(
                "{} {} has no symmetric memory; leave it off",
                ground.rules.name, ground.rules.version
            )
        };
        sink(Rule::SymmetricMemory, &reason, None)?;
    }
    ControlFlow::Continue(())
}

fn attention(layout: &Layout, ground: &Ground<'_>, sink: &mut Sink<'_>) -> ControlFlow<()> {
    let (tp, dp) = (layout.tp, layout.attention_dp);
    let rules = ground.rules;
    if tp % dp != 0 {
        let right = nearest_divisor(tp, dp);
        let reason = || {
            format!("attention dp {dp} does not divide tp {tp}; the nearest that does is {right}")
        };
        sink(Rule::AttentionDpDividesTp, &reason, Some(right))?;
        // Attention TP has no meaning then.
        return ControlFlow::Continue(());
    }
    if dp > 1 {
        if rules.geometry.attention_dp == AttentionDpWidths::OneOrAll && dp != tp {
            let right = if dp * 2 > tp { tp } else { 1 };
            let reason = || {
                format!(
                    "{} makes every rank of tp a data-parallel rank or none: attention dp {dp} \
                     must be 1 or {tp}",
                    rules.name
                )
            };
            sink(Rule::AttentionDpWidth, &reason, Some(right))?;
        }
        if !rules.geometry.attention_dp_dense_model && ground.model.experts.is_empty() {
            let reason = || {
                format!(
                    "{} runs the data-parallel ranks of a model without experts as independent \
                     engines; plan replicas {} with tp {} instead of attention dp {dp}",
                    rules.name,
                    layout.replicas.saturating_mul(dp),
                    tp / dp
                )
            };
            sink(Rule::AttentionDpModel, &reason, Some(1))?;
        }
    }
    let attention_tp = tp / dp;
    for heads in &ground.model.attention {
        let spreads = heads.query % attention_tp == 0
            && (heads.kv % attention_tp == 0 || attention_tp % heads.kv == 0);
        if !spreads {
            let right = (1..=tp)
                .filter(|width| tp % width == 0)
                .filter(|width| {
                    heads.query % width == 0 && (heads.kv % width == 0 || width % heads.kv == 0)
                })
                .min_by_key(|width| width.abs_diff(attention_tp));
            let reason = || {
                format!(
                    "{} query heads and {} KV heads do not spread over attention tp {attention_tp} \
                     (tp {tp} / attention dp {dp}); attention tp {} would",
                    heads.query,
                    heads.kv,
                    right.unwrap_or(1)
                )
            };
            sink(Rule::Heads, &reason, right)?;
        }
    }
    for &heads in &ground.model.recurrent_heads {
        if heads % attention_tp != 0 {
            let right = nearest_divisor(heads, attention_tp);
            let reason = || {
                format!(
                    "{heads} heads of the recurrent layers do not spread over attention tp \
                     {attention_tp}; {right} is the nearest that divides them"
                )
            };
            sink(Rule::RecurrentHeads, &reason, Some(right))?;
        }
    }
    ControlFlow::Continue(())
}

fn dcp(layout: &Layout, ground: &Ground<'_>, sink: &mut Sink<'_>) -> ControlFlow<()> {
    let (rules, options, model) = (ground.rules, &ground.options, ground.model);
    let width = layout.dcp;
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
    let attention_tp = layout.attention_tp().max(1);
    if attention_tp % width != 0 {
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
            if heads.query % width != 0 {
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
                     {attention_tp} are kept {copies} times; dcp may be at most {copies}",
                    heads.kv
                )
            };
            sink(Rule::DcpCopies, &reason, Some(copies))?;
        }
        let group = heads.query / heads.kv.max(1);
        if rule.group_divides && group % width != 0 {
            let right = nearest_divisor(group, width);
            let reason = || {
                format!(
                    "dcp {width} does not divide the {group} query heads of a KV head; {right} does"
                )
            };
            sink(Rule::DcpQueryGroup, &reason, Some(right))?;
        }
    }
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
    let merge = options.dcp_merge.unwrap_or(rule.default_merge);
    let listed = rule.merges.contains(&merge);
    let one_domain = ground.machines.sm / 10 == 10 && ground.machines.link_domain >= width;
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

fn experts(layout: &Layout, ground: &Ground<'_>, sink: &mut Sink<'_>) -> ControlFlow<()> {
    let (tp, ep) = (layout.tp, layout.ep);
    let (rules, model) = (ground.rules, ground.model);
    if tp % ep != 0 {
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
    } else if backend != rules.experts.default && ep != tp {
        // All-to-all kernels send to every rank of the stage; the engines set ep = tp themselves.
        let reason = || {
            format!("the expert backend '{backend}' runs over every rank: ep {ep} must be tp {tp}")
        };
        sink(Rule::ExpertBackend, &reason, Some(tp))?;
    }
    let moe_tp = tp / ep;
    for block in &model.experts {
        if block.count % ep != 0 {
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
                .filter(|ep| tp % ep == 0 && whole(block.intermediate, tp / ep, step))
                .min_by_key(|right| right.abs_diff(ep));
            let reason = || {
                format!(
                    "experts of width {} do not split over {moe_tp} ranks (tp {tp} / ep {ep}){}; \
                     ep {} would do",
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
        parplan_profiles::engine::rules::DenseFfnSplit::Stage => tp,
        parplan_profiles::engine::rules::DenseFfnSplit::AttentionTp => layout.attention_tp().max(1),
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

fn pipeline(layout: &Layout, ground: &Ground<'_>, sink: &mut Sink<'_>) -> ControlFlow<()> {
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
    ranks > 0 && width % ranks == 0 && (ranks == 1 || (width / ranks) % step == 0)
}

fn largest_power_of_two(limit: u32) -> u32 {
    limit.checked_ilog2().map_or(1, |log| 1 << log)
}

/// The divisor of `of` nearest to `value`; of two, the smaller.
fn nearest_divisor(of: u32, value: u32) -> u32 {
    nearest_common_divisor(of, of, value)
}

fn nearest_common_divisor(a: u32, b: u32, value: u32) -> u32 {
    let divides = |&width: &u32| a % width == 0 && b % width == 0;
    let bound = a.min(b).min(value.saturating_mul(2)).clamp(1, MOST);
    (1..=bound)
        .filter(divides)
        .min_by_key(|width| width.abs_diff(value))
        .unwrap_or(1)
}

#[cfg(test)]
mod tests;
