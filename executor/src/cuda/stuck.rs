//! Calls into NCCL and the driver that do not return.
//!
//! Enqueueing blocks when a queue is full, and a queue behind a dead or stalled peer
//! never drains. The thread inside such a call cannot look at its own deadline; another
//! one does it for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Odd while this process's rank is inside a guarded call; counts the entries.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// Marks the time inside one call. Two relaxed additions: nothing next to an enqueue.
pub(crate) struct Inside(());

impl Inside {
    pub(crate) fn enter() -> Self {
        CALLS.fetch_add(1, Ordering::Relaxed);
        Inside(())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        CALLS.fetch_add(1, Ordering::Relaxed);
    }
}

/// Starts a thread that calls `stuck` once, with the reason, when one guarded call takes
/// longer than `granted`. Guarded calls are made by one thread of a process, its rank.
pub fn watch_calls(granted: Duration, stuck: impl FnOnce(String) + Send + 'static) {
    std::thread::spawn(move || {
        let (mut seen, mut since) = (CALLS.load(Ordering::Relaxed), Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(20));
            let now = CALLS.load(Ordering::Relaxed);
            if now != seen || now.is_multiple_of(2) {
                (seen, since) = (now, Instant::now());
            } else if since.elapsed() > granted {
                return stuck(format!(
                    "a call into NCCL or the GPU driver did not return: no answer within {:.1} s (raise --deadline if that is too short)",
                    granted.as_secs_f64()
                ));
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_stays_inside_is_reported_and_short_ones_are_not() {
        let (tx, rx) = std::sync::mpsc::channel();
        watch_calls(Duration::from_millis(150), move |why| tx.send(why).unwrap());
        for _ in 0..30 {
            let _inside = Inside::enter();
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(rx.try_recv().is_err());
        let inside = Inside::enter();
        let why = rx.recv_timeout(Duration::from_secs(5)).unwrap();
        assert!(
            why.contains("did not return: no answer within 0.1 s") || why.contains("within 0.2 s"),
            "{why}"
        );
        drop(inside);
    }
}
