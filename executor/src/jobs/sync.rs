//! Metadata sync by every way, each checked, then timed as one blocking round.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Context, Doing};
use crate::bench::{Launch, Stats};
use crate::nccl::NcclRegistrar;
use crate::peer::{Availability, PeerCollectives};
use crate::symmetric::{Registration, WindowPool};
use crate::sync::{
    Agreement, Metadata, PinnedSync, ROW, WORDS, Way, all_gather_on_device, all_reduce_on_device,
    over_tcp,
};
use crate::{Communicator, DType, Device, Error, ReduceOp, Result};

/// What to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SyncJob {
    /// Ways.
    pub ways: Vec<Way>,
    /// Launch modes of the device ways, on GPUs.
    pub launches: Vec<Launch>,
    /// Registrations of the table, for the device all-gather on GPUs: NCCL has no
    /// symmetric sum of integers.
    pub registrations: Vec<Registration>,
    /// Timed rounds of each.
    pub rounds: usize,
}

/// One way's times: a round from packing the row to reading all rows on the host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SyncSample {
    /// Way.
    pub way: Way,
    /// Launch mode.
    pub launch: Launch,
    /// Registration of the table on the device.
    pub registration: Registration,
    /// Ranks.
    pub ranks: usize,
    /// Bytes of one rank's row.
    pub row_bytes: usize,
    /// Times of single rounds on rank 0.
    pub time: Stats,
    /// All rounds gave every rank's row.
    pub checked: bool,
}

/// What a run found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SyncResult {
    /// GPU name, or "cpu".
    pub device: String,
    /// Times.
    pub samples: Vec<SyncSample>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

/// A rank's metadata in a round; different in every round.
fn metadata(rank: usize, round: usize) -> Metadata {
    Metadata {
        tokens: (round * 31 + rank * 7) as u32 % 1000,
        logprob_tokens: rank as u32 + 1,
        decode_graph: !(round + rank).is_multiple_of(3),
        extend: (round + rank).is_multiple_of(5),
        longest_prefix: 4096,
        attention_pairs: (round * rank) as u64,
        ..Metadata::default()
    }
}

impl SyncJob {
    /// Runs on this rank.
    ///
    /// # Errors
    /// [`Error::Wrong`] when a rank's row did not arrive; any failure.
    pub fn run(&self, context: &mut Context) -> Result<SyncResult> {
        let mut result = SyncResult {
            device: match &context.gpu {
                Some(gpu) => gpu.name()?,
                None => "cpu".into(),
            },
            samples: Vec::new(),
            notes: Vec::new(),
        };
        for &way in &self.ways {
            // On GPUs nobody waits for long.
            if context.gpu.is_none() && context.identity.world > 1 {
                context.report(&Doing(format!(
                    "{}: {} rounds of {} ranks",
                    way.words(),
                    self.rounds,
                    context.identity.world
                )));
            }
            match (way, context.gpu.is_some()) {
                (Way::HostTcp, _) => {
                    let sample = self.rounds(context, way, Launch::Stream, |c, row| {
                        over_tcp(&mut c.control, row)
                    })?;
                    result.samples.push(sample);
                }
                (Way::DeviceAllReduce | Way::DeviceAllGather, false) => {
                    let table = context
                        .device
                        .alloc("metadata", context.identity.world * ROW)?;
                    let sample = self.rounds(context, way, Launch::Stream, |c, row| {
                        let (comm, device, _) = c.parts();
                        match way {
                            Way::DeviceAllReduce => all_reduce_on_device(device, comm, &table, row),
                            _ => all_gather_on_device(device, comm, &table, row),
                        }
                    })?;
                    result.samples.push(sample);
                }
                (Way::PeerAllGather, false) => {
                    result.notes.push("peer all-gather: it needs GPUs".into())
                }
                (_, true) => self.on_gpu(context, way, &mut result)?,
            }
        }
        Ok(result)
    }

    fn on_gpu(&self, context: &mut Context, way: Way, result: &mut SyncResult) -> Result<()> {
        let Some(gpu) = context.gpu.clone() else {
            return Ok(());
        };
        let mut peers = None;
        if way == Way::PeerAllGather {
            match PeerCollectives::connect(&gpu, &mut context.control)? {
                Availability::Available(p) => peers = Some(p),
                Availability::Fallback(why) => {
                    result.notes.push(format!("peer all-gather: {why}"));
                    return Ok(());
                }
            }
        }
        let registrations = match way {
            Way::DeviceAllGather => self.registrations.clone(),
            _ => vec![Registration::None],
        };
        let bytes = context.identity.world * ROW;
        for registration in registrations {
            let mut pool = None;
            let table = match &context.nccl {
                Some(nccl) if registration != Registration::None => pool
                    .insert(WindowPool::new(NcclRegistrar::new(nccl)?))
                    .allocate(&mut context.control, "metadata", bytes, registration)?,
                _ => gpu.alloc("metadata", bytes)?,
            };
            let mut pinned = PinnedSync::new(&gpu, context.identity.rank, table)?;
            for &launch in &self.launches {
                let mut collective =
                    |c: &mut Context, table: &crate::View, own: &crate::View| match (
                        &mut peers,
                        &mut c.nccl,
                    ) {
                        (Some(peers), _) => peers.all_gather(own, table),
                        (None, Some(nccl)) if way == Way::DeviceAllReduce => {
                            nccl.all_reduce(table, table, DType::I64, ReduceOp::Sum)
                        }
                        (None, Some(nccl)) => nccl.all_gather(own, table),
                        (None, None) => Err(Error::Mismatch("no NCCL on this rank".into())),
                    };
                // Once eagerly: NCCL connects on first use, which a capture should not hold.
                pinned.run(&metadata(0, 0).pack(), |table, own| {
                    collective(context, table, own)
                })?;
                if launch == Launch::Graph {
                    pinned.capture(|table, own| collective(context, table, own))?;
                }
                let mut sample = self.rounds(context, way, launch, |c, row| match launch {
                    Launch::Graph => pinned.replay(row),
                    Launch::Stream => pinned.run(row, |table, own| collective(c, table, own)),
                })?;
                sample.registration = registration;
                result.samples.push(sample);
            }
            gpu.wait(None)?;
        }
        gpu.wait(None)?;
        context.control.barrier()
    }

    fn rounds(
        &self,
        context: &mut Context,
        way: Way,
        launch: Launch,
        mut round: impl FnMut(&mut Context, &[i64; WORDS]) -> Result<Vec<i64>>,
    ) -> Result<SyncSample> {
        let (rank, ranks) = (context.identity.rank, context.identity.world);
        let mut micros = Vec::with_capacity(self.rounds);
        const WARMUP: usize = 20;
        for i in 0..WARMUP + self.rounds {
            // All ranks start a round together, as the ends of their steps are about equal.
            context.control.barrier()?;
            let start = Instant::now();
            let words = round(context, &metadata(rank, i).pack())?;
            let took = start.elapsed().as_secs_f64() * 1e6;
            let want: Vec<i64> = (0..ranks).flat_map(|r| metadata(r, i).pack()).collect();
            if words != want {
                return Err(Error::Wrong(format!(
                    "metadata sync {way:?} {launch:?}, round {i} on rank {rank}: {words:?}, it must be {want:?}"
                )));
            }
            // The decision itself is part of no way's cost but must be possible.
            Agreement::of(&words)?;
            if i >= WARMUP {
                micros.push(took);
            }
        }
        Ok(SyncSample {
            way,
            launch,
            registration: Registration::None,
            ranks,
            row_bytes: ROW,
            time: Stats::of(micros),
            checked: true,
        })
    }
}
