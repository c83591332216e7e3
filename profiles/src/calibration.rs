//! Calibrations: what was measured on a machine, and the figures fitted to it.
//!
//! Plain data that the planner (which lists experiments and fits samples) and the executor (which
//! runs them) exchange. A calibration is one TOML file; while it is being measured, its samples
//! stand in a [`Journal`], a line each.

mod class;
mod experiment;
mod journal;
mod probe;
mod sample;
mod shipped;
mod term;

pub use class::{Class, UnknownClass};
pub use experiment::{Experiment, LaunchMode};
pub use journal::{Journal, JournalError};
pub use probe::{
    BufferRegistration, CollectiveKind, DecodeGqaShape, DecodeMlaShape, ExpertsShape,
    PrefillGqaShape, Probe, SyncWay, Unit,
};
pub use sample::{GpuState, Measured, Sample};
pub use shipped::{SAMPLES_FOLDER, shipped_files};
pub use term::{Before, Errors, Parameter, Range, Term};

use crate::fault::Fault;
use crate::gpu::GpuProfile;
use serde::{Deserialize, Serialize};

/// The schema that this version reads and writes. It is raised when a field changes its meaning.
pub const SCHEMA: u32 = 1;

/// What was measured on one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// [`SCHEMA`].
    pub schema: u32,
    /// A short name, for example `h200-x2-2026-11-22`.
    pub name: String,
    /// Where, when and by what it was measured.
    pub provenance: Provenance,
    /// What someone should know before trusting it.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Fitted figures.
    #[serde(default)]
    pub terms: Vec<Term>,
    /// Raw samples.
    #[serde(default)]
    pub samples: Vec<Sample>,
}

/// Where, when and by what a calibration was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Name of the GPU profile that the device is.
    pub gpu: String,
    /// The device, as its driver names it.
    pub device: String,
    /// How many of them took part.
    pub count: u32,
    /// Bytes of memory of one, as the driver reports them; 0 where it is not known.
    pub memory_bytes: u64,
    /// `cpu` or `nccl`.
    pub backend: String,
    /// Version of the GPU driver.
    pub driver: String,
    /// CUDA version that the driver brings.
    pub cuda: String,
    /// NCCL's version.
    pub nccl: String,
    /// How the devices are joined, as far as it could be read.
    pub topology: String,
    /// Processor and operating system of the host.
    pub host: String,
    /// When the first sample was taken, RFC 3339.
    pub date: String,
    /// Who measured: `parplan 0.1.0`, or the tool that an import came from.
    pub measured_by: String,
    /// State of the GPUs before the first and after the last sample.
    #[serde(default)]
    pub clocks: Vec<GpuState>,
}

/// Why a text is no calibration that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CalibrationError {
    /// It does not read.
    #[error("{0}")]
    Fault(Fault),
    /// It is of another schema.
    #[error("{file}: calibration schema {found}, this parplan reads {SCHEMA}: {remedy}")]
    Schema {
        /// The file.
        file: String,
        /// What it says.
        found: i64,
        /// What to do.
        remedy: &'static str,
    },
    /// It was measured on another GPU.
    #[error(
        "{file}: was measured on {measured} ({device}), the plan is for {planned}: give --gpu {measured}, or a calibration of {planned}"
    )]
    Foreign {
        /// The file.
        file: String,
        /// Profile of the GPU that was measured.
        measured: String,
        /// What its driver calls it.
        device: String,
        /// Profile of the GPU that is planned for.
        planned: String,
    },
}

#[derive(Deserialize)]
struct Schema {
    schema: Option<i64>,
}

impl Calibration {
    /// Reads and checks a calibration.
    ///
    /// # Errors
    /// Another schema, a text that is not whole, or a figure that cannot be; with the file's name.
    pub fn from_toml(file: &str, text: &str) -> Result<Calibration, CalibrationError> {
        let whole = |message: String| CalibrationError::Fault(Fault::whole(file, message));
        let broken = |error: toml::de::Error| {
            let mut fault = Fault::whole(file, error.message().to_owned());
            fault.position = error.span().map(|span| position(text, span.start));
            CalibrationError::Fault(fault)
        };
        // Fields of another schema would be refused one by one: what is wrong then is the schema.
        let read = toml::from_str::<Calibration>(text);
        let schema = match &read {
            Ok(calibration) => Some(i64::from(calibration.schema)),
            Err(_) => toml::from_str::<Schema>(text).map_err(broken)?.schema,
        };
        match schema {
            Some(found) if found == i64::from(SCHEMA) => {}
            Some(found) => {
                return Err(CalibrationError::Schema {
                    file: file.to_owned(),
                    found,
                    remedy: if found < i64::from(SCHEMA) {
                        "measure again with `parplan calibrate`"
                    } else {
                        "use the parplan that wrote it, or a newer one"
                    },
                });
            }
            None => {
                return Err(whole(
                    "has no `schema`, so it is no calibration of parplan".to_owned(),
                ));
            }
        }
        let calibration = read.map_err(broken)?;
        calibration
            .check()
            .map_err(|fault| CalibrationError::Fault(fault.in_file(file)))?;
        Ok(calibration)
    }

    /// The text of its file.
    ///
    /// # Errors
    /// A figure that TOML cannot hold.
    pub fn to_toml(&self) -> Result<String, Fault> {
        toml::to_string(self).map_err(|error| Fault::field("calibration", error.to_string()))
    }

    /// Whether it may price plans for `gpu`.
    ///
    /// # Errors
    /// [`CalibrationError::Foreign`] with both names.
    pub fn is_for(&self, file: &str, gpu: &GpuProfile) -> Result<(), CalibrationError> {
        if self.provenance.gpu == gpu.name {
            return Ok(());
        }
        Err(CalibrationError::Foreign {
            file: file.to_owned(),
            measured: self.provenance.gpu.clone(),
            device: self.provenance.device.clone(),
            planned: gpu.name.clone(),
        })
    }

    /// The figures of a class.
    pub fn term(&self, class: Class) -> Option<&Term> {
        self.terms.iter().find(|term| term.class == class)
    }

    fn check(&self) -> Result<(), Fault> {
        let wrong = |field: String, message: String| Err(Fault::field(field, message));
        if self.provenance.gpu.is_empty() {
            return wrong(
                "provenance.gpu".to_owned(),
                "is empty; it names the GPU profile that was measured".to_owned(),
            );
        }
        for (at, term) in self.terms.iter().enumerate() {
            let field = format!("terms[{at}] ({})", term.class);
            let errors = [
                term.residual,
                term.leave_one_out.median,
                term.leave_one_out.p90,
                term.leave_one_out.sigma,
            ];
            if errors.iter().any(|x| !(x.is_finite() && *x >= 0.0)) {
                return wrong(field, "needs finite errors of at least 0".to_owned());
            }
            if let Some(p) = term.parameters.iter().find(|p| {
                !(p.value.is_finite() && p.value >= 0.0 && p.low <= p.value && p.value <= p.high)
            }) {
                return wrong(
                    field,
                    format!(
                        "{} is {} in [{}, {}]; it needs a finite value of at least 0 within its interval",
                        p.name, p.value, p.low, p.high
                    ),
                );
            }
            if term.ranks.is_empty() || term.samples == 0 {
                return wrong(field, "needs ranks and samples".to_owned());
            }
            let there = || {
                let same = |s: &&Sample| Class::of(&s.experiment) == term.class;
                self.samples.iter().filter(same).count()
            };
            if term.class.prices_by_sample() && there() < term.samples as usize {
                return wrong(
                    field,
                    format!(
                        "was fitted to {} samples, and {} of them are in the file: they price by \
                         themselves, so put them back, or measure again with `parplan calibrate`",
                        term.samples,
                        there()
                    ),
                );
            }
        }
        for (at, sample) in self.samples.iter().enumerate() {
            sample
                .check()
                .map_err(|message| Fault::field(format!("samples[{at}]"), message))?;
        }
        Ok(())
    }
}

impl Sample {
    /// What is wrong with it, if anything is.
    ///
    /// # Errors
    /// The field, its value and what would be right.
    pub fn check(&self) -> Result<(), String> {
        if self.unit != self.experiment.probe.unit() {
            return Err(format!(
                "{} is counted in {:?}, it needs {:?}",
                self.experiment,
                self.unit,
                self.experiment.probe.unit()
            ));
        }
        let figures = [self.value, self.low, self.high];
        if figures.iter().any(|x| !(x.is_finite() && *x > 0.0))
            || self.low > self.value
            || self.value > self.high
        {
            return Err(format!(
                "{}: {} in [{}, {}]; it needs a finite value above 0 within its interval",
                self.experiment, self.value, self.low, self.high
            ));
        }
        sample::check_repeats(&self.experiment, &self.repeats)?;
        if let Some(at) = self
            .outliers
            .iter()
            .find(|at| **at as usize >= self.repeats.len())
        {
            return Err(format!(
                "{}: outlier {at} is none of the {} repeats",
                self.experiment,
                self.repeats.len()
            ));
        }
        Ok(())
    }
}

/// Line and column of a byte of a text, from 1.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .map_or(0, |tail| tail.chars().count())
        + 1;
    (line, column)
}

#[cfg(test)]
mod tests;
