//! `calibrate --for`: experiments that could change a ranking, best first, until it is settled.

use super::machine::Target;
use super::{assemble, measure, store};
use crate::args::{CalibrateArgs, RecommendArgs};
use crate::ask::{Ask, space};
use crate::failure::Failure;
use crate::render::plan::layout_words;
use parplan_executor::jobs::Backend;
use parplan_executor::probes::ProbesResult;
use parplan_planner::calibrate::decide::{Doubt, Proposal, Question};
use parplan_planner::calibrate::experiments::Machine;
use parplan_planner::plan::Plan;
use parplan_planner::question::Goal;
use parplan_planner::search::{Effort, Pruning, recommend};
use parplan_profiles::Library;
use parplan_profiles::calibration::{Calibration, Experiment};
use std::path::Path;
use std::time::{Duration, Instant};

/// Candidates that are held against the winner.
const CANDIDATES: usize = 6;
/// Experiments of one round: ranks start anew for each.
const ROUND: usize = 4;

/// How a question ended.
#[derive(Debug)]
pub struct Outcome {
    /// Every round's result.
    pub results: Vec<ProbesResult>,
    /// Experiments that were run.
    pub run: usize,
    /// Why it stopped, in words.
    pub why: String,
    /// The winner and what is said against it.
    pub verdict: Vec<String>,
}

/// A ranking with what is in doubt of it.
struct Asked {
    ranked: Vec<Plan>,
    doubts: Vec<Doubt>,
    proposals: Vec<Proposal>,
}

/// Ranks under what was measured so far.
fn ask(
    args: &RecommendArgs,
    confidence: f64,
    machine: Machine,
    measured: Option<&Calibration>,
    done: &[Experiment],
) -> Result<Asked, Failure> {
    let mut ask = Ask::resolve_with(&args.question, measured)?;
    let space = space::resolve(&mut ask, &args.question)?;
    let goal: Goal = space::goal(&ask, &args.ranking);
    let setup = ask.setup()?;
    let effort = Effort {
        top: args.ranking.top.clamp(2, CANDIDATES),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        pruning: Pruning::On,
    };
    let answer = recommend(&setup, &ask.traffic, &space, &goal, &effort);
    if answer.ranked.is_empty() {
        return Err(Failure::unusable(
            "--for: nothing can run for this question; see `parplan recommend` with the same options",
        ));
    }
    let question = Question {
        setup: &setup,
        traffic: &ask.traffic,
        settings: &space.settings,
        objective: goal.objective,
        confidence,
    };
    Ok(Asked {
        doubts: question.doubts(&answer.ranked),
        proposals: question.proposals(&answer.ranked, machine, done),
        ranked: answer.ranked,
    })
}

/// Measures until the question is settled, the budget is spent, or no experiment would help.
///
/// # Errors
/// A question that cannot be used, one for another GPU, or ranks that failed; samples are kept.
pub fn settle(
    args: &CalibrateArgs,
    target: &Target,
    library: &Library,
    journal: &Path,
    question: &RecommendArgs,
    budget: Duration,
) -> Result<Outcome, Failure> {
    let asked_gpu = library.gpu(&question.question.model.gpu)?;
    if asked_gpu.name != target.gpu.name {
        return Err(Failure::unusable(format!(
            "--for asks about {}, this machine is {}: ask about --gpu {}",
            asked_gpu.name, target.gpu.name, target.gpu.name
        )));
    }
    let machine = Machine {
        ranks: target.ranks,
        gpus: target.backend == Backend::Nccl,
    };
    let begin = Instant::now();
    let mut results: Vec<ProbesResult> = Vec::new();
    loop {
        let read = store::samples(journal)?;
        let run = read.samples.len();
        let mut done: Vec<Experiment> = read.samples.iter().map(|s| s.experiment.clone()).collect();
        done.extend(
            results
                .iter()
                .flat_map(|r| r.left_out.iter().map(|(e, _)| e.clone())),
        );
        let measured = match run {
            0 => None,
            _ => Some(assemble::calibration(
                read,
                library,
                &target.gpu,
                "this run",
                &results,
                None,
            )?),
        };
        let now = ask(question, args.confidence, machine, measured.as_ref(), &done)?;
        let open = now.doubts.iter().filter(|d| !d.settled).count();
        let left = budget.saturating_sub(begin.elapsed());
        let nothing_left = now.proposals.is_empty();
        let why = if open == 0 && nothing_left {
            format!("settled at confidence {}", args.confidence)
        } else if left.is_zero() {
            format!("the budget is spent with {open} candidates in doubt")
        } else if nothing_left {
            format!("{open} candidates stay in doubt, and no experiment here would tell them apart")
        } else {
            let next: Vec<Experiment> = now
                .proposals
                .into_iter()
                .take(ROUND)
                .map(|p| p.experiment)
                .collect();
            let libraries = args.libraries();
            results.push(measure::run(target, &next, left, journal, libraries)?);
            continue;
        };
        return Ok(Outcome {
            verdict: verdict(&now.ranked, &now.doubts),
            results,
            run,
            why,
        });
    }
}

/// The winner, and each candidate behind it, in words.
pub fn verdict(ranked: &[Plan], doubts: &[Doubt]) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(best) = ranked.first() {
        out.push(format!(
            "the winner is {}",
            layout_words(&best.choice.layout)
        ));
    }
    for doubt in doubts {
        let ahead = (doubt.by - 1.0) * 100.0;
        out.push(if doubt.alike {
            format!("{}: the same within 2 %", layout_words(&doubt.layout))
        } else {
            format!(
                "{}: {ahead:.1} % behind, confidence {:.2}{}",
                layout_words(&doubt.layout),
                doubt.confidence,
                if doubt.settled {
                    ""
                } else {
                    ", not told apart"
                }
            )
        });
    }
    out
}
