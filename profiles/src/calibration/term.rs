//! Figures fitted to samples.

use super::class::Class;
use serde::{Deserialize, Serialize};

/// The figures of one class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Term {
    /// What they describe.
    pub class: Class,
    /// Who was timed.
    pub implementation: String,
    /// Rank counts that were measured, ascending; `[1]` for work of one rank.
    pub ranks: Vec<u32>,
    /// Samples that were fitted.
    pub samples: u32,
    /// Standard deviation of ln(fitted / measured).
    pub residual: f64,
    /// Errors of each sample by a fit that had not seen it.
    pub leave_one_out: Errors,
    /// The same errors under the figures that held before, and what those rest on.
    pub before: Option<Before>,
    /// The figures.
    pub parameters: Vec<Parameter>,
    /// Sizes that were measured; beyond them the figures extrapolate.
    pub range: Vec<Range>,
}

/// Errors of predictions over samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Errors {
    /// Median of |predicted / measured − 1|.
    pub median: f64,
    /// Its 90th percentile.
    pub p90: f64,
    /// Root mean square of ln(predicted / measured).
    pub sigma: f64,
}

/// How the figures that a calibration replaces did on its samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Before {
    /// Their errors.
    pub errors: Errors,
    /// What they rest on.
    pub source: String,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    /// Its name in the class's formula (docs/costs.md).
    pub name: String,
    /// Its value.
    pub value: f64,
    /// 90 % interval.
    pub low: f64,
    /// Its other end.
    pub high: f64,
    /// The samples say little about it: it stands near what was assumed before.
    #[serde(default)]
    pub assumed: bool,
}

/// The sizes of a quantity that were measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// The quantity: `bytes`, `m`, `context` …
    pub quantity: String,
    /// Smallest.
    pub least: f64,
    /// Largest.
    pub most: f64,
}

impl Term {
    /// A figure by name.
    pub fn parameter(&self, name: &str) -> Option<f64> {
        self.parameters
            .iter()
            .find(|p| p.name == name)
            .map(|p| p.value)
    }
}
