//! Runs on the CPU backend at random sizes: exact, near the reference, or refused.

#![allow(clippy::unwrap_used)] // tests, helper functions included

mod exec_support;
#[path = "exec_support/fuzz.rs"]
mod fuzz;
#[path = "exec_support/fuzz_models.rs"]
mod fuzz_models;

use fastrand::Rng;
use fuzz_models::Most;

use exec_support::{finished, run};

#[test]
fn random_sizes_are_exact_at_every_group_size() {
    for (seed, ranks) in [(1, 1), (2, 2), (3, 3), (4, 4), (6, 8)] {
        for line in fuzz::lines(seed, ranks) {
            let ranks = ranks.to_string();
            let words: Vec<&str> = line
                .split_whitespace()
                .chain(["--ranks", &ranks, "--json"])
                .collect();
            let end = finished(run(&words));
            assert_eq!(end.code(), Some(0), "{ranks} ranks, {line}: {}", end.stderr);
            let result: serde_json::Value = serde_json::from_str(&end.stdout).unwrap();
            let samples = result["samples"].as_array().unwrap();
            assert!(samples.iter().all(|s| s["checked"] == true), "{line}");
        }
    }
}

/// The result of a run that must succeed on the CPU.
fn right(ranks: usize, line: &str) -> serde_json::Value {
    let ranks = ranks.to_string();
    let cpu = ["--backend", "cpu", "--ranks", &ranks, "--json"];
    let words: Vec<&str> = line.split_whitespace().chain(cpu).collect();
    let end = finished(run(&words));
    assert_eq!(end.code(), Some(0), "{ranks} ranks, {line}: {}", end.stderr);
    serde_json::from_str(&end.stdout).unwrap()
}

#[test]
fn random_attentions_and_stacks_are_near_the_reference() {
    let most = Most {
        requests: 5,
        context: 40,
        queries: 9,
        rows: 3,
    };
    let mut rng = Rng::with_seed(7);
    for ranks in [1, 2, 3, 4, 1, 2] {
        let line = fuzz_models::attention(&mut rng, ranks, most);
        let result = right(ranks, &line);
        for s in result["samples"].as_array().unwrap() {
            assert!(s["relative_error"].as_f64().unwrap() < 1e-2, "{line}: {s}");
        }
    }
    for ranks in [1, 2, 4] {
        let line = fuzz_models::stack(
            &mut rng,
            ranks,
            Most {
                context: 12,
                ..most
            },
            false,
        );
        let result = right(ranks, &line);
        for s in result["steps"].as_array().unwrap() {
            // The run itself holds it to the tolerance of its formats.
            assert!(s["distance"]["relative_error"].is_f64(), "{line}: {s}");
        }
    }
}
