//! What the CPU collectives need of the wire.

use std::time::Duration;

use crate::{Deadline, Result};

/// What travels between two ranks, with enough of a label to notice that they are not
/// in the same collective.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Group, sequence number in the group and operation, as [`label`](Message::label) packs them.
    pub label: u64,
    /// The payload.
    pub bytes: Vec<u8>,
}

/// Moves messages between the ranks of a world, in order for each pair.
pub trait Transport: Send {
    /// This endpoint's world rank.
    fn rank(&self) -> usize;

    /// Ranks in the world.
    fn world(&self) -> usize;

    /// The name that samples carry.
    fn implementation(&self) -> &'static str;

    /// Sends each message to its rank and receives one message from each rank of
    /// `from`, in that order. Makes progress on all of them at once, so large
    /// messages in both directions cannot deadlock.
    ///
    /// # Errors
    /// [`crate::Error::PeerLost`] when a rank that is sent to or awaited is gone,
    /// [`crate::Error::Deadline`] naming the ranks that were still awaited.
    fn exchange(
        &mut self,
        send: Vec<(usize, Message)>,
        from: &[usize],
        deadline: Deadline,
    ) -> Result<Vec<Message>>;

    /// From now on an exchange polls for that long before it sleeps. A core that sleeps is
    /// slow when it comes back, and its process may come back on another one. Transports
    /// that never sleep in the kernel need not follow.
    fn poll_before_sleep(&mut self, _time: Duration) {}

    /// Ranks that are known to be gone, with how that was noticed. Does not wait.
    fn lost(&mut self) -> Option<(usize, String)>;

    /// Leaves the world: peers that wait for this rank see it gone.
    fn close(&mut self);
}

/// How long a wait may take where nothing else is asked for.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);
