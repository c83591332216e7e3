//! `bench`: drives an OpenAI-compatible server with planned traffic, and holds the figures against
//! the plan. docs/bench.md documents the JSON.

mod compare;
mod drive;
mod page;
mod request;
mod sse;
mod summary;
mod traffic;
mod typed;

pub use compare::{Comparison, compare};
pub use summary::{Spread, Summary};

use crate::args::BenchArgs;
use crate::failure::Failure;
use crate::files::write_whole;
use crate::http::{Server, get};
use crate::json;
use crate::output::Style;
use crate::saved::SavedPlan;
use request::Manner;
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use summary::{Heading, Sent, summarize};
use traffic::{Load, Traffic};

/// Time for a server to say which models it has.
const LIST_LIMIT: Duration = Duration::from_secs(30);
/// Requests to warm up with, at most, when nobody says.
const WARM_UP: usize = 32;

/// The documented JSON.
#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    summary: &'a Summary,
    plan: Option<&'a [Comparison]>,
}

/// Drives the server.
///
/// # Errors
/// What cannot be used; a server that is not there, or that answers no request at all; a file that
/// cannot be written.
pub fn run(args: &BenchArgs, style: Style) -> Result<String, Failure> {
    let server = Server::parse(&args.url)?;
    if !args.manner.remote && !server.is_loopback() {
        return Err(Failure::unusable(format!(
            "{server} is not this machine; --remote sends it traffic all the same"
        )));
    }
    let key = match &args.manner.key_env {
        None => None,
        Some(name) => Some(std::env::var(name).map_err(|_| {
            Failure::unusable(format!(
                "--key-env {name}: the environment has no such variable"
            ))
        })?),
    };
    let plan = args.plan.as_deref().map(SavedPlan::read).transpose()?;
    let traffic = typed::traffic(args, plan.as_ref())?;
    if let Load::Open { at_s } = &traffic.load {
        files_for(at_s.len());
    }
    if let Load::Closed { clients } = &traffic.load {
        files_for(*clients);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("no event loop: {error}")))?;
    let summary = runtime.block_on(measure(args, server, key, &traffic))?;
    let comparison = plan.as_ref().map(|plan| compare(plan, &summary));
    let unlike = plan
        .as_ref()
        .map_or_else(Vec::new, |plan| compare::other_traffic(plan, &summary));
    let printed = json::print(&Answer {
        summary: &summary,
        plan: comparison.as_deref(),
    })?;
    if let Some(path) = &args.out {
        write_whole(path, &printed, true)?;
    }
    let answer = match args.json {
        true => printed,
        false => page::answer(&summary, comparison.as_deref(), &unlike, style),
    };
    match why_failed(&summary) {
        None => Ok(answer),
        Some(message) => Err(Failure::FailedWith { answer, message }),
    }
}

/// Why a run is no measurement of what was asked.
fn why_failed(summary: &Summary) -> Option<String> {
    let ends = &summary.ends;
    if summary.interrupted {
        return Some(format!(
            "ended early, after {} of {} requests",
            ends.completed + ends.failed,
            summary.sent.requests
        ));
    }
    let (message, count) = ends.failures.iter().max_by_key(|(_, count)| **count)?;
    Some(format!(
        "{} of {} requests failed, {count} of them so: {message}",
        ends.failed, summary.sent.requests
    ))
}

async fn measure(
    args: &BenchArgs,
    server: Server,
    key: Option<String>,
    traffic: &Traffic,
) -> Result<Summary, Failure> {
    let model = match &args.manner.model {
        Some(model) => model.clone(),
        None => first_model(&server, key.as_deref()).await?,
    };
    let manner = Manner {
        server,
        model,
        key,
        limit: Duration::from_secs_f64(args.manner.timeout),
    };
    let warm_up = warm_up(args, traffic);
    if !warm_up.lengths.is_empty() {
        let run = drive::drive(&manner, &warm_up, |_, _| {}).await;
        if run.interrupted {
            return Err(Failure::failed("ended while warming up"));
        }
        let failure = run.outcomes.iter().find_map(|o| o.result.as_ref().err());
        if let (Some(why), true) = (failure, run.outcomes.iter().all(|o| o.result.is_err())) {
            return Err(Failure::failed(format!("{}: {why}", manner.server)));
        }
    }
    let began_unix_s = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let progress = Progress::new();
    let run = drive::drive(&manner, traffic, |done, all| progress.tell(done, all)).await;
    progress.end();
    let heading = Heading {
        url: manner.server.to_string(),
        model: manner.model,
        began_unix_s,
        sent: sent(traffic, warm_up.lengths.len()),
    };
    Ok(summarize(heading, &run))
}

/// The first requests of the run, asked ahead of it under another seed.
fn warm_up(args: &BenchArgs, traffic: &Traffic) -> Traffic {
    let clients = match &traffic.load {
        Load::Closed { clients } => *clients,
        Load::Open { .. } => 1,
    };
    let requests = args
        .manner
        .warm_up
        .map_or(clients.min(WARM_UP), |count| count as usize);
    Traffic {
        load: Load::Closed {
            clients: clients.min(requests.max(1)),
        },
        lengths: traffic
            .lengths
            .iter()
            .copied()
            .cycle()
            .take(requests)
            .collect(),
        shared: traffic.shared,
        seed: traffic.seed.wrapping_sub(1),
    }
}

fn sent(traffic: &Traffic, warm_up: usize) -> Sent {
    let count = traffic.lengths.len();
    let mean = |pick: fn(&(u32, u32)) -> u32| {
        traffic
            .lengths
            .iter()
            .map(|l| f64::from(pick(l)))
            .sum::<f64>()
            / count.max(1) as f64
    };
    let (kind, clients, requests_per_s) = match &traffic.load {
        Load::Closed { clients } => ("closed", Some(*clients), None),
        Load::Open { at_s } => {
            let last = at_s.last().copied().unwrap_or(0.0);
            let rate = (last > 0.0).then(|| (count - 1) as f64 / last);
            ("open", None, rate)
        }
    };
    Sent {
        kind: kind.to_owned(),
        clients,
        requests_per_s,
        requests: count,
        warm_up,
        prompt_tokens: mean(|l| l.0),
        output_tokens: mean(|l| l.1),
        shared_prefix: traffic.shared,
        seed: traffic.seed,
    }
}

/// The first model that a server lists.
async fn first_model(server: &Server, key: Option<&str>) -> Result<String, Failure> {
    let failed = |why: String| {
        Failure::failed(format!(
            "{server}: {why}; is a server ready there? --model NAME leaves the question out"
        ))
    };
    let body = get(server, "/v1/models", key, LIST_LIMIT)
        .await
        .map_err(|error| failed(error.to_string()))?;
    let list: serde_json::Value = serde_json::from_slice(&body)
        .map_err(|error| failed(format!("/v1/models is not JSON: {error}")))?;
    list["data"][0]["id"]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| failed("/v1/models lists no model".to_owned()))
}

/// Lets this process hold as many connections as it may, where the usual limit would not do.
fn files_for(connections: usize) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = connections as u64 + 64;
    if limit.current.is_some_and(|now| now < wanted) {
        limit.current = limit.maximum;
        // Where that is refused, connections are, and each says why.
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

/// One line on a terminal, written over as requests end.
struct Progress {
    start: Instant,
    told: std::cell::Cell<Option<Instant>>,
    shown: bool,
}

impl Progress {
    fn new() -> Progress {
        Progress {
            start: Instant::now(),
            told: std::cell::Cell::new(None),
            shown: std::io::stderr().is_terminal(),
        }
    }

    fn tell(&self, done: usize, all: usize) {
        const EVERY: Duration = Duration::from_millis(250);
        let soon = self.told.get().is_some_and(|at| at.elapsed() < EVERY);
        if !self.shown || (soon && done < all) {
            return;
        }
        self.told.set(Some(Instant::now()));
        let seconds = self.start.elapsed().as_secs();
        // Nothing is lost when a line of progress is.
        let _ = write!(
            std::io::stderr(),
            "\r{done} of {all} requests, {seconds} s "
        );
    }

    fn end(&self) {
        if self.told.get().is_some() {
            let _ = write!(std::io::stderr(), "\r{:40}\r", "");
        }
    }
}
