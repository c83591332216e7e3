//! Samples to figures: one fit a class, with its errors on samples that it had not seen.

use super::figures::Figures;
use super::fit::{Problem, Solution};
use super::summary::median;
use parplan_profiles::calibration::{
    Before, Class, DecodeGqaShape, DecodeMlaShape, Errors, Experiment, Parameter, Probe, Range,
    Sample, Term,
};
use parplan_profiles::{EfficiencyProfile, GpuArchitecture, GpuProfile, Overheads};
use std::collections::BTreeMap;

/// The GPU with its peaks raised to what samples reached: a measurement above the spec sheet says that
/// the spec sheet is not the roofline here.
pub fn machine(gpu: &GpuProfile, samples: &[Sample]) -> GpuProfile {
    let mut out = gpu.clone();
    for sample in samples {
        let seconds = sample.value * 1e-6;
        match sample.experiment.probe {
            Probe::MemoryRead { bytes } => {
                out.memory_bytes_per_s = out.memory_bytes_per_s.max(bytes as f64 / seconds);
            }
            Probe::MemoryCopy { bytes } => {
                out.memory_bytes_per_s = out.memory_bytes_per_s.max(2.0 * bytes as f64 / seconds);
            }
            Probe::Gemm { m, n, k, weights } if weights.bytes() == 2.0 => {
                let flop = 2.0 * f64::from(m) * f64::from(n) * f64::from(k);
                out.tensor.bf16 = out.tensor.bf16.max(flop / seconds);
            }
            _ => {}
        }
    }
    out
}

/// Fits every class that `samples` have. `efficiency` and `overheads` are what held before.
pub fn terms(
    gpu: &GpuProfile,
    efficiency: &EfficiencyProfile,
    overheads: &Overheads,
    samples: &[Sample],
) -> Vec<Term> {
    let gpu = machine(gpu, samples);
    let mut classes: BTreeMap<Class, Vec<&Sample>> = BTreeMap::new();
    for sample in samples {
        classes
            .entry(Class::of(&sample.experiment))
            .or_default()
            .push(sample);
    }
    // Tables of other architectures say which terms there are, and little of their size.
    let least_width = match efficiency.architecture {
        GpuArchitecture::Hopper | GpuArchitecture::Blackwell => 0.0,
        _ => 2.5,
    };
    classes
        .into_iter()
        .filter_map(|(class, samples)| {
            let before = Figures::before(class, efficiency, overheads)?;
            let source = Figures::source(class, efficiency, overheads);
            let fit = Fit {
                gpu: &gpu,
                before,
                least_width,
            };
            Some(fit.term(class, source, &newest(samples)))
        })
        .collect()
}

/// Only the samples of the implementation that the last one names: figures of two are neither's.
fn newest(samples: Vec<&Sample>) -> Vec<&Sample> {
    let Some(last) = samples.last().map(|s| s.implementation.clone()) else {
        return samples;
    };
    samples
        .into_iter()
        .filter(|s| s.implementation == last)
        .collect()
}

/// One class being fitted.
struct Fit<'a> {
    gpu: &'a GpuProfile,
    before: Figures,
    least_width: f64,
}

impl Fit<'_> {
    fn term(&self, class: Class, source: String, samples: &[&Sample]) -> Term {
        let solution = self.solve(samples);
        let fitted = self.before.with(&solution.values());
        let mut ranks: Vec<u32> = samples.iter().map(|s| s.experiment.ranks).collect();
        ranks.sort_unstable();
        ranks.dedup();
        let parameters = self
            .before
            .list()
            .iter()
            .zip(&solution.figures)
            .zip(fitted.list())
            .map(|((figure, fit), end)| {
                // Where a fraction ended at its peak, so does its interval.
                let value = fit.value.min(end.start.max(0.0));
                Parameter {
                    name: figure.name.to_owned(),
                    value,
                    low: fit.low.min(value),
                    high: fit.high.max(value),
                    assumed: fit.assumed,
                }
            })
            .collect();
        Term {
            class,
            implementation: samples
                .last()
                .map(|s| s.implementation.clone())
                .unwrap_or_default(),
            ranks,
            samples: samples.len() as u32,
            residual: solution.residual,
            leave_one_out: self.leave_one_out(&fitted, samples),
            before: (!source.is_empty()).then(|| Before {
                errors: errors(&ratios(self.gpu, &self.before, samples)),
                source,
            }),
            parameters,
            range: ranges(samples),
        }
    }

    fn solve(&self, samples: &[&Sample]) -> Solution {
        let mut figures = self.before.list();
        for figure in &mut figures {
            figure.width = figure.width.max(self.least_width);
        }
        let measured: Vec<f64> = samples.iter().map(|s| s.value).collect();
        let noise: Vec<f64> = samples.iter().map(|s| noise(s)).collect();
        let us = |p: &[f64], i: usize| self.before.with(p).us(self.gpu, &samples[i].experiment);
        Problem {
            figures: &figures,
            measured: &measured,
            noise: &noise,
            us: &us,
        }
        .solve()
    }

    /// Errors of each size by a fit that saw no sample of that size, in place or not, in a graph or not.
    /// A class with one size is its own judge: then the sample's interval stands for the error.
    fn leave_one_out(&self, fitted: &Figures, samples: &[&Sample]) -> Errors {
        let size = |s: &Sample| (s.experiment.ranks, quantities(&s.experiment));
        let mut sizes = Vec::new();
        for sample in samples {
            let own = size(sample);
            if !sizes.contains(&own) {
                sizes.push(own);
            }
        }
        if sizes.len() < 2 || matches!(fitted, Figures::Constant { .. }) {
            let own: Vec<f64> = ratios(self.gpu, fitted, samples)
                .iter()
                .zip(samples)
                .map(|(error, sample)| error.hypot(noise(sample)))
                .collect();
            return errors(&own);
        }
        let mut all = Vec::with_capacity(samples.len());
        for left_out in sizes {
            let (seen, unseen): (Vec<&Sample>, Vec<&Sample>) =
                samples.iter().copied().partition(|s| size(s) != left_out);
            let fit = self.before.with(&self.solve(&seen).values());
            all.extend(ratios(self.gpu, &fit, &unseen));
        }
        errors(&all)
    }
}

/// Standard deviation of ln value that a sample's own interval says.
fn noise(sample: &Sample) -> f64 {
    ((sample.high / sample.low).ln() / 2.0 / 1.645).clamp(0.0, 1.0)
}

/// ln(predicted / measured) of each sample.
fn ratios(gpu: &GpuProfile, figures: &Figures, samples: &[&Sample]) -> Vec<f64> {
    samples
        .iter()
        .map(|s| (figures.us(gpu, &s.experiment) / s.value).ln())
        .collect()
}

/// Sums up ln ratios.
pub(super) fn errors(ratios: &[f64]) -> Errors {
    let relative: Vec<f64> = ratios.iter().map(|r| (r.exp() - 1.0).abs()).collect();
    let mut sorted = relative.clone();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let at = ((last as f64) * 0.9).ceil() as usize;
    let finite = |x: f64| if x.is_finite() { x } else { f64::MAX.sqrt() };
    let mean = ratios.iter().map(|r| r * r).sum::<f64>() / ratios.len().max(1) as f64;
    Errors {
        median: finite(median(&relative)),
        p90: finite(sorted.get(at.min(last)).copied().unwrap_or(0.0)),
        sigma: finite(mean.sqrt()),
    }
}

/// The sizes of an experiment that its class's formula depends on.
fn quantities(e: &Experiment) -> Vec<(&'static str, f64)> {
    match e.probe {
        Probe::Collective { bytes, .. }
        | Probe::PeerCollective { bytes, .. }
        | Probe::MemoryRead { bytes }
        | Probe::MemoryCopy { bytes } => vec![("bytes", bytes as f64)],
        Probe::PeerExchange { rows, dim, .. } => {
            vec![("bytes", f64::from(rows) * f64::from(dim) * 2.0)]
        }
        Probe::Gemm { m, n, k, .. } => vec![
            ("m", f64::from(m)),
            ("n", f64::from(n)),
            ("k", f64::from(k)),
        ],
        Probe::Experts(s) => vec![
            ("tokens", f64::from(s.tokens)),
            ("experts", f64::from(s.experts)),
            ("hidden", f64::from(s.hidden)),
            ("intermediate", f64::from(s.intermediate)),
        ],
        Probe::DecodeGqa(DecodeGqaShape {
            requests, context, ..
        })
        | Probe::DecodeMla(DecodeMlaShape {
            requests, context, ..
        }) => vec![
            ("requests", f64::from(requests)),
            ("context", f64::from(context)),
        ],
        Probe::PrefillGqa(s) => vec![
            ("sequences", f64::from(s.sequences)),
            ("tokens", f64::from(s.tokens)),
        ],
        Probe::MetadataSync { .. }
        | Probe::Kernels { .. }
        | Probe::GraphMemory { .. }
        | Probe::UsableMemory => Vec::new(),
    }
}

fn ranges(samples: &[&Sample]) -> Vec<Range> {
    let mut out: Vec<Range> = Vec::new();
    for sample in samples {
        for (quantity, size) in quantities(&sample.experiment) {
            match out.iter_mut().find(|r| r.quantity == quantity) {
                Some(range) => {
                    range.least = range.least.min(size);
                    range.most = range.most.max(size);
                }
                None => out.push(Range {
                    quantity: quantity.to_owned(),
                    least: size,
                    most: size,
                }),
            }
        }
    }
    out
}

/// A figure of two calibrations of one machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Whose figure.
    pub class: Class,
    /// Its name.
    pub name: String,
    /// In both calibrations.
    pub values: [f64; 2],
    /// Their difference lies within the 90 % interval of the difference.
    pub within: bool,
}

/// The figures that both calibrations measured, and whether they agree within their intervals.
/// Figures that either of them only assumed say nothing and are left out.
pub fn differences(a: &[Term], b: &[Term]) -> Vec<Difference> {
    let mut out = Vec::new();
    for left in a {
        let Some(right) = b.iter().find(|t| t.class == left.class) else {
            continue;
        };
        for p in left.parameters.iter().filter(|p| !p.assumed) {
            let Some(q) = right
                .parameters
                .iter()
                .find(|q| q.name == p.name && !q.assumed)
            else {
                continue;
            };
            let (p_half, q_half) = (half(p), half(q));
            let apart = (p.value / q.value).ln().abs();
            out.push(Difference {
                class: left.class,
                name: p.name.clone(),
                values: [p.value, q.value],
                within: apart <= p_half.hypot(q_half),
            });
        }
    }
    out
}

/// Half of a figure's 90 % interval, of its logarithm.
fn half(p: &Parameter) -> f64 {
    (p.high / p.low).ln() / 2.0
}
