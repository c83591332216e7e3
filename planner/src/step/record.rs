//! The operations of a pass one by one, for those who ask for more than their sums.

use super::tally::Op;
use crate::cost::{Launch, Operation};
use std::sync::{Mutex, PoisonError};

/// One operation as it was added to a pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recorded {
    /// What it belongs to.
    pub op: Op,
    /// How often it runs.
    pub count: f64,
    /// Its price, microseconds each.
    pub us: f64,
    /// How it is launched.
    pub launch: Launch,
    /// What it is.
    pub operation: Operation,
}

/// Collects operations while a pass is priced. A pass is priced by one thread; the lock is never
/// waited for.
#[derive(Debug, Default)]
pub struct Record(Mutex<Vec<Recorded>>);

impl Record {
    pub(super) fn add(&self, recorded: Recorded) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(recorded);
    }

    /// Everything since the last call.
    pub fn take(&self) -> Vec<Recorded> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
