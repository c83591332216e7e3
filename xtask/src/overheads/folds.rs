//! What is left out of a fit that is then judged on it.

use std::collections::BTreeSet;

use anyhow::Result;
use parplan_profiles::Overheads;

use super::errors::{Outcome, outcomes};
use super::figures::Figures;
use super::fit;
use super::runs::Run;

/// A way to divide the runs of an engine: each part is left out in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fold {
    /// A model, in all of its number formats.
    Model,
    /// A GPU.
    Gpu,
    /// An engine version.
    Version,
    /// Nominal prompt and output lengths.
    Lengths,
    /// A range of concurrencies.
    Concurrency,
}

/// Upper ends of the ranges of concurrency; the last range has none.
const RANGES: [f64; 3] = [8.0, 32.0, 128.0];

impl Fold {
    /// All of them, in the order of the docs.
    pub const ALL: [Fold; 5] = [
        Fold::Model,
        Fold::Gpu,
        Fold::Version,
        Fold::Lengths,
        Fold::Concurrency,
    ];

    /// Whether errors on its parts say what to expect of something new, rather than of something between
    /// what was seen.
    pub fn gives_spreads(self) -> bool {
        matches!(self, Fold::Model | Fold::Gpu | Fold::Version)
    }

    /// What is left out, in words.
    pub fn title(self) -> &'static str {
        match self {
            Fold::Model => "Model",
            Fold::Gpu => "GPU",
            Fold::Version => "Engine version",
            Fold::Lengths => "Prompt and output lengths",
            Fold::Concurrency => "Range of concurrency",
        }
    }

    /// The part that `run` is in.
    fn part(self, run: &Run) -> String {
        match self {
            Fold::Model => run.family.to_owned(),
            Fold::Gpu => run.gpu_name.clone(),
            Fold::Version => run.version.clone(),
            Fold::Lengths => format!("{:.0}/{:.0}", run.traffic.isl, run.traffic.osl),
            Fold::Concurrency => RANGES
                .iter()
                .filter(|&&end| run.traffic.concurrency > end)
                .count()
                .to_string(),
        }
    }

    /// Errors on each part of fits that had not seen it, in the order of `runs`. A part that leaves its
    /// architecture without a run is judged by the engine's figures of the other one; of an engine whose
    /// runs are all in one part nothing can be said.
    pub fn without_each<'a>(self, runs: &[&'a Run], start: &Figures) -> Result<Vec<Outcome<'a>>> {
        let parts: BTreeSet<String> = runs.iter().map(|run| self.part(run)).collect();
        let mut out = Vec::new();
        for part in parts {
            let (left, seen): (Vec<&Run>, Vec<&Run>) =
                runs.iter().partition(|run| self.part(run) == part);
            if seen.is_empty() {
                continue;
            }
            let figures = fit::fit(&seen, start.seen_by(&seen))?;
            let mut entries = fit::finished(&seen, &figures, &[]);
            if let Some(first) = entries.first().cloned() {
                for run in &left {
                    if entries.iter().all(|e| e.architecture != run.architecture) {
                        entries.push(Overheads {
                            architecture: run.architecture,
                            ..first.clone()
                        });
                    }
                }
            }
            out.extend(outcomes(&left, &entries)?);
        }
        Ok(out)
    }
}
