//! How close the kernels of an engine come to what the spec sheet of a GPU promises.
//!
//! A profile belongs to an engine family and a GPU architecture. Its figures are fractions of the
//! spec-sheet bandwidth and tensor rates, plus latencies, so that one profile serves every GPU of
//! the architecture. They were fitted from measured kernel tables; each class of operation names
//! the table, the number of rows, and the spread that remained. `docs/costs.md` has the formulas.

mod fit;
mod library;

pub use fit::{
    A2aFit, AllReduceFit, Carried, CollectiveFit, DecodeFit, DeepEpFit, ElementwiseFit, GemmFit,
    LowLatencyFit, MoeFit, NetworkFit, Note, PrefillFit, RingFit, ScanFit, SparseFit,
};
pub use library::{EfficiencyError, GpuArchitecture};

use crate::dtype::Dtype;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Efficiencies of one engine family on one GPU architecture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EfficiencyProfile {
    /// Engine family: `sglang`, `vllm`, `trtllm`, `builtin`.
    pub engine: String,
    /// The GPUs that it describes.
    pub architecture: GpuArchitecture,
    /// Dense matrix products, by weight format.
    pub gemm: BTreeMap<Dtype, GemmFit>,
    /// Batched products that absorb the MLA up-projections, by weight format.
    pub mla_bmm: BTreeMap<Dtype, GemmFit>,
    /// Decode attention of grouped-query models, by KV format.
    pub decode_gqa: BTreeMap<Dtype, DecodeFit>,
    /// Prefill attention of grouped-query models, by KV format.
    pub prefill_gqa: BTreeMap<Dtype, PrefillFit>,
    /// Absorbed decode attention of MLA models, by KV format.
    pub decode_mla: BTreeMap<Dtype, DecodeFit>,
    /// Prefill attention of MLA models, by KV format.
    pub prefill_mla: BTreeMap<Dtype, PrefillFit>,
    /// DeepSeek sparse attention: indexer, top-k and the sparse kernel.
    pub sparse: SparseFit,
    /// Gated DeltaNet mixer.
    pub gated_delta: ScanFit,
    /// Mamba-2 mixer.
    pub mamba2: ScanFit,
    /// Routed experts, by weight format.
    pub moe: BTreeMap<Dtype, MoeFit>,
    /// A second kernel for the same weights: the engine runs whichever is faster at the size.
    #[serde(default)]
    pub moe_alternative: BTreeMap<Dtype, MoeFit>,
    /// Kernels for routed experts that an engine runs where its rules name them, by name and weight
    /// format ([`crate::engine::rules::WeightPath::kernel`]).
    #[serde(default)]
    pub moe_named: BTreeMap<String, BTreeMap<Dtype, MoeFit>>,
    /// Norms, rotary embedding, activations, residuals, copies.
    pub elementwise: ElementwiseFit,
    /// Collectives inside and between nodes.
    pub collective: CollectiveFit,
    /// DeepEP-style dispatch and combine.
    pub deepep: DeepEpFit,
}

impl EfficiencyProfile {
    /// Every fit of routed experts: of the engine's own choice, of its alternatives, and of the kernels
    /// that rules name.
    pub fn expert_fits(&mut self) -> impl Iterator<Item = &mut MoeFit> {
        let named = self.moe_named.values_mut();
        self.moe
            .values_mut()
            .chain(self.moe_alternative.values_mut())
            .chain(named.flat_map(|fits| fits.values_mut()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::Library;

    #[test]
    fn what_is_measured_of_a_card_reaches_named_kernels_too() {
        let h200 = Library::embedded().gpu("h200").unwrap();
        let mut prices = EfficiencyProfile::embedded("vllm", &h200).unwrap().clone();
        prices.expert_fits().for_each(|fit| fit.memory = 0.5);
        assert_eq!(prices.moe_named["marlin"][&Dtype::Mxfp4].memory, 0.5);
        assert!(prices.moe.values().all(|fit| fit.memory == 0.5));
        let named: usize = prices.moe_named.values().map(BTreeMap::len).sum();
        let all = prices.moe.len() + prices.moe_alternative.len() + named;
        assert_eq!(prices.expert_fits().count(), all);
    }
}
