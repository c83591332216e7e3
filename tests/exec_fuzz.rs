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
        let result = right(ranks, &line);
        let samples = result["samples"].as_array().unwrap();
        assert!(samples.iter().all(|s| s["checked"] == true), "{line}");
        runs += 1;
    }
    println!("{runs} runs from seed {first}");
}

#[test]
fn random_attentions_and_stacks_are_near_the_reference() {
    let most = Most {
        requests: 5,
        context: 40,
        queries: 9,
        rows: 3,
        scale: 16,
    };
    let (seed, goes_on) = fuzz::bounds(6);
    let mut rng = Rng::with_seed(seed + 6);
    for (run, ranks) in [1, 2, 3, 4, 1, 2].into_iter().enumerate() {
        if run >= 2 && !goes_on() {
            break;
        }
        let line = fuzz_models::attention(&mut rng, ranks, most);
        let result = right(ranks, &line);
        for s in result["samples"].as_array().unwrap() {
            assert!(s["relative_error"].as_f64().unwrap() < 1e-2, "{line}: {s}");
        }
    }
    for (run, ranks) in [2, 4, 1].into_iter().enumerate() {
        if run >= 1 && !goes_on() {
            break;
        }
        let line = fuzz_models::stack(
            &mut rng,
            ranks,
            Most {
                requests: 2,
                context: 12,
                rows: 2,
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
