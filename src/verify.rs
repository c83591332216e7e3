//! `parplan verify`: predictions against decoder stacks that the fit never saw.

mod judge;
mod plots;
mod report;
mod select;

use crate::args::{BackendChoice, VerifyArgs};
use crate::ask;
use crate::ask::calibrated::kept;
use crate::failure::Failure;
use crate::files::write_whole;
use crate::output::Style;
use crate::run;
use judge::{Verdict, judge};
use parplan_executor::cuda::device_count;
use parplan_executor::jobs::{Backend, Job, Limits, StackJob, StackResult, StackTiming, Work};
use parplan_executor::symmetric::Registration;
use parplan_planner::calibrate::{Layer, apply};
use parplan_planner::cost::OpCosts;
use parplan_planner::deployment::Setup;
use select::{Case, cases};
use std::time::{Duration, Instant};

/// Runs held-out stacks and holds the predictions against them.
///
/// # Errors
/// A machine that cannot run them; exit code 1 where the median error exceeds `--max-error`.
pub fn run(args: &VerifyArgs, style: Style) -> Result<String, Failure> {
    let library = ask::library(args.profiles.as_deref());
    let backend = match args.backend {
        Some(BackendChoice::Cpu) => Backend::Cpu,
        Some(BackendChoice::Nccl) => Backend::Nccl,
        None if device_count().is_ok() => Backend::Nccl,
        None => Backend::Cpu,
    };
    let ranks = match (args.ranks, backend) {
        (Some(n), _) => n,
        (None, Backend::Nccl) => u32::try_from(device_count()?).unwrap_or(1).min(2),
        (None, Backend::Cpu | Backend::Peer) => 1,
    };
    let provenance = parplan_executor::probes::survey(backend == Backend::Nccl, ranks)?;
    let gpu = match (&args.gpu, backend) {
        (Some(name), _) => library.gpu(name)?,
        (None, Backend::Cpu | Backend::Peer) => library.gpu("cpu")?,
        (None, Backend::Nccl) => library.gpu(&provenance.device)?,
    };
    let engine = library.engine("builtin")?;
    let rules = engine
        .resolve(None, false)
        .map_err(|e| Failure::failed(e.to_string()))?;
    let efficiency = library.efficiency(&rules.name, &gpu)?;
    let overheads = library.overheads(&rules.name, &gpu)?;
    let plain = efficiency.file.is_none();
    let found = kept(
        args.calibration.as_deref(),
        args.profiles.as_deref(),
        &gpu,
        plain,
    )?;
    let layers: Vec<Layer<'_>> = found
        .iter()
        .map(|(origin, calibration)| Layer {
            calibration,
            origin: *origin,
        })
        .collect();
    let prices = apply(
        rules.own_kernels,
        &gpu,
        &efficiency.figures,
        &overheads.figures,
        &layers,
    );
    let all = cases(&library, args, backend, ranks)?;
    let begin = Instant::now();
    let mut verdict = Verdict::new(&gpu.name, &provenance.device, &prices.used);
    for case in &all {
        if verdict.steps.len() >= args.steps as usize {
            break;
        }
        if begin.elapsed().as_secs_f64() > args.budget {
            verdict.notes.push(format!(
                "the budget of {} s ended after {} steps",
                args.budget,
                verdict.steps.len()
            ));
            break;
        }
        let result = measure(args, backend, ranks, case)?;
        let setup = Setup {
            model: &case.model,
            gpu: &prices.gpu,
            rules: &rules,
            costs: OpCosts::new(&prices.efficiency, &prices.gpu)?,
            overheads: &prices.overheads,
        };
        judge(&mut verdict, &setup, case, &result);
    }
    if verdict.steps.is_empty() {
        return Err(Failure::failed("no step was run; nothing is verified"));
    }
    verdict.steps.truncate(args.steps as usize);
    verdict.sum_up();
    if let Some(path) = &args.svg {
        write_whole(path, &plots::svg(&verdict)?, true)?;
    }
    if let Some(path) = &args.html {
        write_whole(path, &report::html(&verdict)?, true)?;
    }
    let printed = if args.json {
        report::json(&verdict)?
    } else {
        report::page(&verdict, style)
    };
    if verdict.summary.median > args.max_error / 100.0 {
        return Err(Failure::FailedWith {
            answer: printed,
            message: format!(
                "the median error is {:.1} %, above --max-error {}",
                verdict.summary.median * 100.0,
                args.max_error
            ),
        });
    }
    Ok(printed)
}

/// One stack on this machine's ranks.
fn measure(
    args: &VerifyArgs,
    backend: Backend,
    ranks: u32,
    case: &Case,
) -> Result<StackResult, Failure> {
    let mut buckets: Vec<usize> = case
        .steps
        .iter()
        .flat_map(|s| s.requests.iter().copied())
        .collect();
    buckets.sort_unstable();
    buckets.dedup();
    let job = Job {
        backend,
        nccl_path: args.nccl_path.clone(),
        limits: Limits {
            meet: Duration::from_secs(60),
            wait: Duration::from_secs(60),
        },
        work: Work::Stack(StackJob {
            spec: case.spec.clone(),
            steps: case.steps.clone(),
            buckets,
            eager: true,
            registration: if case.symmetric {
                Registration::Symmetric
            } else {
                Registration::None
            },
            cublas_path: args.cublas_path.clone(),
            timing: StackTiming {
                warmup: 3,
                repeats: args.repeats as usize,
            },
            check: false,
        }),
    };
    let limit = Duration::from_secs_f64(args.budget) + Duration::from_secs(120);
    let ended = run::ranks(&job, ranks as usize, limit, |_| {})?;
    let failed = || Failure::failed(format!("{} did not run", case.name()));
    if !ended.ok() {
        return Err(failed());
    }
    serde_json::from_value(ended.result.ok_or_else(failed)?)
        .map_err(|e| Failure::failed(format!("the ranks' result does not read: {e}")))
}
