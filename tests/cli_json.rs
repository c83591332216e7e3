//! The JSON is what docs/json.md says: every documented path, and no other.

#![allow(clippy::unwrap_used, clippy::panic)]

mod cli_support;

use cli_support::{json, text};
use serde_json::Value;
use std::collections::BTreeSet;

const PAGE: &str = include_str!("../docs/json.md");

/// Paths of the tables under a heading.
fn documented(heading: &str) -> BTreeSet<String> {
    let start = PAGE
        .find(&format!("## {heading}\n"))
        .unwrap_or_else(|| panic!("docs/json.md has no {heading}"));
    let section = &PAGE[start + 3..];
    let section = &section[..section.find("\n## ").unwrap_or(section.len())];
    section
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split(" | ").next())
        .flat_map(|cell| {
            let names = cell.split('`').filter(|part| !part.trim().is_empty());
            names.map(str::to_owned).collect::<Vec<_>>()
        })
        .collect()
}

/// Paths of a value. A documented path is a leaf whatever lies below it.
fn paths(value: &Value, at: &str, leaves: &BTreeSet<String>, out: &mut BTreeSet<String>) {
    if leaves.contains(at) {
        out.insert(at.to_owned());
        return;
    }
    let below = |name: &str| {
        if at.is_empty() {
            name.to_owned()
        } else {
            format!("{at}.{name}")
        }
    };
    match value {
        Value::Object(map) if at.ends_with("env") => {
            if !map.is_empty() {
                out.insert(below("<name>"));
            }
        }
        Value::Object(map) => {
            for (name, value) in map {
                let name = if at == "launch" { "<engine>" } else { name };
                paths(value, &below(name), leaves, out);
            }
        }
        Value::Array(items) => {
            for item in items {
                paths(item, &format!("{at}[]"), leaves, out);
            }
        }
        _ => {
            out.insert(at.to_owned());
        }
    }
}

fn seen(values: &[&Value], leaves: &BTreeSet<String>) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    for value in values {
        paths(value, "", leaves, &mut out);
    }
    out
}

fn same(documented: &BTreeSet<String>, seen: &BTreeSet<String>, optional: &[&str]) {
    let missing: Vec<_> = documented
        .difference(seen)
        .filter(|path| !optional.contains(&path.as_str()))
        .collect();
    let unknown: Vec<_> = seen.difference(documented).collect();
    assert!(missing.is_empty(), "documented, not printed: {missing:?}");
    assert!(unknown.is_empty(), "printed, not documented: {unknown:?}");
}

const MOE: [&str; 6] = [
    "--model",
    "deepseek-v3",
    "--gpu",
    "h200",
    "--concurrency",
    "256",
];

fn with(head: &[&'static str], tail: &[&'static str]) -> Value {
    let mut all = head.to_vec();
    all.extend(MOE);
    all.extend(tail);
    json(&all)
}

#[test]
fn a_configuration_is_what_the_page_says() {
    let leaves = documented("A configuration");
    let wide = with(
        &["estimate"],
        &[
            "--tp",
            "16",
            "--attn-dp",
            "16",
            "--ep",
            "16",
            "--replicas",
            "2",
        ],
    );
    let eager = with(
        &["estimate"],
        &["--tp", "8", "--cuda-graphs", "off", "--engine", "vllm"],
    );
    let full = with(
        &["estimate"],
        &["--tp", "8", "--context-length", "100000", "--isl", "90000"],
    );
    let seen = seen(&[&wide["best"], &eager["best"], &full["best"]], &leaves);
    same(
        &leaves,
        &seen,
        // Only where something cannot be spelled, or needs a file or a variable.
        &[
            "launch_error",
            "launch.<engine>.nodes[].files[]",
            "launch.<engine>.nodes[].env.<name>",
        ],
    );
}

#[test]
fn answers_are_what_the_page_says() {
    let mut leaves = documented("Every answer");
    leaves.extend(documented("`recommend`, `estimate`, `explain`"));
    let search = with(&["recommend"], &["--gpus", "16", "--tpot", "0.001"]);
    let explained = with(
        &["explain"],
        &["--tp", "8", "--engine", "sglang@9.9", "--engine-assume"],
    );
    let seen = seen(&[&search, &explained], &leaves);
    same(&leaves, &seen, &["ranked[]"]);
    assert!(
        search["ranked"]
            .as_array()
            .is_some_and(|list| list.len() == 5)
    );
}

#[test]
fn an_explanation_is_what_the_page_says() {
    let leaves = documented("What `explain` adds");
    let answer = with(
        &["explain"],
        &[
            "--tp",
            "8",
            "--attn-dp",
            "2",
            "--dcp",
            "2",
            "--graph-sizes",
            "4,8",
        ],
    );
    let mut all = BTreeSet::new();
    paths(&answer["explained"], "explained", &leaves, &mut all);
    same(&leaves, &all, &[]);
}

#[test]
fn a_comparison_is_what_the_page_says() {
    let mut leaves = documented("Every answer");
    leaves.extend(documented("`compare`"));
    let answer = with(
        &["compare", "tp=8,attn-dp=8,ep=8", "tp=8,engine=sglang@9.9"],
        &["--engine-assume"],
    );
    let seen = seen(&[&answer], &leaves);
    // An axis either has crossovers or is steady; these two layouts need not have both kinds.
    let either = [
        "steady[]",
        "crossovers[].axis",
        "crossovers[].at",
        "crossovers[].below",
        "crossovers[].above",
    ];
    same(&leaves, &seen, &either);
    let axes = |list: &str| answer[list].as_array().map_or(0, Vec::len);
    assert!(axes("crossovers") + axes("steady") >= 3, "{answer}");
}

/// Numbers survive a reader and a writer, bit for bit.
#[test]
fn json_round_trips() {
    for arguments in [
        vec![
            "estimate", "--model", "qwen3-8b", "--gpu", "h200", "--tp", "1", "--json",
        ],
        vec![
            "recommend",
            "--model",
            "qwen3-8b",
            "--gpu",
            "h200",
            "--gpus",
            "8",
            "--json",
        ],
    ] {
        let first: Value = serde_json::from_str(&text(&arguments)).unwrap();
        let written = serde_json::to_string(&first).unwrap();
        let second: Value = serde_json::from_str(&written).unwrap();
        assert_eq!(first, second);
    }
}
