//! One captured sum_len graph, replayed for steps of other counts and offsets, as engines
//! do that gather by sum_len from graphs.

use serde::{Deserialize, Serialize};

use super::{Context, GatherJob, difference};
use crate::bench::Launch;
use crate::device::POISON;
use crate::gather::{DpExchange, DpLayout, Mode, StepShape};
use crate::{Error, Result};

/// One step through the graph that serves all of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReplaySample {
    /// Rows of each DP rank.
    pub tokens: Vec<usize>,
    /// Rows a DP rank that the graph was captured for.
    pub bucket: usize,
    /// A graph's replay, or on the CPU the same calls again.
    pub launch: Launch,
    /// Every row was compared with the exact result, in both rounds.
    pub checked: bool,
}

impl GatherJob {
    /// Captures gather, layer and combine once, for the longest rank of all steps, and
    /// replays that for each step, twice around: a replay must not depend on the one
    /// before it. Steps without work are entered by nobody.
    ///
    /// # Errors
    /// [`Error::Wrong`] for a row that differs; any failure.
    pub(super) fn replays(
        &self,
        context: &Context,
        exchange: &mut DpExchange,
        layout: DpLayout,
    ) -> Result<Vec<ReplaySample>> {
        let with_work: Vec<Vec<usize>> = self
            .steps
            .iter()
            .map(|step| self.tokens(step))
            .filter(|tokens| tokens.iter().any(|n| *n > 0))
            .collect();
        let longest = with_work.iter().flatten().copied().max().unwrap_or(0);
        let bucket = longest.next_multiple_of(layout.attn_tp());
        let wanted = self.modes.contains(&Mode::SumLen) && self.launches.contains(&Launch::Graph);
        if bucket == 0 || !wanted {
            return Ok(Vec::new());
        }
        let shapes: Vec<StepShape> = with_work
            .iter()
            .map(|tokens| StepShape::in_sum_len_graph(layout, tokens, bucket))
            .collect::<Result<_>>()?;
        let (row, rank, dp) = (self.row(), context.identity.rank, exchange.dp_rank());
        let device = context.device.as_ref();
        let local = device.alloc("rows of a sum_len graph", bucket * row)?.all();
        let global = device
            .alloc("gathered rows of a sum_len graph", shapes[0].global * row)?
            .all();
        let layer = Self::layer(rank);
        let enqueue = |exchange: &mut DpExchange| {
            exchange.gather(device, &shapes[0], &local, &global)?;
            layer(device, &global)?;
            exchange.combine(device, &shapes[0], &global, &local)
        };
        let graph = match &context.gpu {
            Some(gpu) => {
                // Kernels are loaded at their first launch, which cannot be captured.
                exchange.write_places(device, &shapes[0])?;
                enqueue(exchange)?;
                exchange.tp().wait()?;
                Some(gpu.capture(|| enqueue(exchange))?)
            }
            None => None,
        };
        for shape in shapes.iter().chain(&shapes) {
            let rows = shape.tokens[dp];
            exchange.write_places(device, shape)?;
            device.fill(&global, POISON)?;
            device.fill(&local, POISON)?;
            let padded = local.sub(0, shape.local[dp] * row)?;
            device.fill(&padded, 0)?;
            device.write(&local.sub(0, rows * row)?, &self.rows_of(dp, rows, 1))?;
            match &graph {
                Some(graph) => graph.launch()?,
                None => enqueue(exchange)?,
            }
            exchange.tp().wait()?;
            let got = device.read(&local.sub(0, rows * row)?)?;
            if difference(&got, &self.after(layout, dp, rows)).is_some() {
                return Err(Error::Wrong(format!(
                    "a sum_len graph of {bucket} rows a DP rank, replayed for {:?} rows, on rank {rank}",
                    shape.tokens
                )));
            }
        }
        let launch = match graph {
            Some(_) => Launch::Graph,
            None => Launch::Stream,
        };
        Ok(with_work
            .into_iter()
            .map(|tokens| ReplaySample {
                tokens,
                bucket,
                launch,
                checked: true,
            })
            .collect())
    }
}
