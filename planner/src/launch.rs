//! The commands that start what was planned.
//!
//! A [`LaunchSpec`] is the plan in plain numbers, in parplan's own units: requests of one
//! attention-DP rank, GPUs of a stage. [`launch`] spells it for an engine version: units are
//! converted here and nowhere else, spellings are data of the profile, and every value is one
//! argument of a command that no shell reads.

mod builtin;
mod place;
mod sglang;
mod trtllm;
mod vllm;
mod words;

use crate::layout::Layout;
use parplan_profiles::Dtype;
pub use parplan_profiles::engine::flags::DraftMethod;
use parplan_profiles::engine::flags::Meaning;
use parplan_profiles::engine::rules::DcpMerge;
use parplan_profiles::engine::{Dialect, EngineRules};
use place::{Place, check_values, places};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Ports of replicas on one machine lie this far apart, because engines take ports above their own.
pub const PORT_STEP: u16 = 100;

/// What to start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchSpec {
    /// Path or repository of the model.
    pub model: String,
    /// Name that clients ask for; none for the engine's default.
    pub served_name: Option<String>,
    /// The split.
    pub layout: Layout,
    /// GPUs of a machine.
    pub gpus_per_node: u32,
    /// Requests that one attention-DP rank may run; none for the engine's default.
    pub running_per_rank: Option<u32>,
    /// Decode steps between two looks for new requests, where it is not every one.
    pub receive_interval: Option<u32>,
    /// Captured decode graphs in the engine's unit; empty for none at all, absent for the default.
    pub graph_sizes: Option<Vec<u32>>,
    /// Capture no prefill graphs.
    pub prefill_graphs_off: bool,
    /// Fraction of GPU memory, in the engine's meaning; none for its default.
    pub memory_fraction: Option<f64>,
    /// Format that the linear layers of a bf16 checkpoint are quantised to while they are loaded; none
    /// for the checkpoint's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Dtype>,
    /// Format of the KV cache; none for the engine's default.
    pub kv_dtype: Option<Dtype>,
    /// Longest sequence, tokens.
    pub context_length: Option<u32>,
    /// It is beyond the length that the model was configured for, which engines have to be told twice.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub long_context: bool,
    /// Tokens of a prefill chunk or step as the command line counts them (SGLang divides them by
    /// attention DP).
    pub chunk_tokens: Option<u32>,
    /// Tokens of a KV page.
    pub page_size: Option<u32>,
    /// Speculative decoding.
    pub speculation: Option<Speculation>,
    /// Collective buffers in symmetric memory.
    pub symmetric_memory: bool,
    /// No custom all-reduce.
    pub custom_all_reduce_off: bool,
    /// Expert all-to-all backend; none for the engine's default.
    pub expert_backend: Option<String>,
    /// Kernels of the routed experts; none for the engine's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert_kernel: Option<String>,
    /// How partial attention is merged; none for the engine's default.
    pub dcp_merge: Option<DcpMerge>,
    /// The query projection is replicated over the DCP group.
    pub replicate_q: bool,
    /// Dense feed-forward blocks and the output projection stay with their data-parallel rank.
    pub dense_unsplit: bool,
    /// No reuse of prefixes between requests.
    pub prefix_cache_off: bool,
    /// Run code that the model repository ships.
    pub trust_remote_code: bool,
    /// Address to listen on.
    pub host: String,
    /// Port of the first replica on a machine.
    pub port: u16,
    /// Names or addresses of the machines, in order; machines beyond the list are `node0`, `node1`…
    pub machines: Vec<String>,
    /// Port where the nodes of a replica meet.
    pub rendezvous_port: u16,
    /// Further arguments, each passed on as it is.
    pub extra_args: Vec<String>,
    /// Further environment variables.
    pub extra_env: BTreeMap<String, String>,
}

/// Speculative decoding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Speculation {
    /// How drafts are made.
    pub method: DraftMethod,
    /// The draft model, where it is not part of the checkpoint.
    pub draft_model: Option<String>,
    /// Draft steps.
    pub steps: u32,
    /// Branches kept at each step; 1 is a chain.
    pub top_k: u32,
    /// Tokens verified at once; `steps + 1` for a chain.
    pub draft_tokens: u32,
}

impl LaunchSpec {
    /// A spec with an engine's defaults for everything but the model and the split.
    pub fn new(model: &str, layout: Layout, gpus_per_node: u32) -> Self {
        Self {
            model: model.to_owned(),
            served_name: None,
            layout,
            gpus_per_node,
            running_per_rank: None,
            receive_interval: None,
            graph_sizes: None,
            prefill_graphs_off: false,
            memory_fraction: None,
            quantization: None,
            kv_dtype: None,
            context_length: None,
            long_context: false,
            chunk_tokens: None,
            page_size: None,
            speculation: None,
            symmetric_memory: false,
            custom_all_reduce_off: false,
            expert_backend: None,
            expert_kernel: None,
            dcp_merge: None,
            replicate_q: false,
            dense_unsplit: false,
            prefix_cache_off: false,
            trust_remote_code: false,
            host: "127.0.0.1".to_owned(),
            port: 30_000,
            machines: Vec::new(),
            rendezvous_port: 29_500,
            extra_args: Vec::new(),
            extra_env: BTreeMap::new(),
        }
    }

    /// GPUs of one replica.
    fn replica_gpus(&self) -> u32 {
        self.layout.tp.saturating_mul(self.layout.pp)
    }
}

/// Commands for every node of every replica.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LaunchPlan {
    /// The engine, for example `sglang`.
    pub engine: String,
    /// The version that the spellings are of.
    pub version: String,
    /// The commands were checked against that version's own parser.
    pub verified: bool,
    /// One command a node and replica, replicas outermost.
    pub nodes: Vec<NodeCommand>,
    /// What a person must know or fill in.
    pub notes: Vec<String>,
}

/// What one machine runs for one replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeCommand {
    /// The replica.
    pub replica: u32,
    /// The node of the replica.
    pub node: u32,
    /// The machine it runs on.
    pub machine: String,
    /// GPUs that the process uses.
    pub gpus: u32,
    /// Port that serves, on the first node of a replica.
    pub port: Option<u16>,
    /// Program and arguments; no shell reads them.
    pub argv: Vec<String>,
    /// Environment variables to set.
    pub env: BTreeMap<String, String>,
    /// Files to write beside the process before it starts: name and content.
    pub files: Vec<(String, String)>,
}

/// Why no command can be given.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LaunchError {
    /// The version has no option for it.
    #[error("{engine} {version} has no option for {what}; {instead}")]
    NoOption {
        /// The engine.
        engine: String,
        /// The version.
        version: String,
        /// What was asked.
        what: String,
        /// What would work.
        instead: String,
    },
    /// A value cannot be passed on.
    #[error("{field} {value:?} cannot be passed on: {why}")]
    Value {
        /// The field of the spec.
        field: &'static str,
        /// The value.
        value: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// The split cannot be placed on machines.
    #[error("{0}")]
    Placement(String),
}

/// Spells a plan for an engine version.
///
/// # Errors
/// Options that the version lacks, values that no argument can carry, and splits that do not fit
/// machines; layouts are otherwise taken as legal.
pub fn launch(rules: &EngineRules, spec: &LaunchSpec) -> Result<LaunchPlan, LaunchError> {
    check_values(spec)?;
    let places = places(spec)?;
    let mut notes = Vec::new();
    if let Some(asked) = &rules.assumed_for {
        notes.push(format!(
            "{} {asked} has no rules of its own; spellings of {} are assumed",
            rules.name, rules.version
        ));
    }
    if !rules.verified {
        notes.push(format!(
            "commands of {} are unverified: they were not run through its parser",
            rules.name
        ));
    }
    if spec.layout.nodes > 1 && spec.machines.is_empty() {
        notes.push("replace node0, node1, … by the addresses of the machines".to_owned());
    }
    if spec.layout.replicas > 1 {
        notes.push(format!(
            "{} replicas are servers of their own; put a load balancer in front of their ports",
            spec.layout.replicas
        ));
    }
    if spec.symmetric_memory
        && rules
            .symmetric
            .as_ref()
            .is_some_and(|rule| rule.forces_nvls)
    {
        notes.push(format!(
            "{}'s symmetric-memory option sets NCCL_NVLS_ENABLE=1 in its own processes, whatever \
             the environment says",
            rules.name
        ));
    }
    let mut nodes = Vec::with_capacity(places.len());
    for place in &places {
        let mut node = match rules.dialect {
            Dialect::Sglang => sglang::command(rules, spec, place)?,
            Dialect::Vllm => vllm::command(rules, spec, place)?,
            Dialect::Trtllm => trtllm::command(rules, spec, place, &mut notes)?,
            Dialect::Builtin => builtin::command(rules, spec, place)?,
        };
        if let Some(offset) = place.offset {
            let devices: Vec<_> = (offset..offset + place.gpus)
                .map(|gpu| gpu.to_string())
                .collect();
            node.env
                .insert("CUDA_VISIBLE_DEVICES".to_owned(), devices.join(","));
        }
        node.env.extend(
            spec.extra_env
                .iter()
                .map(|(name, value)| (name.clone(), value.clone())),
        );
        nodes.push(node);
    }
    notes.dedup();
    Ok(LaunchPlan {
        engine: rules.name.clone(),
        version: rules.version.to_string(),
        verified: rules.verified,
        nodes,
        notes,
    })
}

/// The name of a KV cache format on the command line, or why there is none.
fn kv_name(rules: &EngineRules, dtype: Dtype) -> Result<&str, LaunchError> {
    format_name(rules, &rules.kv_names, dtype, "a KV cache in")
}

/// The name of a format that weights are quantised to while they are loaded, or why there is none.
fn load_name(rules: &EngineRules, dtype: Dtype) -> Result<&str, LaunchError> {
    format_name(rules, &rules.load_names, dtype, "quantising weights to")
}

fn format_name<'a>(
    rules: &EngineRules,
    names: &'a BTreeMap<Dtype, String>,
    dtype: Dtype,
    what: &str,
) -> Result<&'a str, LaunchError> {
    names
        .get(&dtype)
        .map(String::as_str)
        .ok_or_else(|| LaunchError::NoOption {
            engine: rules.name.clone(),
            version: rules.version.to_string(),
            what: format!("{what} {dtype}"),
            instead: match names.len() {
                0 => "leave it out".to_owned(),
                _ => {
                    let known: Vec<_> = names.keys().map(|dtype| dtype.name()).collect();
                    format!("it takes {}", known.join(", "))
                }
            },
        })
}

/// The name of a way to draft on the command line, or why there is none.
fn draft_name(rules: &EngineRules, method: DraftMethod) -> Result<&str, LaunchError> {
    rules
        .draft_names
        .get(&method)
        .map(String::as_str)
        .ok_or_else(|| LaunchError::NoOption {
            engine: rules.name.clone(),
            version: rules.version.to_string(),
            what: format!("drafts by {}", method.name()),
            instead: match rules.draft_names.len() {
                0 => "plan without speculation".to_owned(),
                _ => {
                    let names: Vec<_> =
                        rules.draft_names.keys().map(|known| known.name()).collect();
                    format!("it drafts by {}", names.join(", "))
                }
            },
        })
}

/// Why an option that was asked for cannot be given.
fn no_option(rules: &EngineRules, meaning: Meaning) -> LaunchError {
    LaunchError::NoOption {
        engine: rules.name.clone(),
        version: rules.version.to_string(),
        what: words::describe(meaning).to_owned(),
        instead: "leave it out, or plan for a version that has it".to_owned(),
    }
}

#[cfg(test)]
mod tests;
