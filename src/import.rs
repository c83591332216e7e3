//! Results of other tools: collectives become samples of a calibration, serving runs observed runs.

mod collectives;
mod nccl_tests;
mod serving;

use crate::failure::Failure;
use parplan_profiles::calibration::{BufferRegistration, CollectiveKind, Measured};
use parplan_profiles::observed::ObservedRun;
use serde_json::Value;
use std::path::Path;

/// What a file held.
#[derive(Debug, Clone, PartialEq)]
pub enum Imported {
    /// Collectives, with the device that they ran on and the day, where the file says so.
    Samples {
        /// Raw samples, one repeat each.
        samples: Vec<Measured>,
        /// The device's name.
        device: Option<String>,
        /// NCCL's version.
        nccl: Option<String>,
        /// When, as the tool wrote it.
        date: Option<String>,
        /// What was left out, and why.
        notes: Vec<String>,
    },
    /// Serving runs.
    Runs(Vec<ObservedRun>),
}

/// What a file does not say of itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hints {
    /// The collective of a text without its name.
    pub collective: Option<CollectiveKind>,
    /// Registration of the buffers (nccl-tests -R), which its text does not repeat.
    pub registration: Option<BufferRegistration>,
}

/// In a captured graph NCCL registers memory that it allocated itself, as nccl-tests' and parplan's
/// buffers are; up to this size its low-latency protocol makes no use of that (its kernels' names say
/// LL), so the sample stands for ordinary buffers too.
pub(crate) const WITHOUT_USE_OF_REGISTRATION: u64 = 256 << 10;

/// The registration that a sample stands for.
pub(crate) fn effective(
    registration: BufferRegistration,
    graph: bool,
    bytes: u64,
) -> BufferRegistration {
    match registration {
        BufferRegistration::None if graph && bytes > WITHOUT_USE_OF_REGISTRATION => {
            BufferRegistration::Local
        }
        other => other,
    }
}

/// Reads a file of any known kind.
///
/// # Errors
/// A text of no known kind, or one that is broken, with its name and what is known.
pub fn read(path: &Path, text: &str, hints: Hints) -> Result<Imported, Failure> {
    let file = path.display().to_string();
    let about = |why: String| Failure::unusable(format!("{file}: {why}"));
    if text.contains("# nThread") {
        return nccl_tests::text(text, hints).map_err(about);
    }
    let start = text.trim_start();
    if !start.starts_with('{') {
        return Err(about(UNKNOWN.to_owned()));
    }
    if let Ok(value) = serde_json::from_str::<Value>(start) {
        return json(&file, &value, hints).map_err(about);
    }
    // SGLang appends a line a run.
    let mut runs = Vec::new();
    for (at, line) in start
        .lines()
        .enumerate()
        .filter(|(_, l)| !l.trim().is_empty())
    {
        let value: Value = serde_json::from_str(line)
            .map_err(|e| about(format!("line {}: it is no JSON: {e}", at + 1)))?;
        match json(&file, &value, hints).map_err(|why| about(format!("line {}: {why}", at + 1)))? {
            Imported::Runs(more) => runs.extend(more),
            Imported::Samples { .. } => {
                return Err(about(format!("line {}: is no serving run", at + 1)));
            }
        }
    }
    Ok(Imported::Runs(runs))
}

const UNKNOWN: &str = "is of no known kind; known: nccl-tests (text, or JSON by -J), `parplan run \
                       collectives --json`, `parplan run sync --json`, SGLang bench_serving, vllm \
                       bench serve (--save-result), AIPerf (profile_export_aiperf.json)";

fn json(file: &str, value: &Value, hints: Hints) -> Result<Imported, String> {
    if value.get("config").is_some() && value.get("results").is_some() {
        return nccl_tests::json(value, hints);
    }
    if value.get("samples").is_some() && value.get("device").is_some() {
        return collectives::json(value);
    }
    if let Some(run) = serving::run(file, value)? {
        return Ok(Imported::Runs(vec![run]));
    }
    Err(UNKNOWN.to_owned())
}

#[cfg(test)]
mod tests;
