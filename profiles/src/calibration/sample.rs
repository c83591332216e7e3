//! What an experiment found, raw values and all.

use super::experiment::{Experiment, Unit};
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
