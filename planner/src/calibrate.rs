//! Calibration: which experiments are worth running, what samples say, and what they change.
//!
//! [`summarise`] turns repeats into a value with its interval; [`terms`] fits the figures of every
//! class with their errors; [`apply`] lets them price plans; [`experiments`] lists what to measure
//! and [`decide`] what would settle a question. Plain data in, plain data out: the executor runs the
//! experiments, `src/` keeps the files. docs/calibration.md has the methods and what they reach.

mod apply;
pub mod decide;
pub mod experiments;
mod figures;
mod fit;
mod operation;
mod summary;
mod terms;

use figures::Figures;
use parplan_profiles::calibration::{Class, Experiment};
use parplan_profiles::{EfficiencyProfile, GpuProfile, Overheads};

pub use apply::{Calibrated, Layer, Origin, apply};
pub use summary::{Summary, median, summarise};
pub use terms::{Difference, differences, machine, terms};

/// What an experiment would take before it was measured, microseconds; none for what is recorded
/// rather than predicted, and for formats that have no figures.
pub fn predicted_us(
    experiment: &Experiment,
    gpu: &GpuProfile,
    efficiency: &EfficiencyProfile,
    overheads: &Overheads,
) -> Option<f64> {
    let figures = Figures::before(Class::of(experiment), efficiency, overheads)?;
    let us = figures.us(gpu, experiment);
    (us.is_finite() && us > 0.0).then_some(us)
}
