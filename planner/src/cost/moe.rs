//! Routed experts on one rank.

use super::overlap;
use super::resolve::OpCosts;
use super::terms::MoeTerm;
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
    /// Tokens are gathered to every rank (tensor or expert parallelism without dispatch), so that
    /// rows of other ranks' experts are walked too; false after an expert all-to-all.
    pub gathered: bool,
    /// Share of the tokens that choose their experts as if alone and uniformly, as far as distinct
    /// experts go: 1 for uniform routing, less where tokens share favourites and leave experts unread.
    pub spread: f64,
    /// Rows of the busiest rank over the mean of the expert-parallel group; 1 is balanced.
    pub imbalance: f64,
    /// By how many standard deviations the rank that reads most experts is above the mean; 0 where all
    /// read alike.
    pub deviations: f64,
}

impl Moe {
    /// Rows (token, expert) on the busiest rank.
    #[inline]
    pub fn rows(&self) -> f64 {
        let mean = self.tokens * self.top_k * self.experts_local / self.experts_total.max(1.0);
        (mean * self.imbalance.max(1.0)).min(self.tokens * self.top_k.min(self.experts_local))
    }

    /// Distinct experts on the busiest rank that get at least one row, for independent uniform routing
    /// of `spread` of the tokens: `E_local · p` on average with `p = 1 − (1 − k/E)^(spread · T)`, and
    /// `deviations · √(E_local · p · (1 − p))` more (a binomial count; it grows with `p` until it meets
    /// `E_local`).
    #[inline]
    pub fn touched(&self) -> f64 {
        let miss = 1.0 - (self.top_k / self.experts_total.max(1.0)).min(1.0);
        let missed = power(miss, self.tokens * self.spread);
        let mean = self.experts_local * (1.0 - missed);
        (mean + self.deviations * (mean * missed).sqrt()).min(self.experts_local)
    }

    /// Standard deviation of [`Moe::touched`] over its mean, from one routing to another: which of a
    /// rank's experts are chosen, and how many choices fall on it at all.
    pub fn luck(&self) -> f64 {
        let touched = self.touched();
        if touched <= 0.0 || self.experts_total <= 0.0 {
            return 0.0;
        }
        let (local, share) = (self.experts_local, self.experts_local / self.experts_total);
        let missed = (1.0 - touched / local).clamp(0.0, 1.0);
        // Choices that fall here or elsewhere, and choices that meet on one expert (the variance of
        // distinct values of c independent draws a value).
        let here = local * missed * (1.0 - missed) * (1.0 - share);
        let draws = -missed.max(1e-12).ln();
        let meeting = local * share * missed * (1.0 - (1.0 + draws) * missed).max(0.0);
        (here + meeting).sqrt() / touched
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

impl MoeTerm {
    /// `base + experts + passes over rows · bytes / bandwidth + overlap(weights, padded products)`.
    #[inline]
    pub(super) fn time(&self, moe: &Moe, rows: f64, touched: f64) -> f64 {
        let expert = moe.expert();
        let mut us = self.base_us
            + touched * self.us_per_expert
            + moe.experts_local * self.us_per_local_expert
            + rows
                * (moe.hidden * self.us_per_hidden + moe.intermediate * self.us_per_intermediate)
            + overlap(
                touched * expert * moe.weights.bytes() * self.us_per_byte,
                2.0 * expert * (rows + self.pad_rows * touched) * self.us_per_flop,
            );
        if moe.gathered && moe.experts_local < moe.experts_total {
            let remote = (moe.tokens * moe.top_k - rows).max(0.0);
            us += self.remote_us + remote * moe.hidden * self.us_per_remote_hidden;
        }
        us
    }
}

impl OpCosts<'_> {
    /// Routed experts, µs: routing, permutation, the two grouped products, activation, reduction.
    /// Where the engine has two kernels for the format, the faster one.
    #[inline]
    pub fn moe(&self, moe: &Moe) -> f64 {
        let rows = moe.rows();
        if rows <= 0.0 {
            return 0.0;
        }
        let touched = moe.touched();
        let us = self.moe[moe.weights as usize].time(moe, rows, touched);
        match &self.moe_alternative[moe.weights as usize] {
            Some(other) => us.min(other.time(moe, rows, touched)),
            None => us,
        }
    }

    /// The roofline of routed experts, µs: the weights of the experts touched, or the products of
    /// the rows.
    pub fn moe_roofline(&self, moe: &Moe) -> f64 {
        let rate = |t: &MoeTerm| t.us_per_flop_peak;
        let at = moe.weights as usize;
        let flop = rate(&self.moe[at]);
        let flop = self.moe_alternative[at]
            .as_ref()
            .map_or(flop, |other| flop.min(rate(other)));
        (moe.weight_bytes() * self.us_per_byte_peak).max(2.0 * moe.expert() * moe.rows() * flop)
    }
}
