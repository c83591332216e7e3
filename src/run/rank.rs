//! This process as a rank.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use parplan_executor::cuda::watch_calls;
use parplan_executor::jobs::{Context, Job};
use parplan_executor::ranks::{Channel, Identity, Launcher, Report, end_process, receive_spec};
use parplan_executor::rendezvous::{Rendezvous, Secret};
use parplan_executor::{Communicator, Deadline, Error, Result};
use serde_json::Value;

use super::arguments::Common;
use super::tables;
use crate::render::number;

/// A rank that a supervisor started: orders on standard input, reports on descriptor 3.
pub fn supervised() -> Result<u8> {
    let (spec, channel) = receive_spec()?;
    let job: Job = serde_json::from_value(spec.job.clone()).map_err(|e| {
        Error::Unusable(format!(
            "the supervisor and this rank are of different versions: {e}"
        ))
    })?;
    let channel = Arc::new(Mutex::new(channel));
    let watched = Arc::clone(&channel);
    watch_calls(job.limits.wait, move |why| fail(&watched, &why, 1));
    match work(
        spec.identity,
        &spec.rendezvous,
        &spec.secret,
        &job,
        &channel,
    ) {
        Ok(()) => Ok(0),
        Err(error) => fail(&channel, &error.to_string(), error.exit_code()),
    }
}

/// Reports a failure and ends the process at once. Not by `exit`: the handlers that it
/// runs belong to libraries that may wait for ever for work that a dead peer holds up.
fn fail(channel: &Mutex<Channel>, error: &str, code: u8) -> ! {
    eprintln!("parplan: {error}");
    let report = Report::Failed {
        error: error.to_owned(),
        code,
    };
    channel
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send(&report);
    end_process(code)
}

fn work(
    identity: Identity,
    rendezvous: &str,
    secret: &Secret,
    job: &Job,
    channel: &Arc<Mutex<Channel>>,
) -> Result<()> {
    let send = |report: &Report| {
        channel
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .send(report)
    };
    let listening = Arc::clone(channel);
    let value = run(identity, rendezvous, secret, job, |context| {
        context.listener = Some(Box::new(move |value| {
            listening
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .send(&Report::Progress(value.clone()));
        }));
        if identity.rank == 0 {
            send(&Report::Note(format!(
                "{} met at {rendezvous}",
                number::counted(context.control.size() as f64, "rank")
            )));
        }
    })?;
    send(&Report::Done(if identity.rank == 0 {
        value
    } else {
        Value::Null
    }));
    Ok(())
}

fn run(
    identity: Identity,
    rendezvous: &str,
    secret: &Secret,
    job: &Job,
    met: impl FnOnce(&mut Context),
) -> Result<Value> {
    let mut context = Context::connect(
        identity,
        rendezvous,
        secret,
        job.backend,
        job.nccl_path.as_deref(),
        job.limits,
    )?;
    met(&mut context);
    let value = job.run(&mut context)?;
    // Nobody leaves while another still works: a closed connection means a dead rank.
    context.control.barrier()?;
    Ok(value)
}

/// A rank that torchrun, srun or mpirun started. Rank 0 holds the rendezvous.
pub fn launched(common: &Common, job: &Job, launcher: Launcher, identity: Identity) -> Result<u8> {
    let address = match &common.rendezvous {
        Some(address) => address.clone(),
        None => from_master(launcher, |name| std::env::var(name).ok())?,
    };
    let secret = super::secret()?.ok_or_else(|| {
        Error::Unusable(format!(
            "ranks that {launcher} starts need the same shared secret: set {} for all of them",
            Secret::ENV
        ))
    })?;
    job.backend
        .check_machine(identity.local_world, job.nccl_path.as_deref())?;
    let server = match identity.rank {
        0 => {
            let patience = Deadline::after(Duration::from_secs_f64(common.meet));
            Some(Rendezvous::serve(
                &address,
                identity.world,
                secret.clone(),
                patience,
            )?)
        }
        _ => None,
    };
    watch_calls(job.limits.wait, |why| {
        eprintln!("parplan: {why}");
        end_process(1)
    });
    let result = run(identity, &address, &secret, job, |_| {});
    for visit in server.iter().flat_map(Rendezvous::refused) {
        eprintln!(
            "warning: refused a visitor at the rendezvous, {}: {}",
            visit.from, visit.why
        );
    }
    let value = result?;
    if identity.rank == 0 {
        tables::print(job, &value, common.json)?;
    }
    Ok(0)
}

/// torchrun says where its own store is; one port beside it is ours.
fn from_master(launcher: Launcher, get: impl Fn(&str) -> Option<String>) -> Result<String> {
    let beside = |port: String| port.parse::<u16>().ok()?.checked_add(1);
    match (get("MASTER_ADDR"), get("MASTER_PORT").and_then(beside)) {
        (Some(host), Some(port)) => Ok(format!("{host}:{port}")),
        _ => Err(Error::Unusable(format!(
            "ranks that {launcher} starts need --rendezvous host:port (or MASTER_ADDR and MASTER_PORT)"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_beside_the_store_of_torchrun_is_used() {
        let env = |name: &str| match name {
            "MASTER_ADDR" => Some("10.0.0.1".to_owned()),
            "MASTER_PORT" => Some("29500".to_owned()),
            _ => None,
        };
        assert_eq!(
            from_master(Launcher::Torchrun, env).unwrap(),
            "10.0.0.1:29501"
        );
        let e = from_master(Launcher::Slurm, |_| None).unwrap_err();
        assert_eq!(
            e.to_string(),
            "ranks that srun starts need --rendezvous host:port (or MASTER_ADDR and MASTER_PORT)"
        );
    }
}
