//! `recommend` and `compare`.

#![allow(clippy::unwrap_used, clippy::panic)]

mod cli_support;

use cli_support::{checked, command, json, run, text};
use serde_json::Value;

const SMALL: [&str; 6] = [
    "--model",
    "qwen3-30b-a3b",
    "--gpu",
    "h200",
    "--concurrency",
    "128",
];

fn recommend(more: &[&str]) -> Value {
    let mut all = vec!["recommend"];
    all.extend(SMALL);
    all.extend(more);
    json(&all)
}

fn figure(configuration: &Value, name: &str) -> f64 {
    configuration["predicted"][name]["value"].as_f64().unwrap()
}

fn list<'a>(answer: &'a Value, name: &str) -> &'a [Value] {
    answer[name].as_array().unwrap()
}

#[test]
fn the_ranking_is_by_the_objective() {
    let answer = recommend(&["--gpus", "8", "--top", "4"]);
    let ranked = list(&answer, "ranked");
    assert_eq!(ranked.len(), 4);
    assert_eq!(answer["best"], ranked[0]);
    for pair in ranked.windows(2) {
        let name = "output_tokens_per_s_per_gpu";
        assert!(figure(&pair[0], name) >= figure(&pair[1], name));
    }
    let fastest = recommend(&["--gpus", "8", "--objective", "latency"]);
    let tpot = |answer: &Value| figure(&answer["best"], "tpot_ms");
    assert!(tpot(&fastest) <= tpot(&answer));
    let front = recommend(&["--gpus", "8", "--objective", "pareto"]);
    for pair in list(&front, "ranked").windows(2) {
        let name = "output_tokens_per_s_per_gpu";
        assert!(figure(&pair[0], name) >= figure(&pair[1], name));
        assert!(figure(&pair[0], "tpot_ms") > figure(&pair[1], "tpot_ms"));
    }
}

#[test]
fn every_ranked_layout_uses_all_gpus_and_is_what_estimate_says() {
    let answer = recommend(&["--gpus", "8"]);
    for configuration in list(&answer, "ranked") {
        let layout = &configuration["layout"];
        let size = |name: &str| layout[name].as_u64().unwrap();
        assert_eq!(size("replicas") * size("tp") * size("pp"), 8, "{layout}");
        assert_eq!(size("attention_dp") * size("attention_tp"), size("tp"));
        assert_eq!(size("ep") * size("moe_tp"), size("tp"));
        let on = |name: &str| {
            if configuration[name] == true {
                "on"
            } else {
                "off"
            }
        };
        let flags: Vec<String> = ["tp", "attention_dp", "dcp", "ep", "pp", "replicas"]
            .iter()
            .map(|name| size(name).to_string())
            .collect();
        let mut all = vec!["estimate"];
        all.extend(SMALL);
        for (flag, value) in ["--tp", "--attn-dp", "--dcp", "--ep", "--pp", "--replicas"]
            .iter()
            .zip(&flags)
        {
            all.extend([*flag, value.as_str()]);
        }
        all.extend(["--symmetric-memory", on("symmetric_memory")]);
        all.extend(["--cuda-graphs", on("cuda_graphs")]);
        all.extend(["--expert-all-to-all", on("expert_all_to_all")]);
        assert_eq!(&json(&all)["best"], configuration);
    }
}

#[test]
fn sizes_that_are_fixed_stay_fixed() {
    let answer = recommend(&[
        "--gpus",
        "8",
        "--tp",
        "4",
        "--attn-dp",
        "2",
        "--symmetric-memory",
        "off",
    ]);
    for configuration in list(&answer, "ranked") {
        assert_eq!(configuration["layout"]["tp"], 4);
        assert_eq!(configuration["layout"]["attention_dp"], 2);
        assert_eq!(configuration["symmetric_memory"], false);
    }
}

#[test]
fn a_limit_that_nothing_meets_is_said_to_be_unmet() {
    let answer = recommend(&["--gpus", "8", "--tpot", "0.01"]);
    assert_eq!(answer["met_goal"], false);
    let over = answer["miss"]["tpot_ms"].as_f64().unwrap();
    assert!((figure(&answer["best"], "tpot_ms") - 0.01 - over).abs() < 1e-9);
    let mut all = vec!["recommend", "--gpus", "8", "--tpot", "0.01"];
    all.extend(SMALL);
    let page = text(&all);
    assert!(page.contains("NOT met"), "{page}");
    let kept = recommend(&["--gpus", "8", "--tpot", "1000"]);
    assert_eq!(
        (&kept["met_goal"], &kept["miss"]),
        (&Value::Bool(true), &Value::Null)
    );
}

#[test]
fn limits_bind_the_ranking() {
    let free = recommend(&["--gpus", "8"]);
    let limit = figure(&free["best"], "tpot_ms") * 0.8;
    let bound = recommend(&["--gpus", "8", "--tpot", &format!("{limit}")]);
    if bound["met_goal"] == true {
        for configuration in list(&bound, "ranked").iter().take(1) {
            assert!(figure(configuration, "tpot_ms") <= limit);
        }
    } else {
        assert!(bound["miss"]["tpot_ms"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn the_same_question_has_the_same_answer() {
    let mut first = recommend(&["--gpus", "16", "--nodes", "2"]);
    let mut second = recommend(&["--gpus", "16", "--nodes", "2"]);
    for answer in [&mut first, &mut second] {
        answer["stats"]["seconds"] = Value::Null;
        answer["stats"]["cpu_seconds"] = Value::Null;
    }
    assert_eq!(first, second);
}

#[test]
fn another_engine_plans_and_launches_its_own_way() {
    for (engine, word) in [("sglang", "sglang.launch_server"), ("vllm", "vllm")] {
        let answer = recommend(&["--gpus", "8", "--engine", engine]);
        let nodes = list(&answer["best"]["launch"][engine], "nodes");
        let argv = nodes[0]["argv"].to_string();
        assert!(argv.contains(word), "{argv}");
        let replicas = answer["best"]["layout"]["replicas"].as_u64().unwrap();
        let across = answer["best"]["layout"]["nodes"].as_u64().unwrap();
        assert_eq!(nodes.len() as u64, replicas * across);
    }
}

#[test]
fn nothing_that_runs_is_exit_1_with_the_reasons_in_json() {
    let output = run(&[
        "recommend",
        "--model",
        "deepseek-v3",
        "--gpu",
        "h200",
        "--gpus",
        "2",
        "--json",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["best"], Value::Null);
    assert!(!list(&answer, "rejected").is_empty());
    assert!(String::from_utf8(output.stderr).unwrap().contains("GiB"));
}

#[test]
fn a_saved_plan_is_whole_or_absent() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plans").join("best.toml");
    let shown = path.display().to_string();
    let answer = recommend(&["--gpus", "8", "--save", &shown]);
    let saved: toml::Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
    let tp = answer["best"]["layout"]["tp"].as_i64().unwrap();
    assert_eq!(saved["choice"]["layout"]["tp"].as_integer(), Some(tp));
    assert_eq!(saved["model"].as_str(), Some("qwen3-30b-a3b"));
    let printed = &answer["best"]["launch"]["sglang"];
    let again = json(&["launch", &shown, "--dry-run", "--json"]);
    assert_eq!(again["nodes"], printed["nodes"]);

    let blocked = format!("{shown}/under/a/file.toml");
    let mut all = vec!["recommend", "--gpus", "8", "--save", &blocked];
    all.extend(SMALL);
    let line = cli_support::refusal(&all, 1);
    assert!(line.contains("file.toml"), "{line}");
    assert_eq!(
        std::fs::read_dir(folder.path().join("plans"))
            .unwrap()
            .count(),
        1
    );
}

fn compare(a: &str, b: &str, more: &[&str]) -> Value {
    let mut all = vec!["compare", a, b];
    all.extend(SMALL);
    all.extend(more);
    json(&all)
}

#[test]
fn a_comparison_turns_round_with_its_sides() {
    let forth = compare("tp=8", "tp=8,attn-dp=8,ep=8", &[]);
    let back = compare("tp=8,attn-dp=8,ep=8", "tp=8", &[]);
    assert_ne!(forth["winner"], back["winner"]);
    for name in ["by", "confidence"] {
        let (there, here) = (&forth[name], &back[name]);
        let gap = there.as_f64().unwrap() - here.as_f64().unwrap();
        assert!(gap.abs() < 1e-9, "{name}: {there} and {here}");
    }
    let ratio = figure(&forth["a"], "output_tokens_per_s_per_gpu")
        / figure(&forth["b"], "output_tokens_per_s_per_gpu");
    let expected = if ratio >= 1.0 { "a" } else { "b" };
    assert_eq!(forth["winner"], expected);
    let by = forth["by"].as_f64().unwrap();
    assert!((by - ratio.max(1.0 / ratio)).abs() < 1e-9);
}

/// On either side of a crossover the winner is the one that was said. Graph sizes make the two curves
/// step, so that close to it they may cross more than once: the powers of two around it decide.
#[test]
fn a_crossover_is_where_the_winner_changes() {
    let (a, b) = ("tp=8", "tp=2,replicas=4");
    let answer = compare(a, b, &["--by", "tpot"]);
    let mut checked = 0;
    for crossover in list(&answer, "crossovers") {
        if crossover["axis"] != "concurrency" {
            continue;
        }
        checked += 1;
        let below = crossover["at"].as_f64().unwrap().log2().floor().exp2();
        for (clients, side) in [(below, "below"), (below * 2.0, "above")] {
            let clients = clients.to_string();
            let moved = compare(a, b, &["--by", "tpot", "--concurrency", &clients]);
            assert_eq!(
                moved["winner"], crossover[side],
                "{clients} clients, {crossover}"
            );
        }
    }
    // Few clients favour the wide engine, many the four narrow ones, or the other way round.
    assert!(checked > 0, "{answer}");
}

/// Sizes among the shared options hold for both sides, unless a side says otherwise.
#[test]
fn sides_share_the_sizes_of_the_shared_options() {
    let shared = compare("ep=2", "tp=2", &["--tp", "4", "--replicas", "2"]);
    let spelled = compare("tp=4,ep=2,replicas=2", "tp=2,replicas=2", &[]);
    for side in ["a", "b"] {
        assert_eq!(shared[side]["layout"], spelled[side]["layout"]);
    }
    assert_eq!(shared["by"], spelled["by"]);
}

#[test]
fn a_side_that_does_not_fit_is_named() {
    let all = [
        "compare",
        "tp=8",
        "tp=4,replicas=2",
        "--model",
        "deepseek-v3",
        "--gpu",
        "h200",
    ];
    let line = cli_support::refusal(&all, 1);
    assert!(line.contains("B: ") && line.contains("GiB"), "{line}");
}

/// The command that is shown for `explain` explains the configuration that was recommended.
#[test]
fn the_next_step_works_as_printed() {
    let mut all = vec!["recommend", "--gpus", "8"];
    all.extend(SMALL);
    let page = text(&all);
    let command = page
        .split("  parplan explain ")
        .nth(1)
        .and_then(|rest| rest.split("\n\n").next())
        .unwrap_or_else(|| panic!("no next step in {page}"));
    let mut next = vec!["explain"];
    next.extend(command.split_whitespace().filter(|word| *word != "\\"));
    let explained = json(&next);
    assert_eq!(explained["best"], recommend(&["--gpus", "8"])["best"]);
}

#[test]
fn sides_may_be_of_two_engines() {
    let answer = compare("tp=8", "tp=8,engine=vllm", &[]);
    assert!(answer["a"]["launch"]["sglang"].is_object(), "{answer}");
    assert!(answer["b"]["launch"]["vllm"].is_object(), "{answer}");
}

#[test]
fn pages_fit_80_columns() {
    for arguments in [
        vec![
            "recommend",
            "--model",
            "deepseek-v3",
            "--gpu",
            "h200",
            "--gpus",
            "32",
            "--tpot",
            "5",
            "--stats",
        ],
        vec![
            "recommend",
            "--model",
            "kimi-k2",
            "--gpu",
            "gb200",
            "--gpus",
            "64",
            "--engine",
            "vllm",
            "--objective",
            "pareto",
        ],
        vec![
            "compare",
            "tp=8,attn-dp=8,ep=8,symm=on,a2a=on",
            "tp=8,dcp=8",
            "--model",
            "deepseek-r1",
            "--gpu",
            "h200",
        ],
    ] {
        let page = text(&arguments);
        let wide = page.lines().find(|line| line.chars().count() > 80);
        assert_eq!(wide, None, "{arguments:?}");
    }
}

#[test]
fn what_was_planned_is_what_is_launched() {
    let one = |more: &[&str]| {
        let all = [&["recommend", "--gpus", "1"], more].concat();
        // Commands are broken into lines.
        text(&all).replace(" \\\n   ", "")
    };
    for engine in ["sglang", "vllm"] {
        let page = one(&[
            "--model",
            "llama-3.3-70b",
            "--gpu",
            "h200",
            "--weights",
            "fp8",
            "--engine",
            engine,
        ]);
        assert!(page.contains("--quantization fp8 "), "{page}");
        assert!(
            page.contains("meta-llama/Llama-3.3-70B-Instruct "),
            "{page}"
        );
        let plain = one(&["--model", "qwen3-8b", "--gpu", "h200", "--engine", engine]);
        assert!(!plain.contains("--quantization"), "{plain}");
        assert!(!plain.contains("--max-model-len"), "{plain}");
    }
    // A cache of fewer tokens than the model's own length: vLLM would not start.
    let page = one(&[
        "--model",
        "qwen3-32b-fp8",
        "--gpu",
        "l40s",
        "--engine",
        "vllm",
    ]);
    let length = page.split("--max-model-len ").nth(1).unwrap();
    let length: u32 = length.split_whitespace().next().unwrap().parse().unwrap();
    assert!((2048..40_960).contains(&length), "{length}");
}

#[test]
fn an_empty_variable_is_none() {
    let arguments = ["profiles", "list", "gpus"];
    let mut run = command(&arguments);
    run.env("PARPLAN_PROFILES", "");
    let output = checked(run, &arguments);
    assert_eq!(output.status.code(), Some(0));
}
