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

/// Each in a line; behind those that differ from the best in the same, what that is and what would tell.
pub fn lines(doubts: &[InDoubt]) -> Vec<String> {
    let mut groups: Vec<Vec<&InDoubt>> = Vec::new();
    for doubt in doubts {
        match groups.iter_mut().find(|group| group[0].is_about(doubt)) {
            Some(group) => group.push(doubt),
            None => groups.push(vec![doubt]),
        }
    }
    let mut lines = Vec::new();
    for group in groups {
        lines.extend(group.iter().map(|d| {
            format!(
                "number {} ({}): {} % behind; {} % likely to be better",
                d.place,
                d.layout,
                number::fixed((d.by - 1.0) * 100.0, 1),
                number::fixed((1.0 - d.confidence) * 100.0, 0),
            )
        }));
        let places: Vec<String> = group.iter().map(|d| d.place.to_string()).collect();
        let (who, differ) = match places.as_slice() {
            [one] => (format!("number {one}"), "differs"),
            [first @ .., last] => (format!("numbers {} and {last}", first.join(", ")), "differ"),
            [] => continue,
        };
        let of = group[0];
        let help = match &of.experiment {
            Some(experiment) => format!("`parplan calibrate --for` would measure {experiment}"),
            None => "no experiment of parplan would tell".to_owned(),
        };
        lines.push(format!(
            "{who} {differ} from the best in the prices of: {}; {help}",
            of.differ_in.join(" | ")
        ));
    }
    lines
}

impl InDoubt {
    /// Whether another candidate differs from the best in the same, and the same would tell.
    fn is_about(&self, other: &InDoubt) -> bool {
        let sorted = |classes: &[String]| {
            let mut classes = classes.to_vec();
            classes.sort_unstable();
            classes
        };
        self.experiment == other.experiment && sorted(&self.differ_in) == sorted(&other.differ_in)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doubt(place: usize, differ_in: &[&str]) -> InDoubt {
        InDoubt {
            place,
            by: 1.019,
            confidence: 0.553,
            differ_in: differ_in.iter().map(|class| (*class).to_owned()).collect(),
            experiment: None,
            layout: format!("tp {place}"),
        }
    }

    #[test]
    fn what_several_differ_in_is_said_once() {
        let all = [
            doubt(2, &["experts", "products"]),
            doubt(3, &["all-reduce"]),
            doubt(4, &["products", "experts"]),
        ];
        assert_eq!(
            lines(&all),
            [
                "number 2 (tp 2): 1.9 % behind; 45 % likely to be better",
                "number 4 (tp 4): 1.9 % behind; 45 % likely to be better",
                "numbers 2 and 4 differ from the best in the prices of: experts | products; no experiment \
                 of parplan would tell",
                "number 3 (tp 3): 1.9 % behind; 45 % likely to be better",
                "number 3 differs from the best in the prices of: all-reduce; no experiment of parplan \
                 would tell",
            ]
        );
    }
}
