//! The workload that was named: built in, one of the user's, or a file.

use super::names::as_path;
use crate::failure::Failure;
use crate::render::number;
use parplan_planner::question::Balance;
use parplan_profiles::{Imbalance, Lengths, Library, Load, Slo, Workload};
use std::path::Path;

/// Reads the workload of a name, a TOML file or a trace.
///
/// # Errors
/// An unknown name with the nearest, or every fault of the file.
pub fn read(library: &Library, name: &str) -> Result<Workload, Failure> {
    let is_file = [".toml", ".csv", ".jsonl"]
        .iter()
        .any(|ending| name.to_lowercase().ends_with(ending));
    let path = as_path(name).or(is_file.then(|| Path::new(name)));
    Ok(match path {
        None => library.workload(name)?,
        Some(path) => library.workload_file(path)?,
    })
}

/// A distribution in words: `1,155 on average, measured, up to 14,050`.
pub(super) fn lengths(lengths: &Lengths) -> String {
    let mean = lengths.mean().map_or_else(String::new, number::whole);
    let longest = lengths.max().map_or(0.0, f64::from);
    let most = number::whole(longest);
    match lengths {
        Lengths::Fixed { .. } => format!("{most} each"),
        Lengths::Uniform { range_ratio, .. } => format!(
            "{mean} on average, drawn evenly from {} % of {most}",
            number::percent(*range_ratio)
        ),
        Lengths::LogNormal { median, sigma, .. } => format!(
            "{mean} on average, log-normal with median {} and sigma {}, up to {most}",
            number::whole(*median),
            number::plain(*sigma)
        ),
        Lengths::Quantiles { .. } | Lengths::Trace { .. } => {
            format!("{mean} on average as measured, up to {most}")
        }
    }
}

/// Clients or arrivals in words.
pub(super) fn load(load: &Load) -> String {
    match load {
        Load::Concurrency { requests } => {
            format!("{} clients", number::whole(f64::from(*requests)))
        }
        Load::Rate { requests_per_s } => {
            format!("{} requests a second", number::plain(*requests_per_s))
        }
    }
}

/// How attention-DP ranks are loaded.
pub(super) fn balance(imbalance: &Imbalance) -> Balance {
    match imbalance {
        Imbalance::Balanced => Balance::Even,
        Imbalance::Ratio { mean_over_max } => Balance::MeanOverMax(*mean_over_max),
        Imbalance::Ranks { batches } => {
            Balance::Ranks(batches.iter().map(|batch| f64::from(*batch)).collect())
        }
        Imbalance::Drawn { seed } => Balance::Random(*seed),
    }
}

/// Limits on latency in words; none where there are none.
pub(super) fn limits(slo: &Slo) -> Option<String> {
    let parts: Vec<String> = [("TTFT", slo.ttft_ms), ("TPOT", slo.tpot_ms)]
        .into_iter()
        .filter_map(|(name, ms)| Some(format!("{name} under {} ms", number::plain(ms?))))
        .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}
