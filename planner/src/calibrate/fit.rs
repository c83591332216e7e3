//! A robust fit of a few positive figures to measured times, with what was believed before.
//!
//! Figures are fitted in their logarithms, so they stay positive and every formula stays monotone.
//! Errors are those of the log ratio; large ones weigh by their size rather than their square
//! (Huber). What was believed before (an engine's table, a spec sheet) is a normal law around each
//! figure's logarithm: samples that say nothing about a figure leave it where it was, and its
//! interval says so.

use super::summary::{deviation, t90};

/// A figure before the fit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Figure {
    /// Its name in the formula.
    pub name: &'static str,
    /// What it is believed to be.
    pub start: f64,
    /// Standard deviation of its logarithm, before any sample.
    pub width: f64,
}

/// A figure after it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Fitted {
    pub value: f64,
    /// 90 % interval.
    pub low: f64,
    pub high: f64,
    /// The samples say little about it.
    pub assumed: bool,
}

/// The outcome.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Solution {
    pub figures: Vec<Fitted>,
    /// Standard deviation of ln(fitted / measured), outliers aside.
    pub residual: f64,
}

impl Solution {
    pub(crate) fn values(&self) -> Vec<f64> {
        self.figures.iter().map(|f| f.value).collect()
    }
}

/// What is fitted: sample `i` took `measured[i]`, `us(figures, i)` is the formula's time, and
/// `noise[i]` the standard deviation of ln measured.
pub(super) struct Problem<'a> {
    pub figures: &'a [Figure],
    pub measured: &'a [f64],
    pub noise: &'a [f64],
    pub us: &'a dyn Fn(&[f64], usize) -> f64,
}

/// Deviations from which an error weighs by its size.
const CORNER: f64 = 1.5;
/// The smallest scale of errors that is believed: the formulas are no better.
const FINEST: f64 = 0.005;
/// The scale that a search begins with.
const BEGIN: f64 = 0.05;
/// Figures below this are none.
const LEAST: f64 = 1e-9;
/// A figure whose interval the samples narrowed by less than this share is an assumption still.
const NARROWED: f64 = 0.7;

const ROUNDS: usize = 8;
const STEPS: usize = 25;

impl Problem<'_> {
    /// Fits, from the start and from two others around it, and keeps the best.
    pub(crate) fn solve(&self) -> Solution {
        let start: Vec<f64> = self
            .figures
            .iter()
            .map(|f| f.start.max(LEAST).ln())
            .collect();
        let shifted = |by: f64| -> Vec<f64> {
            start
                .iter()
                .zip(self.figures)
                .map(|(x, f)| x + by * f.width)
                .collect()
        };
        let mut best: Option<(f64, Vec<f64>, f64)> = None;
        for from in [start.clone(), shifted(0.7), shifted(-0.7)] {
            let (theta, scale) = self.search(from);
            let cost = self.total(&theta, scale);
            // Scales of different searches make costs incomparable; the plain loss decides.
            let loss = self.errors(&theta).iter().map(|e| e.abs()).sum::<f64>() + 1e-3 * cost;
            if best.as_ref().is_none_or(|(least, ..)| loss < *least) {
                best = Some((loss, theta, scale));
            }
        }
        let (theta, scale) = best.map_or((start, FINEST), |(_, theta, scale)| (theta, scale));
        self.finish(&theta, scale)
    }

    fn search(&self, from: Vec<f64>) -> (Vec<f64>, f64) {
        let mut theta = from;
        // Not the scale of the start: figures that are far off would make every sample an outlier.
        let mut scale = BEGIN;
        for _ in 0..ROUNDS {
            let before = theta.clone();
            self.descend(&mut theta, scale);
            scale = self.scale(&theta);
            let moved = theta
                .iter()
                .zip(&before)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f64::max);
            if moved < 1e-7 {
                break;
            }
        }
        (theta, scale)
    }

    /// Levenberg and Marquardt's method at one scale of errors.
    fn descend(&self, theta: &mut Vec<f64>, scale: f64) {
        let mut damping = 1e-3;
        let mut cost = self.total(theta, scale);
        for _ in 0..STEPS {
            let (curvature, gradient) = self.normal(theta, scale);
            let mut moved = false;
            for _ in 0..8 {
                let mut damped = curvature.clone();
                for (i, row) in damped.iter_mut().enumerate() {
                    row[i] *= 1.0 + damping;
                }
                let Some(step) = solve(&damped, &gradient) else {
                    damping *= 10.0;
                    continue;
                };
                let trial: Vec<f64> = theta
                    .iter()
                    .zip(&step)
                    // A step of more than a factor of e² is a guess.
                    .map(|(x, s)| x - s.clamp(-2.0, 2.0))
                    .collect();
                let value = self.total(&trial, scale);
                if value < cost {
                    let gain = cost - value;
                    *theta = trial;
                    cost = value;
                    damping = (damping / 5.0).max(1e-9);
                    moved = gain > 1e-10 * (1.0 + cost);
                    break;
                }
                damping *= 5.0;
            }
            if !moved {
                break;
            }
        }
    }

    /// ln(formula / measured) of every sample.
    fn errors(&self, theta: &[f64]) -> Vec<f64> {
        let figures: Vec<f64> = theta.iter().map(|x| x.exp()).collect();
        (0..self.measured.len())
            .map(|i| {
                let ratio = (self.us)(&figures, i) / self.measured[i];
                if ratio.is_finite() && ratio > 0.0 {
                    ratio.ln().clamp(-30.0, 30.0)
                } else {
                    30.0
                }
            })
            .collect()
    }

    /// Robust scale of the errors, with a little of what a perfect fit of few samples hides.
    fn scale(&self, theta: &[f64]) -> f64 {
        let errors = self.errors(theta);
        deviation(&errors, 0.0).max(FINEST)
    }

    fn standard(&self, scale: f64, i: usize) -> f64 {
        scale.hypot(self.noise.get(i).copied().unwrap_or(0.0))
    }

    fn total(&self, theta: &[f64], scale: f64) -> f64 {
        let mut sum = 0.0;
        for (i, error) in self.errors(theta).iter().enumerate() {
            let z = (error / self.standard(scale, i)).abs();
            sum += if z <= CORNER {
                z * z / 2.0
            } else {
                CORNER * (z - CORNER / 2.0)
            };
        }
        for (x, figure) in theta.iter().zip(self.figures) {
            let z = (x - figure.start.max(LEAST).ln()) / figure.width;
            sum += z * z / 2.0;
        }
        sum
    }

    /// Derivatives of every error by every figure's logarithm.
    fn slopes(&self, theta: &[f64]) -> Vec<Vec<f64>> {
        const H: f64 = 1e-4;
        (0..theta.len())
            .map(|j| {
                let shifted = |by: f64| {
                    let mut t = theta.to_vec();
                    t[j] += by;
                    self.errors(&t)
                };
                shifted(H)
                    .iter()
                    .zip(shifted(-H))
                    .map(|(up, down)| (up - down) / (2.0 * H))
                    .collect()
            })
            .collect()
    }

    /// Curvature and gradient of the total, the samples' part and what was believed before.
    fn normal(&self, theta: &[f64], scale: f64) -> (Vec<Vec<f64>>, Vec<f64>) {
        let n = theta.len();
        let errors = self.errors(theta);
        let slopes = self.slopes(theta);
        let mut curvature = vec![vec![0.0; n]; n];
        let mut gradient = vec![0.0; n];
        for (i, &error) in errors.iter().enumerate() {
            let sigma = self.standard(scale, i);
            let z = (error / sigma).abs();
            let weight = if z <= CORNER { 1.0 } else { CORNER / z } / (sigma * sigma);
            for a in 0..n {
                gradient[a] += weight * slopes[a][i] * error;
                for b in 0..n {
                    curvature[a][b] += weight * slopes[a][i] * slopes[b][i];
                }
            }
        }
        for (a, figure) in self.figures.iter().enumerate() {
            let precision = 1.0 / (figure.width * figure.width);
            curvature[a][a] += precision;
            gradient[a] += precision * (theta[a] - figure.start.max(LEAST).ln());
        }
        (curvature, gradient)
    }

    fn finish(&self, theta: &[f64], scale: f64) -> Solution {
        let (curvature, _) = self.normal(theta, scale);
        let covariance = inverse(&curvature);
        let learned = (0..theta.len())
            .filter(|&a| self.spread(&covariance, a) < NARROWED * self.figures[a].width)
            .count();
        let degrees = self.measured.len() as f64 - learned as f64;
        let t = t90(degrees.max(1.0));
        let figures = theta
            .iter()
            .enumerate()
            .map(|(a, x)| {
                let spread = self.spread(&covariance, a);
                Fitted {
                    value: x.exp(),
                    low: (x - t * spread).exp(),
                    high: (x + t * spread).exp(),
                    assumed: spread >= NARROWED * self.figures[a].width,
                }
            })
            .collect();
        Solution {
            figures,
            residual: scale,
        }
    }

    fn spread(&self, covariance: &Option<Vec<Vec<f64>>>, a: usize) -> f64 {
        let width = self.figures[a].width;
        covariance
            .as_ref()
            .and_then(|c| c.get(a)?.get(a).copied())
            .filter(|v| v.is_finite() && *v > 0.0)
            .map_or(width, |v| v.sqrt().min(width))
    }
}

/// The solution of `a x = b` by Gauss's elimination with pivoting; none where `a` is singular.
fn solve(a: &[Vec<f64>], b: &[f64]) -> Option<Vec<f64>> {
    let n = b.len();
    let mut m: Vec<Vec<f64>> = a
        .iter()
        .zip(b)
        .map(|(row, &y)| row.iter().copied().chain([y]).collect())
        .collect();
    for column in 0..n {
        let pivot =
            (column..n).max_by(|&i, &j| m[i][column].abs().total_cmp(&m[j][column].abs()))?;
        if m[pivot][column].abs() < 1e-300 {
            return None;
        }
        m.swap(column, pivot);
        let above = m[column].clone();
        for (at, row) in m.iter_mut().enumerate() {
            if at == column {
                continue;
            }
            let factor = row[column] / above[column];
            for (x, y) in row.iter_mut().zip(&above).skip(column) {
                *x -= factor * y;
            }
        }
    }
    let x: Vec<f64> = (0..n).map(|i| m[i][n] / m[i][i]).collect();
    x.iter().all(|v| v.is_finite()).then_some(x)
}

fn inverse(a: &[Vec<f64>]) -> Option<Vec<Vec<f64>>> {
    let n = a.len();
    let mut columns = Vec::with_capacity(n);
    for j in 0..n {
        let unit: Vec<f64> = (0..n).map(|i| f64::from(u8::from(i == j))).collect();
        columns.push(solve(a, &unit)?);
    }
    Some(
        (0..n)
            .map(|i| columns.iter().map(|c| c[i]).collect())
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SIZES: [f64; 12] = [
        1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 2e5, 5e5, 1e6,
    ];

    fn figures(width: f64) -> [Figure; 2] {
        [
            Figure {
                name: "base_us",
                start: 10.0,
                width,
            },
            Figure {
                name: "us_per_unit",
                start: 1.0,
                width,
            },
        ]
    }

    fn solve_for(measured: &[f64], figures: &[Figure]) -> Solution {
        let us = |p: &[f64], i: usize| p[0] + p[1] * SIZES[i];
        Problem {
            figures,
            measured,
            noise: &vec![0.0; measured.len()],
            us: &us,
        }
        .solve()
    }

    #[test]
    fn known_figures_are_recovered_from_far_away_and_despite_an_outlier() {
        let mut measured: Vec<f64> = SIZES
            .iter()
            .enumerate()
            .map(|(i, s)| (3.0 + 0.002 * s) * (1.0 + 0.01 * (i as f64 * 1.7).sin()))
            .collect();
        measured[3] *= 6.0;
        let s = solve_for(&measured, &figures(4.0));
        assert!((s.figures[0].value / 3.0 - 1.0).abs() < 0.02, "{s:?}");
        assert!((s.figures[1].value / 0.002 - 1.0).abs() < 0.02, "{s:?}");
        for f in &s.figures {
            assert!(!f.assumed && f.low < f.value && f.value < f.high, "{s:?}");
        }
        assert!(s.figures[0].low < 3.0 && 3.0 < s.figures[0].high, "{s:?}");
    }

    #[test]
    fn what_samples_do_not_show_stays_as_believed_and_says_so() {
        let small: Vec<f64> = SIZES[..3].iter().map(|s| 3.0 + 1e-7 * s).collect();
        let s = solve_for(&small, &figures(0.3)[..]);
        // 1 µs a unit was believed, and the samples rule it out; the base alone cannot say more.
        assert!(s.figures[1].value < 1.0, "{s:?}");
        let flat = [10.0, 13.9, 26.0];
        let s = solve_for(&flat, &figures(0.3)[..]);
        assert!((s.figures[1].value - 1.0).abs() < 0.2, "{s:?}");
        let one = solve_for(&[11.0], &figures(0.3)[..]);
        assert!(one.figures[1].assumed, "{one:?}");
    }
}
