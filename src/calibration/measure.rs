//! Runs experiments on this machine's ranks, with a bar that says how long it will take.

use super::machine::Target;
use crate::failure::Failure;
use crate::run;
use indicatif::{ProgressBar, ProgressStyle};
use parplan_executor::jobs::{Backend, Job, Limits, Work};
use parplan_executor::probes::{Effort, ProbesJob, ProbesResult, Progress};
use parplan_executor::ranks::Event;
use parplan_profiles::calibration::Experiment;
use std::path::Path;
use std::time::{Duration, Instant};

/// Time for ranks to meet, NCCL to connect and kernels to load, beside the budget for measuring.
const AROUND: Duration = Duration::from_secs(120);
/// Any one wait.
const WAIT: Duration = Duration::from_secs(60);

/// Libraries that the user named.
#[derive(Debug, Clone, Copy, Default)]
pub struct Libraries<'a> {
    /// NCCL.
    pub nccl: Option<&'a Path>,
    /// cuBLASLt.
    pub cublas: Option<&'a Path>,
}

/// Runs `experiments` within `budget`; samples go to the journal one by one.
///
/// # Errors
/// Ranks that failed or were interrupted: what was measured before stays in the journal.
pub fn run(
    target: &Target,
    experiments: &[Experiment],
    budget: Duration,
    journal: &Path,
    libraries: Libraries<'_>,
) -> Result<ProbesResult, Failure> {
    let journal = std::path::absolute(journal)
        .map_err(|e| Failure::failed(format!("{}: {e}", journal.display())))?;
    let job = Job {
        backend: target.backend,
        nccl_path: libraries.nccl.map(Path::to_path_buf),
        limits: Limits {
            meet: Duration::from_secs(60),
            wait: WAIT,
        },
        work: Work::Probes(ProbesJob {
            experiments: experiments.to_vec(),
            effort: match target.backend {
                Backend::Cpu => Effort::CPU,
                Backend::Nccl | Backend::Peer => Effort::GPU,
            },
            budget_seconds: budget.as_secs_f64(),
            journal: Some(journal.clone()),
            cublas_path: libraries.cublas.map(Path::to_path_buf),
        }),
    };
    let bar = bar(experiments.len());
    let begin = Instant::now();
    let ended = run::ranks(&job, target.ranks as usize, budget + AROUND, |event| {
        match event {
            // Notes are of ranks that meet, which nobody needs to see here.
            Event::Note(_) => {}
            Event::Progress(value) => {
                if let Ok(p) = serde_json::from_value::<Progress>(value.clone()) {
                    show(&bar, &p, begin.elapsed(), budget);
                }
            }
        }
    });
    bar.finish_and_clear();
    let ended = ended?;
    if let Some(signal) = ended.interrupted {
        return Err(Failure::failed(format!(
            "interrupted by signal {signal}; what was measured is kept in {}: go on with --resume",
            journal.display()
        )));
    }
    let failed = || {
        Failure::failed(format!(
            "measuring failed; what was measured before is kept in {}: go on with --resume",
            journal.display()
        ))
    };
    if !ended.ok() {
        return Err(failed());
    }
    let value = ended.result.ok_or_else(failed)?;
    serde_json::from_value(value)
        .map_err(|e| Failure::failed(format!("the ranks' result does not read: {e}")))
}

fn bar(length: usize) -> ProgressBar {
    let bar = ProgressBar::new(length as u64);
    // The template is a constant, which the tests read.
    if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

const TEMPLATE: &str = "[{bar:24}] {pos}/{len}, {prefix} left  {wide_msg}";

fn show(bar: &ProgressBar, progress: &Progress, passed: Duration, budget: Duration) {
    bar.set_position(progress.done as u64);
    let left = left(progress.done, progress.all, passed, budget);
    bar.set_prefix(format!("{} s", left.as_secs()));
    if let Some(next) = &progress.next {
        bar.set_message(next.to_string());
    }
}

/// Time left: at the pace so far, and at most what the budget leaves.
fn left(done: usize, all: usize, passed: Duration, budget: Duration) -> Duration {
    let in_budget = budget.saturating_sub(passed);
    if done == 0 {
        return in_budget;
    }
    let pace = passed.as_secs_f64() / done as f64;
    in_budget.min(Duration::from_secs_f64(
        pace * all.saturating_sub(done) as f64,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_follows_the_pace_and_ends_with_the_budget() {
        let s = Duration::from_secs;
        assert_eq!(left(0, 10, s(3), s(60)), s(57));
        assert_eq!(left(5, 10, s(10), s(60)), s(10));
        assert_eq!(left(1, 100, s(10), s(60)), s(50));
        assert_eq!(left(3, 10, s(90), s(60)), s(0));
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }
}
