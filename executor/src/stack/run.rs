//! One step through the layers. Everything is enqueued in order and nothing waits, so
//! that the same code runs eagerly and inside a capture.

use super::attend::{Attention, attention_op};
use super::batch::{Batch, Cache, Paging};
use super::compute::Compute;
use super::groups::Groups;
use super::memory::Work;
use super::op::Op;
use super::place::Place;
use super::spec::{Phase, StackSpec};
use super::weights::Layer;
use crate::attention;
use crate::gather::StepShape;
use crate::{Buffer, Error, Result, View};

/// Told which kind of work comes next.
pub trait Marks {
    /// From here on the work is `op`.
    ///
    /// # Errors
    /// A device error.
    fn mark(&mut self, op: Op) -> Result<()>;
}

/// Nobody wants to know.
impl Marks for () {
    fn mark(&mut self, _: Op) -> Result<()> {
        Ok(())
    }
}

/// A rank's stack.
pub struct Stack {
    /// What it is.
    pub spec: StackSpec,
    /// Whose share it is.
    pub place: Place,
    /// Layers, first to last.
    pub layers: Vec<Layer>,
    /// Their caches.
    pub caches: Vec<Cache>,
    /// Where tokens lie in them.
    pub paging: Paging,
    /// Working memory.
    pub work: Work,
    /// Where each layer's choices of experts are kept for a check; empty for none.
    pub recorded: Vec<Buffer>,
}

/// One step of a stack.
pub struct Step<'a> {
    /// Memory and operations.
    pub device: &'a dyn Compute,
    /// The groups.
    pub groups: &'a mut Groups,
    /// Requests.
    pub batch: &'a Batch,
    /// Rows of all DP ranks at hand.
    pub shape: &'a StepShape,
    /// Plans and memory of attention.
    pub attention: &'a Attention,
    /// Phase.
    pub phase: Phase,
}

/// Rows of a step on this rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepRows {
    /// This rank's, padding included.
    pub local: usize,
    /// Those of all DP ranks at hand.
    pub gathered: usize,
    /// Those of all DP ranks of the layout whose shapes are run; the ones that nobody at
    /// hand brings are synthetic.
    pub all: usize,
}

impl StepRows {
    /// Rows of the rank at `place`.
    #[must_use]
    pub fn new(spec: &StackSpec, place: &Place, shape: &StepShape) -> Self {
        StepRows {
            local: shape.local[place.dp],
            gathered: shape.global,
            all: shape.global * spec.shard_of.attn_dp / spec.here.attn_dp.max(1),
        }
    }
}

/// A read-only look at what a step of one layer uses.
pub(super) struct At<'a> {
    pub(super) device: &'a dyn Compute,
    pub(super) spec: &'a StackSpec,
    pub(super) place: &'a Place,
    pub(super) rows: StepRows,
    pub(super) recorded: Option<&'a Buffer>,
}

impl Stack {
    /// Runs one step from the batch's input rows. The result is [`Stack::output`].
    ///
    /// # Errors
    /// Errors of device and communicators.
    pub fn step(&mut self, step: &mut Step<'_>, marks: &mut dyn Marks) -> Result<()> {
        let rows = StepRows::new(&self.spec, &self.place, step.shape);
        if rows.local != step.batch.rows() {
            return Err(Error::Arguments {
                op: "stack step",
                why: format!(
                    "a batch of {} rows in a step of {}",
                    step.batch.rows(),
                    rows.local
                ),
            });
        }
        let hidden = self.spec.hidden * 2;
        marks.mark(Op::Elementwise)?;
        let residual = self
            .work
            .get(step.device, "residual", rows.local * hidden)?;
        step.device.copy(&residual, &step.batch.input.all())?;
        marks.mark(attention_op(step.phase))?;
        step.attention.plan(step.device)?;
        let mut delta = None;
        for index in 0..self.layers.len() {
            let (layer, cache) = (&self.layers[index], &self.caches[index]);
            let at = At {
                device: step.device,
                spec: &self.spec,
                place: &self.place,
                rows,
                recorded: self.recorded.get(index),
            };
            let work = &mut self.work;
            let mixed = at.mixer(step, work, layer, cache, (&residual, delta.as_ref()), marks)?;
            delta = Some(at.block(step, work, layer, (&residual, &mixed), marks)?);
        }
        marks.mark(Op::Elementwise)?;
        match delta {
            Some(delta) => step.device.add_bf16(&residual, &delta),
            None => Ok(()),
        }
    }

    /// Bytes of the largest message that a rank sends another around attention, for steps
    /// of so many local rows, where ranks share a cache.
    #[must_use]
    pub fn dcp_message(&self, rows: usize) -> usize {
        self.layers
            .iter()
            .map(|l| {
                let rows = rows * l.mixer.heads();
                attention::message_bytes(rows, l.mixer.qk_dim(), l.mixer.out_dim())
            })
            .max()
            .unwrap_or(0)
    }

    /// The residual stream after a step of `rows` local rows.
    ///
    /// # Errors
    /// Out of memory.
    pub fn output(&mut self, device: &dyn Compute, rows: usize) -> Result<View> {
        self.work
            .get(device, "residual", rows * self.spec.hidden * 2)
    }
}
