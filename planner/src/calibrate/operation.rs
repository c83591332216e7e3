//! The experiment that times an operation of a plan, and those around it.

use super::experiments::Machine;
use crate::cost::{Collective, Implementation, Launch, Operation, Registration, Transfer};
use crate::step::record::Recorded;
use parplan_profiles::Dtype;
use parplan_profiles::calibration::{
    BufferRegistration, CollectiveKind, DecodeGqaShape, DecodeMlaShape, Experiment, ExpertsShape,
    LaunchMode, PrefillGqaShape, Probe,
};

/// The format as which parplan's executor runs weights in another: fp8 by blocks has one scale a tensor
/// there (docs/stack.md).
fn run_as(weights: Dtype) -> Dtype {
    match weights {
        Dtype::Fp8Block => Dtype::Fp8,
        other => other,
    }
}

/// The formats that are run as `weights`.
pub(super) fn runs(weights: Dtype) -> Vec<Dtype> {
    let blocks = run_as(Dtype::Fp8Block) == weights;
    [Some(weights), blocks.then_some(Dtype::Fp8Block)]
        .into_iter()
        .flatten()
        .collect()
}

/// The experiment that times an operation; none where nothing here runs the engine's own kernel. `own`:
/// the engine's kernels are parplan's.
pub(super) fn of(ran: &Recorded, own: bool, machine: Machine) -> Option<Experiment> {
    let whole = |x: f64| (x.round().max(1.0)).min(f64::from(u32::MAX)) as u32;
    let launch = match ran.launch {
        Launch::Graph if machine.gpus => LaunchMode::Graph,
        _ => LaunchMode::Stream,
    };
    let probe = match ran.operation {
        Operation::Collective(t) => return transfer(&t, launch, own, machine),
        Operation::Gemm(g)
            if g.weights == Dtype::Bf16 || (own && run_as(g.weights) == Dtype::Fp8) =>
        {
            Probe::Gemm {
                m: whole(g.m),
                n: whole(g.n),
                k: whole(g.k),
                weights: run_as(g.weights),
            }
        }
        Operation::DecodeGqa(a) if own && a.q_tokens == 1.0 => Probe::DecodeGqa(DecodeGqaShape {
            requests: whole(a.requests),
            context: whole(a.context.min(a.window)),
            q_heads: whole(a.q_heads),
            kv_heads: whole(a.kv_heads),
            head_dim: whole(a.head_dim),
            kv: a.kv,
        }),
        Operation::DecodeMla(a) if own && a.q_tokens == 1.0 => Probe::DecodeMla(DecodeMlaShape {
            requests: whole(a.requests),
            context: whole(a.context),
            heads: whole(a.heads),
            kv_lora_rank: whole(a.kv_lora_rank),
            rope_dim: whole(a.rope_dim),
            kv: a.kv,
        }),
        Operation::PrefillGqa(a) if own && a.prefix == 0.0 => Probe::PrefillGqa(PrefillGqaShape {
            sequences: whole(a.sequences),
            tokens: whole(a.new_tokens),
            q_heads: whole(a.q_heads),
            kv_heads: whole(a.kv_heads),
            head_dim: whole(a.head_dim),
            kv: a.kv,
        }),
        Operation::Moe(a) if own => Probe::Experts(ExpertsShape {
            tokens: whole(a.tokens * a.experts_local / a.experts_total.max(1.0)),
            experts: whole(a.experts_local),
            top_k: whole(a.top_k.min(a.experts_local)),
            hidden: whole(a.hidden),
            intermediate: whole(a.intermediate),
            weights: run_as(a.weights),
        }),
        Operation::Elementwise { .. } if own => Probe::MemoryCopy { bytes: 512 << 20 },
        _ => return None,
    };
    let launch = match probe {
        Probe::MemoryCopy { .. } => LaunchMode::Stream,
        _ => launch,
    };
    Some(Experiment::alone(probe, launch, "which candidate wins"))
}

/// A collective on this machine's ranks, at the bytes of the plan.
fn transfer(t: &Transfer, launch: LaunchMode, own: bool, machine: Machine) -> Option<Experiment> {
    if machine.ranks < 2 || t.span.domains() > 1.0 {
        return None;
    }
    let collective = match t.kind {
        Collective::AllGather => CollectiveKind::AllGather,
        Collective::ReduceScatter => CollectiveKind::ReduceScatter,
        Collective::AllReduce => CollectiveKind::AllReduce,
        Collective::AllToAll => CollectiveKind::AllToAll,
    };
    let bytes = (t.bytes.max(16.0) as u64).next_multiple_of(256);
    let probe = match (t.implementation, t.registration) {
        (Implementation::Custom, _) if !own => return None,
        (Implementation::Custom, _) => Probe::PeerCollective {
            collective,
            two_shot: false,
            bytes,
            in_place: false,
        },
        (Implementation::Peer, _) if !own => return None,
        (Implementation::Peer, _) => {
            // Rows of 128 values of each of the ranks, which is all that the time depends on.
            let dim = 128;
            let row = u64::from(dim * 2 * machine.ranks);
            Probe::PeerExchange {
                merge: t.kind == Collective::AllToAll,
                rows: u32::try_from(bytes.div_ceil(row)).unwrap_or(u32::MAX),
                dim,
            }
        }
        (Implementation::Nccl, registration) => Probe::Collective {
            collective,
            bytes,
            registration: match registration {
                Registration::Symmetric if machine.gpus => BufferRegistration::Symmetric,
                _ => BufferRegistration::None,
            },
            in_place: false,
        },
    };
    Some(Experiment {
        ranks: machine.ranks,
        launch,
        decides: "which candidate wins".to_owned(),
        probe,
    })
}

/// The same operation with a quarter and four times the rows, bytes or context.
pub(super) fn neighbours(e: &Experiment) -> Vec<Experiment> {
    let scaled = |up: bool| {
        let four = |x: u32| {
            if up {
                x.saturating_mul(4)
            } else {
                (x / 4).max(1)
            }
        };
        let mut out = e.clone();
        match &mut out.probe {
            Probe::Collective { bytes, .. } | Probe::PeerCollective { bytes, .. } => {
                *bytes = if up {
                    *bytes * 4
                } else {
                    (*bytes / 4).max(1024)
                };
            }
            Probe::Gemm { m, .. } => *m = four(*m),
            Probe::DecodeGqa(DecodeGqaShape { context, .. })
            | Probe::DecodeMla(DecodeMlaShape { context, .. }) => *context = four(*context),
            Probe::PrefillGqa(PrefillGqaShape { tokens, .. })
            | Probe::Experts(ExpertsShape { tokens, .. }) => *tokens = four(*tokens),
            _ => return None,
        }
        (!out.same(e)).then_some(out)
    };
    [false, true].into_iter().filter_map(scaled).collect()
}
