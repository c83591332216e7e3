//! The figures of each class: which formula they belong to, where they start, where they go.

mod price;

use super::fit::Figure;
use crate::cost::Collective;
use parplan_profiles::Overheads;
use parplan_profiles::calibration::{BufferRegistration, Class, CollectiveKind, SyncWay};
use parplan_profiles::efficiency::{
    AllReduceFit, CollectiveFit, DecodeFit, EfficiencyProfile, GemmFit, MoeFit, Note, PrefillFit,
    RingFit,
};

/// The formula of a class with its figures.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Figures {
    /// One figure, whatever the size: a launch, a graph node, a sync.
    Constant {
        us: f64,
    },
    /// `base + bytes / (fraction of the memory bandwidth)`.
    Stream {
        base_us: f64,
        memory: f64,
    },
    Ring(RingFit, Collective),
    /// One half of [`AllReduceFit`]: latency, its growth with ranks, and share of the link.
    Peer {
        base_us: f64,
        rank_us: f64,
        link: f64,
        eager_us: f64,
        passes: Passes,
    },
    /// A product, and where its rows are put into its format by a kernel of their own, what that takes:
    /// microseconds, and share of the memory bandwidth.
    Gemm(GemmFit, Option<(f64, f64)>),
    Moe(MoeFit),
    DecodeGqa(DecodeFit),
    DecodeMla(DecodeFit),
    PrefillGqa(PrefillFit),
}

/// How many times a peer kernel moves its bytes, of R ranks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Passes {
    /// Every rank reads the whole of all others: R − 1.
    OneShot,
    /// Reduce-scatter and all-gather: 2 (R − 1) / R.
    TwoShot,
    /// All-gather: (R − 1) / R.
    Gather,
}

/// Deviation (of the logarithm) of a figure that tables support on this architecture, of one that was
/// carried over from another class, and of one that is only guessed (other architectures, the CPU).
const TABLED: f64 = 0.35;
const CARRIED: f64 = 0.8;
const GUESSED: f64 = 2.5;

/// A time below this was left out of an earlier fit, microseconds.
const LEFT_OUT: f64 = 1e-4;

/// The collective that the planner prices.
pub(super) fn collective(kind: CollectiveKind) -> Collective {
    match kind {
        CollectiveKind::AllGather => Collective::AllGather,
        CollectiveKind::ReduceScatter => Collective::ReduceScatter,
        CollectiveKind::AllReduce => Collective::AllReduce,
        CollectiveKind::AllToAll => Collective::AllToAll,
    }
}

impl Figures {
    /// The figures of a class before it is measured; none for classes that are only recorded.
    pub fn before(
        class: Class,
        efficiency: &EfficiencyProfile,
        overheads: &Overheads,
    ) -> Option<Figures> {
        let c = &efficiency.collective;
        let custom = &c.custom_all_reduce;
        Some(match class {
            Class::Collective(kind, registration) => {
                Figures::Ring(ring(c, kind, registration)?.clone(), collective(kind))
            }
            Class::PeerOneShot => Figures::Peer {
                base_us: custom.one_shot_us,
                rank_us: custom.rank_us,
                link: custom.one_shot_link,
                eager_us: custom.eager_us,
                passes: Passes::OneShot,
            },
            Class::PeerTwoShot => Figures::Peer {
                base_us: custom.two_shot_us,
                rank_us: custom.two_shot_rank_us(),
                link: custom.two_shot_link,
                eager_us: custom.eager_us,
                passes: Passes::TwoShot,
            },
            Class::PeerAllGather => Figures::Peer {
                base_us: custom.one_shot_us,
                rank_us: custom.rank_us,
                link: custom.one_shot_link,
                eager_us: custom.eager_us,
                passes: Passes::Gather,
            },
            Class::PeerGather => {
                Figures::Ring(peer_before(&c.peer_gather, custom), Collective::AllGather)
            }
            Class::PeerMerge => {
                Figures::Ring(peer_before(&c.peer_merge, custom), Collective::AllToAll)
            }
            Class::Sync(SyncWay::HostTcp) => Figures::Constant {
                us: overheads.sync.host_us,
            },
            Class::Sync(_) => Figures::Constant {
                us: overheads.sync.device_us,
            },
            Class::Launch => Figures::Constant {
                us: efficiency.elementwise.kernel_us,
            },
            Class::GraphNode => Figures::Constant {
                us: efficiency.elementwise.kernel_us,
            },
            Class::MemoryRead | Class::MemoryCopy => Figures::Stream {
                base_us: efficiency.elementwise.kernel_us,
                memory: efficiency.elementwise.memory,
            },
            Class::Gemm(dtype) => {
                let fit = efficiency.gemm.get(&dtype)?.clone();
                let small = &efficiency.elementwise;
                let kernel = (small.kernel_us, small.memory);
                Figures::Gemm(fit.clone(), fit.separate_quantise.then_some(kernel))
            }
            Class::Experts(dtype) => Figures::Moe(efficiency.moe.get(&dtype)?.clone()),
            Class::DecodeGqa(dtype) => {
                Figures::DecodeGqa(efficiency.decode_gqa.get(&dtype)?.clone())
            }
            Class::DecodeMla(dtype) => {
                Figures::DecodeMla(efficiency.decode_mla.get(&dtype)?.clone())
            }
            Class::PrefillGqa(dtype) => {
                Figures::PrefillGqa(efficiency.prefill_gqa.get(&dtype)?.clone())
            }
            Class::GraphMemory | Class::UsableMemory => return None,
        })
    }

    /// What the figures rested on before.
    pub fn source(class: Class, efficiency: &EfficiencyProfile, overheads: &Overheads) -> String {
        let c = &efficiency.collective;
        let note: Option<&Note> = match class {
            Class::Collective(kind, registration) => {
                ring(c, kind, registration).map(|fit| &fit.note)
            }
            Class::PeerOneShot | Class::PeerTwoShot | Class::PeerAllGather => {
                Some(&c.custom_all_reduce.note)
            }
            Class::PeerGather => c.peer_gather.as_ref().map(|fit| &fit.note),
            Class::PeerMerge => c.peer_merge.as_ref().map(|fit| &fit.note),
            Class::Sync(_) => return overheads.sync.source.clone(),
            Class::Gemm(d) => efficiency.gemm.get(&d).map(|fit| &fit.note),
            Class::Experts(d) => efficiency.moe.get(&d).map(|fit| &fit.note),
            Class::DecodeGqa(d) => efficiency.decode_gqa.get(&d).map(|fit| &fit.note),
            Class::DecodeMla(d) => efficiency.decode_mla.get(&d).map(|fit| &fit.note),
            Class::PrefillGqa(d) => efficiency.prefill_gqa.get(&d).map(|fit| &fit.note),
            Class::Launch
            | Class::GraphNode
            | Class::MemoryRead
            | Class::MemoryCopy
            | Class::GraphMemory
            | Class::UsableMemory => Some(&efficiency.elementwise.note),
        };
        note.map_or_else(String::new, |note| note.source.clone())
    }

    /// The figures by name, where they start, and how far they may be off.
    pub fn list(&self) -> Vec<Figure> {
        let mut own = self.clone();
        let slots = own.slots();
        slots.iter().map(Slot::figure).collect()
    }

    /// The same formula with other figures, in the order of [`Figures::list`] and as many.
    pub fn with(&self, values: &[f64]) -> Figures {
        let mut out = self.clone();
        for (slot, value) in out.slots().into_iter().zip(values) {
            *slot.value = value.min(slot.kind.most());
        }
        out
    }

    /// The figures that a fit may move.
    fn slots(&mut self) -> Vec<Slot<'_>> {
        match self {
            Figures::Constant { us } => vec![time("us", us, GUESSED)],
            Figures::Stream { base_us, memory } => vec![
                time("base_us", base_us, 1.5),
                part("memory", memory, GUESSED),
            ],
            Figures::Ring(fit, _) => {
                let w = width(&fit.note);
                let [two, four, eight] = &mut fit.link;
                let mut all = vec![
                    time("base_us", &mut fit.base_us, w),
                    time("rank_us", &mut fit.rank_us, w),
                    time("ramp_us", &mut fit.ramp_us, w.max(0.6)),
                    link("link_2", two, w),
                    link("link_4", four, w),
                    link("link_8", eight, w),
                    time("eager_us", &mut fit.eager_us, w.max(0.8)),
                ];
                if let Some(low) = &mut fit.low_latency {
                    all.extend([
                        time("low_latency_base_us", &mut low.base_us, w),
                        time("low_latency_rank_us", &mut low.rank_us, w),
                        time("low_latency_ramp_us", &mut low.ramp_us, w.max(0.6)),
                        part("low_latency_link", &mut low.link, w.max(0.6)),
                    ]);
                }
                all
            }
            Figures::Peer {
                base_us,
                rank_us,
                link,
                eager_us,
                ..
            } => vec![
                time("base_us", base_us, 1.0),
                time("rank_us", rank_us, 1.0),
                part("link", link, 1.0),
                time("eager_us", eager_us, 1.5),
            ],
            Figures::Gemm(fit, _) => {
                let w = width(&fit.note);
                vec![
                    time("base_us", &mut fit.base_us, w.max(0.6)),
                    time("depth_us", &mut fit.depth_us, w.max(0.6)),
                    time("depth_tile_us", &mut fit.depth_tile_us, w.max(0.6)),
                    part("memory", &mut fit.memory, w),
                    part("compute", &mut fit.compute, w),
                    time("output_passes", &mut fit.output_passes, w.max(0.6)),
                ]
            }
            Figures::Moe(fit) => {
                let w = width(&fit.note);
                let passes = &mut fit.intermediate_passes;
                vec![
                    time("base_us", &mut fit.base_us, w.max(0.8)),
                    time("expert_us", &mut fit.expert_us, w.max(0.8)),
                    part("memory", &mut fit.memory, w),
                    part("compute", &mut fit.compute, w),
                    time("pad_rows", &mut fit.pad_rows, w.max(0.8)),
                    time("hidden_passes", &mut fit.hidden_passes, w.max(0.8)),
                    time("intermediate_passes", passes, w.max(0.8)),
                ]
            }
            Figures::DecodeGqa(fit) | Figures::DecodeMla(fit) => {
                let w = width(&fit.note);
                vec![
                    time("base_us", &mut fit.base_us, w.max(0.8)),
                    time("item_us", &mut fit.item_us, w.max(0.8)),
                    time("split_us", &mut fit.split_us, w.max(0.8)),
                    part("memory", &mut fit.memory, w),
                    part("compute", &mut fit.compute, w),
                ]
            }
            Figures::PrefillGqa(fit) => {
                let w = width(&fit.note);
                vec![
                    time("base_us", &mut fit.base_us, w.max(0.8)),
                    time("item_us", &mut fit.item_us, w.max(0.8)),
                    time("depth_us", &mut fit.depth_us, w.max(0.8)),
                    part("compute", &mut fit.compute, w),
                ]
            }
        }
    }
}

/// One figure of a formula: its place there, and how far it may be off.
struct Slot<'f> {
    name: &'static str,
    value: &'f mut f64,
    width: f64,
    kind: Kind,
}

/// What a figure is.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// A time or a count of passes or rows.
    Time,
    /// A share of a peak, which ends at the peak.
    Part,
    /// A share of a link's rate in one direction; NVLS moves up to twice that.
    Link,
}

impl Kind {
    fn most(self) -> f64 {
        match self {
            Kind::Time => f64::INFINITY,
            Kind::Part => 1.0,
            Kind::Link => 2.0,
        }
    }
}

impl Slot<'_> {
    fn figure(&self) -> Figure {
        let (start, width) = match self.kind {
            // One that is 0 was left out by an earlier fit, of other kernels: it begins small, and may
            // be anything.
            Kind::Time if *self.value < LEFT_OUT => (0.1, self.width.max(GUESSED)),
            Kind::Time => (self.value.max(0.01), self.width),
            Kind::Part | Kind::Link => (*self.value, self.width),
        };
        Figure {
            name: self.name,
            start,
            width,
        }
    }
}

fn time<'f>(name: &'static str, value: &'f mut f64, width: f64) -> Slot<'f> {
    let kind = Kind::Time;
    Slot {
        name,
        value,
        width,
        kind,
    }
}

fn part<'f>(name: &'static str, value: &'f mut f64, width: f64) -> Slot<'f> {
    let kind = Kind::Part;
    Slot {
        name,
        value,
        width,
        kind,
    }
}

fn link<'f>(name: &'static str, value: &'f mut f64, width: f64) -> Slot<'f> {
    let kind = Kind::Link;
    Slot {
        name,
        value,
        width,
        kind,
    }
}

/// The figures of a collective of NCCL; none for an all-to-all of symmetric buffers.
fn ring(
    c: &CollectiveFit,
    kind: CollectiveKind,
    registration: BufferRegistration,
) -> Option<&RingFit> {
    Some(match (kind, registration) {
        (CollectiveKind::AllGather, BufferRegistration::Symmetric) => {
            c.symmetric_all_gather.as_ref().unwrap_or(&c.symmetric)
        }
        (CollectiveKind::ReduceScatter, BufferRegistration::Symmetric) => {
            c.symmetric_reduce_scatter.as_ref().unwrap_or(&c.symmetric)
        }
        (CollectiveKind::AllReduce, BufferRegistration::Symmetric) => {
            c.symmetric_all_reduce.as_ref().unwrap_or(&c.symmetric)
        }
        (CollectiveKind::AllToAll, BufferRegistration::Symmetric) => return None,
        (CollectiveKind::AllGather, _) => &c.all_gather,
        (CollectiveKind::ReduceScatter, _) => &c.reduce_scatter,
        (CollectiveKind::AllReduce, _) => &c.all_reduce,
        (CollectiveKind::AllToAll, _) => &c.all_to_all,
    })
}

/// An exchange over peer memory before it is measured: what it was, or the latency of the one-shot
/// all-reduce at half of the link.
fn peer_before(own: &Option<RingFit>, custom: &AllReduceFit) -> RingFit {
    own.clone().unwrap_or_else(|| RingFit {
        base_us: custom.one_shot_us,
        rank_us: custom.rank_us,
        ramp_us: 1.0,
        link: [0.5; 3],
        eager_us: custom.eager_us,
        low_latency: None,
        note: Note {
            sigma: 0.7,
            samples: 0,
            source: "guessed from the one-shot all-reduce".to_owned(),
            carried: None,
            here: false,
        },
    })
}

/// How far the figures of a class may be off before it is measured.
fn width(note: &Note) -> f64 {
    if note.source.contains("spec sheet") || note.sigma >= 0.4 {
        GUESSED
    } else if note.samples == 0 {
        CARRIED
    } else {
        TABLED
    }
}

/// One half of the engine's own all-reduce, put in its place.
pub(super) fn store_peer(fit: &mut AllReduceFit, figures: &Figures, note: Note) {
    if let Figures::Peer {
        base_us,
        rank_us,
        link,
        eager_us,
        passes,
    } = figures
    {
        match passes {
            Passes::OneShot => {
                // The other half keeps what it had.
                fit.two_shot_rank_us = Some(fit.two_shot_rank_us());
                fit.rank_us = *rank_us;
                (fit.one_shot_us, fit.one_shot_link) = (*base_us, *link);
            }
            Passes::TwoShot => {
                fit.two_shot_rank_us = Some(*rank_us);
                (fit.two_shot_us, fit.two_shot_link) = (*base_us, *link);
            }
            Passes::Gather => return,
        }
        fit.eager_us = *eager_us;
        fit.note = note;
    }
}
