//! Predicted against measured: errors, coverage, order.

use super::case::{Case, CaseSpec};
use crate::exec::predict;
use parplan_executor::bench::Launch;
use parplan_executor::jobs::StackStep;
use parplan_executor::stack::Op;
use parplan_planner::calibrate::median;
use parplan_planner::deployment::Setup;
use serde::{Deserialize, Serialize};

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
    /// The model.
    pub model: String,
    /// Its layout, and how buffers lie.
    pub layout: String,
    /// One rank alone stood for one of the layout's.
    pub shard: bool,
    /// Requests of all ranks.
    pub requests: usize,
    /// Requests of the fullest rank.
    pub batch: usize,
    /// Tokens in the cache of each.
    pub context: usize,
    /// `graph` or `stream`.
    pub launch: &'static str,
    /// The planner's price of the step; of one rank alone without what ranks exchange.
    pub predicted_us: f64,
    /// 90 % interval.
    pub low_us: f64,
    /// Its other end.
    pub high_us: f64,
    /// What it took.
    pub measured_us: f64,
    /// predicted / measured − 1.
    pub error: f64,
    /// Operation by operation, each with the gaps before its kernels.
    pub operations: Vec<Line>,
}

/// Of the configurations that ran a workload, the one that would have been chosen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Choice {
    /// The model.
    pub model: String,
    /// Requests of all ranks.
    pub requests: usize,
    /// Tokens in the cache of each.
    pub context: usize,
    /// How many configurations ran it: layouts, each in a graph and eagerly.
    pub configurations: usize,
    /// The best by prediction.
    pub chosen: String,
    /// The best by measurement.
    pub best: String,
    /// Measured time of the chosen over that of the best, minus 1.
    pub loss: f64,
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
    /// Workloads that ran in several layouts.
    pub choices: Vec<Choice>,
}

/// A measured choice within this of the best counts as right.
pub const RIGHT: f64 = 0.03;

impl Summary {
    /// Workloads whose predicted best is within 3 % of the measured best.
    pub fn right(&self) -> usize {
        self.choices.iter().filter(|c| c.loss <= RIGHT).count()
    }
}

/// A stack that ran, as it was measured: kept, so that other prices can be held against it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ran {
    /// What ran.
    pub case: CaseSpec,
    /// Its steps.
    pub steps: Vec<StackStep>,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// Version of this shape.
    pub format: u32,
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
    /// The measurements themselves.
    pub measured: Vec<Ran>,
}

/// What is read of a [`Verdict`] again.
#[derive(Clone, Debug, Deserialize)]
pub struct Kept {
    /// GPU profile.
    pub gpu: String,
    /// The device.
    pub device: String,
    /// The measurements.
    pub measured: Vec<Ran>,
}

/// Version of the JSON.
pub const FORMAT: u32 = 2;

impl Verdict {
    /// Nothing yet.
    pub fn new(gpu: &str, device: &str, prices: &[String]) -> Verdict {
        Verdict {
            format: FORMAT,
            gpu: gpu.to_owned(),
            device: device.to_owned(),
            prices: prices.to_vec(),
            notes: Vec::new(),
            steps: Vec::new(),
            summary: Summary::default(),
            measured: Vec::new(),
        }
    }

    /// Prices every step of a stack and keeps both.
    pub fn take(&mut self, setup: &Setup<'_>, case: &Case, steps: Vec<StackStep>) {
        for step in &steps {
            self.steps.push(one(setup, case, step));
        }
        self.measured.push(Ran {
            case: case.named.clone(),
            steps,
        });
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
                    .filter(|l| l.op == op && l.predicted_us > 0.0 && l.measured_us > 0.0)
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
            choices: self.choices(),
        };
    }

    /// Workloads that ran in several layouts. One rank alone stands for a part of a layout, which is no
    /// choice.
    fn choices(&self) -> Vec<Choice> {
        let mut out: Vec<Choice> = Vec::new();
        for first in &self.steps {
            let same = |m: &str, r: usize, c: usize| {
                m == first.model && r == first.requests && c == first.context
            };
            if out.iter().any(|c| same(&c.model, c.requests, c.context)) {
                continue;
            }
            let ran: Vec<&Judged> = self
                .steps
                .iter()
                .filter(|s| same(&s.model, s.requests, s.context) && !s.shard)
                .collect();
            if first.shard || ran.iter().all(|s| s.layout == ran[0].layout) {
                continue;
            }
            let least = |of: fn(&Judged) -> f64| {
                ran.iter()
                    .copied()
                    .min_by(|a, b| of(a).total_cmp(&of(b)))
                    .unwrap_or(first)
            };
            let chosen = least(|s| s.predicted_us);
            let best = least(|s| s.measured_us);
            let name = |s: &Judged| format!("{}, {}", s.layout, s.launch);
            out.push(Choice {
                model: first.model.clone(),
                requests: first.requests,
                context: first.context,
                configurations: ran.len(),
                chosen: name(chosen),
                best: name(best),
                loss: chosen.measured_us / best.measured_us - 1.0,
            });
        }
        out
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

fn one(setup: &Setup<'_>, case: &Case, step: &StackStep) -> Judged {
    let predicted = predict(setup, &case.spec, step, case.named.symmetric);
    let mut operations = Vec::new();
    for op in Op::ALL {
        let priced = predicted.operations.iter().find(|p| p.op == op);
        let priced = priced.map_or(0.0, |p| p.us);
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
    let measured_us = step.time.median_us;
    Judged {
        model: case.named.model.clone(),
        layout: case.named.layout(),
        shard: case.named.is_shard(),
        requests: step.step.requests.iter().sum(),
        batch: step.step.requests.iter().copied().max().unwrap_or(0),
        context: step.step.context,
        launch: match step.launch {
            Launch::Graph => "graph",
            Launch::Stream => "stream",
        },
        predicted_us: predicted.us,
        low_us: predicted.low_us,
        high_us: predicted.high_us,
        measured_us,
        error: predicted.us / measured_us - 1.0,
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

    fn step(model: &str, layout: &str, predicted: f64, measured: f64) -> Judged {
        Judged {
            model: model.into(),
            layout: layout.into(),
            shard: layout.ends_with("shard"),
            requests: 1,
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
            step("m", "tp=1", 100.0, 105.0),
            step("m", "tp=2", 90.0, 104.0),
            step("n", "tp=1", 50.0, 100.0),
            step("o", "tp=2", 50.0, 100.0),
            step("o", "tp=4", 60.0, 90.0),
            step("p", "tp2 shard", 50.0, 100.0),
            step("p", "tp4 shard", 60.0, 90.0),
        ];
        v.sum_up();
        let s = &v.summary;
        assert!((s.coverage - 1.0 / 7.0).abs() < 1e-12, "{s:?}");
        // m is near enough; o's choice loses a ninth; n ran in one layout, p on one rank alone.
        assert_eq!((s.choices.len(), s.right()), (2, 1));
        assert!((s.choices[1].loss - 1.0 / 9.0).abs() < 1e-12, "{s:?}");
        assert_eq!(s.choices[1].chosen, "tp=2, graph");
        assert_eq!(s.operations[0].1, 7);
    }
}
