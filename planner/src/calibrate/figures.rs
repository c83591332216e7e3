//! The figures of each class: which formula they belong to, where they start, where they go.

mod price;

use super::fit::Figure;
use crate::cost::Collective;
use parplan_profiles::Overheads;
use parplan_profiles::calibration::{BufferRegistration, Class, CollectiveKind, SyncWay};
use parplan_profiles::efficiency::{
    AllReduceFit, DecodeFit, EfficiencyProfile, GemmFit, LowLatencyFit, MoeFit, Note, PrefillFit,
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
            Class::Collective(kind, BufferRegistration::Symmetric) => {
                let own = match kind {
                    CollectiveKind::AllGather => &c.symmetric_all_gather,
                    CollectiveKind::ReduceScatter => &c.symmetric_reduce_scatter,
                    CollectiveKind::AllReduce => &c.symmetric_all_reduce,
                    CollectiveKind::AllToAll => return None,
                };
                let fit = own.as_ref().unwrap_or(&c.symmetric);
                Figures::Ring(fit.clone(), collective(kind))
            }
            Class::Collective(kind, _) => {
                let fit = match kind {
                    CollectiveKind::AllGather => &c.all_gather,
                    CollectiveKind::ReduceScatter => &c.reduce_scatter,
                    CollectiveKind::AllReduce => &c.all_reduce,
                    CollectiveKind::AllToAll => &c.all_to_all,
                };
                Figures::Ring(fit.clone(), collective(kind))
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
        let note: &Note = match class {
            Class::Collective(kind, BufferRegistration::Symmetric) => {
                let own = match kind {
                    CollectiveKind::AllGather => &c.symmetric_all_gather,
                    CollectiveKind::ReduceScatter => &c.symmetric_reduce_scatter,
                    _ => &c.symmetric_all_reduce,
                };
                &own.as_ref().unwrap_or(&c.symmetric).note
            }
            Class::Collective(CollectiveKind::AllGather, _) => &c.all_gather.note,
            Class::Collective(CollectiveKind::ReduceScatter, _) => &c.reduce_scatter.note,
            Class::Collective(CollectiveKind::AllReduce, _) => &c.all_reduce.note,
            Class::Collective(CollectiveKind::AllToAll, _) => &c.all_to_all.note,
            Class::PeerOneShot | Class::PeerTwoShot | Class::PeerAllGather => {
                &c.custom_all_reduce.note
            }
            Class::PeerGather | Class::PeerMerge => {
                let own = match class {
                    Class::PeerGather => &c.peer_gather,
                    _ => &c.peer_merge,
                };
                match own {
                    Some(fit) => &fit.note,
                    None => return String::new(),
                }
            }
            Class::Sync(_) => return overheads.sync.source.clone(),
            Class::Gemm(d) => match efficiency.gemm.get(&d) {
                Some(fit) => &fit.note,
                None => return String::new(),
            },
            Class::Experts(d) => match efficiency.moe.get(&d) {
                Some(fit) => &fit.note,
                None => return String::new(),
            },
            Class::DecodeGqa(d) => match efficiency.decode_gqa.get(&d) {
                Some(fit) => &fit.note,
                None => return String::new(),
            },
            Class::DecodeMla(d) => match efficiency.decode_mla.get(&d) {
                Some(fit) => &fit.note,
                None => return String::new(),
            },
            Class::PrefillGqa(d) => match efficiency.prefill_gqa.get(&d) {
                Some(fit) => &fit.note,
                None => return String::new(),
            },
            _ => &efficiency.elementwise.note,
        };
        note.source.clone()
    }

    /// The figures by name, where they start, and how far they may be off.
    pub fn list(&self) -> Vec<Figure> {
        let at = |name, start: f64, width| Figure { name, start, width };
        // A figure that is 0 was left out by an earlier fit, of other kernels: it begins small, and
        // may be anything.
        let time = |name, us: f64, width: f64| {
            if us < LEFT_OUT {
                at(name, 0.1, width.max(GUESSED))
            } else {
                at(name, us.max(0.01), width)
            }
        };
        match self {
            Figures::Constant { us } => vec![time("us", *us, GUESSED)],
            Figures::Stream { base_us, memory } => vec![
                time("base_us", *base_us, 1.5),
                at("memory", *memory, GUESSED),
            ],
            Figures::Ring(fit, _) => {
                let w = width(&fit.note);
                let mut all = vec![
                    time("base_us", fit.base_us, w),
                    time("rank_us", fit.rank_us, w),
                    time("ramp_us", fit.ramp_us, w.max(0.6)),
                    at("link_2", fit.link[0], w),
                    at("link_4", fit.link[1], w),
                    at("link_8", fit.link[2], w),
                    time("eager_us", fit.eager_us, w.max(0.8)),
                ];
                if let Some(low) = &fit.low_latency {
                    all.extend([
                        time("low_latency_base_us", low.base_us, w),
                        time("low_latency_rank_us", low.rank_us, w),
                        time("low_latency_ramp_us", low.ramp_us, w.max(0.6)),
                        at("low_latency_link", low.link, w.max(0.6)),
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
                time("base_us", *base_us, 1.0),
                time("rank_us", *rank_us, 1.0),
                at("link", *link, 1.0),
                time("eager_us", *eager_us, 1.5),
            ],
            Figures::Gemm(fit, _) => {
                let w = width(&fit.note);
                vec![
                    time("base_us", fit.base_us, w.max(0.6)),
                    time("depth_us", fit.depth_us, w.max(0.6)),
                    time("depth_tile_us", fit.depth_tile_us, w.max(0.6)),
                    at("memory", fit.memory, w),
                    at("compute", fit.compute, w),
                    time("output_passes", fit.output_passes, w.max(0.6)),
                ]
            }
            Figures::Moe(fit) => {
                let w = width(&fit.note);
                vec![
                    time("base_us", fit.base_us, w.max(0.8)),
                    time("expert_us", fit.expert_us, w.max(0.8)),
                    at("memory", fit.memory, w),
                    at("compute", fit.compute, w),
                    time("pad_rows", fit.pad_rows, w.max(0.8)),
                    time("hidden_passes", fit.hidden_passes, w.max(0.8)),
                    time("intermediate_passes", fit.intermediate_passes, w.max(0.8)),
                ]
            }
            Figures::DecodeGqa(fit) | Figures::DecodeMla(fit) => {
                let w = width(&fit.note);
                vec![
                    time("base_us", fit.base_us, w.max(0.8)),
                    time("item_us", fit.item_us, w.max(0.8)),
                    time("split_us", fit.split_us, w.max(0.8)),
                    at("memory", fit.memory, w),
                    at("compute", fit.compute, w),
                ]
            }
            Figures::PrefillGqa(fit) => {
                let w = width(&fit.note);
                vec![
                    time("base_us", fit.base_us, w.max(0.8)),
                    time("item_us", fit.item_us, w.max(0.8)),
                    time("depth_us", fit.depth_us, w.max(0.8)),
                    at("compute", fit.compute, w),
                ]
            }
        }
    }

    /// The same formula with other figures, in the order of [`Figures::list`]. Fractions of a peak
    /// end at the peak.
    pub fn with(&self, p: &[f64]) -> Figures {
        let part = |x: f64| x.min(1.0);
        let share = |x: f64| x.min(2.0);
        match (self, p) {
            (Figures::Constant { .. }, &[us]) => Figures::Constant { us },
            (Figures::Stream { .. }, &[base_us, memory]) => Figures::Stream {
                base_us,
                memory: part(memory),
            },
            (
                Figures::Ring(fit, kind),
                &[
                    base_us,
                    rank_us,
                    ramp_us,
                    two,
                    four,
                    eight,
                    eager_us,
                    ref low @ ..,
                ],
            ) => Figures::Ring(
                RingFit {
                    base_us,
                    rank_us,
                    ramp_us,
                    link: [share(two), share(four), share(eight)],
                    eager_us,
                    low_latency: match *low {
                        [base_us, rank_us, ramp_us, link] => Some(LowLatencyFit {
                            base_us,
                            rank_us,
                            ramp_us,
                            link: part(link),
                        }),
                        _ => fit.low_latency,
                    },
                    ..fit.clone()
                },
                *kind,
            ),
            (Figures::Peer { passes, .. }, &[base_us, rank_us, link, eager_us]) => Figures::Peer {
                base_us,
                rank_us,
                link: part(link),
                eager_us,
                passes: *passes,
            },
            (
                Figures::Gemm(fit, quantise),
                &[
                    base_us,
                    depth_us,
                    depth_tile_us,
                    memory,
                    compute,
                    output_passes,
                ],
            ) => Figures::Gemm(
                GemmFit {
                    base_us,
                    depth_us,
                    depth_tile_us,
                    memory: part(memory),
                    compute: part(compute),
                    output_passes,
                    ..fit.clone()
                },
                *quantise,
            ),
            (
                Figures::Moe(fit),
                &[
                    base_us,
                    expert_us,
                    memory,
                    compute,
                    pad_rows,
                    hidden_passes,
                    intermediate_passes,
                ],
            ) => Figures::Moe(MoeFit {
                base_us,
                expert_us,
                memory: part(memory),
                compute: part(compute),
                pad_rows,
                hidden_passes,
                intermediate_passes,
                ..fit.clone()
            }),
            (Figures::DecodeGqa(fit), &[base_us, item_us, split_us, memory, compute]) => {
                Figures::DecodeGqa(decode(fit, [base_us, item_us, split_us, memory, compute]))
            }
            (Figures::DecodeMla(fit), &[base_us, item_us, split_us, memory, compute]) => {
                Figures::DecodeMla(decode(fit, [base_us, item_us, split_us, memory, compute]))
            }
            (Figures::PrefillGqa(fit), &[base_us, item_us, depth_us, compute]) => {
                Figures::PrefillGqa(PrefillFit {
                    base_us,
                    item_us,
                    depth_us,
                    compute: part(compute),
                    ..fit.clone()
                })
            }
            // Lists are as long as `list` made them.
            _ => self.clone(),
        }
    }
}

fn decode(fit: &DecodeFit, [base_us, item_us, split_us, memory, compute]: [f64; 5]) -> DecodeFit {
    DecodeFit {
        base_us,
        item_us,
        split_us,
        memory: memory.min(1.0),
        compute: compute.min(1.0),
        ..fit.clone()
    }
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
