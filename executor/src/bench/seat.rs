//! Where a thread launches from.
//!
//! CPUs of one machine differ in what a launch costs them: cores of another socket, or a
//! core whose other thread is busy, and in a virtual machine neither can be read anywhere.
//! On a guest of 64 CPUs with H200s an empty launch took 3.4 us on some and 4.8 on others,
//! and most kept their figure from one look to the next. So it can be measured first.

use std::sync::Arc;
use std::time::Instant;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::cuda::Gpu;
use crate::ranks::has_own_cores;
use crate::{Device, Result};

/// CPUs that are tried at most, evenly among those that the thread may use.
const TRIED: usize = 32;
/// Launches of one trial.
const LAUNCHES: usize = 40;

/// The calling thread on one CPU, until dropped. Threads that it starts meanwhile would
/// stay there too: nothing that starts any may be done on a seat.
pub(crate) struct Seat {
    before: Option<CpuSet>,
}

impl Seat {
    /// Moves the thread to the CPU, of those that are its own, from which launches onto
    /// `gpu` are fastest. Where ranks share their CPUs, or may not choose, it stays where
    /// the scheduler puts it: placement changes speed, not results.
    ///
    /// # Errors
    /// Errors of the GPU.
    pub fn fastest(gpu: &Arc<Gpu>) -> Result<Self> {
        let this = Pid::from_raw(0);
        let (true, Ok(before)) = (has_own_cores(), sched_getaffinity(this)) else {
            return Ok(Seat { before: None });
        };
        let seat = Seat {
            before: Some(before),
        };
        let own: Vec<usize> = (0..CpuSet::count())
            .filter(|c| before.is_set(*c).unwrap_or(false))
            .collect();
        let target = gpu.alloc("trial launches", 16)?;
        let mut best = (f64::INFINITY, None);
        for cpu in evenly(&own, TRIED) {
            if !sit(cpu) {
                continue;
            }
            // Caches first; then the better of two, the other may have met an interrupt.
            let trial = || -> Result<f64> {
                let start = Instant::now();
                for _ in 0..LAUNCHES {
                    gpu.fill(&target.all(), 0)?;
                }
                let took = start.elapsed().as_secs_f64();
                gpu.wait(None)?;
                Ok(took)
            };
            trial()?;
            let took = trial()?.min(trial()?);
            if took < best.0 {
                best = (took, Some(cpu));
            }
        }
        if let Some(cpu) = best.1 {
            sit(cpu);
        }
        Ok(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // It was allowed before.
            let _ = sched_setaffinity(Pid::from_raw(0), before);
        }
    }
}

/// Puts the calling thread on a CPU, if that is allowed.
fn sit(cpu: usize) -> bool {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .is_ok()
}

/// At most `most` of them, evenly.
fn evenly(all: &[usize], most: usize) -> impl Iterator<Item = usize> {
    let count = all.len().min(most);
    (0..count).map(move |i| all[i * all.len() / count])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_tried_evenly() {
        let all: Vec<usize> = (10..20).collect();
        assert_eq!(evenly(&all, 32).collect::<Vec<_>>(), all);
        assert_eq!(evenly(&all, 3).collect::<Vec<_>>(), [10, 13, 16]);
        assert_eq!(evenly(&[], 3).count(), 0);
    }

    #[test]
    fn a_seat_is_left_as_it_was_taken() {
        let this = Pid::from_raw(0);
        let before = sched_getaffinity(this).unwrap();
        let first = (0..CpuSet::count())
            .find(|c| before.is_set(*c).unwrap())
            .unwrap();
        let seat = Seat {
            before: Some(before),
        };
        assert!(sit(first));
        let alone = sched_getaffinity(this).unwrap();
        let count = |set: &CpuSet| {
            (0..CpuSet::count())
                .filter(|c| set.is_set(*c).unwrap())
                .count()
        };
        assert_eq!(count(&alone), 1);
        drop(seat);
        assert_eq!(count(&sched_getaffinity(this).unwrap()), count(&before));
    }
}
