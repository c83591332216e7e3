//! Arguments of `recommend` and `compare`.

use super::{AsTyped, QuestionArgs, Side, values};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Arguments of `recommend`.
#[derive(Debug, Args)]
pub struct RecommendArgs {
    // Read first: what is read before it can no longer be seen to have been given.
    /// The question's options as they were typed.
    #[command(flatten)]
    pub typed: AsTyped,
    /// What is asked.
    #[command(flatten)]
    pub question: QuestionArgs,
    /// How configurations are ranked.
    #[command(flatten)]
    pub ranking: RankingArgs,
}

/// How configurations are ranked, and how many are shown.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Ranking")]
pub struct RankingArgs {
    /// What to rank by, among those that keep the limits: throughput (output tokens/s and GPU),
    /// latency (of a whole request), or pareto (all that no other beats in both)
    #[arg(
        long,
        value_name = "WHAT",
        value_enum,
        default_value_t,
        hide_possible_values = true
    )]
    pub objective: Ranking,
    /// Configurations to show
    #[arg(long, value_name = "N", value_parser = values::top, default_value = "5")]
    pub top: usize,
    /// Write the best configuration to this file, whole or not at all
    #[arg(long, value_name = "PLAN.TOML")]
    pub save: Option<PathBuf>,
}

/// What ranks configurations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Ranking {
    /// Output tokens a second and GPU
    #[default]
    Throughput,
    /// Mean time of a whole request
    Latency,
    /// All that no other beats in both
    Pareto,
}

/// Arguments of `compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The first layout, such as tp=8,attn-dp=8,ep=8,symm=on; keys: tp, attn-dp, dcp, ep, pp,
    /// replicas, kv, graphs, symm, a2a, engine, mem, max-running, chunk; the options below hold for
    /// both sides where a side says nothing
    pub a: Side,
    /// The second layout
    pub b: Side,
    /// What is asked of both.
    #[command(flatten)]
    pub question: QuestionArgs,
    /// What decides: throughput (output tokens/s and GPU), tpot or ttft
    #[arg(
        long,
        value_name = "WHAT",
        value_enum,
        default_value_t,
        hide_possible_values = true,
        help_heading = "Ranking"
    )]
    pub by: By,
}

/// What decides a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum By {
    /// Output tokens a second and GPU
    #[default]
    Throughput,
    /// Mean time of an output token
    Tpot,
    /// Mean time to the first token
    Ttft,
}
