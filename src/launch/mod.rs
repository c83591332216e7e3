//! `launch`: starts what was planned, watches it, and holds what the server says of itself against
//! the plan. docs/launch.md says what a user needs to know.

mod compare;
mod keeper;
mod kept;
mod orders;
mod page;
mod preflight;
mod processes;
mod report;
mod scripts;
pub mod signals;
mod source;
mod tail;
mod watch;

pub use compare::{Comparison, Line};
pub use report::Report;

use crate::args::LaunchArgs;
use crate::failure::Failure;
use crate::files::write_whole;
use crate::json;
use crate::output::{self, Style};
use parplan_planner::launch::{LaunchPlan, NodeCommand};
use parplan_profiles::engine::Dialect;
use parplan_profiles::gpu::Vendor;
use preflight::{Finding, Verdict};
use serde::Serialize;
use source::Start;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use watch::{Fleet, Manner, Outcome, Running, say};

/// Time for the last lines of a start to reach the log.
const SETTLE: Duration = Duration::from_millis(500);

/// The documented JSON of `launch --json`.
#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    commands: &'a LaunchPlan,
    preflight: &'a [Finding],
    servers: Vec<Served<'a>>,
}

/// One engine that is ready.
#[derive(Serialize)]
struct Served<'a> {
    url: Option<String>,
    keeper_pid: u32,
    log: String,
    ready_after_s: f64,
    report: &'a Report,
    comparison: Comparison,
}

/// Runs the command. Its exit code is 0 when what was asked for was done (a dry run, a script, a
/// detached engine), 1 when an engine failed or ended, 2 for input that cannot be used, and
/// 128 + signal when a signal ended it, as shells expect.
pub fn main(args: &LaunchArgs, style: Style) -> ExitCode {
    let ended = runtime().and_then(|runtime| runtime.block_on(run(args, style)));
    match ended {
        Ok(0) => ExitCode::SUCCESS,
        Ok(code) => ExitCode::from(code),
        Err(failure) => output::finish(Err(failure)),
    }
}

/// The hidden command that keeps an engine.
pub fn keep() -> ExitCode {
    let kept = runtime()
        .map_err(|failure| failure.to_string())
        .and_then(|runtime| {
            let kept = runtime.block_on(keeper::keep());
            // A read of standard input may be under way, and would never end.
            runtime.shutdown_background();
            kept
        });
    match kept {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => output::finish(Err(Failure::unusable(why))),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("no event loop: {error}")))
}

async fn run(args: &LaunchArgs, style: Style) -> Result<u8, Failure> {
    let start = Start::resolve(args)?;
    if let Some((kind, path)) = &args.watch.write {
        write_whole(path, &scripts::script(&start, *kind)?, true)?;
        print(&format!("written: {}\n", path.display()));
        return Ok(0);
    }
    let local = local(args, &start)?;
    let findings = preflight::check(
        &start,
        &local,
        &args.start.skip_preflight,
        args.start.allow_nvls,
    )
    .await;
    let failed = findings
        .iter()
        .filter(|finding| matches!(finding.verdict, Verdict::Failed(_)))
        .count();
    if !args.asked.json {
        print(&page::before(&start, &findings, style));
    }
    if args.watch.dry_run {
        if args.asked.json {
            print(&answer(&start, &findings, Vec::new())?);
        }
        return Ok(0);
    }
    runs_here(args, &start)?;
    if failed > 0 {
        return Err(Failure::failed(format!(
            "nothing was started: {failed} of {} checks failed{}; --skip-preflight NAME leaves one out",
            findings.len(),
            match args.asked.json {
                true => format!(": {}", page::failures(&findings)),
                false => String::new(),
            }
        )));
    }
    if start.rules.dialect == Dialect::Builtin {
        return Err(become_executor(args, &start, &local));
    }
    let manner = Manner {
        deadline: Duration::from_secs_f64(args.watch.deadline),
        grace: Duration::from_secs_f64(args.watch.grace),
    };
    let mut fleet = started(args, &start, &local, manner).await?;
    let ready = fleet.until_ready().await;
    if ready != Outcome::Ready {
        return unready(&mut fleet, ready, args.watch.deadline).await;
    }
    tokio::time::sleep(SETTLE).await;
    report(args, &start, &findings, &fleet, style)?;
    if args.watch.detach {
        fleet.leave().await;
        for engine in fleet.engines() {
            say(&format!(
                "left running; `kill {}` ends it and all that it started",
                engine.keeper_pid()
            ));
        }
        return Ok(0);
    }
    match fleet.until_end().await {
        Outcome::Signal(number) => {
            say("ending");
            fleet.end(number).await;
            Ok(exit_code(number))
        }
        Outcome::Died(why) => {
            fleet.end(SIGTERM).await;
            Err(Failure::failed(why))
        }
        Outcome::Ready | Outcome::TimedOut => Ok(0),
    }
}

/// Our own executor is no server: it runs what was planned, prints it beside the prediction and ends.
/// This process becomes it, so that nothing stands between it and its signals. Only comes back with
/// the reason why it could not.
fn become_executor(args: &LaunchArgs, start: &Start, local: &[&NodeCommand]) -> Failure {
    use std::os::unix::process::CommandExt;
    if args.watch.detach {
        return Failure::unusable(
            "--detach: the builtin executor runs to its end and is no server",
        );
    }
    let [node] = local else {
        return Failure::unusable(format!(
            "the plan has {} replicas on this machine, and the builtin executor runs one at a time; \
             plan --replicas 1",
            local.len()
        ));
    };
    for (name, content) in &node.files {
        if let Err(failure) = write_whole(std::path::Path::new(name), content, true) {
            return failure;
        }
    }
    let Some((program, arguments)) = node.argv.split_first() else {
        return Failure::failed("the plan has no command");
    };
    let mut command = std::process::Command::new(program);
    command.args(arguments).envs(&node.env);
    if start.gpu.vendor == Vendor::Cpu {
        command.args(["--backend", "cpu"]);
    }
    Failure::failed(format!("{program}: {}", command.exec()))
}

const SIGTERM: i32 = rustix::process::Signal::TERM.as_raw();

/// 128 + signal, as shells expect.
fn exit_code(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// Ends what is not ready and says why.
async fn unready(fleet: &mut Fleet, outcome: Outcome, deadline_s: f64) -> Result<u8, Failure> {
    match outcome {
        Outcome::Signal(number) => {
            say("ending before it was ready");
            fleet.end(number).await;
            Ok(exit_code(number))
        }
        Outcome::Died(why) => {
            fleet.end(SIGTERM).await;
            Err(Failure::failed(why))
        }
        Outcome::TimedOut | Outcome::Ready => {
            let last = fleet.last_lines();
            fleet.end(SIGTERM).await;
            Err(Failure::failed(format!(
                "not ready within {deadline_s} s (--deadline), and ended; {last}"
            )))
        }
    }
}

/// The commands that run on this machine.
fn local<'a>(args: &LaunchArgs, start: &'a Start) -> Result<Vec<&'a NodeCommand>, Failure> {
    let machines = scripts::by_machine(&start.commands);
    let index = args.start.node.unwrap_or(0) as usize;
    let count = machines.len();
    match machines.into_iter().nth(index) {
        Some((_, nodes)) => Ok(nodes),
        None if count == 1 => Err(Failure::unusable(format!(
            "--node {index}: the plan is for one machine, which is --node 0"
        ))),
        None => Err(Failure::unusable(format!(
            "--node {index}: the plan has machines 0 to {}",
            count.saturating_sub(1)
        ))),
    }
}

/// Refuses to start what cannot be started from here.
fn runs_here(args: &LaunchArgs, start: &Start) -> Result<(), Failure> {
    let machines = scripts::by_machine(&start.commands).len();
    if !start.rules.verified && start.rules.dialect != Dialect::Builtin {
        return Err(Failure::unusable(format!(
            "commands of {} are printed only: nobody ran them through its parser; start the printed \
             one by hand",
            start.rules.name
        )));
    }
    if machines > 1 && args.start.node.is_none() {
        return Err(Failure::unusable(format!(
            "the plan takes {machines} machines: run this on each with --machines A,B,… and --node 0 \
             to {}, or --write slurm=FILE, kubernetes=FILE{}",
            machines - 1,
            match start.rules.dialect {
                Dialect::Vllm => " or ray=FILE",
                _ => "",
            }
        )));
    }
    if machines > 1 && start.spec.machines.len() < machines {
        return Err(Failure::unusable(format!(
            "the plan takes {machines} machines, and --machines names {}; name them all, in order",
            start.spec.machines.len()
        )));
    }
    Ok(())
}

/// Starts every engine of this machine; when one cannot be, those that run are ended by their
/// keepers, whose pipes close.
async fn started(
    args: &LaunchArgs,
    start: &Start,
    local: &[&NodeCommand],
    manner: Manner,
) -> Result<Fleet, Failure> {
    let mut engines = Vec::new();
    for node in local {
        let log = log_path(args, start, node, local.len());
        engines.push(Running::start(node, &start.spec.host, log, &manner).await?);
    }
    Ok(Fleet::new(engines, manner))
}

/// Where an engine's output goes: the file that was named, numbered where there are several.
fn log_path(args: &LaunchArgs, start: &Start, node: &NodeCommand, engines: usize) -> PathBuf {
    let port = node.port.unwrap_or(start.spec.port);
    match &args.watch.log {
        Some(path) if engines == 1 => path.clone(),
        Some(path) => {
            let mut name = path.clone().into_os_string();
            name.push(format!(".{}", node.replica));
            PathBuf::from(name)
        }
        None => PathBuf::from(format!("parplan-{}-{port}.log", start.rules.name)),
    }
}

fn report(
    args: &LaunchArgs,
    start: &Start,
    findings: &[Finding],
    fleet: &Fleet,
    style: Style,
) -> Result<(), Failure> {
    let served: Vec<Served<'_>> = fleet
        .engines()
        .iter()
        .map(|engine| {
            let (log, server) = engine.place();
            Served {
                url: server.map(ToString::to_string),
                keeper_pid: engine.keeper_pid(),
                log: log.display().to_string(),
                ready_after_s: fleet.seconds(),
                report: &engine.report,
                comparison: compare::compare(start, &engine.report),
            }
        })
        .collect();
    if args.asked.json {
        print(&answer(start, findings, served)?);
        return Ok(());
    }
    for one in &served {
        let url = one.url.as_deref().unwrap_or("an engine without a server");
        print(&page::ready(url, one.ready_after_s, &one.comparison, style));
    }
    Ok(())
}

fn answer(
    start: &Start,
    findings: &[Finding],
    servers: Vec<Served<'_>>,
) -> Result<String, Failure> {
    json::print(&Answer {
        commands: &start.commands,
        preflight: findings,
        servers,
    })
}

/// Writes to standard output at once: what follows may take hours.
fn print(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout();
    // A reader that has seen enough does not end a server.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
