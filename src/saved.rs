//! A plan as a file: what was asked, what was chosen, how it is started.

use crate::ask::Ask;
use crate::failure::Failure;
use crate::launching;
use parplan_planner::launch::LaunchPlan;
use parplan_planner::plan::{Choice, Performance, Plan};
use parplan_planner::question::Traffic;
use serde::Serialize;

/// Raised when a field is removed or changes its meaning.
const FORMAT: u32 = 1;

/// A plan file. Scalars come before tables, as TOML needs it.
#[derive(Debug, Serialize)]
struct PlanFile<'a> {
    format: u32,
    model: &'a str,
    repository: &'a str,
    gpu: &'a str,
    engine: String,
    memory_fraction: f64,
    max_running_requests: u32,
    chunk_tokens: u32,
    graph_batch_sizes: &'a [u32],
    padding_mode: &'a str,
    assumptions: &'a [String],
    choice: &'a Choice,
    traffic: &'a Traffic,
    predicted: &'a Performance,
    launch: &'a LaunchPlan,
}

/// The text of a plan file.
///
/// # Errors
/// A plan that the engine's version cannot be started with.
pub fn plan_file(ask: &Ask, plan: &Plan) -> Result<String, Failure> {
    let launch = launching::commands(ask, plan).map_err(|error| {
        Failure::failed(format!(
            "the plan cannot be saved: it has no launch command: {error}"
        ))
    })?;
    let file = PlanFile {
        format: FORMAT,
        model: &ask.model.name,
        repository: &ask.model.repository,
        gpu: &ask.gpu.name,
        engine: format!("{}@{}", ask.rules.name, ask.rules.version),
        memory_fraction: plan.memory_fraction,
        max_running_requests: plan.max_running_requests,
        chunk_tokens: plan.chunk_tokens,
        graph_batch_sizes: &plan.graph_batch_sizes,
        padding_mode: plan.padding_mode,
        assumptions: ask.assumptions.notes(),
        choice: &plan.choice,
        traffic: &ask.traffic,
        predicted: &plan.predicted,
        launch: &launch,
    };
    toml::to_string(&file)
        .map_err(|error| Failure::failed(format!("the plan cannot be written as TOML: {error}")))
}
