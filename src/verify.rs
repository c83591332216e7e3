//! `parplan verify`: predictions against decoder stacks that the fit never saw.

mod case;
mod judge;
mod plots;
mod report;
mod select;

use crate::args::VerifyArgs;
use crate::ask;
use crate::ask::calibrated::builtin;
use crate::failure::Failure;
use crate::files::{can_be_written, write_whole};
use crate::output::Style;
use crate::render::number;
use crate::run;
use case::Case;
use judge::{Kept, Verdict};
use parplan_executor::cuda::device_count;
use parplan_executor::jobs::{Backend, Job, Limits, StackJob, StackResult, StackTiming, Work};
use parplan_executor::stack::{DcpMerge, StepSpec};
use parplan_executor::symmetric::Registration;
use parplan_planner::cost::OpCosts;
use parplan_planner::deployment::Setup;
use parplan_profiles::engine::rules::DcpMerge as PlannedMerge;
use parplan_profiles::library::read_limited;
use parplan_profiles::{GpuProfile, Library};
use select::{Room, groups};
use std::path::Path;
use std::time::{Duration, Instant};

/// The largest kept verification that is read.
const MOST_BYTES: u64 = 256 << 20;

/// Runs held-out stacks and holds the predictions against them.
///
/// # Errors
/// A machine that cannot run them; exit code 1 where the median error exceeds `--max-error`.
pub fn run(args: &VerifyArgs, style: Style) -> Result<String, Failure> {
    let library = ask::library(args.profiles.as_deref())?;
    // Minutes of measuring are not spent on what cannot be kept.
    for path in [&args.keep, &args.svg, &args.html].into_iter().flatten() {
        can_be_written(path)?;
    }
    let mut verdict = if args.measured.is_empty() {
        measured_now(args, &library)?
    } else {
        measured_before(args, &library)?
    };
    if verdict.steps.is_empty() {
        return Err(Failure::failed("no step was run; nothing is verified"));
    }
    verdict.sum_up();
    if let Some(path) = &args.keep {
        write_whole(path, &report::json(&verdict)?, true)?;
    }
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

/// Prices that apply to a GPU, and what judges by them.
fn judged_by<T>(
    args: &VerifyArgs,
    library: &Library,
    gpu: &GpuProfile,
    work: impl FnOnce(&mut dyn FnMut(&mut Verdict, &Case, StackSteps), &[String]) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let prices = builtin(
        library,
        gpu,
        args.calibration.as_deref(),
        args.profiles.as_deref(),
    )?;
    let costs = OpCosts::new(&prices.calibrated.efficiency, &prices.calibrated.gpu)?;
    let mut take = |verdict: &mut Verdict, case: &Case, steps: StackSteps| {
        let setup = Setup {
            model: &case.model,
            gpu: &prices.calibrated.gpu,
            rules: &prices.rules,
            costs: costs.clone(),
            overheads: &prices.calibrated.overheads,
        };
        verdict.take(&setup, case, steps);
    };
    let mut used = prices.calibrated.used.clone();
    if used.is_empty() {
        used.push(format!(
            "no calibration of {}: tables of other machines (`parplan calibrate` measures this one)",
            gpu.name
        ));
    }
    work(&mut take, &used)
}

type StackSteps = Vec<parplan_executor::jobs::StackStep>;

/// Measures on this machine.
fn measured_now(args: &VerifyArgs, library: &Library) -> Result<Verdict, Failure> {
    let backend = match args.backend {
        Some(named) => named,
        None if device_count().is_ok() => Backend::Nccl,
        None => Backend::Cpu,
    };
    let ranks = ranks(args, backend)?;
    let provenance = parplan_executor::probes::survey(backend == Backend::Nccl, ranks)?;
    let gpu = match (&args.gpu, backend) {
        (Some(name), _) => library.gpu(name)?,
        (None, Backend::Cpu | Backend::Peer) => library.gpu("cpu")?,
        (None, Backend::Nccl) => library.gpu(&provenance.device)?,
    };
    let room = Room {
        backend,
        ranks: ranks as usize,
        memory: provenance.memory_bytes as f64,
        merge: planned_merge(library)?,
    };
    let all = groups(library, args, room)?;
    let begin = Instant::now();
    judged_by(args, library, &gpu, |take, prices| {
        let mut verdict = Verdict::new(&gpu.name, &provenance.device, prices);
        for group in &all {
            // A workload is only a choice where all of its configurations ran.
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
            for (case, steps) in &group.stacks {
                let result = measure(args, backend, ranks, case, steps)?;
                for note in &result.notes {
                    if !verdict.notes.contains(note) {
                        verdict.notes.push(note.clone());
                    }
                }
                take(&mut verdict, case, result.steps);
            }
        }
        Ok(verdict)
    })
}

/// Judges again what earlier runs kept, by the prices that hold now.
fn measured_before(args: &VerifyArgs, library: &Library) -> Result<Verdict, Failure> {
    let mut all: Vec<Kept> = Vec::new();
    for path in &args.measured {
        all.push(kept(path)?);
    }
    let (gpu, device) = match (&args.gpu, all.as_slice()) {
        (_, []) => return Err(Failure::unusable("--measured: no file was given")),
        (Some(name), [first, ..]) => (library.gpu(name)?, first.device.clone()),
        (None, [first, rest @ ..]) => match rest.iter().find(|k| k.gpu != first.gpu) {
            Some(other) => {
                return Err(Failure::unusable(format!(
                    "--measured: runs on {} and on {} cannot be judged together",
                    first.gpu, other.gpu
                )));
            }
            None => (library.gpu(&first.gpu)?, first.device.clone()),
        },
    };
    judged_by(args, library, &gpu, |take, prices| {
        let mut verdict = Verdict::new(&gpu.name, &device, prices);
        for ran in all.into_iter().flat_map(|k| k.measured) {
            let case = ran.case.resolve(library)?;
            take(&mut verdict, &case, ran.steps);
        }
        Ok(verdict)
    })
}

/// Reads what `--keep` or `--json` wrote.
fn kept(path: &Path) -> Result<Kept, Failure> {
    let about = |why: String| Failure::unusable(format!("--measured {}: {why}", path.display()));
    let text = read_limited(path, MOST_BYTES)
        .map_err(|fault| Failure::unusable(format!("--measured {fault}")))?;
    serde_json::from_str(&text)
        .map_err(|e| about(format!("it is not what `verify --keep` writes: {e}")))
}

/// Ranks of this run.
fn ranks(args: &VerifyArgs, backend: Backend) -> Result<u32, Failure> {
    let there = match backend {
        Backend::Nccl => u32::try_from(device_count()?).unwrap_or(1),
        Backend::Cpu | Backend::Peer => MOST_RANKS,
    };
    let ranks = args.ranks.unwrap_or(match backend {
        Backend::Nccl => there.min(2),
        Backend::Cpu | Backend::Peer => 1,
    });
    let most = there.min(MOST_RANKS);
    if !ranks.is_power_of_two() || ranks > most {
        let right: Vec<String> = (0..)
            .map(|power| 1u32 << power)
            .take_while(|right| *right <= most)
            .map(|right| right.to_string())
            .collect();
        let why = match backend {
            Backend::Nccl if ranks > there => {
                format!(
                    "this machine has {}",
                    number::counted(f64::from(there), "GPU")
                )
            }
            _ => "it must be a power of two".to_owned(),
        };
        let right = match right.as_slice() {
            [one] => one.clone(),
            [few @ .., last] => format!("{} or {last}", few.join(", ")),
            [] => "1".to_owned(),
        };
        return Err(Failure::unusable(format!(
            "--ranks {ranks}: {why}; give {right}"
        )));
    }
    Ok(ranks)
}

/// Ranks of one stage, at most: layouts of a node.
const MOST_RANKS: u32 = 8;

/// How a plan merges DCP where nobody says otherwise.
fn planned_merge(library: &Library) -> Result<DcpMerge, Failure> {
    let rules = library
        .engine("builtin")?
        .resolve(None, false)
        .map_err(|e| Failure::failed(e.to_string()))?;
    Ok(match rules.dcp.map(|rule| rule.default_merge) {
        Some(PlannedMerge::AgRs) => DcpMerge::ReduceScatter,
        _ => DcpMerge::AllToAll,
    })
}

/// One stack on this machine's ranks.
fn measure(
    args: &VerifyArgs,
    backend: Backend,
    ranks: u32,
    case: &Case,
    steps: &[StepSpec],
) -> Result<StackResult, Failure> {
    let mut buckets: Vec<usize> = steps
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
            steps: steps.to_vec(),
            buckets,
            eager: true,
            registration: if case.named.symmetric {
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
    let failed = || Failure::failed(format!("{} did not run", case.named.name()));
    if !ended.ok() {
        return Err(failed());
    }
    serde_json::from_value(ended.result.ok_or_else(failed)?)
        .map_err(|e| Failure::failed(format!("the ranks' result does not read: {e}")))
}
