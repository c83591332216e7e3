//! Checks that a profile describes something that can exist.

use crate::fault::Fault;

mod efficiency;
mod gpu;
mod model;

/// A number as a person would write it.
fn plain(value: f64) -> String {
    if value == 0.0 || (1e-3..1e7).contains(&value.abs()) {
        value.to_string()
    } else {
        format!("{value:e}")
    }
}

/// Collects faults under a field path.
pub(crate) struct Checker {
    pub(crate) faults: Vec<Fault>,
}

impl Checker {
    pub(crate) fn new() -> Self {
        Checker { faults: Vec::new() }
    }

    pub(crate) fn fault(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.faults.push(Fault::field(field, message));
    }

    /// A count or size between 1 and `most`.
    pub(crate) fn size(&mut self, field: &str, value: u32, most: u32) {
        if value == 0 || value > most {
            self.fault(field, format!("is {value}; it must be from 1 to {most}"));
        }
    }

    /// A count or size between 0 and `most`.
    pub(crate) fn at_most(&mut self, field: &str, value: u32, most: u32) {
        if value > most {
            self.fault(field, format!("is {value}; it must be from 0 to {most}"));
        }
    }

    /// A rate or quantity: finite, at least `least`, at most `most`.
    pub(crate) fn quantity(&mut self, field: &str, value: f64, least: f64, most: f64, unit: &str) {
        if !(value.is_finite() && value >= least && value <= most) {
            self.fault(
                field,
                format!(
                    "is {} {unit}; it must be from {} to {}",
                    plain(value),
                    plain(least),
                    plain(most)
                ),
            );
        }
    }

    /// `value` is a whole multiple of `of`.
    pub(crate) fn multiple(&mut self, field: &str, value: u32, of_field: &str, of: u32) {
        if of > 0 && !value.is_multiple_of(of) {
            self.fault(
                field,
                format!("is {value}, which {of_field} = {of} does not divide"),
            );
        }
    }

    /// A name that can be typed as one argument and used as a file name.
    pub(crate) fn name(&mut self, value: &str) {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
        if value.is_empty() || value.len() > 80 || !value.chars().all(fits) {
            self.fault(
                "name",
                format!(
                    "is {value:?}; it must be 1 to 80 lower-case letters, digits, `-`, `.` or `_`"
                ),
            );
        }
    }
}
