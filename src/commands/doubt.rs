//! What a ranking leaves in doubt, and which experiment would settle it.

use crate::ask::Ask;
use crate::failure::Failure;
use crate::render::number;
use crate::render::plan::layout_words;
use parplan_planner::calibrate::decide::Question;
use parplan_planner::calibrate::experiments::Machine;
use parplan_planner::plan::Plan;
use parplan_planner::question::{Goal, Settings};
use parplan_profiles::Vendor;
use serde::Serialize;

/// Confidence below which two candidates count as not told apart.
const CONFIDENCE: f64 = 0.9;
/// Candidates that are held against the best.
const CANDIDATES: usize = 6;

/// A candidate that cannot be told apart from the best.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InDoubt {
    /// Its place in the ranking, from 2.
    pub place: usize,
    /// How much better the best is predicted to be: a ratio.
    pub by: f64,
    /// Probability that the best is the better one, given the spread of the prices that differ.
    pub confidence: f64,
    /// What the two differ in, the most uncertain first.
    pub differ_in: Vec<String>,
    /// The experiment that would tell most; none where parplan runs none of what they differ in.
    pub experiment: Option<String>,
    #[serde(skip)]
    layout: String,
}

/// The candidates of a ranking that cannot be told apart from its first.
///
/// # Errors
/// A GPU profile without a figure that prices need.
pub fn in_doubt(
    ask: &Ask,
    settings: &Settings,
    goal: &Goal,
    ranked: &[Plan],
) -> Result<Vec<InDoubt>, Failure> {
    let shown = &ranked[..ranked.len().min(CANDIDATES)];
    let Some(best) = shown.first() else {
        return Ok(Vec::new());
    };
    let setup = ask.setup()?;
    let question = Question {
        setup: &setup,
        traffic: &ask.traffic,
        settings,
        objective: goal.objective,
        confidence: CONFIDENCE,
    };
    let machine = Machine {
        ranks: best.choice.layout.gpus().min(ask.gpu.gpus_per_node).max(1),
        gpus: ask.gpu.vendor != Vendor::Cpu,
    };
    Ok(question
        .doubts(shown)
        .into_iter()
        .filter(|doubt| !doubt.settled)
        .map(|doubt| {
            let pair = [best.clone(), shown[doubt.place - 1].clone()];
            InDoubt {
                place: doubt.place,
                by: doubt.by,
                confidence: doubt.confidence,
                differ_in: doubt
                    .deciding
                    .into_iter()
                    .map(|d| d.class)
                    .take(3)
                    .collect(),
                experiment: question
                    .proposals(&pair, machine, &[])
                    .first()
                    .map(|p| p.experiment.to_string()),
                layout: layout_words(&doubt.layout),
            }
        })
        .collect())
}

/// Each in a line.
pub fn lines(doubts: &[InDoubt]) -> Vec<String> {
    doubts
        .iter()
        .map(|d| {
            let help = match &d.experiment {
                Some(experiment) => format!("`parplan calibrate --for` would measure {experiment}"),
                None => "no experiment of parplan would tell".to_owned(),
            };
            format!(
                "number {} ({}): {} % behind at confidence {}; they differ in {}; {help}",
                d.place,
                d.layout,
                number::fixed((d.by - 1.0) * 100.0, 1),
                number::fixed(d.confidence, 2),
                d.differ_in.join(", ")
            )
        })
        .collect()
}
