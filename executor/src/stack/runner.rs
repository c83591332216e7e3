//! A rank's stack, ready to run steps.

use super::Work;
use super::attend::Attention;
use super::batch::{Batch, Cache, Paging, check_size};
use super::check::{Distance, Found, while_first_rank_works};
use super::compute::Compute;
use super::groups::{Groups, Path};
use super::place::{BlockShape, Place};
use super::run::{Marks, Stack, Step, StepRows};
use super::spec::{ExpertPath, Phase, StackSpec, StepSpec};
use super::weights::Layer;
use crate::comm::CpuCommunicator;
use crate::gather::{DpLayout, Mode, StepShape};
use crate::{Buffer, Communicator, Error, Result};

/// A rank with its share of the stack.
pub struct Runner {
    /// Memory and operations.
    pub device: Box<dyn Compute>,
    /// The share.
    pub stack: Stack,
    /// The groups.
    pub groups: Groups,
    /// Bytes by kind, as they were allocated.
    pub memory: Vec<(String, u64)>,
}

/// A step with its memory: what a captured graph keeps.
pub struct Prepared {
    /// Requests of this rank.
    pub batch: Batch,
    /// Rows of all DP ranks.
    pub shape: StepShape,
    /// Plans and memory of attention.
    pub attention: Attention,
    /// Phase.
    pub phase: Phase,
}

/// Requests of a rank in a step, rounded up so that attention-TP ranks can share the rows.
fn padded(requests: usize, q_tokens: usize, attn_tp: usize) -> usize {
    let mut slots = requests;
    while !(slots * q_tokens).is_multiple_of(attn_tp) {
        slots += 1;
    }
    slots
}

impl Runner {
    /// Makes weights and caches for every step of `steps`, which may pad to `bucket`
    /// requests at most. Collective.
    ///
    /// # Errors
    /// [`Error::Unusable`] for a specification that does not fit; out of memory.
    pub fn new(
        mut device: Box<dyn Compute>,
        spec: StackSpec,
        world: Box<dyn Communicator>,
        steps: &[StepSpec],
        bucket: usize,
    ) -> Result<Self> {
        spec.check()?;
        if world.size() != spec.here.tp {
            return Err(Error::Unusable(format!(
                "{} ranks for tp {}",
                world.size(),
                spec.here.tp
            )));
        }
        let place = Place::new(&spec, world.rank());
        let attn_tp = spec.shard_of.attn_tp();
        let (mut slots, mut tokens, mut rows) = (1, 1, 1);
        for step in steps {
            if step.requests.len() != spec.here.attn_dp || step.q_tokens == 0 {
                return Err(Error::Unusable(format!(
                    "a step with requests {:?} of {} tokens: it needs a count for each of {} attention-DP ranks, and at least one token",
                    step.requests, step.q_tokens, spec.here.attn_dp
                )));
            }
            let most = step.requests.iter().copied().max().unwrap_or(0);
            let most = padded(most.max(1), step.q_tokens, attn_tp);
            slots = slots.max(most);
            tokens = tokens.max(step.context + step.q_tokens);
            rows = rows.max(most * step.q_tokens);
        }
        slots = slots.max(padded(bucket, 1, attn_tp));
        rows = rows.max(slots);
        check_size(slots, tokens, spec.here.attn_dp)?;

        let meter = device.meter().clone();
        let mut memory = Vec::new();
        let mut note = |what: &str, before: u64, now: u64| {
            memory.push((what.to_owned(), now.saturating_sub(before)));
        };
        note("library workspace", 0, meter.current());
        let start = meter.current();
        let layers = spec
            .layers
            .iter()
            .enumerate()
            .map(|(i, l)| Layer::new(device.as_ref(), &spec, &place, i, l))
            .collect::<Result<Vec<_>>>()?;
        note("weights", start, meter.current());
        let paging = Paging::new(&spec, &place, slots, tokens);
        let start = meter.current();
        let caches = layers
            .iter()
            .map(|l| Cache::new(device.as_ref(), &spec, l, &paging))
            .collect::<Result<Vec<_>>>()?;
        note("KV cache", start, meter.current());
        let start = meter.current();
        let widest = widest_input(&spec, &layers);
        let all = rows * spec.shard_of.attn_dp;
        device.reserve(all, widest)?;
        note("quantised rows", start, meter.current());
        let groups = Groups::new(device.as_ref(), &spec, world)?;
        let runner = Runner {
            device,
            stack: Stack {
                spec,
                place,
                layers,
                caches,
                paging,
                work: Work::default(),
                recorded: Vec::new(),
            },
            groups,
            memory,
        };
        runner.fill_caches()?;
        Ok(runner)
    }

    /// Writes all synthetic keys and values again: steps overwrite some.
    ///
    /// # Errors
    /// A device error.
    pub fn fill_caches(&self) -> Result<()> {
        let s = &self.stack;
        for (index, (layer, cache)) in s.layers.iter().zip(&s.caches).enumerate() {
            cache.fill(
                self.device.as_ref(),
                &s.spec,
                &s.place,
                (index, layer),
                &s.paging,
            )?;
        }
        Ok(())
    }

    /// Memory and shapes for a step; with `bucket`, padded to that many requests of every
    /// DP rank. `None` when no rank has work.
    ///
    /// # Errors
    /// Out of memory, or a step larger than its bucket.
    pub fn prepare(&mut self, step: &StepSpec, bucket: Option<usize>) -> Result<Option<Prepared>> {
        let spec = &self.stack.spec;
        let place = self.stack.place;
        let (attn_tp, q) = (spec.shard_of.attn_tp(), step.q_tokens);
        let most = step.requests.iter().copied().max().unwrap_or(0);
        if most == 0 {
            return Ok(None);
        }
        let one_dp = spec.shard_of.attn_dp == 1;
        let all_to_all = spec.experts == ExpertPath::AllToAll;
        let mode = if bucket.is_some() || one_dp || all_to_all {
            Mode::MaxLen
        } else {
            step.mode
        };
        let slots: Vec<usize> = step
            .requests
            .iter()
            .map(|own| match (bucket, mode) {
                (Some(bucket), _) => padded(bucket, q, attn_tp),
                (None, Mode::MaxLen) => padded(most, q, attn_tp),
                (None, Mode::SumLen | Mode::AllGatherV) => padded(*own, q, attn_tp),
            })
            .collect();
        let rows: Vec<usize> = slots.iter().map(|s| s * q).collect();
        let layout = DpLayout::new(spec.here.tp, spec.here.attn_dp)?;
        let shape = StepShape::new(layout, &rows, None, &|_| mode)?;
        let device = self.device.as_ref();
        let batch = Batch::new(
            device,
            spec,
            &self.stack.layers,
            &self.stack.paging,
            slots[place.dp],
            q,
        )?;
        let own = (step.requests[place.dp], step.context);
        batch.write(device, spec, &place, &self.stack.paging, own)?;
        let layers = &self.stack.layers;
        let paged = (&batch, &self.stack.paging);
        let attention = Attention::new(device, spec, &place, layers, paged)?;
        let prepared = Prepared {
            batch,
            shape,
            attention,
            phase: step.phase,
        };
        self.enter(&prepared)?;
        Ok(Some(prepared))
    }

    /// Makes `prepared` the step that comes next, where several are in use: writes the
    /// rows that absent ranks would send, and where this rank's lie.
    ///
    /// # Errors
    /// A device error.
    pub fn enter(&mut self, prepared: &Prepared) -> Result<()> {
        let rows = StepRows::new(&self.stack.spec, &self.stack.place, &prepared.shape);
        if self.stack.spec.is_shard() {
            self.stack.fill_absent(self.device.as_ref(), rows)?;
        }
        if let Some(exchange) = self.groups.exchange() {
            exchange.write_places(self.device.as_ref(), &prepared.shape)?;
        }
        Ok(())
    }

    /// Enqueues one step.
    ///
    /// # Errors
    /// Errors of device and communicators.
    pub fn enqueue(&mut self, prepared: &Prepared, marks: &mut dyn Marks) -> Result<()> {
        let mut step = Step {
            device: self.device.as_ref(),
            groups: &mut self.groups,
            batch: &prepared.batch,
            shape: &prepared.shape,
            attention: &prepared.attention,
            phase: prepared.phase,
        };
        self.stack.step(&mut step, marks)
    }

    /// Runs `work` on fresh caches and compares this step's result with the float64
    /// reference, on rank 0. All ranks call this; rank 0 gets the distance.
    ///
    /// # Errors
    /// [`Error::Wrong`] for a wrong choice of experts or a result that is no number;
    /// errors of `work`.
    pub fn compare(
        &mut self,
        control: &mut CpuCommunicator,
        step: &StepSpec,
        prepared: &Prepared,
        work: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<Option<Distance>> {
        if self.stack.spec.is_shard() {
            return Err(Error::Unusable(
                "a share of a larger layout has no reference: the ranks that are not there would change the result; check the layout at hand without --as-shard-of".into(),
            ));
        }
        self.fill_caches()?;
        work(self)?;
        let rows = StepRows::new(&self.stack.spec, &self.stack.place, &prepared.shape);
        let output = self.stack.output(self.device.as_ref(), rows.local)?;
        let mine = self.device.read(&output)?;
        let input = self.device.read(&prepared.batch.input.all())?;
        let outputs = control.all_gather_bytes(&mine)?;
        let inputs = control.all_gather_bytes(&input)?;
        let mut choices = Vec::new();
        for layer in 0..self.stack.layers.len() {
            choices.push(control.all_gather_bytes(&self.choices(layer, prepared)?)?);
        }
        let blocks: Vec<BlockShape> = self.stack.layers.iter().map(|l| l.block).collect();
        let found = Found {
            blocks: &blocks,
            outputs: &outputs,
            inputs: &inputs,
            choices: &choices,
        };
        let spec = &self.stack.spec;
        while_first_rank_works(control, || found.distance(spec, step))?.transpose()
    }

    /// This rank's rows of a layer's choices, as bytes of i32.
    fn choices(&self, index: usize, prepared: &Prepared) -> Result<Vec<u8>> {
        let (s, layer) = (&self.stack, &self.stack.layers[index]);
        let (BlockShape::Moe { top_k, .. }, Some(kept)) = (layer.block, s.recorded.get(index))
        else {
            return Ok(Vec::new());
        };
        let rows = StepRows::new(&s.spec, &s.place, &prepared.shape);
        let (first, count) = match Path::of(&s.spec, false) {
            Path::Reduce(_) => (0, rows.local),
            Path::Gather => (prepared.shape.offsets[s.place.dp], rows.local),
            Path::AllToAll => (0, rows.local / s.spec.shard_of.attn_tp()),
        };
        self.device
            .read(&kept.view(first * top_k * 4, count * top_k * 4)?)
    }

    /// Keeps the choices of experts from now on, for a check.
    ///
    /// # Errors
    /// Out of memory.
    pub fn record(&mut self, rows: usize) -> Result<()> {
        let mut recorded: Vec<Buffer> = Vec::new();
        for layer in &self.stack.layers {
            let bytes = match layer.block {
                BlockShape::Moe { top_k, .. } => rows * top_k * 4,
                BlockShape::Dense { .. } => 0,
            };
            recorded.push(self.device.alloc("recorded choices", bytes)?);
        }
        self.stack.recorded = recorded;
        Ok(())
    }
}

/// Input columns of the widest product.
fn widest_input(spec: &StackSpec, layers: &[Layer]) -> usize {
    let mut widest = spec.hidden;
    for layer in layers {
        widest = widest.max(layer.mixer.value_columns());
        widest = widest.max(layer.mixer.down_columns());
        widest = widest.max(match layer.block {
            BlockShape::Dense { columns, .. } => columns,
            BlockShape::Moe {
                columns, shared, ..
            } => columns.max(shared),
        });
    }
    widest
}
