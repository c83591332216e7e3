//! Random sizes on GPUs, for some seconds: `PARPLAN_FUZZ_SEED` is the first seed,
//! `PARPLAN_FUZZ_SECONDS` how long.

use std::time::{Duration, Instant};

use crate::lines::lines;
use crate::support::{on_gpus, ranks, result};

#[test]
#[ignore = "needs 2 GPUs"]
fn random_sizes_are_exact_on_gpus() {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let first = number("PARPLAN_FUZZ_SEED").unwrap_or(1);
    let time = Duration::from_secs(number("PARPLAN_FUZZ_SECONDS").unwrap_or(20));
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
