//! How requests become steps, and what ranks tell each other before one.

use serde::{Deserialize, Serialize};

/// How requests become steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulerRule {
    /// What shares a step.
    pub batching: Batching,
    /// The chunk size on the command line is divided by attention DP.
    pub chunk_divided_by_attention_dp: bool,
    /// What the request limit on the command line counts.
    pub requests: RequestLimit,
    /// The CPU prepares the next step while the GPU runs this one, by default.
    pub overlap: bool,
    /// Pipeline stages turn that off.
    pub overlap_off_with_pp: bool,
    /// Steps that prompts wait, at most, until every attention-DP rank has one to prefill, as the
    /// launch command sets it; 0 where a rank prefills as soon as it can.
    #[serde(default)]
    pub context_balance_steps: u32,
    /// Decode steps between two looks for new requests, as the launch command sets them without
    /// attention DP; the last entry that holds counts, and none means every step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub receive: Vec<Receive>,
}

/// How often a scheduler looks for new requests while it decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receive {
    /// On GPUs of this compute capability (times ten) or later.
    pub sm: u16,
    /// With so many clients or more.
    pub clients: u32,
    /// Decode steps from one look to the next.
    pub steps: u32,
}

impl SchedulerRule {
    /// Decode steps between two looks for new requests, at least 1.
    pub fn receive_interval(&self, sm: u16, clients: f64, attention_dp: u32) -> u32 {
        let holds = |entry: &&Receive| sm >= entry.sm && clients >= f64::from(entry.clients);
        match self.receive.iter().rfind(holds) {
            Some(entry) if attention_dp <= 1 => entry.steps.max(1),
            _ => 1,
        }
    }
}

/// What shares a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Batching {
    /// A step is prefill or decode; waiting prefill goes first (SGLang).
    PrefillFirst,
    /// A step holds every decode and fills up with prefill chunks (vLLM, TensorRT-LLM).
    Mixed,
}

/// What the limit of running requests counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestLimit {
    /// All requests of the server; divided by attention DP.
    Server,
    /// Requests of one engine: one attention-DP rank.
    Engine,
}

/// The exchange of batch shapes between data-parallel ranks before each step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SyncRule {
    /// Every rank of the stage gathers a row from every other.
    AllGather {
        /// Integers of a row.
        fields: u32,
        /// Bytes of an integer.
        field_bytes: u32,
        /// Over the device group by default; otherwise over gloo on the CPU.
        device: bool,
        /// More than two ranks gather to one and broadcast, on the CPU path.
        tree: bool,
    },
    /// Data-parallel ranks sum a tensor of `fields` rows with one column a rank.
    AllReduce {
        /// Integers for each rank.
        fields: u32,
        /// Integers besides them.
        extra: u32,
        /// Bytes of an integer.
        field_bytes: u32,
        /// Over the device group by default.
        device: bool,
    },
    /// The single-process CPU path has nothing to exchange (our own executor exchanges shapes with
    /// the plan).
    None,
}
