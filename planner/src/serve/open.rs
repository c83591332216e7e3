//! Serving under open-loop traffic: requests come at a mean rate, whether others have ended or not.
//!
//! Arrivals are Poisson. A request meets the others that run on average, and itself (arrivals see time
//! averages), so that with `b` requests in decode
//!
//! ```text
//! TPOT = t(b + 1) / (1 − λ Δ)      b = λ · (osl − 1) · TPOT
//! ```
//!
//! with the step time `t` and the stall `Δ` of a prompt as in the closed loop. Where prefill stops
//! decoding, prompts queue for it as M/D/1, for arrivals go on meanwhile. Nothing starts together, so
//! there is no burst. What the engine gets through at most is its rate with every place taken; below it
//! a request waits for one of the `k` places by Sakasegawa's approximation of the M/G/k queue (Allen and
//! Cunneen's correction for how unequal requests are):
//!
//! ```text
//! W = (1 + c²) / 2 · S / k · ρ^(√(2(k + 1)) − 1) / (1 − ρ)
//! ```
//!
//! with the time `S` that a request holds a place when all are taken, the load `ρ` (arrivals over the
//! most that get through), and the squared coefficient of variation `c²` of output lengths.

use super::{ClosedLoop, Entering, Limits, Service, StepTimes, trial};
use crate::question::Spread;

/// Arrivals at one replica.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OpenLoop {
    /// Mean arrivals a microsecond.
    pub per_us: f64,
    /// Squared coefficient of variation of the outputs' lengths.
    pub variation: f64,
}

/// What an open loop comes to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Answer {
    /// It settles.
    Steady {
        /// The service.
        service: Service,
        /// Requests at a replica on average: waiting, in prefill, and in decode.
        in_flight: f64,
    },
    /// More comes than gets through, and the queue grows without end.
    Overload {
        /// What gets through, requests a second and replica.
        most_per_s: f64,
    },
}

/// Share of the most that gets through beyond which no queue is called steady: a wait of fifty times
/// the work rests on nothing that is known so well.
const STEADY: f64 = 0.98;

/// Solves the open loop for one replica. `load` says what requests are; its clients are not read. Also
/// returns how many batches were tried.
pub fn open_loop<T: StepTimes>(
    times: &T,
    load: &ClosedLoop,
    arrivals: &OpenLoop,
    limits: &Limits,
) -> (Answer, u64) {
    // Nothing starts or ends together.
    let load = ClosedLoop {
        waves: f64::INFINITY,
        outputs: Spread {
            width: f64::INFINITY,
            ..load.outputs
        },
        ..*load
    };
    let top = limits.running_per_rank.max(1.0 / limits.dp_ranks.max(1.0));
    let at = |decoding: f64| trial(times, &load, limits, decoding, Entering::Poisson { top });
    let full = at(top);
    let most = full.service.requests_per_s / 1e6;
    let load_share = arrivals.per_us / most;
    if load_share.is_nan() || load_share > STEADY {
        let most_per_s = most * 1e6;
        return (Answer::Overload { most_per_s }, 1);
    }
    let rate = |trial: &super::Trial| trial.service.requests_per_s / 1e6;
    let (mut low, mut low_rate) = (0.0, 0.0);
    let (mut high, mut high_rate) = (top, most);
    let mut best = full;
    let mut tried = 1;
    for _ in 0..24 {
        if (rate(&best) / arrivals.per_us - 1.0).abs() <= 0.002 {
            break;
        }
        // As in the closed loop: false position, kept off the ends.
        let share = (arrivals.per_us - low_rate) / (high_rate - low_rate);
        let next = low + (high - low) * share.clamp(0.02, 0.98);
        best = at(next);
        tried += 1;
        if rate(&best) > arrivals.per_us {
            (high, high_rate) = (next, rate(&best));
        } else {
            (low, low_rate) = (next, rate(&best));
        }
    }
    let places = (top * limits.dp_ranks).max(1.0);
    let held_us = places / most;
    let exponent = (2.0 * (places + 1.0)).sqrt() - 1.0;
    let place_us = (1.0 + arrivals.variation) / 2.0 * held_us / places * load_share.powf(exponent)
        / (1.0 - load_share);
    let mut service = best.service;
    service.queue_us += place_us;
    service.ttft_us += place_us;
    service.requests_per_s = arrivals.per_us * 1e6;
    service.most_requests_per_s = Some(most * 1e6);
    let in_flight = best.clients + arrivals.per_us * place_us;
    (Answer::Steady { service, in_flight }, tried)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;
    use crate::serve::PrefillStyle;
    use crate::simulate::{Arrivals, KvPool, Request, run};

    /// A decode step of 8 ms and 0.2 ms a request; prompts at 40 tokens a millisecond, with the decoding
    /// requests beside them or alone.
    struct Line(PrefillStyle);

    impl StepTimes for Line {
        fn decode_us(&self, requests: f64) -> f64 {
            8_000.0 + 200.0 * requests
        }

        fn prefill_us(&self, tokens: f64, _: f64, _: f64, decoding: f64) -> f64 {
            let beside = match self.0 {
                PrefillStyle::Mixed => decoding,
                PrefillStyle::Separate => 0.0,
            };
            8_000.0 + 200.0 * beside + tokens * 25.0
        }
    }

    fn load() -> ClosedLoop {
        ClosedLoop {
            clients: 0.0,
            prefill_tokens: 800.0,
            cached_tokens: 0.0,
            output_tokens: 200.0,
            tokens_per_step: 1.0,
            waves: 10.0,
            weighted_prompt: 800.0,
            outputs: Spread::NONE,
        }
    }

    fn limits(style: PrefillStyle, running_per_rank: f64) -> Limits {
        Limits {
            dp_ranks: 1.0,
            running_per_rank,
            chunk_tokens: 8192.0,
            style,
            request_overhead_us: 0.0,
            balance_steps: 0.0,
            receive_steps: 1.0,
            company_steps: 0.0,
        }
    }

    fn solve(per_s: f64, limits: &Limits) -> Answer {
        let arrivals = OpenLoop {
            per_us: per_s / 1e6,
            variation: 0.0,
        };
        open_loop(&Line(limits.style), &load(), &arrivals, limits).0
    }

    fn steady(per_s: f64, limits: &Limits) -> (Service, f64) {
        match solve(per_s, limits) {
            Answer::Steady { service, in_flight } => (service, in_flight),
            Answer::Overload { most_per_s } => panic!("{most_per_s}"),
        }
    }

    /// Poisson arrivals for the simulation, from a fixed seed.
    fn arrivals(per_s: f64, requests: usize) -> Vec<Request> {
        let mut state = 7;
        let mut now = 0.0;
        (0..requests)
            .map(|_| {
                let draw = crate::padding::split_mix(&mut state) >> 11;
                let uniform = (draw as f64 + 1.0) / (1u64 << 53) as f64;
                now -= uniform.ln() / per_s * 1e6;
                Request {
                    arrival_us: now,
                    prefill_tokens: 800.0,
                    cached_tokens: 0.0,
                    output_tokens: 200.0,
                }
            })
            .collect()
    }

    #[test]
    fn the_closed_form_meets_the_simulation_from_an_idle_engine_to_a_full_one() {
        let pool = KvPool {
            tokens_per_rank: 1e9,
        };
        for style in [PrefillStyle::Mixed, PrefillStyle::Separate] {
            let limits = limits(style, 64.0);
            for per_s in [0.05, 2.0, 8.0, 10.5] {
                let (service, _) = steady(per_s, &limits);
                let requests = arrivals(per_s, 4000);
                let all = run(&Line(style), &requests, Arrivals::Trace, &limits, pool, 1.0);
                let settled = &all[400..];
                let mean = |of: fn(&crate::simulate::Outcome) -> f64| {
                    settled.iter().map(of).sum::<f64>() / settled.len() as f64
                };
                let (tpot, ttft) = (mean(|o| o.tpot_us.unwrap()), mean(|o| o.ttft_us));
                let form = service.tpot_us.unwrap();
                assert!(
                    (form / tpot - 1.0).abs() < 0.05,
                    "{style:?} {per_s}: {form} {tpot}"
                );
                assert!(
                    (service.ttft_us / ttft - 1.0).abs() < 0.25,
                    "{style:?} {per_s}: {} {ttft}",
                    service.ttft_us
                );
            }
        }
    }

    #[test]
    fn what_gets_through_is_told_where_more_comes() {
        let limits = limits(PrefillStyle::Mixed, 16.0);
        let Answer::Overload { most_per_s } = solve(1000.0, &limits) else {
            panic!("no engine of 16 requests serves 1000 a second");
        };
        assert!((4.0..9.0).contains(&most_per_s), "{most_per_s}");
        assert!(matches!(
            solve(most_per_s * 1.01, &limits),
            Answer::Overload { .. }
        ));
        // The queue for a place grows towards the most, and there is none far from it.
        let (near, in_flight) = steady(most_per_s * 0.97, &limits);
        let (far, _) = steady(most_per_s * 0.3, &limits);
        assert!(near.ttft_us > 5.0 * far.ttft_us);
        assert!(in_flight > 16.0);
    }

    #[test]
    fn littles_law_holds() {
        let (service, in_flight) = steady(6.0, &limits(PrefillStyle::Mixed, 256.0));
        let by_time = 6e-6 * (service.ttft_us + 199.0 * service.tpot_us.unwrap());
        assert!(
            (in_flight / by_time - 1.0).abs() < 0.02,
            "{in_flight} {by_time}"
        );
    }
}
