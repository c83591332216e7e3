//! `parplan run …`: ranks under a supervisor, or as ranks of another launcher.

mod arguments;
mod attention;
mod collectives;
mod gather;
mod mode;
mod outcome;
mod rank;
mod room;
pub mod stack;
mod sync;
mod tables;
pub mod values;

use crate::output::tell;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use parplan_executor::jobs::{Backend, Doing, Job};
use parplan_executor::ranks::{Event, Plan, Supervised, from_environment, supervise};
use parplan_executor::rendezvous::Secret;
use parplan_executor::{Error, Result};

use arguments::What;
pub use arguments::{Arguments, Common};

/// Runs the command; what goes wrong is said on standard error.
pub fn main(arguments: Arguments) -> ExitCode {
    let code = match arguments.what {
        What::Rank => rank::supervised(),
        What::Collectives(a) => a.job().and_then(|job| start(&a.common, &job)),
        What::Gather(a) => a.job().and_then(|job| start(&a.common, &job)),
        What::Sync(a) => a.job().and_then(|job| start(&a.common, &job)),
        What::Attention(a) => a.job().and_then(|(common, job)| start(&common, &job)),
        What::Stack(a) => a.job().and_then(|(common, job)| start(&common, &job)),
    };
    match code {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tell!("parplan: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Starts the ranks, or becomes one where a launcher did; prints the result.
fn start(common: &Common, job: &Job) -> Result<u8> {
    let launched = match common.no_launcher {
        true => None,
        false => from_environment(|name| std::env::var(name).ok())?,
    };
    if let Some((launcher, identity)) = launched {
        return rank::launched(common, job, launcher, identity);
    }
    let (code, result) = collect(common, job)?;
    if let Some(result) = &result {
        tables::print(job, result, common.json)?;
    }
    Ok(code)
}

/// Ranks of a machine from which on it takes seconds until all have met.
const MANY: usize = 16;

/// Runs a job under a supervisor: its exit code, and rank 0's result where there is one.
///
/// # Errors
/// What keeps the ranks from being started; what goes wrong later is reported on standard
/// error and in the code.
pub fn collect(common: &Common, job: &Job) -> Result<(u8, Option<serde_json::Value>)> {
    let local_world = match common.ranks {
        Some(n) => n,
        None if job.backend != Backend::Cpu => parplan_executor::cuda::device_count()?,
        None => 2,
    };
    if common.node_rank >= common.nnodes {
        return Err(Error::Unusable(format!(
            "--node-rank is {}, with --nnodes {} it must be below that",
            common.node_rank, common.nnodes
        )));
    }
    job.backend
        .check_machine(local_world, job.nccl_path.as_deref())?;
    room::check(job, local_world, local_world * common.nnodes)?;
    if job.backend != Backend::Cpu {
        let gpus = parplan_executor::cuda::device_count()?;
        if local_world > gpus {
            tell!("{local_world} ranks share {gpus} GPUs: results count, times do not");
        }
    }
    if local_world > MANY {
        tell!("starting {local_world} ranks, which meet two by two …");
    }
    let exe = std::env::current_exe().map_err(Error::io("finding this program"))?;
    let logs = common.logs.clone().unwrap_or_else(default_logs);
    let plan = Plan {
        command: vec![exe.display().to_string(), "run".into(), "rank".into()],
        local_world,
        nnodes: common.nnodes,
        node_rank: common.node_rank,
        rendezvous: common.rendezvous.clone(),
        secret: secret()?,
        job: serde_json::to_value(job)
            .map_err(|e| Error::Unusable(format!("the job does not serialise: {e}")))?,
        logs: logs.clone(),
        meet_within: Duration::from_secs_f64(common.meet),
        limit: Duration::from_secs_f64(common.limit),
    };
    let run = supervise(&plan, |event| match event {
        Event::Note(note) => tell!("{note}"),
        Event::Progress(value) => {
            if let Ok(Doing(what)) = serde_json::from_value(value.clone()) {
                tell!("{what}");
            }
        }
    })?;
    outcome::report(&run, &logs, common.logs.is_some());
    Ok((run.exit_code(), run.result))
}

/// Runs a job on ranks of this machine for another command, which hears of its events. Logs of a good
/// run are removed.
///
/// # Errors
/// A machine that cannot run so many ranks, or processes that cannot be started.
pub fn ranks(
    job: &Job,
    local_world: usize,
    limit: Duration,
    hear: impl FnMut(Event<'_>),
) -> Result<Supervised> {
    job.backend
        .check_machine(local_world, job.nccl_path.as_deref())?;
    let exe = std::env::current_exe().map_err(Error::io("finding this program"))?;
    let logs = default_logs();
    let plan = Plan {
        command: vec![exe.display().to_string(), "run".into(), "rank".into()],
        local_world,
        nnodes: 1,
        node_rank: 0,
        rendezvous: None,
        secret: None,
        job: serde_json::to_value(job)
            .map_err(|e| Error::Unusable(format!("the job does not serialise: {e}")))?,
        logs: logs.clone(),
        meet_within: job.limits.meet,
        limit,
    };
    let run = supervise(&plan, hear)?;
    outcome::report(&run, &logs, false);
    Ok(run)
}

/// The secret of the environment, if there is one.
fn secret() -> Result<Option<Secret>> {
    std::env::var(Secret::ENV).ok().map(Secret::new).transpose()
}

fn default_logs() -> PathBuf {
    std::env::temp_dir().join(format!("parplan-{}", std::process::id()))
}
