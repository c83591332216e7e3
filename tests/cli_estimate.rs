//! `estimate` and `explain`: published figures, tables that fit, JSON that adds up.

#![allow(clippy::unwrap_used, clippy::panic)]

mod cli_support;

use cli_support::{command, json, run, text};
use serde_json::Value;

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

fn best(arguments: &[&str]) -> Value {
    json(arguments)["best"].clone()
}

/// KV bytes of a token and copies of it, as published (ISSUE 2, "Must show").
#[test]
fn kv_figures_are_the_published_ones() {
    for (arguments, bytes, copies) in [
        (vec!["--model", "deepseek-r1", "--tp", "8"], 70_272.0, 8.0),
        (
            vec!["--model", "deepseek-r1", "--tp", "8", "--kv-dtype", "fp8"],
            35_136.0,
            8.0,
        ),
        (
            vec!["--model", "qwen3-235b-a22b", "--tp", "8"],
            48_128.0,
            2.0,
        ),
        (vec!["--model", "llama-3.1-70b", "--tp", "8"], 40_960.0, 1.0),
    ] {
        let mut all = vec!["estimate", "--gpu", "h200"];
        all.extend(arguments);
        let best = best(&all);
        assert_eq!(
            number(&best["kv_bytes_per_token_per_rank"]),
            bytes,
            "{all:?}"
        );
        assert_eq!(number(&best["kv_redundancy"]), copies, "{all:?}");
    }
}

/// The cache holds 516,544 tokens, DeepSeek-V3 takes 163,840 unless it is set up for more.
#[test]
fn the_longest_request_ends_at_the_context_length() {
    let all = [
        "estimate",
        "--gpu",
        "h200",
        "--model",
        "deepseek-v3",
        "--tp",
        "8",
    ];
    let asked = |more: &[&str]| {
        let best = best(&[&all, more].concat());
        assert!(number(&best["max_kv_tokens"]) > 300_000.0);
        number(&best["max_request_tokens"])
    };
    assert_eq!(asked(&[]), 163_840.0);
    assert_eq!(asked(&["--context-length", "300000"]), 300_000.0);
    assert_eq!(asked(&["--context-length", "32768"]), 32_768.0);
}

/// DeepSeek-R1, TP8 DCP8: queries of 576 values gathered and outputs of 512 with their LSE exchanged,
/// over 8 ranks of 16 heads, in bf16. At 64 tokens that is the published 9.44 and 8.42 MB.
#[test]
fn explain_shows_the_volume_of_dcp() {
    let answer = json(&[
        "explain",
        "--model",
        "deepseek-r1",
        "--gpu",
        "h200",
        "--tp",
        "8",
        "--dcp",
        "8",
        "--concurrency",
        "64",
    ]);
    let calls = &answer["explained"]["volumes"][1]["calls"];
    let tokens = |purpose: &str, width: f64| {
        let all = calls.as_array().unwrap();
        let call = all.iter().find(|call| call["purpose"] == purpose).unwrap();
        number(&call["bytes"]) / (8.0 * 16.0 * width * 2.0)
    };
    let (gathered, merged) = (tokens("dcp_query", 576.0), tokens("dcp_merge", 514.0));
    assert!(
        (gathered - merged).abs() < 1e-6,
        "{gathered} and {merged} tokens"
    );
    assert!(gathered > 48.0 && gathered <= 64.0, "{gathered} tokens");
}

#[test]
fn the_memory_map_sums_to_the_card() {
    for arguments in [
        vec![
            "--model",
            "deepseek-v3",
            "--gpu",
            "h200",
            "--tp",
            "8",
            "--attn-dp",
            "8",
            "--ep",
            "8",
        ],
        vec![
            "--model", "qwen3-8b", "--gpu", "h100-sxm", "--tp", "1", "--engine", "vllm",
        ],
        vec![
            "--model",
            "gpt-oss-120b",
            "--gpu",
            "b200",
            "--tp",
            "2",
            "--engine",
            "trtllm",
        ],
        vec![
            "--model",
            "qwen3-32b",
            "--gpu",
            "mi300x",
            "--tp",
            "4",
            "--cuda-graphs",
            "off",
        ],
    ] {
        let mut all = vec!["estimate"];
        all.extend(arguments);
        let best = best(&all);
        let map = best["memory_bytes"].as_object().unwrap();
        let parts: f64 = map
            .iter()
            .filter(|(name, _)| *name != "total")
            .map(|(_, bytes)| number(bytes))
            .sum();
        let total = number(&map["total"]);
        assert!((parts - total).abs() < 1.0, "{all:?}: {parts} of {total}");
        assert!(
            map.values().all(|bytes| number(bytes) >= 0.0),
            "{all:?}: {map:?}"
        );
    }
}

/// What does not fit is not priced: the map shows why, the exit code is 1.
#[test]
fn what_does_not_fit_is_said_with_its_map() {
    for name in ["estimate", "explain"] {
        let arguments = [name, "--model", "deepseek-v3", "--gpu", "h200", "--tp", "4"];
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(1));
        let page = String::from_utf8(output.stdout).unwrap();
        assert!(page.contains("weights") && !page.contains("TPOT"), "{page}");
        let line = String::from_utf8(output.stderr).unwrap();
        assert!(line.contains("tp 4") && line.contains("GiB"), "{line}");
        let mut as_json = arguments.to_vec();
        as_json.push("--json");
        let output = run(&as_json);
        assert_eq!(output.status.code(), Some(1));
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["best"], Value::Null);
        assert_eq!(answer["rejected"][0]["layout"]["tp"], 4);
    }
    let long = [
        "estimate",
        "--model",
        "qwen3-32b",
        "--gpu",
        "h100-sxm",
        "--tp",
        "1",
        "--isl",
        "30000",
    ];
    let output = run(&long);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("31024 tokens")
    );
}

#[test]
fn intervals_hold_their_values_and_rates_agree() {
    let answer = json(&[
        "estimate",
        "--model",
        "deepseek-v3",
        "--gpu",
        "h200",
        "--tp",
        "8",
        "--attn-dp",
        "8",
        "--ep",
        "8",
        "--replicas",
        "4",
        "--concurrency",
        "512",
        "--osl",
        "512",
        "--range-ratio",
        "1",
    ]);
    let predicted = &answer["best"]["predicted"];
    for name in [
        "tpot_ms",
        "ttft_ms",
        "output_tokens_per_s_per_gpu",
        "decode_step_ms",
    ] {
        let range = &predicted[name];
        assert!(number(&range["low"]) < number(&range["value"]), "{name}");
        assert!(number(&range["value"]) < number(&range["high"]), "{name}");
    }
    let all = number(&predicted["output_tokens_per_s"]["value"]);
    let each = number(&predicted["output_tokens_per_s_per_gpu"]["value"]);
    assert!((all / 32.0 - each).abs() < 1e-6 * each);
    let requests = number(&predicted["requests_per_s"]["value"]);
    assert!((requests * 512.0 - all).abs() < 1e-6 * all);
    assert_eq!(answer["best"], answer["ranked"][0]);
}

#[test]
fn more_dcp_never_takes_more_cache() {
    let mut last = f64::INFINITY;
    for dcp in ["1", "2", "4", "8"] {
        let best = best(&[
            "estimate",
            "--model",
            "deepseek-r1",
            "--gpu",
            "h200",
            "--tp",
            "8",
            "--dcp",
            dcp,
        ]);
        let bytes = number(&best["kv_bytes_per_token_per_rank"]);
        assert!(bytes < last, "dcp {dcp}: {bytes} after {last}");
        last = bytes;
    }
}

/// Commands that a person copies may be longer; everything else is read.
fn too_wide(page: &str) -> Option<&str> {
    page.lines().find(|line| line.chars().count() > 80)
}

#[test]
fn pages_fit_80_columns_without_escapes() {
    for arguments in [
        vec![
            "estimate",
            "--model",
            "deepseek-v3",
            "--gpu",
            "h200",
            "--tp",
            "8",
            "--attn-dp",
            "8",
            "--ep",
            "8",
            "--replicas",
            "4",
            "--concurrency",
            "2048",
            "--stats",
            "--tpot",
            "20",
            "--ttft",
            "100",
        ],
        vec![
            "explain",
            "--model",
            "deepseek-v3.2",
            "--gpu",
            "b200",
            "--tp",
            "8",
            "--dcp",
            "2",
            "--engine",
            "vllm",
        ],
        vec![
            "explain",
            "--model",
            "qwen3.5-397b-a17b-fp8",
            "--gpu",
            "h200",
            "--tp",
            "8",
            "--ep",
            "8",
        ],
        vec![
            "explain",
            "--model",
            "gpt-oss-120b",
            "--gpu",
            "h100-sxm",
            "--tp",
            "8",
            "--attn-dp",
            "4",
            "--imbalance",
            "8,8,2,0",
        ],
        vec!["profiles", "list"],
    ] {
        let page = text(&arguments);
        assert_eq!(too_wide(&page), None, "{arguments:?}");
        assert!(!page.contains('\u{1b}'), "{arguments:?}");
    }
}

#[test]
fn what_is_typed_is_no_assumption_and_what_is_not_is_listed() {
    let base = [
        "estimate", "--model", "qwen3-8b", "--gpu", "h200", "--tp", "1",
    ];
    let notes = |more: &[&str]| {
        let mut all = base.to_vec();
        all.extend(more);
        json(&all)["assumptions"].to_string()
    };
    let defaults = notes(&[]);
    for (flag, value) in [
        ("--engine", "sglang@0.5.23"),
        ("--isl", "1000"),
        ("--osl", "1000"),
        ("--concurrency", "8"),
        ("--waves", "3"),
        ("--prefix-hit", "0.5"),
        ("--range-ratio", "0.8"),
        ("--imbalance", "0.9"),
        ("--kv-dtype", "fp8"),
        ("--cuda-graphs", "on"),
        ("--symmetric-memory", "off"),
        ("--memory-fraction", "0.8"),
        ("--max-running-requests", "64"),
        ("--chunk-tokens", "4096"),
        ("--graph-sizes", "1,2,4,8"),
        ("--context-length", "8192"),
    ] {
        assert!(defaults.contains(flag), "{flag} is not in {defaults}");
        let typed = notes(&[flag, value]);
        assert!(!typed.contains(flag), "{flag} {value} is still in {typed}");
    }
}

#[test]
fn settings_reach_the_plan_and_its_command() {
    let best = best(&[
        "estimate",
        "--model",
        "qwen3-8b",
        "--gpu",
        "h200",
        "--tp",
        "1",
        "--memory-fraction",
        "0.5",
        "--chunk-tokens",
        "2048",
        "--graph-sizes",
        "4,1,2",
        "--kv-dtype",
        "fp8",
        "--context-length",
        "4096",
        "--concurrency",
        "4",
    ]);
    assert_eq!(number(&best["memory_fraction"]), 0.5);
    assert_eq!(best["graph_batch_sizes"].to_string(), "[1,2,4]");
    let argv = best["launch"]["sglang"]["nodes"][0]["argv"].to_string();
    for part in [
        "\"--mem-fraction-static\",\"0.5\"",
        "\"--chunked-prefill-size\",\"2048\"",
        "\"--kv-cache-dtype\",\"fp8_e4m3\"",
        "\"--context-length\",\"4096\"",
        "\"1\",\"2\",\"4\"",
        "Qwen/Qwen3-8B",
    ] {
        assert!(argv.contains(part), "{part} is not in {argv}");
    }
}

/// A file that the command needs is shown beside it, and is in the JSON.
#[test]
fn files_of_a_command_are_shown() {
    let arguments = [
        "estimate", "--model", "qwen3-8b", "--gpu", "h200", "--tp", "1", "--engine", "trtllm",
    ];
    let best = best(&arguments);
    let file = &best["launch"]["trtllm"]["nodes"][0]["files"][0];
    let (name, content) = (file[0].as_str().unwrap(), file[1].as_str().unwrap());
    let page = text(&arguments);
    assert!(page.contains(&format!("with a file {name}")), "{page}");
    for line in content.lines().take(12) {
        assert!(page.contains(line), "{line} is not in {page}");
    }
    let lines = content.lines().count();
    assert_eq!(page.contains(&format!("{lines} lines in all")), lines > 12);
}

/// The engine drops sizes that do not divide by attention TP: tp 8 over 2 attention-DP ranks loses
/// 1 and 2, so one request a rank replays the graph of 4, and batches above the largest are eager.
#[test]
fn explain_shows_where_batches_land() {
    let arguments = [
        "explain",
        "--model",
        "deepseek-v3",
        "--gpu",
        "h200",
        "--tp",
        "8",
        "--attn-dp",
        "2",
        "--graph-sizes",
        "1,2,4,8,16",
        "--concurrency",
        "64",
    ];
    let answer = json(&arguments);
    assert_eq!(answer["best"]["graph_batch_sizes"].to_string(), "[4,8,16]");
    let landings = answer["explained"]["landings"].as_array().unwrap();
    let of = |requests: u64| {
        let mut all = landings.iter();
        all.find(|l| l["requests_per_rank"] == requests).unwrap()
    };
    assert_eq!(
        (&of(1)["size"], &of(1)["waste_rows"]),
        (&4.into(), &3.into())
    );
    assert_eq!(
        (&of(16)["size"], &of(16)["waste_rows"]),
        (&16.into(), &0.into())
    );
    assert_eq!(of(32)["launch"], "eager");
    assert!(text(&arguments).contains("a batch of 32 is above"));
}

/// Drafts change what a step yields and what a rank keeps.
#[test]
fn speculation_is_planned_and_launched() {
    let plain = [
        "estimate",
        "--model",
        "deepseek-v3",
        "--gpu",
        "h200",
        "--tp",
        "8",
    ];
    let mut drafted = plain.to_vec();
    drafted.extend(["--speculative", "3,0.8"]);
    let (plain, drafted) = (best(&plain), best(&drafted));
    assert_eq!(drafted["speculative_steps"], 3);
    let weights = |best: &Value| number(&best["memory_bytes"]["weights"]);
    assert!(weights(&drafted) > weights(&plain));
    let argv = drafted["launch"]["sglang"]["nodes"][0]["argv"].to_string();
    assert!(argv.contains("--speculative-num-steps\",\"3\""), "{argv}");
}

#[test]
fn an_unknown_version_is_planned_only_when_asked_and_said() {
    let arguments = [
        "estimate",
        "--model",
        "qwen3-8b",
        "--gpu",
        "h200",
        "--tp",
        "1",
        "--engine",
        "sglang@9.9.9",
        "--engine-assume",
    ];
    let answer = json(&arguments);
    assert!(answer["warnings"].to_string().contains("9.9.9"), "{answer}");
    let refused = cli_support::refusal(&arguments[..9], 2);
    assert!(
        refused.contains("9.9.9") && refused.contains("--engine-assume"),
        "{refused}"
    );
}

/// A reader that stops early (`| head -1`) is not an error.
#[test]
fn a_closed_pipe_is_quiet() {
    use std::process::Stdio;
    let mut child = command(&[
        "explain", "--model", "qwen3-8b", "--gpu", "h200", "--tp", "1",
    ])
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty());
}

#[test]
fn help_is_complete_and_needs_no_input() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let page = String::from_utf8(output.stdout).unwrap();
    for name in [
        "recommend",
        "estimate",
        "explain",
        "compare",
        "profiles",
        "completions",
        "man",
    ] {
        assert!(page.contains(&format!("  {name}")), "{page}");
        assert_eq!(run(&[name, "--help"]).status.code(), Some(0), "{name}");
    }
}
