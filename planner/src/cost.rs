//! What one operation costs: physically shaped functions over [`EfficiencyProfile`] figures.
//!
//! Every function returns microseconds of device time on one GPU (for collectives, until the last
//! rank is done), is monotone in its sizes, and never undercuts the roofline of the same
//! operation: bytes over peak bandwidth, or products over peak tensor rate, whichever is longer.
//! Formulas, sources and errors are in `docs/costs.md`.

mod attention;
mod collective;
mod expert_parallel;
mod gemm;
mod moe;
mod operation;
mod resolve;
mod scan;
mod single;
mod sparse;
mod terms;

pub use attention::{DecodeGqa, DecodeMla, PrefillGqa, PrefillMla};
pub use collective::{Collective, Implementation, Launch, Registration, Span, Transfer};
pub use expert_parallel::{ExpertExchange, ExpertMode};
pub use gemm::{Gemm, MlaBmm};
pub use moe::Moe;
pub use operation::Operation;
pub use resolve::{CostError, OpClass, OpCosts};
pub use scan::{GatedDeltaStep, Mamba2Step};
pub(crate) use single::Single;
pub use sparse::{SparseDecode, SparsePrefill};

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

/// The longer of two times, rounded where they meet: (a⁴ + b⁴)^¼. Never below either.
#[inline]
pub(crate) fn overlap(a: f64, b: f64) -> f64 {
    let (a2, b2) = (a * a, b * b);
    (a2 * a2 + b2 * b2).sqrt().sqrt()
}

/// The longer of two times that overlap less well: (a² + b²)^½. Never below either.
#[inline]
pub(crate) fn join(a: f64, b: f64) -> f64 {
    (a * a + b * b).sqrt()
}
