//! Every embedded model on a few GPUs and every engine: an answer with sane figures, or a refusal
//! that says why.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Ground, traffic};
use parplan_planner::plan::Plan;
use parplan_planner::question::{Goal, Objective, Settings, Space, Traffic};
use parplan_planner::search::{Effort, Pruning, recommend};
use parplan_profiles::Library;

const GPUS: [&str; 4] = ["h200", "b200", "mi300x", "l40s"];
const ENGINES: [&str; 4] = ["sglang", "vllm", "trtllm", "builtin"];

/// A small space: the checkpoint's KV format, graphs on, everything else off.
fn space(ground: &Ground) -> Space {
    Space {
        gpus: 8,
        nodes: 1,
        tp: None,
        attention_dp: None,
        dcp: Some(1),
        ep: None,
        pp: Some(1),
        replicas: None,
        kv_dtypes: vec![ground.model.kv_dtype],
        cuda_graphs: vec![true],
        symmetric_memory: vec![false],
        expert_all_to_all: vec![false],
        settings: Settings::default(),
    }
}

#[allow(clippy::panic)] // a test's
fn check(plan: &Plan, traffic: &Traffic, what: &str) {
    let p = &plan.predicted;
    let Some(tpot) = p.tpot_ms else {
        panic!("{what}: no TPOT");
    };
    for (name, figure) in [
        ("tpot", tpot),
        ("ttft", p.ttft_ms),
        ("throughput", p.output_tokens_per_s),
        ("decode step", p.decode_step_ms),
        ("prefill pass", p.prefill_pass_ms),
    ] {
        let ordered = 0.0 < figure.low && figure.low <= figure.value && figure.value <= figure.high;
        assert!(
            ordered && figure.high.is_finite(),
            "{what}: {name} {figure:?}"
        );
    }
    // A decode step reads its weights at least once, which takes no less than 0.1 ms of any model.
    assert!(tpot.value > 0.1 && tpot.value < 60_000.0, "{what}");
    assert!(
        tpot.value >= p.decode_step_ms.value * 0.999,
        "{what}: TPOT below a decode step"
    );
    assert!((0.0..1.0).contains(&p.prefill_load), "{what}");
    // Little's law: what the clients wait for is what the servers finish.
    let seconds = (p.ttft_ms.value + tpot.value * (traffic.osl - 1.0)) / 1e3;
    let clients = p.requests_per_s.value * seconds;
    assert!(
        clients > 0.7 * traffic.concurrency && clients < 1.1 * traffic.concurrency,
        "{what}: {clients} clients kept busy of {}",
        traffic.concurrency
    );
    let map = &plan.memory_bytes;
    let sum: f64 = map.parts().iter().map(|(_, bytes)| bytes).sum();
    assert!((sum - map.total).abs() < 16.0, "{what}: {map:?}");
    assert!(
        map.parts().iter().all(|&(_, bytes)| bytes >= 0.0),
        "{what}: {map:?}"
    );
    assert!(map.kv_cache > 0.0 && map.weights > 0.0, "{what}");
    assert!(plan.max_running_requests >= 1, "{what}");
}

#[test]
fn every_model_is_answered_or_refused() {
    let library = Library::embedded();
    let (mut answered, mut refused) = (0, 0);
    for (n, model) in library.models().unwrap().iter().enumerate() {
        for (g, gpu) in GPUS.iter().enumerate() {
            for (e, engine) in ENGINES.iter().enumerate() {
                // Each model meets each GPU by one engine, and by another one than the model before.
                if (n + g + e) % 4 != 0 {
                    continue;
                }
                let what = format!("{} on {gpu} by {engine}", model.name);
                let ground = Ground::new(&model.name, gpu, engine);
                let setup = ground.setup();
                let traffic = traffic(2048.0, 512.0, [1.0, 64.0, 2000.0][(n + g) % 3]);
                let goal = Goal {
                    ttft_ms: None,
                    tpot_ms: None,
                    objective: Objective::Throughput,
                };
                let effort = Effort {
                    top: 3,
                    threads: 2,
                    pruning: Pruning::On,
                };
                let answer = recommend(&setup, &traffic, &space(&ground), &goal, &effort);
                for rejected in &answer.rejected {
                    assert!(rejected.reason.len() > 10, "{what}: {rejected:?}");
                    assert!(!rejected.reason.contains("NaN"), "{what}: {rejected:?}");
                }
                if answer.ranked.is_empty() {
                    assert!(!answer.rejected.is_empty(), "{what}: silence");
                    refused += 1;
                } else {
                    answered += 1;
                }
                for plan in &answer.ranked {
                    check(plan, &traffic, &what);
                }
            }
        }
    }
    assert!(
        answered > 200 && refused > 10,
        "{answered} answered, {refused} refused"
    );
}

/// Clients that wait for a place take no memory from those that run: with more of them, a
/// configuration lets in as many and finishes as much.
#[test]
fn waiting_clients_cost_no_throughput() {
    for (model, gpu, engine, tp, dp) in [
        ("deepseek-v3", "b200", "vllm", 4, 1),
        ("minimax-m3", "b200", "sglang", 8, 8),
        ("kimi-k2.5", "b200", "sglang", 4, 1),
        ("deepseek-v3", "b200", "builtin", 4, 1),
    ] {
        let ground = Ground::new(model, gpu, engine);
        let setup = ground.setup();
        let run = |clients: f64| {
            let traffic = traffic(2048.0, 512.0, clients);
            let choice = ground.choice(common::layout(tp, dp, 1, 1));
            parplan_planner::estimate::plan(&setup, &traffic, &Settings::default(), choice)
        };
        let mut last = 0.0;
        for clients in [64.0, 256.0, 1024.0, 4096.0, 16384.0] {
            let plan = run(clients);
            let rate = plan.predicted.requests_per_s.value;
            assert!(
                rate > 0.96 * last,
                "{model} by {engine}: {rate} requests a second at {clients} clients, {last} before"
            );
            last = f64::max(last, rate);
        }
    }
}
