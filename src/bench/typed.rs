//! The traffic of a run: flags over the plan's, over a workload's, over defaults.

use super::traffic::{Load, Traffic};
use crate::args::{BenchArgs, Lengths as Typed};
use crate::ask;
use crate::failure::Failure;
use crate::saved::SavedPlan;
use parplan_planner::question::Spread;
use parplan_profiles::{Lengths, Load as Planned, Trace, Workload};
use std::path::Path;

/// Longest prompt when nothing is said.
const PROMPT: f64 = 1024.0;
/// Longest output when nothing is said.
const OUTPUT: f64 = 128.0;
/// Clients when nothing is said.
const CLIENTS: f64 = 8.0;
/// Requests a client when nothing is said.
const WAVES: f64 = 10.0;
/// Shortest over longest when nothing is said, as public benchmarks draw.
const RATIO: f64 = 0.8;
/// Requests of a run, at most.
const MOST: f64 = 10_000_000.0;

/// What is sent.
///
/// # Errors
/// A workload that is not known; flags that do not go together.
pub(super) fn traffic(args: &BenchArgs, plan: Option<&SavedPlan>) -> Result<Traffic, Failure> {
    let typed = &args.traffic;
    let planned = plan.map(|plan| &plan.traffic);
    if let Some(name) = &typed.workload
        && let Some(trace) = trace(name)?
    {
        return replay(args, &trace);
    }
    let workload: Option<Workload> = match &typed.workload {
        Some(name) => Some(ask::workload::read(
            &ask::library(args.manner.profiles.as_deref())?,
            name,
        )?),
        None => None,
    };
    let known = workload.as_ref();
    let input = lengths(
        typed.isl.as_ref(),
        typed.range_ratio,
        known.map(|w| &w.input),
        planned.map(|t| (t.isl, t.prompts)),
        PROMPT,
    );
    let output = lengths(
        typed.osl.as_ref(),
        typed.range_ratio,
        known.map(|w| &w.output),
        planned.map(|t| (t.osl, t.outputs)),
        OUTPUT,
    );
    let clients = typed
        .concurrency
        .map(f64::from)
        .or(match known.map(|w| w.load) {
            Some(Planned::Concurrency { requests }) => Some(f64::from(requests)),
            _ => None,
        })
        .or(planned.map(|t| t.concurrency))
        .unwrap_or(CLIENTS);
    let clients = clients.round().clamp(1.0, 1e6);
    let rate = typed.rate.or(match known.map(|w| w.load) {
        Some(Planned::Rate { requests_per_s }) if typed.concurrency.is_none() => {
            Some(requests_per_s)
        }
        _ => None,
    });
    let waves = planned.map_or(WAVES, |t| t.waves);
    let requests = typed
        .requests
        .map_or(clients * waves, f64::from)
        .round()
        .clamp(1.0, MOST) as usize;
    let load = |random: &mut fastrand::Rng| match rate {
        Some(rate) => Load::Open {
            at_s: Traffic::poisson(rate, requests, random),
        },
        None => Load::Closed {
            clients: clients as usize,
        },
    };
    let drawn = Traffic::draw(&input, &output, requests, load, typed.seed)?;
    let shared = typed
        .prefix_hit
        .or(known.map(|w| w.prefix_hit))
        .or(planned.map(|t| t.prefix_hit));
    Ok(Traffic {
        shared: shared.unwrap_or(0.0),
        ..drawn
    })
}

/// The trace of a name that is a trace's file.
fn trace(name: &str) -> Result<Option<Trace>, Failure> {
    let lower = name.to_lowercase();
    if !lower.ends_with(".csv") && !lower.ends_with(".jsonl") {
        return Ok(None);
    }
    Ok(Some(Trace::read(Path::new(name))?))
}

fn replay(args: &BenchArgs, trace: &Trace) -> Result<Traffic, Failure> {
    let typed = &args.traffic;
    for (flag, given) in [
        ("--isl", typed.isl.is_some()),
        ("--osl", typed.osl.is_some()),
        ("--range-ratio", typed.range_ratio.is_some()),
        ("--concurrency", typed.concurrency.is_some()),
        ("--rate", typed.rate.is_some()),
    ] {
        if given {
            return Err(Failure::unusable(format!(
                "{flag} does not go with a trace, which has its own; --speed and --requests do"
            )));
        }
    }
    let requests = typed.requests.map_or(usize::MAX, |count| count as usize);
    let replayed = Traffic::replay(trace, requests, typed.speed, typed.seed);
    Ok(Traffic {
        shared: typed.prefix_hit.unwrap_or(0.0),
        ..replayed
    })
}

fn lengths(
    typed: Option<&Typed>,
    ratio: Option<f64>,
    workload: Option<&Lengths>,
    planned: Option<(f64, Spread)>,
    default: f64,
) -> Lengths {
    let even = |longest: f64| Lengths::Uniform {
        max: longest.round().clamp(1.0, f64::from(u32::MAX)) as u32,
        range_ratio: ratio.unwrap_or(RATIO),
    };
    match (typed, workload, planned) {
        (Some(Typed::Drawn(lengths)), ..) => lengths.clone(),
        (Some(Typed::Longest(longest)), ..) => even(*longest),
        (None, Some(lengths), _) => lengths.clone(),
        // A plan keeps mean and width: the even distribution that has both.
        (None, None, Some((mean, spread))) => {
            let longest = mean * (1.0 + spread.width / 2.0);
            let shortest = mean * (1.0 - spread.width / 2.0);
            Lengths::Uniform {
                max: longest.round().clamp(1.0, f64::from(u32::MAX)) as u32,
                range_ratio: (shortest / longest).clamp(0.0, 1.0),
            }
        }
        (None, None, None) => even(default),
    }
}
