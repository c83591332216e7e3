//! The fit: the figures with the least robust loss, by Gauss and Newton's method from fixed starts, so that
//! it always takes the same path.

use anyhow::Result;
use parplan_profiles::{GpuArchitecture, Overheads};

use super::errors::{Errors, Outcome, quantile};
use super::figures::{COMMON, Figures, Slopes};
use super::runs::{Run, Times};

/// Weight of the prior beside the mean loss of the runs.
const PRIOR_WEIGHT: f64 = 0.0015;

/// Errors below this (in ln) weigh by their square, larger ones by their size.
const CORNER: f64 = 0.15;

/// Weight of a TTFT beside a TPOT, and the loss beyond which a TTFT is no more than wrong.
const TTFT_WEIGHT: f64 = 0.3;
const TTFT_MOST: f64 = 0.45;

/// Rounds of the search, at most, and the gain that is worth another.
const ROUNDS: usize = 40;
const WORTH: f64 = 1e-7;

/// Slopes are taken over so much either way (in ln): predictions have small steps where a batch takes
/// the next graph.
const REACH: f64 = 0.05;

/// The largest step of a figure (in ln), and how often a step that does not help is halved.
const STRIDE: f64 = 0.5;
const HALVINGS: usize = 6;

/// Predictions of `runs` under one set of figures, or under another for each architecture.
pub(super) fn predict(runs: &[&Run], entries: &[Overheads]) -> Result<Vec<Times>> {
    runs.iter()
        .map(|run| {
            let entry = entries
                .iter()
                .find(|e| e.engine == run.engine && e.architecture == run.architecture)
                .ok_or_else(|| {
                    anyhow::anyhow!("no figures of {} on {}", run.engine, run.gpu_name)
                })?;
            run.predict(entry)
        })
        .collect()
}

/// Errors of `runs` under figures.
fn errors(runs: &[&Run], figures: &Figures) -> Result<Vec<Errors>> {
    let entries = entries(runs, figures);
    let times = predict(runs, &entries)?;
    let found = runs.iter().zip(times);
    Ok(found
        .map(|(run, times)| Errors::of(&times, &run.measured))
        .collect())
}

fn huber(error: f64) -> f64 {
    if error.abs() < CORNER {
        error * error / (2.0 * CORNER)
    } else {
        error.abs() - CORNER / 2.0
    }
}

/// Second derivative of the loss that stands for [`huber`] about an error.
fn weight(error: f64) -> f64 {
    1.0 / error.abs().max(CORNER)
}

/// Weights of a run's two errors in the normal equations.
fn weights(run: &Run, errors: &Errors) -> (f64, f64) {
    let counts = run.first_token_counts && huber(errors.ttft) < TTFT_MOST;
    let ttft = if counts {
        TTFT_WEIGHT * weight(errors.ttft)
    } else {
        0.0
    };
    (weight(errors.tpot), ttft)
}

fn loss(runs: &[&Run], errors: &[Errors], figures: &Figures) -> f64 {
    let mut sum = 0.0;
    for (run, errors) in runs.iter().zip(errors) {
        sum += huber(errors.tpot);
        if run.first_token_counts {
            sum += TTFT_WEIGHT * huber(errors.ttft).min(TTFT_MOST);
        }
    }
    let surprise: f64 = figures
        .surprises()
        .iter()
        .map(|(off, width)| (off / width).powi(2))
        .sum();
    sum / runs.len() as f64 + PRIOR_WEIGHT * surprise
}

/// One entry for each architecture that `runs` have.
fn entries(runs: &[&Run], figures: &Figures) -> Vec<Overheads> {
    let Some(first) = runs.first() else {
        return Vec::new();
    };
    [GpuArchitecture::Hopper, GpuArchitecture::Blackwell]
        .map(|architecture| figures.exact(&first.engine, architecture))
        .into()
}

/// Slopes of every run's errors by the common figures: TPOT's, and TTFT's.
fn slopes(runs: &[&Run], figures: &Figures) -> Result<Vec<(Slopes, Slopes)>> {
    let mut out = vec![([0.0; COMMON], [0.0; COMMON]); runs.len()];
    for at in 0..COMMON {
        let above = errors(runs, &figures.with(at, REACH))?;
        let below = errors(runs, &figures.with(at, -REACH))?;
        for ((slopes, above), below) in out.iter_mut().zip(above).zip(below) {
            slopes.0[at] = (above.tpot - below.tpot) / (2.0 * REACH);
            slopes.1[at] = (above.ttft - below.ttft) / (2.0 * REACH);
        }
    }
    Ok(out)
}

/// The step of Gauss and Newton's method; none where the equations have no solution.
fn step(
    runs: &[&Run],
    errors: &[Errors],
    slopes: &[(Slopes, Slopes)],
    figures: &Figures,
) -> Option<Vec<f64>> {
    let n = figures.len();
    let (mut curvature, mut gradient) = (vec![vec![0.0; n]; n], vec![0.0; n]);
    for ((run, errors), slopes) in runs.iter().zip(errors).zip(slopes) {
        let (of_tpot, of_ttft) = weights(run, errors);
        for (error, slopes, weight) in [
            (errors.tpot, &slopes.0, of_tpot),
            (errors.ttft, &slopes.1, of_ttft),
        ] {
            let slopes = figures.spread_out(run, slopes);
            for &(a, slope) in &slopes {
                gradient[a] += weight * slope * error;
                for &(b, other) in &slopes {
                    curvature[a][b] += weight * slope * other;
                }
            }
        }
    }
    let prior = 2.0 * PRIOR_WEIGHT * runs.len() as f64;
    for (at, (off, width)) in figures.surprises().into_iter().enumerate() {
        curvature[at][at] += prior / (width * width);
        gradient[at] += prior * off / (width * width);
    }
    let step = solve(curvature, gradient)?;
    Some(step.iter().map(|x| (-x).clamp(-STRIDE, STRIDE)).collect())
}

/// Solves a · x = b by elimination; none where a pivot is nothing.
fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Option<Vec<f64>> {
    let n = b.len();
    for pivot in 0..n {
        let best = (pivot..n).max_by(|&i, &j| a[i][pivot].abs().total_cmp(&a[j][pivot].abs()))?;
        a.swap(pivot, best);
        b.swap(pivot, best);
        if a[pivot][pivot].abs() < 1e-12 {
            return None;
        }
        let (above, below) = a.split_at_mut(pivot + 1);
        let (row, value) = (&above[pivot], b[pivot]);
        for (other, target) in below.iter_mut().zip(&mut b[pivot + 1..]) {
            let factor = other[pivot] / row[pivot];
            for (x, y) in other.iter_mut().zip(row).skip(pivot) {
                *x -= factor * y;
            }
            *target -= factor * value;
        }
    }
    for at in (0..n).rev() {
        let known: f64 = a[at][at + 1..]
            .iter()
            .zip(&b[at + 1..])
            .map(|(x, y)| x * y)
            .sum();
        b[at] = (b[at] - known) / a[at][at];
    }
    Some(b)
}

/// Fits `runs`, all of one engine, from what is expected and from where time before a first token is
/// launches rather than the front end, and keeps the better: there is no way down from one to the other.
pub(super) fn fit_from_expected(runs: &[&Run]) -> Result<Figures> {
    let mut best: Option<(f64, Figures)> = None;
    for start in [Figures::expected(runs), Figures::expected_launches(runs)] {
        let figures = fit(runs, start)?;
        let left = loss(runs, &errors(runs, &figures)?, &figures);
        if best.as_ref().is_none_or(|(least, _)| left < *least) {
            best = Some((left, figures));
        }
    }
    Ok(best.map_or(Figures::expected(runs), |(_, figures)| figures))
}

/// Fits `runs`, all of one engine, from `start`.
pub(super) fn fit(runs: &[&Run], start: Figures) -> Result<Figures> {
    let mut best = start;
    let mut off = errors(runs, &best)?;
    let mut least = loss(runs, &off, &best);
    for _ in 0..ROUNDS {
        let Some(step) = step(runs, &off, &slopes(runs, &best)?, &best) else {
            break;
        };
        let before = least;
        let mut share = 1.0;
        for _ in 0..HALVINGS {
            let part: Vec<f64> = step.iter().map(|x| x * share).collect();
            let trial = best.moved(&part);
            let found = errors(runs, &trial)?;
            let value = loss(runs, &found, &trial);
            if value < least {
                (best, off, least) = (trial, found, value);
                break;
            }
            share /= 2.0;
        }
        if before - least < WORTH {
            break;
        }
    }
    Ok(best)
}

/// The entries of an engine, one for each architecture that `runs` have, with the spreads of `judged`
/// outcomes: the 90th percentile of the absolute ln error over 1.645, which a few odd runs do not move.
pub(super) fn finished(runs: &[&Run], figures: &Figures, judged: &[Outcome<'_>]) -> Vec<Overheads> {
    let mut out = Vec::new();
    for architecture in [GpuArchitecture::Hopper, GpuArchitecture::Blackwell] {
        let own = |run: &Run| run.architecture == architecture;
        let Some(first) = runs.iter().find(|run| own(run)) else {
            continue;
        };
        let spread = |error: fn(&Errors) -> f64| {
            let sizes = judged
                .iter()
                .filter(|o| own(o.run))
                .map(|o| error(&o.errors).abs())
                .collect();
            let sigma = quantile(sizes, 0.9) / super::errors::Z90;
            (sigma * 1e3).round() / 1e3
        };
        out.push(Overheads {
            tpot_sigma: spread(|e| e.tpot),
            ttft_sigma: spread(|e| e.ttft),
            runs: runs.iter().filter(|run| own(run)).count() as u32,
            ..figures.overheads(&first.engine, architecture)
        });
    }
    out
}
