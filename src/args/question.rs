//! The options that every planning command shares.

use super::LayoutArgs;
use super::values::{self, Imbalance, KvFormat, Lengths, Speculative, Switch};
use clap::Args;
use parplan_planner::question::GraphSizes;
use parplan_profiles::Dtype;
use std::path::PathBuf;

/// What is asked: all that `estimate` and `explain` need, and what the others add to.
#[derive(Debug, Clone, Args)]
pub struct QuestionArgs {
    /// Model and GPUs.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Sizes of the layout; `recommend` decides those that are left open.
    #[command(flatten)]
    pub layout: LayoutArgs,
    /// Engine.
    #[command(flatten)]
    pub engine: EngineArgs,
    /// Traffic.
    #[command(flatten)]
    pub traffic: TrafficArgs,
    /// Limits.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Switches.
    #[command(flatten)]
    pub switches: SwitchArgs,
    /// Engine settings.
    #[command(flatten)]
    pub settings: SettingArgs,
    /// Output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What is served, on what.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model and GPUs")]
pub struct ModelArgs {
    /// A profile's name, a Hugging Face id, or a path to a config.json or to the folder it lies in
    #[arg(long, value_name = "NAME|PATH")]
    pub model: String,
    /// Quantise the linear layers to this format while loading, such as fp8
    /// [default: the checkpoint's own formats]
    #[arg(long, value_name = "FORMAT", value_parser = values::weight_format)]
    pub weights: Option<Dtype>,
    /// The GPU, such as h200; `parplan profiles list gpus` shows all
    #[arg(long, value_name = "NAME")]
    pub gpu: String,
    /// GPUs of the whole deployment [default: what the layout takes]
    #[arg(long, value_name = "N", value_parser = values::gpus)]
    pub gpus: Option<u32>,
    /// Nodes that hold them [default: as few as the GPU's node size allows]
    #[arg(long, value_name = "N", value_parser = values::gpus)]
    pub nodes: Option<u32>,
    /// A calibration to price with, or none [default: those of this GPU in `calibrations` of your
    /// profiles, and the shipped ones]
    #[arg(long, value_name = "FILE|none")]
    pub calibration: Option<String>,
    /// Folder of your own profiles, which come before the built-in ones
    /// [default: parplan/profiles in your configuration folder]
    #[arg(long, value_name = "DIR", env = crate::ask::PROFILES_VARIABLE)]
    pub profiles: Option<PathBuf>,
}

/// Which engine serves.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// sglang, vllm, trtllm or builtin, with a version such as sglang@0.5.23
    /// [default: sglang, at the newest version known]
    #[arg(long, value_name = "NAME[@VERSION]")]
    pub engine: Option<String>,
    /// Plan an unknown version by the rules of the nearest known one, and say so
    #[arg(long)]
    pub engine_assume: bool,
}

/// Closed-loop traffic.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Traffic")]
pub struct TrafficArgs {
    /// Traffic as one piece: a name that `parplan profiles list workloads` shows, a workload's TOML
    /// file, or a trace (.csv of Azure's kind, .jsonl of Mooncake's); the options below replace what
    /// it says
    #[arg(long, value_name = "NAME|FILE")]
    pub workload: Option<String>,
    /// Input (prompt) tokens of a request: the longest (see --range-ratio), or fixed:TOKENS,
    /// uniform:MAX,RATIO, log-normal:MEDIAN,SIGMA,MAX [default: 1024]
    #[arg(long, value_name = "TOKENS|HOW")]
    pub isl: Option<Lengths>,
    /// Output (generated) tokens of a request, likewise [default: 1024]
    #[arg(long, value_name = "TOKENS|HOW")]
    pub osl: Option<Lengths>,
    /// Draw both lengths uniformly from this share of them up to the whole, as InferenceX does
    /// [default: 0.8; 1 makes all requests alike]
    #[arg(long, value_name = "SHARE", value_parser = values::positive_share)]
    pub range_ratio: Option<f64>,
    /// Clients of the whole deployment; each sends its next request when the last one is done
    /// [default: 64]
    #[arg(long, value_name = "CLIENTS", value_parser = values::clients)]
    pub concurrency: Option<f64>,
    /// Requests that each client sends; the first ones arrive together [default: 10]
    #[arg(long, value_name = "N", value_parser = values::clients)]
    pub waves: Option<f64>,
    /// Share of prompt tokens found in the prefix cache [default: 0]
    #[arg(long, value_name = "SHARE", value_parser = values::share)]
    pub prefix_hit: Option<f64>,
    /// Load of the attention DP ranks: mean/max such as 0.75, one batch a rank such as 8,8,2,0, or
    /// seed:42 to deal requests at random [default: all alike]
    #[arg(long, value_name = "HOW")]
    pub imbalance: Option<Imbalance>,
    /// Speculative decoding: drafted tokens a step, and the probability that one is accepted, such
    /// as 3,0.7 [default: none]
    #[arg(long, value_name = "STEPS,ACCEPT")]
    pub speculative: Option<Speculative>,
}

/// What counts as good enough.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Mean time to first token to stay under
    #[arg(long, value_name = "MS", value_parser = values::milliseconds)]
    pub ttft: Option<f64>,
    /// Mean time of an output token after the first to stay under
    #[arg(long, value_name = "MS", value_parser = values::milliseconds)]
    pub tpot: Option<f64>,
}

/// What is decided beside the layout.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Choices")]
pub struct SwitchArgs {
    /// KV cache format: auto, bf16, fp8, mxfp8, nvfp4 or mxfp4; `recommend` takes several
    /// [default: auto, the one the checkpoint asks for]
    #[arg(long, value_name = "FORMAT", value_delimiter = ',')]
    pub kv_dtype: Vec<KvFormat>,
    /// Replay decode from CUDA graphs: on, off or auto (on)
    #[arg(
        long,
        value_name = "WHEN",
        value_enum,
        default_value_t,
        hide_possible_values = true
    )]
    pub cuda_graphs: Switch,
    /// Keep collective buffers in symmetric memory: on, off or auto (off; `recommend` tries both)
    #[arg(
        long,
        value_name = "WHEN",
        value_enum,
        default_value_t,
        hide_possible_values = true
    )]
    pub symmetric_memory: Switch,
    /// Send tokens to the ranks of their experts (DeepEP and its kind) instead of gathering all:
    /// on, off or auto (off; `recommend` tries both)
    #[arg(
        long,
        value_name = "WHEN",
        value_enum,
        default_value_t,
        hide_possible_values = true
    )]
    pub expert_all_to_all: Switch,
}

/// Engine settings that replace the engine's own defaults.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Engine settings (default: the engine's own rule)")]
pub struct SettingArgs {
    /// Share of GPU memory for the engine (mem-fraction-static, gpu-memory-utilization)
    #[arg(long, value_name = "SHARE", value_parser = values::positive_share)]
    pub memory_fraction: Option<f64>,
    /// Running requests, as the engine's own flag counts them
    #[arg(long, value_name = "N", value_parser = values::requests)]
    pub max_running_requests: Option<u32>,
    /// Tokens of a prefill chunk or step, as the engine's own flag counts them
    #[arg(long, value_name = "TOKENS", value_parser = values::tokens)]
    pub chunk_tokens: Option<u32>,
    /// Decode steps between two looks for new requests, where the engine has a flag for it
    /// [default: that of the engine's public recipes]
    #[arg(long, value_name = "STEPS", value_parser = values::requests)]
    pub receive_interval: Option<u32>,
    /// CUDA graph sizes to capture, such as 1,2,4,8, or engine: its own list, and the memory that it
    /// sets aside for it, as when it is started without the flag [default: those of the planned
    /// batches]
    #[arg(long, value_name = "SIZES", value_parser = values::sizes)]
    pub graph_sizes: Option<GraphSizes>,
    /// Longest sequence to serve [default: the model's]
    #[arg(long, value_name = "TOKENS", value_parser = values::tokens)]
    pub context_length: Option<u32>,
}

/// How the answer is given.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Print JSON; docs/json.md describes every field
    #[arg(long)]
    pub json: bool,
    /// Add how many points were computed, and how long it took
    #[arg(long)]
    pub stats: bool,
}
