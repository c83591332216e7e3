//! Two configurations on the same work: which wins, and where that turns.

use crate::deployment::{Deployment, Setup};
use crate::estimate;
use crate::plan::{Choice, Plan};
use crate::question::{Balance, Settings, Traffic};
use serde::Serialize;
use statrs::distribution::{ContinuousCDF, Normal};

/// A side of a comparison.
#[derive(Debug, Clone)]
pub struct Side<'a> {
    /// Model, GPU, engine.
    pub setup: &'a Setup<'a>,
    /// The configuration.
    pub choice: Choice,
    /// Engine settings.
    pub settings: &'a Settings,
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Output tokens a second and GPU; more is better.
    Throughput,
    /// Mean time of an output token after the first; less is better. Where requests have none
    /// after the first, [`compare`] decides by [`Metric::Ttft`] and says so.
    Tpot,
    /// Mean time to the first token; less is better.
    Ttft,
}

/// Which side wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Winner {
    /// The first.
    A,
    /// The second.
    B,
}

/// What is varied to find where the winner changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// Clients.
    Concurrency,
    /// Prompt tokens.
    PromptTokens,
    /// Mean over maximum of the attention-DP ranks' batches.
    Balance,
}

/// A place where the winner changes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Crossover {
    /// What was varied.
    pub axis: Axis,
    /// Where the two are equal.
    pub at: f64,
    /// Who wins below it.
    pub below: Winner,
    /// Who wins above it.
    pub above: Winner,
}

/// The outcome of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The first side.
    pub a: Plan,
    /// The second side.
    pub b: Plan,
    /// What decides.
    pub metric: Metric,
    /// Who wins; none where the two are alike ([`ALIKE`]).
    pub winner: Option<Winner>,
    /// How much better the winner is: a ratio of at least 1.
    pub by: f64,
    /// How sure that is: the probability that the winner stays the winner, from the spread of the
    /// two predictions. What both share (engine, GPU, model) cancels and is left out.
    pub confidence: f64,
    /// Where the winner changes, along each axis that was tried.
    pub crossovers: Vec<Crossover>,
    /// Axes along which it does not, within what was tried.
    pub steady: Vec<Axis>,
}

/// Share of the spread of a prediction that two configurations of one model on one engine do not
/// have in common, for TPOT and for TTFT. Measured over 616 pairs of serving runs of one model, GPU,
/// engine, version, lengths and concurrency, but another layout, by fits that had not seen the model:
/// the spread of ln(predicted ratio / measured ratio) over that of independent errors
/// (`cargo xtask overheads` prints it; docs/serving.md).
const OWN_SPREAD_TPOT: f64 = 0.58;
const OWN_SPREAD_TTFT: f64 = 0.72;

fn value(side: &Side<'_>, traffic: &Traffic, metric: Metric) -> f64 {
    let service = Deployment::new(side.setup, traffic, side.settings, side.choice).serve(traffic);
    let layout = side.choice.layout;
    // Larger is better for all of them, so that one rule decides.
    match metric {
        Metric::Throughput => {
            service.requests_per_s * f64::from(layout.replicas) * traffic.osl
                / f64::from(layout.gpus())
        }
        Metric::Tpot => 1e6 / service.tpot_us.unwrap_or(service.ttft_us),
        Metric::Ttft => 1e6 / service.ttft_us,
    }
}

/// ln(A / B): above zero A wins.
fn lead(a: &Side<'_>, b: &Side<'_>, traffic: &Traffic, metric: Metric) -> f64 {
    (value(a, traffic, metric) / value(b, traffic, metric)).ln()
}

/// Two sides whose figures differ by less than this share are the same: it prints as 0.0 %.
pub const ALIKE: f64 = 5e-4;

fn winner(lead: f64) -> Winner {
    if lead >= 0.0 { Winner::A } else { Winner::B }
}

/// Compares two sides on the same traffic.
pub fn compare(a: &Side<'_>, b: &Side<'_>, traffic: &Traffic, metric: Metric) -> Comparison {
    let metric = match metric {
        Metric::Tpot if !traffic.has_tpot() => Metric::Ttft,
        metric => metric,
    };
    let at = lead(a, b, traffic, metric);
    let (left, right) = (a.setup.overheads, b.setup.overheads);
    let spread = match metric {
        Metric::Ttft => OWN_SPREAD_TTFT * left.ttft_sigma.hypot(right.ttft_sigma),
        _ => OWN_SPREAD_TPOT * left.tpot_sigma.hypot(right.tpot_sigma),
    };
    let mut crossovers = Vec::new();
    let mut steady = Vec::new();
    for axis in [Axis::Concurrency, Axis::PromptTokens, Axis::Balance] {
        // An open loop has no clients to vary.
        if axis == Axis::Concurrency && traffic.requests_per_s.is_some() {
            continue;
        }
        let found = crossings(a, b, traffic, metric, axis);
        if found.is_empty() {
            steady.push(axis);
        }
        crossovers.extend(found);
    }
    Comparison {
        a: estimate::plan(a.setup, traffic, a.settings, a.choice),
        b: estimate::plan(b.setup, traffic, b.settings, b.choice),
        metric,
        winner: (at.abs() >= ALIKE).then(|| winner(at)),
        by: at.abs().exp(),
        confidence: Normal::standard().cdf(at.abs() / spread.max(1e-9)),
        crossovers,
        steady,
    }
}

/// `traffic` with one axis set.
fn moved(traffic: &Traffic, axis: Axis, value: f64) -> Traffic {
    let mut out = traffic.clone();
    match axis {
        Axis::Concurrency => out.concurrency = value,
        Axis::PromptTokens => out.isl = value,
        Axis::Balance => out.balance = Balance::MeanOverMax(value),
    }
    out
}

/// The values that an axis is tried at.
fn grid(a: &Side<'_>, b: &Side<'_>, axis: Axis) -> Vec<f64> {
    match axis {
        Axis::Concurrency => (0..=12).map(|i| f64::from(1u32 << i)).collect(),
        Axis::PromptTokens => {
            let most = f64::from(a.setup.model.max_position.min(b.setup.model.max_position));
            (7..=20)
                .map(|i| f64::from(1u32 << i))
                .filter(|&tokens| tokens < most)
                .collect()
        }
        Axis::Balance => {
            let dp = a
                .choice
                .layout
                .attention_dp
                .max(b.choice.layout.attention_dp);
            if dp <= 1 {
                return Vec::new();
            }
            let least = 1.0 / f64::from(dp);
            (0..=8)
                .map(|i| least + (1.0 - least) * f64::from(i) / 8.0)
                .collect()
        }
    }
}

fn crossings(
    a: &Side<'_>,
    b: &Side<'_>,
    traffic: &Traffic,
    metric: Metric,
    axis: Axis,
) -> Vec<Crossover> {
    let f = |x: f64| lead(a, b, &moved(traffic, axis, x), metric);
    let grid = grid(a, b, axis);
    let values: Vec<f64> = grid.iter().map(|&x| f(x)).collect();
    let mut out = Vec::new();
    for (xs, ys) in grid.windows(2).zip(values.windows(2)) {
        let ([left, right], [first, last]) = (xs, ys) else {
            continue;
        };
        // Within a hundredth either way the two are the same for every purpose.
        if first * last >= 0.0 || first.abs().max(last.abs()) < 0.01 {
            continue;
        }
        let (mut low, mut high) = (*left, *right);
        for _ in 0..24 {
            let middle = (low * high).sqrt();
            if f(middle) * first > 0.0 {
                low = middle;
            } else {
                high = middle;
            }
        }
        out.push(Crossover {
            axis,
            at: (low * high).sqrt(),
            below: winner(*first),
            above: winner(*last),
        });
    }
    out
}
