//! A stack of decoder layers: checked against the float64 reference, timed eagerly and
//! from graphs, operation by operation.

mod result;
mod timed;

use std::collections::BTreeMap;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::{Context, Doing};
use crate::attention::PeerExchange;
use crate::bench::Launch;
use crate::comm::CpuCommunicator;
use crate::cuda::Graph;
use crate::nccl::NcclRegistrar;
use crate::stack::{
    Compute, CudaCompute, DcpMerge, Distance, Phase, Prepared, Quantiles, Runner, StackSpec,
    StepSpec, attention_op, graph_mark_us, uses_fp8,
};
use crate::symmetric::{Registration, WindowPool};
use crate::{Communicator, CpuDevice, Error, Result};
pub use result::{GraphBytes, MemoryKind, Part, StackResult, StackStep};
use timed::Captured;

/// How much to measure.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct StackTiming {
    /// Untimed steps first.
    pub warmup: usize,
    /// Timed steps, of which the median counts.
    pub repeats: usize,
}

/// What to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StackJob {
    /// The stack.
    pub spec: StackSpec,
    /// Its steps.
    pub steps: Vec<StepSpec>,
    /// Requests of a DP rank that decode graphs are captured for, on GPUs; a decode step
    /// replays the smallest that it fits, and runs eagerly above the largest.
    pub buckets: Vec<usize>,
    /// Run every step eagerly too, also where it has a graph.
    pub eager: bool,
    /// Registration of the buffers that all ranks exchange, on GPUs.
    pub registration: Registration,
    /// cuBLASLt, where the user named a file or folder.
    pub cublas_path: Option<std::path::PathBuf>,
    /// Repetitions.
    pub timing: StackTiming,
    /// Compare every step with the float64 reference first.
    pub check: bool,
}

/// The largest relative error of a bf16 stack of up to two layers.
const BF16_TOLERANCE: f64 = 1e-2;
/// The same where weights or cache are fp8: e4m3 keeps 4 significant bits, a relative
/// error of up to 1/16 a value and about 1/40 on average.
const FP8_TOLERANCE: f64 = 8e-2;

/// The largest relative error of a stack: roundings of different layers are independent, so that
/// they add up by squares. (DeepSeek-V3's of 4 layers in fp8 is 8.0e-2 off on the CPU, with 200
/// tokens; one that computes something else is off by about 1.)
fn tolerance(spec: &StackSpec) -> f64 {
    let of_two = match uses_fp8(spec) {
        true => FP8_TOLERANCE,
        false => BF16_TOLERANCE,
    };
    of_two * (spec.layers.len() as f64 / 2.0).sqrt().max(1.0)
}

/// Bytes of the largest message from a rank to another over peer memory. Longer ones, as
/// prefill chunks have, are bound by the link, and go by the communicator.
const MOST_STAGED: usize = 32 << 20;

impl StackJob {
    /// Runs on this rank. Rank 0's result counts.
    ///
    /// # Errors
    /// [`Error::Unusable`] for a specification that does not fit, [`Error::Wrong`] for a
    /// result that is too far from the reference; any failure.
    pub fn run(&self, context: &mut Context) -> Result<StackResult> {
        self.spec.check()?;
        if self.check && self.spec.is_shard() {
            return Err(Error::Unusable(
                "--check needs the whole layout at hand: the ranks that --as-shard-of leaves out would change the result".into(),
            ));
        }
        if context.gpu.is_some() && context.nccl.is_none() {
            return Err(Error::Unusable(
                "a stack on GPUs communicates by NCCL: --backend nccl".into(),
            ));
        }
        let rank = context.identity.rank;
        let mut memory = Vec::new();
        let no_group = || Error::Mismatch("no group for the stack".into());
        let (device, products, free): (Box<dyn Compute>, _, _) = match &context.gpu {
            Some(gpu) => {
                let before = gpu.memory()?.0;
                let compute = CudaCompute::new(gpu, self.cublas_path.as_deref())?;
                let products = compute.products();
                (Box::new(compute), products, Some(before))
            }
            None => (Box::new(CpuDevice::new()), "cpu".to_owned(), None),
        };
        let (world, registrar): (Box<dyn Communicator>, _) = match &mut context.nccl {
            Some(nccl) => {
                let group = nccl
                    .split_nccl(Some(0), rank as u32)?
                    .ok_or_else(no_group)?;
                let registrar = NcclRegistrar::new(&group)?;
                (Box::new(group), Some(registrar))
            }
            None => {
                let group = context.control.split(Some(0), rank as u32)?;
                (group.ok_or_else(no_group)?, None)
            }
        };
        let implementation = world.implementation().to_owned();
        let layers = self.spec.layers.len();
        slow(context, || format!("making the weights of {layers} layers"));
        let largest = self.buckets.iter().copied().max().unwrap_or(0);
        let mut runner = Runner::new(device, self.spec.clone(), world, &self.steps, largest)?;
        memory.extend(runner.memory.iter().map(|(what, bytes)| MemoryKind {
            what: what.clone(),
            bytes: *bytes,
        }));
        let pool = self.windows(&mut context.control, &mut runner, registrar)?;
        let held = runner.device.meter().current();
        let apart = self.share_memory(context, &mut runner)?;
        let staging = runner.device.meter().current().saturating_sub(held);
        if staging > 0 {
            memory.push(MemoryKind {
                what: "staging for peers".into(),
                bytes: staging,
            });
        }
        if let (Some(gpu), Some(before)) = (&context.gpu, free) {
            let held = runner.device.meter().current();
            let taken = before.saturating_sub(gpu.memory()?.0);
            memory.push(MemoryKind {
                what: "communicators and libraries".into(),
                bytes: taken.saturating_sub(held),
            });
        }
        let mut result = StackResult {
            device: match &context.gpu {
                Some(gpu) => gpu.name()?,
                None => "cpu".into(),
            },
            implementation,
            products,
            narrowed: self.spec.narrowed(),
            spec: self.spec.clone(),
            steps: Vec::new(),
            memory,
            graphs: Vec::new(),
            skipped: 0,
            graph_mark_us: context.gpu.as_ref().map(graph_mark_us).transpose()?,
            notes: apart.into_iter().collect(),
        };
        let before = runner.device.meter().current();
        self.steps(context, &mut runner, &mut result)?;
        let work = runner.device.meter().current().saturating_sub(before);
        result.memory.push(MemoryKind {
            what: "activations and batches".into(),
            bytes: work,
        });
        drop(pool);
        Ok(result)
    }

    /// Registers what all ranks exchange.
    fn windows(
        &self,
        control: &mut CpuCommunicator,
        runner: &mut Runner,
        registrar: Option<NcclRegistrar>,
    ) -> Result<Option<WindowPool<NcclRegistrar>>> {
        let (Some(registrar), true) = (registrar, self.registration != Registration::None) else {
            return Ok(None);
        };
        let rows = self.most_rows();
        let mut pool = WindowPool::new(registrar);
        let row = self.spec.hidden * 2;
        let all = rows * self.spec.shard_of.attn_dp;
        for (name, rows) in [
            ("attention output", rows),
            ("block output", rows),
            ("rows to gather", rows),
            ("gathered rows", all),
            ("gathered results", all),
        ] {
            let buffer = pool.allocate(control, name, rows * row, self.registration)?;
            runner.stack.work.adopt(name, buffer);
        }
        Ok(Some(pool))
    }

    /// Maps memory of the ranks that share a cache into each other, where the stack is
    /// to exchange over it. A sentence where it cannot, which is the same on all of them.
    fn share_memory(&self, context: &mut Context, runner: &mut Runner) -> Result<Option<String>> {
        let dcp = self.spec.here.dcp;
        if self.spec.dcp_merge != DcpMerge::Peer || dcp == 1 {
            return Ok(None);
        }
        let rank = context.identity.rank;
        let place = Some((rank / dcp) as u32);
        let group = context.control.split_cpu(place, rank as u32)?;
        let mut group =
            group.ok_or_else(|| Error::Mismatch("no group of ranks that share a cache".into()))?;
        let most = runner.stack.dcp_message(self.most_rows()).min(MOST_STAGED);
        let why = match &context.gpu {
            Some(gpu) => match PeerExchange::connect(gpu, &mut group, most)? {
                Ok(exchange) => {
                    runner.groups.share_memory(Rc::new(exchange));
                    return Ok(None);
                }
                Err(why) => why,
            },
            None => "it needs GPUs".into(),
        };
        Ok(Some(format!(
            "no peer memory ({why}); DCP exchanges by all-gather and all-to-all in its place"
        )))
    }

    /// Rows of a rank in the largest step or bucket.
    fn most_rows(&self) -> usize {
        let attn_tp = self.spec.shard_of.attn_tp();
        let steps = self.steps.iter().map(|s| {
            let most = s.requests.iter().copied().max().unwrap_or(0);
            // At most as many padding requests as attention-TP ranks.
            (most + attn_tp) * s.q_tokens
        });
        let widest = self.steps.iter().map(|s| s.q_tokens).max().unwrap_or(1);
        let buckets = self.buckets.iter().map(|b| (b + attn_tp) * widest);
        steps.chain(buckets).max().unwrap_or(1)
    }

    fn steps(
        &self,
        context: &mut Context,
        runner: &mut Runner,
        result: &mut StackResult,
    ) -> Result<()> {
        // The largest first: buffers then never grow under a captured graph.
        let mut order: Vec<usize> = (0..self.steps.len()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(self.steps[*i].rows().into_iter().max()));
        let mut eager: BTreeMap<usize, StackStep> = BTreeMap::new();
        for &i in &order {
            let step = &self.steps[i];
            let graphed = context.gpu.is_some() && self.bucket(step).is_some();
            let Some(prepared) = runner.prepare(step, None)? else {
                result.skipped += 1;
                continue;
            };
            slow(context, || words(step, self.check));
            let note = format!(
                "{} by {}",
                attention_op(step.phase).name(),
                prepared.attention.kernels().join(", ")
            );
            if !result.notes.contains(&note) {
                result.notes.push(note);
            }
            let distance = self.checked(context, runner, step, &prepared, None)?;
            if graphed && !self.eager {
                continue;
            }
            let timed = self.eagerly(context, runner, &prepared)?;
            eager.insert(
                i,
                self.entry(runner, step, &prepared, (timed, distance), None),
            );
        }
        let mut graphs = self.capture(context, runner, result)?;
        for (i, step) in self.steps.iter().enumerate() {
            if let (Some(bucket), true) = (self.bucket(step), context.gpu.is_some())
                && let Some(graph) = graphs
                    .iter_mut()
                    .find(|g| g.bucket == bucket && g.q_tokens == step.q_tokens)
            {
                let place = runner.stack.place;
                let own = (step.requests[place.dp], step.context);
                graph.prepared.batch.write(
                    runner.device.as_ref(),
                    &self.spec,
                    &place,
                    &runner.stack.paging,
                    own,
                )?;
                runner.enter(&graph.prepared)?;
                let Captured {
                    prepared, plain, ..
                } = graph;
                let distance = self.checked(context, runner, step, prepared, Some(plain))?;
                let mark = result.graph_mark_us.unwrap_or(0.0);
                let timed = self.replayed(context, runner, graph, mark)?;
                let times = (timed, distance);
                let entry = self.entry(runner, step, &graph.prepared, times, Some(bucket));
                result.steps.push(entry);
            }
            result.steps.extend(eager.remove(&i));
        }
        Ok(())
    }

    /// The smallest bucket that a decode step fits.
    fn bucket(&self, step: &StepSpec) -> Option<usize> {
        let most = step.requests.iter().copied().max()?;
        let fits = self.buckets.iter().copied().filter(|b| *b >= most);
        fits.min().filter(|_| step.phase == Phase::Decode)
    }

    fn checked(
        &self,
        context: &mut Context,
        runner: &mut Runner,
        step: &StepSpec,
        prepared: &Prepared,
        graph: Option<&Graph>,
    ) -> Result<Option<Distance>> {
        if !self.check {
            return Ok(None);
        }
        // A captured graph records where its own capture was told to.
        if graph.is_none() {
            runner.record(self.most_rows() * self.spec.here.attn_dp)?;
        }
        let found = runner.compare(&mut context.control, step, prepared, |r| {
            match graph {
                Some(graph) => graph.launch()?,
                None => r.enqueue(prepared, &mut ())?,
            }
            r.groups.wait()
        })?;
        let tolerance = tolerance(&self.spec);
        match found {
            Some(d) if d.relative_error.is_nan() || d.relative_error > tolerance => {
                Err(Error::Wrong(format!(
                    "requests {:?}, {} tokens each, context {}: the stack is {:.2e} off the float64 reference, {tolerance:.1e} is allowed",
                    step.requests, step.q_tokens, step.context, d.relative_error
                )))
            }
            other => Ok(other),
        }
    }

    /// One step's entry in the result; rank 0's view.
    fn entry(
        &self,
        runner: &Runner,
        step: &StepSpec,
        prepared: &Prepared,
        ((time, parts), distance): ((Quantiles, Vec<Part>), Option<Distance>),
        bucket: Option<usize>,
    ) -> StackStep {
        let rows = crate::stack::StepRows::new(&self.spec, &runner.stack.place, &prepared.shape);
        StackStep {
            step: step.clone(),
            launch: if bucket.is_some() {
                Launch::Graph
            } else {
                Launch::Stream
            },
            bucket,
            mode: (self.spec.shard_of.attn_dp > 1).then_some(prepared.shape.mode),
            rows: rows.local,
            gathered_rows: rows.all,
            time,
            sum_of_parts_us: parts.iter().map(|p| p.time.median_us).sum(),
            parts,
            distance,
        }
    }
}

/// Tells whoever waits what is done, on the CPU: on GPUs nobody waits for long.
fn slow(context: &mut Context, what: impl FnOnce() -> String) {
    if context.gpu.is_none() {
        context.report(&Doing(what()));
    }
}

/// A step, for [`slow`].
fn words(step: &StepSpec, check: bool) -> String {
    let requests = step.requests.iter().map(ToString::to_string);
    format!(
        "{} {} of {} requests, {} new tokens each, {} in the cache",
        if check {
            "checking and timing"
        } else {
            "timing"
        },
        match step.phase {
            Phase::Decode => "decode",
            Phase::Prefill => "prefill",
        },
        requests.collect::<Vec<_>>().join(","),
        step.q_tokens,
        step.context
    )
}
