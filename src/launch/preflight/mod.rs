//! Checks before anything is started. Each says what it found, or what is wrong and what to do.

mod engine;
mod gpus;
mod model;
mod port;

use super::source::{Start, nvls_is_off};
use crate::args::Check;
use parplan_planner::launch::NodeCommand;
use parplan_profiles::engine::Dialect;
use serde::Serialize;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "verdict", content = "text")]
pub enum Verdict {
    /// All is well, and this is how.
    Passed(String),
    /// It was not made, and this is why.
    Skipped(String),
    /// What is wrong, and what would be right.
    Failed(String),
}

/// A check and its verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check's name, as `--skip-preflight` takes it.
    pub check: &'static str,
    /// What it found.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// Makes every check that was not left out, for the commands that run on this machine.
pub async fn check(
    start: &Start,
    nodes: &[&NodeCommand],
    skipped: &[Check],
    allow_nvls: bool,
) -> Vec<Finding> {
    let mut out = Vec::new();
    let mut add = |check: Check, verdict: Verdict| {
        out.push(Finding {
            check: check.name(),
            verdict,
        });
    };
    let left_out = |check| skipped.contains(&check);
    let by_hand = || Verdict::Skipped("left out by --skip-preflight".to_owned());

    add(Check::Nvls, nvls(start, allow_nvls));
    let devices = match left_out(Check::Gpus) && left_out(Check::Memory) {
        true => gpus::Devices::default(),
        false => gpus::Devices::look(start).await,
    };
    for (check, verdict) in [
        (Check::Gpus, devices.present(start, nodes)),
        (Check::Memory, devices.free(start, nodes)),
    ] {
        add(check, if left_out(check) { by_hand() } else { verdict });
    }
    let installed = match left_out(Check::Engine) && left_out(Check::Version) {
        true => engine::Installed::Unknown,
        false => engine::look(start, nodes).await,
    };
    for (check, verdict) in [
        (Check::Engine, installed.present(start)),
        (Check::Version, installed.version(start)),
        (Check::Flags, engine::flags(start, nodes)),
        (Check::Model, model::check(start)),
        (Check::Port, port::check(&start.spec.host, nodes)),
    ] {
        add(check, if left_out(check) { by_hand() } else { verdict });
    }
    out
}

/// SGLang's symmetric-memory option sets NCCL_NVLS_ENABLE=1 in its own processes.
fn nvls(start: &Start, allowed: bool) -> Verdict {
    let forces = start.spec.symmetric_memory
        && start
            .rules
            .symmetric
            .as_ref()
            .is_some_and(|rule| rule.forces_nvls);
    match (forces && nvls_is_off(), allowed) {
        (false, _) => Verdict::Passed("nothing changes NCCL_NVLS_ENABLE".to_owned()),
        (true, true) => Verdict::Passed(
            "the engine turns NVLS on in its own processes; --allow-nvls says that it may"
                .to_owned(),
        ),
        (true, false) => Verdict::Failed(format!(
            "NCCL_NVLS_ENABLE is 0 here, and {}'s symmetric-memory option sets it to 1 in its own \
             processes; --allow-nvls starts it all the same, --symmetric-memory off plans without",
            start.rules.name
        )),
    }
}

/// Whether our own executor runs the plan: then no engine is asked for anything.
fn is_builtin(start: &Start) -> bool {
    start.rules.dialect == Dialect::Builtin
}

/// What a small program prints, within `limit`; it is killed after that.
async fn output(program: &str, arguments: &[&str], limit: Duration) -> Result<String, String> {
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{program}: {error}"))?;
    let output = tokio::time::timeout(limit, child.wait_with_output())
        .await
        .map_err(|_| format!("{program} did not answer within {} s", limit.as_secs()))?
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    let last: String = last
        .unwrap_or("it said nothing")
        .chars()
        .take(200)
        .collect();
    Err(format!("{program} ended with {}: {last}", output.status))
}
