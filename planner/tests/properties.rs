//! What must hold for every question.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Ground, KV_FORMATS, layout, traffic};
use parplan_planner::deployment::Deployment;
use parplan_planner::kv::footprint;
use parplan_planner::legality::{Ground as Legal, Machines, ModelShape, Options, is_legal};
use parplan_planner::question::{Balance, Goal, Objective, Settings, Space};
use parplan_planner::search::{Effort, Pruning, recommend};
use parplan_planner::volume::{self, Call, Exchange, Rows};
use parplan_planner::{Layout, estimate};
use parplan_profiles::Library;
use proptest::prelude::*;

const MODELS: [&str; 6] = [
    "deepseek-v3",
    "deepseek-v3.2",
    "qwen3-235b-a22b",
    "llama-3.1-70b",
    "gpt-oss-120b",
    "qwen3.5-397b-a17b",
];
const GPUS: [&str; 4] = ["h100-sxm", "h200", "b200", "mi300x"];
const ENGINES: [&str; 4] = ["sglang", "sglang@0.5.6.post2", "vllm", "builtin"];

fn space(gpus: u32) -> Space {
    Space {
        gpus,
        nodes: gpus.div_ceil(8),
        tp: None,
        attention_dp: None,
        dcp: None,
        ep: None,
        pp: None,
        replicas: None,
        kv_dtypes: KV_FORMATS.to_vec(),
        cuda_graphs: vec![true, false],
        symmetric_memory: vec![false, true],
        expert_all_to_all: vec![false, true],
        settings: Settings::default(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The parts of the memory map sum to the card, and no part but the headroom is negative.
    #[test]
    fn the_memory_map_sums_to_the_card(
        model in 0..MODELS.len(), gpu in 0..GPUS.len(), engine in 0..ENGINES.len(),
        tp in 0u32..4, dp in 0u32..4, clients in 1.0..2000.0f64, isl in 16.0..30_000.0f64,
        graphs: bool, symmetric: bool,
    ) {
        let ground = Ground::new(MODELS[model], GPUS[gpu], ENGINES[engine]);
        let tp = 1 << tp;
        let layout = layout(tp, (1u32 << dp).min(tp), 1, 1);
        let setup = ground.setup();
        let mut choice = ground.choice(layout);
        choice.cuda_graphs = graphs;
        choice.symmetric_memory = symmetric;
        let plan = estimate::plan(&setup, &traffic(isl, 256.0, clients), &Settings::default(), choice);
        let map = plan.memory_bytes;
        let sum: f64 = map.parts().iter().map(|p| p.1).sum();
        prop_assert!((sum - map.total).abs() <= 1.0, "{sum} against {}", map.total);
        for (name, bytes) in map.parts() {
            prop_assert!(bytes.is_finite() && (bytes >= 0.0 || name == "headroom"), "{name} {bytes}");
        }
        let p = &plan.predicted;
        prop_assert!(p.tpot_ms.is_some());
        for value in [p.tpot_ms, Some(p.ttft_ms), Some(p.output_tokens_per_s_per_gpu)].into_iter().flatten() {
            prop_assert!(value.value.is_finite() && value.value > 0.0);
            prop_assert!(value.low <= value.value && value.value <= value.high);
        }
    }

    /// More rows never move fewer bytes, at a fixed exchange.
    #[test]
    fn volume_is_monotone_in_the_batch(
        rows in 1.0..4000.0f64, more in 0.0..4000.0f64, dp in 0u32..4, tp in 0u32..4, balance in 0.2..1.0f64,
    ) {
        let at = |max: f64| Rows {
            max,
            sum: max * f64::from(1u32 << dp) * balance,
            dp: 1 << dp,
            attention_tp: 1 << tp,
            row_bytes: 14_336.0,
        };
        for exchange in [Exchange::AllReduce, Exchange::MaxLen, Exchange::SumLen, Exchange::Exact, Exchange::AllToAll] {
            let bytes = |max| -> f64 {
                volume::layer(&at(max), exchange, true, true).as_slice().iter().map(Call::ring_bytes).sum()
            };
            prop_assert!(bytes(rows + more) >= bytes(rows));
        }
    }

    /// More DCP never raises the cache of a request on a rank.
    #[test]
    fn dcp_never_raises_kv_per_rank(tokens in 1.0..200_000.0f64, tp in 0u32..6, format in 0usize..2) {
        let library = Library::embedded();
        for name in MODELS {
            let model = library.model(name).unwrap();
            let tp = 1u32 << tp;
            let mut last = f64::INFINITY;
            for dcp in (0..6).map(|d| 1u32 << d).take_while(|&d| d <= tp) {
                let bytes = footprint(&model, &layout(tp, 1, dcp, 1), KV_FORMATS[format], false).request_bytes(tokens);
                prop_assert!(bytes <= last * (1.0 + 1e-12), "{name} tp{tp} dcp{dcp}");
                last = bytes;
            }
        }
    }

    /// Any sizes at all are either legal, and then priced to finite figures, or refused.
    #[test]
    fn any_layout_is_priced_or_refused(
        tp in 0u32..40, dp in 0u32..10, dcp in 0u32..10, ep in 0u32..10, pp in 0u32..5, replicas in 0u32..3,
        clients in 0.01..1e6f64, isl in 1.0..1e6f64, osl in 1.0..1e5f64, ratio in 0.01..1.0f64,
    ) {
        let ground = Ground::new("deepseek-v3", "h200", "sglang");
        let setup = ground.setup();
        let layout = Layout { replicas, tp, attention_dp: dp, dcp, ep, pp, nodes: 1 };
        let shape = ModelShape::of(&ground.model);
        let machines = Machines { gpus: 64, gpus_per_node: 64, link_domain: 8, sm: 90 };
        let legal = Legal { rules: &ground.rules, model: &shape, machines, options: Options::default() };
        if is_legal(&layout, &legal) {
            let mut traffic = traffic(isl, osl, clients);
            traffic.balance = Balance::MeanOverMax(ratio);
            let deployment = Deployment::new(&setup, &traffic, &Settings::default(), ground.choice(layout));
            let service = deployment.serve(&traffic);
            prop_assert!(service.tpot_us.is_none_or(f64::is_finite) && service.ttft_us.is_finite());
            prop_assert!(service.requests_per_s > 0.0);
        }
    }
}

/// Pruning answers as pricing everything does, and so do several threads.
#[test]
fn pruning_and_threads_change_nothing() {
    for (model, gpu, engine, gpus, objective) in [
        ("deepseek-v3", "h200", "sglang", 16, Objective::Throughput),
        ("qwen3-235b-a22b", "h100-sxm", "vllm", 8, Objective::Latency),
        (
            "llama-3.1-70b",
            "b200",
            "sglang@0.5.6.post2",
            8,
            Objective::Throughput,
        ),
        ("gpt-oss-120b", "h200", "builtin", 8, Objective::Pareto),
    ] {
        let ground = Ground::new(model, gpu, engine);
        let setup = ground.setup();
        let traffic = traffic(4096.0, 1024.0, 200.0);
        for tpot_ms in [None, Some(100.0), Some(0.001)] {
            let goal = Goal {
                ttft_ms: None,
                tpot_ms,
                objective,
            };
            let run = |pruning, threads| {
                recommend(
                    &setup,
                    &traffic,
                    &space(gpus),
                    &goal,
                    &Effort {
                        top: 4,
                        threads,
                        pruning,
                    },
                )
            };
            let all = run(Pruning::Off, 1);
            assert!(!all.ranked.is_empty(), "{model}");
            assert_eq!(all.met_goal, tpot_ms != Some(0.001), "{model} {tpot_ms:?}");
            assert_eq!(all.miss.is_some(), !all.met_goal);
            for other in [
                run(Pruning::On, 1),
                run(Pruning::On, 3),
                run(Pruning::Off, 2),
            ] {
                assert_eq!(all.ranked, other.ranked, "{model} {objective:?}");
                assert_eq!(all.rejected, other.rejected, "{model}");
            }
        }
    }
}

/// One idle or overloaded rank never makes the others faster.
#[test]
fn imbalance_never_helps() {
    let ground = Ground::new("deepseek-v3", "h200", "sglang");
    let setup = ground.setup();
    let step = |balance: Balance| {
        let mut traffic = traffic(4096.0, 1024.0, 256.0);
        traffic.balance = balance;
        let choice = ground.choice(layout(8, 8, 1, 1));
        let deployment = Deployment::new(&setup, &traffic, &Settings::default(), choice);
        deployment.steps(&traffic, false).decode(32.0).total_us()
    };
    let even = step(Balance::Even);
    assert!(step(Balance::MeanOverMax(0.75)) > even);
    assert!(step(Balance::MeanOverMax(0.5)) > step(Balance::MeanOverMax(0.75)));
    // Half of the ranks idle.
    assert!(
        step(Balance::Ranks(vec![
            64.0, 64.0, 64.0, 64.0, 0.0, 0.0, 0.0, 0.0
        ])) > even
    );
}
