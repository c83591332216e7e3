//! `--workload`: named, from a file, from a trace, and what flags replace.

#![allow(clippy::unwrap_used)]

mod cli_support;

use cli_support::{json, refusal, run, text};
use serde_json::Value;
use std::fs;

const SETUP: [&str; 6] = ["--model", "llama-3.1-8b", "--gpu", "h200", "--tp", "1"];

fn asked(command: &str, more: &[&str]) -> Vec<String> {
    let all = [&[command][..], &SETUP, more].concat();
    all.into_iter().map(str::to_owned).collect()
}

fn estimate(more: &[&str]) -> Value {
    let all = asked("estimate", more);
    json(&all.iter().map(String::as_str).collect::<Vec<_>>())
}

fn refused(more: &[&str]) -> String {
    let all = asked("estimate", more);
    refusal(&all.iter().map(String::as_str).collect::<Vec<_>>(), 2)
}

/// What is said of a plan that is answered and cannot serve.
fn overrun(more: &[&str]) -> String {
    let all = asked("estimate", more);
    let output = run(&all.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn notes(answer: &Value) -> String {
    let list = answer["assumptions"].as_array().unwrap();
    let words: Vec<&str> = list.iter().map(|note| note.as_str().unwrap()).collect();
    words.join("\n")
}

fn tpot(answer: &Value) -> f64 {
    answer["best"]["predicted"]["tpot_ms"]["value"]
        .as_f64()
        .unwrap()
}

#[test]
fn every_embedded_workload_is_planned() {
    let all = json(&["profiles", "list", "workloads"]);
    let listed = all["workloads"].as_array().unwrap();
    assert!(listed.len() >= 6);
    for entry in listed {
        let name = entry["name"].as_str().unwrap();
        // One GPU cannot keep up with Mooncake's prompts of 12k tokens at 3.4 a second.
        if name == "mooncake-conversation" {
            let said = overrun(&["--workload", name]);
            assert!(
                said.contains("3.40 requests a second come, and no more than"),
                "{said}"
            );
            continue;
        }
        let answer = estimate(&["--workload", name]);
        assert!(tpot(&answer) > 0.1, "{name}");
        assert!(notes(&answer).contains(&format!("from the workload {name}")));
        for alias in entry["aliases"].as_array().unwrap() {
            let again = estimate(&["--workload", alias.as_str().unwrap()]);
            assert_eq!(again["best"], answer["best"], "{name}");
        }
    }
}

#[test]
fn a_workload_of_flags_is_the_flags() {
    let named = estimate(&["--workload", "1k1k", "--concurrency", "32"]);
    let typed = estimate(&[
        "--isl",
        "uniform:1024,0.8",
        "--osl",
        "uniform:1024,0.8",
        "--concurrency",
        "32",
    ]);
    assert_eq!(named["best"], typed["best"]);
    assert_eq!(named["question"]["traffic"], typed["question"]["traffic"]);
    let words = notes(&named);
    assert!(
        words.contains("given in place of what inferencex-1k1k says: --concurrency"),
        "{words}"
    );
    assert!(
        !words.contains("(--isl)") && words.contains("equal batches"),
        "{words}"
    );
}

#[test]
fn a_file_gives_every_field_and_a_flag_replaces_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mine.toml");
    fs::write(
        &file,
        "name = \"mine\"\n\
         input = { kind = \"log_normal\", median = 900.0, sigma = 1.1, max = 32768 }\n\
         output = { kind = \"fixed\", tokens = 200 }\n\
         load = { kind = \"concurrency\", requests = 48 }\n\
         prefix_hit = 0.3\n\
         imbalance = { kind = \"ratio\", mean_over_max = 0.8 }\n\
         [slo]\nttft_ms = 1.0\n",
    )
    .unwrap();
    let path = file.to_str().unwrap();
    let traffic = &estimate(&["--workload", path])["question"]["traffic"];
    // e^(1.1²/2) · 900, what is cut at 32,768 aside.
    let mean = traffic["isl"].as_f64().unwrap();
    assert!((1600.0..1648.1).contains(&mean), "{mean}");
    assert_eq!(traffic["osl"], 200.0);
    assert_eq!(traffic["outputs"]["width"], 0.0);
    assert_eq!(traffic["concurrency"], 48.0);
    assert_eq!(traffic["prefix_hit"], 0.3);
    assert_eq!(traffic["balance"]["mean_over_max"], 0.8);
    let kept = estimate(&["--workload", path, "--prefix-hit", "0", "--imbalance", "1"]);
    assert_eq!(kept["question"]["traffic"]["prefix_hit"], 0.0);
    assert!(notes(&kept).contains("--prefix-hit, --imbalance"));
    let all = asked("estimate", &["--workload", path]);
    let page = text(&all.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(page.contains("TTFT under 1 ms: missed"), "{page}");
}

#[test]
fn long_tails_cost_memory_and_attention() {
    // The same mean: 1,000 tokens.
    let level = estimate(&["--isl", "fixed:1000", "--osl", "fixed:1000"]);
    let median = 1000.0 / (0.5f64 * 1.5 * 1.5).exp();
    let drawn = format!("log-normal:{median},1.5,60000");
    let tailed = estimate(&["--isl", "fixed:1000", "--osl", &drawn]);
    assert!(
        tpot(&tailed) > 1.02 * tpot(&level),
        "{} {}",
        tpot(&tailed),
        tpot(&level)
    );
    let held = |answer: &Value| answer["best"]["kv_concurrency"].as_f64().unwrap();
    assert!(held(&tailed) < 0.9 * held(&level));
}

#[test]
fn a_trace_is_a_workload() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trace.csv");
    let mut rows = "TIMESTAMP,ContextTokens,GeneratedTokens\n".to_owned();
    for second in 0..50 {
        rows += &format!(
            "2023-11-16 18:17:{second:02}.5,{},{}\n",
            100 + second,
            10 + second
        );
    }
    fs::write(&file, rows).unwrap();
    let answer = estimate(&["--workload", file.to_str().unwrap()]);
    assert_eq!(answer["question"]["traffic"]["isl"], 124.5);
    assert!(
        notes(&answer).contains("1 requests a second") && notes(&answer).contains("an open loop"),
        "{}",
        notes(&answer)
    );
    // So many a second cannot be kept up with by one client.
    let busy = folder.path().join("busy.jsonl");
    let lines: Vec<String> = (0..200)
        .map(|n| format!("{{\"timestamp\": {n}, \"input_length\": 2000, \"output_length\": 2000}}"))
        .collect();
    fs::write(&busy, lines.join("\n")).unwrap();
    let said = overrun(&["--workload", busy.to_str().unwrap()]);
    assert!(said.contains("get through for good"), "{said}");
}

#[test]
fn an_open_loop_is_ranked_by_the_time_of_a_request_and_serves_what_comes() {
    let answer = json(&[
        "recommend",
        "--model",
        "llama-3.1-70b-fp8",
        "--gpu",
        "h100",
        "--gpus",
        "8",
        "--workload",
        "azure-chat",
    ]);
    let ranked = answer["ranked"].as_array().unwrap();
    assert!(ranked.len() > 1);
    let osl = answer["question"]["traffic"]["osl"].as_f64().unwrap();
    let of = |plan: &Value, what: &str| plan["predicted"][what]["value"].as_f64().unwrap();
    let mut last = 0.0;
    for plan in ranked {
        assert!((of(plan, "requests_per_s") - 5.53).abs() < 0.01, "{plan}");
        // No more gets through than comes, however fast the layout is.
        let finished = &plan["predicted"]["requests_per_s"];
        assert_eq!(finished["high"], finished["value"]);
        let whole = of(plan, "ttft_ms") + (osl - 1.0) * of(plan, "tpot_ms");
        assert!(whole >= last);
        last = whole;
    }
}

#[test]
fn what_cannot_be_used_is_named() {
    assert!(refused(&["--workload", "azure-chats"]).contains("did you mean azure-chat"));
    assert!(refused(&["--workload", "no/such.toml"]).contains("no/such.toml: cannot be read"));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.toml");
    fs::write(
        &file,
        "name = \"bad\"\ninput = { kind = \"fixed\", tokens = 0 }\n\
         output = { kind = \"fixed\", tokens = 1 }\nload = { kind = \"concurrency\", requests = 1 }\n",
    )
    .unwrap();
    let said = refused(&["--workload", file.to_str().unwrap()]);
    assert!(
        said.contains("bad.toml:2:") && said.contains("input.tokens is 0"),
        "{said}"
    );
    let said = refused(&["--workload", "azure-chat", "--range-ratio", "0.5"]);
    assert!(
        said.contains("as measured") && said.contains("--isl"),
        "{said}"
    );
    let said = refused(&["--isl", "normal:5"]);
    assert!(said.contains("log-normal:900,1.1,32768"), "{said}");
    // A trace longer than the model's context.
    let said = refused(&["--workload", "azure-chat", "--context-length", "4096"]);
    assert!(said.contains("15050 tokens"), "{said}");
}
