//! The small operations of a decoder layer, as the CUDA sources compute them.

mod cache;
mod experts;
mod rows;

use half::bf16;
use parplan_kernels::reference::uniform;

/// Values of unit variance, made as the reference makes them.
fn values(seed: u64, n: usize) -> Vec<bf16> {
    (0..n as u64)
        .map(|i| bf16::from_f32(1.7 * uniform(seed, i)))
        .collect()
}

/// Equal, or neighbours: expf and the order of sums differ in the last bit of f32, which
/// may tip a rounding to bf16.
fn near(got: &[bf16], want: &[bf16]) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let (g, w) = (g.to_f32(), w.to_f32());
        assert!(
            (g - w).abs() <= w.abs() / 128.0 + 1e-6,
            "element {i}: {g}, must be {w}"
        );
    }
}
