//! The processes of a run: what they report, when they end, and ending them.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::supervisor::{End, Ended, Event, GRACE};
use super::{Identity, Report};

/// Time between asking a rank to end and making it.
const POLITE: Duration = Duration::from_millis(700);
const TICK: Duration = Duration::from_millis(5);

/// A process that was started here.
pub(super) struct Rank {
    pub(super) identity: Identity,
    pub(super) child: Child,
    pub(super) stopping: bool,
    pub(super) ended: Option<Ended>,
    pub(super) error: Option<String>,
}

/// The processes of a run, and what they came to. Dropped, it ends those that still run.
pub(super) struct Run {
    pub(super) ranks: Vec<Rank>,
    /// Rank 0's.
    pub(super) result: Option<Value>,
    pub(super) first_failure: Option<Instant>,
    /// Ranks as they ended.
    pub(super) order: Vec<Ended>,
}

impl Run {
    pub(super) fn running(&self) -> bool {
        self.ranks.iter().any(|r| r.ended.is_none())
    }

    pub(super) fn listen(
        &mut self,
        rx: &Receiver<(usize, Report)>,
        hear: &mut impl FnMut(Event<'_>),
    ) {
        let mut first = rx.recv_timeout(TICK).ok();
        if first.is_none() {
            // All pipes closed returns at once; keep the loop from spinning.
            std::thread::sleep(Duration::from_millis(1));
        }
        while let Some((rank, report)) = first.take().or_else(|| rx.try_recv().ok()) {
            self.take(rank, report, hear);
        }
    }

    /// Takes what is still on its way from ranks that have ended: a process can be seen to end
    /// before the thread that reads its pipe has run. Every reader ends at its pipe's end; the
    /// deadline is for a pipe that something else holds open.
    pub(super) fn drain(
        &mut self,
        rx: &Receiver<(usize, Report)>,
        hear: &mut impl FnMut(Event<'_>),
    ) {
        let until = Instant::now() + GRACE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match rx.recv_timeout(left) {
                Ok((rank, report)) => self.take(rank, report, hear),
                Err(_) => break,
            }
        }
    }

    fn take(&mut self, rank: usize, report: Report, hear: &mut impl FnMut(Event<'_>)) {
        match report {
            Report::Note(text) => hear(Event::Note(&text)),
            Report::Progress(value) => hear(Event::Progress(&value)),
            Report::Done(value) if rank == 0 => self.result = Some(value),
            Report::Done(_) => {}
            Report::Failed { error, .. } => {
                // Counted from the report: its process may still hang in its end.
                self.first_failure.get_or_insert_with(Instant::now);
                if let Some(r) = self.ranks.iter_mut().find(|r| r.identity.rank == rank) {
                    r.error = Some(error);
                }
            }
        }
    }

    pub(super) fn reap(&mut self) {
        for rank in self.ranks.iter_mut().filter(|r| r.ended.is_none()) {
            let Ok(Some(status)) = rank.child.try_wait() else {
                continue;
            };
            let end = how(status, rank.stopping);
            if end != End::Exit(0) && self.first_failure.is_none() {
                self.first_failure = Some(Instant::now());
            }
            let ended = Ended {
                rank: rank.identity.rank,
                pid: rank.child.id(),
                end,
                error: None,
                after_failure: self.first_failure.map(|at| at.elapsed()),
            };
            rank.ended = Some(ended.clone());
            self.order.push(ended);
        }
    }

    /// Ends all ranks that still run: politely, then not.
    pub(super) fn stop(&mut self) {
        for rank in self.ranks.iter_mut().filter(|r| r.ended.is_none()) {
            rank.stopping = true;
            let pid = Pid::from_raw(rank.child.id() as i32);
            // ESRCH: it ended by itself a moment ago, which reap will see.
            let _ = kill(pid, Signal::SIGTERM);
            // A stopped process takes no signal but SIGKILL until it continues.
            let _ = kill(pid, Signal::SIGCONT);
        }
        let until = Instant::now() + POLITE;
        while self.running() && Instant::now() < until {
            std::thread::sleep(TICK);
            self.reap();
        }
        for rank in self.ranks.iter_mut().filter(|r| r.ended.is_none()) {
            // Already gone is what is wanted.
            let _ = rank.child.kill();
        }
        while self.running() {
            std::thread::sleep(TICK);
            self.reap();
        }
    }

    /// Reports can arrive after the exit was seen.
    pub(super) fn attach_errors(&mut self) {
        for ended in &mut self.order {
            ended.error = self
                .ranks
                .iter()
                .find(|r| r.identity.rank == ended.rank)
                .and_then(|r| r.error.clone());
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if self.running() {
            self.stop();
        }
    }
}

fn how(status: ExitStatus, stopping: bool) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Exit(code),
        (None, Some(_)) if stopping => End::Stopped,
        (None, Some(signal)) => End::Signal(signal),
        (None, None) => End::Stopped,
    }
}
