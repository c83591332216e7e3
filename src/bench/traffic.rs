//! What is sent, and when: drawn once from a seed, so that a run can be repeated.

use super::request::Order;
use crate::failure::Failure;
use parplan_profiles::{Lengths, Trace};

/// Token ids are drawn from here: beyond the control tokens of every tokenizer, and within the
/// vocabulary of every model that is served.
const TOKENS: std::ops::Range<u32> = 300..3000;

/// When requests go out.
#[derive(Debug, Clone, PartialEq)]
pub enum Load {
    /// Clients that each send their next request when the last one is done.
    Closed {
        /// How many.
        clients: usize,
    },
    /// At these moments, whether others are done or not; seconds from the start, one a request.
    Open {
        /// The moments.
        at_s: Vec<f64>,
    },
}

/// Requests to send.
#[derive(Debug, Clone, PartialEq)]
pub struct Traffic {
    /// When.
    pub load: Load,
    /// Prompt and output tokens of each.
    pub lengths: Vec<(u32, u32)>,
    /// Share of a prompt that all prompts have in common, from its beginning.
    pub shared: f64,
    /// What everything is drawn from.
    pub seed: u64,
}

impl Traffic {
    /// Draws `requests` requests.
    ///
    /// # Errors
    /// Lengths that a trace would hold, which was not read.
    pub fn draw(
        input: &Lengths,
        output: &Lengths,
        requests: usize,
        load: impl FnOnce(&mut fastrand::Rng) -> Load,
        seed: u64,
    ) -> Result<Traffic, Failure> {
        let mut random = fastrand::Rng::with_seed(seed);
        let one = |lengths: &Lengths, random: &mut fastrand::Rng| {
            lengths
                .quantile(random.f64())
                .map(|tokens| (tokens.round() as u32).max(1))
        };
        let lengths: Option<Vec<(u32, u32)>> = (0..requests)
            .map(|_| Some((one(input, &mut random)?, one(output, &mut random)?)))
            .collect();
        let lengths = lengths.ok_or_else(|| {
            Failure::unusable("the workload's lengths lie in a trace; name its file")
        })?;
        let load = load(&mut random);
        Ok(Traffic {
            load,
            lengths,
            shared: 0.0,
            seed,
        })
    }

    /// Replays the first `requests` of a trace at its own pace, `speed` times as fast.
    pub fn replay(trace: &Trace, requests: usize, speed: f64, seed: u64) -> Traffic {
        let taken = || trace.requests.iter().take(requests);
        Traffic {
            load: Load::Open {
                at_s: taken().map(|request| request.at_s / speed).collect(),
            },
            lengths: taken()
                .map(|request| (request.input.max(1), request.output.max(1)))
                .collect(),
            shared: 0.0,
            seed,
        }
    }

    /// Moments of arrivals that do not know of each other, `rate` a second on average.
    pub fn poisson(rate: f64, requests: usize, random: &mut fastrand::Rng) -> Vec<f64> {
        let mut now = 0.0;
        (0..requests)
            .map(|_| {
                let at = now;
                now -= (1.0 - random.f64()).ln() / rate;
                at
            })
            .collect()
    }

    /// Request `index`: its prompt as token ids, no two prompts alike beyond the shared part.
    pub fn order(&self, index: usize) -> Order {
        let (input, output) = self.lengths.get(index).copied().unwrap_or((1, 1));
        let shared = (f64::from(input) * self.shared).floor() as usize;
        let mut common = fastrand::Rng::with_seed(self.seed);
        let own_seed = self
            .seed
            .wrapping_add(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(index as u64 + 1));
        let mut own = fastrand::Rng::with_seed(own_seed);
        Order {
            prompt: (0..input as usize)
                .map(|at| match at < shared {
                    true => common.u32(TOKENS),
                    false => own.u32(TOKENS),
                })
                .collect(),
            output,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(seed: u64) -> Traffic {
        let even = |max| Lengths::Uniform {
            max,
            range_ratio: 0.8,
        };
        let load = |_: &mut fastrand::Rng| Load::Closed { clients: 4 };
        Traffic::draw(&even(1000), &even(100), 2000, load, seed).unwrap()
    }

    #[test]
    fn a_seed_repeats_a_run_and_lengths_have_their_mean() {
        assert_eq!(drawn(1), drawn(1));
        assert_ne!(drawn(1).lengths, drawn(2).lengths);
        let traffic = drawn(7);
        let mean = traffic.lengths.iter().map(|l| f64::from(l.0)).sum::<f64>() / 2000.0;
        assert!((mean - 900.0).abs() < 5.0, "{mean}");
        let order = traffic.order(3);
        assert_eq!(order.prompt.len(), traffic.lengths[3].0 as usize);
        assert_eq!(order.prompt, traffic.order(3).prompt);
        assert_ne!(order.prompt[..8], traffic.order(4).prompt[..8]);
    }

    #[test]
    fn the_shared_part_is_alike_and_the_rest_is_not() {
        let traffic = Traffic {
            shared: 0.5,
            ..drawn(1)
        };
        let (a, b) = (traffic.order(0).prompt, traffic.order(1).prompt);
        assert_eq!(a[..400], b[..400]);
        assert_ne!(a[500..520], b[500..520]);
    }

    #[test]
    fn arrivals_come_at_their_rate() {
        let at = Traffic::poisson(50.0, 5000, &mut fastrand::Rng::with_seed(3));
        assert!(at.windows(2).all(|pair| pair[0] <= pair[1]));
        let rate = 4999.0 / at[4999];
        assert!((rate - 50.0).abs() < 2.5, "{rate}");
    }

    #[test]
    fn a_trace_is_replayed_at_its_pace() {
        let text = "TIMESTAMP,ContextTokens,GeneratedTokens\n\
                    2023-11-16 18:15:46.0,100,10\n2023-11-16 18:15:48.0,200,20\n";
        let trace = Trace::parse(text).unwrap();
        let traffic = Traffic::replay(&trace, 10, 2.0, 0);
        assert_eq!(traffic.lengths, [(100, 10), (200, 20)]);
        assert_eq!(
            traffic.load,
            Load::Open {
                at_s: vec![0.0, 1.0]
            }
        );
    }
}
