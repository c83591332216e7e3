//! How far predictions are from measurements: tables, coverage of intervals, and ratios.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use parplan_profiles::Overheads;

use super::runs::{Run, Times};

/// Standard deviations either way that hold 90 % of a normal variable.
pub(super) const Z90: f64 = 1.645;

/// ln(predicted / measured).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Errors {
    /// Of the time of an output token.
    pub tpot: f64,
    /// Of the time to first token.
    pub ttft: f64,
}

impl Errors {
    /// Of a prediction.
    pub fn of(predicted: &Times, measured: &Times) -> Errors {
        Errors {
            tpot: (predicted.tpot_ms / measured.tpot_ms).ln(),
            ttft: (predicted.ttft_ms / measured.ttft_ms).ln(),
        }
    }
}

/// A run and how its prediction erred, with the spreads that were promised.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome<'a> {
    /// The run.
    pub run: &'a Run,
    /// Its errors.
    pub errors: Errors,
    /// Promised standard deviations.
    pub sigma: Errors,
}

/// Outcomes of predictions under `entries`.
pub(super) fn outcomes<'a>(
    runs: &[&'a Run],
    entries: &[Overheads],
) -> anyhow::Result<Vec<Outcome<'a>>> {
    let times = super::fit::predict(runs, entries)?;
    Ok(runs
        .iter()
        .zip(times)
        .filter_map(|(run, times)| {
            let entry = entries
                .iter()
                .find(|e| e.engine == run.engine && e.architecture == run.architecture)?;
            Some(Outcome {
                run,
                errors: Errors::of(&times, &run.measured),
                sigma: Errors {
                    tpot: entry.tpot_sigma,
                    ttft: entry.ttft_sigma,
                },
            })
        })
        .collect())
}

/// The same outcomes beside the spreads that `entries` promise.
pub(super) fn promised<'a>(outcomes: &[Outcome<'a>], entries: &[Overheads]) -> Vec<Outcome<'a>> {
    outcomes
        .iter()
        .map(|o| {
            let entry = entries
                .iter()
                .find(|e| e.engine == o.run.engine && e.architecture == o.run.architecture);
            Outcome {
                sigma: entry.map_or(o.sigma, |e| Errors {
                    tpot: e.tpot_sigma,
                    ttft: e.ttft_sigma,
                }),
                ..*o
            }
        })
        .collect()
}

/// The value below which a share of `values` lies (nearest rank); 0 of none.
pub(super) fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    let at = (last as f64 * share) as usize;
    values.get(at).copied().unwrap_or(0.0)
}

/// Median and 90th percentile of |predicted / measured − 1|, the median of predicted / measured − 1,
/// all in percent, and the share of 90 % intervals that held.
fn figures(outcomes: &[&Outcome<'_>], of: fn(&Errors) -> f64) -> [f64; 4] {
    let sizes: Vec<f64> = outcomes
        .iter()
        .map(|o| 100.0 * of(&o.errors).exp_m1().abs())
        .collect();
    let signed = outcomes.iter().map(|o| of(&o.errors)).collect();
    let held = outcomes
        .iter()
        .filter(|o| of(&o.errors).abs() <= Z90 * of(&o.sigma))
        .count();
    [
        quantile(sizes.clone(), 0.5),
        quantile(sizes, 0.9),
        100.0 * quantile(signed, 0.5).exp_m1(),
        100.0 * held as f64 / outcomes.len().max(1) as f64,
    ]
}

/// A Markdown table of the errors, a line for each value of `key`.
pub(super) fn table(
    title: &str,
    outcomes: &[Outcome<'_>],
    key: impl Fn(&Outcome<'_>) -> String,
) -> String {
    let mut groups: BTreeMap<String, Vec<&Outcome<'_>>> = BTreeMap::new();
    for outcome in outcomes {
        groups.entry(key(outcome)).or_default().push(outcome);
    }
    let mut out = format!(
        "| {title} | runs | TPOT med | p90 | bias | in 90 % | TTFT med | p90 | bias | in 90 % |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
    );
    for (name, group) in &groups {
        let [a, b, c, d] = figures(group, |e| e.tpot);
        let [e, f, g, h] = figures(group, |e| e.ttft);
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "| {name} | {} | {a:.1} | {b:.1} | {c:+.1} | {d:.0} | {e:.1} | {f:.1} | {g:+.1} | {h:.0} |",
            group.len()
        );
    }
    out
}

/// How the errors of two configurations that are compared go together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ratios {
    /// Pairs.
    pub pairs: usize,
    /// Spread of ln(predicted ratio / measured ratio).
    pub tpot: f64,
    /// The same of TTFT.
    pub ttft: f64,
    /// That spread over the one that independent errors would give, √2 times the spread of single
    /// predictions of the same runs.
    pub tpot_share: f64,
    /// The same of TTFT.
    pub ttft_share: f64,
}

/// Which runs are paired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pairs {
    /// Same lengths and concurrency, another layout: what a comparison of layouts asks.
    Layouts,
    /// Same lengths and layout, another concurrency.
    Concurrencies,
}

impl Pairs {
    fn joins(self, a: &Run, b: &Run) -> bool {
        let (la, lb) = (a.choice.layout, b.choice.layout);
        let alike = a
            .traffic
            .concurrency
            .total_cmp(&b.traffic.concurrency)
            .is_eq();
        match self {
            Pairs::Layouts => la != lb && alike,
            Pairs::Concurrencies => la == lb && !alike,
        }
    }
}

/// The value below which a share of the weight lies.
fn weighted_quantile(mut values: Vec<(f64, f64)>, share: f64) -> f64 {
    values.sort_by(|a, b| a.0.total_cmp(&b.0));
    let total: f64 = values.iter().map(|v| v.1).sum();
    let mut sum = 0.0;
    for &(value, weight) in &values {
        sum += weight;
        if sum >= share * total {
            return value;
        }
    }
    0.0
}

/// Ratios over pairs of runs of one model, GPU, engine, version and lengths. Every run weighs the
/// same, however many others it is paired with.
pub(super) fn ratios(outcomes: &[Outcome<'_>], pairs: Pairs) -> Ratios {
    let mut groups: BTreeMap<String, Vec<&Outcome<'_>>> = BTreeMap::new();
    for o in outcomes {
        let r = o.run;
        let key = format!(
            "{} {} {} {} {} {}",
            r.model.name, r.gpu_name, r.engine, r.version, r.traffic.isl, r.traffic.osl
        );
        groups.entry(key).or_default().push(o);
    }
    let (mut tpot, mut ttft) = (Vec::new(), Vec::new());
    let (mut single_tpot, mut single_ttft) = (Vec::new(), Vec::new());
    let mut count = 0;
    for group in groups.values() {
        for a in group {
            let others: Vec<&&Outcome<'_>> =
                group.iter().filter(|b| pairs.joins(a.run, b.run)).collect();
            let weight = 1.0 / others.len().max(1) as f64;
            for b in &others {
                tpot.push(((a.errors.tpot - b.errors.tpot).abs(), weight));
                ttft.push(((a.errors.ttft - b.errors.ttft).abs(), weight));
            }
            if !others.is_empty() {
                single_tpot.push(a.errors.tpot.abs());
                single_ttft.push(a.errors.ttft.abs());
            }
            count += others.len();
        }
    }
    let tpot = weighted_quantile(tpot, 0.9) / Z90;
    let ttft = weighted_quantile(ttft, 0.9) / Z90;
    let share = |ratio: f64, single: Vec<f64>| {
        ratio / (std::f64::consts::SQRT_2 * quantile(single, 0.9) / Z90).max(1e-9)
    };
    Ratios {
        // Every pair was met from both ends.
        pairs: count / 2,
        tpot,
        ttft,
        tpot_share: share(tpot, single_tpot),
        ttft_share: share(ttft, single_ttft),
    }
}
