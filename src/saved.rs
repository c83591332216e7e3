//! A plan as a file: what was asked, what was chosen, what is expected of it, how it is started.

mod check;

use crate::ask::Ask;
use crate::failure::Failure;
use crate::launching;
use parplan_planner::launch::LaunchSpec;
use parplan_planner::plan::{Choice, MemoryMap, Performance, Plan};
use parplan_planner::question::Traffic;
use parplan_profiles::library::read_limited;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Raised when a field is removed or changes its meaning.
const FORMAT: u32 = 2;

/// A plan file is a few kilobytes; what is larger is something else.
const MAX_BYTES: u64 = 1 << 20;

/// A plan file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedPlan {
    /// The format of the file, 2.
    pub format: u32,
    /// The model's profile.
    pub model: String,
    /// Where the model lies: a repository of Hugging Face, or a folder.
    pub repository: String,
    /// The GPU's profile.
    pub gpu: String,
    /// `NAME@VERSION` of the engine.
    pub engine: String,
    /// Fraction of GPU memory that the engine is given.
    pub memory_fraction: f64,
    /// Requests that the whole deployment runs at once, at most.
    pub max_running_requests: u32,
    /// Prefill tokens of a pass, as the command line counts them.
    pub chunk_tokens: u32,
    /// Captured decode graphs, in the engine's unit.
    pub graph_batch_sizes: Vec<u32>,
    /// How data-parallel rows are padded in the planned decode step.
    pub padding_mode: String,
    /// KV tokens of one attention-DP rank.
    pub kv_tokens_per_rank: f64,
    /// Cache bytes of a token on one rank.
    pub kv_bytes_per_token_per_rank: f64,
    /// What was not said and had to be assumed.
    pub assumptions: Vec<String>,
    /// What was chosen.
    pub choice: Choice,
    /// The traffic that it was chosen for.
    pub traffic: Traffic,
    /// What is predicted of it.
    pub predicted: Performance,
    /// Memory of one rank, bytes.
    pub memory_bytes: MemoryMap,
    /// How it is started.
    pub start: LaunchSpec,
}

impl SavedPlan {
    /// A plan, with what it was asked for.
    pub fn of(ask: &Ask, plan: &Plan) -> SavedPlan {
        SavedPlan {
            format: FORMAT,
            model: ask.model.name.clone(),
            repository: ask.model.repository.clone(),
            gpu: ask.gpu.name.clone(),
            engine: format!("{}@{}", ask.rules.name, ask.rules.version),
            memory_fraction: plan.memory_fraction,
            max_running_requests: plan.max_running_requests,
            chunk_tokens: plan.chunk_tokens,
            graph_batch_sizes: plan.graph_batch_sizes.clone(),
            padding_mode: plan.padding_mode.to_owned(),
            kv_tokens_per_rank: plan.max_kv_tokens,
            kv_bytes_per_token_per_rank: plan.kv_bytes_per_token_per_rank,
            assumptions: ask.assumptions.notes().to_vec(),
            choice: plan.choice,
            traffic: ask.traffic.clone(),
            predicted: plan.predicted,
            memory_bytes: plan.memory_bytes,
            start: launching::spec(ask, plan),
        }
    }

    /// Reads a plan file.
    ///
    /// # Errors
    /// A file that cannot be read, is none, or is of another format, in one line.
    pub fn read(path: &Path) -> Result<SavedPlan, Failure> {
        let text = read_limited(path, MAX_BYTES)?;
        SavedPlan::parse(&text)
            .map_err(|why| Failure::unusable(format!("{}: {why}", path.display())))
    }

    fn parse(text: &str) -> Result<SavedPlan, String> {
        const AGAIN: &str = "write it again with `parplan recommend … --save`";
        let table: toml::Table = toml::from_str(text)
            .map_err(|error| format!("is no plan file: {}", one_line(&error, text)))?;
        match table.get("format").map(toml::Value::as_integer) {
            Some(Some(format)) if format == i64::from(FORMAT) => {}
            Some(Some(format)) => {
                return Err(format!(
                    "is a plan of format {format}, and this parplan reads format {FORMAT}; {AGAIN}"
                ));
            }
            _ => return Err(format!("is no plan file: it has no `format`; {AGAIN}")),
        }
        check::finite(&table)?;
        let plan: SavedPlan = toml::from_str(text)
            .map_err(|error| format!("is no whole plan: {}", one_line(&error, text)))?;
        check::coherent(&plan)?;
        Ok(plan)
    }
}

/// TOML's message with its line, in one line.
fn one_line(error: &toml::de::Error, text: &str) -> String {
    let message = error
        .message()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    match error.span() {
        Some(span) => {
            let before = text.get(..span.start).unwrap_or("");
            format!("line {}: {message}", before.matches('\n').count() + 1)
        }
        None => message,
    }
}

/// The text of a plan file.
///
/// # Errors
/// A plan that the engine's version cannot be started with.
pub fn plan_file(ask: &Ask, plan: &Plan) -> Result<String, Failure> {
    launching::commands(ask, plan).map_err(|error| {
        Failure::failed(format!(
            "the plan cannot be saved: it has no launch command: {error}"
        ))
    })?;
    toml::to_string(&SavedPlan::of(ask, plan))
        .map_err(|error| Failure::failed(format!("the plan cannot be written as TOML: {error}")))
}
