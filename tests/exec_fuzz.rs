//! Collectives, gather and sync on the CPU backend at random sizes: exact, or refused.

#![allow(clippy::unwrap_used)] // tests, helper functions included

mod exec_support;
#[path = "exec_support/fuzz.rs"]
mod fuzz;

use exec_support::{finished, run};

#[test]
fn random_sizes_are_exact_at_every_group_size() {
    for (seed, ranks) in [(1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (6, 8)] {
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
