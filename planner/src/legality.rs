//! Which layouts an engine can run, and the reason for each that it cannot.
//!
//! Every rule is checked before a launch, also those that an engine finds out late (SGLang asserts
//! some only at the first decode) or never (KV that silently corrupts when the heads of a DCP group
//! differ). [`is_legal`] allocates nothing; [`check`] says everything that is wrong, each with the
//! nearest value that would pass.

mod asked;
mod dcp;
mod ffn;
mod shape;

pub use shape::ModelShape;

use crate::layout::Layout;
use parplan_profiles::Dtype;
use parplan_profiles::engine::EngineRules;
use parplan_profiles::engine::rules::{AttentionDpWidths, DcpMerge};
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
    /// The limit of running requests that a person set, as the engine's own flag counts it.
    pub running_requests: Option<u32>,
    /// Of how many attention-DP ranks batches are listed, where they are.
    pub batches: Option<u32>,
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
            running_requests: None,
            batches: None,
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
    /// The vocabulary divides.
    Vocabulary,
    /// No more stages than layers.
    PpLayers,
    /// The engine drafts under pipeline stages.
    PpSpeculation,
    /// The engine combines pipeline stages and attention DP.
    PpAttentionDp,
    /// The version has symmetric memory.
    SymmetricMemory,
    /// Batches are listed for the ranks that there are.
    Imbalance,
    /// Every rank runs a request.
    RunningRequests,
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
        dcp::dcp(layout, ground, sink)?;
    }
    ffn::experts(layout, ground, sink)?;
    ffn::vocabulary(layout, ground, sink)?;
    ffn::pipeline(layout, ground, sink)?;
    asked::asked(layout, ground, sink)
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
    if !stage.is_multiple_of(nodes) || stage / nodes > per_node || nodes > stage {
        let right = stage.div_ceil(per_node);
        let right = (right..=stage).find(|&count| stage.is_multiple_of(count));
        let right = right.and_then(|count| u32::try_from(count).ok());
        let reason = || {
            format!(
                "tp {} x pp {} on {nodes} nodes of {per_node} GPUs: every node must hold an equal \
                 part that fits; use nodes {}",
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
    } else if ground.options.symmetric_memory && ground.machines.sm == 0 {
        let reason = || "symmetric memory is NCCL's, for NVIDIA GPUs; leave it off".to_owned();
        sink(Rule::SymmetricMemory, &reason, None)?;
    }
    ControlFlow::Continue(())
}

fn attention(layout: &Layout, ground: &Ground<'_>, sink: &mut Sink<'_>) -> ControlFlow<()> {
    let (tp, dp) = (layout.tp, layout.attention_dp);
    let rules = ground.rules;
    if !tp.is_multiple_of(dp) {
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
        let spreads = heads.query.is_multiple_of(attention_tp)
            && (heads.kv.is_multiple_of(attention_tp) || attention_tp.is_multiple_of(heads.kv));
        if !spreads {
            let right = (1..=tp)
                .filter(|&width| tp.is_multiple_of(width))
                .filter(|&width| {
                    heads.query.is_multiple_of(width)
                        && (heads.kv.is_multiple_of(width) || width.is_multiple_of(heads.kv))
                })
                .min_by_key(|width| width.abs_diff(attention_tp));
            let reason = || {
                format!(
                    "{} query heads and {} KV head{} do not spread over attention tp {attention_tp} \
                     (tp {tp} / attention dp {dp}); use attention tp {}",
                    heads.query,
                    heads.kv,
                    if heads.kv == 1 { "" } else { "s" },
                    right.unwrap_or(1)
                )
            };
            sink(Rule::Heads, &reason, right)?;
        }
    }
    for &heads in &ground.model.recurrent_heads {
        if !heads.is_multiple_of(attention_tp) {
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

fn largest_power_of_two(limit: u32) -> u32 {
    limit.checked_ilog2().map_or(1, |log| 1 << log)
}

/// The divisor of `of` nearest to `value`; of two, the smaller.
fn nearest_divisor(of: u32, value: u32) -> u32 {
    nearest_common_divisor(of, of, value)
}

fn nearest_common_divisor(a: u32, b: u32, value: u32) -> u32 {
    let divides = |&width: &u32| a.is_multiple_of(width) && b.is_multiple_of(width);
    let bound = a.min(b).min(value.saturating_mul(2)).clamp(1, MOST);
    (1..=bound)
        .filter(divides)
        .min_by_key(|width| width.abs_diff(value))
        .unwrap_or(1)
}

#[cfg(test)]
mod tests;
