//! The process between `launch` and an engine. It adopts whatever the engine starts, passes signals
//! on, and ends everything when it is asked to, when the engine ends, or when `launch` is gone
//! without a word (the pipe from it closes, whatever killed it).

use super::orders::{Event, MARK, Order, Request};
use super::{processes, signals};
use rustix::process::{
    Pid, Signal, kill_process_group, set_child_subreaper, set_parent_process_death_signal,
};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin};
use tokio::process::{Child, Command};

/// How often processes that are to end are looked at.
const LOOK: Duration = Duration::from_millis(30);
/// Rounds of killing: a process may start another while it is being killed.
const ROUNDS: usize = 100;

/// Keeps one engine; the exit code is 0 whenever its end could be told.
///
/// # Errors
/// What makes this no keeper at all, for standard error.
pub async fn keep() -> Result<(), String> {
    if std::env::var_os(MARK).is_none() {
        return Err("this command is started by `parplan launch`, not by hand".to_owned());
    }
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let first = lines.next_line().await.ok().flatten();
    let order: Order = first
        .as_deref()
        .and_then(|line| serde_json::from_str(line).ok())
        .ok_or("its orders do not read")?;
    // Processes of the engine whose parents end become children of this one.
    set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| format!("this process cannot adopt others: {error}"))?;
    match start(&order) {
        Ok(child) => watch(child, &order, lines).await,
        Err(why) => tell(&Event::Refused { why }),
    }
    Ok(())
}

/// Says something to `launch`, which may be gone.
fn tell(event: &Event) {
    if let Ok(line) = serde_json::to_string(event) {
        let mut out = std::io::stdout();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

fn start(order: &Order) -> Result<Child, String> {
    let (program, arguments) = order.argv.split_first().ok_or("the command is empty")?;
    let cannot = |what: &str, error: std::io::Error| format!("{what}: {error}");
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&order.log)
        .map_err(|error| cannot(&order.log.display().to_string(), error))?;
    let also = log
        .try_clone()
        .map_err(|error| cannot(&order.log.display().to_string(), error))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .envs(&order.env)
        .env_remove(MARK)
        .current_dir(&order.folder)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(also)
        .process_group(0);
    // SAFETY: between fork and exec only prctl is called, which is async-signal-safe; it touches no
    // memory and takes no lock.
    unsafe {
        command.pre_exec(|| {
            // Should this keeper itself be killed, the engine is killed with it.
            set_parent_process_death_signal(Some(Signal::KILL))?;
            Ok(())
        });
    }
    command.spawn().map_err(|error| cannot(program, error))
}

/// What makes a keeper end its engine.
enum Reason {
    /// It ended by itself.
    Ended(ExitStatus),
    /// It was asked to, with a signal.
    Asked(Signal),
    /// It was told to, at once.
    Killed,
}

async fn watch(mut child: Child, order: &Order, mut lines: Lines<BufReader<Stdin>>) {
    let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) else {
        return;
    };
    tell(&Event::Started {
        pid: pid.as_raw_nonzero().get(),
    });
    let mut stays = false;
    let mut signal = std::pin::pin!(signals::any());
    let reason = loop {
        tokio::select! {
            status = child.wait() => match status {
                Ok(status) => break Reason::Ended(status),
                Err(_) => break Reason::Killed,
            },
            number = &mut signal => break Reason::Asked(named(number)),
            line = lines.next_line(), if !stays => match request(line) {
                Some(Request::Signal(number)) => break Reason::Asked(named(number)),
                Some(Request::Kill) => break Reason::Killed,
                Some(Request::Stay) => stays = true,
                // The pipe is closed: whoever started this is gone.
                None => break Reason::Asked(Signal::TERM),
            },
        }
    };
    let grace = Duration::from_secs_f64(order.grace_s.clamp(0.0, 1e7));
    let (status, killed) = match reason {
        Reason::Ended(status) => (Some(status), false),
        Reason::Asked(signal) => {
            // A terminal, too, signals the whole group.
            let _ = kill_process_group(pid, signal);
            tokio::select! {
                status = child.wait() => (status.ok(), false),
                () = tokio::time::sleep(grace) => (kill(&mut child, pid).await, true),
                () = told_to_kill(&mut lines, stays) => (kill(&mut child, pid).await, true),
            }
        }
        Reason::Killed => (kill(&mut child, pid).await, true),
    };
    // The engine's own process is gone; what it started may not be.
    let strays = end_strays(grace.min(Duration::from_secs(5))).await;
    tell(&Event::Ended {
        code: status.and_then(|status| status.code()),
        signal: status.and_then(|status| status.signal()),
        strays,
        killed,
    });
}

fn request(line: std::io::Result<Option<String>>) -> Option<Request> {
    serde_json::from_str(&line.ok()??).ok()
}

fn named(number: i32) -> Signal {
    Signal::from_named_raw(number).unwrap_or(Signal::TERM)
}

/// Waits until someone has lost patience.
async fn told_to_kill(lines: &mut Lines<BufReader<Stdin>>, stays: bool) {
    if stays {
        return std::future::pending().await;
    }
    loop {
        match request(lines.next_line().await) {
            Some(Request::Kill) => return,
            Some(_) => {}
            // Gone: the grace goes on.
            None => return std::future::pending().await,
        }
    }
}

async fn kill(child: &mut Child, group: Pid) -> Option<ExitStatus> {
    let _ = kill_process_group(group, Signal::KILL);
    child.wait().await.ok()
}

/// Ends what the engine left: asks, and after `grace` kills until nothing is there.
async fn end_strays(grace: Duration) -> usize {
    // Processes that were about to end by themselves are no strays.
    let quiet = Instant::now() + Duration::from_millis(300);
    while Instant::now() < quiet && !processes::descendants().is_empty() {
        tokio::time::sleep(LOOK).await;
    }
    let strays = processes::signal_all(Signal::TERM);
    let end = Instant::now() + grace;
    while Instant::now() < end && !processes::descendants().is_empty() {
        tokio::time::sleep(LOOK).await;
    }
    for _ in 0..ROUNDS {
        if processes::signal_all(Signal::KILL) == 0 {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    strays
}
