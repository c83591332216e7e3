//! Arguments of `bench`.

use super::{Lengths, values};
use clap::Args;
use std::path::PathBuf;

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The server, such as http://127.0.0.1:30000
    #[arg(value_name = "URL")]
    pub url: String,
    /// Plan file of the server: its traffic is sent, and its prediction held against the figures
    #[arg(long, value_name = "PLAN.TOML")]
    pub plan: Option<PathBuf>,
    /// What is sent.
    #[command(flatten)]
    pub traffic: BenchTraffic,
    /// How it is asked for.
    #[command(flatten)]
    pub manner: BenchManner,
    /// Print JSON; docs/bench.md describes every field
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Write the JSON to this file, whole or not at all
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub out: Option<PathBuf>,
}

/// What is sent.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Traffic")]
pub struct BenchTraffic {
    /// A workload's name or file, or a trace (.csv of Azure's kind, .jsonl of Mooncake's), which is
    /// replayed at its own pace
    #[arg(long, value_name = "NAME|FILE")]
    pub workload: Option<String>,
    /// Prompt tokens of a request: the longest (see --range-ratio), or fixed:TOKENS,
    /// uniform:MAX,RATIO, log-normal:MEDIAN,SIGMA,MAX [default: the plan's, or 1024]
    #[arg(long, value_name = "TOKENS|HOW")]
    pub isl: Option<Lengths>,
    /// Output tokens of a request, likewise; servers are told not to end before
    /// [default: the plan's, or 128]
    #[arg(long, value_name = "TOKENS|HOW")]
    pub osl: Option<Lengths>,
    /// Draw lengths evenly from this share of the longest up to it [default: 0.8]
    #[arg(long, value_name = "SHARE", value_parser = values::positive_share)]
    pub range_ratio: Option<f64>,
    /// Clients; each sends its next request when the last one is done [default: the plan's, or 8]
    #[arg(long, value_name = "CLIENTS", conflicts_with = "rate", value_parser = clap::value_parser!(u32).range(1..))]
    pub concurrency: Option<u32>,
    /// Requests a second, at random moments, whether others are done or not
    #[arg(long, value_name = "REQUESTS/S", value_parser = values::rate)]
    pub rate: Option<f64>,
    /// Replay a trace so many times as fast
    #[arg(long, value_name = "FACTOR", value_parser = values::rate, default_value = "1")]
    pub speed: f64,
    /// Requests to send [default: as many a client as the plan says, or 10; a whole trace]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub requests: Option<u32>,
    /// Share of a prompt that all prompts have in common [default: the plan's, or 0]
    #[arg(long, value_name = "SHARE", value_parser = values::share)]
    pub prefix_hit: Option<f64>,
    /// What lengths, prompts and moments are drawn from
    #[arg(long, value_name = "N", default_value = "0")]
    pub seed: u64,
}

/// How requests are made.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Requests")]
pub struct BenchManner {
    /// Name of the model [default: the first that the server lists]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Environment variable that holds the server's key
    #[arg(long, value_name = "NAME")]
    pub key_env: Option<String>,
    /// Requests to send first, and not to count [default: one a client, at most 32]
    #[arg(long, value_name = "N")]
    pub warm_up: Option<u32>,
    /// Seconds that a request may take
    #[arg(long, value_name = "SECONDS", default_value = "600", value_parser = values::seconds)]
    pub timeout: f64,
    /// Send traffic to another machine than this one
    #[arg(long)]
    pub remote: bool,
    /// Folder of your own profiles, for the names of workloads
    #[arg(long, value_name = "DIR", env = crate::ask::PROFILES_VARIABLE)]
    pub profiles: Option<PathBuf>,
}
