//! From a journal to a calibration.

use crate::failure::Failure;
use parplan_executor::probes::ProbesResult;
use parplan_planner::calibrate::{median, summarise, terms};
use parplan_profiles::calibration::{Journal, Measured, SCHEMA, Sample};
use parplan_profiles::{Calibration, GpuProfile, Library};

/// The engine whose figures samples are fitted from: the one that runs parplan's own kernels.
const OWN_ENGINE: &str = "builtin";

/// 90th percentile of the difference between repeated runs of nccl-tests on one machine (8 H200,
/// comm/nccl of aiconfigurator-core 0.12.0).
const OTHER_TOOLS: f64 = 0.08;

/// Anchors that are slower than the first ones by this factor say that the machine was not itself.
const SLOWED: f64 = 1.10;

/// Sums up a raw sample.
pub fn sample(measured: Measured) -> Sample {
    let mut summary = summarise(&measured.repeats, &measured.anchor_us);
    if measured.anchor_us.is_empty() && measured.repeats.len() < 3 {
        // Averages that another tool gave: runs of nccl-tests on one machine agree within this.
        summary.low = summary.value * (1.0 - OTHER_TOOLS);
        summary.high = summary.value * (1.0 + OTHER_TOOLS);
    }
    let mut remarks = measured.remarks;
    if !summary.outliers.is_empty() {
        remarks.push(format!(
            "{} of {} repeats are outliers",
            summary.outliers.len(),
            measured.repeats.len()
        ));
    }
    Sample {
        unit: measured.experiment.probe.unit(),
        implementation: measured.implementation,
        value: summary.value,
        low: summary.low,
        high: summary.high,
        repeats: measured.repeats,
        anchor_us: measured.anchor_us,
        outliers: summary.outliers,
        remarks,
        experiment: measured.experiment,
    }
}

/// The calibration that a journal makes, its figures fitted from those of the library.
///
/// # Errors
/// A library without figures of parplan's own kernels.
pub fn calibration(
    journal: Journal,
    library: &Library,
    gpu: &GpuProfile,
    name: &str,
    results: &[ProbesResult],
    loaded: Option<f64>,
) -> Result<Calibration, Failure> {
    let samples: Vec<Sample> = journal.samples.into_iter().map(sample).collect();
    let mut provenance = journal.provenance;
    for result in results {
        provenance.clocks.extend(result.clocks.iter().cloned());
        if !result.machine.nccl.is_empty() {
            provenance.nccl.clone_from(&result.machine.nccl);
        }
    }
    let efficiency = library.efficiency(OWN_ENGINE, gpu)?;
    let overheads = library.overheads(OWN_ENGINE, gpu)?;
    Ok(Calibration {
        schema: SCHEMA,
        name: name.to_owned(),
        provenance,
        warnings: warnings(&samples, loaded),
        terms: terms(gpu, &efficiency.figures, &overheads.figures, &samples),
        samples,
    })
}

/// What someone should know before trusting the samples.
fn warnings(samples: &[Sample], loaded: Option<f64>) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(load) = loaded.filter(|load| *load > 0.5) {
        out.push(format!(
            "the machine was busy: {load:.1} processes a core wanted to run when measuring began"
        ));
    }
    let held: Vec<&str> = samples
        .iter()
        .flat_map(|s| &s.remarks)
        .filter(|text| text.starts_with("clocks held down") || text.contains("other processes"))
        .map(String::as_str)
        .collect();
    let mut kinds: Vec<&str> = held.clone();
    kinds.sort_unstable();
    kinds.dedup();
    for kind in kinds {
        let count = held.iter().filter(|text| **text == kind).count();
        out.push(format!(
            "{kind}: during {count} of {} samples",
            samples.len()
        ));
    }
    let anchors: Vec<f64> = samples
        .iter()
        .filter(|s| !s.anchor_us.is_empty())
        .map(|s| median(&s.anchor_us))
        .collect();
    if let (Some(first), Some(most)) = (anchors.first(), anchors.iter().copied().reduce(f64::max))
        && most > first * SLOWED
    {
        out.push(format!(
            "the anchor kernel took up to {:.0} % longer than at first: clocks fell, or others used \
             the machine",
            (most / first - 1.0) * 100.0
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use parplan_profiles::calibration::{Experiment, LaunchMode, Probe};

    fn measured(us: f64, anchor: f64) -> Measured {
        Measured {
            experiment: Experiment::alone(
                Probe::MemoryCopy { bytes: 1 << 20 },
                LaunchMode::Stream,
                "",
            ),
            implementation: "parplan".into(),
            repeats: vec![us, us * 1.01, us * 9.0, us * 0.99, us],
            anchor_us: vec![anchor; 5],
            remarks: vec!["clocks held down: sw power cap".into()],
        }
    }

    #[test]
    fn a_loaded_or_throttled_machine_is_said() {
        let samples: Vec<Sample> = [(5.0, 1.0), (5.0, 1.3)]
            .map(|(us, anchor)| sample(measured(us, anchor)))
            .into();
        assert!(samples[0].outliers == [2] && samples[0].check().is_ok());
        let said = warnings(&samples, Some(2.0)).join("; ");
        assert!(said.contains("busy: 2.0"), "{said}");
        assert!(said.contains("sw power cap: during 2 of 2"), "{said}");
        assert!(said.contains("30 % longer"), "{said}");
        assert_eq!(warnings(&samples[..0], Some(0.1)), Vec::<String>::new());
    }
}
