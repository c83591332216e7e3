//! What an interactive session asks: a search that is called off, a configuration carried over to a
//! changed question, other DCP widths, how full each rank is.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Ground, layout, traffic};
use parplan_planner::deployment::Deployment;
use parplan_planner::plan::Choice;
use parplan_planner::question::{Balance, Goal, GraphSizes, Objective, Settings, Space};
use parplan_planner::search::{Effort, Pruning, recommend, recommend_while, refusal};
use parplan_planner::{estimate, kv_split, sweep};
use parplan_profiles::Dtype;
use std::sync::atomic::{AtomicUsize, Ordering};

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
        kv_dtypes: vec![Dtype::Bf16],
        cuda_graphs: vec![true],
        symmetric_memory: vec![true, false],
        expert_all_to_all: vec![true, false],
        settings: Settings::default(),
    }
}

const GOAL: Goal = Goal {
    ttft_ms: None,
    tpot_ms: None,
    objective: Objective::Throughput,
};

#[test]
fn a_search_stops_when_it_is_told_to_and_not_before() {
    let ground = Ground::new("deepseek-v3", "h200", "sglang");
    let traffic = traffic(2048.0, 512.0, 256.0);
    for threads in [1, 3] {
        let effort = Effort {
            top: 1000,
            threads,
            pruning: Pruning::On,
        };
        let asked = AtomicUsize::new(0);
        let search = |allowed: usize| {
            asked.store(0, Ordering::Relaxed);
            let keep_going = || asked.fetch_add(1, Ordering::Relaxed) < allowed;
            recommend_while(
                &ground.setup(),
                &traffic,
                &space(16),
                &GOAL,
                &effort,
                &keep_going,
            )
        };
        let whole = search(usize::MAX).unwrap();
        let asks = asked.load(Ordering::Relaxed);
        assert_eq!(
            whole,
            recommend(&ground.setup(), &traffic, &space(16), &GOAL, &effort)
        );
        for allowed in [0, 1, asks / 2, asks - 1] {
            assert_eq!(search(allowed), None, "{allowed} of {asks}");
            // Every thread may ask once more before it hears of it.
            assert!(asked.load(Ordering::Relaxed) <= allowed + threads);
        }
        assert!(search(asks).is_some());
    }
}

#[test]
fn a_choice_is_carried_over_to_a_space_that_fixes_more() {
    let ground = Ground::new("deepseek-v3", "h200", "sglang");
    let traffic = traffic(1024.0, 1024.0, 64.0);
    let choice = Choice {
        symmetric_memory: true,
        speculative_steps: 3,
        ..ground.choice(layout(8, 8, 1, 8))
    };
    let kept = space(8).nearest(&choice, &traffic).unwrap();
    assert!(kept.symmetric_memory);
    // The traffic no longer drafts.
    assert_eq!(kept.speculative_steps, 0);
    let fixed = Space {
        symmetric_memory: vec![false],
        kv_dtypes: vec![Dtype::Fp8],
        nodes: 2,
        ..space(8)
    };
    let moved = fixed.nearest(&choice, &traffic).unwrap();
    assert_eq!(
        (
            moved.symmetric_memory,
            moved.kv_dtype,
            moved.layout.nodes,
            moved.layout.tp
        ),
        (false, Dtype::Fp8, 2, 8)
    );
    assert_eq!(space(16).nearest(&choice, &traffic), None);
    let narrow = Space {
        tp: Some(4),
        ..space(8)
    };
    assert_eq!(narrow.nearest(&choice, &traffic), None);
}

/// DeepSeek's latent cache is one head, so tp 8 keeps 8 copies and each doubling of DCP halves them.
#[test]
fn wider_dcp_keeps_fewer_copies_and_more_tokens() {
    let ground = Ground::new("deepseek-v3", "h200", "sglang");
    let traffic = traffic(1024.0, 1024.0, 64.0);
    let setup = ground.setup();
    let widths = kv_split::by_dcp(
        &setup,
        &traffic,
        &space(8),
        ground.choice(layout(8, 1, 1, 1)),
    );
    let copies: Vec<(u32, f64)> = widths
        .iter()
        .map(|w| (w.dcp, w.outcome.as_ref().unwrap().kv_redundancy))
        .collect();
    assert_eq!(copies, [(1, 8.0), (2, 4.0), (4, 2.0), (8, 1.0)]);
    for pair in widths.windows(2) {
        let tokens = |i: usize| pair[i].outcome.as_ref().unwrap().max_kv_tokens;
        assert!(tokens(1) > 1.9 * tokens(0));
    }
}

#[test]
fn a_width_that_cannot_run_says_why() {
    let ground = Ground::new("qwen3-8b", "h200", "sglang");
    let traffic = traffic(1024.0, 1024.0, 64.0);
    let setup = ground.setup();
    let choice = ground.choice(layout(8, 1, 1, 1));
    let widths = kv_split::by_dcp(&setup, &traffic, &space(8), choice);
    // 8 KV heads over 8 ranks: nothing is kept twice, so there is nothing to share.
    assert!(widths[0].outcome.is_ok());
    for width in &widths[1..] {
        let reason = width.outcome.as_ref().unwrap_err();
        assert!(reason.contains("dcp"), "{reason}");
    }
    assert_eq!(refusal(&setup, &traffic, &space(8), choice), None);
}

#[test]
fn ranks_are_as_full_as_their_requests() {
    let ground = Ground::new("deepseek-v3", "h200", "sglang");
    let setup = ground.setup();
    let choice = ground.choice(layout(8, 8, 1, 8));
    let mut traffic = traffic(1024.0, 1024.0, 64.0);
    let full = |traffic: &_| {
        let settings = Settings::default();
        let deployment = Deployment::new(&setup, traffic, &settings, choice);
        let service = deployment.serve(traffic);
        kv_split::in_use(&deployment, traffic, &service)
    };
    let even = full(&traffic);
    assert_eq!(even.len(), 8);
    assert!(even.windows(2).all(|pair| pair[0] == pair[1]));
    traffic.balance = Balance::Ranks(vec![8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 0.0]);
    let uneven = full(&traffic);
    assert_eq!((uneven[7].requests, uneven[7].bytes), (0.0, 0.0));
    assert!(uneven[0].bytes > even[0].bytes);
    let each = uneven[0].bytes / uneven[0].requests;
    assert!((even[0].bytes / even[0].requests / each - 1.0).abs() < 1e-9);
}

#[test]
fn graph_sizes_that_were_listed_in_vain_are_named() {
    let ground = Ground::new("qwen3-8b", "h200", "sglang");
    let setup = ground.setup();
    let traffic = traffic(1024.0, 1024.0, 64.0);
    let warned = |sizes: Option<Vec<u32>>| {
        let settings = Settings {
            graph_sizes: sizes.map(GraphSizes::Listed),
            ..Settings::default()
        };
        let plan = estimate::plan(
            &setup,
            &traffic,
            &settings,
            ground.choice(layout(2, 1, 1, 1)),
        );
        plan.warnings
            .into_iter()
            .find(|warning| warning.contains("not captured"))
    };
    assert_eq!(warned(None), None);
    assert_eq!(warned(Some(vec![1, 8, 64])), None);
    let warning = warned(Some(vec![1, 8, 64, 128, 512])).unwrap();
    assert!(
        warning.starts_with("graph sizes 128, 512 are not captured"),
        "{warning}"
    );
    assert!(warning.ends_with("running requests is 64"), "{warning}");
}

/// More clients never make a user faster, and no point of the front is beaten in both.
#[test]
fn a_sweep_trades_speed_for_throughput_and_its_front_is_beaten_by_none() {
    let ground = Ground::new("deepseek-v3", "h200", "sglang");
    let traffic = traffic(1024.0, 1024.0, 100.0);
    let setup = ground.setup();
    let choices = [
        ground.choice(layout(8, 1, 1, 1)),
        ground.choice(layout(8, 8, 1, 8)),
        ground.choice(layout(8, 1, 8, 1)),
    ];
    let settings = Settings::default();
    let curves = sweep::sweep(&setup, &traffic, &settings, &choices, 2, &|| true).unwrap();
    assert_eq!(curves.len(), 3);
    for (curve, choice) in curves.iter().zip(choices) {
        assert_eq!(curve.choice, choice);
        // 1, 2, 4 … 1024 and the planned 100.
        assert_eq!(curve.points.len(), 12);
        for pair in curve.points.windows(2) {
            assert!(pair[0].clients < pair[1].clients);
            assert!(pair[1].tokens_per_s_user <= pair[0].tokens_per_s_user * 1.001);
        }
        let planned = curve.points.iter().find(|p| p.clients == 100.0).unwrap();
        let plan = estimate::plan(&setup, &traffic, &settings, choice);
        let tokens = plan.predicted.output_tokens_per_s_per_gpu.value;
        assert!((planned.tokens_per_s_gpu / tokens - 1.0).abs() < 1e-9);
    }
    let front = sweep::front(&curves);
    let points = || curves.iter().flat_map(|curve| &curve.points);
    for &(curve, point) in &front {
        let on = curves[curve].points[point];
        assert!(
            !points().any(|other| other.tokens_per_s_user > on.tokens_per_s_user
                && other.tokens_per_s_gpu > on.tokens_per_s_gpu)
        );
    }
    // More than one layout is best somewhere.
    assert!(front.iter().any(|place| place.0 != front[0].0), "{front:?}");
    assert!(sweep::sweep(&setup, &traffic, &settings, &choices, 2, &|| false).is_none());
}
