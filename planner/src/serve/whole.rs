//! A run from its first request to its last answer: what a benchmark divides by.
//!
//! Between the first wave and the last the closed loop is in steady state. At the end there is nothing left
//! to send: clients fall idle while the longest answers are finished by fewer and fewer requests, whose
//! steps are shorter. With `W` requests a client, a life of `L`, and a drain that lasts `D` and in which the
//! mean client is done after `R`, clients are busy for `W · L` each and idle for `D − R`:
//!
//! ```text
//! whole run = (W − 1) · L + (L − R) + D          several waves
//! whole run = prefill of all + D                 one wave: all answers begin together
//! ```

use super::{ClosedLoop, PrefillStyle, StepTimes};
use crate::question::Spread;

/// Answers that the drain follows, by equal parts of all of them.
const PARTS: usize = 6;

/// Parts of the time to the shortest of these in which others end.
const BEFORE_FIRST: usize = 3;

/// How the end of a run goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Drain {
    /// Until the last answer is whole, microseconds.
    pub lasts_us: f64,
    /// Until an answer is whole on average, microseconds.
    pub mean_us: f64,
    /// Mean over the answers of the time of one of their tokens, microseconds.
    pub token_us: f64,
}

/// What is known of a run beside its steady state.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Whole {
    /// Requests that run at once, of all ranks.
    pub admitted: f64,
    /// Attention-DP ranks.
    pub ranks: f64,
    /// Finished requests a microsecond in steady state.
    pub rate_per_us: f64,
    /// What the prefill of one request adds to the steps of all others in steady state, microseconds.
    pub stall_us: f64,
    /// The prefill of all requests that start together, microseconds.
    pub first_prefill_us: f64,
    /// How prefill is scheduled.
    pub style: PrefillStyle,
}

/// Length, in parts of the mean, that a share `p` of the answers stays below: drawn evenly where mean square
/// and width say so, and from a log-normal law of that mean square otherwise.
pub(super) fn quantile(spread: &Spread, p: f64) -> f64 {
    let even = 1.0 + spread.width * spread.width / 12.0;
    if !spread.width.is_finite() || (spread.weighted - even).abs() < 0.02 {
        let width = if spread.width.is_finite() {
            spread.width
        } else {
            0.0
        };
        return 1.0 + width * (p - 0.5);
    }
    let variance = spread.weighted.max(1.0).ln();
    // Tukey's lambda law of 0.14 is the normal one within 0.002 up to three standard deviations.
    let p = p.clamp(1e-6, 1.0 - 1e-6);
    let normal = (p.powf(0.14) - (1.0 - p).powf(0.14)) * 4.91;
    (variance.sqrt() * normal - variance / 2.0)
        .exp()
        .min(spread.longest)
}

/// The end of a run. `fresh` answers begin with it; others are anywhere in their course.
pub(super) fn drain<T: StepTimes>(
    times: &T,
    load: &ClosedLoop,
    admitted: f64,
    ranks: f64,
    fresh: bool,
) -> Drain {
    let spread = &load.outputs;
    let parts = PARTS as f64;
    let lengths: Vec<f64> = (0..PARTS)
        .map(|part| quantile(spread, (part as f64 + 0.5) / parts))
        .collect();
    let longest = quantile(spread, 1.0 - 0.5 / admitted.max(1.0));
    // The share of answers that have more than `x` to go: of all that are in their course, E(X − x)+ / E X.
    let going = |x: f64| {
        let share = |length: &f64| match fresh {
            true => f64::from(u8::from(*length > x)),
            false => (length - x).max(0.0),
        };
        let sum: f64 = lengths.iter().map(share).sum();
        let all: f64 = lengths.iter().map(|l| if fresh { 1.0 } else { *l }).sum();
        sum / all.max(1e-12)
    };
    let first = lengths.first().copied().unwrap_or(1.0);
    let before = if fresh { 1 } else { BEFORE_FIRST };
    let mut marks: Vec<f64> = (1..=before)
        .map(|part| first * part as f64 / before as f64)
        .collect();
    marks.extend(lengths.iter().skip(1).copied());
    marks.push(longest.max(first));
    let (mut at, mut share) = (0.0, 1.0);
    let (mut now, mut mean, mut token) = (0.0, 0.0, 0.0);
    for mark in marks {
        // At least one answer is left until the last is whole.
        let middle = going((at + mark) / 2.0).max(1.0 / admitted.max(1.0));
        let requests = (admitted * middle / ranks).max(1.0 / ranks);
        // The first token of an answer comes from its prefill.
        let tokens = (load.output_tokens - 1.0).max(0.0);
        let steps = (mark - at).max(0.0) * tokens / load.tokens_per_step;
        if steps > 0.0 {
            now += steps * times.decode_us(requests);
        }
        let left = going(mark);
        mean += (share - left).max(0.0) * now;
        token += (share - left).max(0.0) * now / (mark * load.output_tokens).max(1.0);
        (at, share) = (mark, left);
    }
    mean += share * now;
    token += share * now / (at * load.output_tokens).max(1.0);
    Drain {
        lasts_us: now,
        mean_us: mean,
        token_us: token,
    }
}

/// Requests finished a microsecond over the whole run, and the drain of its only wave where it has one.
pub(super) fn rate<T: StepTimes>(
    times: &T,
    load: &ClosedLoop,
    run: &Whole,
) -> (f64, Option<Drain>) {
    let waves = load.waves.max(1.0);
    let requests = load.clients * waves;
    // Clients outside wait for a place; those inside have more requests each.
    let rounds = requests / run.admitted;
    let life = run.admitted / run.rate_per_us;
    let together = run.style == PrefillStyle::Separate && load.outputs.width <= 0.0;
    let one = rounds <= 1.0 + 1e-9;
    let end = drain(times, load, run.admitted, run.ranks, one || together);
    let whole = if one {
        run.first_prefill_us + end.lasts_us
    } else if together {
        // Requests of equal length end together, wave after wave.
        rounds * life
    } else {
        // Prompts of the first wave share passes, which those of a steady state do not.
        let spared = (run.admitted * run.stall_us - run.first_prefill_us).max(0.0);
        ((rounds - 1.0) * life + (life - end.mean_us).max(0.0) - spared).max(0.0) + end.lasts_us
    };
    let rate = requests / whole.max(1e-9);
    if one {
        return (rate, Some(end));
    }
    (rate, None)
}
