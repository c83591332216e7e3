//! Routed experts on one rank.

use super::overlap;
use super::resolve::OpCosts;
use parplan_profiles::Dtype;

/// The routed experts of one layer on one rank: routing, permutation, two grouped products with
/// the activation between them, and the weighted reduction. Shared experts are dense products.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moe {
    /// Tokens that reach this rank's experts from the whole expert-parallel group: each brings
    /// `top_k · experts_local / experts_total` rows on average.
    pub tokens: f64,
    /// Experts on this rank.
    pub experts_local: f64,
    /// Routed experts of the layer.
    pub experts_total: f64,
    /// Routed experts a token visits.
    pub top_k: f64,
    /// Width at which experts read and write.
    pub hidden: f64,
    /// Width of an expert's hidden layer on this rank (divided by MoE TP).
    pub intermediate: f64,
    /// Gate and up projections; otherwise up only.
    pub gated: bool,
    /// Storage format of the experts.
    pub weights: Dtype,
    /// Rows of the busiest rank over the mean of the expert-parallel group; 1 is balanced.
    pub imbalance: f64,
}

impl Moe {
    /// Rows (token, expert) on the busiest rank.
    #[inline]
    pub fn rows(&self) -> f64 {
        let mean = self.tokens * self.top_k * self.experts_local / self.experts_total.max(1.0);
        (mean * self.imbalance.max(1.0)).min(self.tokens * self.top_k.min(self.experts_local))
    }

    /// Distinct experts on this rank that get at least one row, for independent uniform routing:
    /// `E_local · (1 − (1 − k/E)^T)`.
    #[inline]
    pub fn touched(&self) -> f64 {
        let miss = 1.0 - (self.top_k / self.experts_total.max(1.0)).min(1.0);
        self.experts_local * (1.0 - power(miss, self.tokens))
    }

    /// Matrices of an expert: 3 when gated, else 2.
    #[inline]
    fn matrices(&self) -> f64 {
        if self.gated { 3.0 } else { 2.0 }
    }

    fn weight_bytes(&self) -> f64 {
        self.touched() * self.expert() * self.weights.bytes()
    }

    #[inline]
    fn expert(&self) -> f64 {
        self.matrices() * self.hidden * self.intermediate
    }
}

/// `base^exponent` for a base in \[0, 1\] and an exponent ≥ 0.
#[inline]
fn power(base: f64, exponent: f64) -> f64 {
    if base <= 0.0 {
        return if exponent > 0.0 { 0.0 } else { 1.0 };
    }
    (exponent * base.ln()).exp()
}

impl OpCosts<'_> {
    /// Routed experts, µs:
    /// `base + passes over rows · bytes / bandwidth + overlap(weights, padded products)`.
    #[inline]
    pub fn moe(&self, moe: &Moe) -> f64 {
        let rows = moe.rows();
        if rows <= 0.0 {
            return 0.0;
        }
        let term = &self.moe[moe.weights as usize];
        let touched = moe.touched();
        let expert = moe.expert();
        term.base_us
            + rows * (moe.hidden * term.us_per_hidden + moe.intermediate * term.us_per_intermediate)
            + overlap(
                touched * expert * moe.weights.bytes() * term.us_per_byte,
                2.0 * expert * (rows + term.pad_rows * touched) * term.us_per_flop,
            )
    }

    /// The roofline of routed experts, µs: the weights of the experts touched, or the products of
    /// the rows.
    pub fn moe_roofline(&self, moe: &Moe) -> f64 {
        let term = &self.moe[moe.weights as usize];
        (moe.weight_bytes() * self.us_per_byte_peak)
            .max(2.0 * moe.expert() * moe.rows() * term.us_per_flop_peak)
    }
}
