//! `compare`: two configurations on the same work.

use crate::args::{By, CompareArgs, QuestionArgs};
use crate::ask::{Ask, Assumptions, choice};
use crate::failure::Failure;
use crate::json;
use crate::output::Style;
use crate::render::{Page, comparison, plan as pages};
use crate::stats::Stopwatch;
use parplan_planner::compare::{Metric, Side, compare};
use parplan_planner::deployment::Deployment;
use parplan_planner::plan::Choice;
use parplan_planner::question::Balance;

/// Compares the two layouts that were typed.
///
/// # Errors
/// What cannot be used, with the side that it is about.
pub fn run(args: &CompareArgs, style: Style) -> Result<String, Failure> {
    let watch = Stopwatch::start();
    let (mut ask_a, choice_a) = side("A", &args.a.over(&args.question))?;
    let (mut ask_b, choice_b) = side("B", &args.b.over(&args.question))?;
    let metric = match args.by {
        By::Throughput => Metric::Throughput,
        By::Tpot => Metric::Tpot,
        By::Ttft => Metric::Ttft,
    };
    if let Balance::Ranks(list) = &ask_a.traffic.balance
        && list.len() > 1
        && [&choice_a, &choice_b]
            .iter()
            .all(|side| side.layout.attention_dp == 1)
    {
        return Err(Failure::unusable(format!(
            "the imbalance lists the batches of {} ranks, and attention dp is 1 on both sides; give \
             one of them attn-dp {}, or leave --imbalance out",
            list.len(),
            list.len()
        )));
    }
    if metric == Metric::Tpot && !ask_a.traffic.has_tpot() {
        return Err(Failure::unusable(
            "--by tpot compares the time of output tokens after the first, and requests have 1 \
             output token; compare --by ttft or throughput, or give a longer --osl",
        ));
    }
    let comparison = {
        let (setup_a, setup_b) = (ask_a.setup()?, ask_b.setup()?);
        let a = Side {
            setup: &setup_a,
            choice: choice_a,
            settings: &ask_a.settings,
        };
        let b = Side {
            setup: &setup_b,
            choice: choice_b,
            settings: &ask_b.settings,
        };
        for (name, side, ask) in [("A", &a, &ask_a), ("B", &b, &ask_b)] {
            let deployment = Deployment::new(side.setup, &ask.traffic, side.settings, side.choice);
            if let Some(reason) = deployment.does_not_fit(&ask.traffic) {
                return Err(Failure::failed(format!(
                    "{name}: cannot serve this: {reason}"
                )));
            }
        }
        compare(&a, &b, &ask_a.traffic, metric)
    };
    for (ask, plan) in [(&mut ask_a, &comparison.a), (&mut ask_b, &comparison.b)] {
        ask.assumptions
            .of_plan(&ask.settings, &ask.rules.name, plan);
    }
    let assumptions = Assumptions::of_sides(&ask_a.assumptions, &ask_b.assumptions);
    let stats = watch.stop(None);
    let output = &args.question.output;
    if output.json {
        return json::print(&json::Compared::new(
            (&ask_a, &ask_b),
            &comparison,
            &assumptions,
            &stats,
        ));
    }
    let mut page = Page::new(style);
    pages::question(&mut page, &ask_a, comparison.a.layout.gpus);
    comparison::verdict(&mut page, &comparison);
    comparison::table(&mut page, (&ask_a, &ask_b), &comparison);
    comparison::crossovers(&mut page, &comparison);
    comparison::warnings(&mut page, &comparison);
    page.alerts("Warnings about the question", assumptions.warnings());
    page.list("Assumed", assumptions.notes());
    if output.stats {
        pages::stats(&mut page, &stats);
    }
    Ok(page.finish())
}

/// One side, resolved; what is wrong with it names the side.
fn side(name: &str, args: &QuestionArgs) -> Result<(Ask, Choice), Failure> {
    let resolve = || {
        let mut ask = Ask::resolve(args)?;
        let choice = choice::resolve_side(&mut ask, args, false)?;
        Ok((ask, choice))
    };
    resolve().map_err(|failure: Failure| failure.about(name))
}
