//! A configuration that cannot serve the traffic at all: said with its memory map, never priced.

use crate::args::OutputArgs;
use crate::ask::Ask;
use crate::failure::Failure;
use crate::json;
use crate::output::Style;
use crate::render::{Page, memory, plan as pages};
use crate::stats::Stats;
use parplan_planner::deployment::Deployment;

/// Refuses what does not fit, with the map that shows why.
///
/// # Errors
/// Weights that leave no room, an overcommitted card, a request longer than the KV cache.
pub fn check(
    ask: &Ask,
    deployment: &Deployment<'_>,
    stats: &Stats,
    output: &OutputArgs,
    style: Style,
) -> Result<(), Failure> {
    let Some(reason) = deployment.does_not_fit(&ask.traffic) else {
        return Ok(());
    };
    let layout = deployment.choice.layout;
    let answer = if output.json {
        json::print(&json::Answer::of_refusal(ask, layout, &reason, stats))?
    } else {
        let mut page = Page::new(style);
        pages::question(&mut page, ask, layout.gpus());
        memory::map(&mut page, &deployment.memory.map);
        page.finish()
    };
    Err(Failure::FailedWith {
        answer,
        message: format!(
            "{} with {} on {} {} cannot serve this: {reason}",
            ask.model.name,
            pages::layout_words(&layout),
            layout.gpus(),
            ask.gpu.name
        ),
    })
}
