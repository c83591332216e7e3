//! When each kind of work begins: clocks on the CPU, events on a GPU's stream or inside
//! its graph.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::op::Op;
use super::run::Marks;
use crate::cuda::{Argument, Event, Gpu, Grid, Record};
use crate::{Buffer, Device, Result};

/// Entry point `(u64* at)`.
const STAMP: &str = "parplan_stamp";

/// Microseconds over the repeats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Median.
    pub median_us: f64,
    /// Median absolute deviation from it.
    pub mad_us: f64,
    /// 95th percentile.
    pub p95_us: f64,
}

impl Quantiles {
    /// Of at least one value; of none, NaN.
    #[must_use]
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let median_us = middle(&sorted);
        let mut off: Vec<f64> = sorted.iter().map(|v| (v - median_us).abs()).collect();
        off.sort_by(f64::total_cmp);
        // Nearest rank: with few repeats the slowest.
        let rank = (0.95 * sorted.len() as f64).ceil() as usize;
        Quantiles {
            median_us,
            mad_us: middle(&off),
            p95_us: sorted
                .get(rank.saturating_sub(1))
                .copied()
                .unwrap_or(f64::NAN),
        }
    }
}

fn middle(sorted: &[f64]) -> f64 {
    match sorted.len() {
        0 => f64::NAN,
        n if n.is_multiple_of(2) => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        n => sorted[n / 2],
    }
}

/// Microseconds of each kind of work in one step, and how often it began.
pub type Breakdown = BTreeMap<Op, (f64, usize)>;

/// Marks of one step; neighbouring marks of one kind are one.
pub struct Timeline {
    ops: Vec<Op>,
    clock: Clock,
}

enum Clock {
    Host(Vec<Instant>),
    Gpu {
        gpu: Arc<Gpu>,
        how: Record,
        /// Recorded in order, reused from step to step.
        events: Vec<Event>,
    },
    Stamps(Stamps),
}

/// Places for points of a step in a GPU's memory, where kernels write its clock.
struct Stamps {
    gpu: Arc<Gpu>,
    places: Buffer,
    early: bool,
}

impl Stamps {
    fn new(gpu: &Arc<Gpu>, most: usize) -> Result<Self> {
        gpu.kernels()?.prepare(gpu, STAMP, 0)?;
        Ok(Stamps {
            gpu: Arc::clone(gpu),
            places: gpu.alloc("stamps", most * 8)?,
            early: std::env::var("PARPLAN_STAMP").is_ok_and(|v| v == "early"),
        })
    }

    fn stamp(&self, index: usize) -> Result<()> {
        let arguments = [Argument::Address(self.places.view(index * 8, 8)?.address()?)];
        let grid = Grid {
            early: self.early,
            ..Grid::linear(1, 1)
        };
        // SAFETY: the kernel writes one u64 into the view, which the buffer keeps alive.
        unsafe { self.gpu.kernels()?.launch(&self.gpu, STAMP, grid, &arguments) }
    }

    fn read(&self, count: usize) -> Result<Vec<u64>> {
        let bytes = self.gpu.read(&self.places.view(0, count * 8)?)?;
        Ok(bytes.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect())
    }
}

impl Timeline {
    /// The host's clock.
    #[must_use]
    pub fn host() -> Self {
        Timeline {
            ops: Vec::new(),
            clock: Clock::Host(Vec::new()),
        }
    }

    /// Events on the stream of `gpu`, or nodes of the graph that is being captured on it.
    #[must_use]
    pub fn gpu(gpu: &Arc<Gpu>, how: Record) -> Self {
        Timeline {
            ops: Vec::new(),
            clock: Clock::Gpu {
                gpu: Arc::clone(gpu),
                how,
                events: Vec::new(),
            },
        }
    }

    /// Stamps.
    pub fn stamps(gpu: &Arc<Gpu>, most: usize) -> Result<Self> {
        Ok(Timeline {
            ops: Vec::new(),
            clock: Clock::Stamps(Stamps::new(gpu, most)?),
        })
    }

    /// Starts another step.
    pub fn restart(&mut self) {
        self.ops.clear();
        if let Clock::Host(times) = &mut self.clock {
            times.clear();
        }
    }

    fn stamp(&mut self, index: usize) -> Result<()> {
        match &mut self.clock {
            Clock::Host(times) => times.push(Instant::now()),
            Clock::Gpu { gpu, how, events } => {
                if events.len() == index {
                    events.push(gpu.new_event()?);
                }
                events[index].record(gpu, *how)?;
            }
            Clock::Stamps(stamps) => stamps.stamp(index)?,
        }
        Ok(())
    }

    /// Ends the step; after the work is done, [`Timeline::read`] has its times.
    ///
    /// # Errors
    /// A device error.
    pub fn end(&mut self) -> Result<()> {
        self.stamp(self.ops.len())
    }

    /// The times of the last step, each less `per_mark`, what a mark itself takes. The
    /// work must be done.
    ///
    /// # Errors
    /// A device error.
    pub fn read(&self, per_mark: f64) -> Result<Breakdown> {
        let mut all = Breakdown::new();
        let stamps = match &self.clock {
            Clock::Stamps(s) => s.read(self.ops.len() + 1)?,
            _ => Vec::new(),
        };
        for (i, op) in self.ops.iter().enumerate() {
            let us = match &self.clock {
                Clock::Host(times) => (times[i + 1] - times[i]).as_secs_f64() * 1e6,
                Clock::Gpu { events, .. } => events[i].micros_until(&events[i + 1])?,
                Clock::Stamps(_) => stamps[i + 1].saturating_sub(stamps[i]) as f64 / 1e3,
            };
            let entry = all.entry(*op).or_default();
            entry.0 += (us - per_mark).max(0.0);
            entry.1 += 1;
        }
        Ok(all)
    }
}

impl Marks for Timeline {
    fn mark(&mut self, op: Op) -> Result<()> {
        if self.ops.last() == Some(&op) {
            return Ok(());
        }
        self.stamp(self.ops.len())?;
        self.ops.push(op);
        Ok(())
    }
}

/// Microseconds that an event node between two kernels adds to a graph: the same chain of
/// kernels of a few microseconds is replayed with a mark around each and without, by turns.
/// The node's own time is in there, and that the next kernel is not made ready beside the
/// one before.
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
    let events = (0..=KERNELS)
        .map(|_| gpu.new_event())
        .collect::<Result<Vec<_>>>()?;
    // Each reads what the one before wrote.
    let kernel = |i: usize| match i % 2 {
        0 => gpu.scale_bf16(&b, &a, 1.0),
        _ => gpu.scale_bf16(&a, &b, 1.0),
    };
    kernel(0)?;
    gpu.wait(None)?;
    let stamps = Stamps::new(gpu, KERNELS + 1)?;
    let by_stamps = std::env::var("PARPLAN_STAMP").is_ok();
    let plain = gpu.capture(|| (0..KERNELS).try_for_each(kernel))?;
    let marked = gpu.capture(|| {
        for (i, event) in events.iter().enumerate() {
            if by_stamps {
                stamps.stamp(i)?;
            } else {
                event.record(gpu, Record::Node)?;
            }
            if i < KERNELS {
                kernel(i)?;
            }
        }
        Ok(())
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
    if by_stamps {
        let read = stamps.read(KERNELS + 1)?;
        eprintln!("chain plain {plain} marked {marked}; stamps {:?}", &read[..6].iter().map(|r| r - read[0]).collect::<Vec<_>>());
    }
    Ok(((marked - plain) / events.len() as f64).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_rank_around_the_middle() {
        let q = Quantiles::of(&[5.0, 1.0, 2.0, 100.0, 3.0]);
        assert_eq!((q.median_us, q.mad_us, q.p95_us), (3.0, 2.0, 100.0));
        assert_eq!(Quantiles::of(&[1.0, 2.0]).median_us, 1.5);
        assert!(Quantiles::of(&[]).median_us.is_nan());
    }

    #[test]
    fn neighbouring_marks_of_one_kind_are_one() {
        let mut line = Timeline::host();
        for op in [Op::Router, Op::Router, Op::Experts, Op::Router] {
            line.mark(op).unwrap();
        }
        line.end().unwrap();
        let read = line.read(0.0).unwrap();
        assert_eq!(read[&Op::Router].1, 2);
        assert_eq!(read[&Op::Experts].1, 1);
        line.restart();
        line.mark(Op::Gather).unwrap();
        line.end().unwrap();
        assert_eq!(line.read(1e9).unwrap()[&Op::Gather], (0.0, 1));
    }
}
