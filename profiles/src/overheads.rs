//! What an engine adds around its kernels: host time, launch gaps, and the way of a request
//! through its front end. Fitted from measured serving runs; each profile names them.

use serde::{Deserialize, Serialize};

/// Host and launch costs of one engine, and how far its kernels are from the fitted tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overheads {
    /// Host time of a step that the GPU waits for, microseconds.
    pub step_us: f64,
    /// Host time of a step for each running request, microseconds (sampling, detokenizing, scheduling).
    pub step_request_us: f64,
    /// Gaps and small kernels of a decode layer replayed from a CUDA graph, microseconds.
    pub graph_layer_us: f64,
    /// Launch gaps of a layer run eagerly, microseconds; hidden where the kernels take longer.
    pub eager_layer_us: f64,
    /// Extra host time of a pass that carries prefill, microseconds.
    pub prefill_pass_us: f64,
    /// Front end of a request: HTTP, tokenizer, first scheduling, first detokenizing, microseconds.
    pub request_us: f64,
    /// Front end, for each prompt token, microseconds.
    pub prompt_token_us: f64,
    /// Measured over modelled kernel time of decode steps (1 where the tables fit).
    pub decode_scale: f64,
    /// Measured over modelled kernel time of prefill passes.
    pub prefill_scale: f64,
    /// Share of the tokens that choose experts independently and uniformly; below 1 because real
    /// routers have favourites, so that a batch reads fewer distinct experts.
    pub expert_spread: f64,
    /// Standard deviation of ln(measured / predicted) TPOT, over the runs.
    pub tpot_sigma: f64,
    /// Standard deviation of ln(measured / predicted) TTFT, over the runs.
    pub ttft_sigma: f64,
    /// How many runs the figures rest on.
    pub runs: u32,
    /// Which runs.
    pub source: String,
}
