//! Starts the ranks of one machine, watches them, and leaves none behind.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid, setpgid};
use serde_json::Value;

use super::child::REPORT_FD;
use super::run::{Rank, Run};
use super::{Identity, Report, Spec};
use crate::rendezvous::{Rendezvous, Secret};
use crate::{Deadline, Error, Result};

/// Set in every supervised rank's environment.
pub(crate) const MARK: &str = "PARPLAN_SUPERVISED";

/// Time for the other ranks to notice a failure and end themselves, with their own reason.
pub(super) const GRACE: Duration = Duration::from_secs(3);

/// What to start on this machine.
#[derive(Debug)]
pub struct Plan {
    /// Program and arguments of a rank; its orders come on standard input.
    pub command: Vec<String>,
    /// Ranks to start here.
    pub local_world: usize,
    /// Machines in all.
    pub nnodes: usize,
    /// This machine's number; the ranks here are `node_rank * local_world ..`.
    pub node_rank: usize,
    /// Where all ranks meet, "host:port". Node 0 listens there; `None` is a port of
    /// its own choosing on loopback, for one machine.
    pub rendezvous: Option<String>,
    /// The shared secret; `None` makes a fresh one, for one machine.
    pub secret: Option<Secret>,
    /// The job, as each rank gets it.
    pub job: Value,
    /// One log file for each rank goes here: its standard output and error.
    pub logs: PathBuf,
    /// Time for all ranks to meet.
    pub meet_within: Duration,
    /// Time for the whole run.
    pub limit: Duration,
}

/// How one rank's process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It exited with this code.
    Exit(i32),
    /// A signal from outside ended it.
    Signal(i32),
    /// The supervisor ended it, because others had failed or the time was over.
    Stopped,
}

/// The end of one rank.
#[derive(Clone, Debug)]
pub struct Ended {
    /// World rank.
    pub rank: usize,
    /// Process id.
    pub pid: u32,
    /// How its process ended.
    pub end: End,
    /// What it said of its failure.
    pub error: Option<String>,
    /// Time from the first failure to this end, for the ranks that end after it.
    pub after_failure: Option<Duration>,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} (process {}) ", self.rank, self.pid)?;
        match self.end {
            End::Exit(code) => write!(f, "exited with code {code}")?,
            End::Signal(number) => {
                let name = Signal::try_from(number).map_or("an unknown signal", Signal::as_str);
                write!(f, "was killed by signal {number} ({name})")?;
            }
            End::Stopped => write!(f, "was stopped by the supervisor")?,
        }
        match &self.error {
            Some(error) => write!(f, ": {error}"),
            None => Ok(()),
        }
    }
}

/// The outcome of a supervised run.
#[derive(Debug)]
pub struct Supervised {
    /// Rank 0's result, where it ran here and all ranks succeeded.
    pub result: Option<Value>,
    /// The ranks in the order in which they ended.
    pub ended: Vec<Ended>,
    /// Visitors that the rendezvous sent away.
    pub strangers: Vec<String>,
    /// SIGINT or SIGTERM, when that is what ended the run.
    pub interrupted: Option<i32>,
    /// The run was ended because its time was over.
    pub timed_out: bool,
    /// What the rendezvous complained of.
    pub rendezvous: Option<String>,
}

impl Supervised {
    /// Whether every rank succeeded.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.interrupted.is_none()
            && !self.timed_out
            && self.ended.iter().all(|e| e.end == End::Exit(0))
    }

    /// Exit code of the run: 0 done, 2 when a rank found its input unusable, else 1;
    /// 128 + signal when interrupted, as shells expect.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.interrupted {
            Some(signal) => 128 + signal as u8,
            None if self.ok() => 0,
            None if self.ended.first().is_some_and(|e| e.end == End::Exit(2)) => 2,
            None => 1,
        }
    }
}

/// What ranks say while they run.
#[derive(Debug)]
pub enum Event<'a> {
    /// Something that a user should see.
    Note(&'a str),
    /// How far the work is; the shape is the job's.
    Progress(&'a Value),
}

/// Runs the ranks of this machine to their end. `hear` gets what they say while they run.
/// No process started here is left when this returns.
///
/// # Errors
/// [`Error::Unusable`] for a plan that cannot be, [`Error::Io`] when a process or log
/// cannot be made. Failures of ranks are in the [`Supervised`].
pub fn supervise(plan: &Plan, mut hear: impl FnMut(Event<'_>)) -> Result<Supervised> {
    let signals = watch_signals()?;
    let meeting = Meeting::of(plan)?;
    std::fs::create_dir_all(&plan.logs)
        .map_err(Error::io(format!("creating {}", plan.logs.display())))?;

    let (mut run, reports) = start_all(plan, &meeting)?;
    let limit = Deadline::after(plan.limit);
    let (mut interrupted, mut timed_out) = (None, false);
    while run.running() {
        run.listen(&reports, &mut hear);
        run.reap();
        let signal = signals
            .iter()
            .find(|(_, set)| set.load(Ordering::Relaxed))
            .map(|(s, _)| *s);
        if let Some(signal) = signal {
            interrupted = Some(signal);
            run.stop();
        } else if limit.left().is_zero() {
            timed_out = true;
            run.stop();
        } else if run.first_failure.is_some_and(|at| at.elapsed() > GRACE) {
            run.stop();
        }
        if let (Some(server), true) = (&meeting.server, run.first_failure.is_some()) {
            server.cancel();
        }
    }
    run.drain(&reports, &mut hear);
    run.attach_errors();
    // One look at the processes may find several ends; the rank that was killed comes
    // before those that ended because of it.
    run.order.sort_by_key(|e| !matches!(e.end, End::Signal(_)));
    let (strangers, rendezvous) = meeting.close();
    Ok(Supervised {
        result: run.result.take(),
        ended: std::mem::take(&mut run.order),
        strangers,
        interrupted,
        timed_out,
        rendezvous,
    })
}

/// Where the ranks of a run meet.
struct Meeting {
    address: String,
    secret: Secret,
    /// The server, on the machine that has it.
    server: Option<Rendezvous>,
}

impl Meeting {
    /// Opens it, on node 0.
    ///
    /// # Errors
    /// Several machines without an address or a secret; an address that cannot be listened on.
    fn of(plan: &Plan) -> Result<Self> {
        let secret = match &plan.secret {
            Some(secret) => secret.clone(),
            None if plan.nnodes == 1 => Secret::random()?,
            None => {
                return Err(Error::Unusable(format!(
                    "{} machines need the same shared secret: set {} on each",
                    plan.nnodes,
                    Secret::ENV
                )));
            }
        };
        let mut address = match &plan.rendezvous {
            Some(address) => address.clone(),
            None if plan.nnodes == 1 => "127.0.0.1:0".into(),
            None => {
                return Err(Error::Unusable(format!(
                    "{} machines need --rendezvous host:port",
                    plan.nnodes
                )));
            }
        };
        let server = match plan.node_rank {
            0 => Some(Rendezvous::serve(
                &address,
                plan.local_world * plan.nnodes,
                secret.clone(),
                Deadline::after(plan.meet_within),
            )?),
            _ => None,
        };
        if let (Some(server), None) = (&server, &plan.rendezvous) {
            address = server.address().to_string();
        }
        Ok(Meeting {
            address,
            secret,
            server,
        })
    }

    /// Visitors that were sent away, and what the server complained of.
    fn close(self) -> (Vec<String>, Option<String>) {
        let Some(server) = self.server else {
            return (Vec::new(), None);
        };
        let strangers = server
            .refused()
            .into_iter()
            .map(|v| format!("{}: {}", v.from, v.why))
            .collect();
        server.cancel();
        (strangers, server.finish().err().map(|e| e.to_string()))
    }
}

/// Starts every rank of this machine; what they report comes through the receiver.
fn start_all(plan: &Plan, meeting: &Meeting) -> Result<(Run, Receiver<(usize, Report)>)> {
    let (tx, rx) = channel();
    let mut run = Run {
        ranks: Vec::new(),
        result: None,
        first_failure: None,
        order: Vec::new(),
    };
    for local_rank in 0..plan.local_world {
        let identity = Identity {
            rank: plan.node_rank * plan.local_world + local_rank,
            world: plan.local_world * plan.nnodes,
            local_rank,
            local_world: plan.local_world,
        };
        let spec = Spec {
            identity,
            rendezvous: meeting.address.clone(),
            secret: meeting.secret.clone(),
            job: plan.job.clone(),
        };
        // On an error the ranks that run are ended by `run`'s drop.
        let child = start(plan, &spec, tx.clone())?;
        run.ranks.push(Rank {
            identity,
            child,
            stopping: false,
            ended: None,
            error: None,
        });
    }
    Ok((run, rx))
}

type Signals = Vec<(i32, Arc<AtomicBool>)>;

fn watch_signals() -> Result<Signals> {
    [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM]
        .into_iter()
        .map(|signal| {
            let set = Arc::new(AtomicBool::new(false));
            signal_hook::flag::register(signal, Arc::clone(&set))
                .map_err(Error::io("watching signals"))?;
            Ok((signal, set))
        })
        .collect()
}

fn start(plan: &Plan, spec: &Spec, tx: Sender<(usize, Report)>) -> Result<Child> {
    let rank = spec.identity.rank;
    let log_path = plan.logs.join(format!("rank-{rank}.log"));
    let log =
        File::create(&log_path).map_err(Error::io(format!("creating {}", log_path.display())))?;
    let also = log.try_clone().map_err(Error::io("the rank's log"))?;
    let (read, write): (OwnedFd, OwnedFd) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(|e| Error::Io {
            what: "a pipe to the rank".into(),
            source: e.into(),
        })?;
    let Some((program, arguments)) = plan.command.split_first() else {
        return Err(Error::Unusable(
            "no command was given to start a rank with".into(),
        ));
    };
    let parent = nix::unistd::getpid();
    let report = write.as_raw_fd();
    let mut command = Command::new(program);
    // The environment is inherited unchanged, NCCL_* included: what the machine's owner
    // set (NCCL_NVLS_ENABLE=0, say) holds for every rank.
    command
        .args(arguments)
        .env(MARK, "1")
        // For people who look at processes; the orders say it again.
        .env("PARPLAN_RANK", rank.to_string())
        .stdin(Stdio::piped())
        .stdout(log)
        .stderr(also);
    // SAFETY: between fork and exec only async-signal-safe calls are made: dup2, prctl,
    // getppid and setpgid; nothing allocates and no lock is taken.
    unsafe {
        command.pre_exec(move || {
            if nix::libc::dup2(report, REPORT_FD) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            if report == REPORT_FD {
                // dup2 onto itself keeps close-on-exec; clear it.
                nix::libc::fcntl(REPORT_FD, nix::libc::F_SETFD, 0);
            }
            // The kernel ends the rank when the supervisor dies, however it dies.
            if nix::libc::prctl(nix::libc::PR_SET_PDEATHSIG, nix::libc::SIGKILL) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // It may have died before the line above.
            if getppid() != parent {
                return Err(std::io::Error::from_raw_os_error(nix::libc::ESRCH));
            }
            // Its own process group: Ctrl-C reaches the supervisor, which ends the ranks.
            setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
            Ok(())
        });
    }
    let mut child = command
        .spawn()
        .map_err(Error::io(format!("starting rank {rank} ({program})")))?;
    drop(write);
    if let Some(mut stdin) = child.stdin.take() {
        let orders = serde_json::to_vec(spec)
            .map_err(|e| Error::Unusable(format!("the job does not serialise: {e}")))?;
        // A rank that dies before it reads its orders is noticed by its exit.
        let _ = stdin.write_all(&orders);
    }
    std::thread::spawn(move || {
        for line in BufReader::new(File::from(read))
            .lines()
            .map_while(std::io::Result::ok)
        {
            if let Ok(report) = serde_json::from_str(&line)
                && tx.send((rank, report)).is_err()
            {
                break;
            }
        }
    });
    Ok(child)
}
