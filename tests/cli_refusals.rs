//! Input that cannot be used: one line that names it, its value and what would be right; exit 2.

#![allow(clippy::unwrap_used, clippy::panic)]

mod cli_support;

use cli_support::{checked, command, refusal};
use std::fs::{self, File};
use std::path::Path;

const MODEL: [&str; 4] = ["--model", "deepseek-v3", "--gpu", "h200"];

fn estimate(more: &[&str]) -> String {
    let mut all = vec!["estimate"];
    all.extend(MODEL);
    all.extend(more);
    refusal(&all, 2)
}

#[test]
fn every_refusal_names_the_value_and_what_would_be_right() {
    for (arguments, parts) in [
        (
            vec!["--tp", "8", "--gpus", "7"],
            vec!["--gpus 7", "tp 8", "--gpus 8", "--tp 7"],
        ),
        (vec!["--tp", "0"], vec!["'0'", "--tp", "1 to 16384"]),
        (vec!["--tp", "-8"], vec!["'-8'", "1 to 16384"]),
        (vec!["--tp", "4294967297"], vec!["4294967297", "1 to 16384"]),
        (vec!["--tp", "8.5"], vec!["'8.5'", "whole number"]),
        (
            vec!["--tp", "16384", "--pp", "16384"],
            vec!["268435456 GPUs", "at most 16384"],
        ),
        (
            vec!["--tp", "8", "--attn-dp", "3"],
            vec!["3", "tp 8", "nearest", "2"],
        ),
        (vec!["--tp", "8", "--ep", "16"], vec!["ep 16", "tp 8"]),
        (vec!["--tp", "8", "--dcp", "16"], vec!["dcp 16", "8"]),
        (
            vec!["--tp", "32", "--ep", "32", "--nodes", "2"],
            vec!["--nodes 2", "--nodes 4"],
        ),
        (
            vec!["--tp", "8", "--nodes", "3"],
            vec!["--nodes 3", "evenly", "--nodes 2"],
        ),
        (
            vec!["--tp", "8", "--isl", "0"],
            vec!["'0'", "--isl", "from 1"],
        ),
        (vec!["--tp", "8", "--isl", "NaN"], vec!["'NaN'", "--isl"]),
        (
            vec!["--tp", "8", "--isl", "1e300"],
            vec!["1e300", "16777216"],
        ),
        (
            vec!["--tp", "8", "--isl", "200000"],
            vec!["201024", "163840", "--context-length"],
        ),
        (
            vec!["--tp", "8", "--concurrency", "inf"],
            vec!["'inf'", "1000000"],
        ),
        (
            vec!["--tp", "8", "--prefix-hit", "1.5"],
            vec!["'1.5'", "0 to 1"],
        ),
        (
            vec!["--tp", "8", "--range-ratio", "0"],
            vec!["'0'", "above 0"],
        ),
        (
            vec!["--tp", "8", "--imbalance", "2"],
            vec!["'2'", "0.75", "8,8,2,0", "seed:42"],
        ),
        (
            vec!["--tp", "8", "--speculative", "3"],
            vec!["'3'", "3,0.7"],
        ),
        (
            vec!["--tp", "8", "--kv-dtype", "nvfp4", "--engine", "vllm"],
            vec!["nvfp4", "vllm", "bf16, fp8"],
        ),
        (
            vec!["--tp", "8", "--kv-dtype", "int4"],
            vec!["'int4'", "bf16", "fp8"],
        ),
        (
            vec!["--tp", "8", "--kv-dtype", "bf16,fp8"],
            vec!["2 formats", "recommend"],
        ),
        (
            vec!["--tp", "8", "--memory-fraction", "1"],
            vec!["--memory-fraction 1", "0.9"],
        ),
        (
            vec!["--tp", "8", "--graph-sizes", "0,1"],
            vec!["'0,1'", "1,2,4,8"],
        ),
        (vec!["--tp", "8", "--ttft", "0"], vec!["'0'", "above 0"]),
        (
            vec!["--tp", "8", "--expert-all-to-all", "on"],
            vec!["--ep above 1"],
        ),
        (
            vec!["--tp", "8", "--engine", "sgalng"],
            vec!["`sgalng`", "sglang"],
        ),
        (
            vec!["--tp", "8", "--engine", "sglang@banana"],
            vec!["'banana'", "0.5.23"],
        ),
        (
            vec!["--tp", "8", "--engine", "sglang@99.0"],
            vec!["99.0", "0.5.23", "--engine-assume"],
        ),
        (
            vec!["--tp", "8", "--cuda-graphs", "maybe"],
            vec!["'maybe'", "on, off, auto"],
        ),
        (vec!["--tpp", "8"], vec!["--tpp", "--tp"]),
        (vec![], vec!["--tp", "--gpus"]),
    ] {
        let line = estimate(&arguments);
        for part in parts {
            assert!(line.contains(part), "{arguments:?}: no {part:?} in {line}");
        }
    }
}

#[test]
fn names_are_corrected() {
    let line = refusal(
        &[
            "estimate",
            "--model",
            "deepsek-v3",
            "--gpu",
            "h200",
            "--tp",
            "8",
        ],
        2,
    );
    assert!(
        line.contains("`deepsek-v3`") && line.contains("deepseek-v3,"),
        "{line}"
    );
    let line = refusal(
        &[
            "estimate", "--model", "qwen3-8b", "--gpu", "h2000", "--tp", "8",
        ],
        2,
    );
    assert!(line.contains("`h2000`") && line.contains("h200"), "{line}");
    let line = refusal(&["profiles", "show", "gpt-oss-12b"], 2);
    assert!(line.contains("gpt-oss-120b"), "{line}");
    let line = refusal(
        &["compare", "tp=8", "tp=x", "--model", "a", "--gpu", "b"],
        2,
    );
    assert!(line.contains("tp=x"), "{line}");
}

#[test]
fn drafts_need_layers_that_draft() {
    let all = [
        "estimate",
        "--model",
        "qwen3-8b",
        "--gpu",
        "h200",
        "--tp",
        "1",
        "--speculative",
        "3,0.7",
    ];
    let line = refusal(&all, 2);
    assert!(
        line.contains("--speculative 3,0.7") && line.contains("MTP"),
        "{line}"
    );
}

#[test]
fn a_side_that_cannot_run_is_named() {
    let mut all = vec!["compare", "tp=8", "tp=8,attn-dp=3"];
    all.extend(MODEL);
    let line = refusal(&all, 2);
    assert!(
        line.contains("B: ") && line.contains("attention dp 3"),
        "{line}"
    );
}

#[test]
fn a_search_needs_gpus_that_can_hold_the_model() {
    let mut all = vec!["recommend"];
    all.extend(MODEL);
    assert!(refusal(&all, 2).contains("--gpus"));
    all.extend(["--gpus", "4"]);
    let line = refusal(&all, 1);
    assert!(
        line.contains("deepseek-v3") && line.contains("GiB"),
        "{line}"
    );
    all.extend(["--tp", "8"]);
    assert!(refusal(&all, 2).contains("--tp 8 is more than --gpus 4"));
}

#[test]
fn sizes_that_cannot_share_the_gpus_are_refused() {
    for (sizes, parts) in [
        (vec!["--tp", "3"], vec!["--tp 3", "--gpus 8", "--gpus 6"]),
        (vec!["--replicas", "5"], vec!["--replicas 5", "--gpus 5"]),
        (
            vec!["--tp", "4", "--pp", "4"],
            vec!["--tp 4 with --pp 4", "--gpus 16"],
        ),
    ] {
        let mut all = vec!["recommend", "--gpus", "8"];
        all.extend(MODEL);
        all.extend(&sizes);
        let line = refusal(&all, 2);
        for part in parts {
            assert!(line.contains(part), "{sizes:?}: no {part:?} in {line}");
        }
    }
}

fn sparse(path: &Path, bytes: u64) {
    File::create(path).unwrap().set_len(bytes).unwrap();
}

#[test]
fn files_that_are_no_models_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("array.json"), "[1, 2]").unwrap();
    fs::write(at("empty.json"), "").unwrap();
    sparse(&at("huge.json"), 100 << 20);
    fs::write(at("binary.json"), [0xff, 0xfe, 0x00]).unwrap();
    fs::write(at("cut.json"), "{\"architectures\": [\"Qwen3For").unwrap();
    fs::write(
        at("other.json"),
        "{\"architectures\": [\"NewForCausalLM\"]}",
    )
    .unwrap();
    fs::write(
        at("bare.json"),
        "{\"architectures\": [\"Qwen3ForCausalLM\"]}",
    )
    .unwrap();
    for (name, part) in [
        ("array.json", "array"),
        ("empty.json", "empty"),
        ("huge.json", "104857600"),
        ("binary.json", "UTF-8"),
        ("cut.json", "cut.json"),
        ("other.json", "NewForCausalLM"),
        ("bare.json", "missing"),
        ("absent.json", "cannot be read"),
    ] {
        let path = at(name).display().to_string();
        let line = refusal(
            &["estimate", "--model", &path, "--gpu", "h200", "--tp", "1"],
            2,
        );
        assert!(line.contains(name) && line.contains(part), "{line}");
    }
}

#[test]
fn profiles_that_are_broken_are_refused_by_line_and_column() {
    let folder = tempfile::tempdir().unwrap();
    let models = folder.path().join("models");
    fs::create_dir(&models).unwrap();
    fs::write(models.join("cut.toml"), "name = \"cut\"\nhidden_size = ").unwrap();
    fs::write(models.join("empty.toml"), "").unwrap();
    sparse(&models.join("huge.toml"), 100 << 20);
    for (name, part) in [
        ("cut", "cut.toml:2:"),
        ("empty", "empty"),
        ("huge", "104857600"),
    ] {
        let arguments = ["estimate", "--model", name, "--gpu", "h200", "--tp", "1"];
        let mut run = command(&arguments);
        run.env("PARPLAN_PROFILES", folder.path());
        let output = checked(run, &arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(part), "{stderr}");
    }
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    let line = refusal(
        &[
            "estimate",
            "--model",
            "a\u{1b}[31mb\nc",
            "--gpu",
            "h200",
            "--tp",
            "1",
        ],
        2,
    );
    assert!(!line.contains('\u{1b}'), "{line:?}");
}

#[test]
fn weights_that_an_engine_cannot_make_of_a_checkpoint_are_refused() {
    let ask = |more: &[&str]| {
        let all = [&["recommend", "--gpu", "h200", "--gpus", "8"], more].concat();
        refusal(&all, 2)
    };
    let llama = ["--model", "llama-3.3-70b", "--weights"];
    for (format, engine, says) in [
        ("nvfp4", "sglang", "makes only fp8"),
        ("int4", "vllm", "makes only fp8"),
        ("fp8", "trtllm", "quantises nothing"),
    ] {
        let said = ask(&[&llama[..], &[format, "--engine", engine]].concat());
        assert!(said.contains(says), "{said}");
        assert!(said.contains(&format!("--weights {format}")), "{said}");
    }
    let said = ask(&["--model", "deepseek-v3", "--weights", "int4"]);
    assert!(said.contains("the checkpoint is not in bf16"), "{said}");
}

#[test]
fn an_engine_that_has_no_code_for_the_gpu_is_refused() {
    let ask = |gpu: &str| {
        let all = [
            "estimate",
            "--model",
            "qwen2.5-7b",
            "--tp",
            "1",
            "--gpu",
            gpu,
        ];
        refusal(&[&all[..], &["--engine", "trtllm"]].concat(), 2)
    };
    for gpu in ["mi300x", "cpu"] {
        let said = ask(gpu);
        assert!(said.contains("trtllm runs on NVIDIA GPUs only"), "{said}");
        assert!(said.contains("name another --engine"), "{said}");
    }
    let model = [
        "estimate",
        "--model",
        "qwen2.5-7b",
        "--tp",
        "2",
        "--gpu",
        "mi300x",
    ];
    let said = refusal(&[&model[..], &["--symmetric-memory", "on"]].concat(), 2);
    assert!(said.contains("symmetric memory is NCCL's"), "{said}");
}
