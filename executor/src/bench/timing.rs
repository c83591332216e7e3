//! Repeated timings of one operation on all ranks.
//!
//! As nccl-tests does it: ranks start together, enqueue `iterations` operations back to
//! back (or launch a graph that holds them), and the host's clock runs until the stream
//! is done. That is repeated, and the median of the repeats is the result.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::comm::CpuCommunicator;
use crate::cuda::{Gpu, Graph};

/// How operations reach the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Launch {
    /// One call each.
    Stream,
    /// Captured once, replayed.
    Graph,
}

/// Microseconds of one operation, over the repeats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Median of the repeats, each averaged over the ranks.
    pub median_us: f64,
    /// Fastest repeat.
    pub min_us: f64,
    /// Slowest repeat.
    pub max_us: f64,
    /// Median absolute deviation from the median.
    pub mad_us: f64,
    /// 95th percentile, the nearest rank.
    pub p95_us: f64,
}

impl Stats {
    /// Statistics of at least one repeat.
    #[must_use]
    pub fn of(mut micros: Vec<f64>) -> Self {
        micros.sort_by(f64::total_cmp);
        let at = |i: usize| micros.get(i).copied().unwrap_or(f64::NAN);
        let n = micros.len();
        let median_us = median(&micros);
        let mut off: Vec<f64> = micros.iter().map(|v| (v - median_us).abs()).collect();
        off.sort_by(f64::total_cmp);
        let rank = (0.95 * n as f64).ceil() as usize;
        Stats {
            median_us,
            min_us: at(0),
            max_us: at(n.saturating_sub(1)),
            mad_us: median(&off),
            p95_us: at(rank.saturating_sub(1)),
        }
    }
}

fn median(sorted: &[f64]) -> f64 {
    match sorted.len() {
        0 => f64::NAN,
        n if n.is_multiple_of(2) => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        n => sorted[n / 2],
    }
}

/// How much to measure.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Timer {
    /// Operations of one repeat.
    pub iterations: usize,
    /// Repeats.
    pub repeats: usize,
    /// Untimed operations before the first repeat.
    pub warmup: usize,
    /// Graph launches of one repeat, each of `iterations` operations.
    pub graph_launches: usize,
}

impl Timer {
    /// Times `operation`, which enqueues one operation. All ranks call this. `finish`
    /// waits for what was enqueued. With [`Launch::Graph`] the operation is captured on
    /// `gpu`; the names of the captured kernels come back too, each once.
    ///
    /// # Errors
    /// Errors of the operation, the GPU and the control plane.
    pub fn time(
        &self,
        control: &mut CpuCommunicator,
        launch: Launch,
        gpu: Option<&Arc<Gpu>>,
        mut operation: impl FnMut() -> Result<()>,
        mut finish: impl FnMut() -> Result<()>,
    ) -> Result<(Stats, Vec<String>)> {
        for _ in 0..self.warmup.max(1) {
            operation()?;
        }
        finish()?;
        let graph = match (launch, gpu) {
            (Launch::Graph, Some(gpu)) => Some(self.captured(gpu, &mut operation)?),
            _ => None,
        };
        let launches = match graph.is_none() && gpu.is_some() {
            true => Launches::OneByOne,
            false => Launches::Few,
        };
        let mut micros = Vec::with_capacity(self.repeats);
        for _ in 0..self.repeats.max(1) {
            start_together(control, launches)?;
            // Untimed: after a wait the first launches find cold caches.
            match &graph {
                Some((graph, _)) => graph.launch()?,
                None => (0..self.warmup.max(1)).try_for_each(|_| operation())?,
            }
            finish()?;
            let start = Instant::now();
            let done = match &graph {
                Some((graph, _)) => {
                    for _ in 0..self.graph_launches {
                        graph.launch()?;
                    }
                    self.graph_launches * self.iterations
                }
                None => {
                    for _ in 0..self.iterations {
                        operation()?;
                    }
                    self.iterations
                }
            };
            finish()?;
            micros.push(start.elapsed().as_secs_f64() * 1e6 / done as f64);
        }
        let names = graph.map(|(_, names)| names).unwrap_or_default();
        Ok((Stats::of(mean_over_ranks(control, &micros)?), names))
    }

    /// Times operations by turns, a repeat of each after a repeat of the one before, so
    /// that a drifting clock or a busy machine meets all alike. `run` runs one of `lanes`
    /// and says how many operations that were. All ranks call this.
    ///
    /// # Errors
    /// Errors of the operations and the control plane.
    pub fn by_turns(
        &self,
        control: &mut CpuCommunicator,
        lanes: usize,
        mut run: impl FnMut(usize) -> Result<usize>,
        mut finish: impl FnMut() -> Result<()>,
    ) -> Result<Vec<Stats>> {
        let mut micros = vec![Vec::with_capacity(self.repeats); lanes];
        for _ in 0..self.repeats.max(1) {
            for (lane, micros) in micros.iter_mut().enumerate() {
                start_together(control, Launches::Few)?;
                // Untimed: after a wait the first launches find cold caches.
                run(lane)?;
                finish()?;
                let start = Instant::now();
                let done = run(lane)?;
                finish()?;
                micros.push(start.elapsed().as_secs_f64() * 1e6 / done.max(1) as f64);
            }
        }
        micros
            .iter()
            .map(|mine| Ok(Stats::of(mean_over_ranks(control, mine)?)))
            .collect()
    }

    /// A graph of `iterations` operations, launched once, and the names of its kernels.
    ///
    /// # Errors
    /// Errors of the operation and the GPU.
    pub fn captured(
        &self,
        gpu: &Arc<Gpu>,
        operation: &mut impl FnMut() -> Result<()>,
    ) -> Result<(Graph, Vec<String>)> {
        let graph = gpu.capture(|| {
            for _ in 0..self.iterations {
                operation()?;
            }
            Ok(())
        })?;
        let mut names = graph.kernel_names()?;
        names.sort();
        names.dedup();
        // The first launch of a graph is slower; keep it out.
        graph.launch()?;
        gpu.wait(None)?;
        Ok((graph, names))
    }
}

/// Each repeat averaged over the ranks, as nccl-tests reports it.
///
/// # Errors
/// Errors of the control group.
pub(crate) fn mean_over_ranks(control: &mut CpuCommunicator, mine: &[f64]) -> Result<Vec<f64>> {
    let all = control.all_gather_bytes(bytemuck::cast_slice(mine))?;
    let ranks: Vec<Vec<f64>> = all
        .iter()
        .map(|b| {
            b.chunks_exact(8)
                .map(bytemuck::pod_read_unaligned)
                .collect()
        })
        .collect();
    let mean = |i: usize| ranks.iter().filter_map(|r| r.get(i)).sum::<f64>() / ranks.len() as f64;
    Ok((0..mine.len()).map(mean).collect())
}

/// What a timed repeat asks of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Launches {
    /// A launch for every operation, onto a GPU: the host's speed is what is timed, and that
    /// depends on the core. One that has slept may come back slow, and its rank may come back
    /// on another one. So ranks meet without sleeping, as the processes of nccl-tests do under
    /// MPICH, and stay busy for a while (docs/executor.md has what that was seen to do).
    OneByOne,
    /// Graphs, or work of the CPU itself.
    Few,
}

impl Launches {
    /// Busy time before a common start. A little lets the ranks' notes to each other arrive.
    fn head_start(self) -> Duration {
        match self {
            Launches::OneByOne => Duration::from_millis(20),
            Launches::Few => Duration::from_micros(150),
        }
    }

    /// How long a rank that waits for the others polls before it sleeps.
    fn polls(self) -> Duration {
        match self {
            Launches::OneByOne => Duration::from_millis(50),
            Launches::Few => Duration::ZERO,
        }
    }
}

/// Lets all ranks start within a microsecond of each other where they share a clock.
/// A barrier alone lets them go tens of microseconds apart and with cold cores, which
/// short operations would be charged for.
pub(crate) fn start_together(control: &mut CpuCommunicator, launches: Launches) -> Result<()> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let mut mine = monotonic_ns().to_le_bytes().to_vec();
    mine.extend_from_slice(boot.as_bytes());
    control.poll_before_sleep(launches.polls());
    let all = control.all_gather_bytes(&mine);
    control.poll_before_sleep(Duration::ZERO);
    let all = all?;
    let clocks = all
        .iter()
        .filter_map(|b| Some((u64::from_le_bytes(*b.first_chunk()?), &b[8..])));
    let same_clock = clocks.clone().all(|(_, theirs)| theirs == boot.as_bytes());
    let latest = clocks.map(|(ns, _)| ns).max().unwrap_or(0);
    // On other machines the clocks mean nothing: go on from one's own end of the exchange.
    let start =
        if same_clock { latest } else { monotonic_ns() } + launches.head_start().as_nanos() as u64;
    while monotonic_ns() < start {
        std::hint::spin_loop();
    }
    Ok(())
}

/// The clock that all processes of a machine share.
fn monotonic_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(0, |t| {
        t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(
            Stats::of(vec![5.0, 1.0, 9.0]),
            Stats {
                median_us: 5.0,
                min_us: 1.0,
                max_us: 9.0,
                mad_us: 4.0,
                p95_us: 9.0
            }
        );
        assert_eq!(Stats::of(vec![4.0, 1.0, 2.0, 9.0]).median_us, 3.0);
        assert!(Stats::of(vec![]).median_us.is_nan());
    }
}
