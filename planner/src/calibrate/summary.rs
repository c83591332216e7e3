//! Repeats of one measurement, summed up: what it took, how sure that is, and what was left out.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// A measurement summed up.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// Median of the repeats that are no outliers, corrected for clock drift.
    pub value: f64,
    /// 90 % interval of it.
    pub low: f64,
    /// Its other end.
    pub high: f64,
    /// Places of the repeats that were left out.
    pub outliers: Vec<u32>,
    /// By how much the anchor kernel's time varied over the repeats: largest over smallest, 1 where
    /// there was none.
    pub anchor_swing: f64,
}

/// A repeat is an outlier from this many robust deviations on.
const OUTLIER: f64 = 5.0;

/// The smallest deviation that is believed, as a share of the median: clocks are no finer.
const FINEST: f64 = 0.002;

/// The anchor's variation (as a ratio) from which repeats are corrected by it.
const DRIFT: f64 = 1.02;

/// Standard error of a median over that of a mean, for a normal law: √(π/2).
const MEDIAN_LOSS: f64 = 1.2533;

/// The middle of some values; NaN of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match (sorted.get(half), sorted.len() % 2) {
        (Some(&upper), 0) => f64::midpoint(sorted[half - 1], upper),
        (Some(&middle), _) => middle,
        (None, _) => f64::NAN,
    }
}

/// Median absolute deviation, scaled to the standard deviation of a normal law.
pub(super) fn deviation(values: &[f64], centre: f64) -> f64 {
    let away: Vec<f64> = values.iter().map(|x| (x - centre).abs()).collect();
    1.4826 * median(&away)
}

/// Student's t of a two-sided 90 % interval.
pub(super) fn t90(degrees: f64) -> f64 {
    StudentsT::new(0.0, 1.0, degrees.max(1.0)).map_or(1.645, |law| law.inverse_cdf(0.95))
}

/// Sums up `repeats`. `anchor_us` holds the time of one and the same kernel beside each repeat: where
/// that swings by more than 2 %, the clocks moved, and each repeat is scaled by its anchor.
pub fn summarise(repeats: &[f64], anchor_us: &[f64]) -> Summary {
    let least = anchor_us.iter().copied().fold(f64::INFINITY, f64::min);
    let most = anchor_us.iter().copied().fold(0.0, f64::max);
    let whole = anchor_us.len() == repeats.len() && least > 0.0 && least.is_finite();
    let anchor_swing = if whole { most / least } else { 1.0 };
    let corrected: Vec<f64> = if anchor_swing > DRIFT {
        let usual = median(anchor_us);
        // One odd anchor says that the anchor was disturbed, not the clocks.
        let believed = |a: f64| (a / usual).clamp(0.8, 1.25);
        repeats
            .iter()
            .zip(anchor_us)
            .map(|(x, &a)| x / believed(a))
            .collect()
    } else {
        repeats.to_vec()
    };
    let centre = median(&corrected);
    let spread = deviation(&corrected, centre).max(FINEST * centre);
    let is_outlier = |x: f64| (x - centre).abs() > OUTLIER * spread;
    let outliers = (0u32..)
        .zip(&corrected)
        .filter(|&(_, &x)| is_outlier(x))
        .map(|(at, _)| at)
        .collect();
    let kept: Vec<f64> = corrected.into_iter().filter(|&x| !is_outlier(x)).collect();
    let value = median(&kept);
    let n = kept.len() as f64;
    let mean = kept.iter().sum::<f64>() / n;
    let variance = kept.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    let error = (MEDIAN_LOSS * (variance / n).sqrt()).max(FINEST * value / n.sqrt());
    let half = if n > 1.0 {
        error * t90(n - 1.0)
    } else {
        // One repeat says nothing about its own spread.
        value * 0.5
    };
    Summary {
        value,
        low: (value - half).max(value * 0.1),
        high: value + half,
        outliers,
        anchor_swing,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn outliers_are_named_and_left_out() {
        let s = summarise(&[10.0, 10.1, 9.9, 10.0, 55.0, 10.05], &[]);
        assert_eq!(s.outliers, [4]);
        assert!((s.value - 10.0).abs() < 0.05 && s.low < 10.0 && s.high > 10.0);
        assert!(s.high - s.low < 0.5, "{s:?}");
    }

    #[test]
    fn drifting_clocks_are_taken_out() {
        let anchor: Vec<f64> = (0..9).map(|i| 5.0 * (1.0 + 0.02 * f64::from(i))).collect();
        let repeats: Vec<f64> = anchor.iter().map(|a| a * 8.0).collect();
        let s = summarise(&repeats, &anchor);
        assert!((s.anchor_swing - 1.16).abs() < 1e-9);
        assert!((s.value / (8.0 * median(&anchor)) - 1.0).abs() < 1e-9);
        assert!((s.high - s.low) / s.value < 0.01, "{s:?}");
    }

    #[test]
    fn the_interval_covers_as_often_as_it_says() {
        // Sums of uniform numbers, near normal, from a fixed generator.
        let mut state = 7u64;
        let mut draw = || {
            let mut sum = 0.0;
            for _ in 0..12 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                sum += (state >> 11) as f64 / (1u64 << 53) as f64;
            }
            100.0 + (sum - 6.0) * 3.0
        };
        let trials = 2000;
        let covered = (0..trials)
            .filter(|_| {
                let repeats: Vec<f64> = (0..9).map(|_| draw()).collect();
                let s = summarise(&repeats, &[]);
                s.low <= 100.0 && 100.0 <= s.high
            })
            .count();
        let share = covered as f64 / f64::from(trials);
        assert!((0.86..=0.95).contains(&share), "{share}");
    }

    #[test]
    fn one_repeat_is_not_believed_far() {
        let s = summarise(&[4.0], &[]);
        assert_eq!((s.value, s.low, s.high), (4.0, 2.0, 6.0));
    }
}
