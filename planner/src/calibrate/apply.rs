//! Calibrations at work: figures that were measured take the place of tables, class by class.
//!
//! A sample names the implementation that it timed. NCCL is NCCL under every engine, and so is
//! cuBLASLt's bf16 product; parplan's own kernels price only engines that run them. For the others a
//! measurement says how this machine's memory, tensor cores and links compare with the machines of
//! the tables, and their figures are scaled by that.

use super::figures::{Figures, store_peer};
use super::operation;
use super::terms::machine;
use crate::memory;
use crate::step::launches;
use parplan_profiles::calibration::{
    BufferRegistration, Calibration, Class, CollectiveKind, Probe, SyncWay, Term,
};
use parplan_profiles::efficiency::{Carried, Note, RingFit};
use parplan_profiles::{Dtype, EfficiencyProfile, GpuProfile, Overheads};

/// Where a calibration comes from; later ones take precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Part of parplan.
    Shipped,
    /// Measured by the user.
    User,
}

/// A calibration with its origin.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// What was measured.
    pub calibration: &'a Calibration,
    /// By whom.
    pub origin: Origin,
}

/// Prices after calibration.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibrated {
    /// The GPU, its peaks raised where samples passed them.
    pub gpu: GpuProfile,
    /// Figures of operations.
    pub efficiency: EfficiencyProfile,
    /// What the engine adds.
    pub overheads: Overheads,
    /// What was used of which calibration, in words.
    pub used: Vec<String>,
}

/// Streaming reads of a good H200 over its spec sheet: 4.63 of 4.8 TB/s (docs/costs.md). Tables were
/// measured on such machines, so a machine that reads slower runs their memory-bound kernels slower.
const USUAL_READ: f64 = 0.965;

/// Spread of NCCL's times at 4 and 8 ranks between two machines of one architecture whose tables were
/// both measured: standard deviation of ln(H100 / H200) over 504 rows of comm/nccl 2.29.2.
pub(super) const OTHER_RANKS: f64 = 0.08;

/// A link that is off by more than this factor at the measured ranks is off at all ranks: a property of
/// the links. Smaller deviations belong to the measured rank count: between the same two tables those
/// at 2 ranks correlate with those at 4 and 8 by 0.16 and 0.06.
const OF_THE_LINK: f64 = 1.25;

/// Spread between neighbouring NCCL versions: the median error of the 2.29.2 table's figures on
/// samples of 2.28.3 on 2 H200 (docs/calibration.md).
const OTHER_VERSION: f64 = 0.08;

/// Rounds of batch shapes on the machine whose PyTorch figures are the default (2 H200): the same
/// exchange by parplan, microseconds. Their ratio scales what engines pay.
const USUAL_HOST_SYNC_US: f64 = 7.5;
const USUAL_DEVICE_SYNC_US: f64 = 25.0;

/// Least spread of a class's price inside a step: timed alone, an operation finds caches and clocks that
/// a layer does not give it. The median error of whole decode steps on H200, whose gaps between kernels
/// are priced apart (docs/calibration.md).
pub(super) const IN_COMPANY: f64 = 0.03;

/// Spread of small kernels around the one that stands for them.
const OTHER_KERNELS: f64 = 0.3;

const MIB: f64 = 1024.0 * 1024.0;

/// Whose code a term timed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Nccl,
    CublasLt,
    Own,
}

impl Owner {
    fn of(term: &Term) -> Owner {
        if term.implementation.starts_with("nccl") {
            Owner::Nccl
        } else if term.implementation.starts_with("cublaslt") {
            Owner::CublasLt
        } else {
            Owner::Own
        }
    }
}

/// Lets `layers` price operations. `own_kernels` says that the engine runs parplan's own kernels.
pub fn apply(
    own_kernels: bool,
    gpu: &GpuProfile,
    efficiency: &EfficiencyProfile,
    overheads: &Overheads,
    layers: &[Layer<'_>],
) -> Calibrated {
    let mut layers: Vec<&Layer<'_>> = layers.iter().collect();
    // Oldest first within an origin, so that the newest has the last word.
    layers.sort_by(|a, b| {
        let date = |l: &Layer<'_>| l.calibration.provenance.date.clone();
        a.origin.cmp(&b.origin).then(date(a).cmp(&date(b)))
    });
    let mut out = Calibrated {
        gpu: gpu.clone(),
        efficiency: efficiency.clone(),
        overheads: overheads.clone(),
        used: Vec::new(),
    };
    if own_kernels {
        // parplan's executor makes no multicast objects, as when it measured.
        out.gpu.link.multicast = false;
    }
    let mut taken: Vec<Taken<'_>> = Vec::new();
    for layer in layers {
        out.gpu = machine(&out.gpu, &layer.calibration.samples);
        let mut words = Vec::new();
        if own_kernels {
            words.extend(out.remember(layer.calibration));
        }
        if !own_kernels && layer.origin == Origin::User {
            words.extend(out.rescale(layer.calibration));
        }
        let mut terms = Vec::new();
        for term in &layer.calibration.terms {
            if out.take(own_kernels, layer, term) {
                terms.push(term);
            }
        }
        for earlier in &mut taken {
            earlier
                .terms
                .retain(|old| !terms.iter().any(|new| replaces(new, old)));
        }
        taken.push(Taken {
            layer,
            words,
            terms,
        });
    }
    out.used = taken.into_iter().filter_map(Taken::said).collect();
    out
}

/// What a calibration gave.
struct Taken<'a> {
    layer: &'a Layer<'a>,
    /// Beside its terms.
    words: Vec<String>,
    /// Those that price something still.
    terms: Vec<&'a Term>,
}

/// Nothing of `old` is left: what was measured at other rank counts stays beside the new.
fn replaces(new: &Term, old: &Term) -> bool {
    new.class == old.class && old.ranks.iter().all(|ranks| new.ranks.contains(ranks))
}

impl Taken<'_> {
    fn said(self) -> Option<String> {
        let calibration = self.layer.calibration;
        let mut all = self.words;
        all.extend(self.terms.iter().map(|term| term.class.to_string()));
        (!all.is_empty()).then(|| {
            format!(
                "{} {}, measured {} on {}: {}",
                name(self.layer.origin),
                calibration.name,
                day(&calibration.provenance.date),
                calibration.provenance.device,
                all.join(", ")
            )
        })
    }
}

/// What a calibration is called where a figure names it.
fn name(origin: Origin) -> &'static str {
    match origin {
        Origin::Shipped => "shipped calibration",
        Origin::User => "your calibration",
    }
}

/// The day of a date.
fn day(date: &str) -> &str {
    date.split('T').next().unwrap_or(date)
}

impl Calibrated {
    /// Puts one term in its place; false where it prices nothing here.
    fn take(&mut self, own_kernels: bool, layer: &Layer<'_>, term: &Term) -> bool {
        let owner = Owner::of(term);
        let shared = match term.class {
            Class::Collective(..) => owner == Owner::Nccl,
            Class::Gemm(dtype) => owner == Owner::CublasLt && dtype == Dtype::Bf16,
            Class::GraphNode => true,
            _ => false,
        };
        if !own_kernels && !shared {
            return false;
        }
        let Some(before) = Figures::before(term.class, &self.efficiency, &self.overheads) else {
            return false;
        };
        // One that lacks a figure was fitted with another formula: its others mean something else.
        let values: Option<Vec<f64>> = before
            .list()
            .iter()
            .map(|figure| term.parameter(figure.name))
            .collect();
        let Some(values) = values else {
            return false;
        };
        let mut sigma = term.leave_one_out.sigma.max(match term.class {
            Class::GraphNode | Class::Launch => OTHER_KERNELS,
            _ => IN_COMPANY,
        });
        if !own_kernels && owner == Owner::Nccl {
            sigma = sigma.hypot(OTHER_VERSION);
        }
        let source = format!(
            "{} {} ({}, {} sample{}, leave-one-out error {:.1} %)",
            name(layer.origin),
            layer.calibration.name,
            term.implementation,
            term.samples,
            if term.samples == 1 { "" } else { "s" },
            term.leave_one_out.median * 100.0
        );
        let note = Note {
            sigma: sigma.min(2.9),
            samples: term.samples,
            source,
            carried: None,
            here: layer.origin == Origin::User,
        };
        let no_graphs = layer.calibration.term(Class::GraphNode).is_none();
        self.store(term, &before, before.with(&values), note, no_graphs)
    }

    fn store(
        &mut self,
        term: &Term,
        before: &Figures,
        after: Figures,
        mut note: Note,
        no_graphs: bool,
    ) -> bool {
        let c = &mut self.efficiency.collective;
        match (term.class, after) {
            (Class::Collective(kind, registration), Figures::Ring(fit, _)) => {
                let Figures::Ring(old, _) = before else {
                    return false;
                };
                let fit = other_ranks(old, fit, &term.ranks, &mut note);
                let slot = match (kind, registration) {
                    // Buffers that are registered but not symmetric are nobody's rule.
                    (_, BufferRegistration::Local) => return false,
                    (CollectiveKind::AllGather, BufferRegistration::None) => &mut c.all_gather,
                    (CollectiveKind::ReduceScatter, BufferRegistration::None) => {
                        &mut c.reduce_scatter
                    }
                    (CollectiveKind::AllReduce, BufferRegistration::None) => &mut c.all_reduce,
                    (CollectiveKind::AllToAll, _) => &mut c.all_to_all,
                    (CollectiveKind::AllGather, _) => c.symmetric_all_gather.insert(fit.clone()),
                    (CollectiveKind::ReduceScatter, _) => {
                        c.symmetric_reduce_scatter.insert(fit.clone())
                    }
                    (CollectiveKind::AllReduce, _) => c.symmetric_all_reduce.insert(fit.clone()),
                };
                *slot = RingFit { note, ..fit };
            }
            (Class::PeerGather | Class::PeerMerge, Figures::Ring(fit, _)) => {
                let Figures::Ring(old, _) = before else {
                    return false;
                };
                let fit = other_ranks(old, fit, &term.ranks, &mut note);
                let slot = match term.class {
                    Class::PeerGather => &mut c.peer_gather,
                    _ => &mut c.peer_merge,
                };
                *slot = Some(RingFit { note, ..fit });
            }
            (Class::PeerOneShot | Class::PeerTwoShot, after @ Figures::Peer { .. }) => {
                note.carried = Some(Carried {
                    ranks: term.ranks.clone(),
                    sigma: OTHER_RANKS,
                });
                store_peer(&mut c.custom_all_reduce, &after, note);
            }
            (Class::Sync(way), Figures::Constant { us }) => {
                let sync = &mut self.overheads.sync;
                match way {
                    SyncWay::HostTcp => sync.host_us = us,
                    SyncWay::DeviceAllReduce => sync.device_us = us,
                    // The faster of the two device ways is a choice that engines have not made.
                    SyncWay::DeviceAllGather => return false,
                }
                sync.sigma = note.sigma;
                sync.source = note.source;
            }
            (Class::Launch, Figures::Constant { us }) => {
                self.overheads.eager_layer_us = us * launches::DENSE_LAYER;
                if no_graphs {
                    // Without graphs a small kernel costs what its launch does.
                    self.efficiency.elementwise.kernel_us = us;
                    self.efficiency.elementwise.note = note;
                }
            }
            (Class::GraphNode, Figures::Constant { us }) => {
                self.efficiency.elementwise.kernel_us = us;
                self.efficiency.elementwise.note = note;
            }
            (Class::MemoryCopy, Figures::Stream { memory, .. }) => {
                self.efficiency.elementwise.memory = memory;
                self.efficiency.elementwise.note = note;
            }
            (Class::Gemm(dtype), Figures::Gemm(mut fit, _)) => {
                fit.note = note;
                for format in operation::runs(dtype) {
                    self.efficiency.gemm.insert(format, fit.clone());
                }
            }
            (Class::Experts(dtype), Figures::Moe(mut fit)) => {
                fit.note = note;
                for format in operation::runs(dtype) {
                    self.efficiency.moe.insert(format, fit.clone());
                    self.efficiency.moe_alternative.remove(&format);
                }
            }
            (Class::DecodeGqa(dtype), Figures::DecodeGqa(mut fit)) => {
                fit.note = note;
                self.efficiency.decode_gqa.insert(dtype, fit);
            }
            (Class::DecodeMla(dtype), Figures::DecodeMla(mut fit)) => {
                fit.note = note;
                self.efficiency.decode_mla.insert(dtype, fit);
            }
            (Class::PrefillGqa(dtype), Figures::PrefillGqa(mut fit)) => {
                fit.note = note;
                self.efficiency.prefill_gqa.insert(dtype, fit);
            }
            _ => return false,
        }
        true
    }

    /// Takes over what was recorded of memory: what a process of parplan holds before it loads anything,
    /// so that as much stays usable as did here, and what a captured graph keeps. Other engines' processes
    /// hold more, by their own logs.
    fn remember(&mut self, calibration: &Calibration) -> Vec<String> {
        let mut said = Vec::new();
        for sample in &calibration.samples {
            match sample.experiment.probe {
                Probe::UsableMemory => {
                    let card = self.gpu.memory_mib as f64 * MIB;
                    let ranks = f64::from(calibration.provenance.count);
                    let held = (card - sample.value - memory::communicators(ranks)) / MIB;
                    self.gpu.context_mib = Some(held.clamp(0.0, f64::from(u32::MAX)).ceil() as u32);
                    said.push("usable_memory".to_owned());
                }
                Probe::GraphMemory { nodes } if nodes > 0 => {
                    self.overheads.graph_node_bytes = Some(sample.value / f64::from(nodes));
                    said.push("graph_memory".to_owned());
                }
                _ => {}
            }
        }
        said
    }

    /// Scales an engine's own kernels by how this machine compares with those of the tables, and says
    /// which ratios were used.
    fn rescale(&mut self, calibration: &Calibration) -> Vec<String> {
        let mut said = Vec::new();
        let read = reads(calibration, &self.gpu).map(|share| share / USUAL_READ);
        if let Some(ratio) = read {
            said.push(format!("memory rate x{ratio:.3} of the tables' machines"));
            self.scale_memory(ratio);
        }
        let tensor = calibration
            .term(Class::Gemm(Dtype::Bf16))
            .filter(|term| Owner::of(term) == Owner::CublasLt)
            .and_then(|term| term.parameters.iter().find(|p| p.name == "compute"))
            .filter(|p| !p.assumed)
            .zip(self.efficiency.gemm.get(&Dtype::Bf16))
            .map(|(p, table)| p.value / table.compute);
        if let Some(ratio) = tensor {
            said.push(format!("tensor rate x{ratio:.3} of the tables' machines"));
            self.scale_compute(ratio);
        }
        let sync = &mut self.overheads.sync;
        for (way, us, usual) in [
            (SyncWay::HostTcp, &mut sync.host_us, USUAL_HOST_SYNC_US),
            (
                SyncWay::DeviceAllReduce,
                &mut sync.device_us,
                USUAL_DEVICE_SYNC_US,
            ),
        ] {
            let measured = calibration
                .term(Class::Sync(way))
                .and_then(|term| term.parameter("us"));
            if let Some(measured) = measured {
                *us *= measured / usual;
                said.push(format!("{} sync x{:.2}", way.name(), measured / usual));
            }
        }
        said
    }

    fn scale_memory(&mut self, ratio: f64) {
        let e = &mut self.efficiency;
        let part = |x: &mut f64| *x = (*x * ratio).clamp(1e-6, 1.0);
        e.gemm.values_mut().for_each(|f| part(&mut f.memory));
        e.mla_bmm.values_mut().for_each(|f| part(&mut f.memory));
        e.expert_fits().for_each(|f| part(&mut f.memory));
        for map in [
            &mut e.decode_gqa,
            &mut e.decode_mla,
            &mut e.sparse.attention_decode,
        ] {
            map.values_mut().for_each(|f| part(&mut f.memory));
        }
        for map in [
            &mut e.prefill_gqa,
            &mut e.prefill_mla,
            &mut e.sparse.attention_prefill,
        ] {
            map.values_mut().for_each(|f| part(&mut f.memory));
        }
        for scan in [&mut e.gated_delta, &mut e.mamba2] {
            part(&mut scan.decode_memory);
            part(&mut scan.prefill_memory);
        }
        part(&mut e.elementwise.memory);
    }

    fn scale_compute(&mut self, ratio: f64) {
        let e = &mut self.efficiency;
        let part = |x: &mut f64| *x = (*x * ratio).clamp(1e-6, 1.0);
        e.gemm.values_mut().for_each(|f| part(&mut f.compute));
        e.mla_bmm.values_mut().for_each(|f| part(&mut f.compute));
        e.expert_fits().for_each(|f| part(&mut f.compute));
        for map in [
            &mut e.decode_gqa,
            &mut e.decode_mla,
            &mut e.sparse.attention_decode,
        ] {
            map.values_mut().for_each(|f| part(&mut f.compute));
        }
        for map in [
            &mut e.prefill_gqa,
            &mut e.prefill_mla,
            &mut e.sparse.attention_prefill,
        ] {
            map.values_mut().for_each(|f| part(&mut f.compute));
        }
    }
}

/// The best streaming read over the peak, of the samples themselves.
fn reads(calibration: &Calibration, gpu: &GpuProfile) -> Option<f64> {
    calibration
        .samples
        .iter()
        .filter_map(|s| match s.experiment.probe {
            Probe::MemoryRead { bytes } => {
                Some(bytes as f64 / (s.value * 1e-6) / gpu.memory_bytes_per_s)
            }
            _ => None,
        })
        .reduce(f64::max)
}

/// The topology model: through a switch every pair of GPUs has its full link whatever the others do, so
/// latency at two ranks holds for all and grows with the ranks as the tables say, or as was measured; the
/// share of the link at a rank count that was not measured stays that of the tables, unless the link at
/// the nearest measured count is off.
fn other_ranks(old: &RingFit, mut fit: RingFit, measured: &[u32], note: &mut Note) -> RingFit {
    let places = [(2u32, 0usize), (4, 1), (8, 2)];
    let off: Vec<(u32, f64)> = places
        .iter()
        .filter(|(ranks, _)| measured.contains(ranks))
        .map(|&(ranks, at)| (ranks, fit.link[at] / old.link[at]))
        .collect();
    // The larger of two counts that are equally far: it shares the link as more ranks do.
    let nearest = |ranks: u32| {
        let apart = |of: u32| (f64::from(of) / f64::from(ranks)).ln().abs();
        off.iter()
            .rev()
            .min_by(|a, b| apart(a.0).total_cmp(&apart(b.0)))
            .map_or(1.0, |found| found.1)
    };
    let mut widest: f64 = 0.0;
    for (ranks, at) in places {
        if measured.contains(&ranks) {
            continue;
        }
        let ratio = nearest(ranks);
        let of_the_link = !(1.0 / OF_THE_LINK..=OF_THE_LINK).contains(&ratio);
        fit.link[at] = if of_the_link {
            (old.link[at] * ratio).clamp(1e-6, 2.0)
        } else {
            old.link[at]
        };
        widest = widest.max(if of_the_link {
            OTHER_RANKS.hypot(ratio.ln() / 2.0)
        } else {
            OTHER_RANKS.hypot(old.note.sigma)
        });
    }
    note.carried = Some(Carried {
        ranks: measured.to_vec(),
        sigma: widest.max(OTHER_RANKS),
    });
    let counts: Vec<String> = measured.iter().map(u32::to_string).collect();
    note.source.push_str(&format!(
        "; measured at {} ranks, other counts by the tables' growth with ranks",
        counts.join(", ")
    ));
    fit
}
