//! Collectives, gather and sync on the CPU backend at random sizes, for some seconds.

#![allow(clippy::unwrap_used)] // tests, helper functions included

mod exec_support;
#[path = "exec_support/fuzz.rs"]
mod fuzz;

use exec_support::{finished, run};

#[test]
fn random_sizes_are_exact() {
    let (first, goes_on) = fuzz::bounds(6);
    let mut runs = 0;
    let cases = (first..).flat_map(|seed| {
        let ranks = [3, 2, 4, 1, 5][seed as usize % 5];
        fuzz::lines(seed, ranks, 16)
            .into_iter()
            .map(move |line| (ranks, line))
    });
    for (ranks, line) in cases {
        // At least one run of each kind.
        if runs >= 3 && !goes_on() {
            break;
        }
        let ranks = ranks.to_string();
        let words: Vec<&str> = line
            .split_whitespace()
            .chain(["--ranks", &ranks, "--json", "--backend", "cpu"])
            .collect();
        let end = finished(run(&words));
        assert_eq!(end.code(), Some(0), "{ranks} ranks, {line}: {}", end.stderr);
        let result: serde_json::Value = serde_json::from_str(&end.stdout).unwrap();
        let samples = result["samples"].as_array().unwrap();
        assert!(samples.iter().all(|s| s["checked"] == true), "{line}");
        runs += 1;
    }
    println!("{runs} runs from seed {first}");
}
