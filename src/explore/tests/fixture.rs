//! Answers with figures written down here, so that pictures of them change with the views alone and
//! not with what the planner predicts.

use super::super::field::Vocabulary;
use super::super::form::Form;
use super::super::planning::{Detail, Diff, Pin, Resolved, Sweep, Table};
use super::super::state::State;
use crate::args::Typed;
use crate::render::graphs::Landed;
use crate::stats::Stats;
use clap::{Arg, Command};
use parplan_planner::Layout;
use parplan_planner::compare::{Axis, Comparison, Crossover, Metric, Winner};
use parplan_planner::gather::GatherReport;
use parplan_planner::graphs::{EagerReason, Landing};
use parplan_planner::kv_split::{DcpWidth, KvInUse};
use parplan_planner::padding::{GatherForm, Padding, PaddingMode, PaddingReason};
use parplan_planner::plan::{
    Breakdown, Choice, GraphPlan, LayerVolume, LayoutReport, MemoryMap, Performance, Plan,
    Predicted, Term,
};
use parplan_planner::search::{Recommendation, Rejected};
use parplan_planner::sweep::{Curve, Point};
use parplan_planner::volume::{Call, Exchange, Group, Kind, Purpose};
use parplan_profiles::Dtype;
use std::sync::Arc;

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// Options of a question, few enough to be seen at once and of every kind.
fn command() -> Command {
    let option = |name: &'static str, group: &'static str, help: &'static str| {
        Arg::new(name).long(name).help_heading(group).help(help)
    };
    Command::new("question").args([
        option("model", "Model and GPUs", "A profile's name or a path").required(true),
        option("gpu", "Model and GPUs", "The GPU, such as h200").required(true),
        option(
            "gpus",
            "Model and GPUs",
            "GPUs of the whole deployment [default: what it takes]",
        ),
        option(
            "engine",
            "Engine",
            "The engine [default: sglang, at its newest version]",
        ),
        option("isl", "Traffic", "Input tokens [default: 1024]"),
        option("osl", "Traffic", "Output tokens [default: 1024]"),
        option(
            "concurrency",
            "Traffic",
            "Clients of the whole deployment [default: 64]",
        ),
        option(
            "tpot",
            "Limits",
            "Mean time of an output token to stay under",
        ),
        option(
            "symmetric-memory",
            "Choices",
            "Collective buffers in symmetric memory",
        )
        .value_parser(["on", "off", "auto"])
        .default_value("auto"),
        option(
            "tp",
            "Layout (`recommend` tries every size that is left open)",
            "GPUs of a stage",
        ),
    ])
}

/// What was typed.
pub fn typed() -> Typed {
    let mut typed = Typed::default();
    for (flag, value) in [
        ("model", "qwen3-30b-a3b"),
        ("gpu", "h200"),
        ("gpus", "8"),
        ("engine", "sglang@0.5.23"),
        ("concurrency", "128"),
        ("tpot", "20"),
    ] {
        typed.set(flag, value);
    }
    typed
}

/// A state before anything was answered.
pub fn asked(typed: &Typed) -> State {
    let vocabulary = Vocabulary {
        words: vec![
            (
                "model",
                names(&["qwen3-8b", "qwen3-30b-a3b", "deepseek-v3"]),
            ),
            ("gpu", names(&["h100", "h200", "b200"])),
            ("engine", names(&["sglang", "vllm"])),
        ],
    };
    State::new(Form::new(&command(), &vocabulary, typed))
}

fn names(all: &[&str]) -> Vec<String> {
    all.iter().map(|name| (*name).to_owned()).collect()
}

/// A state with everything answered.
pub fn answered() -> State {
    let typed = typed();
    let mut state = asked(&typed);
    let table = table(&typed);
    let first = table.answer.ranked[0].clone();
    state.choice = Some(first.choice);
    state.sweep = Some((1, Arc::new(sweep(&table))));
    state.detail = Some(Arc::new(detail(&first, &table.answer.ranked[1])));
    state.selection = 1;
    state.table = Some((1, table));
    state
}

/// Pins the first two rows of an answered state.
pub fn pin(state: &mut State) {
    let table = Arc::clone(state.table().unwrap());
    let pin = |row: usize| {
        Arc::new(Pin {
            resolved: Arc::clone(&table.resolved),
            plan: table.answer.ranked[row].clone(),
        })
    };
    let (a, b) = (pin(0), pin(1));
    state.diff = Some(Arc::new(Diff {
        options: vec![("isl".to_owned(), "2048".to_owned(), String::new())],
        verdict: Ok(Box::new(comparison(&a.plan, &b.plan))),
        a: Arc::clone(&a),
        b: Arc::clone(&b),
    }));
    state.pins = [Some(a), Some(b)];
    state.pinning = 1;
}

/// Four layouts that run and two that do not.
pub fn table(typed: &Typed) -> Arc<Table> {
    let mut resolved = Resolved::new(typed).unwrap();
    resolved.ask.assumptions = Default::default();
    resolved
        .ask
        .assumptions
        .note("no prompt token is found in the prefix cache (--prefix-hit)");
    let ranked = vec![
        plan(layout(8, 4, 1, 8), true, 1204.0, 11.9),
        plan(layout(8, 2, 2, 4), true, 1101.0, 13.1),
        plan(layout(8, 1, 1, 1), false, 870.5, 16.6),
        plan(layout(2, 1, 1, 1), false, 610.25, 23.7),
    ];
    let reason = "dcp 8 is wider than the copies of KV: 4 KV heads on attention tp 8 are kept 2 \
                  times; dcp may be at most 2";
    let rejected = [(8, 1, 8, 1), (8, 1, 4, 1)].map(|(tp, dp, dcp, ep)| Rejected {
        layout: layout(tp, dp, dcp, ep),
        reason: reason.to_owned(),
    });
    let answer = Recommendation {
        ranked,
        rejected: rejected.to_vec(),
        met_goal: true,
        miss: None,
        configurations: 4,
        points: 20,
    };
    let stats = Stats {
        points: Some(20),
        seconds: 0.0123,
        cpu_seconds: 0.02,
    };
    Arc::new(Table::new(Arc::new(resolved), answer, stats))
}

/// One replica, or as many as fill 8 GPUs.
pub fn layout(tp: u32, attention_dp: u32, dcp: u32, ep: u32) -> Layout {
    Layout {
        replicas: 8 / tp,
        tp,
        attention_dp,
        dcp,
        ep,
        pp: 1,
        nodes: 1,
    }
}

/// A configuration with these figures.
pub fn plan(layout: Layout, symmetric_memory: bool, throughput: f64, tpot: f64) -> Plan {
    let about = |value: f64| Predicted {
        value,
        low: value * 0.85,
        high: value * 1.18,
    };
    Plan {
        choice: Choice {
            layout,
            kv_dtype: Dtype::Bf16,
            cuda_graphs: true,
            symmetric_memory,
            speculative_steps: 0,
            expert_all_to_all: false,
        },
        layout: LayoutReport::from(layout),
        predicted: Performance {
            tpot_ms: Some(about(tpot)),
            ttft_ms: about(211.0),
            output_tokens_per_s_per_gpu: about(throughput),
            output_tokens_per_s: about(throughput * 8.0),
            requests_per_s: about(throughput / 115.0),
            decode_step_ms: about(tpot * 0.8),
            prefill_pass_ms: about(62.0),
            ttft_waiting_ms: 40.0,
            decoding_per_rank: 31.5,
            prefill_load: 0.12,
        },
        memory_bytes: memory(),
        kv_bytes_per_token_per_rank: 49_152.0,
        kv_redundancy: 2.0 / f64::from(layout.dcp),
        max_kv_tokens: 1_500_000.0 * f64::from(layout.dcp),
        max_request_tokens: 1_490_000.0,
        padding_mode: "max_len",
        exchange: Exchange::MaxLen,
        graphs: GraphPlan {
            batch_sizes: vec![1, 2, 4, 8, 12, 16, 24, 32, 40],
            unit: "requests_per_rank",
            engine_default: vec![1, 2, 4, 8, 16, 32, 64, 128],
            bucket: Some(32),
            waste: 0.015_6,
            eager_reason: None,
        },
        graph_batch_sizes: vec![1, 2, 4, 8, 12, 16, 24, 32, 40],
        max_running_requests: 160,
        kv_concurrency: 2604.0,
        memory_fraction: 0.88,
        receive_interval: 1,
        chunk_tokens: 8192,
        warnings: Vec::new(),
    }
}

fn memory() -> MemoryMap {
    let mut map = MemoryMap {
        weights: 7.5 * GIB,
        kv_cache: 100.0 * GIB,
        gathered_buffers: 0.25 * GIB,
        logits: 0.05 * GIB,
        activations: 0.5 * GIB,
        cuda_graphs: 0.75 * GIB,
        symmetric_pool: 4.0 * GIB,
        nccl: 2.0 * GIB,
        context: 1.1 * GIB,
        request_tables: 0.02 * GIB,
        headroom: 0.0,
        total: 140.4 * GIB,
    };
    map.headroom = map.total - map.used();
    map
}

/// The first row laid open.
fn detail(plan: &Plan, rival: &Plan) -> Detail {
    Detail {
        volumes: vec![volume("gqa + moe", 48.0)],
        gather: Some(gather()),
        steps: vec![step(
            "decode step, 31.5 requests a rank at 1536 tokens",
            9600.0,
        )],
        landings: landings(),
        in_use: [31.5, 31.5, 31.5, 20.0]
            .map(|requests| KvInUse {
                requests,
                bytes: requests * 1e9,
            })
            .to_vec(),
        widths: vec![
            DcpWidth {
                dcp: 1,
                outcome: Ok(Box::new(plan.clone())),
            },
            DcpWidth {
                dcp: 2,
                outcome: Err("dcp 2 is wider than the copies of KV".to_owned()),
            },
        ],
        flip: Some(comparison(plan, rival)),
        plan: plan.clone(),
    }
}

fn volume(layer: &str, layers: f64) -> LayerVolume {
    let call = |purpose, kind, group, ranks, bytes| Call {
        purpose,
        kind,
        group,
        ranks,
        bytes,
    };
    LayerVolume {
        layers,
        layer: layer.to_owned(),
        calls: vec![
            call(Purpose::Gather, Kind::AllGather, Group::Tp, 8, 524_288.0),
            call(
                Purpose::Combine,
                Kind::ReduceScatter,
                Group::Tp,
                8,
                524_288.0,
            ),
            call(
                Purpose::AttentionOutput,
                Kind::AllReduce,
                Group::AttentionTp,
                2,
                131_072.0,
            ),
        ],
    }
}

fn gather() -> GatherReport {
    let padding = Padding {
        mode: PaddingMode::MaxLen,
        form: GatherForm::AllGather,
        buffer_rows: 128,
        rank_rows: 32,
        padded_rows: 2,
        reason: PaddingReason::OnlyMode,
    };
    GatherReport {
        ranks: 4,
        mean_over_max: 1.0,
        decode: Some(padding),
        prefill: Some(padding),
        buffer_bytes: 524_288.0,
        max_len_us: 21.4,
        sum_len_us: 25.9,
        c: 1.21,
        break_even_balance: 0.826,
        sync: None,
        sync_us: 0.0,
        step_us: 9600.0,
        one_rank_idle_us: 10_900.0,
        one_rank_in_prefill_us: 62_000.0,
    }
}

fn step(title: &str, total_us: f64) -> Breakdown {
    let term = |name: &str, share: f64, roofline: Option<f64>| Term {
        name: name.to_owned(),
        count: 48.0,
        us: total_us * share,
        roofline_us: roofline.map(|part| total_us * share * part),
        low_us: total_us * share * 0.8,
        high_us: total_us * share * 1.25,
        implementation: "sglang".to_owned(),
        source: "a table of measured kernels".to_owned(),
    };
    Breakdown {
        title: title.to_owned(),
        terms: vec![
            term("decode attention", 0.25, Some(0.61)),
            term("routed experts", 0.6, Some(0.72)),
            term("host", 0.15, None),
        ],
        total_us,
    }
}

fn landings() -> Vec<Landed> {
    let graph = |requests_per_rank, size| Landed {
        requests_per_rank,
        landing: Landing::Graph {
            size,
            rank_rows: u64::from(size),
            waste_rows: u64::from(size - requests_per_rank),
        },
    };
    vec![
        graph(1, 1),
        graph(8, 8),
        graph(16, 24),
        graph(32, 32),
        Landed {
            requests_per_rank: 64,
            landing: Landing::Eager {
                reason: EagerReason::AboveLargest {
                    batch: 64,
                    largest: 40,
                },
            },
        },
    ]
}

fn comparison(a: &Plan, b: &Plan) -> Comparison {
    Comparison {
        a: a.clone(),
        b: b.clone(),
        metric: Metric::Throughput,
        winner: Some(Winner::A),
        by: 1.0935,
        confidence: 0.81,
        crossovers: vec![Crossover {
            axis: Axis::Concurrency,
            at: 2069.4,
            below: Winner::A,
            above: Winner::B,
        }],
        steady: vec![Axis::PromptTokens],
    }
}

/// Curves that fall as a user's speed grows.
fn sweep(table: &Table) -> Sweep {
    let curves = table
        .answer
        .ranked
        .iter()
        .enumerate()
        .map(|(row, plan)| Curve {
            choice: plan.choice,
            points: [1.0, 4.0, 16.0, 64.0, 128.0, 512.0]
                .map(|clients: f64| {
                    let user =
                        180.0 / (1.0 + clients / (60.0 - 12.0 * row as f64)) + 3.0 * row as f64;
                    Point {
                        clients,
                        tokens_per_s_user: user,
                        tokens_per_s_gpu: user * clients / 8.0,
                    }
                })
                .to_vec(),
        });
    Sweep::new(curves.collect())
}
