//! Kernel prices and engine overheads of a user's folder, in place of the embedded ones.

#![allow(clippy::unwrap_used)]

mod cli_support;

use cli_support::{checked, command};
use parplan_profiles::{Library, Overheads};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// What `estimate` prints of one small question, with a folder of profiles; stderr where it fails.
fn estimate(folder: &Path, gpu: &str) -> Result<Value, String> {
    let arguments = [
        "estimate",
        "--model",
        "llama-3.1-8b",
        "--gpu",
        gpu,
        "--tp",
        "1",
        "--json",
    ];
    let mut run = command(&arguments);
    run.env("PARPLAN_PROFILES", folder);
    let output = checked(run, &arguments);
    if output.status.success() {
        Ok(serde_json::from_slice(&output.stdout).unwrap())
    } else {
        Err(String::from_utf8(output.stderr).unwrap())
    }
}

fn tpot(answer: &Value) -> f64 {
    answer["best"]["predicted"]["tpot_ms"]["value"]
        .as_f64()
        .unwrap()
}

fn put(folder: &Path, file: &str, text: &str) {
    let path = folder.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

const OF_HOPPER: &str = "engine = \"sglang\"\narchitecture = \"hopper\"\n";

#[test]
fn a_users_figures_come_before_the_embedded_ones_and_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let mine = folder.path();
    let before = estimate(mine, "h200").unwrap();
    let h200 = Library::embedded().gpu("h200").unwrap();
    let embedded = Overheads::embedded("sglang", &h200).unwrap().step_us;

    put(
        mine,
        "overheads/slow-host.toml",
        &format!("{OF_HOPPER}step_us = {:?}\n", embedded + 20_000.0),
    );
    let slow = estimate(mine, "h200").unwrap();
    // 20 ms a step more than the embedded figure.
    let more = tpot(&slow) - tpot(&before);
    assert!((19.9..21.5).contains(&more), "{more}");
    assert!(slow["assumptions"].to_string().contains("slow-host.toml"));

    // Of one GPU: before those of its architecture, and of no other GPU.
    let narrow = format!("{OF_HOPPER}gpu = \"h200\"\nstep_us = {embedded:?}\n");
    put(mine, "overheads/a-narrow.toml", &narrow);
    assert_eq!(tpot(&estimate(mine, "h200").unwrap()), tpot(&before));
    assert!(tpot(&estimate(mine, "h100-sxm").unwrap()) > 20.0);
    fs::remove_dir_all(mine.join("overheads")).unwrap();

    // Half of the bandwidth in dense products; everything else as embedded.
    put(
        mine,
        "efficiency/mine.toml",
        &format!("{OF_HOPPER}[gemm.bf16]\nmemory = 0.4559\n"),
    );
    let half = estimate(mine, "h200").unwrap();
    assert!(
        tpot(&half) > 1.2 * tpot(&before),
        "{} {}",
        tpot(&half),
        tpot(&before)
    );
    assert!(half["assumptions"].to_string().contains("mine.toml"));
    // Neither of another architecture, nor of another engine.
    put(
        mine,
        "efficiency/mine.toml",
        "engine = \"vllm\"\narchitecture = \"hopper\"\n[gemm.bf16]\nmemory = 0.4\n",
    );
    put(
        mine,
        "efficiency/other.toml",
        "engine = \"sglang\"\narchitecture = \"blackwell\"\n[gemm.bf16]\nmemory = 0.4\n",
    );
    assert_eq!(tpot(&estimate(mine, "h200").unwrap()), tpot(&before));
}

#[test]
fn what_cannot_be_is_named_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let mine = folder.path();
    let wrong =
        format!("{OF_HOPPER}[gemm.bf16]\nmemory = 1.5\nbase_us = -1.0\n[gemm.fp8]\nmemori = 0.5\n");
    put(mine, "efficiency/wrong.toml", &wrong);
    let said = estimate(mine, "h200").unwrap_err();
    assert!(
        said.contains("wrong.toml:7:1") && said.contains("memori"),
        "{said}"
    );
    put(
        mine,
        "efficiency/wrong.toml",
        &wrong.replace("memori", "memory"),
    );
    let said = estimate(mine, "h200").unwrap_err();
    for part in [
        "wrong.toml:4:1: gemm.bf16.memory is 1.5",
        "wrong.toml:5:1: gemm.bf16.base_us is -1",
    ] {
        assert!(said.contains(part), "{said}");
    }
    put(
        mine,
        "efficiency/wrong.toml",
        &format!("{OF_HOPPER}[gemm.bf16]\nmemory = 0.5\n"),
    );
    put(mine, "efficiency/twice.toml", OF_HOPPER);
    let said = estimate(mine, "h200").unwrap_err();
    assert!(
        said.contains("twice.toml") && said.contains("wrong.toml") && said.contains("keep one"),
        "{said}"
    );
}
