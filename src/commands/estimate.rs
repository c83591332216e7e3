//! `estimate`: one fixed configuration.

use super::fit;
use crate::args::QuestionArgs;
use crate::ask::{Ask, choice};
use crate::failure::Failure;
use crate::json;
use crate::launching;
use crate::output::Style;
use crate::render::{Page, launch, plan as pages};
use crate::stats::Stopwatch;
use parplan_planner::deployment::Deployment;
use parplan_planner::estimate;

/// Predicts the configuration that was typed.
///
/// # Errors
/// What cannot be used, with what would be right.
pub fn run(args: &QuestionArgs, style: Style) -> Result<String, Failure> {
    let watch = Stopwatch::start();
    let mut ask = Ask::resolve(args)?;
    let choice = choice::resolve(&mut ask, args)?;
    let setup = ask.setup()?;
    let deployment = Deployment::new(&setup, &ask.traffic, &ask.settings, choice);
    let output = &args.output;
    fit::check(&ask, &deployment, &watch.stop(None), output, style)?;
    let (service, points) = deployment.serve_counted(&ask.traffic);
    let plan = estimate::from_parts(&deployment, &ask.traffic, &service);
    ask.assumptions
        .of_plan(&ask.settings, &ask.rules.name, &plan);
    let stats = watch.stop(Some(points));
    if output.json {
        return json::print(&json::Answer::of_plan(&ask, &plan, &stats));
    }
    let mut page = Page::new(style);
    pages::question(&mut page, &ask, plan.layout.gpus);
    pages::whole(&mut page, &plan);
    launch::commands(&mut page, &launching::commands(&ask, &plan));
    pages::limits(&mut page, &ask.slo, &plan);
    page.alerts("Warnings", ask.assumptions.warnings());
    page.list("Assumed", ask.assumptions.notes());
    if output.stats {
        pages::stats(&mut page, &stats);
    }
    Ok(page.finish())
}
