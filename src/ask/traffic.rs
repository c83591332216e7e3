//! Traffic as typed, made whole: what the flags say, then the workload, then defaults.

use super::{Assumptions, workload};
use crate::args::{Lengths as Typed, LimitArgs, TrafficArgs};
use crate::failure::Failure;
use crate::render::number;
use parplan_planner::question::{Balance, Settings, Spread, Traffic};
use parplan_profiles::{Lengths, Library, Load, ModelProfile, Slo, Speculation, Workload};

/// Prompt and output tokens of InferenceX's short shape.
const DEFAULT_LENGTH: f64 = 1024.0;
/// Clients when none are named.
const DEFAULT_CONCURRENCY: f64 = 64.0;
/// InferenceX sends ten requests a client.
const DEFAULT_WAVES: f64 = 10.0;
/// Shortest over longest length when nothing is said: InferenceX's own. Requests of exactly equal
/// length end together and start together, a burst that real traffic never shows.
const DEFAULT_RANGE_RATIO: f64 = 0.8;

/// Traffic, and the limits that it is to keep.
///
/// # Errors
/// A workload that is not known or has faults; lengths that the model cannot have; flags that do
/// not apply to what the workload has.
pub(super) fn resolve(
    args: &TrafficArgs,
    limits: &LimitArgs,
    library: &Library,
    model: &ModelProfile,
    settings: &Settings,
    assumptions: &mut Assumptions,
) -> Result<(Traffic, Slo), Failure> {
    let workload = match &args.workload {
        Some(name) => Some(workload::read(library, name)?),
        None => None,
    };
    let mut sources = Sources::default();
    let known = workload.as_ref();
    let input = lengths(
        args,
        args.isl.as_ref(),
        known.map(|w| &w.input),
        &PROMPT,
        &mut sources,
    )?;
    let output = lengths(
        args,
        args.osl.as_ref(),
        known.map(|w| &w.output),
        &OUTPUT,
        &mut sources,
    )?;
    let slo = slo(limits, known, &mut sources);
    let (concurrency, requests_per_s) = load(args, known, &mut sources);
    let traffic = Traffic {
        isl: input.mean,
        osl: output.mean,
        prompts: input.spread,
        outputs: output.spread,
        concurrency,
        requests_per_s,
        prefix_hit: prefix_hit(args, known, &mut sources),
        balance: balance(args, known, &mut sources),
        waves: match requests_per_s {
            Some(_) => args.waves.unwrap_or(DEFAULT_WAVES),
            None => sources.assumptions.default_to(
                args.waves,
                DEFAULT_WAVES,
                "--waves",
                "requests from each client, the first ones together (closed loop)",
            ),
        },
        speculation: speculation(args, known, model, &mut sources)?,
    };
    fits_the_model(&traffic, model, settings)?;
    if let (Some(limit), false) = (slo.tpot_ms, traffic.has_tpot()) {
        return Err(Failure::unusable(format!(
            "a limit on the time per output token ({} ms, --tpot or the workload's) needs requests \
             of 2 output tokens or more, and these have 1; leave it out, or give a longer --osl",
            number::plain(limit)
        )));
    }
    if let Some(workload) = known {
        sources.of_workload(workload, assumptions);
    }
    assumptions.extend(sources.assumptions);
    Ok((traffic, slo))
}

/// What was taken from where.
#[derive(Debug, Default)]
struct Sources {
    /// Fields that the workload gave, in words.
    taken: Vec<String>,
    /// Flags that replaced a field of the workload.
    replaced: Vec<String>,
    /// Defaults.
    assumptions: Assumptions,
}

impl Sources {
    /// A field of the workload was used.
    fn take(&mut self, words: impl Into<String>) {
        self.taken.push(words.into());
    }

    /// A flag was used, in place of what a workload says where there is one.
    fn replace(&mut self, flag: &str, workload: Option<&Workload>) {
        if workload.is_some() {
            self.replaced.push(flag.to_owned());
        }
    }

    fn of_workload(&self, workload: &Workload, assumptions: &mut Assumptions) {
        let name = &workload.name;
        if !self.taken.is_empty() {
            assumptions.note(format!(
                "from the workload {name}: {}",
                self.taken.join("; ")
            ));
        }
        if !self.replaced.is_empty() {
            let flags = self.replaced.join(", ");
            assumptions.note(format!("given in place of what {name} says: {flags}"));
        }
        if !workload.source.is_empty() {
            assumptions.note(format!("workload {name}: {}", workload.source));
        }
    }
}

/// One of the two lengths: its names.
struct Side {
    flag: &'static str,
    what: &'static str,
}

const PROMPT: Side = Side {
    flag: "--isl",
    what: "prompt tokens",
};
const OUTPUT: Side = Side {
    flag: "--osl",
    what: "output tokens",
};

/// A mean and what lies around it.
struct Drawn {
    mean: f64,
    spread: Spread,
}

impl Drawn {
    fn of(lengths: &Lengths) -> Option<Drawn> {
        Some(Drawn {
            mean: lengths.mean()?.max(1.0),
            spread: Spread::of(lengths)?,
        })
    }

    /// Drawn evenly from `ratio · longest` to `longest`: what the flags mean.
    fn even(longest: f64, ratio: f64) -> Drawn {
        Drawn {
            mean: (longest * (1.0 + ratio) / 2.0).max(1.0),
            spread: Spread::even(ratio),
        }
    }
}

fn lengths(
    args: &TrafficArgs,
    typed: Option<&Typed>,
    known: Option<&Lengths>,
    side: &Side,
    sources: &mut Sources,
) -> Result<Drawn, Failure> {
    let unread = || Failure::failed(format!("{}: a trace that was not read", side.flag));
    match (typed, known) {
        (Some(Typed::Drawn(lengths)), known) => {
            if known.is_some() {
                sources.replaced.push(side.flag.to_owned());
            }
            sources.assumptions.note(format!(
                "{}: {} ({})",
                side.what,
                workload::lengths(lengths),
                side.flag
            ));
            Drawn::of(lengths).ok_or_else(unread)
        }
        (Some(Typed::Longest(longest)), known) => {
            if known.is_some() {
                sources.replaced.push(side.flag.to_owned());
            }
            Ok(Drawn::even(*longest, ratio(args, sources)))
        }
        (None, Some(lengths)) => {
            let Some(ratio) = args.range_ratio else {
                sources.take(format!("{} {}", side.what, workload::lengths(lengths)));
                return Drawn::of(lengths).ok_or_else(unread);
            };
            let longest = match lengths {
                Lengths::Fixed { tokens } => *tokens,
                Lengths::Uniform { max, .. } => *max,
                other => {
                    return Err(Failure::unusable(format!(
                        "--range-ratio draws lengths evenly below the longest, and the workload's \
                         {} are {}; leave it out, or give {} too",
                        side.what,
                        workload::lengths(other),
                        side.flag
                    )));
                }
            };
            sources.take(format!(
                "{} up to {}",
                side.what,
                number::whole(f64::from(longest))
            ));
            if !sources.replaced.iter().any(|flag| flag == "--range-ratio") {
                sources.replaced.push("--range-ratio".to_owned());
            }
            Ok(Drawn::even(f64::from(longest), ratio))
        }
        (None, None) => {
            let longest =
                sources
                    .assumptions
                    .default_to(None, DEFAULT_LENGTH, side.flag, side.what);
            Ok(Drawn::even(longest, ratio(args, sources)))
        }
    }
}

/// Shortest over longest length of what was given by its longest.
fn ratio(args: &TrafficArgs, sources: &mut Sources) -> f64 {
    args.range_ratio.unwrap_or_else(|| {
        sources.assumptions.note_once(
            "lengths are drawn evenly from 80 to 100 % of those given, as public benchmarks draw \
             them (--range-ratio 1 for equal lengths)",
        );
        DEFAULT_RANGE_RATIO
    })
}

/// Clients over the whole deployment, and arrivals a second where there are no clients.
fn load(
    args: &TrafficArgs,
    workload: Option<&Workload>,
    sources: &mut Sources,
) -> (f64, Option<f64>) {
    const WHAT: &str = "clients over the whole deployment";
    match (args.concurrency, workload.map(|w| &w.load)) {
        (Some(clients), _) => {
            sources.replace("--concurrency", workload);
            (clients, None)
        }
        (None, Some(load @ Load::Concurrency { requests })) => {
            sources.take(workload::load(load));
            (f64::from(*requests), None)
        }
        (None, Some(load @ Load::Rate { requests_per_s })) => {
            sources.take(workload::load(load));
            sources.assumptions.note(
                "an open loop: requests come one by one at random (Poisson), whether others have \
                 ended or not, and the limit of running requests is their mean and three standard \
                 deviations; what keeps up is ranked by the time of a request (--concurrency plans a \
                 closed loop of clients)",
            );
            (DEFAULT_CONCURRENCY, Some(*requests_per_s))
        }
        (None, None) => {
            let clients =
                sources
                    .assumptions
                    .default_to(None, DEFAULT_CONCURRENCY, "--concurrency", WHAT);
            (clients, None)
        }
    }
}

fn prefix_hit(args: &TrafficArgs, workload: Option<&Workload>, sources: &mut Sources) -> f64 {
    match (args.prefix_hit, workload) {
        (Some(share), _) => {
            sources.replace("--prefix-hit", workload);
            share
        }
        (None, Some(workload)) => {
            let share = workload.prefix_hit;
            sources.take(format!("{} % prefix hits", number::percent(share)));
            share
        }
        (None, None) => {
            sources
                .assumptions
                .note("no prompt token is found in the prefix cache (--prefix-hit)");
            0.0
        }
    }
}

fn balance(args: &TrafficArgs, workload: Option<&Workload>, sources: &mut Sources) -> Balance {
    use crate::args::Imbalance as Given;
    match (&args.imbalance, workload) {
        (Some(given), _) => {
            sources.replace("--imbalance", workload);
            match given {
                Given::MeanOverMax(ratio) => Balance::MeanOverMax(*ratio),
                Given::Ranks(list) => Balance::Ranks(list.clone()),
                Given::Seed(seed) => Balance::Random(*seed),
            }
        }
        (None, Some(workload)) => {
            let balance = workload::balance(&workload.imbalance);
            sources.take(match &balance {
                Balance::Even => "attention DP ranks with equal batches".to_owned(),
                Balance::MeanOverMax(ratio) => {
                    format!("attention DP ranks at mean/max {}", number::plain(*ratio))
                }
                Balance::Ranks(list) => format!("batches of {} attention DP ranks", list.len()),
                Balance::Random(seed) => {
                    format!("requests dealt to attention DP ranks with seed {seed}")
                }
            });
            balance
        }
        (None, None) => {
            sources
                .assumptions
                .note("attention DP ranks have equal batches (--imbalance)");
            Balance::Even
        }
    }
}

/// Speculation by the model's own MTP layers, the only drafts whose memory and time are known.
fn speculation(
    args: &TrafficArgs,
    workload: Option<&Workload>,
    model: &ModelProfile,
    sources: &mut Sources,
) -> Result<Option<Speculation>, Failure> {
    let typed = args.speculative.map(|s| Speculation {
        steps: s.steps,
        acceptance: s.acceptance,
    });
    let given = workload.and_then(|w| w.speculation);
    let (chosen, said) = match (typed, given) {
        (Some(typed), _) => {
            sources.replace("--speculative", workload);
            (typed, "--speculative")
        }
        (None, Some(given)) => {
            sources.take(format!(
                "{} drafted tokens accepted with {}",
                given.steps,
                number::plain(given.acceptance)
            ));
            (given, "the workload's speculation")
        }
        (None, None) => {
            sources
                .assumptions
                .note("no speculative decoding (--speculative)");
            return Ok(None);
        }
    };
    if model.mtp_layer.is_none() {
        return Err(Failure::unusable(format!(
            "{said} {},{}: {} ships no MTP layer, and separate draft models are not planned; \
             leave it out",
            chosen.steps, chosen.acceptance, model.name
        )));
    }
    Ok(Some(chosen))
}

fn slo(limits: &LimitArgs, workload: Option<&Workload>, sources: &mut Sources) -> Slo {
    let known = workload.map(|w| w.slo).unwrap_or_default();
    for (flag, typed, known) in [
        ("--ttft", limits.ttft, known.ttft_ms),
        ("--tpot", limits.tpot, known.tpot_ms),
    ] {
        if typed.is_some() && known.is_some() {
            sources.replaced.push(flag.to_owned());
        }
    }
    let kept = Slo {
        ttft_ms: known.ttft_ms.filter(|_| limits.ttft.is_none()),
        tpot_ms: known.tpot_ms.filter(|_| limits.tpot.is_none()),
    };
    if let Some(words) = workload::limits(&kept) {
        sources.take(words);
    }
    Slo {
        ttft_ms: limits.ttft.or(known.ttft_ms),
        tpot_ms: limits.tpot.or(known.tpot_ms),
    }
}

fn fits_the_model(
    traffic: &Traffic,
    model: &ModelProfile,
    settings: &Settings,
) -> Result<(), Failure> {
    let (limit, whose) = match settings.context_length {
        Some(length) => (length, "--context-length allows".to_owned()),
        None => (
            model.max_position,
            format!("{} was configured for", model.name),
        ),
    };
    let tokens = traffic.longest();
    // Means and longest lengths are kept as a ratio; a rounding error is no token.
    if tokens.round() <= f64::from(limit) {
        return Ok(());
    }
    Err(Failure::unusable(format!(
        "the longest prompt and the longest output (--isl, --osl, --workload) make {tokens:.0} \
         tokens, more than the {limit} that {whose}; shorten them, or give --context-length \
         {tokens:.0} where the model is good for it"
    )))
}

#[cfg(test)]
mod tests {
    use super::Drawn;

    #[test]
    fn the_mean_of_inferencex_lengths() {
        assert_eq!(Drawn::even(1024.0, 1.0).mean, 1024.0);
        assert_eq!(Drawn::even(1000.0, 0.8).mean, 900.0);
        assert_eq!(Drawn::even(1.0, 0.1).mean, 1.0);
    }
}
