//! What traffic is: lengths, load, prefix hits, imbalance, speculation, and the limits to hold.

use serde::{Deserialize, Serialize};
use std::path::Path;

mod lengths;
mod trace;
mod validate;

pub use lengths::Lengths;
pub use trace::{MAX_TRACE_BYTES, Trace, TraceRequest};

/// Traffic that a plan is made for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Short name, for example `inferencex-1k1k`.
    pub name: String,
    /// Other names that select it.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Prompt tokens of a request.
    pub input: Lengths,
    /// Generated tokens of a request.
    pub output: Lengths,
    /// How many requests there are at a time, or how many come in a second.
    pub load: Load,
    /// Share of the prompt tokens that is found in the prefix cache, 0 to 1.
    #[serde(default)]
    pub prefix_hit: f64,
    /// How unevenly running requests lie on the attention-DP ranks.
    #[serde(default)]
    pub imbalance: Imbalance,
    /// Speculative decoding, where it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speculation: Option<Speculation>,
    /// Limits that the served traffic is to keep.
    #[serde(default)]
    pub slo: Slo,
    /// Where the figures come from; required of embedded workloads.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
}

impl Workload {
    /// The traffic that a trace recorded, under the name of its file: its lengths, its mean rate, and
    /// what a prefix cache without limit would have found. None of a trace without requests.
    pub fn of_trace(path: &Path, trace: &Trace) -> Option<Workload> {
        let requests = u32::try_from(trace.requests.len()).unwrap_or(u32::MAX);
        let load = match trace.requests_per_s() {
            Some(requests_per_s) => Load::Rate { requests_per_s },
            None => Load::Concurrency { requests },
        };
        let stem = path.file_stem()?.to_string_lossy().into_owned();
        Some(Workload {
            name: stem,
            aliases: Vec::new(),
            input: trace.input()?,
            output: trace.output()?,
            load,
            prefix_hit: trace.prefix_hit().unwrap_or(0.0),
            imbalance: Imbalance::default(),
            speculation: None,
            slo: Slo::default(),
            source: format!("{requests} requests of {}", path.display()),
        })
    }
}

/// How much of it there is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Load {
    /// A closed loop: a new request starts when one ends.
    Concurrency {
        /// Requests in flight over the whole deployment.
        requests: u32,
    },
    /// An open loop: requests come whether others have ended or not.
    Rate {
        /// Mean arrivals over the whole deployment, requests per second.
        requests_per_s: f64,
    },
}

/// How running requests are spread over attention-DP ranks.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Imbalance {
    /// As evenly as whole requests allow.
    #[default]
    Balanced,
    /// The fullest rank sets the pace: the mean batch is this share of the largest.
    Ratio {
        /// Mean over maximum, above 0 and at most 1.
        mean_over_max: f64,
    },
    /// A batch for each rank, as measured.
    Ranks {
        /// Running requests a rank; one entry for each attention-DP rank.
        batches: Vec<u32>,
    },
    /// Each request is placed on a rank at random, independently.
    Drawn {
        /// Seed of the draw; equal seeds give equal batches.
        seed: u64,
    },
}

/// Speculative decoding: a draft of `steps` tokens is verified in one pass.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Speculation {
    /// Tokens drafted for each pass.
    pub steps: u32,
    /// Chance that a drafted token is accepted when those before it were, 0 to 1.
    pub acceptance: f64,
}

/// Limits on latency. An absent one is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slo {
    /// Time to first token, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    /// Mean time between tokens of a request, the first excluded, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpot_ms: Option<f64>,
}
