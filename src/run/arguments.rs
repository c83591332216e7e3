//! What can be asked of `parplan run`, and the job that it means.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use parplan_executor::bench::{Collective, Launch, Timer};
use parplan_executor::jobs::{
    Backend, CollectivesJob, GatherJob, GatherStep, Implementation, Job, Limits, SyncJob, Work,
};
use parplan_executor::symmetric::Registration;
use parplan_executor::sync::Way;
use parplan_executor::{DType, Error, Result};

use super::mode;
use super::stack::Stack;

/// `parplan run`
#[derive(Debug, Args)]
pub struct Arguments {
    /// What to run.
    #[command(subcommand)]
    pub what: What,
}

#[derive(Debug, Subcommand)]
pub enum What {
    /// Time collectives over sizes, registrations and launch modes, every result checked.
    Collectives(Box<Collectives>),
    /// DP gather and scatter in every mode, uneven and idle ranks, with memory.
    Gather(Box<Gather>),
    /// Per-step metadata sync: device all-reduce, device all-gather, peer memory, host TCP.
    Sync(Box<Sync>),
    /// Decoder layers of a model under a layout: step time by operation, memory, a check.
    Stack(Box<Stack>),
    /// Attention over a paged KV cache, on one rank or shared by several (DCP).
    Attention(Box<super::attention::Attention>),
    /// A rank; started by the supervisor.
    #[command(hide = true)]
    Rank,
}

/// What all runs take.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// What computes and communicates [default: nccl where there is a GPU, or else cpu; nccl for exec].
    #[arg(long, value_enum)]
    backend: Option<BackendName>,
    /// Ranks on this machine [default: 2 on the CPU, all GPUs with nccl].
    #[arg(long)]
    pub ranks: Option<usize>,
    /// Machines.
    #[arg(long, default_value_t = 1)]
    pub nnodes: usize,
    /// This machine's number, from 0.
    #[arg(long, default_value_t = 0)]
    pub node_rank: usize,
    /// Where all ranks meet, host:port; machine 0 listens there. The shared secret is
    /// taken from PARPLAN_SECRET.
    #[arg(long)]
    pub rendezvous: Option<String>,
    /// Start ranks also where torchrun, srun or mpirun started this process.
    #[arg(long)]
    pub no_launcher: bool,
    /// libnccl.so.2, its folder, or a Python environment that has it.
    #[arg(long)]
    nccl_path: Option<PathBuf>,
    /// Folder for one log file a rank [default: a temporary one, kept after a failure].
    #[arg(long)]
    pub logs: Option<PathBuf>,
    /// Seconds for all ranks to meet.
    #[arg(long, default_value_t = 60.0, value_parser = seconds)]
    pub meet: f64,
    /// Seconds that any one wait may take.
    #[arg(long, default_value_t = 30.0, value_parser = seconds)]
    deadline: f64,
    /// Seconds that the whole run may take.
    #[arg(long, default_value_t = 900.0, value_parser = seconds)]
    pub limit: f64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// How single operations are timed.
#[derive(Debug, Args)]
pub struct Sampling {
    /// Operations of one timed repeat [default: 20; 1 for attention on the CPU].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    iterations: Option<u32>,
    /// Timed repeats, of which the median counts [default: 9; 3 for attention on the CPU].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: Option<u32>,
    /// Launches of a captured graph in one repeat.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    graph_launches: u32,
    /// Registrations of the buffers, on GPUs.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["none", "local", "symmetric"])]
    registration: Vec<RegistrationName>,
    /// How operations reach the GPU.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["stream", "graph"])]
    launch: Vec<LaunchName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum BackendName {
    Cpu,
    Nccl,
    /// GPUs without NCCL; ranks may share one. Attention only.
    Peer,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LaunchName {
    Stream,
    Graph,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RegistrationName {
    None,
    Local,
    Symmetric,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ImplementationName {
    /// NCCL, or TCP on the CPU.
    Backend,
    PeerOneShot,
    PeerTwoShot,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum CollectiveName {
    AllGather,
    AllGatherV,
    AllReduce,
    ReduceScatter,
    AllToAll,
    Broadcast,
    Barrier,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DTypeName {
    U8,
    I32,
    I64,
    F16,
    Bf16,
    F32,
    F64,
}

fn seconds(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if s.is_finite() && s > 0.0 && s <= 1e6 => Ok(s),
        _ => Err("it must be a number of seconds above 0".into()),
    }
}

/// `1K`, `64KiB`, `4M` or plain bytes.
fn bytes(text: &str) -> std::result::Result<usize, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match lower[digits.len()..].trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        other => {
            return Err(format!(
                "'{other}' is no unit; K, M and G are powers of 1024"
            ));
        }
    };
    let n: usize = digits
        .parse()
        .map_err(|_| "it must be a number of bytes, like 65536 or 64K".to_owned())?;
    n.checked_mul(1 << shift)
        .filter(|n| (1..=1 << 40).contains(n))
        .ok_or_else(|| "it must be between 1 byte and 1 TiB".into())
}

impl Common {
    /// The backend that was named.
    pub fn named_backend(&self) -> Option<Backend> {
        self.backend.map(|name| match name {
            BackendName::Cpu => Backend::Cpu,
            BackendName::Nccl => Backend::Nccl,
            BackendName::Peer => Backend::Peer,
        })
    }

    /// The backend that was named, or else what this machine has.
    pub fn backend_or_found(&self) -> Backend {
        self.named_backend().unwrap_or_else(Backend::found_here)
    }

    /// Names the backend.
    pub fn set_backend(&mut self, backend: Backend) {
        self.backend = Some(match backend {
            Backend::Cpu => BackendName::Cpu,
            Backend::Nccl => BackendName::Nccl,
            Backend::Peer => BackendName::Peer,
        });
    }

    /// Whether ranks run on GPUs.
    pub fn on_gpus(&self) -> bool {
        self.backend == Some(BackendName::Nccl)
    }

    /// The job that does `work` this way.
    pub fn job(&self, work: Work) -> Job {
        Job {
            backend: self.backend_or_found(),
            nccl_path: self.nccl_path.clone(),
            limits: Limits {
                meet: Duration::from_secs_f64(self.meet),
                wait: Duration::from_secs_f64(self.deadline),
            },
            work,
        }
    }
}

impl Sampling {
    pub fn timer(&self) -> Timer {
        Timer {
            iterations: self.iterations.unwrap_or(20) as usize,
            repeats: self.repeats.unwrap_or(9) as usize,
            warmup: 5,
            graph_launches: self.graph_launches as usize,
        }
    }

    /// The same for operations that take seconds each.
    pub fn short_timer(&self) -> Timer {
        Timer {
            iterations: self.iterations.unwrap_or(1) as usize,
            repeats: self.repeats.unwrap_or(3) as usize,
            warmup: 1,
            ..self.timer()
        }
    }

    pub fn registrations(&self) -> Vec<Registration> {
        let registration = |r: &RegistrationName| match r {
            RegistrationName::None => Registration::None,
            RegistrationName::Local => Registration::Local,
            RegistrationName::Symmetric => Registration::Symmetric,
        };
        self.registration.iter().map(registration).collect()
    }

    pub fn launches(&self) -> Vec<Launch> {
        let launch = |l: &LaunchName| match l {
            LaunchName::Stream => Launch::Stream,
            LaunchName::Graph => Launch::Graph,
        };
        self.launch.iter().map(launch).collect()
    }
}

/// `parplan run collectives`
#[derive(Debug, Args)]
pub struct Collectives {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    sampling: Sampling,
    /// Collectives [default: all].
    #[arg(long, value_enum, value_delimiter = ',')]
    collective: Vec<CollectiveName>,
    /// Sizes, as nccl-tests counts them.
    #[arg(long, value_delimiter = ',', value_parser = bytes, default_values = ["1K", "16K", "256K", "4M"])]
    sizes: Vec<usize>,
    /// Element type of reductions.
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: DTypeName,
    /// Whose code: the backend's, or parplan's own kernels over peer memory.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["backend"])]
    implementation: Vec<ImplementationName>,
    /// First hold the communicator to the conformance suite, and compare every timed
    /// collective with the CPU reference, byte for byte.
    #[arg(long)]
    check: bool,
    /// Unregistered buffers from the driver, as frameworks allocate, instead of from
    /// NCCL, as nccl-tests does: NCCL does not register those in a captured graph.
    #[arg(long)]
    driver_memory: bool,
    /// Repeat everything for at least that many seconds.
    #[arg(long, default_value_t = 0.0)]
    at_least: f64,
}

impl Collectives {
    pub fn job(&self) -> Result<Job> {
        let collective = |c: &CollectiveName| match c {
            CollectiveName::AllGather => Collective::AllGather,
            CollectiveName::AllGatherV => Collective::AllGatherV,
            CollectiveName::AllReduce => Collective::AllReduce,
            CollectiveName::ReduceScatter => Collective::ReduceScatter,
            CollectiveName::AllToAll => Collective::AllToAll,
            CollectiveName::Broadcast => Collective::Broadcast,
            CollectiveName::Barrier => Collective::Barrier,
        };
        let implementation = |i: &ImplementationName| match i {
            ImplementationName::Backend => Implementation::Backend,
            ImplementationName::PeerOneShot => Implementation::PeerOneShot,
            ImplementationName::PeerTwoShot => Implementation::PeerTwoShot,
        };
        let collectives = match self.collective.as_slice() {
            [] => Collective::ALL.to_vec(),
            some => some.iter().map(collective).collect(),
        };
        Ok(self.common.job(Work::Collectives(CollectivesJob {
            collectives,
            bytes: self.sizes.clone(),
            dtype: match self.dtype {
                DTypeName::U8 => DType::U8,
                DTypeName::I32 => DType::I32,
                DTypeName::I64 => DType::I64,
                DTypeName::F16 => DType::F16,
                DTypeName::Bf16 => DType::Bf16,
                DTypeName::F32 => DType::F32,
                DTypeName::F64 => DType::F64,
            },
            registrations: self.sampling.registrations(),
            driver_memory: self.driver_memory,
            launches: self.sampling.launches(),
            implementations: self.implementation.iter().map(implementation).collect(),
            timer: self.sampling.timer(),
            check: self.check,
            at_least_seconds: self.at_least,
        })))
    }
}

/// `parplan run gather`
#[derive(Debug, Args)]
pub struct Gather {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    sampling: Sampling,
    /// Attention DP ranks [default: all ranks].
    #[arg(long)]
    attn_dp: Option<usize>,
    /// Elements of a row of hidden states (bf16), a multiple of 8.
    #[arg(long, default_value_t = 1024)]
    hidden: usize,
    /// Requests of each DP rank in one step, like 3,0,7,2; may be given several times.
    /// [default: balanced, uneven, one rank alone, all idle]
    #[arg(long)]
    requests: Vec<String>,
    /// Rows that need logits in each step, in the same form and number as --requests.
    #[arg(long)]
    logprob_rows: Vec<String>,
    /// Speculative steps; a request then has steps + 1 rows.
    #[arg(long, default_value_t = 0)]
    speculative_steps: usize,
    /// Attention outputs are partial sums over attention TP.
    #[arg(long)]
    partial: bool,
    /// The engine, with its version, whose rule picks the mode.
    #[arg(long, default_value = "sglang")]
    engine: String,
}

impl Gather {
    pub fn job(&self) -> Result<Job> {
        if self.hidden == 0 || !self.hidden.is_multiple_of(8) {
            return Err(Error::Unusable(format!(
                "--hidden is {}, it must be a multiple of 8",
                self.hidden
            )));
        }
        let world = self.common.nnodes * self.ranks()?;
        let attn_dp = self.attn_dp.unwrap_or(world);
        if attn_dp == 0 || !world.is_multiple_of(attn_dp) {
            return Err(Error::Unusable(format!(
                "--attn-dp is {attn_dp}, it must divide the {world} ranks"
            )));
        }
        let steps: Vec<Vec<usize>> = match self.requests.as_slice() {
            [] => vec![
                vec![64; attn_dp],
                (0..attn_dp).map(|r| 16 * (r % 4) + 3).collect(),
                (0..attn_dp).map(|r| if r == 0 { 64 } else { 0 }).collect(),
                vec![0; attn_dp],
            ],
            given => given
                .iter()
                .map(|s| counts("--requests", s, attn_dp))
                .collect::<Result<_>>()?,
        };
        if !self.logprob_rows.is_empty() && self.logprob_rows.len() != steps.len() {
            return Err(Error::Unusable(format!(
                "--logprob-rows is given {} times, it must be as often as --requests, {}",
                self.logprob_rows.len(),
                steps.len()
            )));
        }
        let rule = mode::Rule::of(
            &self.engine,
            self.hidden * 2,
            world / attn_dp,
            self.speculative_steps > 0,
        )?;
        let mut gather_steps = Vec::new();
        for (i, requests) in steps.into_iter().enumerate() {
            let rows: Vec<usize> = requests
                .iter()
                .map(|r| r * (self.speculative_steps + 1))
                .collect();
            let logprob_rows = match self.logprob_rows.get(i) {
                Some(text) => counts("--logprob-rows", text, attn_dp)?,
                None => requests.clone(),
            };
            gather_steps.push(GatherStep {
                rule: rule.pick(&rows),
                requests,
                logprob_rows,
            });
        }
        use parplan_executor::gather::Mode;
        Ok(self.common.job(Work::Gather(GatherJob {
            attn_dp,
            hidden: self.hidden,
            speculative_steps: self.speculative_steps,
            partial: self.partial,
            steps: gather_steps,
            modes: vec![Mode::MaxLen, Mode::SumLen, Mode::AllGatherV],
            launches: self.sampling.launches(),
            registrations: self.sampling.registrations(),
            timer: self.sampling.timer(),
        })))
    }

    /// Ranks on each machine, which the shapes of the steps depend on.
    fn ranks(&self) -> Result<usize> {
        if let Some((_, identity)) = super::from_environment(|n| std::env::var(n).ok())?
            && !self.common.no_launcher
        {
            return Ok(identity.world);
        }
        match (self.common.ranks, self.common.backend_or_found()) {
            (Some(0), _) => Err(Error::Unusable("--ranks is 0, at least 1 is needed".into())),
            (Some(n), _) => Ok(n),
            (None, Backend::Cpu) => Ok(2),
            (None, Backend::Nccl | Backend::Peer) => parplan_executor::cuda::device_count(),
        }
    }
}

/// Counts of all DP ranks, like `3,0`.
pub fn counts(flag: &str, text: &str, ranks: usize) -> Result<Vec<usize>> {
    let wrong = || {
        Error::Unusable(format!(
            "{flag} '{text}': it must be {ranks} counts, one for each DP rank, like 3,0"
        ))
    };
    let all: Vec<usize> = text
        .split(',')
        .map(|n| n.trim().parse().map_err(|_| wrong()))
        .collect::<Result<_>>()?;
    if all.len() != ranks {
        Err(wrong())
    } else {
        Ok(all)
    }
}

/// `parplan run sync`
#[derive(Debug, Args)]
pub struct Sync {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    sampling: Sampling,
    /// Timed rounds of each way.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

impl Sync {
    pub fn job(&self) -> Result<Job> {
        Ok(self.common.job(Work::Sync(SyncJob {
            ways: Way::ALL.to_vec(),
            launches: self.sampling.launches(),
            registrations: self.sampling.registrations(),
            rounds: self.rounds as usize,
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        assert_eq!(bytes("64K"), Ok(65_536));
        assert_eq!(bytes("4MiB"), Ok(4 << 20));
        assert_eq!(bytes("77"), Ok(77));
        assert!(
            bytes("0").is_err()
                && bytes("x").is_err()
                && bytes("3q").is_err()
                && bytes("").is_err()
        );
    }
}
