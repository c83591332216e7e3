//! When each kind of work begins: clocks on the CPU, events on a GPU's stream, stamps
//! inside its graph.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::op::Op;
use super::run::Marks;
use super::stamps::Stamps;
use crate::Result;
use crate::cuda::{Event, Gpu};

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
    Events {
        gpu: Arc<Gpu>,
        /// Recorded in order, reused from step to step.
        events: Vec<Event>,
    },
    Stamps(Stamps),
}

/// How many marks a step has: neighbouring ones of one kind are one, and one ends it.
#[derive(Clone, Copy, Debug, Default)]
pub struct MarkCount {
    last: Option<Op>,
    /// Marks so far, the last one of the step included.
    pub marks: usize,
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

    /// Events on the stream of `gpu`.
    #[must_use]
    pub fn events(gpu: &Arc<Gpu>) -> Self {
        Timeline {
            ops: Vec::new(),
            clock: Clock::Events {
                gpu: Arc::clone(gpu),
                events: Vec::new(),
            },
        }
    }

    /// Kernels of the graph that is going to be captured on `gpu`, for a step of at most
    /// so many `marks`: what [`MarkCount`] counts.
    ///
    /// # Errors
    /// A device error.
    pub fn stamps(gpu: &Arc<Gpu>, marks: usize) -> Result<Self> {
        Ok(Timeline {
            ops: Vec::new(),
            clock: Clock::Stamps(Stamps::new(gpu, marks)?),
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
            Clock::Events { gpu, events } => {
                if events.len() == index {
                    events.push(gpu.new_event()?);
                }
                events[index].record(gpu)?;
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
        let stamped = match &self.clock {
            Clock::Stamps(stamps) => stamps.read(self.ops.len() + 1)?,
            _ => Vec::new(),
        };
        for (i, op) in self.ops.iter().enumerate() {
            let us = match &self.clock {
                Clock::Host(times) => (times[i + 1] - times[i]).as_secs_f64() * 1e6,
                Clock::Events { events, .. } => events[i].micros_until(&events[i + 1])?,
                Clock::Stamps(_) => stamped[i + 1].saturating_sub(stamped[i]) as f64 * 1e-3,
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

impl Marks for MarkCount {
    fn mark(&mut self, op: Op) -> Result<()> {
        // The first is counted with the one that ends the step.
        self.marks += match self.last.replace(op) {
            None => 2,
            Some(last) => usize::from(last != op),
        };
        Ok(())
    }
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
        let mut count = MarkCount::default();
        for op in [Op::Router, Op::Router, Op::Experts, Op::Router] {
            line.mark(op).unwrap();
            count.mark(op).unwrap();
        }
        line.end().unwrap();
        assert_eq!(count.marks, 4);
        let read = line.read(0.0).unwrap();
        assert_eq!(read[&Op::Router].1, 2);
        assert_eq!(read[&Op::Experts].1, 1);
        line.restart();
        line.mark(Op::Gather).unwrap();
        line.end().unwrap();
        assert_eq!(line.read(1e9).unwrap()[&Op::Gather], (0.0, 1));
    }
}
