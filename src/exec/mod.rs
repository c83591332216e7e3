//! `parplan exec`: runs what was planned for the builtin executor on this machine, and
//! holds it against the prediction, operation by operation.

mod plan;
mod predict;
mod report;

use crate::output::tell;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use parplan_executor::gather::Mode;
use parplan_executor::jobs::{Backend, StackJob, StackResult, StackTiming, Work};
use parplan_executor::stack::{DcpMerge, Phase, StackSpec, StepSpec};
use parplan_executor::symmetric::Registration;
use parplan_executor::{Error, Result};
use parplan_planner::launch::LaunchSpec;
use parplan_profiles::ModelProfile;
use parplan_profiles::engine::rules::DcpMerge as PlannedMerge;

use crate::run::stack::{Choices, share_of, spec_of};
use crate::run::values::{times, tokens, tokens_if_any, wide};
use crate::run::{Common, collect};
pub use predict::predict;

/// `parplan exec`
#[derive(Clone, Debug, Args)]
pub struct ExecArgs {
    /// The plan: the file that `launch --engine builtin` writes.
    #[arg(long, value_name = "FILE")]
    plan: PathBuf,
    #[command(flatten)]
    common: Common,
    /// Layers [default: all of one pipeline stage].
    #[arg(long, value_parser = wide)]
    layers: Option<usize>,
    /// Requests of every attention-DP rank, a decode step for each number
    /// [default: what the plan lets a rank run].
    #[arg(long, value_delimiter = ',', value_parser = tokens)]
    batch: Vec<usize>,
    /// Tokens in the cache of each request [default: half of the plan's longest sequence].
    #[arg(long, value_parser = tokens_if_any)]
    context: Option<usize>,
    /// Leave the prefill step out.
    #[arg(long)]
    no_prefill: bool,
    /// Predict for this GPU [default: the one it runs on, where it has a profile].
    #[arg(long)]
    gpu: Option<String>,
    /// A calibration to predict with, or none [default: those that plans would use].
    #[arg(long, value_name = "FILE|none")]
    calibration: Option<String>,
    /// Folder of your own profiles.
    #[arg(long, env = crate::ask::PROFILES_VARIABLE)]
    profiles: Option<PathBuf>,
    /// Timed steps, of which the median counts.
    #[arg(long, default_value = "20", value_parser = times)]
    repeats: usize,
    /// libcublasLt.so.13 or .12, its folder, or a Python environment that has it.
    #[arg(long)]
    cublas_path: Option<PathBuf>,
}

/// Requests of a rank where the plan leaves that to the engine.
const REQUESTS: usize = 64;
/// Tokens of a sequence where the plan leaves that to the engine.
const SEQUENCE: usize = 8192;
/// Tokens of a prefill chunk where the plan leaves that to the engine.
const CHUNK: usize = 2048;
/// Tokens of a page where the plan leaves that to the engine: the builtin rules' own.
const PAGE: usize = 16;

/// Runs the command; what goes wrong is said on standard error.
pub fn main(args: &ExecArgs) -> ExitCode {
    match run(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tell!("parplan: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(args: &ExecArgs) -> Result<u8> {
    let launch = plan::read(&args.plan)?;
    let backend = args.common.named_backend().unwrap_or(Backend::Nccl);
    let real = plan::layout(&launch)?;
    let gpus = match backend {
        Backend::Nccl => Some(parplan_executor::cuda::device_count()?),
        Backend::Cpu => None,
        Backend::Peer => {
            return Err(Error::Unusable(
                "--backend peer runs attention only; a plan needs nccl (or cpu)".into(),
            ));
        }
    };
    let here = plan::here(&launch, &real, args.common.ranks, gpus)?;
    let unusable = |e: crate::Failure| Error::Unusable(e.to_string());
    let library = crate::ask::library(args.profiles.as_deref()).map_err(unusable)?;
    let model =
        crate::ask::model_named(&library, &launch.model, launch.quantization).map_err(unusable)?;
    if launch.layout.pp > model.depth() {
        return Err(Error::Unusable(format!(
            "the plan has {} pipeline stages, and {} has {} layers: a stage has at least one",
            launch.layout.pp,
            model.name,
            model.depth()
        )));
    }
    let stage = (model.depth() / launch.layout.pp.max(1)).max(1) as usize;
    let model = share_of(&model, args.layers.unwrap_or(stage))?;
    let choices = Choices {
        here,
        shard_of: real,
        layers: None,
        kv: launch.kv_dtype,
        page_size: launch.page_size.map_or(PAGE, |p| p as usize),
        dcp_interleave: 1,
        dcp_merge: match launch.dcp_merge {
            Some(PlannedMerge::AgRs) => DcpMerge::ReduceScatter,
            _ => DcpMerge::AllToAll,
        },
        all_to_all: launch.expert_backend.is_some(),
        seed: 1,
    };
    let (spec, notes) = spec_of(&model, &choices)?;
    for note in &notes {
        tell!("note: {note}");
    }
    let steps = steps(args, &launch, &spec, &model)?;
    let buckets = match (&launch.graph_sizes, backend) {
        (Some(sizes), Backend::Nccl) => sizes.iter().map(|s| *s as usize).collect(),
        (None, Backend::Nccl) => steps
            .iter()
            .filter_map(|s| s.requests.first().copied())
            .collect(),
        (_, Backend::Cpu | Backend::Peer) => Vec::new(),
    };
    let mut common = args.common.clone();
    common.ranks = Some(here.tp);
    common.set_backend(backend);
    let job = common.job(Work::Stack(StackJob {
        spec,
        steps,
        buckets,
        eager: false,
        registration: if launch.symmetric_memory {
            Registration::Symmetric
        } else {
            Registration::None
        },
        cublas_path: args.cublas_path.clone(),
        timing: StackTiming {
            // Clocks and caches of a GPU take a few steps; the CPU's loops take long.
            warmup: if backend == Backend::Cpu { 0 } else { 5 },
            repeats: args.repeats,
        },
        check: false,
    }));
    let (code, value) = collect(&common, &job)?;
    let Some(value) = value else { return Ok(code) };
    let result: StackResult = serde_json::from_value(value)
        .map_err(|e| Error::Wrong(format!("the result does not read: {e}")))?;
    let report = report::Report::new(args, &library, &model, &launch, result);
    report.print(common.json)?;
    Ok(code)
}

/// The steps that the plan is about: decoding with as many requests as a rank may run, and
/// a prefill chunk.
fn steps(
    args: &ExecArgs,
    launch: &LaunchSpec,
    spec: &StackSpec,
    model: &ModelProfile,
) -> Result<Vec<StepSpec>> {
    let dp = spec.here.attn_dp;
    let batches = match args.batch.as_slice() {
        [] => vec![launch.running_per_rank.map_or(REQUESTS, |n| n as usize)],
        given => given.to_vec(),
    };
    let longest = launch
        .context_length
        .map_or(SEQUENCE.min(model.max_position as usize), |n| n as usize);
    let context = args.context.unwrap_or(longest / 2);
    let step = |requests: usize, q_tokens: usize, context: usize, phase: Phase| StepSpec {
        requests: vec![requests; dp],
        q_tokens,
        context,
        phase,
        mode: Mode::MaxLen,
    };
    let drafted = launch.speculation.as_ref().map_or(0, |s| s.steps as usize);
    let mut steps: Vec<StepSpec> = batches
        .into_iter()
        .map(|b| step(b, drafted + 1, context, Phase::Decode))
        .collect();
    if !args.no_prefill {
        // Counted over all DP ranks, as on the command line.
        let planned = launch.layout.attention_dp.max(1) as usize;
        let chunk = launch
            .chunk_tokens
            .map_or(CHUNK, |c| (c as usize / planned).max(1));
        steps.push(step(1, chunk.min(longest), 0, Phase::Prefill));
    }
    Ok(steps)
}
