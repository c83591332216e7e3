//! Points inside a captured step: kernels of one thread that write the GPU's clock.
//!
//! Event nodes would do as well, but one between two kernels takes 3.9 µs on an H200, and
//! not the same between all kernels; a stamp takes 0.7 µs (2026-11-22).

use std::sync::Arc;

use parplan_kernels::stamp::STAMP;

use super::timing::Quantiles;
use crate::cuda::{Argument, Gpu, Grid};
use crate::{Buffer, Device, Result};

/// Places for the points of one step, in a GPU's memory.
pub(super) struct Stamps {
    gpu: Arc<Gpu>,
    places: Buffer,
}

impl Stamps {
    /// Room for `most` points. Not while a graph is captured.
    pub(super) fn new(gpu: &Arc<Gpu>, most: usize) -> Result<Self> {
        gpu.kernels()?.prepare(gpu, STAMP, 0)?;
        Ok(Stamps {
            gpu: Arc::clone(gpu),
            places: gpu.alloc("stamps", most * 8)?,
        })
    }

    /// Enqueues point `index`.
    pub(super) fn stamp(&self, index: usize) -> Result<()> {
        let place = self.places.view(index * 8, 8)?;
        let arguments = [Argument::Address(place.address()?)];
        // SAFETY: the kernel writes 8 bytes, which the view has.
        unsafe {
            self.gpu
                .kernels()?
                .launch(&self.gpu, STAMP, Grid::linear(1, 1), &arguments)
        }
    }

    /// Nanoseconds of the first `count` points, once they are reached.
    pub(super) fn read(&self, count: usize) -> Result<Vec<u64>> {
        let bytes = self.gpu.read(&self.places.view(0, count * 8)?)?;
        let words = bytes.chunks_exact(8);
        Ok(words.map(bytemuck::pod_read_unaligned).collect())
    }
}

/// Microseconds that a stamp between two kernels adds to a graph: the same chain of
/// kernels of a few microseconds is replayed with a stamp around each and without, by
/// turns. The stamp's own time is in there, and that the next kernel is not made ready
/// beside the one before.
///
/// # Errors
/// A device error.
pub fn graph_mark_us(gpu: &Arc<Gpu>) -> Result<f64> {
    const KERNELS: usize = 64;
    const BYTES: usize = 1 << 20;
    const REPEATS: usize = 15;
    let from = gpu.alloc("calibration of marks", 2 * BYTES)?;
    gpu.fill(&from.all(), 0)?;
    let (a, b) = (from.view(0, BYTES)?, from.view(BYTES, BYTES)?);
    let stamps = Stamps::new(gpu, KERNELS + 1)?;
    // Each reads what the one before wrote.
    let kernel = |i: usize| match i % 2 {
        0 => gpu.scale_bf16(&b, &a, 1.0),
        _ => gpu.scale_bf16(&a, &b, 1.0),
    };
    kernel(0)?;
    gpu.wait(None)?;
    let plain = gpu.capture(|| (0..KERNELS).try_for_each(kernel))?;
    let marked = gpu.capture(|| {
        for i in 0..KERNELS {
            stamps.stamp(i)?;
            kernel(i)?;
        }
        stamps.stamp(KERNELS)
    })?;
    let mut times = [Vec::new(), Vec::new()];
    for repeat in 0..=REPEATS {
        for (graph, times) in [&plain, &marked].into_iter().zip(&mut times) {
            let start = gpu.event()?;
            graph.launch()?;
            let end = gpu.event()?;
            gpu.wait(None)?;
            // The first launch of a graph is slower.
            if repeat > 0 {
                times.push(start.micros_until(&end)?);
            }
        }
    }
    let [plain, marked] = times.map(|t| Quantiles::of(&t).median_us);
    Ok(((marked - plain) / (KERNELS + 1) as f64).max(0.0))
}
