//! Attention of one rank or of ranks that share the KV: checked, then timed as a whole
//! and in its parts.

mod exchanges;
mod inputs;
mod result;

use std::rc::Rc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

pub use exchanges::ExchangeSample;
use inputs::Inputs;
pub use result::{AttentionPart, AttentionResult, AttentionSample};

use super::{Context, Doing};
use crate::attention::{
    DcpAttention, Gather, Merge, PeerExchange, Peers, Shape, Shard, message_bytes,
};
use crate::bench::{Launch, Timer};
use crate::comm::CpuCommunicator;
use crate::cuda::Gpu;
use crate::nccl::{NcclCommunicator, NcclRegistrar};
use crate::symmetric::{Registration, WindowPool};
use crate::{Buffer, Communicator, Device, Error, Result, View};

/// A way to share an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// How ranks come to all queries.
    pub gather: Gather,
    /// How their outputs become one.
    pub merge: Merge,
}

impl Way {
    /// Name in tables and on the command line; other pairs are named by both halves.
    #[must_use]
    pub fn name(self) -> String {
        let known = match (self.gather, self.merge) {
            (Gather::Communicator, Merge::AgRs) => "ag-rs",
            (Gather::Communicator, Merge::AllToAll) => "a2a",
            (Gather::Replicated, Merge::AgRs) => "replicated-q",
            (Gather::Peer, Merge::Peer) => "fused",
            (gather, merge) => return format!("{gather:?} and {merge:?}"),
        };
        known.to_owned()
    }

    fn needs_peers(self) -> bool {
        self.gather == Gather::Peer || self.merge == Merge::Peer
    }

    fn needs_communicator(self) -> bool {
        self.gather == Gather::Communicator || self.merge != Merge::Peer
    }

    /// The nearest way without peer memory.
    fn without_peers(self) -> Self {
        Way {
            gather: self.gather.without_peers(),
            merge: self.merge.without_peers(),
        }
    }
}

/// What to run. All ranks form one group that shares the KV.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttentionJob {
    /// With the query heads of all ranks.
    pub shape: Shape,
    /// Neighbouring KV positions on one rank.
    pub interleave: usize,
    /// KV tokens and query tokens of each request.
    pub requests: Vec<(usize, usize)>,
    /// Instead of attentions, their gathers and merges alone, by all ways in turns, at each
    /// of these numbers of query tokens with the longest of the requests' KV. None: attentions.
    #[serde(default)]
    pub exchanges: Vec<usize>,
    /// Ways of sharing; with one rank the first alone counts.
    pub ways: Vec<Way>,
    /// Launch modes, on GPUs.
    pub launches: Vec<Launch>,
    /// Registrations of what the communicator sees, with NCCL.
    pub registrations: Vec<Registration>,
    /// Repetitions.
    pub timer: Timer,
    /// Compare with the float64 reference.
    pub check: bool,
    /// Names the inputs.
    pub seed: u64,
}

impl AttentionJob {
    /// Bytes of the KV cache of one of `world` ranks that share it, in whole pages, and of its table.
    /// Exchanges alone have none.
    pub(super) fn least_bytes(&self, world: usize) -> u64 {
        if !self.exchanges.is_empty() {
            return 0;
        }
        let shard = Shard {
            rank: 0,
            size: world.max(1),
            interleave: self.interleave.max(1),
        };
        let pages = |tokens: usize| shard.local_len(tokens).div_ceil(self.shape.page) as u64;
        let each = self.requests.iter().map(|(tokens, _)| pages(*tokens));
        let most = each.clone().max().unwrap_or(0);
        let page = self.shape.token_bytes() as u64 * self.shape.page as u64;
        let table = most.saturating_mul(4 * self.requests.len() as u64);
        each.fold(0, u64::saturating_add)
            .saturating_mul(page)
            .saturating_add(table)
    }
}

/// A way that can be run here, and the peers that it needs.
type Settled = (Way, Option<Rc<dyn Peers>>);

/// The memory of one way: what is timed.
struct Prepared {
    dcp: DcpAttention,
    q: Buffer,
    out: Buffer,
    lse: Buffer,
    /// After the buffers: what is registered must live as long.
    _pool: Option<WindowPool<NcclRegistrar>>,
}

/// How an attention is run on this rank.
struct Hands<'a> {
    device: &'a dyn Device,
    gpu: Option<&'a std::sync::Arc<Gpu>>,
    control: &'a mut CpuCommunicator,
    nccl: Option<&'a mut NcclCommunicator>,
}

impl AttentionJob {
    /// Runs on this rank.
    ///
    /// # Errors
    /// [`Error::Wrong`] when a result is not right, [`Error::Arguments`] for shapes that
    /// no kernel runs; any failure.
    pub fn run(&self, context: &mut Context) -> Result<AttentionResult> {
        let (rank, world) = (context.identity.rank, context.identity.world);
        let shard = Shard {
            rank,
            size: world,
            interleave: self.interleave,
        };
        let Context {
            gpu,
            device,
            control,
            nccl,
            listener,
            ..
        } = context;
        // On GPUs nobody waits for long.
        let mut tell = |what: String| {
            if let (0, None, Some(listener)) = (rank, gpu.as_ref(), listener.as_mut())
                && let Ok(value) = serde_json::to_value(Doing(what))
            {
                listener(&value);
            }
        };
        let mut hands = Hands {
            device: device.as_ref(),
            gpu: gpu.as_ref(),
            control,
            nccl: nccl.as_mut(),
        };
        let mut result = AttentionResult {
            device: match hands.gpu {
                Some(gpu) => gpu.name()?,
                None => "cpu".into(),
            },
            library: match &hands.nccl {
                Some(nccl) => format!("nccl {}", nccl.library().version()),
                None => "-".into(),
            },
            ranks: world,
            shape: self.shape,
            requests: self.requests.len(),
            read_ceiling_gb_s: hands
                .gpu
                .map(|gpu| ceiling(gpu, &mut *hands.control))
                .transpose()?,
            ..AttentionResult::default()
        };
        if !self.exchanges.is_empty() {
            if world == 1 {
                return Err(Error::Unusable(
                    "exchanges of 1 rank: there is nothing to gather or to merge, at least 2 ranks must share the KV".into(),
                ));
            }
            for &tokens in &self.exchanges {
                self.exchanges_at(tokens, &mut hands, shard, &mut result)?;
            }
            return Ok(result);
        }
        let tokens: usize = self.requests.iter().map(|(kv, _)| kv).sum();
        tell(format!(
            "making {tokens} tokens of KV for {} requests",
            self.requests.len()
        ));
        let inputs = Inputs::new(hands.device, hands.gpu.is_some(), self, shard)?;
        result.kv_bytes = inputs.kv_bytes;
        for &wanted in self
            .ways
            .iter()
            .take(if world == 1 { 1 } else { usize::MAX })
        {
            let Some((way, peers)) = self.settle(wanted, &mut hands, &inputs, &mut result)? else {
                continue;
            };
            for registration in self.registrations_of(way, &hands) {
                let prepared =
                    self.prepare(&mut hands, &inputs, way, registration, peers.clone())?;
                tell(format!("{}: a first pass{}", way.name(), self.checking()));
                let begin = Instant::now();
                let error = self.first(&mut hands, &inputs, &prepared)?;
                let first = begin.elapsed().as_secs_f64();
                tell(format!(
                    "{}: it took {first:.1} s; {} more are timed",
                    way.name(),
                    self.timer.warmup + self.timer.repeats * self.timer.iterations
                ));
                result.kernel = prepared.dcp.workspace().kernel().to_owned();
                for &launch in &self.launches {
                    if launch == Launch::Graph && hands.gpu.is_none() {
                        continue;
                    }
                    for part in AttentionPart::of(world) {
                        // Nothing is gathered, and an empty graph has no time.
                        if part == AttentionPart::Gather && way.gather == Gather::Replicated {
                            continue;
                        }
                        let (time, kernels) =
                            self.time(&mut hands, &inputs, &prepared, launch, part)?;
                        result.add(self, way, registration, launch, part, time, kernels, error);
                    }
                }
                self.settle_down(&mut hands)?;
            }
        }
        Ok(result)
    }

    /// What the first pass does besides.
    fn checking(&self) -> &'static str {
        match self.check {
            true => ", compared with the float64 reference",
            false => "",
        }
    }

    /// Registrations that make a difference to a way.
    fn registrations_of(&self, way: Way, hands: &Hands<'_>) -> Vec<Registration> {
        match &hands.nccl {
            Some(nccl) if way.needs_communicator() && nccl.size() > 1 => self.registrations.clone(),
            _ => vec![Registration::None],
        }
    }

    /// The way that can be run, with peers if it needs them; notes say what was changed.
    fn settle(
        &self,
        way: Way,
        hands: &mut Hands<'_>,
        inputs: &Inputs,
        result: &mut AttentionResult,
    ) -> Result<Option<Settled>> {
        if inputs.shard.size == 1 {
            return Ok(Some((way, None)));
        }
        let mut way = way;
        let mut peers = None;
        if way.needs_peers() {
            match self.map(hands, inputs)? {
                Ok(exchange) => peers = Some(exchange),
                Err(why) => {
                    let instead = way.without_peers();
                    let known = self.ways.contains(&instead);
                    result.note(format!(
                        "{}: no peer memory ({why}); {} {}",
                        way.name(),
                        instead.name(),
                        if known {
                            "is among the others"
                        } else {
                            "was run in its place"
                        }
                    ));
                    if known {
                        return Ok(None);
                    }
                    way = instead;
                }
            }
        }
        if way.needs_communicator() && hands.gpu.is_some() && hands.nccl.is_none() {
            result.note(format!("{}: left out, it needs NCCL", way.name()));
            return Ok(None);
        }
        Ok(Some((way, peers)))
    }

    fn map(
        &self,
        hands: &mut Hands<'_>,
        inputs: &Inputs,
    ) -> Result<std::result::Result<Rc<dyn Peers>, String>> {
        match hands.gpu {
            Some(gpu) => {
                let (local, tokens) = (&inputs.local, inputs.capacity.tokens);
                let rows = tokens * local.heads();
                let most = message_bytes(rows, local.query_dim(), local.value_dim());
                let exchange = PeerExchange::connect(gpu, hands.control, most)?;
                Ok(exchange.map(|e| Rc::new(e) as Rc<dyn Peers>))
            }
            None => Ok(Err("it needs GPUs".into())),
        }
    }

    fn prepare(
        &self,
        hands: &mut Hands<'_>,
        inputs: &Inputs,
        way: Way,
        registration: Registration,
        peers: Option<Rc<dyn Peers>>,
    ) -> Result<Prepared> {
        let mut pool = match (&hands.nccl, registration) {
            (None, _) | (_, Registration::None) => None,
            (Some(nccl), _) => Some(WindowPool::new(NcclRegistrar::new(nccl)?)),
        };
        let (device, control) = (hands.device, &mut *hands.control);
        let mut alloc = |name: &str, bytes: usize| match &mut pool {
            Some(pool) if bytes > 0 => pool.allocate(control, name, bytes, registration),
            _ => device.alloc(name, bytes),
        };
        let local = &inputs.local;
        let rows = inputs.batch.tokens * local.heads();
        let heads = match way.gather {
            Gather::Replicated => self.shape.heads(),
            _ => local.heads(),
        };
        let q = alloc(
            "queries",
            inputs.batch.tokens * heads * local.query_dim() * 2,
        )?;
        let out = alloc("output", rows * local.value_dim() * 2)?;
        let lse = alloc("LSE", rows * 4)?;
        let dcp = DcpAttention::new(
            device,
            local,
            inputs.shard,
            inputs.capacity,
            way.gather,
            way.merge,
            peers,
            &mut alloc,
        )?;
        inputs.write_queries(device, &q.all(), way.gather == Gather::Replicated)?;
        Ok(Prepared {
            dcp,
            q,
            out,
            lse,
            _pool: pool,
        })
    }

    /// Plans, runs once on poisoned outputs, and compares. The relative error, if asked for.
    fn first(
        &self,
        hands: &mut Hands<'_>,
        inputs: &Inputs,
        prepared: &Prepared,
    ) -> Result<Option<f64>> {
        let device = hands.device;
        device.fill(&prepared.out.all(), crate::device::POISON)?;
        device.fill(&prepared.lse.all(), crate::device::POISON)?;
        prepared.dcp.plan(device, &inputs.batch)?;
        let comm: &mut dyn Communicator = match &mut hands.nccl {
            Some(nccl) => *nccl,
            None => hands.control,
        };
        prepared.part(device, comm, inputs, AttentionPart::Whole, 0)?;
        self.finish(hands)?;
        let error = inputs.check(self, device, &prepared.out.all(), &prepared.lse.all())?;
        // The worst of the ranks.
        let all = hands
            .control
            .all_gather_bytes(&error.unwrap_or(0.0).to_le_bytes())?;
        let worst = all
            .iter()
            .filter_map(|b| Some(f64::from_le_bytes(*b.first_chunk()?)))
            .fold(0.0, f64::max);
        Ok(error.map(|_| worst))
    }

    fn finish(&self, hands: &mut Hands<'_>) -> Result<()> {
        match (&mut hands.nccl, hands.gpu) {
            (Some(nccl), _) => nccl.wait(),
            (None, Some(gpu)) => gpu.wait(None),
            (None, None) => Ok(()),
        }
    }

    fn settle_down(&self, hands: &mut Hands<'_>) -> Result<()> {
        self.finish(hands)?;
        // Nobody unmaps or frees what another still uses.
        hands.control.barrier()
    }

    fn time(
        &self,
        hands: &mut Hands<'_>,
        inputs: &Inputs,
        prepared: &Prepared,
        launch: Launch,
        part: AttentionPart,
    ) -> Result<(crate::bench::Stats, Vec<String>)> {
        // The timer has the control plane for itself; the work has the communicator.
        let (device, gpu) = (hands.device, hands.gpu);
        let mut round = 0;
        match hands.nccl.as_deref_mut() {
            Some(nccl) => {
                let nccl = std::cell::RefCell::new(nccl);
                let busy = |_| Error::Mismatch("the communicator is in use".into());
                self.timer.time(
                    hands.control,
                    launch,
                    gpu,
                    || {
                        round += 1;
                        let mut nccl = nccl.try_borrow_mut().map_err(busy)?;
                        prepared.part(device, &mut **nccl, inputs, part, round)
                    },
                    || nccl.try_borrow_mut().map_err(busy)?.wait(),
                )
            }
            None => {
                // A second group of the same ranks, beside the control plane.
                let rank = hands.control.rank() as u32;
                let beside = hands.control.split_cpu(Some(0), rank)?;
                let mut beside =
                    beside.ok_or_else(|| Error::Mismatch("no group for the work".into()))?;
                self.timer.time(
                    hands.control,
                    launch,
                    gpu,
                    || {
                        round += 1;
                        prepared.part(device, &mut beside, inputs, part, round)
                    },
                    || gpu.map_or(Ok(()), |gpu| gpu.wait(None)),
                )
            }
        }
    }
}

impl Prepared {
    /// Enqueues one part.
    fn part(
        &self,
        device: &dyn Device,
        comm: &mut dyn Communicator,
        inputs: &Inputs,
        part: AttentionPart,
        round: usize,
    ) -> Result<()> {
        let (q, out, lse): (View, View, View) = (self.q.all(), self.out.all(), self.lse.all());
        let (dcp, batch, cache) = (&self.dcp, &inputs.batch, inputs.cache(round));
        match part {
            AttentionPart::Whole => dcp.run(device, comm, batch, cache, &q, &out, &lse),
            AttentionPart::Gather => dcp.gather(comm, batch, &q),
            AttentionPart::Attend => dcp.attend(device, batch, cache, &q, &out, &lse),
            AttentionPart::Merge => dcp.merge(device, comm, batch, &out, &lse),
        }
    }
}

/// GB/s (10⁹) of a plain streaming read, the fastest of a few repeats' medians over ranks.
fn ceiling(gpu: &std::sync::Arc<Gpu>, control: &mut CpuCommunicator) -> Result<f64> {
    const MOST: usize = 4 << 30;
    let (free, _) = gpu.memory()?;
    // Several times any cache, and the same on all ranks.
    let mine = (free as usize / 4).min(MOST) & !0xffff;
    let all = control.all_gather_bytes(&(mine as u64).to_le_bytes())?;
    let bytes = all
        .iter()
        .filter_map(|b| Some(u64::from_le_bytes(*b.first_chunk()?) as usize))
        .min()
        .unwrap_or(mine);
    let memory = gpu.alloc("read", bytes)?;
    let sink = gpu.alloc("sink", 16)?;
    gpu.fill_values(&memory.all(), crate::attention::KvType::Bf16, 1)?;
    let timer = Timer {
        iterations: 2,
        repeats: 7,
        warmup: 2,
        graph_launches: 2,
    };
    let (time, _) = timer.time(
        control,
        Launch::Graph,
        Some(gpu),
        || gpu.read_through(&memory.all(), &sink.all()),
        || gpu.wait(None),
    )?;
    Ok(bytes as f64 / time.median_us / 1e3)
}
