//! Drives a server: clients on one event loop, and a watch on that loop.

use super::request::{Manner, Outcome, ask};
use super::traffic::{Load, Traffic};
use crate::http::Connection;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// How often the loop's lag is looked at.
const BEAT: Duration = Duration::from_millis(5);
/// Timers of the loop ring up to this late by themselves.
const TICK: Duration = Duration::from_millis(1);

/// What a run gave.
#[derive(Debug)]
pub struct Run {
    /// Requests in the order in which they ended.
    pub outcomes: Vec<Outcome>,
    /// From the first request to the last answer, seconds.
    pub duration_s: f64,
    /// How late the event loop was, seconds, each time it was looked at.
    pub lags_s: Vec<f64>,
    /// Someone asked it to end before all was sent.
    pub interrupted: bool,
}

/// Sends all of `traffic`; `tell` hears how many requests are done, of how many. Ends early, with
/// what there is, on SIGINT or SIGTERM.
pub async fn drive(manner: &Manner, traffic: &Traffic, tell: impl Fn(usize, usize)) -> Run {
    let (sender, mut receiver) = unbounded_channel();
    let stop = Arc::new(AtomicBool::new(false));
    let lags = tokio::spawn(watch(Arc::clone(&stop)));
    let start = Instant::now();
    let work = Work {
        manner: Arc::new(manner.clone()),
        traffic: Arc::new(traffic.clone()),
        next: Arc::new(AtomicUsize::new(0)),
        start,
        sender,
    };
    let tasks = work.start();
    let total = traffic.lengths.len();
    let mut outcomes = Vec::with_capacity(total);
    let mut interrupted = false;
    let mut signal = std::pin::pin!(crate::launch::signals::any());
    loop {
        tokio::select! {
            outcome = receiver.recv() => match outcome {
                Some(outcome) => {
                    outcomes.push(outcome);
                    tell(outcomes.len(), total);
                }
                None => break,
            },
            _ = &mut signal => {
                interrupted = true;
                break;
            }
        }
    }
    let duration_s = start.elapsed().as_secs_f64();
    tasks.abort();
    stop.store(true, Ordering::Relaxed);
    Run {
        outcomes,
        duration_s,
        lags_s: lags.await.unwrap_or_default(),
        interrupted,
    }
}

/// Requests that are still to be sent, shared by all clients.
#[derive(Clone)]
struct Work {
    manner: Arc<Manner>,
    traffic: Arc<Traffic>,
    next: Arc<AtomicUsize>,
    start: Instant,
    sender: UnboundedSender<Outcome>,
}

impl Work {
    fn start(self) -> tokio::task::AbortHandle {
        let task = match &self.traffic.load {
            Load::Closed { clients } => {
                let clients = *clients;
                tokio::spawn(async move {
                    let mut set = tokio::task::JoinSet::new();
                    for _ in 0..clients {
                        set.spawn(self.clone().client());
                    }
                    drop(self);
                    set.join_all().await;
                })
            }
            Load::Open { at_s } => {
                let at_s = at_s.clone();
                tokio::spawn(async move {
                    let mut set = tokio::task::JoinSet::new();
                    for (index, at) in at_s.into_iter().enumerate() {
                        let due = self.start + Duration::from_secs_f64(at.clamp(0.0, 1e9));
                        tokio::time::sleep_until(due.into()).await;
                        set.spawn(self.clone().one(index));
                    }
                    drop(self);
                    set.join_all().await;
                })
            }
        };
        task.abort_handle()
    }

    /// Sends requests one after another over one connection, as long as there are any.
    async fn client(self) {
        let mut connection: Option<Connection> = None;
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.traffic.lengths.len() {
                return;
            }
            let order = self.traffic.order(index);
            let outcome = ask(&self.manner, &order, &mut connection, self.start).await;
            let refused = outcome.result.is_err();
            if self.sender.send(outcome).is_err() {
                return;
            }
            if refused {
                // A server that is gone must not be asked a million times a second.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    async fn one(self, index: usize) {
        let order = self.traffic.order(index);
        let outcome = ask(&self.manner, &order, &mut None, self.start).await;
        // Nobody listens any more when the run was ended.
        let _ = self.sender.send(outcome);
    }
}

/// How late a timer of this loop rings, over and over.
async fn watch(stop: Arc<AtomicBool>) -> Vec<f64> {
    let mut lags = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        tokio::time::sleep(BEAT).await;
        let late = asked.elapsed().saturating_sub(BEAT + TICK);
        lags.push(late.as_secs_f64());
    }
    lags
}
