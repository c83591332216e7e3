//! Serving under closed-loop traffic: from the time of one step to TTFT, TPOT and throughput.
//!
//! `concurrency` clients each send a request, wait for its last token, and send the next. The
//! engine is in steady state when requests leave as fast as they enter, so for a decoding batch of
//! `B` requests a replica (Little's law, and every prefill delays every decoding request):
//!
//! ```text
//! λ    = B / (osl · t_decode(B) + B · Δ)         requests a second
//! TPOT = t_decode(B) / (1 − λ Δ)
//! ```
//!
//! where `Δ` is what one request's prefill adds to everybody's step time: the whole prefill pass
//! where prefill runs in passes of its own (SGLang), or the difference between a mixed step and a
//! pure decode step where chunks ride along (vLLM, TensorRT-LLM). Where chunks ride along, prefill is
//! an M/D/1 queue in steps: with a share `ρ` of the steps carrying a chunk, the mean wait is
//! `ρ / (2 (1 − ρ))` prefills (Pollaczek–Khinchine). The population closes the loop:
//! `concurrency = B + λ · TTFT`.
//!
//! Where prompts wait until every attention-DP rank has one (TensorRT-LLM's `enable_balance`), they
//! are prefilled together after a cycle of steps: as many as it takes until each of `R` ranks has
//! lost a request and been given the next (coupons: `R · (1 + 1/2 + … + 1/R)` arrivals), or the time-out.
//! Fewer steps carry prefill, and a prompt waits for half a cycle.
//!
//! Traffic that comes at a rate is [`open`]'s.
//!
//! Benchmarks send all clients' first requests at once. That burst is prefilled back to back. Where
//! prefill runs in passes of its own, the burst comes back as long as lengths are so equal that a
//! wave of requests ends together.

pub mod open;
mod whole;

use crate::question::Spread;
use whole::Whole;

/// How an engine schedules prefill beside decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrefillStyle {
    /// Prefill passes run on their own and hold decoding back (SGLang default).
    Separate,
    /// Prefill chunks share a step with decoding requests (vLLM, TensorRT-LLM).
    Mixed,
}

/// Step times of one replica, microseconds. `requests` are per attention-DP rank.
pub trait StepTimes {
    /// One decode step with `requests` requests a rank.
    fn decode_us(&self, requests: f64) -> f64;
    /// One pass that prefills `tokens` new tokens a rank on `ranks` of the attention-DP ranks,
    /// after `prefix` tokens of the same requests, while `decoding` requests a rank decode where the
    /// engine lets them: on every rank where chunks ride along, otherwise on the other ranks.
    fn prefill_us(&self, tokens: f64, prefix: f64, ranks: f64, decoding: f64) -> f64;
}

/// Closed-loop traffic seen by one replica.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClosedLoop {
    /// Clients of this replica.
    pub clients: f64,
    /// Prompt tokens to prefill a request, prefix hits already taken off.
    pub prefill_tokens: f64,
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: f64,
    /// Generated tokens a request.
    pub output_tokens: f64,
    /// Tokens that one step yields a request (above 1 with speculation).
    pub tokens_per_step: f64,
    /// Requests each client sends.
    pub waves: f64,
    /// Tokens to prefill of the request that a token of them lies in, on average: above
    /// `prefill_tokens` where lengths differ, because long prompts have more of the tokens.
    pub weighted_prompt: f64,
    /// How output lengths lie around their mean.
    pub outputs: Spread,
}

/// What limits one replica.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Attention-DP ranks.
    pub dp_ranks: f64,
    /// Running requests that a rank admits: the engine's limit and what the KV cache holds.
    pub running_per_rank: f64,
    /// Most prefill tokens in one pass, a rank.
    pub chunk_tokens: f64,
    /// How prefill is scheduled.
    pub style: PrefillStyle,
    /// Time from the client to the first pass and from the first token back, microseconds.
    pub request_overhead_us: f64,
    /// Steps that prompts wait, at most, until every attention-DP rank has one; 0 where they do not.
    pub balance_steps: f64,
    /// Decode steps between two looks for new requests, at least 1. A look follows every prefill.
    pub receive_steps: f64,
    /// Decode steps that a prompt waits for others to be prefilled with it; 0 where none does.
    pub company_steps: f64,
}

/// Predicted service of one replica.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Service {
    /// Mean time to first token, microseconds.
    pub ttft_us: f64,
    /// The part of it spent waiting for a place in the running batch.
    pub queue_us: f64,
    /// The part of it that the first burst adds.
    pub burst_us: f64,
    /// Mean time of one output token after the first, microseconds; none where a request has one
    /// output token, and so none after the first.
    pub tpot_us: Option<f64>,
    /// One decode step with nothing else going on, microseconds.
    pub decode_step_us: f64,
    /// Decoding requests a rank.
    pub decoding_per_rank: f64,
    /// Finished requests a second, of the replica: over a whole run where clients send so many requests
    /// each, the end of it included, when fewer and fewer of them run.
    pub requests_per_s: f64,
    /// Fraction of the time that prefill holds decoding back.
    pub prefill_load: f64,
    /// Where arrivals set the rate: the most requests a second that could get through the replica.
    pub most_requests_per_s: Option<f64>,
}

/// The prefill of one request (or a few that arrive together): its passes.
#[derive(Debug, Clone, Copy)]
struct Prefill {
    /// What it takes from the first pass to the first token.
    latency_us: f64,
    /// What it adds to the step time of everybody else, a request.
    stall_us: f64,
    /// Passes that it takes.
    passes: f64,
}

/// Requests that are prefilled at the same time.
#[derive(Debug, Clone, Copy)]
struct Together {
    /// Requests in a row on one rank.
    on_rank: f64,
    /// Ranks that prefill at once.
    ranks: f64,
}

/// The prefill of requests that come together, beside `decoding` requests a rank.
///
/// With several attention-DP ranks, the ranks that have no prompt waiting decode in the same pass
/// (SGLang's ranks choose for themselves; all meet in the feed-forward blocks).
fn prefill<T: StepTimes>(
    times: &T,
    load: &ClosedLoop,
    limits: &Limits,
    together: Together,
    decoding: f64,
    decode_us: f64,
) -> Prefill {
    let mixed = limits.style == PrefillStyle::Mixed;
    let elsewhere = (1.0 - together.ranks / limits.dp_ranks).max(0.0);
    let beside = if mixed { decoding } else { 0.0 };
    let budget = (limits.chunk_tokens - beside * load.tokens_per_step).max(64.0);
    let own = load.prefill_tokens.max(1.0);
    let tokens = own * together.on_rank;
    let passes = (tokens / budget).ceil().max(1.0);
    let chunk = tokens / passes;
    // Attention of a chunk sees what came before it: on average half of the prompt that its tokens
    // lie in, and the cached prefix. Requests of a common pass do not see each other.
    let before =
        load.cached_tokens + (load.weighted_prompt.max(own) - chunk.min(own)).max(0.0) / 2.0;
    let pass = times.prefill_us(chunk, before, together.ranks, decoding);
    // Decoding goes on beside the chunks, everywhere or on the other ranks.
    let progress = if mixed { 1.0 } else { elsewhere };
    let stall = passes * (pass - progress * decode_us).max(0.0);
    Prefill {
        latency_us: passes * pass,
        stall_us: stall / (together.ranks * together.on_rank),
        passes,
    }
}

/// Mean of a Poisson count, given that it is not zero.
fn given_one(mean: f64) -> f64 {
    mean / -(-mean).exp_m1().min(-1e-12)
}

/// Requests that are prefilled together when so many arrive a step and rank, and the share of the
/// steps in which a rank prefills.
fn coming_together(
    load: &ClosedLoop,
    limits: &Limits,
    arrivals: f64,
    batch: f64,
) -> (Together, f64) {
    // Those of the steps between two looks are prefilled together, or the first one and who joins it.
    let on_rank = if limits.company_steps > 0.0 {
        1.0 + arrivals * limits.company_steps
    } else {
        given_one(arrivals * limits.receive_steps)
    };
    let busy = (arrivals / on_rank * passes(load, limits, on_rank)).min(0.98);
    let none = (1.0 - busy).powf(limits.dp_ranks);
    let ranks = if limits.dp_ranks > 1.0 {
        // Requests that end together come back together, on different ranks. Given that one rank
        // prefills, so many do at once.
        let alike = end_together(load, batch);
        (limits.dp_ranks * busy / (1.0 - none).max(1e-12))
            .max(alike)
            .clamp(1.0, limits.dp_ranks)
    } else {
        1.0
    };
    (Together { on_rank, ranks }, busy)
}

/// The same where prompts wait `cycle` steps for those of other ranks.
fn balanced(load: &ClosedLoop, limits: &Limits, arrivals: f64, cycle: f64) -> (Together, f64) {
    let gathered = given_one(arrivals * limits.dp_ranks * cycle.max(1.0));
    let ranks = gathered.clamp(1.0, limits.dp_ranks);
    let on_rank = gathered / ranks;
    let busy = (passes(load, limits, on_rank) / cycle.max(1.0)).min(0.98);
    (Together { on_rank, ranks }, busy)
}

/// Passes that the prompts of `on_rank` requests take.
fn passes(load: &ClosedLoop, limits: &Limits, on_rank: f64) -> f64 {
    let chunk = limits.chunk_tokens.max(64.0);
    (load.prefill_tokens * on_rank / chunk).ceil().max(1.0)
}

/// A trial: the whole service when `decoding` requests a rank are being decoded.
struct Trial {
    service: Service,
    /// Clients that this service keeps busy.
    clients: f64,
}

/// How requests come.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Entering {
    /// From clients that wait for their last one.
    Loop,
    /// By themselves. At most `top` decode on a rank.
    Poisson { top: f64 },
}

fn trial<T: StepTimes>(
    times: &T,
    load: &ClosedLoop,
    limits: &Limits,
    decoding: f64,
    entering: Entering,
) -> Trial {
    let decode_us = times.decode_us(match entering {
        Entering::Loop => decoding,
        // A request meets the others and itself.
        Entering::Poisson { top } => (decoding + 1.0 / limits.dp_ranks).min(top),
    });
    let steps = ((load.output_tokens - 1.0) / load.tokens_per_step).max(1e-9);
    let batch = decoding * limits.dp_ranks;
    // Requests finish, and their clients' next ones arrive, as steps make tokens: so many a step and
    // rank.
    let arrivals = decoding / steps;
    let cycle = balance_cycle(limits, arrivals * limits.dp_ranks);
    let (together, busy) = if cycle > 0.0 {
        balanced(load, limits, arrivals, cycle)
    } else {
        coming_together(load, limits, arrivals, batch)
    };
    let one = prefill(times, load, limits, together, decoding, decode_us);
    let rate = batch / (steps * decode_us + batch * one.stall_us);
    let stall_load = rate * one.stall_us;
    // Stalls met in the first and the last wave are half of the steady ones. So are those among
    // requests that start and end together: each waits for the prefills behind its own only.
    let alike = match limits.style {
        PrefillStyle::Separate => (end_together(load, batch) - 1.0) / batch.max(1.0),
        PrefillStyle::Mixed => 0.0,
    };
    let alike = alike.clamp(0.0, 1.0);
    let share = (1.0 - 1.0 / load.waves).max(0.5 / load.waves) * (1.0 - alike) + 0.5 * alike;
    let tpot_us = (load.output_tokens > 1.0).then_some(
        decode_us * (1.0 + share * stall_load / (1.0 - stall_load)) / load.tokens_per_step,
    );
    // Where chunks ride along, or other ranks decode on, the queue before a prefill counts steps, not
    // seconds, because everybody's decoding, and so every new arrival, slows down with the steps.
    // Where all decoding stops, no client of a loop gets its last token meanwhile; others keep coming.
    let alone = limits.style == PrefillStyle::Separate && limits.dp_ranks <= 1.0;
    let busy = match entering {
        Entering::Loop if alone => 0.0,
        Entering::Poisson { .. } if alone => stall_load.min(0.98),
        _ => busy,
    };
    // A prompt arrives in the middle of a step, of the steps between two looks for prompts, or of a
    // cycle of steps with prefill among them.
    let until = if cycle > 0.0 {
        cycle * decode_us / (1.0 - stall_load)
    } else {
        decode_us * limits.receive_steps
    };
    // The first one waits out its steps, those who join it half of them.
    let joining = together.on_rank - 1.0;
    let company = limits.company_steps * (1.0 + joining / 2.0) / (1.0 + joining) * decode_us;
    let wait = busy * one.latency_us / (2.0 * (1.0 - busy)) + until / 2.0 + company;
    let ttft_us = limits.request_overhead_us + one.latency_us + wait;
    Trial {
        clients: batch + rate * ttft_us,
        service: Service {
            ttft_us,
            queue_us: wait,
            burst_us: 0.0,
            tpot_us,
            decode_step_us: decode_us,
            decoding_per_rank: decoding,
            requests_per_s: rate * 1e6,
            prefill_load: stall_load,
            most_requests_per_s: None,
        },
    }
}

/// Steps between two balanced prefills when `arrivals` requests come a step; 0 without balancing.
fn balance_cycle(limits: &Limits, arrivals: f64) -> f64 {
    if limits.balance_steps <= 0.0 || limits.dp_ranks <= 1.0 {
        return 0.0;
    }
    let ranks = limits.dp_ranks.round().min(4096.0) as u32;
    let coupons: f64 = (1..=ranks).map(|k| limits.dp_ranks / f64::from(k)).sum();
    (coupons / arrivals.max(1e-9)).min(limits.balance_steps)
}

/// Solves the closed loop for one replica.
///
/// Evaluates [`StepTimes`] a handful of times; the decoding batch is found by the secant method to
/// half a percent of the clients. Also returns how many batches were tried.
pub fn closed_loop<T: StepTimes>(times: &T, load: &ClosedLoop, limits: &Limits) -> (Service, u64) {
    let admitted = load
        .clients
        .min(limits.running_per_rank * limits.dp_ranks)
        .max(1e-6);
    let top = admitted / limits.dp_ranks;
    let mut low = 0.0;
    let mut low_clients = 0.0;
    let mut high = top;
    let mut best = trial(times, load, limits, high, Entering::Loop);
    let mut high_clients = best.clients;
    let tolerance = 0.005 * admitted;
    let mut tried = 1;
    for _ in 0..12 {
        if (best.clients - admitted).abs() <= tolerance {
            break;
        }
        // False position keeps the root bracketed; the middle guards against a flat side.
        let share = (admitted - low_clients) / (high_clients - low_clients);
        let next = low + (high - low) * share.clamp(0.02, 0.98);
        best = trial(times, load, limits, next, Entering::Loop);
        tried += 1;
        if best.clients > admitted {
            high = next;
            high_clients = best.clients;
        } else {
            low = next;
            low_clients = best.clients;
        }
    }
    let mut service = best.service;
    let rate_per_us = service.requests_per_s / 1e6;
    // Clients beyond the admitted ones wait for a place.
    let outside = (load.clients - admitted).max(0.0);
    let place_us = if outside > 0.0 {
        outside / rate_per_us
    } else {
        0.0
    };
    let burst = burst(times, load, limits, admitted.max(1.0));
    let run = Whole {
        admitted,
        ranks: limits.dp_ranks,
        rate_per_us,
        stall_us: service.prefill_load / rate_per_us,
        first_prefill_us: burst.all_us,
        style: limits.style,
    };
    let (rate_per_us, only) = whole::rate(times, load, &run);
    if let Some(end) = only {
        // Nothing follows the first wave, whose requests wait for half of its prefills on average.
        service.tpot_us = (load.output_tokens > 1.0)
            .then(|| end.token_us + burst.all_us / (2.0 * load.output_tokens));
    }
    service.requests_per_s = rate_per_us * 1e6;
    service.burst_us = burst.wait_us;
    service.queue_us += place_us;
    service.ttft_us += place_us + service.burst_us;
    (service, tried)
}

/// How many of `burst` requests that started decoding together end in the same step: lengths spread
/// over so many tokens end over as many steps, equal ones all at once.
fn end_together(load: &ClosedLoop, burst: f64) -> f64 {
    let span = load.outputs.width * load.output_tokens / load.tokens_per_step;
    (burst / span.max(1.0)).max(1.0)
}

/// Requests of equal lengths that stay together where chunks ride along: those that come back in one
/// step are prefilled in one pass, and end together again, but a pass that carries a prompt is long
/// enough for the others to fall out of step. Over 334 runs of fixed lengths (vLLM 0.12 and TensorRT-LLM
/// 1.0 on H100; prompts of 128 to 4096 tokens, chunks for 2 to 64 of them) the time to first token less
/// the first wave is 2.2 to 2.6 passes at every concurrency from 8 to 128.
const KEPT_TOGETHER: f64 = 2.4;

/// What the first requests of all clients, sent together, do.
struct Burst {
    /// Mean extra wait of a request, over all waves, microseconds.
    wait_us: f64,
    /// The prefill of all of them, microseconds.
    all_us: f64,
}

/// The burst when `burst` clients start together.
fn burst<T: StepTimes>(times: &T, load: &ClosedLoop, limits: &Limits, burst: f64) -> Burst {
    let at_once = |requests: f64| {
        let together = Together {
            on_rank: (requests / limits.dp_ranks).max(1.0),
            ranks: requests.clamp(1.0, limits.dp_ranks),
        };
        prefill(times, load, limits, together, 0.0, 0.0)
    };
    let alone = at_once(1.0).latency_us;
    // Of P passes in a row, the requests of the p-th wait for p of them: (P + 1) / 2 on average.
    let extra = |group: &Prefill| {
        (group.latency_us * (group.passes + 1.0) / (2.0 * group.passes) - alone).max(0.0)
    };
    let all = at_once(burst);
    let first = extra(&all);
    let mut group = end_together(load, burst);
    if limits.style == PrefillStyle::Mixed {
        group = group.min(KEPT_TOGETHER * limits.dp_ranks);
    }
    let later = extra(&at_once(group));
    let waves = load.waves.max(1.0);
    Burst {
        wait_us: first / waves + later * (1.0 - 1.0 / waves),
        all_us: all.latency_us,
    }
}
