//! Any operation, as data.

use super::collective::{Collective, Implementation, Registration, Transfer};
use super::{
    DecodeGqa, DecodeMla, ExpertExchange, ExpertMode, GatedDeltaStep, Gemm, Mamba2Step, MlaBmm,
    Moe, OpClass, OpCosts, PrefillGqa, PrefillMla, SparseDecode, SparsePrefill,
};

/// One operation with its shapes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Operation {
    /// A dense product.
    Gemm(Gemm),
    /// One of MLA's absorption products.
    MlaBmm(MlaBmm),
    /// Decode attention, grouped queries.
    DecodeGqa(DecodeGqa),
    /// Prefill attention, grouped queries.
    PrefillGqa(PrefillGqa),
    /// Decode attention, MLA.
    DecodeMla(DecodeMla),
    /// Prefill attention, MLA.
    PrefillMla(PrefillMla),
    /// Decode with sparse attention.
    SparseDecode(SparseDecode),
    /// Prefill with sparse attention.
    SparsePrefill(SparsePrefill),
    /// A Gated DeltaNet mixer.
    GatedDelta(GatedDeltaStep),
    /// A Mamba-2 mixer.
    Mamba2(Mamba2Step),
    /// Routed experts.
    Moe(Moe),
    /// Memory-bound kernels.
    Elementwise {
        /// Bytes that they read and write together.
        bytes: f64,
        /// How many.
        kernels: f64,
    },
    /// A collective.
    Collective(Transfer),
    /// Dispatch to experts, and the way back.
    ExpertExchange {
        /// Dispatch.
        send: ExpertExchange,
        /// Combine.
        back: ExpertExchange,
    },
}

impl Operation {
    /// Its price, µs.
    #[inline]
    pub fn us(&self, costs: &OpCosts<'_>) -> f64 {
        match self {
            Operation::Gemm(a) => costs.gemm(a),
            Operation::MlaBmm(a) => costs.mla_bmm(a),
            Operation::DecodeGqa(a) => costs.decode_attention_gqa(a),
            Operation::PrefillGqa(a) => costs.prefill_attention_gqa(a),
            Operation::DecodeMla(a) => costs.decode_attention_mla(a),
            Operation::PrefillMla(a) => costs.prefill_attention_mla(a),
            Operation::SparseDecode(a) => costs.decode_attention_dsa(a),
            Operation::SparsePrefill(a) => costs.prefill_attention_dsa(a),
            Operation::GatedDelta(a) => costs.gated_delta(a),
            Operation::Mamba2(a) => costs.mamba2(a),
            Operation::Moe(a) => costs.moe(a),
            Operation::Elementwise { bytes, kernels } => costs.elementwise(*bytes, *kernels),
            Operation::Collective(a) => costs.collective(a),
            Operation::ExpertExchange { send, back } => {
                costs.expert_dispatch(send) + costs.expert_combine(back)
            }
        }
    }

    /// What the GPU could do at best, µs.
    pub fn roofline_us(&self, costs: &OpCosts<'_>) -> f64 {
        match self {
            Operation::Gemm(a) => costs.gemm_roofline(a),
            Operation::MlaBmm(a) => costs.mla_bmm_roofline(a),
            Operation::DecodeGqa(a) => costs.decode_attention_gqa_roofline(a),
            Operation::PrefillGqa(a) => costs.prefill_attention_gqa_roofline(a),
            Operation::DecodeMla(a) => costs.decode_attention_mla_roofline(a),
            Operation::PrefillMla(a) => costs.prefill_attention_mla_roofline(a),
            Operation::SparseDecode(a) => costs.decode_attention_dsa_roofline(a),
            Operation::SparsePrefill(a) => costs.prefill_attention_dsa_roofline(a),
            Operation::GatedDelta(a) => costs.gated_delta_roofline(a),
            Operation::Mamba2(a) => costs.mamba2_roofline(a),
            Operation::Moe(a) => costs.moe_roofline(a),
            Operation::Elementwise { bytes, .. } => costs.elementwise_roofline(*bytes),
            Operation::Collective(a) => costs.collective_roofline(a),
            Operation::ExpertExchange { send, back } => {
                costs.expert_exchange_roofline(send) + costs.expert_exchange_roofline(back)
            }
        }
    }

    /// The class whose figures price it.
    pub fn class(&self) -> OpClass {
        match self {
            Operation::Gemm(a) => OpClass::Gemm(a.weights),
            Operation::MlaBmm(a) => OpClass::MlaBmm(a.weights),
            Operation::DecodeGqa(a) => OpClass::DecodeGqa(a.kv),
            Operation::PrefillGqa(a) => OpClass::PrefillGqa(a.kv),
            Operation::DecodeMla(a) => OpClass::DecodeMla(a.kv),
            Operation::PrefillMla(a) => OpClass::PrefillMla(a.kv),
            Operation::SparseDecode(a) => OpClass::DecodeDsa(a.kv),
            Operation::SparsePrefill(a) => OpClass::PrefillDsa(a.kv),
            Operation::GatedDelta(a) if a.tokens > 1.0 => OpClass::GatedDeltaPrefill,
            Operation::GatedDelta(_) => OpClass::GatedDeltaDecode,
            Operation::Mamba2(a) if a.tokens > 1.0 => OpClass::Mamba2Prefill,
            Operation::Mamba2(_) => OpClass::Mamba2Decode,
            Operation::Moe(a) => OpClass::Moe(a.weights),
            Operation::Elementwise { .. } => OpClass::Elementwise,
            Operation::Collective(a) => of_transfer(a),
            Operation::ExpertExchange { send, .. } => match send.mode {
                ExpertMode::LowLatency => OpClass::ExpertLowLatency,
                ExpertMode::Normal => OpClass::ExpertNormal,
            },
        }
    }

    /// Ranks that it is shared by; 1 for work of one rank.
    pub fn ranks(&self) -> f64 {
        match self {
            Operation::Collective(a) => a.span.ranks,
            Operation::ExpertExchange { send, .. } => send.ranks,
            _ => 1.0,
        }
    }
}

fn of_transfer(t: &Transfer) -> OpClass {
    if t.span.domains() > 1.0 {
        return OpClass::Network;
    }
    match (t.kind, t.implementation, t.registration) {
        (Collective::AllReduce, Implementation::Custom, _) => OpClass::CustomAllReduce,
        (Collective::AllGather, Implementation::Peer, _) => OpClass::PeerGather,
        (Collective::AllToAll, Implementation::Peer, _) => OpClass::PeerMerge,
        (Collective::AllToAll, ..) => OpClass::AllToAll,
        (Collective::AllGather, _, Registration::Symmetric) => OpClass::SymmetricAllGather,
        (Collective::ReduceScatter, _, Registration::Symmetric) => OpClass::SymmetricReduceScatter,
        (Collective::AllReduce, _, Registration::Symmetric) => OpClass::SymmetricAllReduce,
        (Collective::AllGather, ..) => OpClass::AllGather,
        (Collective::ReduceScatter, ..) => OpClass::ReduceScatter,
        (Collective::AllReduce, ..) => OpClass::AllReduce,
    }
}
