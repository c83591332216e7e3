//! What an experiment found, raw values and all.

use super::{Experiment, Unit};
use serde::{Deserialize, Serialize};

/// One experiment's outcome.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Who ran, with its version: `nccl 2.28.3`, `cublaslt 13.1.0`, `parplan 0.1.0` …
    pub implementation: String,
    /// What `value` and `repeats` are counted in.
    pub unit: Unit,
    /// Median of the repeats that are no outliers, corrected for clock drift.
    pub value: f64,
    /// 90 % interval of the median: Student's t over the repeats.
    pub low: f64,
    /// Its other end.
    pub high: f64,
    /// Every repeat, in order, as measured.
    pub repeats: Vec<f64>,
    /// The anchor kernel's time beside each repeat, microseconds; empty where none ran.
    #[serde(default)]
    pub anchor_us: Vec<f64>,
    /// Places of the repeats that the median leaves out.
    #[serde(default)]
    pub outliers: Vec<u32>,
    /// What the machine did meanwhile, where that says something: `throttled: power cap` …
    #[serde(default)]
    pub remarks: Vec<String>,
    /// What was measured.
    pub experiment: Experiment,
}

/// One experiment's raw outcome, as the executor hands it over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// What was measured.
    pub experiment: Experiment,
    /// Who ran, with its version.
    pub implementation: String,
    /// Every repeat, in order, in the unit of the experiment's probe.
    pub repeats: Vec<f64>,
    /// The anchor kernel's time beside each repeat, microseconds.
    pub anchor_us: Vec<f64>,
    /// What the machine did meanwhile, where that says something.
    pub remarks: Vec<String>,
}

impl Measured {
    /// What is wrong with it, if anything is.
    ///
    /// # Errors
    /// The experiment, and what would be right.
    pub fn check(&self) -> Result<(), String> {
        check_repeats(&self.experiment, &self.repeats)
    }
}

pub(super) fn check_repeats(experiment: &Experiment, repeats: &[f64]) -> Result<(), String> {
    if repeats.is_empty() || repeats.iter().any(|x| !(x.is_finite() && *x > 0.0)) {
        return Err(format!(
            "{experiment}: needs repeats, each finite and above 0"
        ));
    }
    if experiment.ranks == 0 {
        return Err(format!("{experiment}: 0 ranks, at least 1"));
    }
    Ok(())
}

/// What a GPU says of itself at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuState {
    /// GPU, counted as CUDA does.
    pub gpu: u32,
    /// Clock of the multiprocessors, MHz.
    pub sm_mhz: u32,
    /// Its highest, MHz.
    pub sm_max_mhz: u32,
    /// Clock of the memory, MHz.
    pub memory_mhz: u32,
    /// Temperature, °C.
    pub temperature_c: u32,
    /// Power drawn, W.
    pub power_w: f64,
    /// Reasons for which the driver holds clocks down.
    pub throttled: Vec<String>,
    /// Processes other than this run's on the GPU.
    pub others: u32,
}
