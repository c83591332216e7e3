//! Published comparisons of two configurations: the planner must name the measured winner.
//!
//! Sources are the threads named; figures in comments are theirs (output tokens a second unless said).

#![allow(clippy::unwrap_used)]

mod common;

use common::{Ground, layout, traffic};
use parplan_planner::Layout;
use parplan_planner::compare::{Metric, Side, Winner, compare};
use parplan_planner::question::{Settings, Traffic};

struct Case {
    source: &'static str,
    model: &'static str,
    gpu: &'static str,
    engine: &'static str,
    traffic: Traffic,
    a: (Layout, bool, Option<f64>),
    b: (Layout, bool, Option<f64>),
    winner: Winner,
}

fn cases() -> Vec<Case> {
    let tp8 = (layout(8, 1, 1, 1), false, None);
    let dcp8 = (layout(8, 1, 8, 1), false, None);
    let dp8 = layout(8, 8, 1, 8);
    let case = |source, model, gpu, engine, traffic, a, b, winner| Case {
        source,
        model,
        gpu,
        engine,
        traffic,
        a,
        b,
        winner,
    };
    vec![
        // 2332 against 3502; H200, 1024 out and fp8 weights assumed.
        case(
            "vllm#25049",
            "deepseek-r1",
            "h200",
            "vllm",
            traffic(2048.0, 1024.0, 4096.0),
            tp8,
            dcp8,
            Winner::B,
        ),
        // Total tokens 3936 against 3082; MI300X and 64 clients assumed.
        case(
            "ATOM#847 1k/1k",
            "deepseek-r1",
            "mi300x",
            "vllm",
            traffic(1024.0, 1024.0, 64.0),
            tp8,
            dcp8,
            Winner::A,
        ),
        // Total tokens 1520 against 2556.
        case(
            "ATOM#847 8k/8k",
            "deepseek-r1",
            "mi300x",
            "vllm",
            traffic(8192.0, 8192.0, 64.0),
            tp8,
            dcp8,
            Winner::B,
        ),
        // 18138 against 18992; B200 assumed.
        case(
            "sglang#8934",
            "deepseek-r1-nvfp4",
            "b200",
            "sglang",
            traffic(1024.0, 2048.0, 1024.0),
            (dp8, false, None),
            (dp8, true, None),
            Winner::B,
        ),
        // 720 against 1527; 256 clients assumed.
        case(
            "gpustack lab, GLM-5.2",
            "glm-5.2-fp8",
            "h200",
            "sglang",
            traffic(8192.0, 1024.0, 256.0),
            tp8,
            (layout(8, 8, 1, 1), false, Some(0.85)),
            Winner::B,
        ),
        // 39.6 against 27.0 at one client over PCIe; 1024 in and out assumed.
        case(
            "rtx6kpro#25",
            "glm-5.2-nvfp4",
            "rtx-pro-6000",
            "sglang",
            traffic(1024.0, 1024.0, 1.0),
            tp8,
            dcp8,
            Winner::A,
        ),
    ]
}

#[test]
fn published_winners_win() {
    for case in cases() {
        let ground = Ground::new(case.model, case.gpu, case.engine);
        let setup = ground.setup();
        let side = |(layout, symmetric, fraction): (Layout, bool, Option<f64>)| {
            let mut choice = ground.choice(layout);
            choice.symmetric_memory = symmetric;
            (
                choice,
                Settings {
                    memory_fraction: fraction,
                    ..Settings::default()
                },
            )
        };
        let (a, settings_a) = side(case.a);
        let (b, settings_b) = side(case.b);
        let found = compare(
            &Side {
                setup: &setup,
                choice: a,
                settings: &settings_a,
            },
            &Side {
                setup: &setup,
                choice: b,
                settings: &settings_b,
            },
            &case.traffic,
            Metric::Throughput,
        );
        assert_eq!(
            found.winner,
            Some(case.winner),
            "{}: by {:.2}",
            case.source,
            found.by
        );
        assert!(found.by > 1.0 && found.confidence >= 0.5, "{}", case.source);
    }
}

/// DCP wins where KV memory is short and loses where it is not: the place where that turns is found.
#[test]
fn dcp_against_tp_turns_with_concurrency() {
    let ground = Ground::new("deepseek-r1", "h200", "vllm");
    let setup = ground.setup();
    let settings = Settings::default();
    let side = |dcp| Side {
        setup: &setup,
        choice: ground.choice(layout(8, 1, dcp, 1)),
        settings: &settings,
    };
    let found = compare(
        &side(1),
        &side(8),
        &traffic(2048.0, 1024.0, 4096.0),
        Metric::Throughput,
    );
    let turn = found
        .crossovers
        .iter()
        .find(|c| c.axis == parplan_planner::compare::Axis::Concurrency)
        .expect("a crossover in concurrency");
    assert_eq!((turn.below, turn.above), (Winner::A, Winner::B));
    assert!(turn.at > 8.0 && turn.at < 4096.0, "{}", turn.at);
}
