//! What the planner says of a step that the executor ran: the same operations, priced.

use parplan_executor::bench::Launch;
use parplan_executor::gather::Mode;
use parplan_executor::jobs::StackStep;
use parplan_executor::stack::{DcpMerge as RanMerge, ExpertPath, Op as Measured, Phase, StackSpec};
use parplan_planner::deployment::{Deployment, Setup};
use parplan_planner::layout::Layout;
use parplan_planner::plan::Choice;
use parplan_planner::question::{Balance, Settings, Spread, Traffic};
use parplan_planner::step::pass::Pass;
use parplan_planner::step::tally::Op;
use parplan_planner::volume::{DcpMerge, Exchange};
use parplan_profiles::Dtype;
use serde::Serialize;

/// A predicted operation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PredictedOp {
    /// The kind of work.
    pub op: Measured,
    /// Microseconds in the step, with the gaps before its kernels.
    pub us: f64,
}

/// A predicted step: the planner's own price of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Predicted {
    /// The whole step, microseconds.
    pub us: f64,
    /// Its 90 % interval.
    pub low_us: f64,
    /// The other end.
    pub high_us: f64,
    /// Launches that no kernel covers, in the step.
    pub launches_us: f64,
    /// By kind of work.
    pub operations: Vec<PredictedOp>,
}

/// `step` by the prices of `setup`, whose model has the layers that were run. Shares of a larger
/// layout are priced as that layout: as its ranks would run them, without what they exchange where one
/// rank runs alone.
pub fn predict(
    setup: &Setup<'_>,
    spec: &StackSpec,
    step: &StackStep,
    symmetric: bool,
) -> Predicted {
    let real = &spec.shard_of;
    let layout = Layout {
        replicas: 1,
        tp: real.tp as u32,
        attention_dp: real.attn_dp as u32,
        dcp: real.dcp as u32,
        ep: real.ep as u32,
        pp: 1,
        nodes: 1,
    };
    let choice = Choice {
        layout,
        kv_dtype: match spec.kv {
            parplan_executor::stack::Format::Bf16 => Dtype::Bf16,
            parplan_executor::stack::Format::Fp8 => Dtype::Fp8,
        },
        cuda_graphs: step.launch == Launch::Graph,
        symmetric_memory: symmetric,
        speculative_steps: 0,
        expert_all_to_all: spec.experts == ExpertPath::AllToAll,
    };
    let requests = step.step.requests.iter().copied().max().unwrap_or(0) as f64;
    let tokens = step.step.q_tokens as f64;
    let context = step.step.context as f64;
    // Lengths only matter for what surrounds the step, which is not asked for.
    let traffic = Traffic {
        isl: context.max(1.0),
        osl: 1.0,
        prompts: Spread::NONE,
        outputs: Spread::NONE,
        concurrency: (requests * f64::from(layout.attention_dp)).max(1.0),
        prefix_hit: 0.0,
        balance: Balance::Even,
        waves: 1.0,
        requests_per_s: None,
        speculation: None,
    };
    let deployment = Deployment::new(setup, &traffic, &Settings::default(), choice);
    let mut steps = deployment.steps(&traffic, false);
    steps.fixed.exchanges = spec.here.tp > 1 || real.tp == 1;
    let merge = match spec.dcp_merge {
        RanMerge::ReduceScatter => DcpMerge::ReduceScatter,
        RanMerge::AllToAll => DcpMerge::AllToAll,
        RanMerge::Peer => DcpMerge::Fused,
    };
    steps.fixed.dcp_gqa.0 = merge;
    steps.fixed.dcp_mla.0 = merge;
    let decode = step.step.phase == Phase::Decode;
    let pass = Pass {
        decode_requests: if decode { requests } else { 0.0 },
        query_tokens: if decode { tokens } else { 1.0 },
        context,
        prefill_tokens: if decode { 0.0 } else { requests * tokens },
        prefill_prompts: if decode { 0.0 } else { requests },
        prefill_before: if decode { 0.0 } else { context },
        rows_max: step.rows as f64,
        rows_sum: step.gathered_rows as f64,
        graph: step.launch == Launch::Graph,
        exchange: match (spec.experts, step.mode) {
            (ExpertPath::AllToAll, _) => Exchange::AllToAll,
            (ExpertPath::Gathered, None) => Exchange::AllReduce,
            (ExpertPath::Gathered, Some(Mode::MaxLen)) => Exchange::MaxLen,
            (ExpertPath::Gathered, Some(Mode::SumLen)) => Exchange::SumLen,
            (ExpertPath::Gathered, Some(Mode::AllGatherV)) => Exchange::Exact,
        },
    };
    let priced = steps.layers(&pass);
    let (low_us, high_us) = priced.interval();
    let operations = Measured::ALL
        .into_iter()
        .filter_map(|op| {
            let us = priced.op_us(planned(op));
            (us > 0.0).then_some(PredictedOp { op, us })
        })
        .collect();
    Predicted {
        us: priced.us,
        low_us,
        high_us,
        launches_us: priced.tally.us(Op::EagerLaunch),
        operations,
    }
}

/// The planner's kind of what was measured.
fn planned(op: Measured) -> Op {
    match op {
        Measured::Elementwise => Op::Elementwise,
        Measured::QkvProjection => Op::QkvProjection,
        Measured::DecodeAttention => Op::DecodeAttention,
        Measured::PrefillAttention => Op::PrefillAttention,
        Measured::OutProjection => Op::OutProjection,
        Measured::AttentionReduce => Op::AttentionReduce,
        Measured::Dcp => Op::Dcp,
        Measured::Gather => Op::Gather,
        Measured::Router => Op::Router,
        Measured::Experts => Op::Experts,
        Measured::SharedExperts => Op::SharedExperts,
        Measured::DenseFfn => Op::DenseFfn,
        Measured::Combine => Op::Combine,
        Measured::ExpertExchange => Op::ExpertExchange,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planner_and_executor_call_a_kind_of_work_by_one_name() {
        for op in Measured::ALL {
            assert_eq!(planned(op).name(), op.name());
        }
    }
}
