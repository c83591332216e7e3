//! The price of a pass through the layers of the builtin engine, and what a calibration changes of it.

#![allow(clippy::unwrap_used)]

use parplan_planner::calibrate::experiments::{Machine, default_set};
use parplan_planner::calibrate::{Layer, Origin, apply, predicted_us, terms};
use parplan_planner::cost::{OpClass, OpCosts, Operation};
use parplan_planner::deployment::{Deployment, Setup};
use parplan_planner::layout::Layout;
use parplan_planner::plan::Choice;
use parplan_planner::question::{Balance, Settings, Spread, Traffic};
use parplan_planner::step::launches::Launched;
use parplan_planner::step::pass::Pass;
use parplan_planner::step::priced::Priced;
use parplan_planner::step::tally::Op;
use parplan_planner::volume::{DcpMerge, Exchange};
use parplan_profiles::calibration::{
    Calibration, Class, CollectiveKind, Experiment, LaunchMode, Probe, Provenance, SCHEMA, Sample,
};
use parplan_profiles::engine::{EngineRules, embedded, select};
use parplan_profiles::{Dtype, EfficiencyProfile, GpuProfile, Library, Overheads};

struct World {
    gpu: GpuProfile,
    base: EfficiencyProfile,
    overheads: Overheads,
    rules: EngineRules,
}

impl World {
    fn h200() -> World {
        let gpu = Library::embedded().gpu("h200").unwrap();
        World {
            base: EfficiencyProfile::embedded("builtin", &gpu)
                .unwrap()
                .clone(),
            overheads: Overheads::embedded("builtin", &gpu).unwrap().clone(),
            rules: select(&embedded().unwrap(), "builtin", false).unwrap(),
            gpu,
        }
    }

    /// A decode pass of `requests` requests a rank.
    fn price(&self, model: &str, layout: [u32; 2], requests: f64, with: (bool, bool)) -> Priced {
        self.priced(model, [layout[0], layout[1], 1], requests, with, None)
    }

    /// Sixteen requests whose caches two ranks share.
    fn price_dcp(&self, model: &str, merge: DcpMerge) -> Priced {
        self.priced(model, [2, 1, 2], 16.0, (true, true), Some(merge))
    }

    fn priced(
        &self,
        model: &str,
        layout: [u32; 3],
        requests: f64,
        with: (bool, bool),
        merge: Option<DcpMerge>,
    ) -> Priced {
        let [tp, attention_dp, dcp] = layout;
        let (graph, exchanges) = with;
        let model = Library::embedded().model(model).unwrap();
        let setup = Setup {
            model: &model,
            gpu: &self.gpu,
            rules: &self.rules,
            costs: OpCosts::new(&self.base, &self.gpu).unwrap(),
            overheads: &self.overheads,
        };
        let choice = Choice {
            layout: Layout {
                replicas: 1,
                tp,
                attention_dp,
                dcp,
                ep: 1,
                pp: 1,
                nodes: 1,
            },
            kv_dtype: Dtype::Bf16,
            cuda_graphs: graph,
            symmetric_memory: false,
            speculative_steps: 0,
            expert_all_to_all: false,
        };
        let traffic = Traffic {
            isl: 1024.0,
            osl: 1.0,
            prompts: Spread::NONE,
            outputs: Spread::NONE,
            concurrency: requests * f64::from(attention_dp),
            prefix_hit: 0.0,
            balance: Balance::Even,
            waves: 1.0,
            requests_per_s: None,
            speculation: None,
        };
        let deployment = Deployment::new(&setup, &traffic, &Settings::default(), choice);
        let mut steps = deployment.steps(&traffic, false);
        steps.fixed.exchanges = exchanges;
        if let Some(merge) = merge {
            (steps.fixed.dcp_gqa.0, steps.fixed.dcp_mla.0) = (merge, merge);
        }
        steps.layers(&Pass {
            decode_requests: requests,
            query_tokens: 1.0,
            context: 1024.0,
            prefill_tokens: 0.0,
            prefill_prompts: 0.0,
            prefill_before: 0.0,
            rows_max: requests,
            rows_sum: requests * f64::from(attention_dp),
            graph,
            exchange: if attention_dp > 1 {
                Exchange::MaxLen
            } else {
                Exchange::AllReduce
            },
        })
    }
}

fn launched(priced: &Priced) -> (f64, f64) {
    Op::ALL.iter().fold((0.0, 0.0), |(k, c), &op| {
        let launched = priced.tally.launched(op);
        (k + launched.kernels, c + launched.collectives)
    })
}

/// What the kernels of one kind of work wait, beside their time.
fn gaps(priced: &Priced, op: Op) -> f64 {
    priced.op_us(op) - priced.tally.us(op)
}

/// The kernels that `executor/src/stack/run.rs` and `ffn.rs` enqueue: of a dense grouped-query layer two
/// norms, rotary embedding, attention with its combine, four products and the activation.
#[test]
fn kernels_are_counted_as_the_stack_enqueues_them() {
    let world = World::h200();
    let layers = 36.0;
    let one = world.price("qwen3-8b", [1, 1], 8.0, (true, true));
    assert_eq!(launched(&one), (layers * 10.0 + 3.0, 0.0));
    // Two sums over the ranks.
    let two = world.price("qwen3-8b", [2, 1], 8.0, (true, true));
    assert_eq!(launched(&two), (layers * 10.0 + 3.0, layers * 2.0));
    // A rank alone sums nothing.
    let alone = world.price("qwen3-8b", [2, 1], 8.0, (true, false));
    assert_eq!(launched(&alone), launched(&one));
    assert_eq!(alone.op_us(Op::AttentionReduce), 0.0);
    // Rows are placed for the gather and taken back: two copies, each half a kernel.
    let gathered = world.price("qwen3-8b", [2, 2], 8.0, (true, true));
    assert_eq!(launched(&gathered), (layers * 11.0 + 3.0, layers * 2.0));
    // Experts: two norms, projection, rotary embedding, attention (2), output projection; router, choice,
    // and the five of the experts themselves.
    let experts = world.price("qwen3-30b-a3b", [1, 1], 8.0, (true, true));
    assert_eq!(launched(&experts), (48.0 * 14.0 + 3.0, 0.0));
}

#[test]
fn a_price_is_its_operations_with_the_gaps_before_their_kernels() {
    let world = World::h200();
    for graph in [true, false] {
        let p = world.price("qwen3-30b-a3b", [2, 2], 16.0, (graph, true));
        let ops: f64 = Op::ALL
            .into_iter()
            .filter(|op| !matches!(op, Op::LayerGaps | Op::EagerLaunch))
            .map(|op| p.op_us(op))
            .sum();
        let whole = ops + p.tally.us(Op::EagerLaunch);
        assert!((p.us / whole - 1.0).abs() < 1e-9, "{} {whole}", p.us);
        let (low, high) = p.interval();
        assert!(low < p.us && p.us < high && (low * high).sqrt() / p.us - 1.0 < 1e-9);
    }
    let graph = world.price("qwen3-8b", [2, 1], 16.0, (true, true));
    let eager = world.price("qwen3-8b", [2, 1], 16.0, (false, true));
    let (kernels, collectives) = launched(&graph);
    let figures = world.overheads.gaps;
    let later = (figures.eager_kernel_us - figures.graph_kernel_us) * (kernels + collectives);
    assert!((eager.us - graph.us - later).abs() < 1e-6 * eager.us);
}

/// An experiment on experts runs their five kernels as a step does, and one on a quantised product both
/// of its: only the first of them has another neighbour there.
#[test]
fn what_was_timed_in_a_row_waits_once() {
    let world = World::h200();
    let layers = 48.0;
    let of = world.overheads.gaps;
    let graph = world.price("qwen3-30b-a3b", [1, 1], 8.0, (true, true));
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} {b}");
    close(gaps(&graph, Op::Experts), layers * of.graph_kernel_us);
    // The router's product, and the choice behind it.
    close(gaps(&graph, Op::Router), layers * 2.0 * of.graph_kernel_us);
    // Launched one by one, each of them costs the front end of the GPU.
    let eager = world.price("qwen3-30b-a3b", [1, 1], 8.0, (false, true));
    let later = of.eager_kernel_us - of.graph_kernel_us;
    close(
        gaps(&eager, Op::Experts),
        layers * (of.graph_kernel_us + 5.0 * later),
    );
    let fp8 = world.price("deepseek-v3", [1, 1], 8.0, (true, true));
    let projection = fp8.tally.launched(Op::OutProjection);
    assert_eq!((projection.kernels, projection.waiting), (122.0, 61.0));
}

/// A collective begins when the last of its ranks is there, and the last of more ranks comes later.
#[test]
fn more_ranks_wait_longer_for_their_last() {
    let world = World::h200();
    let wait = |tp: u32| {
        let priced = world.price("qwen3-8b", [tp, 1], 8.0, (true, true));
        gaps(&priced, Op::AttentionReduce) / 36.0
    };
    for (ranks, deviations) in [(2, 0.564), (4, 1.029), (8, 1.424)] {
        let expected = deviations * world.overheads.gaps.collective_us;
        assert!((wait(ranks) / expected - 1.0).abs() < 0.01, "{ranks}");
    }
}

#[test]
fn the_interval_knows_which_classes_are_sure() {
    let mut world = World::h200();
    let before = world.price("qwen3-8b", [1, 1], 64.0, (true, true));
    for fit in world.base.gemm.values_mut() {
        fit.note.sigma = 0.02;
    }
    world.overheads.gaps.sigma = 0.0;
    let after = world.price("qwen3-8b", [1, 1], 64.0, (true, true));
    assert_eq!(before.us, after.us);
    assert!(
        after.sigma < before.sigma,
        "{} {}",
        after.sigma,
        before.sigma
    );
    // All classes independent, products sharing most of their error: between the two extremes.
    let products: f64 = after
        .operations
        .iter()
        .filter(|r| matches!(r.operation, Operation::Gemm(_)))
        .map(|r| r.count * r.us)
        .sum();
    assert!(after.sigma > 0.02 * (0.675f64).sqrt() * products / after.us);
}

/// Gathers and merges of parplan's own kernels have prices of their own once they were measured, and are
/// one collective each, without a correction beside them.
#[test]
fn fused_dcp_is_priced_by_its_own_kernels() {
    let mut world = World::h200();
    let dcp = |world: &World, merge: DcpMerge| {
        let p = world.price_dcp("qwen3-235b-a22b", merge);
        (p.op_us(Op::Dcp), p.tally.launched(Op::Dcp))
    };
    let layers = 94.0;
    let counts = |launched: Launched| (launched.kernels, launched.collectives);
    // Queries, outputs and LSE, and the merge of what came.
    let (apart, launched) = dcp(&world, DcpMerge::AllToAll);
    assert_eq!(counts(launched), (layers, 3.0 * layers));
    let (unmeasured, launched) = dcp(&world, DcpMerge::Fused);
    assert_eq!(counts(launched), (0.0, 2.0 * layers));
    assert!(unmeasured < apart);
    // What one exchange took on 2 H200: 2.3 to 6.4 us (docs/attention.md).
    let set = default_set(Machine {
        ranks: 2,
        gpus: true,
    });
    let samples: Vec<Sample> = set
        .into_iter()
        .filter_map(|e| match e.probe {
            Probe::PeerExchange { rows, dim, .. } => {
                let us = 2.2 + 2.0 * f64::from(rows) * f64::from(dim) / 250e3;
                Some(sample(e, us, "parplan 0.1.0 peer"))
            }
            _ => None,
        })
        .collect();
    assert_eq!(samples.len(), 14);
    let found = calibration(&world, 2, samples);
    let layer = Layer {
        calibration: &found,
        origin: Origin::User,
    };
    let own = apply(true, &world.gpu, &world.base, &world.overheads, &[layer]);
    let other = apply(false, &world.gpu, &world.base, &world.overheads, &[layer]);
    assert!(other.efficiency.collective.peer_gather.is_none());
    world.base = own.efficiency;
    let (measured, _) = dcp(&world, DcpMerge::Fused);
    assert!(measured < unmeasured / 2.0, "{measured} {unmeasured}");
    let wait = 2.0 * world.overheads.gaps.collective_us;
    assert!(measured / layers - wait < 12.0, "{}", measured / layers);
}

/// parplan's executor runs fp8 by blocks with one scale a tensor: what was measured of those kernels prices
/// both, under no other engine.
#[test]
fn fp8_by_blocks_is_priced_by_the_kernels_that_run_it() {
    let world = World::h200();
    let set = default_set(Machine {
        ranks: 1,
        gpus: true,
    });
    let samples: Vec<Sample> = set
        .into_iter()
        .filter(|e| {
            matches!(
                Class::of(e),
                Class::Gemm(Dtype::Fp8) | Class::Experts(Dtype::Fp8)
            )
        })
        .map(|e| {
            let price = predicted_us(&e, &world.gpu, &world.base, &world.overheads).unwrap();
            sample(e, 3.0 * price, "parplan 0.1.0 experts")
        })
        .collect();
    assert_eq!(samples.len(), 16);
    let found = calibration(&world, 1, samples);
    let layer = Layer {
        calibration: &found,
        origin: Origin::User,
    };
    let own = apply(true, &world.gpu, &world.base, &world.overheads, &[layer]).efficiency;
    let other = apply(false, &world.gpu, &world.base, &world.overheads, &[layer]).efficiency;
    for (format, same) in [(&own, true), (&other, false)] {
        assert_eq!(
            format.gemm[&Dtype::Fp8Block] == format.gemm[&Dtype::Fp8],
            same
        );
        assert_eq!(
            format.moe[&Dtype::Fp8Block] == format.moe[&Dtype::Fp8],
            same
        );
    }
    assert!(own.moe[&Dtype::Fp8Block].note.here);
}

/// A pass of few tokens takes as long as the host takes to launch it.
#[test]
fn a_short_eager_pass_is_paced_by_the_host() {
    let mut world = World::h200();
    world.overheads.eager_layer_us = 12.0 * 400.0;
    let eager = world.price("qwen3-8b", [1, 1], 1.0, (false, true));
    let (kernels, _) = launched(&eager);
    assert!((eager.us / (kernels * 400.0) - 1.0).abs() < 1e-9);
    let graph = world.price("qwen3-8b", [1, 1], 1.0, (true, true));
    assert!(graph.us < eager.us / 10.0);
}

fn sample(experiment: Experiment, value: f64, implementation: &str) -> Sample {
    Sample {
        implementation: implementation.into(),
        unit: experiment.probe.unit(),
        value,
        low: value * 0.99,
        high: value * 1.01,
        repeats: vec![value; 5],
        anchor_us: Vec::new(),
        outliers: Vec::new(),
        remarks: Vec::new(),
        experiment,
    }
}

fn calibration(world: &World, count: u32, samples: Vec<Sample>) -> Calibration {
    Calibration {
        schema: SCHEMA,
        name: "test".into(),
        provenance: Provenance {
            gpu: world.gpu.name.clone(),
            count,
            date: "2026-01-01".into(),
            ..Provenance::default()
        },
        warnings: Vec::new(),
        terms: terms(&world.gpu, &world.base, &world.overheads, &samples),
        samples,
    }
}

#[test]
fn memory_that_was_usable_stays_usable_for_the_builtin_engine_alone() {
    let world = World::h200();
    let card = world.gpu.memory_mib as f64 * 1024.0 * 1024.0;
    let usable = card - 3.0 * 1024f64.powi(3);
    let alone = |probe| Experiment::alone(probe, LaunchMode::Stream, "");
    let found = calibration(
        &world,
        2,
        vec![
            sample(alone(Probe::UsableMemory), usable, "parplan"),
            sample(alone(Probe::GraphMemory { nodes: 500 }), 1e6, "parplan"),
        ],
    );
    let layer = Layer {
        calibration: &found,
        origin: Origin::User,
    };
    let own = apply(true, &world.gpu, &world.base, &world.overheads, &[layer]);
    // 3 GiB were not usable, 0.5 GiB of them the communicators of two ranks.
    assert_eq!(own.gpu.context_mib, Some(2560));
    assert_eq!(own.overheads.graph_node_bytes, Some(2000.0));
    assert!(
        own.used[0].contains("usable_memory, graph_memory"),
        "{:?}",
        own.used
    );
    let other = apply(false, &world.gpu, &world.base, &world.overheads, &[layer]);
    assert_eq!(other.gpu.context_mib, world.gpu.context_mib);
    assert_eq!(other.overheads.graph_node_bytes, None);
}

/// On a machine whose links are slower the more ranks share them: each count's own, and 8 like 4.
#[test]
fn a_rank_count_that_was_not_measured_follows_the_nearest_one() {
    let world = World::h200();
    let mut real = world.base.clone();
    let was = real.collective.all_gather.link;
    real.collective.all_gather.link = [was[0], was[1] * 0.5, was[2] * 0.5];
    let measured = |most: u32| -> Vec<Sample> {
        let set = default_set(Machine {
            ranks: most,
            gpus: true,
        });
        set.into_iter()
            .filter(|e| {
                matches!(Class::of(e), Class::Collective(CollectiveKind::AllGather, r)
                    if r == parplan_profiles::calibration::BufferRegistration::None)
            })
            .map(|e| {
                let us = predicted_us(&e, &world.gpu, &real, &world.overheads).unwrap();
                sample(e, us, "nccl 2.28.3")
            })
            .collect()
    };
    let counts = |samples: &[Sample]| {
        let mut ranks: Vec<u32> = samples.iter().map(|s| s.experiment.ranks).collect();
        ranks.sort_unstable();
        ranks.dedup();
        ranks
    };
    let link = |most: u32| {
        let samples = measured(most);
        assert_eq!(counts(&samples).last(), Some(&most));
        let found = calibration(&world, most, samples);
        let layer = Layer {
            calibration: &found,
            origin: Origin::User,
        };
        let out = apply(true, &world.gpu, &world.base, &world.overheads, &[layer]);
        let costs = OpCosts::new(&out.efficiency, &out.gpu).unwrap();
        let spread = |ranks| costs.spread(OpClass::AllGather, ranks).unwrap();
        (
            out.efficiency.collective.all_gather.link,
            spread(2.0),
            spread(8.0),
        )
    };
    // Two ranks say nothing of the other counts, which stay the tables'.
    let (two, near, far) = link(2);
    assert!((two[2] / was[2] - 1.0).abs() < 1e-9 && far > near);
    // Four ranks do.
    let (four, near, far) = link(4);
    assert!(
        (four[1] / (was[1] * 0.5) - 1.0).abs() < 0.15,
        "{four:?} {was:?}"
    );
    assert!(
        (four[2] / (was[2] * 0.5) - 1.0).abs() < 0.15,
        "{four:?} {was:?}"
    );
    assert!(far > near + 0.05, "{far} {near}");
    // Eight were measured themselves.
    let (eight, near, far) = link(8);
    assert!(
        (eight[2] / (was[2] * 0.5) - 1.0).abs() < 0.1,
        "{eight:?} {was:?}"
    );
    assert_eq!(near, far);
}
