//! `recommend`: the best configurations of a space.

use super::doubt;
use crate::args::RecommendArgs;
use crate::ask::{Ask, space};
use crate::failure::Failure;
use crate::files::write_whole;
use crate::output::Style;
use crate::render::{Page, launch, plan as pages, ranking};
use crate::stats::Stopwatch;
use crate::{json, launching, saved};
use parplan_planner::search::{Effort, Pruning, recommend};

/// Ranks every configuration of the space that was typed.
///
/// # Errors
/// What cannot be used; a space in which nothing can run; a plan file that cannot be written.
pub fn run(args: &RecommendArgs, style: Style) -> Result<String, Failure> {
    let watch = Stopwatch::start();
    let mut ask = Ask::resolve(&args.question)?;
    let space = space::resolve(&mut ask, &args.question)?;
    let goal = space::goal(&ask, &args.ranking);
    let effort = Effort {
        top: args.ranking.top,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        pruning: Pruning::On,
    };
    let answer = recommend(&ask.setup()?, &ask.traffic, &space, &goal, &effort);
    let stats = watch.stop(Some(answer.points));
    if let Some(best) = answer.ranked.first() {
        ask.assumptions
            .of_plan(&ask.settings, &ask.rules.name, best);
        if let Some(unused) = ranking::unused(&space, best) {
            ask.assumptions.warn(unused);
        }
    }
    if let (Some(path), Some(best)) = (&args.ranking.save, answer.ranked.first()) {
        write_whole(path, &saved::plan_file(&ask, best)?, true)?;
    }
    let doubts = doubt::in_doubt(&ask, &space.settings, &goal, &answer.ranked)?;
    let output = &args.question.output;
    let printed = if output.json {
        json::print(&json::Answer::of_recommendation(
            &ask,
            &answer,
            Some(&doubts),
            &stats,
        ))?
    } else {
        String::new()
    };
    let Some(best) = answer.ranked.first() else {
        return Err(Failure::FailedWith {
            answer: printed,
            message: ranking::nothing_runs(&ask, &space, &answer.rejected),
        });
    };
    if output.json {
        return Ok(printed);
    }
    let mut page = Page::new(style);
    pages::question(&mut page, &ask, space.gpus);
    ranking::verdict(&mut page, &goal, &answer);
    ranking::table(&mut page, &goal, &ask.traffic, &answer.ranked);
    page.list("Not told apart from the best", &doubt::lines(&doubts));
    pages::configuration(&mut page, best);
    pages::predicted(&mut page, best);
    launch::commands(&mut page, &launching::commands(&ask, best));
    pages::next_steps(&mut page, &args.typed.0, &best.choice);
    ranking::rejected(&mut page, &answer.rejected);
    page.alerts("Warnings", &best.warnings);
    page.alerts("Warnings about the question", ask.assumptions.warnings());
    page.list("Assumed", ask.assumptions.notes());
    if output.stats {
        pages::stats(&mut page, &stats);
    }
    Ok(page.finish())
}
