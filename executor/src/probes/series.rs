//! Repeats of one operation beside repeats of an anchor.

use std::time::Instant;

use parplan_profiles::calibration::{Experiment, LaunchMode};
use serde::{Deserialize, Serialize};

use crate::bench::{Launches, mean_over_ranks, start_together};
use crate::cuda::Graph;
use crate::jobs::Context;
use crate::{Error, Result};

/// How much to measure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Effort {
    /// Repeats of an experiment.
    pub repeats: usize,
    /// Time of one repeat, milliseconds: operations are put back to back to fill it.
    pub repeat_ms: f64,
    /// Longest warm-up, milliseconds.
    pub warmup_ms: f64,
}

impl Effort {
    /// For GPUs: clocks settle, and a repeat is long against the host's jitter.
    pub const GPU: Effort = Effort {
        repeats: 11,
        repeat_ms: 4.0,
        warmup_ms: 60.0,
    };
    /// For the CPU, whose operations are slower and whose clock is shared with others.
    pub const CPU: Effort = Effort {
        repeats: 11,
        repeat_ms: 8.0,
        warmup_ms: 40.0,
    };
}

/// An operation that can be put on the device again and again; the number rotates its inputs.
pub(super) type Enqueue = Box<dyn FnMut(&mut Context, usize) -> Result<()>>;

/// Work to be timed.
pub(super) struct Work {
    /// Puts one operation on the device.
    pub enqueue: Enqueue,
    /// Operations that must be back to back; 1 unless the experiment says more.
    pub at_least: usize,
}

/// A round that says how long it took, microseconds.
pub(super) type Round = Box<dyn FnMut(&mut Context, usize) -> Result<f64>>;

/// Operations of one captured graph.
const GRAPH_NODES: usize = 50;
/// Operations of one repeat, at most.
const MOST: usize = 4000;
/// Two batches of warm-up that agree this well are stable.
const STABLE: f64 = 0.02;

/// Waits for all that was enqueued, peers watched.
pub(super) fn finish(context: &mut Context) -> Result<()> {
    use crate::Communicator;
    match &mut context.nccl {
        Some(nccl) => nccl.wait(),
        None => context.device.synchronize(),
    }
}

/// Times `work`: repeats in microseconds of one operation (means over the ranks), and the anchor's.
pub(super) fn run(
    context: &mut Context,
    effort: &Effort,
    experiment: &Experiment,
    mut work: Work,
    anchor: &mut Anchor,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let shared = experiment.ranks > 1;
    let us = warm_up(context, effort, &mut work, shared)?;
    let wanted = (effort.repeat_ms * 1e3 / us.max(0.05)).ceil() as usize;
    let wanted = agreed(context, shared, wanted.clamp(1, MOST))?.max(work.at_least);
    let graph = match (experiment.launch, context.gpu.clone()) {
        (LaunchMode::Graph, Some(gpu)) => {
            let nodes = wanted.min(GRAPH_NODES).max(work.at_least);
            let graph = gpu.capture(|| (0..nodes).try_for_each(|i| (work.enqueue)(context, i)))?;
            graph.launch()?;
            finish(context)?;
            Some((graph, nodes))
        }
        _ => None,
    };
    let mut repeats = Vec::with_capacity(effort.repeats);
    let mut anchors = Vec::with_capacity(effort.repeats);
    let mut turn = 0usize;
    // An operation that is longer than a repeat should be gets fewer of them.
    let long = us / 1e3 / (effort.repeat_ms * 4.0);
    let fewer = (effort.repeats as f64 / long.max(1.0)) as usize;
    let times = agreed(context, shared, fewer.clamp(5, effort.repeats.max(5)))?;
    for _ in 0..times {
        anchors.push(anchor.time(context)?);
        if shared {
            let launches = match graph.is_none() && context.gpu.is_some() {
                true => Launches::OneByOne,
                false => Launches::Few,
            };
            start_together(&mut context.control, launches)?;
        }
        // Untimed: after a wait the first launches find cold caches and sleeping cores.
        once(context, &mut work, graph.as_ref(), &mut turn)?;
        finish(context)?;
        let start = Instant::now();
        let done = match &graph {
            Some((graph, nodes)) => {
                let launches = wanted.div_ceil(*nodes);
                for _ in 0..launches {
                    graph.launch()?;
                }
                launches * nodes
            }
            None => {
                for _ in 0..wanted {
                    (work.enqueue)(context, turn)?;
                    turn = turn.wrapping_add(1);
                }
                wanted
            }
        };
        finish(context)?;
        repeats.push(start.elapsed().as_secs_f64() * 1e6 / done as f64);
    }
    if shared {
        repeats = mean_over_ranks(&mut context.control, &repeats)?;
    }
    Ok((repeats, anchors))
}

/// Rounds that time themselves, warm.
pub(super) fn rounds(
    context: &mut Context,
    effort: &Effort,
    mut round: Round,
) -> Result<(Vec<f64>, Vec<f64>)> {
    const WARMUP: usize = 20;
    /// A median of this many single rounds is one repeat: single ones meet the scheduler.
    const OF: usize = 15;
    for i in 0..WARMUP {
        round(context, i)?;
    }
    let mut repeats = Vec::new();
    for i in 0..effort.repeats.max(3) {
        let mut single = Vec::with_capacity(OF);
        for j in 0..OF {
            single.push(round(context, i * OF + j)?);
        }
        repeats.push(crate::bench::Stats::of(single).median_us);
    }
    Ok((mean_over_ranks(&mut context.control, &repeats)?, Vec::new()))
}

fn once(
    context: &mut Context,
    work: &mut Work,
    graph: Option<&(Graph, usize)>,
    turn: &mut usize,
) -> Result<()> {
    match graph {
        Some((graph, _)) => graph.launch(),
        None => {
            *turn = turn.wrapping_add(1);
            (work.enqueue)(context, *turn)
        }
    }
}

/// Runs batches until two in a row take equally long, or the time is over; the last batch's time of one
/// operation, microseconds.
fn warm_up(context: &mut Context, effort: &Effort, work: &mut Work, shared: bool) -> Result<f64> {
    (work.enqueue)(context, 0)?;
    finish(context)?;
    let begin = Instant::now();
    (work.enqueue)(context, 1)?;
    finish(context)?;
    let single = begin.elapsed().as_secs_f64() * 1e3;
    let batch = ((effort.repeat_ms / single.max(1e-3)) as usize).clamp(1, MOST / 4);
    let batch = agreed(context, shared, batch)?;
    let mut last = f64::INFINITY;
    loop {
        let start = Instant::now();
        for i in 0..batch {
            (work.enqueue)(context, i)?;
        }
        finish(context)?;
        let us = start.elapsed().as_secs_f64() * 1e6 / batch as f64;
        let stable = (us / last - 1.0).abs() < STABLE;
        last = us;
        let enough = stable || begin.elapsed().as_secs_f64() * 1e3 > effort.warmup_ms;
        if agreed(context, shared, usize::from(enough))? == 1 {
            return Ok(last);
        }
    }
}

/// Rank 0's number, for all ranks of a shared experiment: they must do the same.
fn agreed(context: &mut Context, shared: bool, mine: usize) -> Result<usize> {
    if !shared {
        return Ok(mine);
    }
    let all = context
        .control
        .all_gather_bytes(&(mine as u64).to_le_bytes())?;
    let first = all
        .first()
        .and_then(|b| b.first_chunk())
        .ok_or_else(|| Error::Mismatch("rank 0 said no number".into()))?;
    Ok(u64::from_le_bytes(*first) as usize)
}

/// One and the same kernel, timed beside everything else.
pub(super) struct Anchor {
    graph: Option<Graph>,
    view: crate::View,
    times: usize,
}

impl Anchor {
    /// A row of bf16 products over a buffer that fits every L2 cache.
    pub fn new(context: &Context) -> Result<Self> {
        let on_gpu = context.gpu.clone();
        let (bytes, times) = match on_gpu {
            Some(_) => (16 << 20, 20),
            None => (32 << 10, 4),
        };
        let view = context.device.alloc("anchor", bytes)?.all();
        context.device.fill(&view, 0)?;
        let graph = match &on_gpu {
            Some(gpu) => {
                use crate::Device;
                gpu.scale_bf16(&view, &view, 1.0)?;
                gpu.wait(None)?;
                let graph =
                    gpu.capture(|| (0..times).try_for_each(|_| gpu.scale_bf16(&view, &view, 1.0)))?;
                graph.launch()?;
                gpu.wait(None)?;
                Some(graph)
            }
            None => None,
        };
        Ok(Anchor { graph, view, times })
    }

    /// Microseconds of one.
    fn time(&mut self, context: &Context) -> Result<f64> {
        let start = Instant::now();
        match &self.graph {
            Some(graph) => {
                graph.launch()?;
                context.device.synchronize()?;
            }
            None => {
                for _ in 0..self.times {
                    context.device.scale_bf16(&self.view, &self.view, 1.0)?;
                }
            }
        }
        Ok(start.elapsed().as_secs_f64() * 1e6 / self.times as f64)
    }
}
