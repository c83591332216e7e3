//! Dense matrix products, MLA's absorption products, and memory-bound kernels.

use super::overlap;
use super::resolve::OpCosts;
use super::terms::Product;
use parplan_profiles::Dtype;

/// One matrix product: `m` rows of activations of width `k` times a weight of `k`×`n`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gemm {
    /// Rows of activations: tokens.
    pub m: f64,
    /// Output width on this rank.
    pub n: f64,
    /// Input width on this rank.
    pub k: f64,
    /// Storage format of the weight.
    pub weights: Dtype,
}

/// The two batched products that absorb MLA's up-projections in decode: Q into the latent space,
/// and the attention output out of it. One of the two.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MlaBmm {
    /// Tokens.
    pub tokens: f64,
    /// Query heads on this rank.
    pub heads: f64,
    /// The narrow width: the per-head width without position, or of a value.
    pub head_dim: f64,
    /// Rank of the shared KV compression.
    pub kv_lora_rank: f64,
    /// Storage format of the weight: bf16, or fp8 where the engine keeps it so.
    pub weights: Dtype,
}

impl Gemm {
    fn weight_bytes(&self) -> f64 {
        self.n * self.k * self.weights.bytes()
    }

    fn flops(&self) -> f64 {
        2.0 * self.m * self.n * self.k
    }
}

impl Product {
    /// Bytes and products of `gemm` over the peaks, µs.
    fn peaks(&self, gemm: &Gemm) -> (f64, f64) {
        let bytes = gemm.weight_bytes() + gemm.m * (gemm.k * self.activation_bytes + gemm.n * 2.0);
        (
            bytes * self.us_per_byte_peak,
            gemm.flops() * self.us_per_flop_peak,
        )
    }
}

impl OpCosts<'_> {
    /// A matrix product, µs.
    ///
    /// `base + (depth + depth_tile · min(m, 256) / 256) · k / 1000 + overlap(bytes, products) +
    /// passes · output bytes / bandwidth`: launch, one tile's walk down K, bytes and products at
    /// their fitted fractions of the peaks, and the part of the epilogue that nothing hides. Where the engine quantises activations in a kernel of its own, that kernel is added.
    #[inline]
    pub fn gemm(&self, gemm: &Gemm) -> f64 {
        if gemm.m <= 0.0 {
            return 0.0;
        }
        let p = &self.products[gemm.weights as usize];
        let mut us = p.time(gemm);
        if p.separate_quantise {
            us += self.elementwise(gemm.m * gemm.k * (2.0 + p.activation_bytes), 1.0);
        }
        us
    }

    /// Activations of a product with such weights are put into its format by a kernel of its own.
    #[inline]
    pub fn quantises(&self, weights: Dtype) -> bool {
        self.products[weights as usize].separate_quantise
    }

    /// A matrix product on activations that are in the product's format already (an earlier
    /// kernel wrote them so), µs.
    #[inline]
    pub fn gemm_quantised(&self, gemm: &Gemm) -> f64 {
        if gemm.m <= 0.0 {
            return 0.0;
        }
        self.products[gemm.weights as usize].time(gemm)
    }

    /// The roofline of a matrix product, µs.
    pub fn gemm_roofline(&self, gemm: &Gemm) -> f64 {
        let (memory, compute) = self.products[gemm.weights as usize].peaks(gemm);
        memory.max(compute)
    }

    /// One absorption product, µs: `base + overlap(bytes, products)` over all heads.
    #[inline]
    pub fn mla_bmm(&self, bmm: &MlaBmm) -> f64 {
        if bmm.tokens <= 0.0 || bmm.heads <= 0.0 {
            return 0.0;
        }
        let p = self.bmm(bmm.weights);
        let (memory, compute) = p.bmm_peaks(bmm);
        p.base_us + overlap(memory * p.inverse_memory, compute * p.inverse_compute)
    }

    /// The roofline of one absorption product, µs.
    pub fn mla_bmm_roofline(&self, bmm: &MlaBmm) -> f64 {
        let (memory, compute) = self.bmm(bmm.weights).bmm_peaks(bmm);
        memory.max(compute)
    }

    fn bmm(&self, weights: Dtype) -> &Product {
        &self.bmm[usize::from(weights.bytes() < 1.5)]
    }

    /// Memory-bound kernels that together read and write `bytes`, µs:
    /// `kernels · launch + bytes / bandwidth`. Norms, rotary embedding, activations, residual
    /// adds, quantisation, copies.
    #[inline]
    pub fn elementwise(&self, bytes: f64, kernels: f64) -> f64 {
        kernels * self.kernel_us + bytes * self.us_per_byte_elementwise
    }

    /// The roofline of memory-bound kernels, µs.
    pub fn elementwise_roofline(&self, bytes: f64) -> f64 {
        bytes * self.us_per_byte_peak
    }
}

impl Product {
    #[inline]
    pub(super) fn time(&self, gemm: &Gemm) -> f64 {
        let (memory, compute) = self.peaks(gemm);
        self.base_us
            + (self.depth_us + self.depth_tile_us * (gemm.m.min(256.0) / 256.0)) * gemm.k * 1e-3
            + overlap(memory * self.inverse_memory, compute * self.inverse_compute)
            + gemm.m * gemm.n * self.us_per_output
    }

    fn bmm_peaks(&self, bmm: &MlaBmm) -> (f64, f64) {
        let weight = bmm.heads * bmm.head_dim * bmm.kv_lora_rank;
        let bytes = weight * bmm.weights.bytes().min(2.0)
            + bmm.tokens * bmm.heads * (bmm.head_dim + bmm.kv_lora_rank) * 2.0;
        (
            bytes * self.us_per_byte_peak,
            2.0 * bmm.tokens * weight * self.us_per_flop_peak,
        )
    }
}
