//! From an experiment to work that can be repeated.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use parplan_profiles::calibration::{
    BufferRegistration, CollectiveKind, Experiment, LaunchMode, Probe, SyncWay,
};

use super::kernels;
use super::series::{Anchor, Enqueue, Round, Work};
use crate::attention::{KvType, PeerExchange, Peers, message_bytes};
use crate::bench::Collective;
use crate::jobs::{Buffers, Context, Point};
use crate::nccl::NcclRegistrar;
use crate::peer::{Availability, PeerCollectives, Shots};
use crate::symmetric::{Registration, WindowPool};
use crate::sync::{
    Metadata, PinnedSync, ROW, all_gather_on_device, all_reduce_on_device, over_tcp,
};
use crate::{Communicator, DType, Error, ReduceOp, Result, View};

/// What to do with an experiment.
pub(super) enum Outcome {
    /// Repeat it.
    Work(Work),
    /// Rounds that time themselves.
    Rounds(Round),
    /// Values that were read, bytes.
    Bytes(Vec<f64>),
}

/// An outcome with the name of who runs, or why there is none.
pub(super) type Prepared = std::result::Result<(String, Outcome), String>;

/// What this machine can do, or why it cannot.
type OrReason<T> = std::result::Result<T, String>;

/// What experiments share: buffers, windows, peers, the anchor.
pub(super) struct Bench {
    anchor: Anchor,
    largest: usize,
    /// cuBLASLt, where the user named it.
    cublas: Option<PathBuf>,
    /// By registration: buffers of the largest size, and the pool that keeps them registered.
    windows: BTreeMap<BufferRegistration, (Option<WindowPool<NcclRegistrar>>, Buffers)>,
    /// Peer memory; none where the GPUs do not reach each other, with the reason.
    peers: Option<OrReason<Rc<RefCell<PeerCollectives>>>>,
    /// Exchanges around an attention, and the largest message that they were made for.
    exchange: Option<(usize, OrReason<Rc<dyn Peers>>)>,
}

pub(super) const OWN: &str = concat!("parplan ", env!("CARGO_PKG_VERSION"));

fn collective(kind: CollectiveKind) -> Collective {
    match kind {
        CollectiveKind::AllGather => Collective::AllGather,
        CollectiveKind::ReduceScatter => Collective::ReduceScatter,
        CollectiveKind::AllReduce => Collective::AllReduce,
        CollectiveKind::AllToAll => Collective::AllToAll,
    }
}

fn repeated(enqueue: Enqueue) -> Outcome {
    Outcome::Work(Work {
        enqueue,
        at_least: 1,
    })
}

impl Bench {
    pub fn new(context: &Context, largest: usize, cublas: Option<PathBuf>) -> Result<Self> {
        Ok(Bench {
            cublas,
            anchor: Anchor::new(context)?,
            largest,
            windows: BTreeMap::new(),
            peers: None,
            exchange: None,
        })
    }

    pub fn anchor(&mut self) -> &mut Anchor {
        &mut self.anchor
    }

    /// A rank that unmaps early would pull memory from under its peers' kernels.
    pub fn finish(self, context: &mut Context) -> Result<()> {
        super::series::finish(context)?;
        context.control.barrier()
    }

    /// Makes an experiment ready, or says why it cannot be run here. All of its ranks call it.
    pub fn prepare(&mut self, context: &mut Context, experiment: &Experiment) -> Result<Prepared> {
        if experiment.launch == LaunchMode::Graph && context.gpu.is_none() {
            return Ok(Err("a CPU has no graphs".into()));
        }
        match experiment.probe {
            Probe::Collective {
                collective: kind,
                bytes,
                registration,
                in_place,
            } => {
                let point = point(kind, bytes, in_place);
                self.collective(context, point, registration)
            }
            Probe::PeerCollective {
                collective: kind,
                two_shot,
                bytes,
                in_place,
            } => {
                let shots = if two_shot { Shots::Two } else { Shots::One };
                self.peer(context, point(kind, bytes, in_place), shots)
            }
            Probe::PeerExchange { merge, rows, dim } => {
                self.exchange(context, merge, [rows as usize, dim as usize])
            }
            Probe::MetadataSync { way } => sync(context, way),
            Probe::Kernels { nodes } => {
                kernels::norms(context, self.cublas.as_deref(), nodes.max(1) as usize)
            }
            Probe::MemoryRead { bytes } => read(context, bytes),
            Probe::MemoryCopy { bytes } => {
                let bytes = size(bytes)?;
                let from = context.device.alloc("copy from", bytes)?.all();
                let to = context.device.alloc("copy to", bytes)?.all();
                context.device.fill(&from, 1)?;
                context.device.fill(&to, 0)?;
                Ok(Ok((
                    OWN.into(),
                    repeated(Box::new(move |c, _| c.device.copy(&to, &from))),
                )))
            }
            Probe::GraphMemory { nodes } => graph_memory(context, nodes),
            Probe::UsableMemory => Ok(match &context.gpu {
                // What the measurement itself allocated is not in anyone's way.
                Some(gpu) => {
                    let free = gpu.memory()?.0 + context.device.meter().current();
                    Ok((OWN.into(), Outcome::Bytes(vec![free as f64])))
                }
                None => Err("a CPU has no memory of its own".into()),
            }),
            Probe::Gemm { .. }
            | Probe::Experts(_)
            | Probe::DecodeGqa(_)
            | Probe::DecodeMla(_)
            | Probe::PrefillGqa(_) => {
                kernels::any(context, self.cublas.as_deref(), &experiment.probe)
            }
        }
    }

    fn collective(
        &mut self,
        context: &mut Context,
        point: Point,
        registration: BufferRegistration,
    ) -> Result<Prepared> {
        let (rank, n) = (context.identity.rank, context.identity.world);
        if point.unit(n) == 0 {
            return Ok(Err(format!(
                "{} bytes are less than one element for each of {n} ranks",
                point.bytes
            )));
        }
        if context.nccl.is_none() && registration != BufferRegistration::None {
            return Ok(Err("memory of a CPU is not registered".into()));
        }
        let buffers = self.buffers(context, registration)?;
        let views = point.views(rank, n, buffers)?;
        let name = match &context.nccl {
            Some(nccl) => format!("nccl {}", nccl.library().version()),
            None => format!("{OWN} tcp"),
        };
        let enqueue: Enqueue = match &context.nccl {
            Some(_) => Box::new(move |c, _| {
                let nccl = c
                    .nccl
                    .as_mut()
                    .ok_or_else(|| Error::Mismatch("NCCL is gone".into()))?;
                point.enter(nccl, &views)
            }),
            None => {
                let mut beside = context
                    .control
                    .split_cpu(Some(0), rank as u32)?
                    .ok_or_else(|| Error::Mismatch("no group to time on".into()))?;
                Box::new(move |_, _| point.enter(&mut beside, &views))
            }
        };
        Ok(Ok((name, repeated(enqueue))))
    }

    /// Send and receive buffers of the largest size, registered as asked.
    fn buffers(
        &mut self,
        context: &mut Context,
        registration: BufferRegistration,
    ) -> Result<&Buffers> {
        if !self.windows.contains_key(&registration) {
            let wanted = match registration {
                BufferRegistration::None => None,
                BufferRegistration::Local => Some(Registration::Local),
                BufferRegistration::Symmetric => Some(Registration::Symmetric),
            };
            let made = match (wanted, &context.nccl) {
                (Some(wanted), Some(nccl)) => {
                    let mut pool = WindowPool::new(NcclRegistrar::new(nccl)?);
                    let control = &mut context.control;
                    let send = pool.allocate(control, "send", self.largest, wanted)?;
                    let recv = pool.allocate(control, "recv", self.largest, wanted)?;
                    (Some(pool), Buffers { send, recv })
                }
                // Memory of the driver, as frameworks allocate: NCCL does not register it by itself.
                _ => (
                    None,
                    Buffers {
                        send: context.device.alloc("send", self.largest)?,
                        recv: context.device.alloc("recv", self.largest)?,
                    },
                ),
            };
            context.device.fill(&made.1.send.all(), 0)?;
            context.device.fill(&made.1.recv.all(), 0)?;
            self.windows.insert(registration, made);
        }
        self.windows
            .get(&registration)
            .map(|(_, buffers)| buffers)
            .ok_or_else(|| Error::Mismatch("the buffers are gone".into()))
    }

    fn peer(&mut self, context: &mut Context, point: Point, shots: Shots) -> Result<Prepared> {
        let Some(gpu) = context.gpu.clone() else {
            return Ok(Err("peer memory needs GPUs".into()));
        };
        if self.peers.is_none() {
            let connected = match PeerCollectives::connect(&gpu, &mut context.control)? {
                Availability::Available(peers) => Ok(Rc::new(RefCell::new(*peers))),
                Availability::Fallback(why) => Err(why.to_string()),
            };
            self.peers = Some(connected);
        }
        let peers = match &self.peers {
            Some(Ok(peers)) => std::rc::Rc::clone(peers),
            Some(Err(why)) => return Ok(Err(why.clone())),
            None => return Ok(Err("peer memory was not opened".into())),
        };
        let (rank, n) = (context.identity.rank, context.identity.world);
        let buffers = self.buffers(context, BufferRegistration::None)?;
        let views = point.views(rank, n, buffers)?;
        if !point.fits_peers(&peers.borrow(), shots, &views) {
            return Ok(Err(format!(
                "{} bytes are more than the kernel takes",
                point.bytes
            )));
        }
        let enqueue: Enqueue =
            Box::new(move |_, _| point.enter_peers(&mut peers.borrow_mut(), shots, &views));
        Ok(Ok((format!("{OWN} peer"), repeated(enqueue))))
    }

    /// A gather of queries or a merge of outputs, as a DCP group makes them.
    fn exchange(
        &mut self,
        context: &mut Context,
        merge: bool,
        [rows, dim]: [usize; 2],
    ) -> Result<Prepared> {
        let Some(gpu) = context.gpu.clone() else {
            return Ok(Err("peer memory needs GPUs".into()));
        };
        let most = message_bytes(rows, dim, dim);
        let connected = match &self.exchange {
            Some((largest, known)) if *largest >= most => known.clone(),
            _ => {
                let made = PeerExchange::connect(&gpu, &mut context.control, most)?;
                let made = made.map(|peers| Rc::new(peers) as Rc<dyn Peers>);
                self.exchange = Some((most, made.clone()));
                made
            }
        };
        let peers = match connected {
            Ok(peers) => peers,
            Err(why) => return Ok(Err(why)),
        };
        let (n, device) = (context.identity.world, context.device.as_ref());
        let view = |name: &str, bytes: usize| -> Result<View> {
            let view = device.alloc(name, bytes)?.all();
            device.fill(&view, 0)?;
            Ok(view)
        };
        let own = view("own rows", rows * dim * 2)?;
        let all = view("rows of all ranks", n * rows * dim * 2)?;
        let enqueue: Enqueue = if merge {
            let lse = view("own LSE", rows * 4)?;
            let lses = view("LSE of all ranks", n * rows * 4)?;
            Box::new(move |_, _| peers.merge(&all, &lses, dim, &own, &lse))
        } else {
            Box::new(move |_, _| peers.all_gather(&own, &all))
        };
        Ok(Ok((format!("{OWN} peer"), repeated(enqueue))))
    }
}

fn point(kind: CollectiveKind, bytes: u64, in_place: bool) -> Point {
    Point {
        collective: collective(kind),
        bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
        in_place,
        dtype: DType::Bf16,
        checked: false,
    }
}

fn size(bytes: u64) -> Result<usize> {
    usize::try_from(bytes)
        .map_err(|_| Error::Unusable(format!("{bytes} bytes do not fit this machine's addresses")))
}

/// Reads a buffer once: on a GPU by the kernel that reads as fast as memory goes.
fn read(context: &Context, bytes: u64) -> Result<Prepared> {
    if let Some(gpu) = context.gpu.clone() {
        let view = context.device.alloc("read", size(bytes)?)?.all();
        // A buffer of one value could be compressed on its way.
        context.device.fill_values(&view, KvType::Bf16, 1)?;
        let sink = context.device.alloc("read sink", 16)?.all();
        let enqueue: Enqueue = Box::new(move |_, _| gpu.read_through(&view, &sink));
        return Ok(Ok((OWN.into(), repeated(enqueue))));
    }
    let view = context.device.alloc("read", size(bytes)?)?.all();
    context.device.fill(&view, 1)?;
    let enqueue: Enqueue = Box::new(move |_, _| {
        let sum = view.with_host(|bytes| {
            // Four sums, so that the processor need not wait for one to add to it.
            let mut sums = [0u64; 4];
            for part in bytes.chunks_exact(32) {
                for (sum, word) in sums.iter_mut().zip(part.chunks_exact(8)) {
                    let word: [u8; 8] = word.try_into().unwrap_or_default();
                    *sum = sum.wrapping_add(u64::from_le_bytes(word));
                }
            }
            sums.iter().fold(0u64, |a, b| a.wrapping_add(*b))
        })?;
        std::hint::black_box(sum);
        Ok(())
    });
    Ok(Ok((OWN.into(), repeated(enqueue))))
}

/// Memory that captured graphs of `nodes` kernels take, one graph.
fn graph_memory(context: &Context, nodes: u32) -> Result<Prepared> {
    const GRAPHS: usize = 16;
    let Some(gpu) = context.gpu.clone() else {
        return Ok(Err("a CPU has no graphs".into()));
    };
    let view = context.device.alloc("small kernel", 4096)?.all();
    context.device.fill(&view, 0)?;
    context.device.scale_bf16(&view, &view, 1.0)?;
    gpu.wait(None)?;
    let before = gpu.memory()?.0;
    let mut graphs = Vec::with_capacity(GRAPHS);
    for _ in 0..GRAPHS {
        let graph = gpu.capture(|| {
            (0..nodes).try_for_each(|_| context.device.scale_bf16(&view, &view, 1.0))
        })?;
        graph.launch()?;
        graphs.push(graph);
    }
    gpu.wait(None)?;
    let taken = before.saturating_sub(gpu.memory()?.0) as f64 / GRAPHS as f64;
    if taken <= 0.0 {
        return Ok(Err(format!(
            "{GRAPHS} graphs of {nodes} kernels took no memory that the driver shows"
        )));
    }
    Ok(Ok((OWN.into(), Outcome::Bytes(vec![taken]))))
}

/// One exchange of rows; the number makes them differ.
type Exchange = Box<dyn FnMut(&mut Context, usize) -> Result<Vec<i64>>>;

/// A round of metadata: from packing the row to reading all rows on the host.
fn sync(context: &mut Context, way: SyncWay) -> Result<Prepared> {
    let (rank, world) = (context.identity.rank, context.identity.world);
    let row = move |round: usize| {
        Metadata {
            tokens: (round * 31 + rank * 7) as u32 % 1000,
            ..Metadata::default()
        }
        .pack()
    };
    let bytes = world * ROW;
    let mut exchange: Exchange = match (way, context.gpu.clone()) {
        (SyncWay::HostTcp, _) => Box::new(move |c, i| over_tcp(&mut c.control, &row(i))),
        (way, None) => {
            let table = context.device.alloc("metadata", bytes)?;
            Box::new(move |c, i| {
                let (comm, device, _) = c.parts();
                match way {
                    SyncWay::DeviceAllReduce => all_reduce_on_device(device, comm, &table, &row(i)),
                    _ => all_gather_on_device(device, comm, &table, &row(i)),
                }
            })
        }
        (way, Some(gpu)) => {
            let table = context.device.alloc("metadata", bytes)?;
            let mut pinned = PinnedSync::new(&gpu, rank, table)?;
            Box::new(move |c, i| {
                pinned.run(&row(i), |table: &View, own: &View| {
                    let nccl = c
                        .nccl
                        .as_mut()
                        .ok_or_else(|| Error::Mismatch("NCCL is gone".into()))?;
                    match way {
                        SyncWay::DeviceAllReduce => {
                            nccl.all_reduce(table, table, DType::I64, ReduceOp::Sum)
                        }
                        _ => nccl.all_gather(own, table),
                    }
                })
            })
        }
    };
    let name = match (way, &context.nccl) {
        (SyncWay::HostTcp, _) | (_, None) => format!("{OWN} tcp"),
        (_, Some(nccl)) => format!("nccl {}", nccl.library().version()),
    };
    let round: Round = Box::new(move |c, i| {
        // All ranks start a round together, as the ends of their steps are about equal.
        c.control.barrier()?;
        let start = Instant::now();
        let rows = exchange(c, i)?;
        let us = start.elapsed().as_secs_f64() * 1e6;
        std::hint::black_box(rows);
        Ok(us)
    });
    Ok(Ok((name, Outcome::Rounds(round))))
}
