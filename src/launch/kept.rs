//! An engine under its keeper, as `launch` sees it.

use super::orders::{Event, MARK, Order, Request};
use crate::failure::Failure;
use rustix::process::{Pid, Signal, kill_process_group};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// A keeper and its engine.
pub struct Kept {
    keeper: Child,
    stdin: Option<ChildStdin>,
    events: Lines<BufReader<ChildStdout>>,
    engine: Option<Pid>,
    ended: bool,
}

impl Kept {
    /// Starts a keeper, which starts the engine. Both lead process groups of their own, so that a
    /// terminal's Ctrl-C reaches neither before `launch` passes it on.
    ///
    /// # Errors
    /// A program that cannot be started, with what would help.
    pub async fn start(order: &Order) -> Result<Kept, Failure> {
        let failed =
            |what: &str, error: std::io::Error| Failure::failed(format!("{what}: {error}"));
        let exe = std::env::current_exe().map_err(|error| failed("finding this program", error))?;
        let mut keeper = Command::new(exe)
            .arg("keep")
            .env(MARK, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| failed("starting the engine's keeper", error))?;
        let (Some(mut stdin), Some(stdout)) = (keeper.stdin.take(), keeper.stdout.take()) else {
            return Err(Failure::failed("the engine's keeper has no pipes"));
        };
        let mut line = serde_json::to_string(order).map_err(|error| {
            Failure::failed(format!("the command cannot be passed on: {error}"))
        })?;
        line.push('\n');
        stdin
            .write_all(line.as_bytes())
            .await
            .map_err(|error| failed("telling the engine's keeper", error))?;
        let mut kept = Kept {
            keeper,
            stdin: Some(stdin),
            events: BufReader::new(stdout).lines(),
            engine: None,
            ended: false,
        };
        match kept.event().await {
            Some(Event::Started { pid }) => {
                kept.engine = Pid::from_raw(pid);
                Ok(kept)
            }
            Some(Event::Refused { why }) => Err(Failure::failed(format!(
                "the engine cannot be started: {why}; is it installed where PATH or --venv says?"
            ))),
            Some(Event::Ended { .. }) | None => Err(Failure::failed(
                "the engine's keeper ended before its engine",
            )),
        }
    }

    /// The engine's process.
    pub fn pid(&self) -> i32 {
        self.engine.map_or(0, |pid| pid.as_raw_nonzero().get())
    }

    /// The keeper's process, which ends the engine when it gets a SIGTERM.
    pub fn keeper_pid(&self) -> u32 {
        self.keeper.id().unwrap_or(0)
    }

    /// The next thing that the keeper says; none when it is gone. May be dropped and called again.
    async fn event(&mut self) -> Option<Event> {
        let line = self.events.next_line().await.ok()??;
        serde_json::from_str(&line).ok()
    }

    /// Waits for the end of the engine. A keeper that is gone without a word takes its engine's
    /// process group with it here.
    pub async fn ended(&mut self) -> Event {
        if self.ended {
            return std::future::pending().await;
        }
        let event = self.event().await;
        self.ended = true;
        event.unwrap_or_else(|| {
            self.kill_group();
            Event::Ended {
                code: None,
                signal: None,
                strays: 0,
                killed: true,
            }
        })
    }

    /// Its end was told.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Kills the engine's process group, for when its keeper does not.
    pub fn kill_group(&self) {
        if let Some(group) = self.engine {
            // A group that is gone already is what is wanted.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// Tells the keeper something; one that is gone need not hear it.
    pub async fn tell(&mut self, request: Request) {
        if let (Some(stdin), Ok(mut line)) = (&mut self.stdin, serde_json::to_string(&request)) {
            line.push('\n');
            let _ = stdin.write_all(line.as_bytes()).await;
        }
    }
}
