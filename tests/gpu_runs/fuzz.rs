//! Random sizes on GPUs, for some seconds.

use crate::lines::{bounds, lines};
use crate::support::{on_gpus, ranks, result};

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
