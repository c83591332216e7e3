//! `explain`: where the memory, the bytes and the time of one configuration go.

use super::fit;
use crate::args::QuestionArgs;
use crate::ask::{Ask, choice};
use crate::failure::Failure;
use crate::json;
use crate::output::Style;
use crate::render::graphs::Landed;
use crate::render::{Page, breakdown, gather, graphs, plan as pages, volume};
use crate::stats::Stopwatch;
use parplan_planner::deployment::Deployment;
use parplan_planner::{estimate, gather as gathers};

/// Explains the configuration that was typed.
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
    let volumes = estimate::volumes(&deployment, &ask.traffic, &service);
    let landed = Landed::all(&deployment, ask.traffic.speculation.map_or(0, |s| s.steps));
    let gathered = gathers::report(&deployment, &ask.traffic, &service);
    let steps = estimate::breakdowns(&deployment, &ask.traffic, &service);
    let mut assumptions = ask.assumptions.clone();
    assumptions.of_plan(&ask.settings, &ask.rules.name, &plan);
    let stats = watch.stop(Some(points));
    if output.json {
        let mut answer = json::Answer::of_plan(&ask, &plan, &stats);
        answer.assumptions = assumptions.notes();
        answer.explained = Some(json::Explained {
            volumes: &volumes,
            gather: gathered.as_ref(),
            steps: &steps,
            landings: &landed,
        });
        return json::print(&answer);
    }
    let mut page = Page::new(style);
    pages::question(&mut page, &ask, plan.layout.gpus);
    pages::whole(&mut page, &plan);
    graphs::table(&mut page, &plan.graphs);
    graphs::landings(&mut page, &landed);
    if let Some(report) = &gathered {
        gather::table(&mut page, report);
    }
    volume::table(&mut page, &volumes);
    for step in &steps {
        breakdown::table(&mut page, step);
    }
    page.alerts("Warnings", assumptions.warnings());
    page.list("Assumed", assumptions.notes());
    if output.stats {
        pages::stats(&mut page, &stats);
    }
    Ok(page.finish())
}
