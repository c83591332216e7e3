//! One point of a run: its buffers, its call, its exact result.

use super::Sample;
use crate::bench::{Collective, Launch, Stats, bus_factor};
use crate::device::POISON;
use crate::peer::{PeerCollectives, Shots};
use crate::symmetric::Registration;
use crate::{Buffer, Communicator, DType, Device, Error, ReduceOp, Result, View};

/// Send and receive buffers of the largest size.
pub(crate) struct Buffers {
    pub send: Buffer,
    pub recv: Buffer,
}

/// Symmetric reductions exist for floats but not for f64.
pub(super) fn nccl_sums_symmetrically(collective: Collective, dtype: DType) -> bool {
    collective == Collective::AllGather || matches!(dtype, DType::F16 | DType::Bf16 | DType::F32)
}

/// One collective at one size, in place or not.
#[derive(Clone, Copy)]
pub(crate) struct Point {
    pub collective: Collective,
    pub bytes: usize,
    pub in_place: bool,
    pub dtype: DType,
    pub checked: bool,
}

/// What a call of the collective is given.
pub(crate) struct Views {
    send: View,
    recv: View,
    /// Lengths of all-gather-v.
    lens: Vec<usize>,
}

impl Point {
    /// Bytes of one rank's part: whole elements, and 16-byte aligned as NCCL is fast for.
    pub(crate) fn unit(&self, n: usize) -> usize {
        let part = self.bytes / n;
        part - part % self.dtype.size().max(if part >= 16 { 16 } else { 1 })
    }

    pub(crate) fn views(&self, rank: usize, n: usize, buffers: &Buffers) -> Result<Views> {
        let (unit, whole) = (self.unit(n), self.unit(n) * n);
        let mut lens = Vec::new();
        let all = buffers.recv.view(0, whole)?;
        let (send, recv) = match (self.collective, self.in_place) {
            (Collective::AllGather, true) => (all.sub(rank * unit, unit)?, all),
            (Collective::AllGather, false) => (buffers.send.view(0, unit)?, all),
            (Collective::AllGatherV, in_place) => {
                lens = uneven(whole, n);
                let at: usize = lens[..rank].iter().sum();
                let send = if in_place {
                    all.sub(at, lens[rank])?
                } else {
                    buffers.send.view(0, lens[rank])?
                };
                (send, all)
            }
            (Collective::AllReduce, true) => (all.clone(), all),
            (Collective::AllReduce | Collective::AllToAll, _) => {
                (buffers.send.view(0, whole)?, all)
            }
            (Collective::ReduceScatter, true) => (all.clone(), all.sub(rank * unit, unit)?),
            (Collective::ReduceScatter, false) => {
                (buffers.send.view(0, whole)?, buffers.recv.view(0, unit)?)
            }
            (Collective::Broadcast | Collective::Barrier, _) => (all.clone(), all),
        };
        Ok(Views { send, recv, lens })
    }

    pub(crate) fn enter(&self, comm: &mut dyn Communicator, v: &Views) -> Result<()> {
        match self.collective {
            Collective::AllGather => comm.all_gather(&v.send, &v.recv),
            Collective::AllGatherV => comm.all_gather_v(&v.send, &v.recv, &v.lens),
            Collective::AllReduce => comm.all_reduce(&v.send, &v.recv, self.dtype, ReduceOp::Sum),
            Collective::ReduceScatter => {
                comm.reduce_scatter(&v.send, &v.recv, self.dtype, ReduceOp::Sum)
            }
            Collective::AllToAll => comm.all_to_all(&v.send, &v.recv),
            Collective::Broadcast => comm.broadcast(&v.recv, 0),
            Collective::Barrier => comm.barrier(),
        }
    }

    pub(crate) fn enter_peers(
        &self,
        peers: &mut PeerCollectives,
        shots: Shots,
        v: &Views,
    ) -> Result<()> {
        match self.collective {
            Collective::AllReduce => peers.all_reduce(&v.send, &v.recv, self.dtype, shots),
            _ => peers.all_gather(&v.send, &v.recv),
        }
    }

    pub(crate) fn fits_peers(&self, peers: &PeerCollectives, shots: Shots, v: &Views) -> bool {
        use parplan_kernels::peer::Operation;
        let operation = match (self.collective, self.dtype, shots) {
            (Collective::AllReduce, DType::F32, Shots::One) => Operation::OneShotF32,
            (Collective::AllReduce, DType::Bf16, Shots::One) => Operation::OneShotBf16,
            (Collective::AllReduce, DType::F32, Shots::Two) => Operation::TwoShotF32,
            (Collective::AllReduce, DType::Bf16, Shots::Two) => Operation::TwoShotBf16,
            (Collective::AllReduce, _, _) => return false,
            _ => Operation::AllGather,
        };
        peers.fits(operation, v.send.len())
    }

    /// One call on known inputs and a poisoned output, compared with the reference on
    /// the CPU of this rank (the first of `[rank, n]`), every byte. `call` returns when the
    /// collective is done.
    pub(crate) fn check(
        &self,
        [rank, n]: [usize; 2],
        device: &dyn Device,
        v: &Views,
        call: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        if self.collective == Collective::Barrier {
            return call();
        }
        let input = |r: usize, len: usize| {
            let salt = r * 5 + self.bytes;
            self.dtype
                .encode((0..len / self.dtype.size()).map(|i| ((i * 7 + i / 251 + salt) % 4) as i64))
        };
        device.fill(&v.recv, POISON)?;
        let sends: Vec<Vec<u8>> = match self.collective {
            Collective::AllGatherV => v
                .lens
                .iter()
                .enumerate()
                .map(|(r, len)| input(r, *len))
                .collect(),
            Collective::Broadcast => vec![input(0, v.recv.len())],
            _ => (0..n).map(|r| input(r, v.send.len())).collect(),
        };
        if self.collective != Collective::Broadcast || rank == 0 {
            device.write(
                &v.send,
                &sends[if self.collective == Collective::Broadcast {
                    0
                } else {
                    rank
                }],
            )?;
        }
        call()?;
        let got = device.read(&v.recv)?;
        let refs: Vec<&[u8]> = sends.iter().map(Vec::as_slice).collect();
        let unit = v.recv.len() / n;
        let want = match self.collective {
            Collective::AllGather
            | Collective::AllGatherV
            | Collective::Broadcast
            | Collective::Barrier => sends.concat(),
            Collective::AllReduce => crate::dtype::reduce(self.dtype, ReduceOp::Sum, &refs)?,
            Collective::ReduceScatter => {
                let len = v.recv.len();
                let parts: Vec<&[u8]> = refs
                    .iter()
                    .map(|s| &s[rank * len..(rank + 1) * len])
                    .collect();
                crate::dtype::reduce(self.dtype, ReduceOp::Sum, &parts)?
            }
            Collective::AllToAll => refs
                .iter()
                .flat_map(|s| s[rank * unit..(rank + 1) * unit].iter().copied())
                .collect(),
        };
        if got == want {
            return Ok(());
        }
        let at = got.iter().zip(&want).position(|(a, b)| a != b).unwrap_or(0);
        Err(Error::Wrong(format!(
            "{} of {} bytes{} on rank {rank} of {n}: byte {at} is {:#04x}, the CPU reference says {:#04x}",
            self.collective.name(),
            self.bytes,
            if self.in_place { " in place" } else { "" },
            got[at],
            want[at]
        )))
    }

    #[allow(clippy::too_many_arguments)] // a sample is these things
    pub(crate) fn sample(
        &self,
        implementation: String,
        registration: Registration,
        launch: Launch,
        ranks: usize,
        time: Stats,
        kernels: Vec<String>,
        silent_fallback: bool,
    ) -> Sample {
        let bytes = if self.collective == Collective::Barrier {
            0
        } else {
            self.unit(ranks) * ranks
        };
        let algorithm_gb_s = bytes as f64 / time.median_us / 1e3;
        Sample {
            collective: self.collective,
            implementation,
            registration,
            launch,
            in_place: self.in_place,
            bytes,
            ranks,
            time,
            algorithm_gb_s,
            bus_gb_s: algorithm_gb_s * bus_factor(self.collective, ranks),
            kernels,
            silent_fallback,
            checked: self.checked,
        }
    }
}

/// Lengths that add up to `whole`, rising with the rank, in steps of 16 bytes.
fn uneven(whole: usize, n: usize) -> Vec<usize> {
    let weight: usize = n * (n + 1) / 2;
    let mut lens: Vec<usize> = (1..=n).map(|r| whole * r / weight / 16 * 16).collect();
    let rest = whole - lens.iter().sum::<usize>();
    lens[n - 1] += rest;
    lens
}
