//! How KV memory is shared: how full each attention-DP rank's is, and what another DCP width does.

use crate::deployment::{Deployment, Setup};
use crate::estimate;
use crate::layout::Layout;
use crate::plan::{Choice, Plan};
use crate::question::{Space, Traffic};
use crate::search;
use crate::serve::Service;
use serde::Serialize;

/// The KV cache of one attention-DP rank at the planned traffic.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct KvInUse {
    /// Requests that the rank decodes, on average.
    pub requests: f64,
    /// Bytes of one GPU that they hold, prompts and half of their outputs.
    pub bytes: f64,
}

/// How full the KV cache of each attention-DP rank of a replica is, in order of the ranks.
///
/// Requests that decode are dealt as the traffic's balance says; a rank holds no more of them than
/// its memory and its limit of running requests let in.
pub fn in_use(d: &Deployment<'_>, traffic: &Traffic, service: &Service) -> Vec<KvInUse> {
    let each = d.footprint.request_bytes(traffic.context());
    traffic
        .balance
        .batches(d.choice.layout.attention_dp, service.decoding_per_rank)
        .into_iter()
        .map(|batch| {
            let requests = batch.min(d.running_per_rank);
            KvInUse {
                requests,
                bytes: (requests * each).min(d.memory.map.kv_cache),
            }
        })
        .collect()
}

/// A configuration with another DCP width.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DcpWidth {
    /// Ranks that share the KV cache of a request.
    pub dcp: u32,
    /// What is predicted, or why it cannot run.
    pub outcome: Result<Box<Plan>, String>,
}

/// `choice` at every DCP width that divides its attention TP, ascending.
pub fn by_dcp(
    setup: &Setup<'_>,
    traffic: &Traffic,
    space: &Space,
    choice: Choice,
) -> Vec<DcpWidth> {
    let attention_tp = choice.layout.attention_tp().max(1);
    (1..=attention_tp)
        .filter(|dcp| attention_tp.is_multiple_of(*dcp))
        .map(|dcp| {
            let choice = Choice {
                layout: Layout {
                    dcp,
                    ..choice.layout
                },
                ..choice
            };
            let outcome = match search::refusal(setup, traffic, space, choice) {
                Some(reason) => Err(reason),
                None => Ok(Box::new(estimate::plan(
                    setup,
                    traffic,
                    &space.settings,
                    choice,
                ))),
            };
            DcpWidth { dcp, outcome }
        })
        .collect()
}
