//! Efficiency figures resolved for one GPU: fractions turned into time a byte and a product.

use super::terms::{
    A2aTerm, CustomTerm, DecodeTerm, LowLatencyTerm, MoeTerm, NetworkTerm, PrefillTerm, Product,
    RingTerm, ScanTerm, TopKTerm,
};
use parplan_profiles::efficiency::{
    A2aFit, DecodeFit, EfficiencyProfile, GemmFit, MoeFit, Note, PrefillFit, RingFit, ScanFit,
};
use parplan_profiles::{Dtype, GpuProfile, LinkKind, TensorRate};
use std::collections::BTreeMap;

/// Why figures could not be resolved.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CostError {
    /// The profile lacks a class.
    #[error("the efficiency profile of {engine} has no figures for {class}")]
    Missing {
        /// Engine family of the profile.
        engine: String,
        /// What is missing.
        class: String,
    },
    /// A figure of the GPU is not usable.
    #[error("GPU {gpu}: {field} must be positive")]
    Gpu {
        /// Name of the GPU.
        gpu: String,
        /// Which figure.
        field: &'static str,
    },
}

/// A class of operations that was fitted as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OpClass {
    /// Dense products on weights of this format.
    Gemm(Dtype),
    /// MLA absorption products.
    MlaBmm(Dtype),
    /// Decode attention, grouped queries, by cache format.
    DecodeGqa(Dtype),
    /// Prefill attention, grouped queries.
    PrefillGqa(Dtype),
    /// Decode attention, MLA.
    DecodeMla(Dtype),
    /// Prefill attention, MLA.
    PrefillMla(Dtype),
    /// DSA decode.
    DecodeDsa(Dtype),
    /// DSA prefill.
    PrefillDsa(Dtype),
    /// Gated DeltaNet decode.
    GatedDeltaDecode,
    /// Gated DeltaNet prefill.
    GatedDeltaPrefill,
    /// Mamba-2 decode.
    Mamba2Decode,
    /// Mamba-2 prefill.
    Mamba2Prefill,
    /// Routed experts on weights of this format.
    Moe(Dtype),
    /// Memory-bound kernels.
    Elementwise,
    /// NCCL all-gather.
    AllGather,
    /// NCCL reduce-scatter.
    ReduceScatter,
    /// NCCL all-reduce.
    AllReduce,
    /// NCCL all-to-all.
    AllToAll,
    /// NCCL all-gather on symmetric windows.
    SymmetricAllGather,
    /// NCCL reduce-scatter on symmetric windows.
    SymmetricReduceScatter,
    /// NCCL all-reduce on symmetric windows.
    SymmetricAllReduce,
    /// The engine's own all-reduce.
    CustomAllReduce,
    /// Its own gather of queries over peer memory.
    PeerGather,
    /// Its own merge of partial outputs over peer memory.
    PeerMerge,
    /// Anything that leaves a node, or crosses PCIe.
    Network,
    /// Expert exchange, low-latency kernels.
    ExpertLowLatency,
    /// Expert exchange, normal kernels.
    ExpertNormal,
}

/// Costs of operations of one engine on one GPU. Resolve it once, then evaluate freely: no
/// evaluation allocates, looks anything up by name, or takes more than some tens of nanoseconds.
#[derive(Debug, Clone)]
pub struct OpCosts<'a> {
    profile: &'a EfficiencyProfile,
    pub(super) products: [Product; 9],
    pub(super) bmm: [Product; 2],
    pub(super) decode_gqa: [DecodeTerm; 2],
    pub(super) prefill_gqa: [PrefillTerm; 2],
    pub(super) decode_mla: [DecodeTerm; 2],
    pub(super) prefill_mla: [PrefillTerm; 2],
    pub(super) logits_decode: DecodeTerm,
    pub(super) logits_prefill: PrefillTerm,
    pub(super) top_k: TopKTerm,
    pub(super) sparse_decode: [DecodeTerm; 2],
    pub(super) sparse_prefill: [PrefillTerm; 2],
    pub(super) gated_delta: ScanTerm,
    pub(super) mamba2: ScanTerm,
    pub(super) moe: [MoeTerm; 9],
    pub(super) moe_alternative: [Option<MoeTerm>; 9],
    pub(super) rings: [RingTerm; 4],
    /// All-gather, reduce-scatter, all-reduce on symmetric windows.
    pub(super) symmetric: [RingTerm; 3],
    /// Which of them were measured, and not taken from tables.
    pub(super) symmetric_measured: [bool; 3],
    pub(super) custom_all_reduce: CustomTerm,
    pub(super) peer_gather: Option<RingTerm>,
    pub(super) peer_merge: Option<RingTerm>,
    pub(super) network: NetworkTerm,
    pub(super) low_latency: [A2aTerm; 2],
    pub(super) normal: [A2aTerm; 2],
    pub(super) kernel_us: f64,
    pub(super) us_per_byte_elementwise: f64,
    pub(super) us_per_byte_peak: f64,
    pub(super) us_per_byte_link: f64,
    pub(super) pcie: bool,
    pub(super) multicast: bool,
}

/// Peak figures of a GPU as µs a unit.
pub(super) struct Peaks<'g> {
    gpu: &'g GpuProfile,
    pub(super) byte: f64,
    link: f64,
    network: f64,
    sms: f64,
}

impl<'g> Peaks<'g> {
    pub(super) fn of(gpu: &'g GpuProfile) -> Self {
        Peaks {
            gpu,
            byte: 1e6 / gpu.memory_bytes_per_s,
            link: 1e6 / gpu.link.bytes_per_s,
            network: 1e6 / gpu.network_bytes_per_s,
            sms: f64::from(gpu.sms),
        }
    }

    fn flop(&self, rate: TensorRate) -> f64 {
        1e6 / self.gpu.tensor.rate(rate)
    }

    pub(super) fn product(&self, fit: &GemmFit) -> Product {
        Product {
            base_us: fit.base_us,
            depth_us: fit.depth_us,
            depth_tile_us: fit.depth_tile_us,
            inverse_memory: 1.0 / fit.memory,
            inverse_compute: 1.0 / fit.compute,
            us_per_byte_peak: self.byte,
            us_per_flop_peak: self.flop(fit.rate),
            us_per_output: 2.0 * fit.output_passes * self.byte,
            activation_bytes: fit.activation_bytes,
            separate_quantise: fit.separate_quantise,
        }
    }

    pub(super) fn decode(&self, fit: &DecodeFit) -> DecodeTerm {
        let flop = self.flop(fit.rate);
        DecodeTerm {
            base_us: fit.base_us,
            item_us_per_sm: fit.item_us / self.sms,
            split_us: fit.split_us,
            split_context: fit.split_context.max(1.0),
            us_per_byte: self.byte / fit.memory,
            us_per_flop: flop / fit.compute,
            us_per_byte_peak: self.byte,
            us_per_flop_peak: flop,
            pad_rows: fit.pad_rows.max(1.0),
            tile_rows: fit.tile_rows.max(0.0),
            sms: self.sms,
        }
    }

    pub(super) fn prefill(&self, fit: &PrefillFit) -> PrefillTerm {
        let flop = self.flop(fit.rate);
        PrefillTerm {
            base_us: fit.base_us,
            item_us_per_sm: fit.item_us / self.sms,
            depth_us_per_key: fit.depth_us * 1e-3,
            us_per_byte: self.byte / fit.memory,
            us_per_flop: flop / fit.compute,
            us_per_byte_peak: self.byte,
            us_per_flop_peak: flop,
            width_half: fit.width_half,
        }
    }

    pub(super) fn moe(&self, fit: &MoeFit) -> MoeTerm {
        let flop = self.flop(fit.rate);
        MoeTerm {
            base_us: fit.base_us,
            us_per_byte: self.byte / fit.memory,
            us_per_flop: flop / fit.compute,
            us_per_flop_peak: flop,
            pad_rows: fit.pad_rows,
            us_per_hidden: 2.0 * fit.hidden_passes * self.byte,
            us_per_intermediate: 2.0 * fit.intermediate_passes * self.byte,
            us_per_expert: fit.expert_us * 1e-3,
            us_per_local_expert: fit.local_expert_us * 1e-3,
            us_per_remote_hidden: 2.0 * fit.remote_passes * self.byte,
            remote_us: fit.remote_us,
        }
    }

    fn scan(&self, fit: &ScanFit) -> ScanTerm {
        ScanTerm {
            decode_base_us: fit.decode_base_us,
            us_per_byte_decode: self.byte / fit.decode_memory,
            prefill_base_us: fit.prefill_base_us,
            depth_us_per_token: fit.prefill_depth_us * 1e-3,
            us_per_byte_prefill: self.byte / fit.prefill_memory,
            us_per_flop_prefill: self.flop(TensorRate::Bf16) / fit.prefill_compute,
            us_per_byte_peak: self.byte,
        }
    }

    pub(super) fn ring(&self, fit: &RingFit) -> RingTerm {
        RingTerm {
            base_us: fit.base_us,
            rank_us: fit.rank_us,
            ramp_us_per_root_byte: fit.ramp_us / 1024.0,
            us_per_byte: fit.link.map(|x| self.link / x),
            eager_us: fit.eager_us,
            low_latency: fit.low_latency.map(|low| LowLatencyTerm {
                base_us: low.base_us,
                rank_us: low.rank_us,
                ramp_us_per_root_byte: low.ramp_us / 1024.0,
                us_per_byte: self.link / low.link,
            }),
        }
    }

    fn a2a(&self, fit: &A2aFit) -> A2aTerm {
        A2aTerm {
            base_us: fit.base_us,
            node_us: fit.node_us,
            us_per_row: fit.row_us * 1e-3,
            us_per_byte_link: self.link / fit.link,
            us_per_byte_network: self.network / fit.network,
        }
    }
}

/// The fit of a format, or the error that names what is missing.
fn pick<'a, T>(
    profile: &EfficiencyProfile,
    class: &str,
    map: &'a BTreeMap<Dtype, T>,
    dtype: Dtype,
) -> Result<&'a T, CostError> {
    map.get(&dtype).ok_or_else(|| CostError::Missing {
        engine: profile.engine.clone(),
        class: format!("{class}.{dtype}"),
    })
}

/// The fits for a bf16 cache and for a narrower one, resolved.
fn pair<T, U>(
    profile: &EfficiencyProfile,
    class: &str,
    map: &BTreeMap<Dtype, T>,
    resolve: impl Fn(&T) -> U,
) -> Result<[U; 2], CostError> {
    Ok([
        resolve(pick(profile, class, map, Dtype::Bf16)?),
        resolve(pick(profile, class, map, Dtype::Fp8)?),
    ])
}

/// The fits of all weight formats, resolved.
fn all<T, U: Copy>(
    profile: &EfficiencyProfile,
    class: &str,
    map: &BTreeMap<Dtype, T>,
    resolve: impl Fn(&T) -> U,
) -> Result<[U; 9], CostError> {
    let mut out = [resolve(pick(profile, class, map, Dtype::ALL[0])?); 9];
    for (slot, dtype) in out.iter_mut().zip(Dtype::ALL) {
        *slot = resolve(pick(profile, class, map, dtype)?);
    }
    Ok(out)
}

impl<'a> OpCosts<'a> {
    /// Resolves a profile for one GPU.
    ///
    /// # Errors
    /// When the profile lacks a class, or the GPU a figure.
    pub fn new(profile: &'a EfficiencyProfile, gpu: &GpuProfile) -> Result<Self, CostError> {
        for (field, value) in [
            ("memory_bytes_per_s", gpu.memory_bytes_per_s),
            ("tensor.bf16", gpu.tensor.bf16),
            ("link.bytes_per_s", gpu.link.bytes_per_s),
            ("network_bytes_per_s", gpu.network_bytes_per_s),
            ("sms", f64::from(gpu.sms)),
        ] {
            if !(value > 0.0 && value.is_finite()) {
                return Err(CostError::Gpu {
                    gpu: gpu.name.clone(),
                    field,
                });
            }
        }
        let peaks = Peaks::of(gpu);
        let p = profile;
        let sparse = &p.sparse;
        let c = &p.collective;
        let custom = &c.custom_all_reduce;
        Ok(Self {
            profile,
            products: all(p, "gemm", &p.gemm, |f| peaks.product(f))?,
            bmm: pair(p, "mla_bmm", &p.mla_bmm, |f| peaks.product(f))?,
            decode_gqa: pair(p, "decode_gqa", &p.decode_gqa, |f| peaks.decode(f))?,
            prefill_gqa: pair(p, "prefill_gqa", &p.prefill_gqa, |f| peaks.prefill(f))?,
            decode_mla: pair(p, "decode_mla", &p.decode_mla, |f| peaks.decode(f))?,
            prefill_mla: pair(p, "prefill_mla", &p.prefill_mla, |f| peaks.prefill(f))?,
            logits_decode: peaks.decode(&sparse.logits_decode),
            logits_prefill: peaks.prefill(&sparse.logits_prefill),
            top_k: TopKTerm {
                base_us: sparse.topk_base_us,
                row_us_per_sm: sparse.topk_row_us / peaks.sms,
                depth_us_per_key: sparse.topk_depth_us * 1e-3,
                us_per_byte: peaks.byte / sparse.topk_memory,
            },
            sparse_decode: pair(
                p,
                "sparse.attention_decode",
                &sparse.attention_decode,
                |f| peaks.decode(f),
            )?,
            sparse_prefill: pair(
                p,
                "sparse.attention_prefill",
                &sparse.attention_prefill,
                |f| peaks.prefill(f),
            )?,
            gated_delta: peaks.scan(&p.gated_delta),
            mamba2: peaks.scan(&p.mamba2),
            moe: all(p, "moe", &p.moe, |f| peaks.moe(f))?,
            moe_alternative: Dtype::ALL.map(|d| p.moe_alternative.get(&d).map(|f| peaks.moe(f))),
            rings: [
                peaks.ring(&c.all_gather),
                peaks.ring(&c.reduce_scatter),
                peaks.ring(&c.all_reduce),
                peaks.ring(&c.all_to_all),
            ],
            symmetric: [
                &c.symmetric_all_gather,
                &c.symmetric_reduce_scatter,
                &c.symmetric_all_reduce,
            ]
            .map(|own| peaks.ring(own.as_ref().unwrap_or(&c.symmetric))),
            symmetric_measured: [
                &c.symmetric_all_gather,
                &c.symmetric_reduce_scatter,
                &c.symmetric_all_reduce,
            ]
            .map(Option::is_some),
            peer_gather: c.peer_gather.as_ref().map(|fit| peaks.ring(fit)),
            peer_merge: c.peer_merge.as_ref().map(|fit| peaks.ring(fit)),
            custom_all_reduce: CustomTerm {
                one_shot_us: custom.one_shot_us,
                two_shot_us: custom.two_shot_us,
                rank_us: custom.rank_us,
                two_shot_rank_us: custom.two_shot_rank_us(),
                us_per_byte_one_shot: peaks.link / custom.one_shot_link,
                us_per_byte_two_shot: peaks.link / custom.two_shot_link,
                max_bytes: custom.max_bytes,
                eager_us: custom.eager_us,
            },
            network: NetworkTerm {
                hop_us: c.network.hop_us,
                graph_host_us: c.network.graph_host_us,
                us_per_byte_network: peaks.network / c.network.network,
                us_per_byte_network_peak: peaks.network,
                pcie_us: c.network.pcie_us,
                us_per_byte_pcie: peaks.link / c.network.pcie,
            },
            low_latency: [
                peaks.a2a(&p.deepep.low_latency_dispatch),
                peaks.a2a(&p.deepep.low_latency_combine),
            ],
            normal: [
                peaks.a2a(&p.deepep.normal_dispatch),
                peaks.a2a(&p.deepep.normal_combine),
            ],
            kernel_us: p.elementwise.kernel_us,
            us_per_byte_elementwise: peaks.byte / p.elementwise.memory,
            us_per_byte_peak: peaks.byte,
            us_per_byte_link: peaks.link,
            pcie: gpu.link.kind == LinkKind::Pcie,
            multicast: gpu.link.multicast,
        })
    }

    /// Spread, sample count and source of a class; none for a format that has no figures.
    pub fn note(&self, class: OpClass) -> Option<&'a Note> {
        let p = self.profile;
        let kv = |d: Dtype| {
            if d.bytes() < 1.5 {
                Dtype::Fp8
            } else {
                Dtype::Bf16
            }
        };
        let symmetric = |own: &'a Option<RingFit>| own.as_ref().unwrap_or(&p.collective.symmetric);
        Some(match class {
            OpClass::Gemm(d) => &p.gemm.get(&d)?.note,
            OpClass::MlaBmm(d) => &p.mla_bmm.get(&kv(d))?.note,
            OpClass::DecodeGqa(d) => &p.decode_gqa.get(&kv(d))?.note,
            OpClass::PrefillGqa(d) => &p.prefill_gqa.get(&kv(d))?.note,
            OpClass::DecodeMla(d) => &p.decode_mla.get(&kv(d))?.note,
            OpClass::PrefillMla(d) => &p.prefill_mla.get(&kv(d))?.note,
            OpClass::DecodeDsa(d) => &p.sparse.attention_decode.get(&kv(d))?.note,
            OpClass::PrefillDsa(d) => &p.sparse.attention_prefill.get(&kv(d))?.note,
            OpClass::GatedDeltaDecode => &p.gated_delta.decode_note,
            OpClass::GatedDeltaPrefill => &p.gated_delta.prefill_note,
            OpClass::Mamba2Decode => &p.mamba2.decode_note,
            OpClass::Mamba2Prefill => &p.mamba2.prefill_note,
            OpClass::Moe(d) => &p.moe.get(&d)?.note,
            OpClass::Elementwise => &p.elementwise.note,
            OpClass::AllGather => &p.collective.all_gather.note,
            OpClass::ReduceScatter => &p.collective.reduce_scatter.note,
            OpClass::AllReduce => &p.collective.all_reduce.note,
            OpClass::AllToAll => &p.collective.all_to_all.note,
            OpClass::SymmetricAllGather => &symmetric(&p.collective.symmetric_all_gather).note,
            OpClass::SymmetricReduceScatter => {
                &symmetric(&p.collective.symmetric_reduce_scatter).note
            }
            OpClass::SymmetricAllReduce => &symmetric(&p.collective.symmetric_all_reduce).note,
            OpClass::CustomAllReduce => &p.collective.custom_all_reduce.note,
            OpClass::PeerGather => match &p.collective.peer_gather {
                Some(own) => &own.note,
                None => &p.collective.all_gather.note,
            },
            OpClass::PeerMerge => match &p.collective.peer_merge {
                Some(own) => &own.note,
                None => &p.collective.all_to_all.note,
            },
            OpClass::Network => &p.collective.network.note,
            OpClass::ExpertLowLatency => &p.deepep.low_latency_dispatch.note,
            OpClass::ExpertNormal => &p.deepep.normal_dispatch.note,
        })
    }

    /// Spread (standard deviation of the log ratio) of a class at `ranks` ranks: that of the fit, and
    /// what is added where the figures were measured at other rank counts.
    pub fn spread(&self, class: OpClass, ranks: f64) -> Option<f64> {
        let note = self.note(class)?;
        Some(match &note.carried {
            Some(c) if ranks > 1.0 && !c.ranks.iter().any(|&r| f64::from(r) == ranks) => {
                note.sigma.hypot(c.sigma)
            }
            _ => note.sigma,
        })
    }

    /// The profile that the figures come from.
    pub fn profile(&self) -> &'a EfficiencyProfile {
        self.profile
    }
}
