//! A stack over any legal layout equals the float64 one-rank reference, on the CPU
//! backend.

#![allow(clippy::unwrap_used)] // tests, helper functions included

use std::cell::RefCell;
use std::rc::Rc;

use parplan_executor::attention::Peers;
use parplan_executor::comm::LocalWorld;
use parplan_executor::gather::Mode;
use parplan_executor::stack::{
    BlockSpec, DcpMerge, Distance, ExpertPath, Format, LayerSpec, MixerSpec, Phase, Runner,
    StackLayout, StackSpec, StepSpec,
};
use parplan_executor::{Communicator, CpuDevice, Device, Result, View};

fn layer(mixer: MixerSpec, block: BlockSpec) -> LayerSpec {
    LayerSpec {
        mixer,
        block,
        attention_format: Format::Bf16,
        dense_format: Format::Bf16,
        expert_format: Format::Bf16,
    }
}

const GQA: MixerSpec = MixerSpec::Gqa {
    q_heads: 8,
    kv_heads: 2,
    head_dim: 64,
    qk_norm: false,
};
const MLA: MixerSpec = MixerSpec::Mla {
    heads: 8,
    q_lora: 48,
    kv_lora: 512,
    nope: 16,
    rope: 64,
    v_dim: 16,
};
const DENSE: BlockSpec = BlockSpec::Dense { intermediate: 64 };
const MOE: BlockSpec = BlockSpec::Moe {
    experts: 8,
    top_k: 4,
    intermediate: 64,
    shared_intermediate: 0,
};
const SHARED: BlockSpec = BlockSpec::Moe {
    experts: 8,
    top_k: 2,
    intermediate: 64,
    shared_intermediate: 64,
};

fn layout(tp: usize, attn_dp: usize, dcp: usize, ep: usize) -> StackLayout {
    StackLayout {
        tp,
        attn_dp,
        dcp,
        ep,
    }
}

fn spec(layers: Vec<LayerSpec>, here: StackLayout) -> StackSpec {
    StackSpec {
        model: "test".into(),
        hidden: 64,
        layers,
        here,
        shard_of: here,
        kv: Format::Bf16,
        page_size: 4,
        dcp_interleave: 1,
        dcp_merge: DcpMerge::ReduceScatter,
        experts: ExpertPath::Gathered,
        dense_on_attn_tp: false,
        wide_tiles_from: 16,
        norm_eps: 1e-6,
        rope_theta: 10_000.0,
        seed: 5,
    }
}

/// Two layers that use the mixer with and without an extra.
fn model(mixer: MixerSpec, block: BlockSpec) -> Vec<LayerSpec> {
    let first = match mixer {
        MixerSpec::Gqa {
            q_heads,
            kv_heads,
            head_dim,
            ..
        } => MixerSpec::Gqa {
            q_heads,
            kv_heads,
            head_dim,
            qk_norm: true,
        },
        MixerSpec::Mla {
            heads,
            kv_lora,
            nope,
            rope,
            v_dim,
            ..
        } => MixerSpec::Mla {
            heads,
            q_lora: 0,
            kv_lora,
            nope,
            rope,
            v_dim,
        },
    };
    vec![layer(first, DENSE), layer(mixer, block)]
}

fn step(requests: &[usize], q_tokens: usize, context: usize, mode: Mode) -> StepSpec {
    StepSpec {
        requests: requests.to_vec(),
        q_tokens,
        context,
        phase: if q_tokens > 4 {
            Phase::Prefill
        } else {
            Phase::Decode
        },
        mode,
    }
}

/// What peer memory is on GPUs, by messages between threads.
struct Letters {
    comm: RefCell<Box<dyn Communicator>>,
    most: usize,
    sent: Rc<RefCell<usize>>,
}

impl Peers for Letters {
    fn holds(&self, bytes: usize) -> bool {
        bytes <= self.most
    }

    fn all_gather(&self, send: &View, recv: &View) -> Result<()> {
        assert!(self.holds(send.len()));
        *self.sent.borrow_mut() += 1;
        self.comm.borrow_mut().all_gather(send, recv)
    }

    fn merge(&self, parts: &View, lses: &View, dim: usize, out: &View, lse: &View) -> Result<()> {
        *self.sent.borrow_mut() += 1;
        let device = CpuDevice::new();
        let theirs = device.alloc("outputs", parts.len())?.all();
        let their_lses = device.alloc("LSE", lses.len())?.all();
        let mut comm = self.comm.borrow_mut();
        comm.all_to_all(parts, &theirs)?;
        comm.all_to_all(lses, &their_lses)?;
        device.merge_ranks(&theirs, &their_lses, comm.size(), dim, out, lse)
    }
}

/// Runs the step on all ranks; the distance that rank 0 found.
fn distance(spec: &StackSpec, step: &StepSpec, bucket: Option<usize>) -> Distance {
    distance_over(spec, step, bucket, None).0
}

/// The same with peer memory for messages of at most so many bytes; also what rank 0
/// exchanged over it.
fn distance_over(
    spec: &StackSpec,
    step: &StepSpec,
    bucket: Option<usize>,
    memory: Option<usize>,
) -> (Distance, usize) {
    let ranks: Vec<_> = LocalWorld::connect(spec.here.tp)
        .unwrap()
        .into_iter()
        .map(|mut control| {
            let (spec, step) = (spec.clone(), step.clone());
            std::thread::spawn(move || {
                let rank = control.rank() as u32;
                let world = control.split(Some(0), rank).unwrap().unwrap();
                let device = Box::new(CpuDevice::new());
                let steps = std::slice::from_ref(&step);
                let mut runner =
                    Runner::new(device, spec.clone(), world, steps, bucket.unwrap_or(0)).unwrap();
                let sent = Rc::new(RefCell::new(0));
                if let Some(most) = memory {
                    let group = control.split(Some(rank / spec.here.dcp as u32), rank);
                    runner.groups.share_memory(Rc::new(Letters {
                        comm: RefCell::new(group.unwrap().unwrap()),
                        most,
                        sent: Rc::clone(&sent),
                    }));
                }
                let prepared = runner.prepare(&step, bucket).unwrap().unwrap();
                runner.record(prepared.shape.global).unwrap();
                let found = runner
                    .compare(&mut control, &step, &prepared, |r| {
                        // Twice: the second run finds what the first one left behind.
                        r.enqueue(&prepared, &mut ())?;
                        r.enqueue(&prepared, &mut ())?;
                        r.groups.wait()
                    })
                    .unwrap();
                control.barrier().unwrap();
                found.map(|d| (d, sent.take()))
            })
        })
        .collect();
    let found: Vec<_> = ranks.into_iter().map(|t| t.join().unwrap()).collect();
    found.into_iter().flatten().next().unwrap()
}

fn check(spec: &StackSpec, step: &StepSpec, bucket: Option<usize>) {
    let d = distance(spec, step, bucket);
    assert!(
        d.relative_error < 1e-2 && d.of_added < 1.5e-2 && d.worst_row < 2e-2,
        "{} {:?}: {d:?}",
        spec.here,
        step
    );
    // All rounding is in there: an exact result would mean that nothing was compared.
    assert!(d.relative_error > 1e-4, "{d:?}");
}

#[test]
fn one_rank_decodes_and_prefills() {
    for (mixer, block) in [(GQA, DENSE), (GQA, MOE), (MLA, DENSE), (MLA, SHARED)] {
        let spec = spec(model(mixer, block), StackLayout::ONE);
        check(&spec, &step(&[2], 1, 21, Mode::MaxLen), Some(3));
        check(&spec, &step(&[2], 5, 3, Mode::MaxLen), None);
    }
}

#[test]
fn tensor_parallel_stacks_equal_the_reference() {
    for tp in [2, 4, 8] {
        for (mixer, block) in [(GQA, MOE), (MLA, SHARED)] {
            let spec = spec(model(mixer, block), layout(tp, 1, 1, 1));
            check(&spec, &step(&[2], 1, 13, Mode::MaxLen), None);
        }
    }
}

#[test]
fn attention_dp_stacks_equal_the_reference_in_every_mode() {
    for (tp, dp, mixer, block) in [
        (2, 2, MLA, SHARED),
        (4, 2, GQA, MOE),
        (4, 4, GQA, DENSE),
        (8, 4, GQA, SHARED),
    ] {
        let mut modes = vec![Mode::MaxLen, Mode::SumLen];
        if tp == dp {
            modes.push(Mode::AllGatherV);
        }
        for mode in modes {
            let spec = spec(model(mixer, block), layout(tp, dp, 1, 1));
            let requests: Vec<usize> = (0..dp).map(|r| [3, 1, 0, 2][r]).collect();
            check(&spec, &step(&requests, 3, 4, mode), None);
        }
    }
    let spec = spec(model(MLA, SHARED), layout(4, 2, 1, 4));
    check(&spec, &step(&[3, 1], 1, 11, Mode::SumLen), Some(4));
}

#[test]
fn decode_context_parallel_stacks_equal_the_reference() {
    for (tp, dp, dcp) in [(2, 1, 2), (4, 1, 2), (8, 2, 4)] {
        for (mixer, merge, interleave) in [
            (GQA, DcpMerge::ReduceScatter, 1),
            (MLA, DcpMerge::AllToAll, 4),
            (MLA, DcpMerge::ReduceScatter, 1),
        ] {
            let mut spec = spec(model(mixer, DENSE), layout(tp, dp, dcp, 1));
            (spec.dcp_merge, spec.dcp_interleave) = (merge, interleave);
            let requests: Vec<usize> = (0..dp).map(|r| 3 - r).collect();
            check(&spec, &step(&requests, 1, 17, Mode::MaxLen), None);
            // Shorter than the interleave: ranks without any KV.
            check(&spec, &step(&requests, 2, 1, Mode::MaxLen), None);
        }
    }
}

#[test]
fn stacks_that_share_a_cache_over_peer_memory_equal_the_reference() {
    for (tp, dp, dcp) in [(2, 1, 2), (4, 1, 4), (8, 2, 4)] {
        for (mixer, interleave) in [(GQA, 1), (MLA, 4)] {
            let mut spec = spec(model(mixer, DENSE), layout(tp, dp, dcp, 1));
            (spec.dcp_merge, spec.dcp_interleave) = (DcpMerge::Peer, interleave);
            let requests: Vec<usize> = (0..dp).map(|r| 3 - r).collect();
            let step = step(&requests, 2, 9, Mode::MaxLen);
            // Two runs of two layers, a gather and a merge each.
            for (memory, sent) in [(None, 0), (Some(usize::MAX), 8), (Some(0), 0)] {
                let (d, over_peers) = distance_over(&spec, &step, None, memory);
                assert!(d.relative_error < 1e-2, "{tp} {dp} {dcp} {memory:?}: {d:?}");
                assert_eq!(over_peers, sent, "{memory:?}");
            }
        }
    }
}

#[test]
fn expert_parallel_stacks_equal_the_reference() {
    for (tp, dp, ep) in [(4, 1, 2), (4, 4, 4), (8, 2, 8)] {
        for block in [MOE, SHARED] {
            let requests: Vec<usize> = (0..dp).map(|r| [3, 1, 0, 2][r]).collect();
            let mut spec = spec(model(GQA, block), layout(tp, dp, 1, ep));
            check(&spec, &step(&requests, 1, 11, Mode::MaxLen), None);
            if ep == tp {
                spec.experts = ExpertPath::AllToAll;
                spec.dense_on_attn_tp = true;
                check(&spec, &step(&requests, 1, 11, Mode::MaxLen), None);
            }
        }
    }
}

#[test]
fn fp8_weights_and_cache_stay_near_the_reference() {
    for (mixer, block) in [(GQA, MOE), (MLA, SHARED)] {
        let mut spec = spec(model(mixer, block), layout(2, 1, 1, 1));
        spec.kv = Format::Fp8;
        for layer in &mut spec.layers {
            layer.attention_format = Format::Fp8;
            layer.dense_format = Format::Fp8;
            layer.expert_format = Format::Fp8;
        }
        let d = distance(&spec, &step(&[3], 1, 13, Mode::MaxLen), None);
        assert!(d.relative_error < 8e-2, "{d:?}");
    }
}

#[test]
fn another_seed_is_another_model() {
    // The reference follows the seed: a stack that ignored it would be far off.
    let mut spec = spec(model(GQA, MOE), layout(2, 2, 1, 2));
    spec.seed = 77;
    check(&spec, &step(&[2, 3], 1, 9, Mode::SumLen), None);
}

#[test]
fn layouts_that_do_not_fit_are_refused_with_what_would() {
    let gqa = |l| spec(model(GQA, MOE), l).check().unwrap_err().to_string();
    assert!(gqa(layout(4, 3, 1, 1)).contains("attn-dp 3 does not divide tp 4"));
    assert!(
        gqa(layout(8, 2, 8, 1)).contains("dcp 8 does not divide attention tp 4 (tp 8 / attn-dp 2)")
    );
    assert!(gqa(layout(32, 1, 1, 1)).contains("8 query heads do not divide over 32 ranks"));
    let mut shard = spec(model(GQA, MOE), layout(2, 1, 1, 1));
    shard.shard_of = layout(8, 4, 2, 8);
    assert!(shard.check().is_ok(), "{:?}", shard.check());
    assert_eq!(shard.narrowed().len(), 4);
    shard.here = layout(4, 1, 4, 1);
    assert!(
        shard
            .check()
            .unwrap_err()
            .to_string()
            .contains("attention tp 4 at hand")
    );
}
