//! Gather, a shared layer, combine.

use super::{DpLayout, Mode, StepShape};
use crate::device::POISON;
use crate::{Buffer, Communicator, DType, Device, Error, ReduceOp, Result, View};

/// A rank's hidden states between layers.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `[rows, row bytes]`.
    pub hidden: Buffer,
    /// Rows that count.
    pub rows: usize,
}

/// The communicators and sizes of the exchange, on one rank.
pub struct DpExchange {
    layout: DpLayout,
    tp: Box<dyn Communicator>,
    /// Only where attention TP is above 1.
    attn_tp: Option<Box<dyn Communicator>>,
    row: usize,
    /// Attention outputs are partial sums over the attention-TP ranks, still to be added.
    partial: bool,
    /// Where this rank's rows go: `{offset, count}`.
    place: Buffer,
    /// Where they come back from. Differs from `place` on the attention-TP ranks that
    /// bring none because the first of them brings all.
    own: Buffer,
}

/// The batch while it is padded for a step. Dropped without [`Padded::finish`], as an
/// error does, it puts the batch back as it was.
struct Padded<'a> {
    batch: &'a mut Batch,
    before: Option<Batch>,
}

impl<'a> Padded<'a> {
    /// Grows the batch to `rows` rows. The padding is poisoned: nothing may depend on it.
    fn new(device: &dyn Device, batch: &'a mut Batch, rows: usize, row: usize) -> Result<Self> {
        let before = batch.clone();
        if rows == before.rows && batch.hidden.len() == rows * row {
            // No padding; still a buffer of its own, since the step overwrites it and
            // a failed step must not be seen.
            let copy = device.alloc("hidden states of the step", rows * row)?;
            device.copy(&copy.all(), &before.hidden.all())?;
            batch.hidden = copy;
        } else {
            let padded = device.alloc("padded hidden states", rows * row)?;
            let real = before.rows.min(rows) * row;
            device.copy(&padded.view(0, real)?, &before.hidden.view(0, real)?)?;
            device.fill(&padded.view(real, rows * row - real)?, POISON)?;
            batch.hidden = padded;
            batch.rows = rows;
        }
        Ok(Padded {
            batch,
            before: Some(before),
        })
    }

    /// The step succeeded: keeps its output, trimmed to the real rows.
    fn finish(mut self) {
        if let Some(before) = self.before.take() {
            self.batch.rows = before.rows;
        }
    }
}

impl Drop for Padded<'_> {
    fn drop(&mut self) {
        if let Some(before) = self.before.take() {
            *self.batch = before;
        }
    }
}

impl DpExchange {
    /// An exchange over `tp`, which has `layout.tp` ranks. `row` is the bytes of a row
    /// of bf16 hidden states, a multiple of 16. Collective: splits off the attention-TP
    /// groups.
    ///
    /// # Errors
    /// [`Error::Arguments`] for sizes that do not fit; errors of the communicator.
    pub fn new(
        device: &dyn Device,
        mut tp: Box<dyn Communicator>,
        layout: DpLayout,
        row: usize,
        partial: bool,
    ) -> Result<Self> {
        if tp.size() != layout.tp {
            return Err(Error::Arguments {
                op: "DP gather",
                why: format!(
                    "a layout of {} ranks over a group of {}",
                    layout.tp,
                    tp.size()
                ),
            });
        }
        let rank = tp.rank();
        let attn_tp = match layout.attn_tp() {
            1 => None,
            _ => tp.split(Some(layout.dp_rank(rank) as u32), rank as u32)?,
        };
        let place = device.alloc("gather place", 16)?;
        let own = device.alloc("scatter place", 16)?;
        Ok(DpExchange {
            layout,
            tp,
            attn_tp,
            row,
            partial,
            place,
            own,
        })
    }

    /// This rank's DP rank.
    #[must_use]
    pub fn dp_rank(&self) -> usize {
        self.layout.dp_rank(self.tp.rank())
    }

    /// The group of all ranks.
    pub fn tp(&mut self) -> &mut dyn Communicator {
        self.tp.as_mut()
    }

    /// Writes where this rank's rows are in device memory: before an eager step, or
    /// between replays of a captured one.
    ///
    /// # Errors
    /// A device error.
    pub fn write_places(&self, device: &dyn Device, shape: &StepShape) -> Result<()> {
        let dp = self.dp_rank();
        let (offset, rows) = (shape.offsets[dp] as u64, shape.local[dp] as u64);
        // Rows that are already summed are brought by one rank of the attention-TP group.
        let brings = self.partial || self.layout.attn_tp_rank(self.tp.rank()) == 0;
        let brought = if brings { rows } else { 0 };
        device.write(&self.place.all(), bytemuck::cast_slice(&[offset, brought]))?;
        device.write(&self.own.all(), bytemuck::cast_slice(&[offset, rows]))
    }

    /// Rows of all ranks into `global` (`[shape.global, row]`) from this rank's `local`
    /// (`[shape.local, row]`). Enqueued only: can be captured. `local` is scratch after.
    ///
    /// # Errors
    /// [`Error::Arguments`] for misfit sizes; errors of communicator and device.
    pub fn gather(
        &mut self,
        device: &dyn Device,
        shape: &StepShape,
        local: &View,
        global: &View,
    ) -> Result<()> {
        let (rank, row) = (self.tp.rank(), self.row);
        match shape.mode {
            Mode::MaxLen => match &mut self.attn_tp {
                None => {
                    let own = global.sub(shape.offsets[rank] * row, local.len())?;
                    device.copy(&own, local)?;
                    self.tp.all_gather(&own, global)
                }
                Some(attn_tp) => {
                    if !self.partial && attn_tp.rank() != 0 {
                        device.fill(local, 0)?;
                    }
                    let part = global.len() / self.layout.tp;
                    let own = global.sub(rank * part, part)?;
                    attn_tp.reduce_scatter(local, &own, DType::Bf16, ReduceOp::Sum)?;
                    self.tp.all_gather(&own, global)
                }
            },
            Mode::SumLen => {
                device.place_rows(global, local, &self.place.all(), row)?;
                self.tp
                    .all_reduce(global, global, DType::Bf16, ReduceOp::Sum)
            }
            Mode::AllGatherV => {
                let lens: Vec<usize> = shape.local.iter().map(|n| n * row).collect();
                self.tp.all_gather_v(local, global, &lens)
            }
        }
    }

    /// The layer's partial results in `global`, summed over all ranks; this rank's rows
    /// into `local`. Enqueued only; `global` is scratch after.
    ///
    /// # Errors
    /// As [`gather`](Self::gather).
    pub fn combine(
        &mut self,
        device: &dyn Device,
        shape: &StepShape,
        global: &View,
        local: &View,
    ) -> Result<()> {
        let (rank, row) = (self.tp.rank(), self.row);
        match shape.mode {
            Mode::MaxLen => {
                let part = global.len() / self.layout.tp;
                let own = global.sub(rank * part, part)?;
                self.tp
                    .reduce_scatter(global, &own, DType::Bf16, ReduceOp::Sum)?;
                match &mut self.attn_tp {
                    None => device.copy(local, &own),
                    Some(attn_tp) => attn_tp.all_gather(&own, local),
                }
            }
            Mode::SumLen | Mode::AllGatherV => {
                self.tp
                    .all_reduce(global, global, DType::Bf16, ReduceOp::Sum)?;
                device.take_rows(local, global, &self.own.all(), row)
            }
        }
    }

    /// One whole step: pad, gather, `layer` on the gathered rows, combine, trim. The
    /// gathered buffer exists only while the step needs it, and not at all in a step
    /// without work, which returns `false`. After an error the batch is as before.
    ///
    /// # Errors
    /// Errors of communicator, device and layer.
    pub fn step(
        &mut self,
        device: &dyn Device,
        shape: &StepShape,
        batch: &mut Batch,
        layer: impl FnOnce(&dyn Device, &View) -> Result<()>,
    ) -> Result<bool> {
        if !shape.has_work() {
            return Ok(false);
        }
        let dp = self.dp_rank();
        if batch.rows != shape.tokens[dp] {
            return Err(Error::Arguments {
                op: "DP gather",
                why: format!(
                    "the batch has {} rows, the step says {} for DP rank {dp}",
                    batch.rows, shape.tokens[dp]
                ),
            });
        }
        let padded = Padded::new(device, batch, shape.local[dp], self.row)?;
        let global = device.alloc("gathered hidden states", shape.global * self.row)?;
        device.fill(&global.all(), POISON)?;
        self.write_places(device, shape)?;
        let local = padded.batch.hidden.all();
        self.gather(device, shape, &local, &global.all())?;
        layer(device, &global.all())?;
        self.combine(device, shape, &global.all(), &local)?;
        self.tp.wait()?;
        padded.finish();
        Ok(true)
    }
}
