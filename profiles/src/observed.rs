//! Serving runs that others measured: what was asked of a server, and what it did.

use serde::{Deserialize, Serialize};

/// Observed runs, as a file holds them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObservedRuns {
    /// Raised when a field changes its meaning.
    pub schema: u32,
    /// The runs.
    pub runs: Vec<ObservedRun>,
}

/// One run of a serving benchmark. What a tool does not say is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObservedRun {
    /// Who measured: `sglang bench_serving`, `vllm bench serve`, `aiperf 0.11.0`.
    pub tool: String,
    /// File that it came from.
    pub file: String,
    /// Model, as the tool was told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Kind of server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// When, as the tool wrote it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
    /// Most requests at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<f64>,
    /// Requests that ended well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<f64>,
    /// Mean prompt tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isl: Option<f64>,
    /// Mean generated tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub osl: Option<f64>,
    /// Mean time to the first token, ms.
    pub ttft_ms: f64,
    /// Mean time of an output token after the first, ms.
    pub tpot_ms: f64,
    /// Output tokens a second of the whole server.
    pub output_tokens_per_s: f64,
    /// Finished requests a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_s: Option<f64>,
}
