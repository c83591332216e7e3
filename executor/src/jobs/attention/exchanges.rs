//! Gather and merge by every way, by turns in one run: what they cost against each other.

use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::inputs::Inputs;
use super::{AttentionJob, AttentionPart, AttentionResult, Hands, Prepared, Way};
use crate::attention::{Gather, Merge, Shard};
use crate::bench::Stats;
use crate::cuda::Graph;
use crate::symmetric::Registration;
use crate::{Communicator, Error, Result};

/// One way of one exchange at one number of query tokens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExchangeSample {
    /// Query tokens, one of each request.
    pub tokens: usize,
    /// [`AttentionPart::Gather`] or [`AttentionPart::Merge`].
    pub part: AttentionPart,
    /// Way of sharing whose part this is.
    pub way: Way,
    /// Registration of what the communicator sees.
    pub registration: Registration,
    /// Times, averaged over the ranks.
    pub time: Stats,
    /// Kernels in the captured graph.
    pub kernels: Vec<String>,
    /// Median over that of the fastest way of the communicator, where one was timed.
    pub of_communicator: Option<f64>,
    /// ‖out − reference‖ / ‖reference‖ of the attention that it is part of.
    pub relative_error: Option<f64>,
}

/// What is timed by turns.
struct Lane {
    prepared: Rc<Prepared>,
    part: AttentionPart,
    way: Way,
    registration: Registration,
    error: Option<f64>,
    /// On GPUs.
    graph: Option<(Graph, Vec<String>)>,
}

impl Lane {
    /// Whether it runs on the communicator.
    fn by_communicator(&self) -> bool {
        match self.part {
            AttentionPart::Gather => self.way.gather == Gather::Communicator,
            _ => self.way.merge != Merge::Peer,
        }
    }
}

impl AttentionJob {
    /// Times gather and merge at `tokens` query tokens, checked first, from graphs on GPUs.
    pub(super) fn exchanges_at(
        &self,
        tokens: usize,
        hands: &mut Hands<'_>,
        shard: Shard,
        result: &mut AttentionResult,
    ) -> Result<()> {
        let context = self.requests.iter().map(|r| r.0).max().unwrap_or(1);
        let job = AttentionJob {
            requests: vec![(context, 1); tokens],
            ..self.clone()
        };
        let inputs = Inputs::new(hands.device, hands.gpu.is_some(), &job, shard)?;
        let mut lanes: Vec<Lane> = Vec::new();
        for &wanted in &job.ways {
            let Some((way, peers)) = job.settle(wanted, hands, &inputs, result)? else {
                continue;
            };
            for registration in job.registrations_of(way, hands) {
                let prepared =
                    Rc::new(job.prepare(hands, &inputs, way, registration, peers.clone())?);
                let error = job.first(hands, &inputs, &prepared)?;
                prepared
                    .dcp
                    .workspace()
                    .kernel()
                    .clone_into(&mut result.kernel);
                for part in [AttentionPart::Gather, AttentionPart::Merge] {
                    let known = lanes.iter().any(|l| {
                        l.part == part
                            && l.registration == registration
                            && match part {
                                AttentionPart::Gather => l.way.gather == way.gather,
                                _ => l.way.merge == way.merge,
                            }
                    });
                    // Replicated queries are not gathered, and an empty graph has no time.
                    if known || (part == AttentionPart::Gather && way.gather == Gather::Replicated)
                    {
                        continue;
                    }
                    lanes.push(Lane {
                        prepared: Rc::clone(&prepared),
                        part,
                        way,
                        registration,
                        error,
                        graph: None,
                    });
                }
            }
        }
        let times = job.time_lanes(hands, &inputs, &mut lanes)?;
        for (lane, time) in lanes.iter().zip(&times) {
            let best = lanes
                .iter()
                .zip(&times)
                .filter(|(l, _)| l.part == lane.part && l.by_communicator())
                .map(|(_, t)| t.median_us)
                .reduce(f64::min);
            result.exchanges.push(ExchangeSample {
                tokens,
                part: lane.part,
                way: lane.way,
                registration: lane.registration,
                time: *time,
                kernels: lane.graph.as_ref().map_or(Vec::new(), |g| g.1.clone()),
                of_communicator: best.map(|b| time.median_us / b),
                relative_error: lane.error,
            });
        }
        job.settle_down(hands)
    }

    fn time_lanes(
        &self,
        hands: &mut Hands<'_>,
        inputs: &Inputs,
        lanes: &mut [Lane],
    ) -> Result<Vec<Stats>> {
        let rank = hands.control.rank() as u32;
        let Hands {
            device,
            gpu,
            control,
            nccl,
        } = hands;
        let device = *device;
        // The timer has the control plane for itself.
        let beside = control.split_cpu(Some(0), rank)?;
        let mut beside = beside.ok_or_else(|| Error::Mismatch("no group for the work".into()))?;
        let timer = self.timer;
        if let Some(gpu) = gpu {
            for lane in lanes.iter_mut() {
                let mut operation = || {
                    let comm: &mut dyn Communicator = match nccl {
                        Some(nccl) => *nccl,
                        None => &mut beside,
                    };
                    lane.prepared.part(device, comm, inputs, lane.part, 0)
                };
                for _ in 0..timer.warmup.max(1) {
                    operation()?;
                }
                let graph = timer.captured(gpu, &mut operation)?;
                match nccl {
                    Some(nccl) => nccl.wait()?,
                    None => gpu.wait(None)?,
                }
                lane.graph = Some(graph);
            }
        }
        let lanes = &*lanes;
        timer.by_turns(
            control,
            lanes.len(),
            |i| {
                let lane = &lanes[i];
                let Some((graph, _)) = &lane.graph else {
                    for _ in 0..timer.iterations {
                        lane.prepared
                            .part(device, &mut beside, inputs, lane.part, 0)?;
                    }
                    return Ok(timer.iterations);
                };
                for _ in 0..timer.graph_launches {
                    graph.launch()?;
                }
                Ok(timer.graph_launches * timer.iterations)
            },
            || match (&mut *nccl, &gpu) {
                (Some(nccl), _) => nccl.wait(),
                (None, Some(gpu)) => gpu.wait(None),
                (None, None) => Ok(()),
            },
        )
    }
}
