//! Collectives inside an NVLink domain, over PCIe, and between nodes.

use super::resolve::OpCosts;
use super::terms::{LowLatencyTerm, RingTerm};

/// What a collective does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Collective {
    /// Every rank ends with every rank's part. Bytes: the gathered buffer.
    AllGather,
    /// Every rank ends with its part of the sum. Bytes: the input buffer.
    ReduceScatter,
    /// Every rank ends with the sum. Bytes: the buffer.
    AllReduce,
    /// Every rank sends a part to every rank. Bytes: the buffer of one rank.
    AllToAll,
}

/// Whose kernel runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Implementation {
    /// NCCL.
    Nccl,
    /// The engine's own one-shot or two-shot all-reduce, whichever is faster at the size. Other
    /// collectives, and groups that leave one NVLink domain or exceed 8 ranks, run on NCCL.
    Custom,
    /// The engine's own exchange around an attention whose cache several ranks share: a gather of
    /// queries, or a merge of partial outputs (as an all-to-all of them), over peer memory. NCCL's where
    /// the engine has none, or the ranks leave one NVLink domain.
    Peer,
}

/// How it is launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Launch {
    /// Replayed in a CUDA graph.
    Graph,
    /// Launched by the host, which then paces small ones.
    Eager,
}

/// Whether NCCL may use the symmetric kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Registration {
    /// Ordinary buffers.
    None,
    /// Symmetric windows: NCCL runs its symmetric kernels, also where they are slower.
    Symmetric,
}

/// The ranks of a collective and where they sit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    /// Ranks.
    pub ranks: f64,
    /// Of them, ranks that share an NVLink (or PCIe) domain.
    pub ranks_per_domain: f64,
}

impl Span {
    /// All ranks in one domain.
    pub fn local(ranks: f64) -> Self {
        Self {
            ranks,
            ranks_per_domain: ranks,
        }
    }

    /// Domains that the ranks are spread over.
    #[inline]
    pub fn domains(&self) -> f64 {
        (self.ranks / self.ranks_per_domain.max(1.0)).max(1.0)
    }
}

/// One collective.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Transfer {
    /// What it does.
    pub kind: Collective,
    /// Its size, bytes; see [`Collective`] for which buffer that is.
    pub bytes: f64,
    /// Its ranks.
    pub span: Span,
    /// Whose kernel.
    pub implementation: Implementation,
    /// How it is launched.
    pub launch: Launch,
    /// Whether its buffers are registered.
    pub registration: Registration,
}

impl Collective {
    /// Bytes that the slowest link of a ring carries, as a multiple of the collective's bytes.
    #[inline]
    fn wire(self, ranks: f64) -> f64 {
        let share = (ranks - 1.0) / ranks;
        match self {
            Collective::AllReduce => 2.0 * share,
            _ => share,
        }
    }

    /// Bytes of all ranks together that a low-latency kernel brings to every rank, its own among
    /// them. Of an all-reduce that is every rank's whole buffer, which each then sums.
    #[inline]
    fn gathered(self, bytes: f64, ranks: f64) -> f64 {
        match self {
            Collective::AllReduce => bytes * ranks,
            _ => bytes,
        }
    }

    #[inline]
    fn index(self) -> usize {
        match self {
            Collective::AllGather => 0,
            Collective::ReduceScatter => 1,
            Collective::AllReduce => 2,
            Collective::AllToAll => 3,
        }
    }
}

/// Bytes of all ranks up to which NCCL takes its low-latency symmetric kernel. Its choice is by a model
/// of both (`queryModel` of src/sym_kernels.cc, 2.27 and 2.28): 4.5 µs and 9 bytes for each byte of all
/// ranks at 320 GiB/s against 7.8 µs, which meet at about 164 kB; kernels in captured graphs of 2, 4 and
/// 8 H200 change between 131,072 and 262,144 bytes, as that says (docs/node.md).
const LOW_LATENCY_BYTES: f64 = 160.0 * 1024.0;

impl LowLatencyTerm {
    /// `base + rank · (R − 2) + ramp · √received + received / bandwidth`.
    #[inline]
    fn time(&self, ranks: f64, gathered: f64) -> f64 {
        let received = gathered * (ranks - 1.0) / ranks;
        self.base_us
            + self.rank_us * (ranks - 2.0)
            + self.ramp_us_per_root_byte * received.sqrt()
            + received * self.us_per_byte
    }
}

impl RingTerm {
    /// By the kernel that runs at this size: the low-latency one, where there is one, or the other,
    /// which is never taken to be faster than the former was at its largest.
    #[inline]
    fn kernel(&self, kind: Collective, bytes: f64, ranks: f64, wire: f64) -> f64 {
        let Some(low) = &self.low_latency else {
            return self.time(ranks, wire);
        };
        let gathered = kind.gathered(bytes, ranks);
        let small = low.time(ranks, gathered.min(LOW_LATENCY_BYTES));
        if gathered <= LOW_LATENCY_BYTES {
            small
        } else {
            self.time(ranks, wire).max(small)
        }
    }

    /// `base + rank · (R − 2) + ramp · √wire + wire / bandwidth(R)`. Beyond the 8 ranks of the
    /// tables the latency grows by half the 8-rank figure a doubling, as trees do.
    #[inline]
    fn time(&self, ranks: f64, wire: f64) -> f64 {
        self.base_us
            + self.latency(ranks)
            + self.ramp_us_per_root_byte * wire.sqrt()
            + wire * self.us_per_wire_byte(ranks)
    }

    /// The same as launched: the host paces an eager launch while the kernel is short.
    #[inline]
    pub(super) fn launched(&self, kind: Collective, bytes: f64, ranks: f64, launch: Launch) -> f64 {
        let us = self.kernel(kind, bytes, ranks, kind.wire(ranks) * bytes);
        match launch {
            Launch::Graph => us,
            Launch::Eager => super::overlap(us, self.eager_us + self.base_us),
        }
    }

    #[inline]
    fn latency(&self, ranks: f64) -> f64 {
        let doublings = if ranks > 8.0 {
            (ranks / 8.0).log2()
        } else {
            0.0
        };
        self.rank_us * (ranks.min(8.0) - 2.0 + 3.0 * doublings)
    }

    /// Between the fitted rank counts 2, 4 and 8, linear in 1/ranks.
    #[inline]
    fn us_per_wire_byte(&self, ranks: f64) -> f64 {
        let [two, four, eight] = self.us_per_byte;
        if ranks >= 8.0 {
            eight
        } else if ranks >= 4.0 {
            let t = (0.25 - 1.0 / ranks) / 0.125;
            four + (eight - four) * t
        } else {
            let t = (0.5 - 1.0 / ranks.max(2.0)) / 0.25;
            two + (four - two) * t
        }
    }
}

impl OpCosts<'_> {
    /// A collective, µs. Zero for a single rank or no bytes.
    #[inline]
    pub fn collective(&self, t: &Transfer) -> f64 {
        let ranks = t.span.ranks;
        if ranks <= 1.0 || t.bytes <= 0.0 {
            return 0.0;
        }
        let wire = t.kind.wire(ranks) * t.bytes;
        if self.pcie {
            return self.over_pcie(t, wire);
        }
        if t.span.domains() > 1.0 {
            return self.between_domains(t);
        }
        if t.implementation == Implementation::Peer
            && let Some(own) = self.peer(t.kind)
        {
            return own.launched(t.kind, t.bytes, ranks, t.launch);
        }
        let ring = &self.rings[t.kind.index()];
        let mut us = ring.time(ranks, wire);
        let mut floor_us = ring.eager_us + ring.base_us;
        if t.registration == Registration::Symmetric && t.kind != Collective::AllToAll {
            let own = &self.symmetric[t.kind.index()];
            us = if self.symmetric_measured[t.kind.index()] && !self.multicast {
                own.kernel(t.kind, t.bytes, ranks, wire)
            } else {
                // Neither tables nor samples are of kernels that multicast. A switch that multicasts
                // and reduces moves n + n/R bytes a rank, and how far such kernels
                // lose to the ordinary ones was not measured: the faster of the two.
                let reduces = t.kind == Collective::AllReduce && self.multicast && ranks > 2.0;
                let wire = if reduces {
                    t.bytes * (1.0 + 1.0 / ranks)
                } else {
                    wire
                };
                us.min(own.kernel(t.kind, t.bytes, ranks, wire))
            };
        }
        if t.implementation == Implementation::Custom
            && t.kind == Collective::AllReduce
            && ranks <= 8.0
            && t.bytes <= self.custom_all_reduce.max_bytes
        {
            let c = &self.custom_all_reduce;
            let more = ranks - 2.0;
            let one =
                c.one_shot_us + c.rank_us * more + (ranks - 1.0) * t.bytes * c.us_per_byte_one_shot;
            let two = c.two_shot_us + c.two_shot_rank_us * more + wire * c.us_per_byte_two_shot;
            us = one.min(two);
            floor_us = c.eager_us + c.one_shot_us;
        }
        match t.launch {
            Launch::Graph => us,
            // The host paces an eager launch while the kernel is short.
            Launch::Eager => super::overlap(us, floor_us),
        }
    }

    /// The engine's own gather, or merge, over peer memory.
    #[inline]
    pub(super) fn peer(&self, kind: Collective) -> Option<&RingTerm> {
        match kind {
            Collective::AllGather => self.peer_gather.as_ref(),
            Collective::AllToAll => self.peer_merge.as_ref(),
            Collective::AllReduce | Collective::ReduceScatter => None,
        }
    }

    fn over_pcie(&self, t: &Transfer, wire: f64) -> f64 {
        let n = &self.network;
        let local = n.pcie_us * (1.0 + 0.25 * (t.span.ranks - 2.0)) + wire * n.us_per_byte_pcie;
        if t.span.domains() > 1.0 {
            return local + self.across(t) + self.handed_over(t);
        }
        local
    }

    /// Every GPU has a network card of its own, and all of a domain's carry a part: the bytes that
    /// enter a domain, over its cards. Latency: one hop a domain, twice for a sum that returns.
    #[inline]
    fn across(&self, t: &Transfer) -> f64 {
        let domains = t.span.domains();
        let per_domain = t.span.ranks_per_domain.max(1.0);
        let share = (domains - 1.0) / domains;
        let (bytes, passes) = match t.kind {
            Collective::AllGather | Collective::ReduceScatter => {
                (t.bytes * share / per_domain, 1.0)
            }
            Collective::AllReduce => (2.0 * t.bytes * share / per_domain, 2.0),
            Collective::AllToAll => (t.bytes * share, 1.0),
        };
        let n = &self.network;
        passes * n.hop_us * domains.log2().max(1.0) + bytes * n.us_per_byte_network
    }

    /// Inside the domains, and across them, pipelined against each other.
    #[inline]
    fn between_domains(&self, t: &Transfer) -> f64 {
        let per_domain = t.span.ranks_per_domain.max(1.0);
        let ring = &self.rings[t.kind.index()];
        let inside = if per_domain > 1.0 {
            ring.time(per_domain, t.kind.wire(per_domain) * t.bytes)
        } else {
            ring.base_us
        };
        super::join(inside, self.across(t)) + ring.base_us + self.handed_over(t)
    }

    /// NCCL's network threads are told of a collective by the host. In a captured graph that is a host
    /// node before the kernel (`cudaLaunchHostFunc` in `ncclLaunchPrepare`, src/enqueue.cc, whose comment
    /// says that "host tasks impose a high performance cost in CUDA"); launched one by one it is done
    /// while the launch is prepared.
    #[inline]
    fn handed_over(&self, t: &Transfer) -> f64 {
        match t.launch {
            Launch::Graph => self.network.graph_host_us,
            Launch::Eager => 0.0,
        }
    }

    /// Bytes on the wire over the link bandwidth, µs. For a collective that leaves a domain, its
    /// network part.
    pub fn collective_roofline(&self, t: &Transfer) -> f64 {
        if t.span.ranks <= 1.0 {
            return 0.0;
        }
        let n = &self.network;
        if t.span.domains() > 1.0 {
            let share = (t.span.domains() - 1.0) / t.span.domains();
            let bytes = match t.kind {
                Collective::AllToAll => t.bytes * share,
                _ => t.bytes * share / t.span.ranks_per_domain.max(1.0),
            };
            return bytes * n.us_per_byte_network_peak;
        }
        // A switch that reduces or multicasts moves an all-reduce's bytes once.
        let wire = match t.kind {
            Collective::AllReduce => t.bytes,
            _ => t.kind.wire(t.span.ranks) * t.bytes,
        };
        wire * self.us_per_byte_link
    }
}
