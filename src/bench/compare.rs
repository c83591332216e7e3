//! Measured against predicted, line by line.

use super::summary::{Spread, Summary};
use crate::saved::SavedPlan;
use parplan_planner::plan::Predicted;
use serde::Serialize;

/// One figure of the plan and what was measured of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// What it is, as docs/json.md names it.
    pub what: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// What was planned.
    pub planned: Predicted,
    /// What was measured.
    pub measured: f64,
    /// Measured over planned.
    pub ratio: f64,
    /// The measured value lies in the plan's 90 % interval.
    pub within: bool,
}

/// Holds a run against its plan.
pub fn compare(plan: &SavedPlan, summary: &Summary) -> Vec<Comparison> {
    let predicted = &plan.predicted;
    let mean = |spread: &Option<Spread>| spread.map(|spread| spread.mean);
    let rows = [
        ("tpot_ms", "ms", predicted.tpot_ms, mean(&summary.tpot_ms)),
        (
            "ttft_ms",
            "ms",
            Some(predicted.ttft_ms),
            mean(&summary.ttft_ms),
        ),
        (
            "output_tokens_per_s",
            "tokens/s",
            Some(predicted.output_tokens_per_s),
            (summary.ends.completed > 0).then_some(summary.output_tokens_per_s),
        ),
        (
            "requests_per_s",
            "requests/s",
            Some(predicted.requests_per_s),
            (summary.ends.completed > 0).then_some(summary.requests_per_s),
        ),
    ];
    rows.into_iter()
        .filter_map(|(what, unit, planned, measured)| {
            let (planned, measured) = (planned?, measured?);
            Some(Comparison {
                what,
                unit,
                planned,
                measured,
                ratio: measured / planned.value,
                within: (planned.low..=planned.high).contains(&measured),
            })
        })
        .collect()
}

/// Why the traffic that was sent is not that of the plan; empty where it is.
pub fn other_traffic(plan: &SavedPlan, summary: &Summary) -> Vec<String> {
    let (planned, sent) = (&plan.traffic, &summary.sent);
    let mut out = Vec::new();
    let mut unlike = |what: &str, planned: f64, sent: f64| {
        if (sent / planned - 1.0).abs() > 0.05 {
            out.push(format!(
                "the traffic is not the plan's, in {what}: {} planned, {} sent",
                crate::render::number::short(planned),
                crate::render::number::short(sent)
            ));
        }
    };
    unlike("prompt tokens", planned.isl, sent.prompt_tokens);
    unlike("output tokens", planned.osl, sent.output_tokens);
    match sent.clients {
        Some(clients) => unlike("clients", planned.concurrency, clients as f64),
        None => out.push(
            "the traffic is not the plan's: a closed loop was planned, and an open one sent"
                .to_owned(),
        ),
    }
    out
}
