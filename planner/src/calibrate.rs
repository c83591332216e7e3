//! Calibration: which experiments are worth running, what samples say, and what they change.
//!
//! [`summarise`] turns repeats into a value with its interval; [`terms`] fits the figures of every
//! class with their errors; [`apply`] lets them price plans; [`experiments`] lists what to measure
//! and [`decide`] what would settle a question. Plain data in, plain data out: the executor runs the
//! experiments, `src/` keeps the files. docs/calibration.md has the methods and what they reach.

mod apply;
mod figures;
mod fit;
mod summary;
mod terms;

pub use apply::{Calibrated, Layer, Origin, apply};
pub use summary::{Summary, median, summarise};
pub use terms::{Difference, differences, machine, terms};
