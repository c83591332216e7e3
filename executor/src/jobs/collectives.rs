//! Times collectives over sizes, registrations and launch modes, each checked first.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::Context;
use crate::bench::{Collective, Launch, Stats, Timer, bus_factor};
use crate::conformance::{self, Scope};
use crate::device::POISON;
use crate::nccl::NcclRegistrar;
use crate::peer::{Availability, PeerCollectives, Shots};
use crate::symmetric::{Registration, WindowPool, sides_needed};
use crate::{Buffer, Communicator, DType, Device, Error, ReduceOp, Result, View};

/// Whose code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Implementation {
    /// The backend's communicator.
    Backend,
    /// parplan's kernels over peer memory, one shot.
    PeerOneShot,
    /// parplan's kernels over peer memory, two shots.
    PeerTwoShot,
}

/// What to time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CollectivesJob {
    /// Collectives.
    pub collectives: Vec<Collective>,
    /// Bytes, as nccl-tests counts them: the larger of the send and receive buffers.
    pub bytes: Vec<usize>,
    /// Element type of reductions.
    pub dtype: DType,
    /// Registrations, on GPUs.
    pub registrations: Vec<Registration>,
    /// Take unregistered buffers from the driver (`cuMemAlloc`, as frameworks do)
    /// instead of `ncclMemAlloc` (as nccl-tests does). NCCL registers the latter by
    /// itself in a captured graph, the former not.
    pub driver_memory: bool,
    /// Launch modes, on GPUs.
    pub launches: Vec<Launch>,
    /// Whose code.
    pub implementations: Vec<Implementation>,
    /// Repetitions.
    pub timer: Timer,
    /// Run the whole conformance suite first, and compare every point with the CPU
    /// reference before it is timed.
    pub check: bool,
    /// Keep repeating for that long; for tests that need a run to interrupt.
    pub at_least_seconds: f64,
}

/// One measured point.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Collective.
    pub collective: Collective,
    /// Who ran: `cpu-process`, `nccl 2.28.3`, `parplan peer one-shot` …
    pub implementation: String,
    /// Registration of its buffers.
    pub registration: Registration,
    /// Launch mode.
    pub launch: Launch,
    /// Send buffer inside the receive buffer, or the other way round.
    pub in_place: bool,
    /// Bytes.
    pub bytes: usize,
    /// Ranks.
    pub ranks: usize,
    /// Times.
    pub time: Stats,
    /// bytes / time, GB/s (10⁹).
    pub algorithm_gb_s: f64,
    /// Bus bandwidth as nccl-tests defines it, GB/s.
    pub bus_gb_s: f64,
    /// Kernels in the captured graph; empty for streams and the CPU.
    pub kernels: Vec<String>,
    /// With symmetric registration in a graph: no symmetric kernel was captured.
    pub silent_fallback: bool,
    /// The result was compared with the CPU reference, every byte.
    pub checked: bool,
}

/// Costs around registration, on GPUs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RegistrationCosts {
    /// One look-up of whether a view is registered, nanoseconds.
    pub lookup_ns: f64,
    /// Allocation and symmetric registration of the largest buffer, microseconds.
    pub register_symmetric_us: f64,
    /// Copying each size into a registered buffer first, microseconds, by bytes.
    pub copy_in_us: Vec<(usize, f64)>,
}

/// What a run of collectives found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CollectivesResult {
    /// GPU name, or "cpu".
    pub device: String,
    /// Library and version, or "-".
    pub library: String,
    /// Cases of the conformance suite that were compared, 0 when it was not asked for.
    pub conformance_cases: usize,
    /// Points.
    pub samples: Vec<Sample>,
    /// Registration costs.
    pub registration: Option<RegistrationCosts>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

/// Send and receive buffers of the largest size.
struct Buffers {
    send: Buffer,
    recv: Buffer,
}

impl CollectivesJob {
    /// Runs on this rank.
    ///
    /// # Errors
    /// [`Error::Wrong`] for a result that differs from the reference; any failure.
    pub fn run(&self, context: &mut Context) -> Result<CollectivesResult> {
        let mut result = CollectivesResult {
            device: match &context.gpu {
                Some(gpu) => gpu.name()?,
                None => "cpu".into(),
            },
            library: context
                .nccl
                .as_ref()
                .map_or_else(|| "-".into(), |n| format!("NCCL {}", n.library().version())),
            conformance_cases: 0,
            samples: Vec::new(),
            registration: None,
            notes: Vec::new(),
        };
        if self.check {
            let (comm, device, _) = context.parts();
            result.conformance_cases = conformance::run(device, comm, Scope::default())?;
        }
        let begin = Instant::now();
        loop {
            result.samples.clear();
            result.notes.clear();
            self.all(context, &mut result)?;
            // All ranks go by rank 0's clock, or some would enter another round alone.
            let more = begin.elapsed().as_secs_f64() < self.at_least_seconds;
            let votes = context.control.all_gather_bytes(&[u8::from(more)])?;
            if votes[0] == [0] {
                break;
            }
        }
        Ok(result)
    }

    fn all(&self, context: &mut Context, result: &mut CollectivesResult) -> Result<()> {
        let largest = self.bytes.iter().copied().max().unwrap_or(0);
        let on_gpu = context.gpu.is_some();
        let registrations = if on_gpu {
            self.registrations.clone()
        } else {
            vec![Registration::None]
        };
        for registration in registrations {
            if context.nccl.is_none() || (registration == Registration::None && self.driver_memory)
            {
                let device = context.device.as_ref();
                let buffers = Buffers {
                    send: device.alloc("send", largest)?,
                    recv: device.alloc("recv", largest)?,
                };
                self.with_buffers(context, registration, &buffers, result)?;
                continue;
            }
            let Some(nccl) = context.nccl.as_ref() else {
                continue;
            };
            let mut pool = WindowPool::new(NcclRegistrar::new(nccl)?);
            let start = Instant::now();
            let send = pool.allocate(&mut context.control, "send", largest, registration)?;
            let took = start.elapsed().as_secs_f64() * 1e6;
            let recv = pool.allocate(&mut context.control, "recv", largest, registration)?;
            let buffers = Buffers { send, recv };
            if registration == Registration::Symmetric {
                result.registration = Some(self.costs(context, &pool, &buffers, took)?);
            }
            self.with_buffers(context, registration, &buffers, result)?;
            context.device.synchronize()?;
        }
        self.peers(context, result)
    }

    fn costs(
        &self,
        context: &mut Context,
        pool: &WindowPool<NcclRegistrar>,
        buffers: &Buffers,
        took: f64,
    ) -> Result<RegistrationCosts> {
        const LOOKUPS: u32 = 100_000;
        let view = buffers.recv.view(64, 64)?;
        let start = Instant::now();
        for _ in 0..LOOKUPS {
            if std::hint::black_box(pool.registration(std::hint::black_box(&view))?)
                != Registration::Symmetric
            {
                return Err(Error::Wrong("the pool does not know its own buffer".into()));
            }
        }
        let lookup_ns = start.elapsed().as_secs_f64() * 1e9 / f64::from(LOOKUPS);
        let mut copy_in_us = Vec::new();
        let outside = context
            .device
            .alloc("outside the pool", buffers.send.len())?;
        for &bytes in &self.bytes {
            let (dst, src) = (buffers.send.view(0, bytes)?, outside.view(0, bytes)?);
            let device = context.device.as_ref();
            let launch = self.launches.last().copied().unwrap_or(Launch::Stream);
            let (stats, _) = self.timer.time(
                &mut context.control,
                launch,
                context.gpu.as_ref(),
                || device.copy(&dst, &src),
                || device.synchronize(),
            )?;
            copy_in_us.push((bytes, stats.median_us));
        }
        Ok(RegistrationCosts {
            lookup_ns,
            register_symmetric_us: took,
            copy_in_us,
        })
    }

    fn with_buffers(
        &self,
        context: &mut Context,
        registration: Registration,
        buffers: &Buffers,
        result: &mut CollectivesResult,
    ) -> Result<()> {
        if !self.implementations.contains(&Implementation::Backend) {
            return Ok(());
        }
        let launches = if context.gpu.is_some() {
            self.launches.clone()
        } else {
            vec![Launch::Stream]
        };
        for &collective in &self.collectives {
            for &bytes in &self.bytes {
                let places: &[bool] = if collective.has_in_place() {
                    &[false, true]
                } else {
                    &[false]
                };
                for &in_place in places {
                    let point = Point {
                        collective,
                        bytes,
                        in_place,
                        dtype: self.dtype,
                        checked: self.check,
                    };
                    let n = context.identity.world;
                    if collective == Collective::Barrier && bytes != self.bytes[0] {
                        continue;
                    }
                    if point.unit(n) == 0 && collective != Collective::Barrier {
                        result.notes.push(format!(
                            "{} of {bytes} bytes: less than one element for each of {n} ranks",
                            collective.name()
                        ));
                        continue;
                    }
                    let calls = point.views(context.identity.rank, n, buffers)?;
                    let (comm, device, _) = context.parts();
                    if self.check {
                        point.check(comm, device, &calls, |comm| point.enter(comm, &calls))?;
                    }
                    for &launch in &launches {
                        result.samples.push(self.measure(
                            context,
                            registration,
                            launch,
                            point,
                            &calls,
                        )?);
                    }
                }
            }
        }
        Ok(())
    }

    fn measure(
        &self,
        context: &mut Context,
        registration: Registration,
        launch: Launch,
        point: Point,
        calls: &Views,
    ) -> Result<Sample> {
        let gpu = context.gpu.clone();
        let ranks = context.identity.world;
        let mut symmetric_expected = false;
        let (time, kernels, implementation) = match &mut context.nccl {
            Some(nccl) => {
                let version = nccl.library().version();
                symmetric_expected = registration == Registration::Symmetric
                    && sides_needed(version, point.collective.name()).is_some()
                    && nccl_sums_symmetrically(point.collective, point.dtype);
                // Both closures need the communicator; they never run at once.
                let nccl = std::cell::RefCell::new(nccl);
                let (time, kernels) = self.timer.time(
                    &mut context.control,
                    launch,
                    gpu.as_ref(),
                    || point.enter(*nccl.borrow_mut(), calls),
                    || nccl.borrow_mut().wait(),
                )?;
                (time, kernels, format!("nccl {version}"))
            }
            None => {
                let mut beside = context
                    .control
                    .split_cpu(Some(0), context.identity.rank as u32)?
                    .ok_or_else(|| Error::Mismatch("no group to time on".into()))?;
                let (time, kernels) = self.timer.time(
                    &mut context.control,
                    launch,
                    None,
                    || point.enter(&mut beside, calls),
                    || Ok(()),
                )?;
                (time, kernels, "cpu-process".to_owned())
            }
        };
        let silent_fallback = symmetric_expected
            && launch == Launch::Graph
            && !kernels.iter().any(|k| k.contains("ncclSym"));
        Ok(point.sample(
            implementation,
            registration,
            launch,
            ranks,
            time,
            kernels,
            silent_fallback,
        ))
    }

    fn peers(&self, context: &mut Context, result: &mut CollectivesResult) -> Result<()> {
        let wanted: Vec<Shots> = self
            .implementations
            .iter()
            .filter_map(|i| match i {
                Implementation::Backend => None,
                Implementation::PeerOneShot => Some(Shots::One),
                Implementation::PeerTwoShot => Some(Shots::Two),
            })
            .collect();
        let Some(gpu) = context.gpu.clone() else {
            if !wanted.is_empty() {
                result
                    .notes
                    .push("peer-memory collectives: they need GPUs".into());
            }
            return Ok(());
        };
        if wanted.is_empty() {
            return Ok(());
        }
        let mut peers = match PeerCollectives::connect(&gpu, &mut context.control)? {
            Availability::Available(peers) => *peers,
            Availability::Fallback(why) => {
                result
                    .notes
                    .push(format!("peer-memory collectives: {why}; NCCL is used"));
                return Ok(());
            }
        };
        let largest = self.bytes.iter().copied().max().unwrap_or(0);
        let buffers = Buffers {
            send: gpu.alloc("send", largest)?,
            recv: gpu.alloc("recv", largest)?,
        };
        let (rank, n) = (context.identity.rank, context.identity.world);
        for &shots in &wanted {
            for &collective in &self.collectives {
                if !matches!(
                    (collective, shots),
                    (Collective::AllGather, Shots::One) | (Collective::AllReduce, _)
                ) {
                    continue;
                }
                for &bytes in &self.bytes {
                    for in_place in [false, true] {
                        let point = Point {
                            collective,
                            bytes,
                            in_place,
                            dtype: self.dtype,
                            checked: self.check,
                        };
                        let calls = point.views(rank, n, &buffers)?;
                        if !point.fits_peers(&peers, shots, &calls) {
                            continue;
                        }
                        let nccl = context
                            .nccl
                            .as_mut()
                            .ok_or_else(|| Error::Mismatch("no NCCL beside the peers".into()))?;
                        if self.check {
                            point.check(nccl, context.device.as_ref(), &calls, |_| {
                                point.enter_peers(&mut peers, shots, &calls)
                            })?;
                        }
                        for &launch in &self.launches {
                            let (time, kernels) = self.timer.time(
                                &mut context.control,
                                launch,
                                Some(&gpu),
                                || point.enter_peers(&mut peers, shots, &calls),
                                || gpu.wait(None),
                            )?;
                            let name = match shots {
                                Shots::One => "parplan peer one-shot",
                                Shots::Two => "parplan peer two-shot",
                            };
                            result.samples.push(point.sample(
                                name.into(),
                                Registration::None,
                                launch,
                                n,
                                time,
                                kernels,
                                false,
                            ));
                        }
                    }
                }
            }
        }
        // A rank that unmaps early would pull memory from under its peers' kernels.
        gpu.wait(None)?;
        context.control.barrier()
    }
}

/// Symmetric reductions exist for floats but not for f64.
fn nccl_sums_symmetrically(collective: Collective, dtype: DType) -> bool {
    collective == Collective::AllGather || matches!(dtype, DType::F16 | DType::Bf16 | DType::F32)
}

#[derive(Clone, Copy)]
struct Point {
    collective: Collective,
    bytes: usize,
    in_place: bool,
    dtype: DType,
    checked: bool,
}

/// What a call of the collective is given.
struct Views {
    send: View,
    recv: View,
    /// Lengths of all-gather-v.
    lens: Vec<usize>,
}

impl Point {
    /// Bytes of one rank's part: whole elements, and 16-byte aligned as NCCL is fast for.
    fn unit(&self, n: usize) -> usize {
        let part = self.bytes / n;
        part - part % self.dtype.size().max(if part >= 16 { 16 } else { 1 })
    }

    fn views(&self, rank: usize, n: usize, buffers: &Buffers) -> Result<Views> {
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

    fn enter(&self, comm: &mut dyn Communicator, v: &Views) -> Result<()> {
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

    fn enter_peers(&self, peers: &mut PeerCollectives, shots: Shots, v: &Views) -> Result<()> {
        match self.collective {
            Collective::AllReduce => peers.all_reduce(&v.send, &v.recv, self.dtype, shots),
            _ => peers.all_gather(&v.send, &v.recv),
        }
    }

    fn fits_peers(&self, peers: &PeerCollectives, shots: Shots, v: &Views) -> bool {
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
    /// this rank's CPU, every byte.
    fn check(
        &self,
        comm: &mut dyn Communicator,
        device: &dyn Device,
        v: &Views,
        call: impl FnOnce(&mut dyn Communicator) -> Result<()>,
    ) -> Result<()> {
        if self.collective == Collective::Barrier {
            call(comm)?;
            return comm.wait();
        }
        let (rank, n) = (comm.rank(), comm.size());
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
        call(comm)?;
        comm.wait()?;
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
    fn sample(
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
