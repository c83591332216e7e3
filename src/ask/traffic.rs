//! Traffic as typed, made whole.

use super::Assumptions;
use crate::args::{Imbalance, TrafficArgs};
use crate::failure::Failure;
use parplan_planner::question::{Balance, Settings, Speculation, Traffic};
use parplan_profiles::ModelProfile;

/// Prompt and output tokens of InferenceX's short shape.
const DEFAULT_LENGTH: f64 = 1024.0;
/// Clients when none are named.
const DEFAULT_CONCURRENCY: f64 = 64.0;
/// InferenceX sends ten requests a client.
const DEFAULT_WAVES: f64 = 10.0;

pub(super) fn resolve(
    args: &TrafficArgs,
    model: &ModelProfile,
    settings: &Settings,
    assumptions: &mut Assumptions,
) -> Result<Traffic, Failure> {
    let longest_isl = assumptions.default_to(args.isl, DEFAULT_LENGTH, "--isl", "prompt tokens");
    let longest_osl = assumptions.default_to(args.osl, DEFAULT_LENGTH, "--osl", "output tokens");
    fits_the_model(longest_isl + longest_osl, model, settings)?;
    let concurrency = assumptions.default_to(
        args.concurrency,
        DEFAULT_CONCURRENCY,
        "--concurrency",
        "clients over the whole deployment",
    );
    let waves = assumptions.default_to(
        args.waves,
        DEFAULT_WAVES,
        "--waves",
        "requests from each client, the first ones together (closed loop)",
    );
    let prefix_hit = match args.prefix_hit {
        Some(share) => share,
        None => {
            assumptions.note("no prompt token is found in the prefix cache (--prefix-hit)");
            0.0
        }
    };
    let ratio = match args.range_ratio {
        Some(ratio) => ratio,
        None => {
            assumptions.note(
                "lengths are drawn evenly from 80 to 100 % of those given, as public \
                 benchmarks draw them (--range-ratio 1 for equal lengths)",
            );
            DEFAULT_RANGE_RATIO
        }
    };
    Ok(Traffic {
        isl: uniform_mean(longest_isl, ratio),
        osl: uniform_mean(longest_osl, ratio),
        length_ratio: ratio,
        concurrency,
        prefix_hit,
        balance: balance(args.imbalance.as_ref(), assumptions),
        waves,
        speculation: speculation(args, model, assumptions)?,
    })
}

/// Shortest over longest length when nothing is said: InferenceX's own. Requests of exactly equal
/// length end together and start together, a burst that real traffic never shows.
const DEFAULT_RANGE_RATIO: f64 = 0.8;

/// Mean of lengths drawn uniformly from `ratio · longest` to `longest`: what the flag means.
fn uniform_mean(longest: f64, ratio: f64) -> f64 {
    (longest * (1.0 + ratio) / 2.0).max(1.0)
}

fn fits_the_model(tokens: f64, model: &ModelProfile, settings: &Settings) -> Result<(), Failure> {
    let (limit, whose) = match settings.context_length {
        Some(length) => (length, "--context-length allows".to_owned()),
        None => (
            model.max_position,
            format!("{} was configured for", model.name),
        ),
    };
    if tokens <= f64::from(limit) {
        return Ok(());
    }
    Err(Failure::unusable(format!(
        "--isl and --osl make {tokens} tokens, more than the {limit} that {whose}; shorten them, \
         or give --context-length {tokens:.0} where the engine is set up for it"
    )))
}

fn balance(typed: Option<&Imbalance>, assumptions: &mut Assumptions) -> Balance {
    match typed {
        None => {
            assumptions.note("attention DP ranks have equal batches (--imbalance)");
            Balance::Even
        }
        Some(Imbalance::MeanOverMax(ratio)) => Balance::MeanOverMax(*ratio),
        Some(Imbalance::Ranks(list)) => Balance::Ranks(list.clone()),
        Some(Imbalance::Seed(seed)) => Balance::Random(*seed),
    }
}

/// Speculation by the model's own MTP layers, the only drafts whose memory and time are known.
fn speculation(
    args: &TrafficArgs,
    model: &ModelProfile,
    assumptions: &mut Assumptions,
) -> Result<Option<Speculation>, Failure> {
    let Some(typed) = args.speculative else {
        assumptions.note("no speculative decoding (--speculative)");
        return Ok(None);
    };
    if model.mtp_layer.is_none() {
        return Err(Failure::unusable(format!(
            "--speculative {},{}: {} ships no MTP layer, and separate draft models are not \
             planned; leave it out",
            typed.steps, typed.acceptance, model.name
        )));
    }
    Ok(Some(Speculation {
        steps: typed.steps,
        acceptance: typed.acceptance,
    }))
}

#[cfg(test)]
mod tests {
    use super::uniform_mean;

    #[test]
    fn the_mean_of_inferencex_lengths() {
        assert_eq!(uniform_mean(1024.0, 1.0), 1024.0);
        assert_eq!(uniform_mean(1000.0, 0.8), 900.0);
        assert_eq!(uniform_mean(1.0, 0.1), 1.0);
    }
}
