//! Random sizes on GPUs, for some seconds.

use fastrand::Rng;

use crate::lines::{bounds, lines};
use crate::models::{Most, attention, stack};
use crate::support::{on_gpus, on_ranks, ranks, result};

#[test]
#[ignore = "needs 2 GPUs"]
fn random_sizes_are_exact_on_gpus() {
    let (first, goes_on) = bounds(20);
    let mut runs = 0;
    for line in (first..).flat_map(|seed| lines(seed, ranks(), 21)) {
        // At least one run of each kind.
        if runs >= 3 && !goes_on() {
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
    let (seed, goes_on) = bounds(20);
    let most = Most {
        requests: 70,
        context: 6000,
        queries: 90,
        rows: 40,
        scale: 8,
    };
    let mut rng = Rng::with_seed(seed);
    let mut runs = 0;
    // At least every kind of run once.
    while goes_on() || runs < 4 {
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
