//! Communicators: the collectives of a group of ranks.

mod cpu;
mod local;
mod mesh;
mod transport;

pub use cpu::CpuCommunicator;
pub use local::LocalWorld;
pub use mesh::MeshTransport;
pub use transport::{DEFAULT_DEADLINE, Message, Transport};

use std::time::Duration;

use crate::{DType, Error, ReduceOp, Result, View};

/// A group of ranks and its collectives.
///
/// Every rank of the group enters every collective, in the same order and with the
/// same sizes. On the CPU a collective is done when it returns; on a GPU it is
/// enqueued and done after [`wait`](Communicator::wait). Sizes are in bytes and, where
/// nothing is reduced, without an element type.
pub trait Communicator: Send {
    /// This process's rank in the group.
    fn rank(&self) -> usize;

    /// Ranks in the group.
    fn size(&self) -> usize;

    /// The implementation, as samples name it: `cpu`, `cpu-process` or `nccl`.
    fn implementation(&self) -> &'static str;

    /// Time that any one wait may take from now on.
    fn set_deadline(&mut self, granted: Duration);

    /// Every rank's `send`, in rank order, in every rank's `recv`.
    /// `recv.len() == size * send.len()`. In place when `send` is this rank's part of `recv`.
    ///
    /// # Errors
    /// [`Error::Arguments`] for misfit sizes, [`Error::Mismatch`], [`Error::PeerLost`],
    /// [`Error::Deadline`]; so for every collective here.
    fn all_gather(&mut self, send: &View, recv: &View) -> Result<()>;

    /// As all-gather, with `lens[r]` bytes from rank r; `send.len() == lens[rank]`.
    ///
    /// # Errors
    /// As [`all_gather`](Communicator::all_gather).
    fn all_gather_v(&mut self, send: &View, recv: &View, lens: &[usize]) -> Result<()>;

    /// The reduction of every rank's `send`, cut in `size` equal parts, of which this
    /// rank gets the `rank`-th. In place when `recv` is this rank's part of `send`.
    ///
    /// # Errors
    /// As [`all_gather`](Communicator::all_gather).
    fn reduce_scatter(
        &mut self,
        send: &View,
        recv: &View,
        dtype: DType,
        op: ReduceOp,
    ) -> Result<()>;

    /// The reduction of every rank's `send`, in every rank's `recv`.
    ///
    /// # Errors
    /// As [`all_gather`](Communicator::all_gather).
    fn all_reduce(&mut self, send: &View, recv: &View, dtype: DType, op: ReduceOp) -> Result<()>;

    /// Part j of `send` goes to rank j, which puts it at part `rank` of its `recv`.
    /// Not in place.
    ///
    /// # Errors
    /// As [`all_gather`](Communicator::all_gather).
    fn all_to_all(&mut self, send: &View, recv: &View) -> Result<()>;

    /// `root`'s bytes in every rank's `buffer`.
    ///
    /// # Errors
    /// As [`all_gather`](Communicator::all_gather).
    fn broadcast(&mut self, buffer: &View, root: usize) -> Result<()>;

    /// Returns when every rank has entered it (on a GPU: after its stream reached it).
    ///
    /// # Errors
    /// As [`all_gather`](Communicator::all_gather).
    fn barrier(&mut self) -> Result<()>;

    /// New groups of the ranks that give the same `color`, ordered by `key` and then
    /// by rank. A rank that gives `None` enters the call and gets no group.
    ///
    /// # Errors
    /// As [`all_gather`](Communicator::all_gather).
    fn split(&mut self, color: Option<u32>, key: u32) -> Result<Option<Box<dyn Communicator>>>;

    /// Waits until all collectives entered so far are done.
    ///
    /// # Errors
    /// [`Error::Deadline`], [`Error::PeerLost`], or an error of the library that came late.
    fn wait(&mut self) -> Result<()>;

    /// Ends the group without the others' help: what is in flight is given up.
    fn abort(&mut self);
}

/// The size checks that every backend applies before anything is sent.
pub(crate) mod check {
    use super::{DType, Error, Result};

    pub(crate) fn all_gather(size: usize, send: usize, recv: usize) -> Result<()> {
        if recv == size * send {
            return Ok(());
        }
        Err(Error::Arguments {
            op: "all-gather",
            why: format!(
                "recv has {recv} bytes, {size} ranks of {send} bytes need {}",
                size * send
            ),
        })
    }

    pub(crate) fn all_gather_v(
        size: usize,
        rank: usize,
        send: usize,
        recv: usize,
        lens: &[usize],
    ) -> Result<()> {
        let op = "all-gather-v";
        if lens.len() != size {
            return Err(Error::Arguments {
                op,
                why: format!("{} lengths given for {size} ranks", lens.len()),
            });
        }
        if lens[rank] != send {
            return Err(Error::Arguments {
                op,
                why: format!(
                    "send has {send} bytes, the lengths say {} for rank {rank}",
                    lens[rank]
                ),
            });
        }
        let total: usize = lens.iter().sum();
        if recv != total {
            return Err(Error::Arguments {
                op,
                why: format!("recv has {recv} bytes, the lengths add up to {total}"),
            });
        }
        Ok(())
    }

    pub(crate) fn reduce_scatter(
        size: usize,
        send: usize,
        recv: usize,
        dtype: DType,
    ) -> Result<()> {
        if send != size * recv {
            return Err(Error::Arguments {
                op: "reduce-scatter",
                why: format!(
                    "send has {send} bytes, {size} ranks of {recv} bytes need {}",
                    size * recv
                ),
            });
        }
        whole("reduce-scatter", recv, dtype)
    }

    pub(crate) fn all_reduce(send: usize, recv: usize, dtype: DType) -> Result<()> {
        if send != recv {
            return Err(Error::Arguments {
                op: "all-reduce",
                why: format!("send has {send} bytes and recv {recv}, they must be equal"),
            });
        }
        whole("all-reduce", recv, dtype)
    }

    pub(crate) fn all_to_all(size: usize, send: usize, recv: usize) -> Result<()> {
        if send == recv && send.is_multiple_of(size) {
            return Ok(());
        }
        Err(Error::Arguments {
            op: "all-to-all",
            why: format!(
                "send has {send} bytes and recv {recv}, both must be the same multiple of {size}"
            ),
        })
    }

    pub(crate) fn root(size: usize, root: usize) -> Result<()> {
        if root < size {
            return Ok(());
        }
        Err(Error::Arguments {
            op: "broadcast",
            why: format!(
                "root {root} is not in the group, its ranks are 0 to {}",
                size - 1
            ),
        })
    }

    fn whole(op: &'static str, len: usize, dtype: DType) -> Result<()> {
        if len.is_multiple_of(dtype.size()) {
            return Ok(());
        }
        Err(Error::Arguments {
            op,
            why: format!(
                "{len} bytes are not whole elements of {} ({} bytes)",
                dtype.name(),
                dtype.size()
            ),
        })
    }
}
