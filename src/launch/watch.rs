//! Starts the engines of this machine, waits until they are ready, and sees them to their end.

use super::kept::Kept;
use super::orders::{Event, Order, Request};
use super::report::Report;
use super::signals;
use super::source::path_of;
use super::tail::Tail;
use crate::failure::Failure;
use crate::http::{Server, get};
use parplan_planner::launch::NodeCommand;
use std::collections::VecDeque;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often logs and health are looked at.
const TICK: Duration = Duration::from_millis(200);
/// Time for a health answer.
const HEALTH: Duration = Duration::from_secs(2);
/// A line about a start that takes long, each time this went by.
const NEWS: Duration = Duration::from_secs(20);
/// Lines that look like errors and are shown while an engine starts.
const SHOWN: usize = 12;
/// What the keeper may take beyond the grace it gives.
const KEEPER: Duration = Duration::from_secs(20);

/// How to watch.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// Until the engines must be ready.
    pub deadline: Duration,
    /// Between asking them to end and killing them.
    pub grace: Duration,
}

/// One engine of this machine.
pub struct Running {
    name: String,
    kept: Kept,
    tail: Tail,
    log: PathBuf,
    /// Where it serves; none of an engine that serves through another machine.
    server: Option<Server>,
    /// What it said of itself.
    pub report: Report,
    ready: bool,
    shown: usize,
    news: VecDeque<String>,
}

/// How a wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All engines are ready.
    Ready,
    /// An engine ended; why, in words.
    Died(String),
    /// They are not ready in time.
    TimedOut,
    /// SIGINT or SIGTERM.
    Signal(i32),
}

/// Says something on standard error at once; nobody needs to listen.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

impl Running {
    /// Starts the engine of a command.
    ///
    /// # Errors
    /// A log or a file of the command that cannot be written; a program that cannot be started.
    pub async fn start(
        node: &NodeCommand,
        host: &str,
        log: PathBuf,
        manner: &Manner,
    ) -> Result<Running, Failure> {
        let failed = |path: &std::path::Path, error: std::io::Error| {
            Failure::failed(format!("{}: cannot be written: {error}", path.display()))
        };
        let log = std::path::absolute(&log).map_err(|error| failed(&log, error))?;
        let folder = match log.parent() {
            Some(folder) => folder.to_path_buf(),
            None => PathBuf::from("/"),
        };
        std::fs::create_dir_all(&folder).map_err(|error| failed(&folder, error))?;
        std::fs::File::create(&log).map_err(|error| failed(&log, error))?;
        for (name, content) in &node.files {
            crate::files::write_whole(&folder.join(name), content, true)?;
        }
        let mut env = node.env.clone();
        if let Some(path) = path_of(node) {
            env.entry("PATH".to_owned()).or_insert(path);
        }
        let order = Order {
            argv: node.argv.clone(),
            env,
            log: log.clone(),
            folder,
            grace_s: manner.grace.as_secs_f64(),
        };
        let tail = Tail::open(&log).map_err(|error| failed(&log, error))?;
        let kept = Kept::start(&order).await?;
        let name = match node.port {
            Some(port) => format!("replica {} on port {port}", node.replica),
            None => format!("replica {} node {}", node.replica, node.node),
        };
        say(&format!(
            "{name}: process {}, log {}",
            kept.pid(),
            log.display()
        ));
        Ok(Running {
            name,
            kept,
            tail,
            log,
            server: node.port.map(|port| Server::new(reached_by(host), port)),
            report: Report::default(),
            ready: false,
            shown: 0,
            news: VecDeque::new(),
        })
    }

    /// Its log and what serves it.
    pub fn place(&self) -> (&std::path::Path, Option<&Server>) {
        (&self.log, self.server.as_ref())
    }

    /// The process to signal for its end.
    pub fn keeper_pid(&self) -> u32 {
        self.kept.keeper_pid()
    }

    /// Reads on in its log; lines that matter are shown, the others stay there.
    fn look(&mut self) {
        let Running {
            tail,
            report,
            news,
            shown,
            name,
            ready,
            ..
        } = self;
        let mut more = true;
        // A flooded log is read in pieces, so that signals are heard between them.
        for _ in 0..4 {
            if !more {
                break;
            }
            let looked = tail.look(|line| {
                let said = report.read(line);
                let short: String = line.chars().take(200).collect();
                if !*ready && *shown < SHOWN && (said || is_trouble(line)) {
                    *shown += 1;
                    say(&format!("  {name}: {short}"));
                }
                if !short.trim().is_empty() {
                    news.clear();
                    news.push_back(short);
                }
            });
            more = looked.unwrap_or(false);
        }
    }

    async fn is_healthy(&self) -> bool {
        match &self.server {
            Some(server) => get(server, "/health", None, HEALTH).await.is_ok(),
            None => true,
        }
    }

    /// How it ended, with the end of its log.
    fn obituary(&mut self, event: &Event) -> String {
        self.look();
        let how = match event {
            Event::Ended {
                code: Some(code), ..
            } => format!("ended by itself with exit code {code}"),
            Event::Ended {
                signal: Some(signal),
                ..
            } => format!("was killed by signal {signal}"),
            _ => "is gone, and its keeper with it".to_owned(),
        };
        let strays = match event {
            Event::Ended { strays, .. } if *strays > 0 => {
                format!("; {strays} processes that it left were ended")
            }
            _ => String::new(),
        };
        format!("{} {how}{strays}\n{}", self.name, self.last_lines())
    }

    fn last_lines(&self) -> String {
        let last = self.tail.last();
        if last.is_empty() {
            return format!("it wrote nothing to {}", self.log.display());
        }
        let lines: Vec<String> = last
            .iter()
            .map(|line| format!("  | {}", line.chars().take(200).collect::<String>()))
            .collect();
        format!(
            "the end of its log ({}):\n{}",
            self.log.display(),
            lines.join("\n")
        )
    }
}

/// Lines of a start that someone should see.
fn is_trouble(line: &str) -> bool {
    ["ERROR", "CRITICAL", "Traceback", "Error:", "out of memory"]
        .iter()
        .any(|word| line.contains(word))
}

/// The address under which this machine reaches what listens on `host`.
fn reached_by(host: &str) -> &str {
    match host {
        "0.0.0.0" => "127.0.0.1",
        "::" => "::1",
        host => host,
    }
}

/// All engines of this machine.
pub struct Fleet {
    engines: Vec<Running>,
    manner: Manner,
    start: Instant,
}

impl Fleet {
    /// Engines that were started.
    pub fn new(engines: Vec<Running>, manner: Manner) -> Fleet {
        Fleet {
            engines,
            manner,
            start: Instant::now(),
        }
    }

    /// The engines.
    pub fn engines(&self) -> &[Running] {
        &self.engines
    }

    /// Since they were started.
    pub fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// Waits until all are ready, or one is dead, or time is over, or someone signals.
    pub async fn until_ready(&mut self) -> Outcome {
        let mut told = Instant::now();
        let mut signal = std::pin::pin!(signals::any());
        loop {
            tokio::select! {
                number = &mut signal => return Outcome::Signal(number),
                (at, event) = first_end(&mut self.engines) => {
                    return Outcome::Died(self.engines[at].obituary(&event));
                }
                () = tokio::time::sleep(TICK) => {}
            }
            for engine in &mut self.engines {
                engine.look();
            }
            // Health is asked for beside the ends and signals, which must not wait for it.
            let healthy = tokio::select! {
                number = &mut signal => return Outcome::Signal(number),
                healthy = all_healthy(&self.engines) => healthy,
            };
            if healthy {
                for engine in &mut self.engines {
                    engine.look();
                    engine.ready = true;
                }
                return Outcome::Ready;
            }
            if self.start.elapsed() > self.manner.deadline {
                return Outcome::TimedOut;
            }
            if told.elapsed() > NEWS {
                told = Instant::now();
                self.tell_news();
            }
        }
    }

    fn tell_news(&self) {
        let seconds = self.seconds().round();
        for engine in &self.engines {
            let line = engine.news.back().map_or("nothing yet", String::as_str);
            let line: String = line.chars().take(120).collect();
            say(&format!(
                "  {}: not ready after {seconds} s, {} lines of log, the last: {line}",
                engine.name,
                engine.tail.lines()
            ));
        }
    }

    /// Waits until one has ended, or someone signals. Logs are read on, so that the end is at hand.
    pub async fn until_end(&mut self) -> Outcome {
        let mut signal = std::pin::pin!(signals::any());
        loop {
            tokio::select! {
                number = &mut signal => return Outcome::Signal(number),
                (at, event) = first_end(&mut self.engines) => {
                    return Outcome::Died(self.engines[at].obituary(&event));
                }
                () = tokio::time::sleep(TICK) => {}
            }
            for engine in &mut self.engines {
                engine.look();
            }
        }
    }

    /// What the engines said last, for when they are not ready in time.
    pub fn last_lines(&self) -> String {
        let all: Vec<String> = self.engines.iter().map(Running::last_lines).collect();
        all.join("\n")
    }

    /// Leaves the engines to their keepers.
    pub async fn leave(&mut self) {
        for engine in &mut self.engines {
            engine.kept.tell(Request::Stay).await;
        }
    }

    /// Passes a signal on and waits until nothing is left; a second signal kills.
    pub async fn end(&mut self, number: i32) {
        for engine in &mut self.engines {
            engine.kept.tell(Request::Signal(number)).await;
        }
        let patience = self.manner.grace + KEEPER;
        let over = tokio::time::sleep(patience);
        tokio::pin!(over);
        let mut signal = std::pin::pin!(signals::any());
        let mut impatient = false;
        let mut left = self.engines.iter().filter(|e| !e.kept.has_ended()).count();
        while left > 0 {
            tokio::select! {
                (at, event) = first_end(&mut self.engines) => {
                    left -= 1;
                    let name = &self.engines[at].name;
                    if let Event::Ended { killed: true, .. } = event {
                        say(&format!("{name} did not end in time and was killed"));
                    }
                }
                _ = &mut signal, if !impatient => {
                    impatient = true;
                    for engine in &mut self.engines {
                        engine.kept.tell(Request::Kill).await;
                    }
                }
                () = &mut over => {
                    say("a keeper does not answer; its engine's process group is killed");
                    // Dropping the pipes makes the keepers kill, too.
                    self.engines.iter().for_each(|engine| engine.kept.kill_group());
                    return;
                }
            }
        }
    }
}

async fn all_healthy(engines: &[Running]) -> bool {
    for engine in engines {
        if !engine.is_healthy().await {
            return false;
        }
    }
    true
}

/// The first engine to end, of those that have not yet.
async fn first_end(engines: &mut [Running]) -> (usize, Event) {
    let mut waits: Vec<_> = engines
        .iter_mut()
        .map(|engine| Box::pin(engine.kept.ended()))
        .collect();
    std::future::poll_fn(|context| {
        for (at, wait) in waits.iter_mut().enumerate() {
            if let std::task::Poll::Ready(event) = wait.as_mut().poll(context) {
                return std::task::Poll::Ready((at, event));
            }
        }
        std::task::Poll::Pending
    })
    .await
}
