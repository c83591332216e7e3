//! What a probe runs: collectives, exchanges, streams of memory and the kernels of a layer, with every
//! size that its time depends on.

use crate::dtype::Dtype;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Probe {
    /// A collective of the backend: NCCL, or TCP on the CPU.
    Collective {
        /// Which.
        collective: CollectiveKind,
        /// Bytes.
        bytes: u64,
        /// Registration of both buffers.
        registration: BufferRegistration,
        /// Send and receive buffers overlap, as nccl-tests' in-place runs.
        in_place: bool,
    },
    /// parplan's own all-reduce or all-gather over peer memory.
    PeerCollective {
        /// All-reduce or all-gather.
        collective: CollectiveKind,
        /// In two shots (reduce-scatter, all-gather) rather than one.
        two_shot: bool,
        /// Bytes.
        bytes: u64,
        /// Send and receive buffers overlap.
        in_place: bool,
    },
    /// What ranks that share a cache exchange over peer memory, by one kernel each: queries gathered,
    /// or partial outputs merged with their log-sum-exps.
    PeerExchange {
        /// Outputs are merged; otherwise queries are gathered.
        merge: bool,
        /// Rows of one rank's heads: tokens times heads.
        rows: u32,
        /// Width of a row.
        dim: u32,
    },
    /// A round of batch shapes between the ranks, up to the host's knowing all of them.
    MetadataSync {
        /// By which way.
        way: SyncWay,
    },
    /// A row of `nodes` norms over few rows, each waiting for the one before: what a memory-bound
    /// kernel of a layer costs when it has next to nothing to move.
    Kernels {
        /// How many.
        nodes: u32,
    },
    /// Memory read in a stream, `bytes` at a time, past the L2 cache.
    MemoryRead {
        /// Bytes read.
        bytes: u64,
    },
    /// Memory copied in a stream: `bytes` read and as many written.
    MemoryCopy {
        /// Bytes read.
        bytes: u64,
    },
    /// A dense product, `m`×`k` times `k`×`n`.
    Gemm {
        /// Rows.
        m: u32,
        /// Output width.
        n: u32,
        /// Input width.
        k: u32,
        /// Format of the weights.
        weights: Dtype,
    },
    /// Routed experts of one layer on one rank, all of them on this rank.
    Experts(ExpertsShape),
    /// Decode attention with grouped queries.
    DecodeGqa(DecodeGqaShape),
    /// Absorbed decode attention of MLA.
    DecodeMla(DecodeMlaShape),
    /// Causal prefill attention with grouped queries.
    PrefillGqa(PrefillGqaShape),
    /// GPU memory that a captured graph of `nodes` kernels takes.
    GraphMemory {
        /// Kernels in the graph.
        nodes: u32,
    },
    /// GPU memory free after the context, the kernels and the communicator are there.
    UsableMemory,
}

/// A collective; its bytes are counted as nccl-tests does (the larger of both buffers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CollectiveKind {
    /// Every rank ends with every rank's part.
    AllGather,
    /// Every rank ends with its part of the sum.
    ReduceScatter,
    /// Every rank ends with the sum.
    AllReduce,
    /// Every rank sends a part to every rank.
    AllToAll,
}

/// How a buffer is known to NCCL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BufferRegistration {
    /// Not at all, memory of the driver, as frameworks allocate.
    None,
    /// `ncclCommRegister`, or NCCL's own memory in a captured graph, which it registers by itself.
    Local,
    /// A symmetric window.
    Symmetric,
}

/// How the ranks learn each other's batch shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncWay {
    /// All-gather between the hosts' processes over TCP.
    HostTcp,
    /// Sum all-reduce of a table on the device, and a copy to the host.
    DeviceAllReduce,
    /// All-gather on the device, and a copy to the host.
    DeviceAllGather,
}

/// Sizes of one layer's routed experts, all of them on one rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertsShape {
    /// Tokens.
    pub tokens: u32,
    /// Experts.
    pub experts: u32,
    /// Experts a token visits.
    pub top_k: u32,
    /// Width of a token.
    pub hidden: u32,
    /// Width of an expert's hidden layer.
    pub intermediate: u32,
    /// Format of the weights.
    pub weights: Dtype,
}

/// Sizes of decode attention with grouped queries on one rank: one new token a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecodeGqaShape {
    /// Requests.
    pub requests: u32,
    /// Cached tokens of each.
    pub context: u32,
    /// Query heads.
    pub q_heads: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Format of the cache.
    pub kv: Dtype,
}

/// Sizes of absorbed MLA decode attention on one rank: one new token a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecodeMlaShape {
    /// Requests.
    pub requests: u32,
    /// Cached tokens of each.
    pub context: u32,
    /// Query heads.
    pub heads: u32,
    /// Rank of the shared KV compression.
    pub kv_lora_rank: u32,
    /// Width of the shared rotary part.
    pub rope_dim: u32,
    /// Format of the cache.
    pub kv: Dtype,
}

/// Sizes of causal prefill attention with grouped queries on one rank, nothing cached before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefillGqaShape {
    /// Sequences.
    pub sequences: u32,
    /// New tokens of each.
    pub tokens: u32,
    /// Query heads.
    pub q_heads: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Format of the cache.
    pub kv: Dtype,
}

/// Unit of a measured value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Microseconds of one operation.
    Us,
    /// Bytes.
    Bytes,
}

impl Probe {
    /// What a value of it is counted in.
    pub const fn unit(&self) -> Unit {
        match self {
            Probe::GraphMemory { .. } | Probe::UsableMemory => Unit::Bytes,
            _ => Unit::Us,
        }
    }
}

impl CollectiveKind {
    /// All kinds.
    pub const ALL: [CollectiveKind; 4] = [
        CollectiveKind::AllGather,
        CollectiveKind::ReduceScatter,
        CollectiveKind::AllReduce,
        CollectiveKind::AllToAll,
    ];

    /// The name in profiles and tables.
    pub const fn name(self) -> &'static str {
        match self {
            CollectiveKind::AllGather => "all_gather",
            CollectiveKind::ReduceScatter => "reduce_scatter",
            CollectiveKind::AllReduce => "all_reduce",
            CollectiveKind::AllToAll => "all_to_all",
        }
    }
}

impl BufferRegistration {
    /// All of them.
    pub const ALL: [BufferRegistration; 3] = [
        BufferRegistration::None,
        BufferRegistration::Local,
        BufferRegistration::Symmetric,
    ];

    /// The name in profiles and tables.
    pub const fn name(self) -> &'static str {
        match self {
            BufferRegistration::None => "none",
            BufferRegistration::Local => "local",
            BufferRegistration::Symmetric => "symmetric",
        }
    }
}

impl SyncWay {
    /// The name in profiles and tables.
    pub const fn name(self) -> &'static str {
        match self {
            SyncWay::HostTcp => "host_tcp",
            SyncWay::DeviceAllReduce => "device_all_reduce",
            SyncWay::DeviceAllGather => "device_all_gather",
        }
    }
}

/// `1 KiB`, `16 MiB`, plain bytes where it is no whole number of either.
fn size(bytes: u64) -> String {
    for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >= 1 << shift && bytes.is_multiple_of(1 << shift) {
            return format!("{} {unit}", bytes >> shift);
        }
    }
    format!("{bytes} B")
}

fn place(in_place: bool) -> &'static str {
    if in_place { "in place" } else { "out of place" }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Probe::Collective {
                collective,
                bytes,
                registration,
                in_place,
            } => write!(
                f,
                "{} {}, {}, {}",
                collective.name(),
                size(*bytes),
                registration.name(),
                place(*in_place)
            ),
            Probe::PeerCollective {
                collective,
                two_shot,
                bytes,
                in_place,
            } => write!(
                f,
                "peer {} {}, {}, {}",
                collective.name(),
                if *two_shot { "two-shot" } else { "one-shot" },
                size(*bytes),
                place(*in_place)
            ),
            Probe::PeerExchange { merge, rows, dim } => write!(
                f,
                "peer {} of {rows} rows of {dim}",
                if *merge { "merge" } else { "gather" }
            ),
            Probe::MetadataSync { way } => write!(f, "metadata sync {}", way.name()),
            Probe::Kernels { nodes } => write!(f, "{nodes} small norms"),
            Probe::MemoryRead { bytes } => write!(f, "memory read {}", size(*bytes)),
            Probe::MemoryCopy { bytes } => write!(f, "memory copy {}", size(*bytes)),
            Probe::Gemm { m, n, k, weights } => write!(f, "gemm {weights} {m}x{n}x{k}"),
            Probe::Experts(s) => write!(
                f,
                "experts {} {} tokens, {} of {}, {}x{}",
                s.weights, s.tokens, s.top_k, s.experts, s.hidden, s.intermediate
            ),
            Probe::DecodeGqa(s) => write!(
                f,
                "decode gqa {} {}x{}, {}/{} heads of {}",
                s.kv, s.requests, s.context, s.q_heads, s.kv_heads, s.head_dim
            ),
            Probe::DecodeMla(s) => write!(
                f,
                "decode mla {} {}x{}, {} heads, {}+{}",
                s.kv, s.requests, s.context, s.heads, s.kv_lora_rank, s.rope_dim
            ),
            Probe::PrefillGqa(s) => write!(
                f,
                "prefill gqa {} {}x{}, {}/{} heads of {}",
                s.kv, s.sequences, s.tokens, s.q_heads, s.kv_heads, s.head_dim
            ),
            Probe::GraphMemory { nodes } => write!(f, "memory of a graph of {nodes} kernels"),
            Probe::UsableMemory => f.write_str("usable memory"),
        }
    }
}
