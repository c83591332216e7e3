//! Times collectives over sizes, registrations and launch modes, each checked first.

use std::time::Instant;

mod point;
mod result;

use serde::{Deserialize, Serialize};

pub(crate) use point::{Buffers, Point};
use point::{Views, nccl_sums_symmetrically};
pub use result::{CollectivesResult, RegistrationCosts, Sample};

use super::Context;
use crate::bench::{Collective, Launch, Timer};
use crate::conformance::{self, Scope};
use crate::nccl::NcclRegistrar;
use crate::peer::{Availability, PeerCollectives, Shots};
use crate::symmetric::{Registration, Sides, WindowPool, sides_needed};
use crate::{Communicator, DType, Device, Error, Result};

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
    /// Buffers that the symmetric registration is for; in place there is one, the receive buffer.
    pub sides: Sides,
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

impl CollectivesJob {
    /// Bytes of what is sent and of what is received, at the largest size.
    pub(super) fn least_bytes(&self) -> u64 {
        let largest = self.bytes.iter().copied().max().unwrap_or(0);
        (largest as u64).saturating_mul(2)
    }

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
        let has_backend = context.gpu.is_none() || context.nccl.is_some();
        if !has_backend && self.implementations.contains(&Implementation::Backend) {
            return Err(Error::Unusable(
                "--backend peer has no communicator of its own: give --implementation peer-one-shot or peer-two-shot"
                    .into(),
            ));
        }
        if self.check && has_backend {
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
            let of_side = |registered: bool| match registration {
                Registration::Symmetric if !registered => Registration::None,
                as_asked => as_asked,
            };
            let [send, recv] = [of_side(self.sides.send), of_side(self.sides.recv)];
            let start = Instant::now();
            let send = pool.allocate(&mut context.control, "send", largest, send)?;
            let took = start.elapsed().as_secs_f64() * 1e6;
            let recv = pool.allocate(&mut context.control, "recv", largest, recv)?;
            let buffers = Buffers { send, recv };
            if registration == Registration::Symmetric && self.sides == Sides::BOTH {
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
        // Inside the buffer, where it is large enough for that.
        let at = buffers.recv.len().min(128) / 2;
        let view = buffers.recv.view(at, buffers.recv.len().min(128) - at)?;
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
        let n = context.identity.world;
        for &collective in &self.collectives {
            for &bytes in &self.bytes {
                let out_of_place = Point {
                    collective,
                    bytes,
                    in_place: false,
                    dtype: self.dtype,
                    checked: self.check,
                };
                if collective == Collective::Barrier && bytes != self.bytes[0] {
                    continue;
                }
                if out_of_place.unit(n) == 0 && collective != Collective::Barrier {
                    result.notes.push(format!(
                        "{} of {bytes} bytes: less than one element for each of {n} ranks",
                        collective.name()
                    ));
                    continue;
                }
                let places: &[bool] = if collective.has_in_place() {
                    &[false, true]
                } else {
                    &[false]
                };
                for &in_place in places {
                    let point = Point {
                        in_place,
                        ..out_of_place
                    };
                    let calls = point.views(context.identity.rank, n, buffers)?;
                    match self.point(context, registration, point, &calls, &launches) {
                        Ok(samples) => result.samples.extend(samples),
                        // What this NCCL would read wrong is refused by all ranks alike,
                        // before anything is sent.
                        Err(Error::Arguments { op, why })
                            if registration == Registration::Symmetric =>
                        {
                            result.notes.push(format!(
                                "{} of {bytes} bytes{} with symmetric memory was left out: {op}: {why}",
                                collective.name(),
                                if in_place { " in place" } else { "" }
                            ));
                        }
                        Err(Error::Wrong(why)) => {
                            let how = registration.name();
                            return Err(Error::Wrong(format!("{why} (registration: {how})")));
                        }
                        Err(other) => return Err(other),
                    }
                }
            }
        }
        Ok(())
    }

    /// One point: compared with the reference, where that is asked for, and timed.
    fn point(
        &self,
        context: &mut Context,
        registration: Registration,
        point: Point,
        calls: &Views,
        launches: &[Launch],
    ) -> Result<Vec<Sample>> {
        if self.check {
            let (rank, n) = (context.identity.rank, context.identity.world);
            let (comm, device, _) = context.parts();
            point.check([rank, n], device, calls, || {
                point.enter(comm, calls)?;
                comm.wait()
            })?;
        }
        launches
            .iter()
            .map(|&launch| self.measure(context, registration, launch, point, calls))
            .collect()
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
                let sides = Sides {
                    send: match point.in_place {
                        true => self.sides.recv,
                        false => self.sides.send,
                    },
                    recv: self.sides.recv,
                };
                symmetric_expected = registration == Registration::Symmetric
                    && sides_needed(version, point.collective.name(), point.bytes)
                        .is_some_and(|needed| sides.cover(needed))
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
            Availability::Fallback(why) if context.nccl.is_none() => {
                return Err(Error::Unusable(format!(
                    "--backend peer needs memory that all ranks map: {why}"
                )));
            }
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
                        if point.unit(context.identity.world) == 0 {
                            continue;
                        }
                        let samples =
                            self.peer_point(context, &mut peers, shots, point, &buffers)?;
                        result.samples.extend(samples);
                    }
                }
            }
        }
        // A rank that unmaps early would pull memory from under its peers' kernels.
        gpu.wait(None)?;
        context.control.barrier()
    }

    /// One point over peer memory: compared with the reference, where that is asked for, and timed. No
    /// samples where the kernels do not take its sizes.
    fn peer_point(
        &self,
        context: &mut Context,
        peers: &mut PeerCollectives,
        shots: Shots,
        point: Point,
        buffers: &Buffers,
    ) -> Result<Vec<Sample>> {
        let (rank, n) = (context.identity.rank, context.identity.world);
        let calls = point.views(rank, n, buffers)?;
        if !point.fits_peers(peers, shots, &calls) {
            return Ok(Vec::new());
        }
        let no_gpu = || Error::Mismatch("no GPU beside the peers".into());
        let gpu = context.gpu.clone().ok_or_else(no_gpu)?;
        if self.check {
            point.check([rank, n], &gpu, &calls, || {
                point.enter_peers(peers, shots, &calls)?;
                gpu.wait(None)
            })?;
        }
        let name = match shots {
            Shots::One => "parplan peer one-shot",
            Shots::Two => "parplan peer two-shot",
        };
        let mut samples = Vec::new();
        for &launch in &self.launches {
            let (time, kernels) = self.timer.time(
                &mut context.control,
                launch,
                Some(&gpu),
                || point.enter_peers(peers, shots, &calls),
                || gpu.wait(None),
            )?;
            samples.push(point.sample(
                name.into(),
                Registration::None,
                launch,
                n,
                time,
                kernels,
                false,
            ));
        }
        Ok(samples)
    }
}
