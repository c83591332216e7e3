//! Distributions of lengths.

use serde::{Deserialize, Serialize};

/// How many tokens the requests have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Lengths {
    /// All have the same.
    Fixed {
        /// Tokens.
        tokens: u32,
    },
    /// Whole numbers drawn evenly from `[⌊range_ratio · max⌋, max]`.
    ///
    /// This is `--random-range-ratio` of InferenceX's `benchmark_serving.py`
    /// (`sample_random_requests`) and of SGLang's `bench_serving`: 1 means fixed, and at 0.8 the
    /// mean is 0.9 of the nominal length. Newer `vllm bench serve` draws from
    /// `[(1 − r)·L, (1 + r)·L]` instead.
    Uniform {
        /// The nominal length, and the longest.
        max: u32,
        /// Shortest over longest, 0 to 1.
        range_ratio: f64,
    },
    /// The logarithm is normal; what is drawn above `max` counts as `max`.
    LogNormal {
        /// Half of the requests are shorter, tokens.
        median: f64,
        /// Standard deviation of the natural logarithm.
        sigma: f64,
        /// The longest, tokens.
        max: u32,
    },
    /// As measured: evenly spaced quantiles, straight lines in between.
    Quantiles {
        /// Tokens at the quantiles 0, 1/(n−1), … 1; rising.
        tokens: Vec<u32>,
        /// The measured mean, tokens.
        mean: f64,
    },
    /// Those of a trace file, read before planning (see [`Trace`](super::Trace)).
    Trace {
        /// The file, relative to the workload's own.
        file: String,
    },
}

impl Lengths {
    /// Mean, tokens. A trace that was not read yet has none.
    pub fn mean(&self) -> Option<f64> {
        Some(match self {
            Lengths::Fixed { tokens } => f64::from(*tokens),
            Lengths::Uniform { max, range_ratio } => {
                (f64::from(shortest(*max, *range_ratio)) + f64::from(*max)) / 2.0
            }
            Lengths::LogNormal { median, sigma, max } => {
                clipped_mean(*median, *sigma, f64::from(*max))
            }
            Lengths::Quantiles { mean, .. } => *mean,
            Lengths::Trace { .. } => return None,
        })
    }

    /// Mean of the squares, tokens². A trace that was not read yet has none.
    pub fn mean_square(&self) -> Option<f64> {
        Some(match self {
            Lengths::Fixed { tokens } => f64::from(*tokens).powi(2),
            Lengths::Uniform { max, range_ratio } => {
                let (low, high) = (f64::from(shortest(*max, *range_ratio)), f64::from(*max));
                (low * low + low * high + high * high) / 3.0
            }
            Lengths::LogNormal { median, sigma, max } => {
                // The square of a log-normal is log-normal, with twice the sigma.
                clipped_mean(median * median, 2.0 * sigma, f64::from(*max).powi(2))
            }
            Lengths::Quantiles { tokens, mean } => measured_square(tokens, *mean),
            Lengths::Trace { .. } => return None,
        })
    }

    /// The longest, tokens. A trace that was not read yet has none.
    pub fn max(&self) -> Option<u32> {
        match self {
            Lengths::Fixed { tokens } => Some(*tokens),
            Lengths::Uniform { max, .. } | Lengths::LogNormal { max, .. } => Some(*max),
            Lengths::Quantiles { tokens, .. } => tokens.last().copied(),
            Lengths::Trace { .. } => None,
        }
    }

    /// The length that a share `p` of the requests does not exceed, tokens; `p` is cut to 0..=1. A
    /// trace that was not read yet has none.
    pub fn quantile(&self, p: f64) -> Option<f64> {
        let p = if p.is_nan() { 0.5 } else { p.clamp(0.0, 1.0) };
        match self {
            Lengths::Fixed { tokens } => Some(f64::from(*tokens)),
            Lengths::Uniform { max, range_ratio } => {
                let low = f64::from(shortest(*max, *range_ratio));
                Some(low + p * (f64::from(*max) - low))
            }
            Lengths::LogNormal { median, sigma, max } => {
                let max = f64::from(*max);
                let drawn = median * (sigma * normal_quantile(p)).exp();
                Some(if drawn.is_nan() { *median } else { drawn }.min(max))
            }
            Lengths::Quantiles { tokens, .. } => {
                let last = tokens.len().checked_sub(1)?;
                let at = p * last as f64;
                let below = at.floor() as usize;
                let low = f64::from(*tokens.get(below)?);
                let high = f64::from(*tokens.get((below + 1).min(last))?);
                Some(low + (at - at.floor()) * (high - low))
            }
            Lengths::Trace { .. } => None,
        }
    }

    /// The distribution of measured lengths, in hundredths. `None` when there are none.
    pub fn measured(mut lengths: Vec<u32>) -> Option<Lengths> {
        lengths.sort_unstable();
        let last = lengths.len().checked_sub(1)?;
        let sum: f64 = lengths.iter().map(|tokens| f64::from(*tokens)).sum();
        let tokens = (0..=100)
            .filter_map(|percent| lengths.get(last * percent / 100).copied())
            .collect();
        Some(Lengths::Quantiles {
            tokens,
            mean: sum / lengths.len() as f64,
        })
    }
}

/// Lower end of [`Lengths::Uniform`]; no request is empty.
fn shortest(max: u32, range_ratio: f64) -> u32 {
    // Saturates at both ends, so that a ratio out of range cannot exceed the longest.
    ((f64::from(max) * range_ratio) as u32).clamp(1.min(max), max)
}

/// Distribution function of the standard normal.
fn normal(x: f64) -> f64 {
    0.5 * libm::erfc(-x / std::f64::consts::SQRT_2)
}

/// Mean of `min(X, max)` for a log-normal X.
fn clipped_mean(median: f64, sigma: f64, max: f64) -> f64 {
    if sigma == 0.0 {
        return median.min(max);
    }
    let reach = (max / median).ln() / sigma;
    let below = median * (sigma * sigma / 2.0).exp() * normal(reach - sigma);
    below + max * (1.0 - normal(reach))
}

/// Mean of the squares of measured lengths. Between quantiles they lie evenly, but for the last
/// part, whose lengths thin out towards the longest as a power law so that the mean is the measured
/// one: with `low + (high − low) · u^k` for u from 0 to 1.
fn measured_square(tokens: &[u32], mean: f64) -> f64 {
    let Some((&last, rest)) = tokens.split_last() else {
        return mean * mean;
    };
    let Some(&before) = rest.last() else {
        return f64::from(last).powi(2);
    };
    let parts = rest.len() as f64;
    let (mut sum, mut squares) = (0.0, 0.0);
    for pair in rest.windows(2) {
        let (low, high) = (f64::from(pair[0]), f64::from(pair[1]));
        sum += (low + high) / 2.0;
        squares += (low * low + low * high + high * high) / 3.0;
    }
    let (low, high) = (f64::from(before), f64::from(last));
    let reach = high - low;
    let excess = (mean * parts - sum - low).clamp(0.01 * reach, 0.99 * reach);
    let power = if excess > 0.0 {
        reach / excess - 1.0
    } else {
        1.0
    };
    squares += low * low + 2.0 * low * reach / (power + 1.0) + reach * reach / (2.0 * power + 1.0);
    (squares / parts).max(mean * mean)
}

/// Inverse of [`normal`] by halving: 60 steps leave an error far under one token.
fn normal_quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-9.0, 9.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if normal(middle) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    (low + high) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn inferencex_lengths_average_nine_tenths_of_the_nominal_one() {
        let lengths = Lengths::Uniform {
            max: 8192,
            range_ratio: 0.8,
        };
        // ⌊0.8 · 8192⌋ = 6553.
        assert_eq!(lengths.mean(), Some((6553.0 + 8192.0) / 2.0));
        assert_eq!(lengths.max(), Some(8192));
        assert_eq!(lengths.quantile(0.0), Some(6553.0));
    }

    #[test]
    fn a_log_normal_without_a_limit_has_its_textbook_mean() {
        let lengths = Lengths::LogNormal {
            median: 1000.0,
            sigma: 1.0,
            max: 100_000_000,
        };
        let mean = lengths.mean().expect("a mean");
        assert!((mean - 1000.0 * 0.5f64.exp()).abs() < 0.01, "{mean}");
        let middle = lengths.quantile(0.5).expect("a median");
        assert!((middle - 1000.0).abs() < 1e-6, "{middle}");
        // One standard deviation up: 84.134 % lie below e · median.
        let high = lengths.quantile(0.841_344_746).expect("a quantile");
        assert!((high - 2718.2818).abs() < 0.01, "{high}");
    }

    #[test]
    fn measured_lengths_keep_their_mean_and_ends() {
        let lengths = Lengths::measured(vec![30, 10, 20]).expect("lengths");
        assert_eq!(lengths.mean(), Some(20.0));
        assert_eq!(lengths.max(), Some(30));
        assert_eq!(lengths.quantile(0.0), Some(10.0));
        assert_eq!(Lengths::measured(Vec::new()), None);
    }

    proptest! {
        #[test]
        fn quantiles_rise_to_the_maximum_and_bracket_the_mean(
            median in 1.0f64..1e5, sigma in 0.0f64..3.0, max in 1u32..1_000_000,
            ratio in 0.0f64..=1.0, p in 0.0f64..=1.0, q in 0.0f64..=1.0,
        ) {
            for lengths in [
                Lengths::LogNormal { median, sigma, max },
                Lengths::Uniform { max, range_ratio: ratio },
                Lengths::Fixed { tokens: max },
            ] {
                let at = |p| lengths.quantile(p).expect("a quantile");
                prop_assert!(at(p.min(q)) <= at(p.max(q)) + 1e-9);
                prop_assert!(at(1.0) <= f64::from(max) + 1e-9);
                let mean = lengths.mean().expect("a mean");
                prop_assert!(mean <= f64::from(max) * (1.0 + 1e-9));
                prop_assert!(mean >= at(0.0) * (1.0 - 1e-9));
            }
        }
    }
}
