//! `parplan run stack` and `parplan exec` on the CPU backend, as a person runs them.

#![allow(clippy::unwrap_used)] // tests, helper functions included

mod exec_support;

use std::process::Command;

use exec_support::{finished, run};
use serde_json::Value;

const SMALL: [&str; 16] = [
    "stack",
    "--model",
    "llama-3.1-8b",
    "--scale",
    "32",
    "--layers",
    "1",
    "--context",
    "5",
    "--repeats",
    "1",
    "--warmup",
    "0",
    "--batch",
    "2",
    "--json",
];

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_checked_stack_says_how_near_it_is_and_where_its_time_goes() {
    let end = finished(run(&[&SMALL[..], &["--tp", "2", "--check"]].concat()));
    assert_eq!(end.code(), Some(0), "{}", end.stderr);
    let result = json(&end.stdout);
    let step = &result["steps"][0];
    let error = step["distance"]["relative_error"].as_f64().unwrap();
    assert!(error > 1e-4 && error < 1e-2, "{error}");
    let ops: Vec<&str> = step["parts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["op"].as_str().unwrap())
        .collect();
    for op in [
        "qkv projection",
        "decode attention",
        "dense ffn",
        "ffn combine",
    ] {
        assert!(ops.contains(&op), "{op} in {ops:?}");
    }
    let sum: f64 = step["parts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["median_us"].as_f64().unwrap())
        .sum();
    assert!((sum - step["sum_of_parts_us"].as_f64().unwrap()).abs() < 1e-6);
    let memory = result["memory"].as_array().unwrap();
    let weights = memory.iter().find(|m| m["what"] == "weights").unwrap();
    assert!(weights["bytes"].as_u64().unwrap() > 0);
}

#[test]
fn sharing_a_cache_without_peer_memory_says_what_runs_in_its_place() {
    let fused = ["--tp", "2", "--dcp", "2", "--dcp-merge", "fused", "--check"];
    let end = finished(run(&[&SMALL[..], &fused].concat()));
    assert_eq!(end.code(), Some(0), "{}", end.stderr);
    let result = json(&end.stdout);
    assert_eq!(result["spec"]["dcp_merge"], "peer");
    let error = result["steps"][0]["distance"]["relative_error"].as_f64();
    assert!(error.unwrap() < 1e-2);
    let said = |n: &Value| n.as_str().unwrap().contains("all-to-all in its place");
    assert!(result["notes"].as_array().unwrap().iter().any(said));
}

#[test]
fn shares_of_a_larger_layout_name_the_collectives_that_were_narrower() {
    let shard = [
        "--tp",
        "2",
        "--attn-dp",
        "2",
        "--as-shard-of",
        "tp=8,attn-dp=8",
    ];
    let end = finished(run(&[&SMALL[..], &shard].concat()));
    assert_eq!(end.code(), Some(0), "{}", end.stderr);
    let result = json(&end.stdout);
    // Two of eight DP ranks bring rows; the block computes those of all eight.
    assert_eq!(result["steps"][0]["rows"], 2);
    assert_eq!(result["steps"][0]["gathered_rows"], 16);
    let narrowed = result["narrowed"].as_array().unwrap();
    let dp = narrowed
        .iter()
        .find(|n| n["group"] == "attention dp")
        .unwrap();
    assert_eq!((&dp["real_ranks"], &dp["ranks"]), (&8.into(), &2.into()));
}

#[test]
fn what_cannot_be_run_is_refused_with_what_can() {
    for (extra, words) in [
        (&["--tp", "3"][..], "do not divide over 3 ranks"),
        (&["--graph"], "--backend nccl"),
        (&["--layers", "99"], "1 to 32"),
        (&["--as-shard-of", "tp=8", "--check"], "whole layout"),
        (&["--as-shard-of", "tp=2,pp=2"], "tp=8,attn-dp=4"),
        (&["--tp", "2", "--ranks", "3"], "--ranks may be left out"),
        (&["--prefill", "0"], "must be a whole number from 1 to"),
        (&["--all-to-all", "--tp", "2"], "ep equal to tp"),
    ] {
        let end = finished(run(&[&SMALL[..], extra].concat()));
        assert_eq!(end.code(), Some(2), "{extra:?}: {}", end.stderr);
        assert!(end.stderr.contains(words), "{extra:?}: {}", end.stderr);
    }
}

/// `parplan exec` of a plan of that many ranks.
fn exec(folder: &std::path::Path, tp: u32, more: &[&str]) -> std::process::Output {
    use parplan_planner::launch::LaunchSpec;
    use parplan_planner::layout::Layout;
    let layout = Layout {
        replicas: 1,
        tp,
        attention_dp: 1,
        dcp: 1,
        ep: 1,
        pp: 1,
        nodes: 1,
    };
    let mut plan = LaunchSpec::new("qwen3-0.6b", layout, 8);
    plan.running_per_rank = Some(2);
    plan.context_length = Some(16);
    plan.chunk_tokens = Some(3);
    let file = folder.join("parplan-exec.json");
    std::fs::write(&file, serde_json::to_string(&plan).unwrap()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_parplan"));
    command.arg("exec").arg("--plan").arg(&file).args(more);
    command.output().unwrap()
}

#[test]
fn a_plan_runs_here_and_is_held_against_its_prediction() {
    let folder = tempfile::tempdir().unwrap();
    let small = [
        "--backend",
        "cpu",
        "--layers",
        "1",
        "--repeats",
        "1",
        "--no-prefill",
        "--gpu",
        "h200",
        "--json",
    ];
    let output = exec(folder.path(), 2, &small);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    let report = json(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(report["predicted_for"], "h200");
    let steps = report["compared"].as_array().unwrap();
    assert_eq!(steps.len(), 1, "decode only");
    for step in steps {
        assert!(step["predicted_us"].as_f64().unwrap() > 0.0);
        let both = step["operations"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|o| o["predicted_us"].is_number() && o["measured_us"].is_number())
            .count();
        assert!(both >= 6, "{step:#}");
    }
}

#[test]
fn a_plan_that_is_no_file_or_too_large_a_part_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let output = exec(folder.path(), 2, &["--backend", "cpu", "--ranks", "3"]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("1 to 2 ranks"), "{text}");
}
