//! A point in time that every wait is bounded by.

use std::time::{Duration, Instant};

use crate::{Error, Result};

/// When to stop waiting. Made once for an operation, so that many small waits inside
/// it share one budget.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
    granted: Duration,
}

impl Deadline {
    /// A deadline this long from now.
    #[must_use]
    pub fn after(granted: Duration) -> Self {
        Deadline {
            at: Instant::now() + granted,
            granted,
        }
    }

    /// Time that is left, zero when over.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// The time left.
    ///
    /// # Errors
    /// [`Error::Deadline`] naming `what` was waited for, when no time is left.
    pub fn check(&self, what: impl FnOnce() -> String) -> Result<Duration> {
        let left = self.left();
        if left.is_zero() {
            return Err(Error::Deadline {
                what: what(),
                seconds: self.granted.as_secs_f64(),
            });
        }
        Ok(left)
    }
}
