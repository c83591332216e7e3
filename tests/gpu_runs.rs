//! On two NVIDIA GPUs: `cargo test --test gpu_runs -- --ignored --test-threads 1`, or
//! the built test program with `PARPLAN_BIN` set to the binary.

#![allow(clippy::unwrap_used)] // tests, helper functions included

mod exec_support;

use std::process::Command;
use std::time::{Duration, Instant};

use exec_support::{Running, alive, environment, finished, run, signal};
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Bytes in use on all GPUs, in MiB, by the driver's own tool.
fn used_mib() -> Vec<u64> {
    let output = Command::new("nvidia-smi")
        .args(["--query-gpu=memory.used", "--format=csv,noheader,nounits"])
        .output()
        .unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|l| l.trim().parse().unwrap())
        .collect()
}

#[test]
#[ignore = "needs 2 GPUs"]
fn nccl_and_peer_memory_conform_with_every_registration_and_launch() {
    let end = finished(run(&[
        "collectives",
        "--backend",
        "nccl",
        "--ranks",
        "2",
        "--check",
        "--json",
        "--sizes",
        "1K,48K,1M",
        "--repeats",
        "3",
        "--implementation",
        "backend,peer-one-shot,peer-two-shot",
    ]));
    assert_eq!(end.code(), Some(0), "{}", end.stderr);
    let result = json(&end.stdout);
    assert!(result["conformance_cases"].as_u64().unwrap() > 400);
    let samples = result["samples"].as_array().unwrap();
    assert!(samples.iter().all(|s| s["checked"] == true));
    for registration in ["none", "local", "symmetric"] {
        for launch in ["stream", "graph"] {
            let some = samples
                .iter()
                .any(|s| s["registration"] == registration && s["launch"] == launch);
            assert!(some, "{registration} {launch}");
        }
    }
    for name in ["parplan peer one-shot", "parplan peer two-shot"] {
        assert!(
            samples
                .iter()
                .any(|s| s["implementation"] == name && s["collective"] == "all_reduce"),
            "{name}: {}",
            result["notes"]
        );
    }
    // The kernels in the graph say whether symmetric memory was used: where it was asked
    // for and NCCL has it, and nowhere else.
    for s in samples.iter().filter(|s| {
        s["launch"] == "graph" && s["implementation"].as_str().unwrap().starts_with("nccl")
    }) {
        let symmetric = s["kernels"]
            .as_array()
            .unwrap()
            .iter()
            .any(|k| k.as_str().unwrap().contains("ncclSym"));
        let can = ["all_gather", "all_reduce", "reduce_scatter"]
            .contains(&s["collective"].as_str().unwrap());
        assert_eq!(symmetric, can && s["registration"] == "symmetric", "{s}");
        assert_eq!(s["silent_fallback"], false);
    }
}

#[test]
#[ignore = "needs 2 GPUs"]
fn a_disabled_window_is_noticed() {
    let mut command = run(&[
        "collectives",
        "--backend",
        "nccl",
        "--ranks",
        "2",
        "--json",
        "--sizes",
        "1K",
        "--repeats",
        "1",
        "--registration",
        "symmetric",
        "--collective",
        "all_gather",
        "--launch",
        "graph",
    ]);
    command.env("NCCL_WIN_ENABLE", "0");
    let end = finished(command);
    // Refused when it is registered, or seen in the kernels that ran; never silent.
    if end.code() == Some(0) {
        assert_eq!(
            json(&end.stdout)["samples"][0]["silent_fallback"],
            true,
            "{}",
            end.stdout
        );
    } else {
        assert!(
            end.stderr
                .contains("symmetric memory is not available here"),
            "{}",
            end.stderr
        );
    }
}

#[test]
#[ignore = "needs 2 GPUs"]
fn gather_is_exact_in_every_mode_eager_and_replayed() {
    let end = finished(run(&[
        "gather",
        "--backend",
        "nccl",
        "--ranks",
        "2",
        "--hidden",
        "512",
        "--json",
        "--repeats",
        "2",
        "--requests",
        "33,5",
        "--requests",
        "0,7",
        "--requests",
        "0,0",
        "--speculative-steps",
        "1",
    ]));
    assert_eq!(end.code(), Some(0), "{}", end.stderr);
    let result = json(&end.stdout);
    assert_eq!(result["skipped"], 1);
    let samples = result["samples"].as_array().unwrap();
    for mode in ["max_len", "sum_len", "all_gather_v"] {
        for launch in ["stream", "graph"] {
            assert!(
                samples
                    .iter()
                    .any(|s| s["mode"] == mode && s["launch"] == launch && s["checked"] == true),
                "{mode} {launch}"
            );
        }
    }
    let kept = |what: &str| -> Vec<u64> {
        result["memory"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|m| m["what"] == what)
            .map(|m| m["kept_bytes"].as_u64().unwrap())
            .collect()
    };
    assert!(kept("eager").iter().all(|b| *b == 0));
    assert!(kept("graph").iter().all(|b| *b > 0));
}

#[test]
#[ignore = "needs 2 GPUs"]
fn gather_is_exact_with_attention_tp() {
    let end = finished(run(&[
        "gather",
        "--backend",
        "nccl",
        "--ranks",
        "2",
        "--attn-dp",
        "1",
        "--partial",
        "--hidden",
        "512",
        "--json",
        "--repeats",
        "2",
        "--requests",
        "33",
    ]));
    assert_eq!(end.code(), Some(0), "{}", end.stderr);
    assert!(json(&end.stdout)["samples"].as_array().unwrap().len() >= 4);
}

#[test]
#[ignore = "needs 2 GPUs"]
fn sync_gives_every_row_by_every_way() {
    let end = finished(run(&[
        "sync",
        "--backend",
        "nccl",
        "--ranks",
        "2",
        "--json",
        "--rounds",
        "30",
    ]));
    assert_eq!(end.code(), Some(0), "{}", end.stderr);
    assert_eq!(
        json(&end.stdout)["samples"].as_array().unwrap().len(),
        11,
        "{}",
        end.stdout
    );
}

fn long(more: &[&str]) -> Running {
    let arguments = [
        &[
            "collectives",
            "--backend",
            "nccl",
            "--ranks",
            "2",
            "--collective",
            "all_reduce",
            "--sizes",
            "16M",
            "--at-least",
            "60",
        ],
        more,
    ]
    .concat();
    Running::start(run(&arguments))
}

#[test]
#[ignore = "needs 2 GPUs"]
fn a_killed_rank_ends_the_other_within_five_seconds() {
    let run = long(&["--registration", "none"]);
    let ranks = run.ranks(2);
    std::thread::sleep(Duration::from_secs(5));
    signal(ranks[1], "KILL");
    let end = run.finish(Duration::from_secs(20));
    assert!(end.took < Duration::from_secs(5), "{:?}", end.took);
    assert_eq!(end.code(), Some(1));
    assert!(
        end.stderr.contains(&format!(
            "parplan: rank 1 (process {}) was killed by signal 9 (SIGKILL)",
            ranks[1]
        )),
        "{}",
        end.stderr
    );
    assert!(
        end.stderr.contains("exited with code 1: rank 1 is gone"),
        "{}",
        end.stderr
    );
}

#[test]
#[ignore = "needs 2 GPUs"]
fn a_stalled_rank_is_named() {
    let run = long(&["--registration", "none", "--deadline", "3"]);
    let ranks = run.ranks(2);
    std::thread::sleep(Duration::from_secs(5));
    signal(ranks[1], "STOP");
    let end = run.finish(Duration::from_secs(30));
    assert_eq!(end.code(), Some(1));
    assert!(
        end.stderr.contains("no answer within 3.0 s"),
        "{}",
        end.stderr
    );
    assert!(
        end.stderr.contains(&format!(
            "rank 1 (process {}) was stopped by the supervisor",
            ranks[1]
        )),
        "{}",
        end.stderr
    );
}

#[test]
#[ignore = "needs 2 GPUs"]
fn ctrl_c_leaves_no_process_and_no_gpu_memory() {
    let before = used_mib();
    let run = long(&[]);
    let ranks = run.ranks(2);
    std::thread::sleep(Duration::from_secs(5));
    for pid in &ranks {
        if let Ok(value) = std::env::var("NCCL_NVLS_ENABLE") {
            assert_eq!(environment(*pid, "NCCL_NVLS_ENABLE"), Some(value));
        }
    }
    assert!(
        used_mib()
            .iter()
            .zip(&before)
            .all(|(now, before)| now > before)
    );
    signal(run.child.id() as i32, "INT");
    let end = run.finish(Duration::from_secs(20));
    assert!(end.took < Duration::from_secs(2), "{:?}", end.took);
    assert_eq!(end.code(), Some(130));
    assert!(ranks.iter().all(|pid| !alive(*pid)));
    let start = Instant::now();
    while used_mib()
        .iter()
        .zip(&before)
        .any(|(now, before)| *now > before + 8)
    {
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?} after, {before:?} before",
            used_mib()
        );
    }
}

#[test]
#[ignore = "needs 2 GPUs"]
fn out_of_memory_names_the_buffer_and_the_sizes() {
    for registration in ["none", "symmetric"] {
        let end = finished(run(&[
            "collectives",
            "--backend",
            "nccl",
            "--ranks",
            "2",
            "--collective",
            "all_gather",
            "--sizes",
            "300G",
            "--registration",
            registration,
        ]));
        assert_eq!(end.code(), Some(1));
        assert!(
            end.stderr
                .contains("memory for buffer 'send': asked 322122547200 bytes, "),
            "{registration}: {}",
            end.stderr
        );
        assert!(end.stderr.contains(" bytes free of "), "{}", end.stderr);
    }
}

#[test]
#[ignore = "needs 2 GPUs"]
fn fewer_gpus_than_ranks_or_none_at_all_start_nothing() {
    let end = finished(run(&["collectives", "--backend", "nccl", "--ranks", "64"]));
    assert_eq!(end.code(), Some(2));
    assert!(
        end.stderr
            .contains("64 ranks need 64 GPUs here, the driver shows "),
        "{}",
        end.stderr
    );
    let mut hidden = run(&["collectives", "--backend", "nccl", "--ranks", "2"]);
    hidden.env("CUDA_VISIBLE_DEVICES", "");
    let end = finished(hidden);
    assert_eq!(end.code(), Some(2));
    assert!(end.stderr.contains("no GPU: "), "{}", end.stderr);
}

#[test]
#[ignore = "needs 2 GPUs"]
fn a_missing_nccl_is_named() {
    let end = finished(run(&[
        "collectives",
        "--backend",
        "nccl",
        "--ranks",
        "2",
        "--nccl-path",
        "/nonexistent",
    ]));
    assert_eq!(end.code(), Some(2));
    assert!(
        end.stderr
            .contains("/nonexistent: there is no libnccl.so.2 there"),
        "{}",
        end.stderr
    );
}

/// Every kernel and every path of a stack, small, against the float64 reference: from
/// graphs and eagerly, decode and prefill.
#[test]
#[ignore = "needs 2 GPUs"]
fn stacks_on_gpus_equal_the_float64_reference() {
    let small = [
        "stack",
        "--backend",
        "nccl",
        "--scale",
        "8",
        "--layers",
        "2",
        "--context",
        "100",
        "--repeats",
        "2",
        "--check",
        "--json",
    ];
    let cases: [&[&str]; 8] = [
        &[
            "--model",
            "llama-3.1-70b",
            "--batch",
            "3,5",
            "--prefill",
            "70",
            "--graph",
        ],
        &["--model", "qwen3-235b", "--batch", "80", "--graph"],
        &[
            "--model",
            "deepseek-v3",
            "--kv",
            "fp8",
            "--batch",
            "3",
            "--prefill",
            "70",
            "--graph",
        ],
        &[
            "--model",
            "qwen3-235b",
            "--batch",
            "3",
            "--tp",
            "2",
            "--ep",
            "2",
            "--graph",
            "--symmetric",
        ],
        &[
            "--model",
            "qwen3-235b",
            "--batch",
            "3",
            "--tp",
            "2",
            "--dcp",
            "2",
            "--graph",
        ],
        &[
            "--model",
            "deepseek-v3",
            "--weights",
            "bf16",
            "--batch",
            "3",
            "--tp",
            "2",
            "--dcp",
            "2",
            "--dcp-merge",
            "a2a",
            "--graph",
        ],
        &[
            "--model",
            "deepseek-v3",
            "--weights",
            "bf16",
            "--requests",
            "3,1",
            "--tp",
            "2",
            "--attn-dp",
            "2",
            "--mode",
            "sum-len",
            "--graph",
            "--buckets",
            "4",
        ],
        &[
            "--model",
            "deepseek-v3",
            "--weights",
            "bf16",
            "--batch",
            "3",
            "--tp",
            "2",
            "--attn-dp",
            "2",
            "--ep",
            "2",
            "--all-to-all",
            "--graph",
        ],
    ];
    for case in cases {
        let end = finished(run(&[&small[..], case].concat()));
        assert_eq!(end.code(), Some(0), "{case:?}: {}", end.stderr);
        let result = json(&end.stdout);
        for step in result["steps"].as_array().unwrap() {
            // A step above the tolerance fails the run; here that it was compared at all.
            let error = step["distance"]["relative_error"].as_f64().unwrap();
            assert!(error > 1e-4, "{case:?}: {error}");
        }
    }
}

#[test]
#[ignore = "needs 2 GPUs"]
fn attention_shared_by_two_gpus_is_that_of_the_reference_in_every_way() {
    // Messages below and above what packets carry, and above what NCCL sends by its
    // low-latency protocols.
    for (kind, heads, batch) in [
        ("gqa", "64", "1"),
        ("gqa", "64", "96"),
        ("mla", "128", "4"),
        ("mla", "128", "48"),
    ] {
        let end = finished(run(&[
            "attention",
            "--backend",
            "nccl",
            "--dcp",
            "2",
            "--check",
            "--json",
            "--kind",
            kind,
            "--heads",
            heads,
            "--batch",
            batch,
            "--context",
            "700",
            "--query-tokens",
            "2",
            "--ragged",
            "--interleave",
            "4",
            "--iterations",
            "2",
            "--repeats",
            "3",
            "--graph-launches",
            "2",
        ]));
        assert_eq!(end.code(), Some(0), "{kind} {batch}: {}", end.stderr);
        let result = json(&end.stdout);
        assert!(
            result["notes"].as_array().unwrap().is_empty(),
            "{}",
            result["notes"]
        );
        let samples = result["samples"].as_array().unwrap();
        for merge in ["ag-rs", "all-to-all", "peer"] {
            let some = samples.iter().any(|s| s["way"]["merge"] == merge);
            assert!(some, "{merge}");
        }
        for sample in samples {
            assert!(
                sample["relative_error"].as_f64().unwrap() < 1e-2,
                "{sample}"
            );
        }
    }
}

#[test]
#[ignore = "needs 1 GPU"]
fn two_ranks_on_one_gpu_merge_over_peer_memory() {
    for (kind, kv, batch) in [
        ("gqa", "bf16", "5"),
        ("gqa", "fp8", "70"),
        ("mla", "fp8", "20"),
    ] {
        let end = finished(run(&[
            "attention",
            "--backend",
            "peer",
            "--dcp",
            "2",
            "--check",
            "--json",
            "--kind",
            kind,
            "--kv-dtype",
            kv,
            "--heads",
            "32",
            "--batch",
            batch,
            "--context",
            "300",
            "--query-tokens",
            "3",
            "--ragged",
            "--merge",
            "fused",
            "--iterations",
            "2",
            "--repeats",
            "2",
            "--graph-launches",
            "2",
        ]));
        assert_eq!(end.code(), Some(0), "{kind} {kv}: {}", end.stderr);
        let result = json(&end.stdout);
        for sample in result["samples"].as_array().unwrap() {
            assert!(
                sample["relative_error"].as_f64().unwrap() < 1e-2,
                "{sample}"
            );
        }
    }
}
