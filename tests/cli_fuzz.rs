//! Whatever is typed: no panic, no hang, and an exit code that means something.

#![allow(clippy::unwrap_used, clippy::panic)]

mod cli_support;

use proptest::prelude::*;

/// Numbers at and beyond every edge, and things that are no numbers.
const VALUES: [&str; 26] = [
    "0",
    "1",
    "2",
    "3",
    "4",
    "7",
    "8",
    "16",
    "64",
    "1000",
    "16384",
    "16777216",
    "1e6",
    "-1",
    "0.5",
    "1.0",
    "nan",
    "inf",
    "1e308",
    "18446744073709551616",
    "",
    "x",
    "8,8,2,0",
    "seed:7",
    "3,0.7",
    "\u{fffd}\n",
];

const FLAGS: [&str; 26] = [
    "--tp",
    "--attn-dp",
    "--dcp",
    "--ep",
    "--pp",
    "--replicas",
    "--gpus",
    "--nodes",
    "--isl",
    "--osl",
    "--range-ratio",
    "--concurrency",
    "--waves",
    "--prefix-hit",
    "--imbalance",
    "--speculative",
    "--ttft",
    "--tpot",
    "--memory-fraction",
    "--max-running-requests",
    "--chunk-tokens",
    "--graph-sizes",
    "--context-length",
    "--top",
    "--kv-dtype",
    "--weights",
];

const WORDS: [(&str, &str); 12] = [
    ("--engine", "vllm"),
    ("--engine", "trtllm"),
    ("--engine", "builtin"),
    ("--engine", "sglang@0.5.6"),
    ("--kv-dtype", "fp8"),
    ("--weights", "int4"),
    ("--cuda-graphs", "off"),
    ("--symmetric-memory", "on"),
    ("--expert-all-to-all", "on"),
    ("--imbalance", "0.3"),
    ("--speculative", "3,0.6"),
    ("--concurrency", "100000"),
];

const MODELS: [&str; 8] = [
    "qwen3-0.6b",
    "deepseek-v3.2",
    "qwen3.5-397b-a17b-fp8",
    "nemotron-3-super",
    "gpt-oss-120b",
    "deepseek-v4-flash",
    "kimi-k3",
    "minimax-m3",
];

fn options() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    let wild = (
        proptest::sample::select(&FLAGS[..]),
        proptest::sample::select(&VALUES[..]),
    );
    let tame = proptest::sample::select(&WORDS[..]);
    let size = (
        proptest::sample::select(&FLAGS[..8]),
        proptest::sample::select(&VALUES[1..9]),
    );
    proptest::collection::vec(prop_oneof![1 => wild, 2 => tame, 3 => size], 0..7)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// `run` of the support module asserts the exit code and that nothing panicked.
    #[test]
    fn planning_never_panics(
        name in proptest::sample::select(&["estimate", "explain", "recommend"][..]),
        model in proptest::sample::select(&MODELS[..]),
        gpu in proptest::sample::select(&["h200", "b200", "l40s", "mi300x", "gb200"][..]),
        options in options(),
        as_json in any::<bool>(),
    ) {
        let mut all = vec![name, "--model", model, "--gpu", gpu];
        if name == "recommend" {
            all.extend(["--gpus", "8"]);
        } else {
            all.extend(["--tp", "8"]);
        }
        for (flag, value) in options {
            all.extend([flag, value]);
        }
        if as_json {
            all.push("--json");
        }
        let output = cli_support::run(&all);
        let code = output.status.code();
        prop_assert_eq!(code == Some(0), output.stderr.is_empty(), "{:?}", all);
        if as_json && code == Some(0) {
            let parsed: Result<serde_json::Value, _> = serde_json::from_slice(&output.stdout);
            prop_assert!(parsed.is_ok(), "{:?}", all);
        }
    }

    #[test]
    fn any_words_are_refused_or_answered(words in proptest::collection::vec("[ -~é]{0,12}", 0..5)) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        cli_support::run(&words);
    }

    #[test]
    fn any_sides_are_refused_or_compared(a in "[a-z0-9=,-]{0,24}", tp in 0u32..40, dp in 0u32..9) {
        let b = format!("tp={tp},attn-dp={dp}");
        cli_support::run(&["compare", &a, &b, "--model", "qwen3-8b", "--gpu", "h200"]);
        cli_support::run(&["compare", "tp=8", &b, "--model", "qwen3-30b-a3b", "--gpu", "h200"]);
    }
}
