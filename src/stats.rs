//! How long an answer took, on the wall and on all cores.

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use std::time::Instant;

/// What was computed, and how long it took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Stats {
    /// Points that were priced, a configuration at one decoding batch each; none where they are not
    /// counted.
    pub points: Option<u64>,
    /// Wall time, seconds.
    pub seconds: f64,
    /// Time of all threads together, seconds.
    pub cpu_seconds: f64,
}

impl Stats {
    /// Points that one core prices in a second.
    pub fn points_per_cpu_second(&self) -> Option<f64> {
        let points = self.points? as f64;
        (self.cpu_seconds > 0.0).then(|| points / self.cpu_seconds)
    }
}

/// A running measurement.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch {
    wall: Instant,
    cpu: f64,
}

impl Stopwatch {
    /// Starts measuring.
    pub fn start() -> Stopwatch {
        Stopwatch {
            wall: Instant::now(),
            cpu: cpu_seconds(),
        }
    }

    /// What was measured, for so many points.
    pub fn stop(&self, points: Option<u64>) -> Stats {
        Stats {
            points,
            seconds: self.wall.elapsed().as_secs_f64(),
            cpu_seconds: cpu_seconds() - self.cpu,
        }
    }
}

/// CPU time of this process, all threads.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_cpu_time_and_waiting_does_not() {
        let watch = Stopwatch::start();
        std::thread::sleep(std::time::Duration::from_millis(30));
        let waited = watch.stop(None);
        assert!(waited.seconds >= 0.03);
        let mut sum = 0u64;
        while watch.wall.elapsed().as_secs_f64() < 0.08 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(watch.stop(None).cpu_seconds > waited.cpu_seconds);
    }

    #[test]
    fn a_rate_needs_points_and_time() {
        let stats = Stats {
            points: Some(500),
            seconds: 1.0,
            cpu_seconds: 0.25,
        };
        assert_eq!(stats.points_per_cpu_second(), Some(2000.0));
        let idle = Stats {
            cpu_seconds: 0.0,
            ..stats
        };
        assert_eq!(idle.points_per_cpu_second(), None);
    }
}
