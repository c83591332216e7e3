//! Scales of plots: round ticks, and where a value lands.

/// An axis from 0, or from a round number below the values, to a round number above them.
#[derive(Debug, Clone, PartialEq)]
pub struct Scale {
    low: f64,
    high: f64,
    /// Values to label, ascending.
    pub ticks: Vec<f64>,
}

impl Scale {
    /// A linear axis from 0 that holds all values, with about so many ticks.
    pub fn from_zero(values: impl IntoIterator<Item = f64>, about: usize) -> Scale {
        let most = values
            .into_iter()
            .filter(|value| value.is_finite())
            .fold(0.0, f64::max);
        let most = if most > 0.0 { most } else { 1.0 };
        let step = round_up(most / about.max(1) as f64);
        let count = (most / step).ceil().max(1.0);
        Scale {
            low: 0.0,
            high: step * count,
            ticks: (0..=count as usize).map(|i| i as f64 * step).collect(),
        }
    }

    /// Where a value lies between the ends, 0 to 1.
    pub fn share(&self, value: f64) -> f64 {
        let share = (value - self.low) / (self.high - self.low);
        if share.is_finite() {
            share.clamp(0.0, 1.0)
        } else {
            0.0
        }
    }
}

/// The next of 1, 2, 2.5, 5 times a power of ten.
fn round_up(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    for nice in [1.0, 2.0, 2.5, 5.0] {
        if nice * power >= step * (1.0 - 1e-9) {
            return nice * power;
        }
    }
    10.0 * power
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ticks_are_round() {
        let scale = Scale::from_zero([3.0, 306.0, 88.0], 4);
        assert_eq!(scale.ticks, [0.0, 100.0, 200.0, 300.0, 400.0]);
        assert_eq!(scale.share(200.0), 0.5);
        assert_eq!(Scale::from_zero([], 4).share(7.0), 1.0);
        assert_eq!(
            Scale::from_zero([f64::NAN, f64::INFINITY], 4).ticks.len(),
            5
        );
    }

    proptest! {
        #[test]
        fn every_value_lies_on_its_axis(values in proptest::collection::vec(1e-6f64..1e9, 1..30), about in 1usize..12) {
            let scale = Scale::from_zero(values.iter().copied(), about);
            prop_assert!(scale.ticks.len() <= about + 2, "{:?}", scale.ticks);
            let most = values.iter().copied().fold(0.0, f64::max);
            prop_assert!(scale.ticks.last().copied().unwrap_or(0.0) >= most);
            for value in values {
                prop_assert!((0.0..=1.0).contains(&scale.share(value)));
            }
        }
    }
}
