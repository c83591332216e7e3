//! Runs at sizes that nobody tuned for: odd numbers of bytes and elements, uneven and
//! empty ranks. A seed names all of them; every result is compared in the binary.

use std::time::{Duration, Instant};

use fastrand::Rng;

/// The first seed and the time of a fuzz: `PARPLAN_FUZZ_SEED`, and `PARPLAN_FUZZ_SECONDS`
/// or else `seconds`.
pub fn bounds(seconds: u64) -> (u64, impl Fn() -> bool) {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let time = Duration::from_secs(number("PARPLAN_FUZZ_SECONDS").unwrap_or(seconds));
    let begin = Instant::now();
    (number("PARPLAN_FUZZ_SEED").unwrap_or(1), move || {
        begin.elapsed() < time
    })
}

/// Words after `parplan run`, for `ranks` ranks: a run of each kind, of messages of up to
/// 2^`bits` bytes.
pub fn lines(seed: u64, ranks: usize, bits: u32) -> Vec<String> {
    let mut rng = Rng::with_seed(seed);
    vec![
        collectives(&mut rng, bits),
        gather(&mut rng, ranks),
        format!("sync --rounds {}", rng.u32(1..40)),
    ]
}

/// From 1 byte on, as many small as large.
fn sizes(rng: &mut Rng, count: usize, most: u32) -> String {
    let sizes: Vec<String> = (0..count)
        .map(|_| {
            let bits = rng.u32(0..most);
            ((1usize << bits) + rng.usize(0..1 << bits)).to_string()
        })
        .collect();
    sizes.join(",")
}

fn collectives(rng: &mut Rng, bits: u32) -> String {
    let dtypes = ["u8", "i32", "i64", "f16", "bf16", "f32", "f64"];
    format!(
        "collectives --check --repeats 1 --iterations {} --graph-launches 1 --dtype {} --sizes {} \
         --implementation backend,peer-one-shot,peer-two-shot",
        rng.u32(1..4),
        dtypes[rng.usize(0..dtypes.len())],
        sizes(rng, 10, bits)
    )
}

fn counts(rng: &mut Rng, most: &[usize]) -> Vec<usize> {
    let idle = rng.f64();
    most.iter()
        .map(|most| {
            if rng.f64() < idle {
                0
            } else {
                rng.usize(0..=*most)
            }
        })
        .collect()
}

fn listed(counts: &[usize]) -> String {
    counts
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

fn gather(rng: &mut Rng, ranks: usize) -> String {
    let widths: Vec<usize> = (1..=ranks).filter(|dp| ranks.is_multiple_of(*dp)).collect();
    let dp = widths[rng.usize(0..widths.len())];
    let mut line = format!(
        "gather --repeats 1 --iterations 1 --graph-launches 1 --attn-dp {dp} --hidden {} --speculative-steps {}{}",
        8 * rng.usize(1..130),
        rng.usize(0..4),
        if rng.bool() { " --partial" } else { "" }
    );
    for _ in 0..5 {
        let requests = counts(rng, &vec![150; dp]);
        let logprob_rows = counts(rng, &requests);
        line += &format!(
            " --requests {} --logprob-rows {}",
            listed(&requests),
            listed(&logprob_rows)
        );
    }
    line
}
