//! DP gather and scatter: checked against the exact result, then timed in every mode.

mod replay;

pub use replay::ReplaySample;

use std::cell::RefCell;

use serde::{Deserialize, Serialize};

use super::Context;
use crate::bench::{Launch, Stats, Timer};
use crate::cuda::Gpu;
use crate::gather::{Batch, DpExchange, DpLayout, Mode, StepShape};
use crate::nccl::NcclRegistrar;
use crate::symmetric::{Registration, WindowPool};
use crate::{Buffer, Communicator, DType, Device, Error, Result, View};

/// One step to run: what each DP rank brings.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GatherStep {
    /// Requests of each DP rank.
    pub requests: Vec<usize>,
    /// Rows that need logits, of each DP rank; empty for none.
    pub logprob_rows: Vec<usize>,
    /// What the planner's rule picked for these counts.
    pub rule: Mode,
}

/// What to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GatherJob {
    /// Attention DP ranks.
    pub attn_dp: usize,
    /// Elements of a hidden-state row (bf16).
    pub hidden: usize,
    /// Speculative steps; a request has `steps + 1` rows.
    pub speculative_steps: usize,
    /// Attention outputs are partial sums over attention TP.
    pub partial: bool,
    /// The steps.
    pub steps: Vec<GatherStep>,
    /// Modes to time, beside what the rule picks.
    pub modes: Vec<Mode>,
    /// Launch modes, on GPUs.
    pub launches: Vec<Launch>,
    /// Registrations of the gathered buffer (and of the local one where ranks bring
    /// equally much), on GPUs.
    pub registrations: Vec<Registration>,
    /// Repetitions.
    pub timer: Timer,
}

/// Registered buffers that every timed step works in.
struct Windows {
    local: Buffer,
    global: Buffer,
    _pool: WindowPool<NcclRegistrar>,
}

/// What is timed, and how.
#[derive(Clone, Copy)]
struct Timed<'a> {
    shape: &'a StepShape,
    picked: bool,
    launch: Launch,
    windows: Option<&'a Windows>,
}

/// One timed step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GatherSample {
    /// Rows of each DP rank.
    pub tokens: Vec<usize>,
    /// Mode.
    pub mode: Mode,
    /// The rule picked this mode.
    pub picked: bool,
    /// Launch mode.
    pub launch: Launch,
    /// Registration of the gathered buffer.
    pub registration: Registration,
    /// Rows gathered.
    pub global_rows: usize,
    /// Gather and combine.
    pub time: Stats,
    /// Gather only.
    pub gather: Stats,
    /// Every row was compared with the exact result.
    pub checked: bool,
}

/// Memory of one step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MemorySample {
    /// Rows of each DP rank.
    pub tokens: Vec<usize>,
    /// "eager", "eager, logits" or "graph".
    pub what: String,
    /// Mode.
    pub mode: Mode,
    /// Bytes of the gathered buffer, by its shape.
    pub gathered_bytes: u64,
    /// Most bytes that the step held above what was held before, as the device counted.
    pub peak_bytes: u64,
    /// Bytes still held after the step.
    pub kept_bytes: u64,
}

/// What a run found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GatherResult {
    /// GPU name, or "cpu".
    pub device: String,
    /// "cpu-process" or "nccl".
    pub implementation: String,
    /// Layout.
    pub layout: DpLayout,
    /// Bytes of a row.
    pub row_bytes: usize,
    /// Times.
    pub samples: Vec<GatherSample>,
    /// Memory.
    pub memory: Vec<MemorySample>,
    /// All steps through one sum_len graph.
    pub replays: Vec<ReplaySample>,
    /// Steps that no rank entered, because none had work.
    pub skipped: usize,
}

/// Which of three rows a DP rank's row is: another than its neighbours, also past a
/// multiple of three, and another than the same row of the next rank.
fn phase(dp: usize, row: usize) -> usize {
    (dp + row + row / 3) % 3
}

/// Where two images of bf16 rows differ, by value: a sum may give the other zero.
fn difference(got: &[u8], want: &[u8]) -> Option<(usize, f64, f64)> {
    if got == want {
        return None;
    }
    let pairs = DType::Bf16
        .decode(got)
        .into_iter()
        .zip(DType::Bf16.decode(want));
    pairs
        .enumerate()
        .find(|(_, (a, b))| a != b)
        .map(|(at, (a, b))| (at, a, b))
}

impl GatherJob {
    /// Bytes of a rank's rows, and of all ranks' rows padded to the longest, in the largest step.
    pub(super) fn least_bytes(&self) -> u64 {
        let rows = self.steps.iter().flat_map(|step| &step.requests).max();
        let rows = *rows.unwrap_or(&0) as u64 * (self.speculative_steps as u64 + 1);
        rows.saturating_mul(self.attn_dp as u64 + 1)
            .saturating_mul(self.row() as u64)
    }

    fn row(&self) -> usize {
        self.hidden * DType::Bf16.size()
    }

    /// A DP rank's hidden states, times `factor`: elements 0, 1 and 2, so that sums stay
    /// exact in bf16.
    fn rows_of(&self, dp: usize, rows: usize, factor: i64) -> Vec<u8> {
        let kinds = [0, 1, 2].map(|phase| {
            DType::Bf16
                .encode((0..self.hidden).map(|column| ((phase + column) % 3) as i64 * factor))
        });
        let mut image = Vec::with_capacity(rows * self.row());
        for row in 0..rows {
            image.extend_from_slice(&kinds[phase(dp, row)]);
        }
        image
    }

    /// Runs on this rank.
    ///
    /// # Errors
    /// [`Error::Wrong`] for a row that differs; any failure.
    pub fn run(&self, context: &mut Context) -> Result<GatherResult> {
        let layout = DpLayout::new(context.identity.world, self.attn_dp)?;
        let rank = context.identity.rank;
        let name = match &context.gpu {
            Some(gpu) => gpu.name()?,
            None => "cpu".into(),
        };
        let no_group = || Error::Mismatch("no group for the exchange".into());
        let (tp, registrar): (Box<dyn Communicator>, _) = match &mut context.nccl {
            Some(nccl) => {
                let group = nccl
                    .split_nccl(Some(0), rank as u32)?
                    .ok_or_else(no_group)?;
                let registrar = NcclRegistrar::new(&group)?;
                (Box::new(group), Some(registrar))
            }
            None => (
                context
                    .control
                    .split(Some(0), rank as u32)?
                    .ok_or_else(no_group)?,
                None,
            ),
        };
        let implementation = tp.implementation().to_owned();
        let mut exchange = DpExchange::new(
            context.device.as_ref(),
            tp,
            layout,
            self.row(),
            self.partial,
        )?;
        // After the exchange, so that windows go before their communicator.
        let windows = self.windows(context, layout, registrar)?;
        let mut result = GatherResult {
            device: name,
            implementation,
            layout,
            row_bytes: self.row(),
            samples: Vec::new(),
            memory: Vec::new(),
            replays: Vec::new(),
            skipped: 0,
        };
        for step in &self.steps {
            self.step(context, &mut exchange, step, windows.as_ref(), &mut result)?;
        }
        result.replays = self.replays(context, &mut exchange, layout)?;
        Ok(result)
    }

    /// What a DP rank's rows are after gather, [`layer`](Self::layer) and combine.
    fn after(&self, layout: DpLayout, dp: usize, rows: usize) -> Vec<u8> {
        let summed = if self.partial {
            layout.attn_tp() as i64
        } else {
            1
        };
        self.rows_of(dp, rows, summed * (layout.tp as i64 + 1))
    }

    fn tokens(&self, step: &GatherStep) -> Vec<usize> {
        step.requests
            .iter()
            .map(|r| r * (self.speculative_steps + 1))
            .collect()
    }

    /// Symmetric buffers for the largest step, where they are asked for.
    fn windows(
        &self,
        context: &mut Context,
        layout: DpLayout,
        registrar: Option<NcclRegistrar>,
    ) -> Result<Option<Windows>> {
        let Some(registrar) = registrar else {
            return Ok(None);
        };
        if !self.registrations.contains(&Registration::Symmetric) {
            return Ok(None);
        }
        let longest = self
            .steps
            .iter()
            .flat_map(|s| self.tokens(s))
            .max()
            .unwrap_or(0)
            .next_multiple_of(layout.attn_tp());
        let mut pool = WindowPool::new(registrar);
        let bytes = (longest * self.row()).max(16);
        let local = pool.allocate(
            &mut context.control,
            "local rows",
            bytes,
            Registration::Symmetric,
        )?;
        let global = pool.allocate(
            &mut context.control,
            "gathered rows",
            bytes * layout.attn_dp,
            Registration::Symmetric,
        )?;
        Ok(Some(Windows {
            local,
            global,
            _pool: pool,
        }))
    }

    fn step(
        &self,
        context: &mut Context,
        exchange: &mut DpExchange,
        step: &GatherStep,
        windows: Option<&Windows>,
        result: &mut GatherResult,
    ) -> Result<()> {
        let layout = result.layout;
        let tokens = self.tokens(step);
        let mut modes = self.modes.clone();
        if !modes.contains(&step.rule) {
            modes.push(step.rule);
        }
        modes.retain(|m| *m != Mode::AllGatherV || layout.attn_tp() == 1);
        for mode in modes {
            let shape = StepShape::new(layout, &tokens, None, &|_| mode)?;
            let Some(memory) = self.checked_step(context, exchange, &shape, "eager")? else {
                result.skipped += 1;
                // Every mode would be skipped alike.
                break;
            };
            result.memory.push(memory);
            if !step.logprob_rows.is_empty() {
                let logits = StepShape::new(layout, &step.logprob_rows, None, &|_| mode)?;
                result.memory.extend(self.checked_step(
                    context,
                    exchange,
                    &logits,
                    "eager, logits",
                )?);
            }
            let launches = if context.gpu.is_some() {
                self.launches.clone()
            } else {
                vec![Launch::Stream]
            };
            let how = Timed {
                shape: &shape,
                picked: mode == step.rule,
                launch: Launch::Stream,
                windows: None,
            };
            for launch in launches {
                for &registration in &self.registrations {
                    let windows = match registration {
                        Registration::Symmetric => windows,
                        _ => None,
                    };
                    if registration != Registration::None && windows.is_none() {
                        continue;
                    }
                    let sample = self.timed(
                        context,
                        exchange,
                        Timed {
                            launch,
                            windows,
                            ..how
                        },
                        result,
                    )?;
                    result.samples.push(sample);
                }
            }
        }
        Ok(())
    }

    /// The shared layer: this rank's part of it. The parts add up to `tp + 1` times.
    fn layer(rank: usize) -> impl Fn(&dyn Device, &View) -> Result<()> {
        move |device, global| device.scale_bf16(global, global, if rank == 0 { 2.0 } else { 1.0 })
    }

    fn checked_step(
        &self,
        context: &Context,
        exchange: &mut DpExchange,
        shape: &StepShape,
        what: &str,
    ) -> Result<Option<MemorySample>> {
        let device = context.device.as_ref();
        let (rank, row, dp) = (context.identity.rank, self.row(), exchange.dp_rank());
        let rows = shape.tokens[dp];
        let hidden = device.alloc("hidden states", rows * row)?;
        device.write(&hidden.all(), &self.rows_of(dp, rows, 1))?;
        let mut batch = Batch { hidden, rows };
        let before = device.meter().current();
        device.meter().reset_peak();
        if !exchange.step(device, shape, &mut batch, Self::layer(rank))? {
            return Ok(None);
        }
        let peak = device.meter().peak() - before;
        let got = device.read(&batch.hidden.view(0, rows * row)?)?;
        let want = self.after(shape.layout, dp, rows);
        if let Some((at, got, want)) = difference(&got, &want) {
            return Err(Error::Wrong(format!(
                "DP gather {:?} of {:?} rows on rank {rank}: row {} column {} is {got}, it must be {want}",
                shape.mode,
                shape.tokens,
                at / self.hidden,
                at % self.hidden
            )));
        }
        drop(batch);
        Ok(Some(MemorySample {
            tokens: shape.tokens.clone(),
            what: what.to_owned(),
            mode: shape.mode,
            gathered_bytes: (shape.global * row) as u64,
            peak_bytes: peak,
            kept_bytes: device.meter().current().saturating_sub(before),
        }))
    }

    fn timed(
        &self,
        context: &mut Context,
        exchange: &mut DpExchange,
        how: Timed<'_>,
        result: &mut GatherResult,
    ) -> Result<GatherSample> {
        let Timed { shape, launch, .. } = how;
        let (row, rank) = (self.row(), context.identity.rank);
        let dp = exchange.dp_rank();
        let device = context.device.as_ref();
        let before = device.meter().current();
        device.meter().reset_peak();
        let (local_bytes, global_bytes) = (shape.local[dp] * row, shape.global * row);
        // Only max_len brings equally much from every rank, as a window must be.
        let local = match how.windows {
            Some(w) if shape.mode == Mode::MaxLen => w.local.view(0, local_bytes)?,
            _ => device.alloc("padded hidden states", local_bytes)?.all(),
        };
        let global = match how.windows {
            Some(w) => w.global.view(0, global_bytes)?,
            None => device.alloc("gathered hidden states", global_bytes)?.all(),
        };
        device.fill(&local, 0)?;
        device.fill(&global, 0)?;
        exchange.write_places(device, shape)?;
        let (local_view, global_view) = (local, global);
        let exchange = RefCell::new(exchange);
        let gpu = context.gpu.as_ref();
        let (gather, _) = self.timer.time(
            &mut context.control,
            launch,
            gpu,
            || {
                exchange
                    .borrow_mut()
                    .gather(device, shape, &local_view, &global_view)
            },
            || exchange.borrow_mut().tp().wait(),
        )?;
        let (time, _) = self.timer.time(
            &mut context.control,
            launch,
            gpu,
            || {
                let mut exchange = exchange.borrow_mut();
                exchange.gather(device, shape, &local_view, &global_view)?;
                exchange.combine(device, shape, &global_view, &local_view)
            },
            || exchange.borrow_mut().tp().wait(),
        )?;
        if let (Launch::Graph, Some(gpu)) = (launch, gpu) {
            let views = (&local_view, &global_view);
            self.check_replays(device, gpu, rank, &exchange, shape, views)?;
            if how.windows.is_none() {
                result.memory.push(MemorySample {
                    tokens: shape.tokens.clone(),
                    what: "graph".into(),
                    mode: shape.mode,
                    gathered_bytes: (shape.global * row) as u64,
                    peak_bytes: device.meter().peak() - before,
                    // A captured graph keeps its buffers for as long as it may be replayed.
                    kept_bytes: device.meter().current() - before,
                });
            }
        }
        Ok(GatherSample {
            tokens: shape.tokens.clone(),
            mode: shape.mode,
            picked: how.picked,
            launch,
            registration: if how.windows.is_some() {
                Registration::Symmetric
            } else {
                Registration::None
            },
            global_rows: shape.global,
            time,
            gather,
            checked: true,
        })
    }

    /// The captured step on real rows, replayed twice: what replays must be right.
    fn check_replays(
        &self,
        device: &dyn Device,
        gpu: &Gpu,
        rank: usize,
        exchange: &RefCell<&mut DpExchange>,
        shape: &StepShape,
        (local, global): (&View, &View),
    ) -> Result<()> {
        let layer = Self::layer(rank);
        let graph = gpu.capture(|| {
            let mut exchange = exchange.borrow_mut();
            exchange.gather(device, shape, local, global)?;
            layer(device, global)?;
            exchange.combine(device, shape, global, local)
        })?;
        let dp = exchange.borrow().dp_rank();
        let (row, rows) = (self.row(), shape.tokens[dp]);
        let want = self.after(shape.layout, dp, rows);
        let own = local.sub(0, rows * row)?;
        for _ in 0..2 {
            device.fill(local, crate::device::POISON)?;
            device.write(&own, &self.rows_of(dp, rows, 1))?;
            device.fill(&local.sub(rows * row, local.len() - rows * row)?, 0)?;
            graph.launch()?;
            exchange.borrow_mut().tp().wait()?;
            if difference(&device.read(&own)?, &want).is_some() {
                return Err(Error::Wrong(format!(
                    "DP gather {:?} of {:?} rows replayed from a graph on rank {rank}",
                    shape.mode, shape.tokens
                )));
            }
        }
        Ok(())
    }
}
