//! One class at a time, at figures that are being fitted: the formulas that prices use.

use super::collective::{Collective, Launch};
use super::resolve::Peaks;
use super::{DecodeGqa, DecodeMla, Gemm, Moe, PrefillGqa};
use parplan_profiles::GpuProfile;
use parplan_profiles::efficiency::{DecodeFit, GemmFit, MoeFit, PrefillFit, RingFit};

/// Prices single operations on one GPU at given figures, µs.
pub(crate) struct Single<'g>(Peaks<'g>);

impl<'g> Single<'g> {
    pub(crate) fn on(gpu: &'g GpuProfile) -> Self {
        Single(Peaks::of(gpu))
    }

    pub(crate) fn gemm(&self, fit: &GemmFit, a: &Gemm) -> f64 {
        self.0.product(fit).time(a)
    }

    pub(crate) fn decode_gqa(&self, fit: &DecodeFit, a: &DecodeGqa) -> f64 {
        let term = self.0.decode(fit);
        term.time(&a.work(term.pad_rows))
    }

    pub(crate) fn decode_mla(&self, fit: &DecodeFit, a: &DecodeMla) -> f64 {
        let term = self.0.decode(fit);
        term.time_joined(&a.work(term.pad_rows))
    }

    pub(crate) fn prefill_gqa(&self, fit: &PrefillFit, a: &PrefillGqa) -> f64 {
        self.0.prefill(fit).time(&a.work())
    }

    pub(crate) fn moe(&self, fit: &MoeFit, a: &Moe) -> f64 {
        self.0.moe(fit).time(a, a.rows(), a.touched())
    }

    pub(crate) fn ring(
        &self,
        fit: &RingFit,
        kind: Collective,
        bytes: f64,
        ranks: f64,
        launch: Launch,
    ) -> f64 {
        self.0.ring(fit).launched(kind, bytes, ranks, launch)
    }

    /// Bytes at a fraction of the peak memory bandwidth.
    pub(crate) fn stream(&self, bytes: f64, fraction: f64) -> f64 {
        bytes * self.0.byte / fraction
    }
}
