//! Collectives on the CPU, over any [`Transport`]. Direct exchange everywhere: this is
//! the reference that others are held to, and the control plane beside NCCL.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::transport::{DEFAULT_DEADLINE, Message, Transport};
use super::{Communicator, check};
use crate::dtype::reduce;
use crate::{DType, Deadline, Error, ReduceOp, Result, View};

/// Above this many bytes an all-reduce is a reduce-scatter and an all-gather: twice
/// the hops, `2/size` of the bytes.
const TWO_PHASE_ALL_REDUCE: usize = 16 * 1024;

/// Operation part of a message's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Op {
    AllGather = 1,
    AllGatherV,
    ReduceScatter,
    AllReduce,
    AllToAll,
    Broadcast,
    Barrier,
    Split,
}

impl Op {
    const ALL: [Op; 8] = [
        Op::AllGather,
        Op::AllGatherV,
        Op::ReduceScatter,
        Op::AllReduce,
        Op::AllToAll,
        Op::Broadcast,
        Op::Barrier,
        Op::Split,
    ];

    fn name(code: u64) -> &'static str {
        match Op::ALL.into_iter().find(|o| *o as u64 == code) {
            Some(Op::AllGather) => "all-gather",
            Some(Op::AllGatherV) => "all-gather-v",
            Some(Op::ReduceScatter) => "reduce-scatter",
            Some(Op::AllReduce) => "all-reduce",
            Some(Op::AllToAll) => "all-to-all",
            Some(Op::Broadcast) => "broadcast",
            Some(Op::Barrier) => "barrier",
            Some(Op::Split) => "split",
            None => "an unknown operation",
        }
    }
}

/// A CPU communicator. Groups made by `split` share the world's transport.
pub struct CpuCommunicator {
    transport: Arc<Mutex<Box<dyn Transport>>>,
    /// World rank of each rank of this group.
    members: Vec<usize>,
    rank: usize,
    /// Same on every member, different from other groups that a member is in.
    group: u16,
    sequence: u32,
    deadline: Duration,
    implementation: &'static str,
}

impl CpuCommunicator {
    /// The group of all ranks that a transport connects.
    #[must_use]
    pub fn world(transport: Box<dyn Transport>) -> Self {
        CpuCommunicator {
            members: (0..transport.world()).collect(),
            rank: transport.rank(),
            implementation: transport.implementation(),
            transport: Arc::new(Mutex::new(transport)),
            group: 0,
            sequence: 0,
            deadline: DEFAULT_DEADLINE,
        }
    }

    fn transport(&self) -> MutexGuard<'_, Box<dyn Transport>> {
        self.transport
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether some rank of the world is known to be gone, without waiting. A GPU
    /// communicator asks this while its own collective hangs on a dead peer.
    pub fn lost(&self) -> Option<(usize, String)> {
        self.transport().lost()
    }

    /// Lets the exchanges of all groups of this world poll for that long before they sleep:
    /// for ranks with a core each, whose next launches must not begin on a cold one.
    pub fn poll_before_sleep(&mut self, time: Duration) {
        self.transport().poll_before_sleep(time);
    }

    /// Watches the ranks of the world for [`crate::cuda::Gpu::set_watch`].
    #[must_use]
    pub fn watch(&self) -> Box<dyn crate::cuda::Watch> {
        Box::new(RankWatch(Arc::clone(&self.transport)))
    }

    /// Sends `to[r]` to each other rank r and returns what each other rank sent here
    /// (`None` at this rank's own place and where `expect` is false).
    fn exchange(
        &mut self,
        op: Op,
        to: Vec<Option<Vec<u8>>>,
        expect: impl Fn(usize) -> bool,
    ) -> Result<Vec<Option<Vec<u8>>>> {
        let label = u64::from(self.group) << 48 | (op as u64) << 40 | u64::from(self.sequence);
        self.sequence = self.sequence.wrapping_add(1);
        let send = to
            .into_iter()
            .enumerate()
            .filter_map(|(r, bytes)| {
                Some((
                    self.members[r],
                    Message {
                        label,
                        bytes: bytes?,
                    },
                ))
            })
            .collect();
        let ranks: Vec<usize> = (0..self.size())
            .filter(|r| *r != self.rank && expect(*r))
            .collect();
        let from: Vec<usize> = ranks.iter().map(|r| self.members[*r]).collect();
        let deadline = Deadline::after(self.deadline);
        let got = self.transport().exchange(send, &from, deadline)?;
        let mut out = vec![None; self.size()];
        for (r, message) in ranks.into_iter().zip(got) {
            if message.label != label {
                let (theirs, ours) = (message.label, label);
                let part = |l: u64| {
                    format!(
                        "{} (call {} of group {})",
                        Op::name(l >> 40 & 0xff),
                        l & 0xffff_ffff,
                        l >> 48
                    )
                };
                return Err(Error::Mismatch(format!(
                    "rank {} is in {}, rank {} is in {}; every rank must enter the same collectives in the same order",
                    self.members[r],
                    part(theirs),
                    self.members[self.rank],
                    part(ours),
                )));
            }
            out[r] = Some(message.bytes);
        }
        Ok(out)
    }

    /// Every rank's `mine`, in rank order. Lengths may differ.
    fn gather_bytes(&mut self, op: Op, mine: Vec<u8>) -> Result<Vec<Vec<u8>>> {
        let to = (0..self.size())
            .map(|r| (r != self.rank).then(|| mine.clone()))
            .collect();
        let got = self.exchange(op, to, |_| true)?;
        let mut mine = Some(mine);
        Ok(got
            .into_iter()
            .map(|g| g.or_else(|| mine.take()).unwrap_or_default())
            .collect())
    }

    /// Every rank's bytes in rank order; lengths may differ. For the control plane:
    /// addresses, metadata rows, window sizes.
    ///
    /// # Errors
    /// As [`Communicator::all_gather`].
    pub fn all_gather_bytes(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.gather_bytes(Op::AllGather, mine.to_vec())
    }

    /// Part j of `parts` goes to rank j; returns what each rank sent here.
    fn scatter_bytes(&mut self, op: Op, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        let rank = self.rank;
        let mut own = None;
        let to = parts
            .into_iter()
            .enumerate()
            .map(|(r, p)| {
                if r == rank {
                    own = Some(p);
                    None
                } else {
                    Some(p)
                }
            })
            .collect();
        let got = self.exchange(op, to, |_| true)?;
        Ok(got
            .into_iter()
            .map(|g| g.or_else(|| own.take()).unwrap_or_default())
            .collect())
    }

    fn reduced_part(
        &mut self,
        op_code: Op,
        send: &[u8],
        dtype: DType,
        op: ReduceOp,
        cuts: &[usize],
    ) -> Result<Vec<u8>> {
        let parts = cuts.windows(2).map(|c| send[c[0]..c[1]].to_vec()).collect();
        let got = self.scatter_bytes(op_code, parts)?;
        same_lengths(&got, cuts[self.rank + 1] - cuts[self.rank])?;
        reduce(
            dtype,
            op,
            &got.iter().map(Vec::as_slice).collect::<Vec<_>>(),
        )
    }
}

struct RankWatch(Arc<Mutex<Box<dyn Transport>>>);

impl crate::cuda::Watch for RankWatch {
    fn failure(&mut self) -> Option<Error> {
        // Whoever holds the lock is in an exchange and will notice by itself.
        let mut transport = self.0.try_lock().ok()?;
        transport
            .lost()
            .map(|(rank, why)| Error::PeerLost { rank, why })
    }
}

/// Every part must have the length that this rank expects.
fn same_lengths(parts: &[Vec<u8>], expected: usize) -> Result<()> {
    match parts.iter().enumerate().find(|(_, p)| p.len() != expected) {
        None => Ok(()),
        Some((rank, p)) => Err(Error::Mismatch(format!(
            "rank {rank} of the group sent {} bytes where {expected} were expected",
            p.len()
        ))),
    }
}

fn host_bytes(view: &View) -> Result<Vec<u8>> {
    view.with_host(|s| s.to_vec())
}

fn put_parts(recv: &View, parts: &[Vec<u8>]) -> Result<()> {
    recv.with_host(|out| {
        let mut at = 0;
        for p in parts {
            out[at..at + p.len()].copy_from_slice(p);
            at += p.len();
        }
    })
}

impl Communicator for CpuCommunicator {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.members.len()
    }

    fn implementation(&self) -> &'static str {
        self.implementation
    }

    fn set_deadline(&mut self, granted: Duration) {
        self.deadline = granted;
    }

    fn all_gather(&mut self, send: &View, recv: &View) -> Result<()> {
        check::all_gather(self.size(), send.len(), recv.len())?;
        let parts = self.gather_bytes(Op::AllGather, host_bytes(send)?)?;
        same_lengths(&parts, send.len())?;
        put_parts(recv, &parts)
    }

    fn all_gather_v(&mut self, send: &View, recv: &View, lens: &[usize]) -> Result<()> {
        check::all_gather_v(self.size(), self.rank, send.len(), recv.len(), lens)?;
        let parts = self.gather_bytes(Op::AllGatherV, host_bytes(send)?)?;
        for (rank, (p, len)) in parts.iter().zip(lens).enumerate() {
            if p.len() != *len {
                return Err(Error::Mismatch(format!(
                    "rank {rank} of the group sent {} bytes where {len} were expected",
                    p.len()
                )));
            }
        }
        put_parts(recv, &parts)
    }

    fn reduce_scatter(
        &mut self,
        send: &View,
        recv: &View,
        dtype: DType,
        op: ReduceOp,
    ) -> Result<()> {
        check::reduce_scatter(self.size(), send.len(), recv.len(), dtype)?;
        let cuts: Vec<usize> = (0..=self.size()).map(|r| r * recv.len()).collect();
        let mine = self.reduced_part(Op::ReduceScatter, &host_bytes(send)?, dtype, op, &cuts)?;
        recv.with_host(|out| out.copy_from_slice(&mine))
    }

    fn all_reduce(&mut self, send: &View, recv: &View, dtype: DType, op: ReduceOp) -> Result<()> {
        check::all_reduce(send.len(), recv.len(), dtype)?;
        let bytes = host_bytes(send)?;
        if bytes.len() <= TWO_PHASE_ALL_REDUCE {
            let parts = self.gather_bytes(Op::AllReduce, bytes)?;
            same_lengths(&parts, send.len())?;
            let all = reduce(
                dtype,
                op,
                &parts.iter().map(Vec::as_slice).collect::<Vec<_>>(),
            )?;
            return recv.with_host(|out| out.copy_from_slice(&all));
        }
        let (count, size) = (bytes.len() / dtype.size(), self.size());
        let cuts: Vec<usize> = (0..=size)
            .map(|r| r * count / size * dtype.size())
            .collect();
        let mine = self.reduced_part(Op::AllReduce, &bytes, dtype, op, &cuts)?;
        let parts = self.gather_bytes(Op::AllReduce, mine)?;
        put_parts(recv, &parts)
    }

    fn all_to_all(&mut self, send: &View, recv: &View) -> Result<()> {
        check::all_to_all(self.size(), send.len(), recv.len())?;
        let part = send.len() / self.size();
        let bytes = host_bytes(send)?;
        let parts = (0..self.size())
            .map(|r| bytes[r * part..(r + 1) * part].to_vec())
            .collect();
        let got = self.scatter_bytes(Op::AllToAll, parts)?;
        same_lengths(&got, part)?;
        put_parts(recv, &got)
    }

    fn broadcast(&mut self, buffer: &View, root: usize) -> Result<()> {
        check::root(self.size(), root)?;
        let to = if self.rank == root {
            let bytes = host_bytes(buffer)?;
            (0..self.size())
                .map(|r| (r != root).then(|| bytes.clone()))
                .collect()
        } else {
            vec![None; self.size()]
        };
        let mut got = self.exchange(Op::Broadcast, to, |r| r == root)?;
        let Some(bytes) = got[root].take() else {
            return Ok(());
        };
        same_lengths(std::slice::from_ref(&bytes), buffer.len())?;
        buffer.with_host(|out| out.copy_from_slice(&bytes))
    }

    fn barrier(&mut self) -> Result<()> {
        self.gather_bytes(Op::Barrier, Vec::new()).map(drop)
    }

    fn split(&mut self, color: Option<u32>, key: u32) -> Result<Option<Box<dyn Communicator>>> {
        Ok(self
            .split_cpu(color, key)?
            .map(|c| Box::new(c) as Box<dyn Communicator>))
    }

    fn wait(&mut self) -> Result<()> {
        Ok(())
    }

    fn abort(&mut self) {
        self.transport().close();
    }
}

impl CpuCommunicator {
    /// [`Communicator::split`] with its own type.
    ///
    /// # Errors
    /// As [`Communicator::split`].
    pub fn split_cpu(&mut self, color: Option<u32>, key: u32) -> Result<Option<CpuCommunicator>> {
        let birth = self.sequence;
        let mut mine = vec![u8::from(color.is_some())];
        mine.extend_from_slice(&color.unwrap_or(0).to_le_bytes());
        mine.extend_from_slice(&key.to_le_bytes());
        let all = self.gather_bytes(Op::Split, mine)?;
        let Some(color) = color else { return Ok(None) };
        let mut chosen = Vec::new();
        for (rank, bytes) in all.iter().enumerate() {
            let [some, c0, c1, c2, c3, k0, k1, k2, k3] = bytes[..] else {
                return Err(Error::Mismatch(format!(
                    "rank {rank} sent {} bytes to a split, 9 were expected",
                    bytes.len()
                )));
            };
            if some == 1 && u32::from_le_bytes([c0, c1, c2, c3]) == color {
                chosen.push((u32::from_le_bytes([k0, k1, k2, k3]), rank));
            }
        }
        chosen.sort_unstable();
        let rank = chosen
            .iter()
            .position(|(_, r)| *r == self.rank)
            .ok_or_else(|| {
                Error::Mismatch(format!("rank {} is missing from its own split", self.rank))
            })?;
        Ok(Some(CpuCommunicator {
            transport: Arc::clone(&self.transport),
            members: chosen.iter().map(|(_, r)| self.members[*r]).collect(),
            rank,
            group: child_group(self.group, birth, color),
            sequence: 0,
            deadline: self.deadline,
            implementation: self.implementation,
        }))
    }
}

/// A group number that all members compute alike (FNV-1a). It only labels messages:
/// were two groups to collide, mismatched calls would still differ in call or length.
fn child_group(parent: u16, birth: u32, color: u32) -> u16 {
    let mut hash = 0x811c_9dc5u32;
    let bytes = parent
        .to_le_bytes()
        .into_iter()
        .chain(birth.to_le_bytes())
        .chain(color.to_le_bytes());
    for b in bytes {
        hash = (hash ^ u32::from(b)).wrapping_mul(0x0100_0193);
    }
    ((hash >> 16) ^ hash) as u16 | 1
}
