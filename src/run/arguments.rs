//! What can be asked of every `parplan run`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use parplan_executor::bench::{Launch, Timer};
use parplan_executor::jobs::{Backend, Job, Limits, Work};
use parplan_executor::symmetric::Registration;

use super::attention::Attention;
use super::collectives::Collectives;
use super::gather::Gather;
use super::stack::Stack;
use super::sync::Sync;
use super::values::{machine, ranks, seconds, times};
use crate::args::named;

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
    Attention(Box<Attention>),
    /// A rank; started by the supervisor.
    #[command(hide = true)]
    Rank,
}

/// What all runs take.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// What computes and communicates: cpu, nccl, or peer, GPUs without NCCL that ranks may share, for
    /// attention and parplan's own collectives only [default: nccl where there is a GPU, or else cpu; nccl for exec].
    #[arg(long, value_parser = named([("cpu", Backend::Cpu), ("nccl", Backend::Nccl), ("peer", Backend::Peer)]))]
    backend: Option<Backend>,
    /// Ranks on this machine [default: 2 on the CPU, all GPUs with nccl].
    #[arg(long, value_parser = ranks)]
    pub ranks: Option<usize>,
    /// Machines.
    #[arg(long, default_value = "1", value_parser = ranks)]
    pub nnodes: usize,
    /// This machine's number, from 0.
    #[arg(long, default_value = "0", value_parser = machine)]
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
    #[arg(long, value_parser = times)]
    iterations: Option<usize>,
    /// Timed repeats, of which the median counts [default: 9; 3 for attention on the CPU].
    #[arg(long, value_parser = times)]
    repeats: Option<usize>,
    /// Launches of a captured graph in one repeat.
    #[arg(long, default_value = "20", value_parser = times)]
    graph_launches: usize,
    /// Registrations of the buffers, on GPUs.
    #[arg(
        long,
        value_delimiter = ',',
        default_values = ["none", "local", "symmetric"],
        value_parser = named([
            ("none", Registration::None),
            ("local", Registration::Local),
            ("symmetric", Registration::Symmetric),
        ])
    )]
    registration: Vec<Registration>,
    /// How operations reach the GPU.
    #[arg(
        long,
        value_delimiter = ',',
        default_values = ["stream", "graph"],
        value_parser = named([("stream", Launch::Stream), ("graph", Launch::Graph)])
    )]
    launch: Vec<Launch>,
}

impl Common {
    /// The backend that was named.
    pub fn named_backend(&self) -> Option<Backend> {
        self.backend
    }

    /// The backend that was named, or else what this machine has.
    pub fn backend_or_found(&self) -> Backend {
        self.named_backend().unwrap_or_else(Backend::found_here)
    }

    /// Names the backend.
    pub fn set_backend(&mut self, backend: Backend) {
        self.backend = Some(backend);
    }

    /// Whether ranks run on GPUs with NCCL between them.
    pub fn on_gpus(&self) -> bool {
        self.backend_or_found() == Backend::Nccl
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
            iterations: self.iterations.unwrap_or(20),
            repeats: self.repeats.unwrap_or(9),
            warmup: 5,
            graph_launches: self.graph_launches,
        }
    }

    /// The same for operations that take seconds each.
    pub fn short_timer(&self) -> Timer {
        Timer {
            iterations: self.iterations.unwrap_or(1),
            repeats: self.repeats.unwrap_or(3),
            warmup: 1,
            ..self.timer()
        }
    }

    pub fn registrations(&self) -> Vec<Registration> {
        self.registration.clone()
    }

    pub fn launches(&self) -> Vec<Launch> {
        self.launch.clone()
    }
}
