//! The JSON of parplan's answers: documented in docs/json.md, and stable.

use crate::ask::{Ask, Assumptions};
use crate::commands::doubt::InDoubt;
use crate::failure::Failure;
use crate::launching;
use crate::render::graphs::Landed;
use crate::stats::Stats;
use parplan_planner::Layout;
use parplan_planner::compare::{Axis, Comparison, Crossover, Metric, Winner};
use parplan_planner::gather::GatherReport;
use parplan_planner::launch::LaunchPlan;
use parplan_planner::plan::{
    Breakdown, GraphPlan, LayerVolume, LayoutReport, MemoryMap, Performance, Plan,
};
use parplan_planner::question::Traffic;
use parplan_planner::search::{Miss, Recommendation};
use parplan_planner::volume::Exchange;
use parplan_profiles::Dtype;
use serde::Serialize;
use std::collections::BTreeMap;

/// Raised when a field is removed or changes its meaning; new fields do not raise it.
pub const FORMAT: u32 = 1;

/// An answer.
#[derive(Debug, Serialize)]
pub struct Answer<'a> {
    /// See [`FORMAT`].
    pub format: u32,
    /// What was asked, with its defaults.
    pub question: Question<'a>,
    /// The configuration.
    pub best: Option<Configuration<'a>>,
    /// All ranked configurations, best first.
    pub ranked: Vec<Configuration<'a>>,
    /// Layouts that cannot run, with the reason.
    pub rejected: Vec<Rejected<'a>>,
    /// Everything that was not said and had to be assumed.
    pub assumptions: &'a [String],
    /// What someone should know before trusting the answer.
    pub warnings: &'a [String],
    /// Whether the best keeps the limits; none where no limit was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met_goal: Option<bool>,
    /// By how much the best misses the limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub miss: Option<Miss>,
    /// Candidates that cannot be told apart from the best, from `recommend`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_doubt: Option<&'a [InDoubt]>,
    /// What was computed and how long it took.
    pub stats: &'a Stats,
    /// Volume and steps, from `explain`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explained: Option<Explained<'a>>,
}

/// What was asked.
#[derive(Debug, Serialize)]
pub struct Question<'a> {
    model: &'a str,
    gpu: &'a str,
    engine: &'a str,
    engine_version: String,
    traffic: &'a Traffic,
}

/// A layout that cannot run.
#[derive(Debug, Serialize)]
pub struct Rejected<'a> {
    /// The layout.
    pub layout: LayoutReport,
    /// The rule that it breaks and what would pass.
    pub reason: &'a str,
}

/// Where bytes and time go.
#[derive(Debug, Serialize)]
pub struct Explained<'a> {
    /// Collectives of each kind of layer.
    pub volumes: &'a [LayerVolume],
    /// Gather of attention-DP ranks; null without them.
    pub gather: Option<&'a GatherReport>,
    /// A decode step and a prefill pass.
    pub steps: &'a [Breakdown],
    /// Where decode batches land among the captured graphs.
    pub landings: &'a [Landed],
}

/// One configuration.
#[derive(Debug, Serialize)]
pub struct Configuration<'a> {
    layout: LayoutReport,
    kv_dtype: Dtype,
    cuda_graphs: bool,
    symmetric_memory: bool,
    speculative_steps: u32,
    expert_all_to_all: bool,
    predicted: &'a Performance,
    memory_bytes: MemoryMap,
    memory_fraction: f64,
    kv_bytes_per_token_per_rank: f64,
    kv_redundancy: f64,
    max_kv_tokens: f64,
    max_request_tokens: Option<f64>,
    kv_concurrency: Option<f64>,
    max_running_requests: u32,
    chunk_tokens: u32,
    receive_interval: u32,
    padding_mode: &'a str,
    exchange: Exchange,
    graph_batch_sizes: &'a [u32],
    graphs: &'a GraphPlan,
    warnings: &'a [String],
    /// By engine; empty where the engine has no option for something, which `launch_error` says.
    launch: BTreeMap<&'a str, LaunchPlan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    launch_error: Option<String>,
}

impl<'a> Configuration<'a> {
    /// A configuration with its launch command.
    pub fn of(ask: &'a Ask, plan: &'a Plan) -> Self {
        let (launch, launch_error) = match launching::commands(ask, plan) {
            Ok(commands) => (BTreeMap::from([(ask.rules.name.as_str(), commands)]), None),
            Err(error) => (BTreeMap::new(), Some(error.to_string())),
        };
        let finite = |value: f64| value.is_finite().then_some(value);
        Configuration {
            layout: plan.layout,
            kv_dtype: plan.choice.kv_dtype,
            cuda_graphs: plan.choice.cuda_graphs,
            symmetric_memory: plan.choice.symmetric_memory,
            speculative_steps: plan.choice.speculative_steps,
            expert_all_to_all: plan.choice.expert_all_to_all,
            predicted: &plan.predicted,
            memory_bytes: plan.memory_bytes,
            memory_fraction: plan.memory_fraction,
            kv_bytes_per_token_per_rank: plan.kv_bytes_per_token_per_rank,
            kv_redundancy: plan.kv_redundancy,
            max_kv_tokens: plan.max_kv_tokens,
            max_request_tokens: finite(plan.max_request_tokens),
            kv_concurrency: finite(plan.kv_concurrency),
            max_running_requests: plan.max_running_requests,
            chunk_tokens: plan.chunk_tokens,
            receive_interval: plan.receive_interval,
            padding_mode: plan.padding_mode,
            exchange: plan.exchange,
            graph_batch_sizes: &plan.graph_batch_sizes,
            graphs: &plan.graphs,
            warnings: &plan.warnings,
            launch,
            launch_error,
        }
    }
}

impl<'a> Question<'a> {
    /// What was asked.
    pub fn of(ask: &'a Ask) -> Question<'a> {
        Question {
            model: &ask.model.name,
            gpu: &ask.gpu.name,
            engine: &ask.rules.name,
            engine_version: ask.rules.version.to_string(),
            traffic: &ask.traffic,
        }
    }
}

impl<'a> Answer<'a> {
    /// The answer for one fixed configuration.
    pub fn of_plan(ask: &'a Ask, plan: &'a Plan, stats: &'a Stats) -> Answer<'a> {
        Answer {
            format: FORMAT,
            question: Question::of(ask),
            best: Some(Configuration::of(ask, plan)),
            ranked: vec![Configuration::of(ask, plan)],
            rejected: Vec::new(),
            assumptions: ask.assumptions.notes(),
            warnings: ask.assumptions.warnings(),
            met_goal: None,
            miss: None,
            in_doubt: None,
            stats,
            explained: None,
        }
    }

    /// The answer for a configuration that cannot serve the traffic.
    pub fn of_refusal(
        ask: &'a Ask,
        layout: Layout,
        reason: &'a str,
        stats: &'a Stats,
    ) -> Answer<'a> {
        Answer {
            format: FORMAT,
            question: Question::of(ask),
            best: None,
            ranked: Vec::new(),
            rejected: vec![Rejected {
                layout: layout.into(),
                reason,
            }],
            assumptions: ask.assumptions.notes(),
            warnings: ask.assumptions.warnings(),
            met_goal: None,
            miss: None,
            in_doubt: None,
            stats,
            explained: None,
        }
    }

    /// The answer of a search.
    pub fn of_recommendation(
        ask: &'a Ask,
        answer: &'a Recommendation,
        doubts: Option<&'a [InDoubt]>,
        stats: &'a Stats,
    ) -> Answer<'a> {
        let rejected = answer.rejected.iter().map(|refused| Rejected {
            layout: refused.layout.into(),
            reason: &refused.reason,
        });
        Answer {
            format: FORMAT,
            question: Question::of(ask),
            best: answer
                .ranked
                .first()
                .map(|plan| Configuration::of(ask, plan)),
            ranked: answer
                .ranked
                .iter()
                .map(|plan| Configuration::of(ask, plan))
                .collect(),
            rejected: rejected.collect(),
            assumptions: ask.assumptions.notes(),
            warnings: ask.assumptions.warnings(),
            met_goal: Some(answer.met_goal),
            miss: answer.miss,
            in_doubt: doubts,
            stats,
            explained: None,
        }
    }
}

/// The answer of a comparison.
#[derive(Debug, Serialize)]
pub struct Compared<'a> {
    format: u32,
    question: Question<'a>,
    a: Configuration<'a>,
    b: Configuration<'a>,
    metric: Metric,
    winner: Option<Winner>,
    by: f64,
    confidence: f64,
    crossovers: &'a [Crossover],
    steady: &'a [Axis],
    assumptions: &'a [String],
    warnings: &'a [String],
    stats: &'a Stats,
}

impl<'a> Compared<'a> {
    /// The answer of a comparison; the question is that of the first side.
    pub fn new(
        (a, b): (&'a Ask, &'a Ask),
        comparison: &'a Comparison,
        assumptions: &'a Assumptions,
        stats: &'a Stats,
    ) -> Compared<'a> {
        Compared {
            format: FORMAT,
            question: Question::of(a),
            a: Configuration::of(a, &comparison.a),
            b: Configuration::of(b, &comparison.b),
            metric: comparison.metric,
            winner: comparison.winner,
            by: comparison.by,
            confidence: comparison.confidence,
            crossovers: &comparison.crossovers,
            steady: &comparison.steady,
            assumptions: assumptions.notes(),
            warnings: assumptions.warnings(),
            stats,
        }
    }
}

/// A value as indented JSON with a newline at its end.
///
/// # Errors
/// A value that JSON cannot hold.
pub fn print(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|error| Failure::failed(format!("the answer cannot be written as JSON: {error}")))
}
