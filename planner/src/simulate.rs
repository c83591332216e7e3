//! Serving step by step: the same engine as [`crate::serve`], without its averages.
//!
//! The judge of the closed form and of the open loop: only tests run it. Time is simulated; no clock is
//! read.

use crate::serve::{Limits, PrefillStyle, StepTimes};
use std::collections::VecDeque;

/// One request of the traffic.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Request {
    /// When it may start, microseconds; with [`Arrivals::ClosedLoop`] not before a client is free.
    pub arrival_us: f64,
    /// Prompt tokens to prefill.
    pub prefill_tokens: f64,
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: f64,
    /// Tokens to generate.
    pub output_tokens: f64,
}

/// When requests enter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrivals {
    /// This many clients, each with one request at a time.
    ClosedLoop(usize),
    /// At their arrival times.
    Trace,
}

/// What one request met.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// Time to first token, microseconds.
    pub ttft_us: f64,
    /// Mean time of a token after the first, microseconds; none for a request of one output token.
    pub tpot_us: Option<f64>,
    /// When its last token came, microseconds.
    pub finished_us: f64,
}

/// An admitted request.
struct Running {
    id: usize,
    prefill_left: f64,
    prefill_done: f64,
    tokens_left: f64,
    sent_us: f64,
    /// Infinite in the pass that ends its prompt, when the time of its end is not known.
    first_token_us: f64,
    kv_tokens: f64,
}

impl Running {
    fn decodes(&self) -> bool {
        self.prefill_left <= 0.0
    }
}

/// A pool of KV tokens a rank that admits requests while it has room.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KvPool {
    /// Tokens a rank can hold.
    pub tokens_per_rank: f64,
}

/// Runs `requests` to their end, in order of arrival, and returns each one's outcome.
///
/// Requests are dealt to attention-DP ranks with the fewest running ones. A request is admitted
/// when its rank has a running slot and KV room for its prompt and output. One step is either a
/// prefill pass or a decode step ([`PrefillStyle::Separate`]), or both at once
/// ([`PrefillStyle::Mixed`]), with the times of `times`; a step yields `tokens_per_step` tokens of each
/// request that decodes.
pub fn run<T: StepTimes>(
    times: &T,
    requests: &[Request],
    arrivals: Arrivals,
    limits: &Limits,
    pool: KvPool,
    tokens_per_step: f64,
) -> Vec<Outcome> {
    let ranks = (limits.dp_ranks.round() as usize).max(1);
    let none = Outcome {
        ttft_us: 0.0,
        tpot_us: None,
        finished_us: 0.0,
    };
    let mut engine = Engine {
        requests,
        arrivals,
        limits,
        pool,
        tokens_per_step,
        now: 0.0,
        next: 0,
        free_clients: match arrivals {
            Arrivals::ClosedLoop(clients) => clients,
            Arrivals::Trace => usize::MAX,
        },
        waiting: VecDeque::new(),
        running: (0..ranks).map(|_| Vec::new()).collect(),
        used: vec![0.0; ranks],
        outcomes: vec![none; requests.len()],
        done: 0,
    };
    while engine.done < requests.len() {
        engine.arrive();
        engine.admit();
        if !engine.step(times) {
            // Nothing runs: time moves to the next arrival.
            match requests.get(engine.next) {
                Some(request) => engine.now = engine.now.max(request.arrival_us),
                None => break,
            }
        }
    }
    engine.outcomes
}

struct Engine<'a> {
    requests: &'a [Request],
    arrivals: Arrivals,
    limits: &'a Limits,
    pool: KvPool,
    tokens_per_step: f64,
    now: f64,
    /// The first request that has not arrived.
    next: usize,
    /// Clients without a request; `usize::MAX` where requests come by themselves.
    free_clients: usize,
    /// Requests that arrived, and when they were sent.
    waiting: VecDeque<(usize, f64)>,
    /// Requests of each attention-DP rank.
    running: Vec<Vec<Running>>,
    /// KV tokens that are taken, a rank.
    used: Vec<f64>,
    outcomes: Vec<Outcome>,
    done: usize,
}

impl Engine<'_> {
    fn arrive(&mut self) {
        while self.next < self.requests.len() && self.free_clients > 0 {
            let arrival_us = self.requests[self.next].arrival_us;
            let sent = match self.arrivals {
                Arrivals::ClosedLoop(_) => self.now,
                Arrivals::Trace if arrival_us <= self.now => arrival_us,
                Arrivals::Trace => break,
            };
            self.waiting.push_back((self.next, sent));
            self.next += 1;
            if self.free_clients != usize::MAX {
                self.free_clients -= 1;
            }
        }
    }

    fn admit(&mut self) {
        while let Some(&(id, sent_us)) = self.waiting.front() {
            let request = &self.requests[id];
            let need = request.prefill_tokens + request.cached_tokens + request.output_tokens;
            let (running, used) = (&self.running, &self.used);
            let slot = (0..running.len())
                .filter(|&r| (running[r].len() as f64) < self.limits.running_per_rank.max(1.0))
                .filter(|&r| running[r].is_empty() || used[r] + need <= self.pool.tokens_per_rank)
                .min_by_key(|&r| running[r].len());
            let Some(rank) = slot else { break };
            self.waiting.pop_front();
            self.used[rank] += need;
            self.running[rank].push(Running {
                id,
                prefill_left: request.prefill_tokens.max(1.0),
                prefill_done: request.cached_tokens,
                tokens_left: request.output_tokens,
                sent_us,
                first_token_us: 0.0,
                kv_tokens: need,
            });
        }
    }

    /// A prefill pass, a decode step or both; false where nothing runs.
    fn step<T: StepTimes>(&mut self, times: &T) -> bool {
        let busy: Vec<bool> = self
            .running
            .iter()
            .map(|rank| rank.iter().any(|request| !request.decodes()))
            .collect();
        let prefilling = busy.iter().filter(|&&b| b).count();
        let decoding = self
            .running
            .iter()
            .map(|rank| rank.iter().filter(|request| request.decodes()).count())
            .max()
            .unwrap_or(0) as f64;
        if prefilling == 0 && decoding == 0.0 {
            return false;
        }
        let mixed = self.limits.style == PrefillStyle::Mixed;
        let mut steps = 1.0;
        if prefilling > 0 {
            let (chunk, before) = self.take_chunks(mixed);
            let beside = if mixed || prefilling < self.running.len() {
                decoding
            } else {
                0.0
            };
            self.now += times.prefill_us(chunk, before, prefilling as f64, beside);
        } else {
            let step_us = times.decode_us(decoding);
            steps = self.steps_alike(step_us);
            self.now += steps * step_us;
        }
        for (rank, &prefills) in self.running.iter_mut().zip(&busy) {
            for request in rank {
                if request.first_token_us.is_infinite() {
                    request.first_token_us = self.now;
                    request.tokens_left -= 1.0;
                } else if request.decodes() && (mixed || !prefills) {
                    request.tokens_left -= steps * self.tokens_per_step;
                }
            }
        }
        self.end_requests();
        true
    }

    /// Takes a chunk of prompts on every rank; the tokens of the largest, and the mean that was prefilled
    /// before each of its tokens.
    fn take_chunks(&mut self, mixed: bool) -> (f64, f64) {
        let (mut chunk, mut before) = (0.0_f64, 0.0_f64);
        for rank in &mut self.running {
            let mut budget = self.limits.chunk_tokens;
            if mixed {
                budget -= rank.iter().filter(|request| request.decodes()).count() as f64
                    * self.tokens_per_step;
            }
            let mut budget = budget.max(64.0);
            let (mut tokens, mut seen) = (0.0, 0.0);
            for request in rank.iter_mut().filter(|request| !request.decodes()) {
                let take = request.prefill_left.min(budget);
                if take <= 0.0 {
                    break;
                }
                budget -= take;
                tokens += take;
                seen += take * request.prefill_done;
                request.prefill_left -= take;
                request.prefill_done += take;
                // The first token comes with the pass that ends the prompt.
                if request.decodes() {
                    request.first_token_us = f64::INFINITY;
                }
            }
            if tokens > chunk {
                chunk = tokens;
                before = seen / tokens;
            }
        }
        (chunk, before)
    }

    /// Decode steps until a request ends or arrives: nothing changes in them, so they are taken at once.
    fn steps_alike(&self, step_us: f64) -> f64 {
        let end = self
            .running
            .iter()
            .flatten()
            .map(|request| (request.tokens_left / self.tokens_per_step).ceil())
            .fold(f64::INFINITY, f64::min);
        let arrival = match (self.arrivals, self.requests.get(self.next)) {
            (Arrivals::Trace, Some(request)) => ((request.arrival_us - self.now) / step_us).ceil(),
            _ => f64::INFINITY,
        };
        end.min(arrival).max(1.0)
    }

    fn end_requests(&mut self) {
        for (rank, used) in self.running.iter_mut().zip(&mut self.used) {
            rank.retain(|request| {
                let ended = request.decodes() && request.tokens_left <= 0.0;
                if ended {
                    let tokens = self.requests[request.id].output_tokens - 1.0;
                    self.outcomes[request.id] = Outcome {
                        ttft_us: request.first_token_us - request.sent_us
                            + self.limits.request_overhead_us,
                        tpot_us: (tokens > 0.0)
                            .then(|| (self.now - request.first_token_us) / tokens),
                        finished_us: self.now,
                    };
                    *used -= request.kv_tokens;
                    self.done += 1;
                    if self.free_clients != usize::MAX {
                        self.free_clients += 1;
                    }
                }
                !ended
            });
        }
    }
}

mod tests;
