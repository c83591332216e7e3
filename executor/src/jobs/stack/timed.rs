//! How steps are timed: eagerly pass by pass, and replayed from graphs, operation by operation.

use super::super::Context;
use super::{GraphBytes, Part, StackJob, StackResult, slow};
use crate::comm::CpuCommunicator;
use crate::cuda::Graph;
use crate::gather::Mode;
use crate::stack::{
    Breakdown, MarkCount, Op, Phase, Prepared, Quantiles, Runner, StepSpec, Timeline,
};
use crate::{Communicator, Error, Result};

/// The graphs of one bucket.
pub(super) struct Captured {
    pub bucket: usize,
    pub q_tokens: usize,
    pub prepared: Prepared,
    pub plain: Graph,
    pub marked: Graph,
    pub line: Timeline,
}

impl StackJob {
    pub(super) fn eagerly(
        &self,
        context: &mut Context,
        runner: &mut Runner,
        prepared: &Prepared,
    ) -> Result<(Quantiles, Vec<Part>)> {
        let gpu = context.gpu.clone();
        let mut line = match &gpu {
            Some(gpu) => Timeline::events(gpu),
            None => Timeline::host(),
        };
        // The parts are timed in repeats of their own.
        let passes = self.timing.warmup + 2 * self.timing.repeats.max(1);
        let begin = std::time::Instant::now();
        let mut foretold = false;
        let mut foretell = |context: &mut Context| {
            if !std::mem::replace(&mut foretold, true) {
                let pass = begin.elapsed().as_secs_f64();
                slow(context, || {
                    format!(
                        "  a pass takes {pass:.2} s, all {passes} about {:.0} s (--warmup, --repeats; --scale makes the layers smaller)",
                        pass * passes as f64
                    )
                });
            }
        };
        for _ in 0..self.timing.warmup {
            runner.enqueue(prepared, &mut ())?;
            runner.groups.wait()?;
            foretell(context);
        }
        let mut whole = Vec::new();
        for _ in 0..self.timing.repeats.max(1) {
            context.control.barrier()?;
            let us = match &gpu {
                Some(gpu) => {
                    let start = gpu.event()?;
                    runner.enqueue(prepared, &mut ())?;
                    let end = gpu.event()?;
                    runner.groups.wait()?;
                    gpu.wait(None)?;
                    start.micros_until(&end)?
                }
                None => {
                    let start = std::time::Instant::now();
                    runner.enqueue(prepared, &mut ())?;
                    runner.groups.wait()?;
                    start.elapsed().as_secs_f64() * 1e6
                }
            };
            whole.push(us);
            foretell(context);
        }
        let mut parts = Vec::new();
        for _ in 0..self.timing.repeats.max(1) {
            context.control.barrier()?;
            line.restart();
            runner.enqueue(prepared, &mut line)?;
            line.end()?;
            runner.groups.wait()?;
            runner.device.synchronize()?;
            parts.push(line.read(0.0)?);
        }
        over_ranks(&mut context.control, &whole, &parts)
    }

    /// A graph for every bucket and number of new tokens that a decode step needs.
    pub(super) fn capture(
        &self,
        context: &Context,
        runner: &mut Runner,
        result: &mut StackResult,
    ) -> Result<Vec<Captured>> {
        let Some(gpu) = &context.gpu else {
            return Ok(Vec::new());
        };
        let mut wanted: Vec<(usize, usize)> = self
            .steps
            .iter()
            .filter_map(|s| Some((self.bucket(s)?, s.q_tokens)))
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        let mut graphs = Vec::new();
        // The largest first, as for the eager steps.
        for (bucket, q_tokens) in wanted.into_iter().rev() {
            let step = StepSpec {
                requests: vec![bucket; self.spec.here.attn_dp],
                q_tokens,
                context: self.steps.iter().map(|s| s.context).min().unwrap_or(0),
                phase: Phase::Decode,
                mode: Mode::MaxLen,
            };
            let before = runner.device.meter().current();
            let Some(prepared) = runner.prepare(&step, Some(bucket))? else {
                continue;
            };
            let batch_bytes = runner.device.meter().current() - before;
            // Once outside: whatever is loaded or allocated at first use is not captured.
            let mut count = MarkCount::default();
            runner.enqueue(&prepared, &mut count)?;
            runner.groups.wait()?;
            gpu.wait(None)?;
            let free = gpu.memory()?.0;
            let plain = gpu.capture(|| runner.enqueue(&prepared, &mut ()))?;
            plain.launch()?;
            runner.groups.wait()?;
            gpu.wait(None)?;
            result.graphs.push(GraphBytes {
                bucket,
                graph_bytes: free.saturating_sub(gpu.memory()?.0),
                batch_bytes,
            });
            let mut line = Timeline::stamps(gpu, count.marks)?;
            let marked = gpu.capture(|| {
                runner.enqueue(&prepared, &mut line)?;
                line.end()
            })?;
            graphs.push(Captured {
                bucket,
                q_tokens,
                prepared,
                plain,
                marked,
                line,
            });
        }
        Ok(graphs)
    }

    pub(super) fn replayed(
        &self,
        context: &mut Context,
        runner: &mut Runner,
        graph: &Captured,
        mark: f64,
    ) -> Result<(Quantiles, Vec<Part>)> {
        let Some(gpu) = context.gpu.clone() else {
            return Err(Error::Unusable("graphs need a GPU".into()));
        };
        for _ in 0..self.timing.warmup {
            graph.plain.launch()?;
            graph.marked.launch()?;
        }
        runner.groups.wait()?;
        let (mut whole, mut parts) = (Vec::new(), Vec::new());
        // By turns, so that a drifting clock meets both alike.
        for _ in 0..self.timing.repeats.max(1) {
            context.control.barrier()?;
            let start = gpu.event()?;
            graph.plain.launch()?;
            let end = gpu.event()?;
            runner.groups.wait()?;
            gpu.wait(None)?;
            whole.push(start.micros_until(&end)?);
            context.control.barrier()?;
            graph.marked.launch()?;
            runner.groups.wait()?;
            gpu.wait(None)?;
            parts.push(graph.line.read(mark)?);
        }
        over_ranks(&mut context.control, &whole, &parts)
    }
}

/// Statistics of every repeat's mean over the ranks.
fn over_ranks(
    control: &mut CpuCommunicator,
    whole: &[f64],
    parts: &[Breakdown],
) -> Result<(Quantiles, Vec<Part>)> {
    let mut mine = whole.to_vec();
    for op in Op::ALL {
        mine.extend(parts.iter().map(|p| p.get(&op).map_or(0.0, |v| v.0)));
    }
    let all = control.all_gather_bytes(bytemuck::cast_slice(&mine))?;
    let mut mean = vec![0.0; mine.len()];
    for bytes in &all {
        for (sum, chunk) in mean.iter_mut().zip(bytes.chunks_exact(8)) {
            *sum += bytemuck::pod_read_unaligned::<f64>(chunk) / all.len() as f64;
        }
    }
    let (whole, rest) = mean.split_at(whole.len());
    let mut out = Vec::new();
    for (op, values) in Op::ALL
        .into_iter()
        .zip(rest.chunks_exact(parts.len().max(1)))
    {
        let calls = parts.first().and_then(|p| p.get(&op)).map_or(0, |v| v.1);
        if calls > 0 {
            out.push(Part {
                op,
                calls,
                time: Quantiles::of(values),
            });
        }
    }
    Ok((Quantiles::of(whole), out))
}
