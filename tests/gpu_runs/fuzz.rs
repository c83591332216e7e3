//! Random sizes on GPUs, for some seconds: `PARPLAN_FUZZ_SEED` is the first seed,
//! `PARPLAN_FUZZ_SECONDS` how long.

use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::lines::lines;
use crate::models::{Most, attention, stack};
use crate::support::{on_gpus, on_ranks, ranks, result};

/// Seed, and for how long.
fn asked() -> (u64, Duration) {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    (
        number("PARPLAN_FUZZ_SEED").unwrap_or(1),
        Duration::from_secs(number("PARPLAN_FUZZ_SECONDS").unwrap_or(20)),
    )
}

#[test]
#[ignore = "needs 2 GPUs"]
fn random_sizes_are_exact_on_gpus() {
    let (first, time) = asked();
    let begin = Instant::now();
    let mut runs = 0;
    for line in (first..).flat_map(|seed| lines(seed, ranks())) {
        // At least every kind of run once.
        if begin.elapsed() > time && runs >= 7 {
            break;
        }
        let result = result(on_gpus(&line));
        let samples = result["samples"].as_array().unwrap();
        assert!(samples.iter().all(|s| s["checked"] == true), "{line}");
        runs += 1;
    }
    println!("{runs} runs from seed {first}");
}

#[test]
#[ignore = "needs 2 GPUs"]
fn random_attentions_and_stacks_are_near_the_reference_on_gpus() {
    let (seed, time) = asked();
    let most = Most {
        requests: 70,
        context: 6000,
        queries: 90,
        rows: 40,
    };
    let begin = Instant::now();
    let mut rng = Rng::with_seed(seed);
    let mut runs = 0;
    // At least every kind of run once.
    while begin.elapsed() < time || runs < 4 {
        let n = if rng.bool() { 1 } else { ranks() };
        let line = attention(&mut rng, n, most);
        for s in result(on_ranks(n, &line))["samples"].as_array().unwrap() {
            assert!(s["relative_error"].as_f64().unwrap() < 1e-2, "{line}: {s}");
        }
        // The reference of a stack is one thread's work.
        let small = Most {
            context: 100,
            ..most
        };
        let line = stack(&mut rng, ranks(), small, runs % 4 == 0);
        for s in result(on_ranks(ranks(), &line))["steps"]
            .as_array()
            .unwrap()
        {
            assert!(s["distance"]["relative_error"].is_f64(), "{line}: {s}");
        }
        runs += 2;
    }
    println!("{runs} runs from seed {seed}");
}
