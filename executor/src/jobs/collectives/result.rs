//! What a run of collectives found.

use serde::{Deserialize, Serialize};

use crate::bench::{Collective, Launch, Stats};
use crate::symmetric::Registration;

/// One measured point.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Collective.
    pub collective: Collective,
    /// Who ran: `cpu-process`, `nccl 2.28.3`, `parplan peer one-shot` …
    pub implementation: String,
    /// Registration of its buffers.
    pub registration: Registration,
    /// Launch mode.
    pub launch: Launch,
    /// Send buffer inside the receive buffer, or the other way round.
    pub in_place: bool,
    /// Bytes.
    pub bytes: usize,
    /// Ranks.
    pub ranks: usize,
    /// Times.
    pub time: Stats,
    /// bytes / time, GB/s (10⁹).
    pub algorithm_gb_s: f64,
    /// Bus bandwidth as nccl-tests defines it, GB/s.
    pub bus_gb_s: f64,
    /// Kernels in the captured graph; empty for streams and the CPU.
    pub kernels: Vec<String>,
    /// With symmetric registration in a graph: no symmetric kernel was captured.
    pub silent_fallback: bool,
    /// The result was compared with the CPU reference, every byte.
    pub checked: bool,
}

/// Costs around registration, on GPUs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RegistrationCosts {
    /// One look-up of whether a view is registered, nanoseconds.
    pub lookup_ns: f64,
    /// Allocation and symmetric registration of the largest buffer, microseconds.
    pub register_symmetric_us: f64,
    /// Copying each size into a registered buffer first, microseconds, by bytes.
    pub copy_in_us: Vec<(usize, f64)>,
}

/// What a run of collectives found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CollectivesResult {
    /// GPU name, or "cpu".
    pub device: String,
    /// Library and version, or "-".
    pub library: String,
    /// Cases of the conformance suite that were compared, 0 when it was not asked for.
    pub conformance_cases: usize,
    /// Points.
    pub samples: Vec<Sample>,
    /// Registration costs.
    pub registration: Option<RegistrationCosts>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}
