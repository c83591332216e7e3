//! Synthetic values that every rank and every device computes alike: element `index` of
//! the tensor `seed`, so that any shard of a tensor is made where it is needed.

use half::bf16;

use super::{f32_to_e4m3, split_mix};

/// Largest finite value of fp8 e4m3.
pub const E4M3_MAX: f32 = 448.0;

/// A value of `[-1, 1)`, uniform: 24 bits of [`split_mix`] of the element's number. Exact
/// in f32, hence the same bits everywhere.
#[must_use]
pub fn uniform(seed: u64, index: u64) -> f32 {
    // 24 bits: every step is exact.
    (split_mix(seed, index) >> 40) as f32 * (1.0 / 8_388_608.0) - 1.0
}

/// Which part of a tensor to make, and from what.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Synthetic {
    /// Names the tensor.
    pub seed: u64,
    /// Columns of the whole tensor.
    pub full_columns: u64,
    /// First column of the part.
    pub column: u64,
    /// Columns of the part.
    pub columns: usize,
    /// Every value is `offset + scale · uniform`.
    pub scale: f32,
    /// See `scale`.
    pub offset: f32,
}

impl Synthetic {
    /// Column `c` of the part in row `row` of the whole tensor.
    #[must_use]
    pub fn value(&self, row: u64, c: usize) -> f32 {
        let index = row * self.full_columns + self.column + c as u64;
        // Two roundings, never one: the kernel must not fuse them either.
        self.offset + self.scale * uniform(self.seed, index)
    }

    /// The rows in bf16.
    #[must_use]
    pub fn bf16(&self, rows: &[u64]) -> Vec<bf16> {
        self.each(rows, bf16::from_f32)
    }

    /// The rows in e4m3, after division by `unit`.
    #[must_use]
    pub fn e4m3(&self, rows: &[u64], unit: f32) -> Vec<u8> {
        self.each(rows, |v| f32_to_e4m3(v / unit))
    }

    fn each<T>(&self, rows: &[u64], f: impl Fn(f32) -> T) -> Vec<T> {
        rows.iter()
            .flat_map(|row| (0..self.columns).map(move |c| (*row, c)))
            .map(|(row, c)| f(self.value(row, c)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_uniform_and_a_part_is_that_of_the_whole() {
        let n = 100_000;
        let values: Vec<f64> = (0..n).map(|i| f64::from(uniform(7, i))).collect();
        let mean = values.iter().sum::<f64>() / n as f64;
        let square = values.iter().map(|v| v * v).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.01, "{mean}");
        assert!((square - 1.0 / 3.0).abs() < 0.01, "{square}");
        assert!(values.iter().all(|v| (-1.0..1.0).contains(v)));
        let whole = Synthetic {
            seed: 3,
            full_columns: 10,
            column: 0,
            columns: 10,
            scale: 2.0,
            offset: 0.5,
        };
        let part = Synthetic {
            column: 4,
            columns: 3,
            ..whole
        };
        let all = whole.bf16(&[0, 1, 2, 3]);
        assert_eq!(part.bf16(&[3, 1]), [&all[34..37], &all[14..17]].concat());
    }
}
