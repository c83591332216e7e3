//! Runs the binary and looks at its processes.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)] // each test file uses a part

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// The binary: cargo's, or `PARPLAN_BIN` where the tests were carried to a GPU machine.
pub fn binary() -> PathBuf {
    std::env::var_os("PARPLAN_BIN")
        .map_or_else(|| env!("CARGO_BIN_EXE_parplan").into(), PathBuf::from)
}

/// `parplan run …` without what a launcher around the tests may have set.
pub fn run(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command
        .arg("run")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for (name, _) in std::env::vars() {
        if [
            "OMPI_",
            "PMI_",
            "MPI_",
            "SLURM_",
            "TORCHELASTIC_",
            "PARPLAN_SECRET",
        ]
        .iter()
        .any(|p| name.starts_with(p))
        {
            command.env_remove(name);
        }
    }
    command
}

/// A finished run.
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Finished {
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

/// A run that goes on.
pub struct Running {
    pub child: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
}

fn drain(mut from: impl Read + Send + 'static) -> Receiver<String> {
    let (tx, rx) = channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let mut chunk = [0; 4096];
        while let Ok(n) = from.read(&mut chunk) {
            if n == 0 {
                break;
            }
            text.push_str(&String::from_utf8_lossy(&chunk[..n]));
        }
        let _ = tx.send(text);
    });
    rx
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.spawn().expect("the binary starts");
        let stdout = drain(child.stdout.take().unwrap());
        let stderr = drain(child.stderr.take().unwrap());
        Running {
            child,
            stdout,
            stderr,
        }
    }

    /// Process ids of the ranks, in rank order, once all of them are connected and work.
    pub fn ranks(&self, count: usize) -> Vec<i32> {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let ranks = ranks_of(self.child.id());
            // A rank that works has one socket to each other rank, and used some time.
            if ranks.len() == count
                && ranks
                    .iter()
                    .all(|pid| sockets(*pid) + 1 >= count && ticks(*pid) > 0)
            {
                std::thread::sleep(Duration::from_millis(300));
                return ranks;
            }
            assert!(
                Instant::now() < until,
                "{count} ranks did not come up: {ranks:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the end, at most that long.
    pub fn finish(mut self, within: Duration) -> Finished {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if start.elapsed() > within {
                let _ = self.child.kill();
                let _ = self.child.wait();
                panic!(
                    "still running after {within:?}: {}",
                    self.stderr.recv().unwrap()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        Finished {
            status,
            took: start.elapsed(),
            stdout: self.stdout.recv().unwrap(),
            stderr: self.stderr.recv().unwrap(),
        }
    }
}

/// Runs to the end.
pub fn finished(command: Command) -> Finished {
    Running::start(command).finish(Duration::from_secs(300))
}

fn ranks_of(supervisor: u32) -> Vec<i32> {
    let path = format!("/proc/{supervisor}/task/{supervisor}/children");
    let mut ranks: Vec<(usize, i32)> = std::fs::read_to_string(path)
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|pid| {
            let pid = pid.parse().ok()?;
            Some((environment(pid, "PARPLAN_RANK")?.parse().ok()?, pid))
        })
        .collect();
    ranks.sort_unstable();
    ranks.into_iter().map(|(_, pid)| pid).collect()
}

/// A variable of a process's environment, as it was started.
pub fn environment(pid: i32, name: &str) -> Option<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    text.split('\0')
        .find_map(|e| Some(e.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
}

fn sockets(pid: i32) -> usize {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return 0;
    };
    let is_socket = |e: &std::fs::DirEntry| {
        std::fs::read_link(e.path()).is_ok_and(|t| t.to_string_lossy().starts_with("socket:"))
    };
    entries.flatten().filter(is_socket).count()
}

fn ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name in parentheses: state is field 0, utime 11, stime 12.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or("")
        .split_whitespace()
        .collect();
    [11, 12]
        .iter()
        .filter_map(|i| fields.get(*i)?.parse::<u64>().ok())
        .sum()
}

/// Whether the process is there and no zombie.
pub fn alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !matches!(
        stat.rsplit(')')
            .next()
            .and_then(|s| s.split_whitespace().next()),
        None | Some("Z" | "X")
    )
}

pub fn signal(pid: i32, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status()
        .unwrap();
    assert!(status.success(), "kill -{name} {pid}");
}

/// A port that nobody listens at now.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}
