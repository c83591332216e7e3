//! Predicted against measured: errors, coverage, order.

use super::select::Case;
use crate::exec::predict;
use parplan_executor::bench::Launch;
use parplan_executor::jobs::{StackResult, StackStep};
use parplan_executor::stack::Op;
use parplan_planner::calibrate::median;
use parplan_planner::deployment::Setup;
use serde::Serialize;

/// An operation of a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// The kind of work.
    pub op: Op,
    /// Microseconds in the step.
    pub predicted_us: f64,
    /// Microseconds in the step.
    pub measured_us: f64,
}

/// A step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judged {
    /// Model and layout.
    pub stack: String,
    /// Requests of the fullest rank.
    pub batch: usize,
    /// Tokens in the cache of each.
    pub context: usize,
    /// `graph` or `stream`.
    pub launch: &'static str,
    /// Of the operations that are compared: without what ranks exchange, where one rank stands for many.
    pub predicted_us: f64,
    /// 90 % interval.
    pub low_us: f64,
    /// Its other end.
    pub high_us: f64,
    /// What it took.
    pub measured_us: f64,
    /// predicted / measured − 1.
    pub error: f64,
    /// Operation by operation.
    pub operations: Vec<Line>,
}

/// Sums over steps.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Median of |error|.
    pub median: f64,
    /// 90th percentile.
    pub p90: f64,
    /// Share of the measurements within the 90 % intervals.
    pub coverage: f64,
    /// Spearman's rank correlation of predicted and measured.
    pub rank_correlation: f64,
    /// By kind of work: steps that have it, median of |error|, measured share of all time.
    pub operations: Vec<(Op, usize, f64, f64)>,
    /// Workloads (model, batch, context, launch) with several layouts, and how many of them have the
    /// predicted best within 3 % of the measured best.
    pub workloads: (usize, usize),
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// GPU profile.
    pub gpu: String,
    /// The device.
    pub device: String,
    /// Calibrations that priced.
    pub prices: Vec<String>,
    /// What to know.
    pub notes: Vec<String>,
    /// Steps.
    pub steps: Vec<Judged>,
    /// Sums.
    pub summary: Summary,
}

/// Spread of what a layer takes beyond its kernels, as a share of it: half the distance between the 16th
/// and the 84th percentile of the 20 graph steps (15.3 us a layer) from which the 30.6 us of `builtin`
/// were taken. It differs by the number of small kernels, which the one figure does not count.
const GAP_SPREAD: f64 = 0.5;

/// Work that ranks do together.
fn is_exchange(op: Op) -> bool {
    matches!(
        op,
        Op::AttentionReduce | Op::Dcp | Op::Gather | Op::Combine | Op::ExpertExchange
    )
}

impl Verdict {
    /// Nothing yet.
    pub fn new(gpu: &str, device: &str, prices: &[String]) -> Verdict {
        Verdict {
            gpu: gpu.to_owned(),
            device: device.to_owned(),
            prices: prices.to_vec(),
            notes: Vec::new(),
            steps: Vec::new(),
            summary: Summary::default(),
        }
    }

    /// Fills the summary.
    pub fn sum_up(&mut self) {
        let errors: Vec<f64> = self.steps.iter().map(|s| s.error.abs()).collect();
        let inside = self
            .steps
            .iter()
            .filter(|s| s.low_us <= s.measured_us && s.measured_us <= s.high_us)
            .count();
        let of = |f: fn(&Judged) -> f64| self.steps.iter().map(f).collect::<Vec<f64>>();
        let all: f64 = self.steps.iter().map(|s| s.measured_us).sum();
        let operations = Op::ALL
            .into_iter()
            .filter_map(|op| {
                let lines: Vec<&Line> = self
                    .steps
                    .iter()
                    .flat_map(|s| &s.operations)
                    .filter(|l| l.op == op && l.measured_us > 0.0)
                    .collect();
                let errors: Vec<f64> = lines
                    .iter()
                    .map(|l| (l.predicted_us / l.measured_us - 1.0).abs())
                    .collect();
                let time: f64 = lines.iter().map(|l| l.measured_us).sum();
                (!lines.is_empty()).then(|| (op, lines.len(), median(&errors), time / all))
            })
            .collect();
        self.summary = Summary {
            median: median(&errors),
            p90: quantile(errors, 0.9),
            coverage: inside as f64 / self.steps.len().max(1) as f64,
            rank_correlation: spearman(&of(|s| s.predicted_us), &of(|s| s.measured_us)),
            operations,
            workloads: self.best_of_workloads(),
        };
    }

    fn best_of_workloads(&self) -> (usize, usize) {
        let key = |s: &Judged| {
            let model = s.stack.split(' ').next().unwrap_or("").to_owned();
            (model, s.batch, s.context, s.launch)
        };
        let mut seen = Vec::new();
        let (mut several, mut right) = (0, 0);
        for step in &self.steps {
            let own = key(step);
            if seen.contains(&own) {
                continue;
            }
            let group: Vec<&Judged> = self.steps.iter().filter(|s| key(s) == own).collect();
            seen.push(own);
            if group.len() < 2 {
                continue;
            }
            several += 1;
            let best = group
                .iter()
                .map(|s| s.measured_us)
                .fold(f64::INFINITY, f64::min);
            let chosen = group
                .iter()
                .min_by(|a, b| a.predicted_us.total_cmp(&b.predicted_us));
            if chosen.is_some_and(|s| s.measured_us <= best * 1.03) {
                right += 1;
            }
        }
        (several, right)
    }
}

fn quantile(mut values: Vec<f64>, at: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    let place = ((last as f64) * at).ceil() as usize;
    values.get(place.min(last)).copied().unwrap_or(f64::NAN)
}

/// Places of values in their order, ties in the middle.
fn places(values: &[f64]) -> Vec<f64> {
    values
        .iter()
        .map(|x| {
            let below = values.iter().filter(|y| *y < x).count() as f64;
            let equal = values.iter().filter(|y| *y == x).count() as f64;
            below + (equal - 1.0) / 2.0
        })
        .collect()
}

/// Spearman's rank correlation: that of the places.
fn spearman(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (places(a), places(b));
    let n = a.len() as f64;
    let mean = (n - 1.0) / 2.0;
    let product = |x: &[f64], y: &[f64]| -> f64 {
        x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum()
    };
    product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt()
}

/// Prices every step of a result and adds it to the verdict.
pub fn judge(verdict: &mut Verdict, setup: &Setup<'_>, case: &Case, result: &StackResult) {
    let whole = case.spec.here == case.spec.shard_of;
    for step in &result.steps {
        verdict.steps.push(one(setup, case, step, whole));
    }
    for note in &result.notes {
        if !verdict.notes.contains(note) {
            verdict.notes.push(note.clone());
        }
    }
}

fn one(setup: &Setup<'_>, case: &Case, step: &StackStep, whole: bool) -> Judged {
    let predicted = predict(setup, &case.spec, step, case.symmetric);
    let counts = |op: Op| whole || !is_exchange(op);
    let mut operations = Vec::new();
    let (mut sum, mut variance) = (0.0, 0.0);
    for p in predicted.iter().filter(|p| counts(p.op)) {
        sum += p.us;
        variance += (p.us * p.sigma).powi(2);
    }
    for op in Op::ALL.into_iter().filter(|op| counts(*op)) {
        let priced = predicted.iter().find(|p| p.op == op).map_or(0.0, |p| p.us);
        let part = step.parts.iter().find(|p| p.op == op);
        let ran = part.map_or(0.0, |p| p.time.median_us);
        if priced > 0.0 || ran > 0.0 {
            operations.push(Line {
                op,
                predicted_us: priced,
                measured_us: ran,
            });
        }
    }
    let layers = case.spec.layers.len() as f64;
    let launches = layers * setup.overheads.eager_layer_us;
    // What a layer takes beyond its kernels timed alone.
    let gaps = layers * setup.overheads.graph_layer_us;
    let sum = sum + gaps;
    variance += (gaps * GAP_SPREAD).powi(2);
    let total = match step.launch {
        Launch::Graph => sum,
        // Eager launches run ahead of the GPU: only what kernels do not cover is waited for.
        Launch::Stream => sum.max(launches),
    };
    // One rank that stands for many runs nothing of what they exchange.
    let measured = step.time.median_us;
    let sigma = variance.sqrt() / sum.max(1e-9);
    let factor = (1.645 * sigma).exp();
    Judged {
        stack: case.name(),
        batch: step.step.requests.iter().copied().max().unwrap_or(0),
        context: step.step.context,
        launch: match step.launch {
            Launch::Graph => "graph",
            Launch::Stream => "stream",
        },
        predicted_us: total,
        low_us: total / factor,
        high_us: total * factor,
        measured_us: measured,
        error: total / measured - 1.0,
        operations,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_judged_by_places() {
        assert!((spearman(&[1.0, 2.0, 9.0], &[10.0, 11.0, 12.0]) - 1.0).abs() < 1e-12);
        assert!((spearman(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]) + 1.0).abs() < 1e-12);
        assert_eq!(places(&[5.0, 5.0, 1.0]), [1.5, 1.5, 0.0]);
        assert_eq!(quantile(vec![3.0, 1.0, 2.0], 0.9), 3.0);
    }

    fn step(stack: &str, predicted: f64, measured: f64) -> Judged {
        Judged {
            stack: stack.into(),
            batch: 1,
            context: 64,
            launch: "graph",
            predicted_us: predicted,
            low_us: predicted * 0.9,
            high_us: predicted * 1.1,
            measured_us: measured,
            error: predicted / measured - 1.0,
            operations: vec![Line {
                op: Op::QkvProjection,
                predicted_us: predicted,
                measured_us: measured,
            }],
        }
    }

    #[test]
    fn coverage_errors_and_choices_are_counted() {
        let mut v = Verdict::new("g", "d", &[]);
        v.steps = vec![
            step("m tp=1", 100.0, 105.0),
            step("m tp=2", 90.0, 104.0),
            step("n tp=1", 50.0, 100.0),
        ];
        v.sum_up();
        let s = &v.summary;
        assert!((s.coverage - 1.0 / 3.0).abs() < 1e-12, "{s:?}");
        assert!((s.median - (1.0 - 90.0 / 104.0)).abs() < 1e-9, "{s:?}");
        assert_eq!(s.workloads, (1, 1));
        assert_eq!(s.operations[0].1, 3);
    }
}
