//! The fit: a dozen figures an engine, by a search that always takes the same path.

use anyhow::Result;
use parplan_profiles::{Gaps, GpuArchitecture, Overheads, SyncCosts};

use super::errors::{Errors, Outcome, quantile};
use super::runs::{Run, Times};

/// How many figures an engine has.
const FIGURES: usize = 12;

/// The figures of an engine: eight that its host decides, and two scales of the kernel time for
/// each architecture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Figures([f64; FIGURES]);

/// Names, in the order of the figures.
const STEP: usize = 0;
const REQUEST_IN_STEP: usize = 1;
const GRAPH_LAYER: usize = 2;
const EAGER_LAYER: usize = 3;
const PREFILL_PASS: usize = 4;
const REQUEST: usize = 5;
const PROMPT_TOKEN: usize = 6;
const HOPPER: usize = 7;
const BLACKWELL: usize = 9;
const EXPERT_SPREAD: usize = 11;

/// What is expected before a run is seen, and how far from it (in ln) is surprising.
const PRIOR: [(f64, f64); FIGURES] = [
    (800.0, 0.8),
    (10.0, 1.0),
    (5.0, 1.5),
    (300.0, 1.0),
    (3000.0, 1.5),
    (30000.0, 1.2),
    (3.0, 1.5),
    (1.0, 0.2),
    (1.0, 0.3),
    (1.0, 0.2),
    (1.0, 0.4),
    (0.8, 0.3),
];

/// Weight of the prior beside the mean loss of the runs.
const PRIOR_WEIGHT: f64 = 0.0015;

/// Errors below this (in ln) weigh by their square, larger ones by their size.
const CORNER: f64 = 0.15;

/// Weight of a TTFT beside a TPOT, and the loss beyond which a TTFT is no more than wrong.
const TTFT_WEIGHT: f64 = 0.3;
const TTFT_MOST: f64 = 0.45;

/// Rounds of the search, at most and at least, and the gain that is worth another.
const ROUNDS: usize = 60;
const LEAST_ROUNDS: usize = 12;
const WORTH: f64 = 1e-6;

impl Figures {
    /// What is expected before a run is seen.
    pub fn expected() -> Figures {
        Figures(PRIOR.map(|(value, _)| value))
    }

    /// The entry of one architecture, without its spreads.
    pub fn overheads(&self, engine: &str, architecture: GpuArchitecture) -> Overheads {
        let f = &self.0;
        let scales = if architecture == GpuArchitecture::Blackwell {
            BLACKWELL
        } else {
            HOPPER
        };
        let rounded = |value: f64, digits: i32| {
            let unit = 10f64.powi(digits);
            (value * unit).round() / unit
        };
        Overheads {
            engine: engine.to_owned(),
            architecture,
            step_us: rounded(f[STEP], 0),
            step_request_us: rounded(f[REQUEST_IN_STEP], 1),
            graph_layer_us: rounded(f[GRAPH_LAYER], 1),
            eager_layer_us: rounded(f[EAGER_LAYER], 0),
            prefill_pass_us: rounded(f[PREFILL_PASS], 0),
            request_us: rounded(f[REQUEST], 0),
            prompt_token_us: rounded(f[PROMPT_TOKEN], 2),
            decode_scale: rounded(f[scales], 3),
            prefill_scale: rounded(f[scales + 1], 3),
            expert_spread: rounded(f[EXPERT_SPREAD], 2),
            tpot_sigma: 0.0,
            ttft_sigma: 0.0,
            runs: 0,
            source: super::write::SOURCE.to_owned(),
            sync: SyncCosts::default(),
            gaps: Gaps::default(),
            graph_node_bytes: None,
        }
    }

    fn possible(&self) -> bool {
        let scales = self.0[HOPPER..EXPERT_SPREAD].iter().all(|&x| x >= 0.3);
        let spread = self.0[EXPERT_SPREAD];
        self.0.iter().all(|&x| x > 0.0) && scales && (0.2..=1.0).contains(&spread)
    }

    fn surprise(&self) -> f64 {
        self.0
            .iter()
            .zip(PRIOR)
            .map(|(value, (expected, width))| ((value / expected).ln() / width).powi(2))
            .sum()
    }
}

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

fn huber(error: f64) -> f64 {
    if error.abs() < CORNER {
        error * error / (2.0 * CORNER)
    } else {
        error.abs() - CORNER / 2.0
    }
}

fn loss(runs: &[&Run], figures: &Figures) -> Result<f64> {
    if !figures.possible() {
        return Ok(f64::INFINITY);
    }
    let entries = entries(runs, figures);
    let mut sum = 0.0;
    for (run, times) in runs.iter().zip(predict(runs, &entries)?) {
        let errors = Errors::of(&times, &run.measured);
        sum += huber(errors.tpot);
        if run.first_token_counts {
            sum += TTFT_WEIGHT * huber(errors.ttft).min(TTFT_MOST);
        }
    }
    Ok(sum / runs.len() as f64 + PRIOR_WEIGHT * figures.surprise())
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

impl Figures {
    /// As [`Figures::overheads`], not rounded: a search must see small steps.
    fn exact(&self, engine: &str, architecture: GpuArchitecture) -> Overheads {
        let f = &self.0;
        let scales = if architecture == GpuArchitecture::Blackwell {
            BLACKWELL
        } else {
            HOPPER
        };
        Overheads {
            step_us: f[STEP],
            step_request_us: f[REQUEST_IN_STEP],
            graph_layer_us: f[GRAPH_LAYER],
            eager_layer_us: f[EAGER_LAYER],
            prefill_pass_us: f[PREFILL_PASS],
            request_us: f[REQUEST],
            prompt_token_us: f[PROMPT_TOKEN],
            decode_scale: f[scales],
            prefill_scale: f[scales + 1],
            expert_spread: f[EXPERT_SPREAD],
            ..self.overheads(engine, architecture)
        }
    }
}

/// Uniform numbers in [-1, 1) from a fixed seed (Knuth's MMIX generator), so that a fit repeats.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / f64::from(1u32 << 31) * 2.0 - 1.0
    }
}

/// Fits `runs`, all of one engine, from what is expected and from where time before a first token is
/// launches rather than the front end, and keeps the better: a search that moves a figure at a time does
/// not find the way from one to the other.
pub(super) fn fit_from_expected(runs: &[&Run]) -> Result<Figures> {
    let mut launches = Figures::expected();
    launches.0[EAGER_LAYER] *= 2.5;
    launches.0[REQUEST] *= 0.5;
    launches.0[PREFILL_PASS] *= 0.3;
    let mut best = None;
    for start in [Figures::expected(), launches] {
        let figures = fit(runs, start)?;
        let left = loss(runs, &figures)?;
        if best.is_none_or(|(least, _)| left < least) {
            best = Some((left, figures));
        }
    }
    Ok(best.map_or(Figures::expected(), |(_, figures)| figures))
}

/// Fits `runs`, all of one engine, from `start`: each figure up and down by a step that grows where
/// it helps and shrinks where it does not, then ten random moves of all of them.
pub(super) fn fit(runs: &[&Run], start: Figures) -> Result<Figures> {
    let mut best = start;
    let mut least = loss(runs, &best)?;
    let mut draws = Draws(12345);
    let mut steps = [0.4f64; FIGURES];
    for round in 0..ROUNDS {
        let before = least;
        for (at, step) in steps.iter_mut().enumerate() {
            let mut moved = false;
            for factor in [step.exp(), (-*step).exp()] {
                let mut trial = best;
                trial.0[at] = (trial.0[at] * factor).max(1e-2);
                if at == EXPERT_SPREAD {
                    trial.0[at] = trial.0[at].min(1.0);
                }
                let value = loss(runs, &trial)?;
                if value < least {
                    (best, least, moved) = (trial, value, true);
                    break;
                }
            }
            *step = (*step * if moved { 1.3 } else { 0.6 }).clamp(0.005, 1.5);
        }
        for _ in 0..10 {
            let mut trial = best;
            for value in &mut trial.0 {
                if draws.next() > 0.3 {
                    *value *= (0.15 * draws.next()).exp();
                }
            }
            let value = loss(runs, &trial)?;
            if value < least {
                (best, least) = (trial, value);
            }
        }
        if round > LEAST_ROUNDS && before - least < WORTH {
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
