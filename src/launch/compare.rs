//! What a server reports against what was planned, line by line.

use super::report::Report;
use super::source::Start;
use crate::render::number::{gib, percent, whole};
use serde::Serialize;

const MIB: f64 = 1_048_576.0;
const GIB: f64 = 1024.0 * MIB;
/// Counts of tokens and bytes may be off by this share.
const SHARE: f64 = 0.05;
/// The size of the whole device may: it is known exactly, or it is another one.
const DEVICE_SHARE: f64 = 0.01;
/// Bytes that no one plans to: rounding of the log, fragments.
const SLACK_BYTES: f64 = 0.1 * GIB;
/// Graphs are planned from one measured list (planner's memory map), and driver versions differ.
const GRAPH_SLACK_BYTES: f64 = 0.5 * GIB;

const TOKENS: &str = "KV tokens of a rank";
const DEVICE: &str = "memory of the device, GiB";
const WEIGHTS: &str = "weights, GiB";
const GRAPHS: &str = "captured graphs";

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// What it is.
    pub what: &'static str,
    /// What was planned.
    pub planned: String,
    /// What the server says.
    pub reported: String,
    /// Reported over planned, less 1; none where that says nothing.
    pub deviation: Option<f64>,
    /// How far it may be; none where nothing may differ.
    pub tolerance: Option<f64>,
    /// It is no further.
    pub within: bool,
}

/// The comparison, and what it would change.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Line by line; only of what the server said.
    pub lines: Vec<Line>,
    /// What to change so that the next plan is right.
    pub corrections: Vec<String>,
}

/// Holds a report against the plan.
pub fn compare(start: &Start, report: &Report) -> Comparison {
    let mut lines = counts(start, report);
    if let (Some(planned), Some(reported)) = (&start.spec.graph_sizes, &report.graph_sizes) {
        lines.push(Line {
            what: GRAPHS,
            planned: sizes(planned),
            reported: sizes(reported),
            deviation: None,
            tolerance: None,
            within: planned == reported,
        });
    }
    lines.extend(memory(start, report));
    Comparison {
        corrections: corrections(start, report, &lines),
        lines,
    }
}

/// Tokens and limits.
fn counts(start: &Start, report: &Report) -> Vec<Line> {
    let spec = &start.spec;
    let ranks = match start.rules.scheduler.chunk_divided_by_attention_dp {
        true => spec.layout.attention_dp.max(1),
        false => 1,
    };
    [
        (
            TOKENS,
            Some(start.plan.kv_tokens_per_rank),
            report.kv_tokens,
            SHARE,
        ),
        (
            "running requests of a rank",
            spec.running_per_rank.map(f64::from),
            report.running_per_rank,
            0.0,
        ),
        (
            "longest sequence",
            spec.context_length.map(f64::from),
            report.context_length,
            0.0,
        ),
        (
            "tokens of a chunk",
            spec.chunk_tokens.map(|tokens| f64::from(tokens / ranks)),
            report.chunk_tokens,
            0.0,
        ),
    ]
    .into_iter()
    .filter_map(|(what, planned, reported, share)| {
        let (planned, reported) = (planned?, reported? as f64);
        let deviation = reported / planned - 1.0;
        Some(Line {
            what,
            planned: whole(planned),
            reported: whole(reported),
            deviation: Some(deviation),
            tolerance: Some(share),
            within: deviation.abs() <= share,
        })
    })
    .collect()
}

/// The device's memory, and what of it is used for what.
fn memory(start: &Start, report: &Report) -> Vec<Line> {
    let planned = &start.plan.memory_bytes;
    [
        (
            DEVICE,
            planned.total,
            report.device_bytes,
            DEVICE_SHARE * planned.total,
        ),
        (WEIGHTS, planned.weights, report.weights_bytes, SLACK_BYTES),
        (
            "KV cache, GiB",
            planned.kv_cache,
            report.kv_bytes,
            SLACK_BYTES,
        ),
        (
            "graphs, GiB",
            planned.cuda_graphs,
            report.graph_bytes,
            GRAPH_SLACK_BYTES,
        ),
        (
            "all but the KV cache, GiB",
            planned.used() - planned.kv_cache,
            report.other_bytes,
            SLACK_BYTES,
        ),
    ]
    .into_iter()
    .filter_map(|(what, planned, reported, slack)| {
        let reported = reported?;
        let near = (reported - planned).abs() <= slack;
        let share = if what == DEVICE { DEVICE_SHARE } else { SHARE };
        let deviation = reported / planned - 1.0;
        Some(Line {
            what,
            planned: gib(planned),
            reported: gib(reported),
            deviation: deviation.is_finite().then_some(deviation),
            tolerance: Some(share),
            within: near || deviation.abs() <= share,
        })
    })
    .collect()
}

fn sizes(list: &[u32]) -> String {
    match list {
        [] => "none".to_owned(),
        [one] => one.to_string(),
        [first, .., last] => format!("{} of {first} to {last}", list.len()),
    }
}

/// Memory that was planned for KV cache and went elsewhere is the engine's own: the figure of the
/// device's profile that would have said so.
fn corrections(start: &Start, report: &Report, lines: &[Line]) -> Vec<String> {
    let off = |what: &str| lines.iter().any(|line| line.what == what && !line.within);
    let mut out = Vec::new();
    let plan = &start.plan;
    if off(DEVICE)
        && let Some(bytes) = report.device_bytes
    {
        out.push(format!(
            "the device has {} GiB, and {} has {}: `memory_mib = {}` in a profile of your own \
             plans the next one so; the KV cache differs with it",
            gib(bytes),
            plan.gpu,
            gib(plan.memory_bytes.total),
            (bytes / MIB).round()
        ));
    } else if off(TOKENS)
        && let Some(tokens) = report.kv_tokens
    {
        let missing = (plan.kv_tokens_per_rank - tokens as f64) * plan.kv_bytes_per_token_per_rank;
        let context = (plan.memory_bytes.context + missing) / MIB;
        let words = match missing > 0.0 {
            true => "holds more",
            false => "holds less",
        };
        let difference = gib(missing.abs());
        if context >= 0.0 {
            out.push(format!(
                "the server {words} besides its KV cache than planned, by {difference} GiB: \
                 `context_mib = {}` in a profile of your own for {} (`parplan profiles show gpus {}` \
                 prints the built-in one; it is {} MiB now) plans the next one so",
                context.round(),
                plan.gpu,
                plan.gpu,
                whole((plan.memory_bytes.context / MIB).round()),
            ));
        } else {
            out.push(format!(
                "the server has {difference} GiB more for its KV cache than planned, more than it \
                 was planned to hold before loading anything: is the model or the device another one?"
            ));
        }
    }
    if off(WEIGHTS) {
        out.push(format!(
            "weights of another size are another model or another format: check --weights and the \
             profile {}",
            plan.model
        ));
    }
    if off(GRAPHS) {
        out.push(
            "the server captured other graphs than the command asked for: batches above the \
             largest one run without, and cost more than planned"
                .to_owned(),
        );
    }
    out
}

impl Line {
    /// The last column: how far off it is.
    pub fn verdict(&self) -> String {
        match (self.within, self.deviation) {
            (true, _) => "as planned".to_owned(),
            (false, Some(deviation)) => format!(
                "OFF by {}{} %",
                if deviation > 0.0 { "+" } else { "-" },
                percent(deviation.abs())
            ),
            (false, None) => "OFF".to_owned(),
        }
    }
}
