//! Ranks as threads of one process, for tests and as the reference.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::cpu::CpuCommunicator;
use super::transport::{Message, Transport};
use crate::{Deadline, Error, Result};

#[derive(Default)]
struct State {
    /// `queues[dst][src]`, oldest first.
    queues: Vec<Vec<VecDeque<Message>>>,
    gone: Vec<bool>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The queues stay consistent when a rank's thread panics between two calls.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A world of ranks inside this process.
pub struct LocalWorld;

impl LocalWorld {
    /// One communicator for each rank, in rank order; each goes to its own thread.
    ///
    /// # Errors
    /// [`Error::Unusable`] when `size` is 0.
    pub fn connect(size: usize) -> Result<Vec<CpuCommunicator>> {
        if size == 0 {
            return Err(Error::Unusable(
                "a world of 0 ranks was asked for, it needs at least 1".into(),
            ));
        }
        let state = State {
            queues: (0..size).map(|_| vec![VecDeque::new(); size]).collect(),
            gone: vec![false; size],
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        Ok((0..size)
            .map(|rank| {
                CpuCommunicator::world(Box::new(Endpoint {
                    shared: Arc::clone(&shared),
                    rank,
                    world: size,
                }))
            })
            .collect())
    }
}

struct Endpoint {
    shared: Arc<Shared>,
    rank: usize,
    world: usize,
}

impl Transport for Endpoint {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn implementation(&self) -> &'static str {
        "cpu"
    }

    fn exchange(
        &mut self,
        send: Vec<(usize, Message)>,
        from: &[usize],
        deadline: Deadline,
    ) -> Result<Vec<Message>> {
        let mut state = self.shared.lock();
        for (to, message) in send {
            state.queues[to][self.rank].push_back(message);
        }
        self.shared.changed.notify_all();
        let mut got = Vec::with_capacity(from.len());
        for &src in from {
            loop {
                if let Some(message) = state.queues[self.rank][src].pop_front() {
                    got.push(message);
                    break;
                }
                if state.gone[src] {
                    return Err(Error::PeerLost {
                        rank: src,
                        why: "it left the group".into(),
                    });
                }
                let left =
                    deadline.check(|| format!("rank {} waiting for rank {src}", self.rank))?;
                state = self
                    .shared
                    .changed
                    .wait_timeout(state, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
        }
        Ok(got)
    }

    fn lost(&mut self) -> Option<(usize, String)> {
        let gone = self.shared.lock().gone.iter().position(|g| *g)?;
        Some((gone, "it left the group".into()))
    }

    fn close(&mut self) {
        self.shared.lock().gone[self.rank] = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.close();
    }
}
