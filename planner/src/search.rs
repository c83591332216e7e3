//! Which configuration to run: every legal one is priced, and the best are explained.
//!
//! The search is exhaustive over the space that is asked for, in parallel, with one kind of pruning:
//! a configuration whose roofline alone loses against the places already taken is not priced
//! further. [`Pruning::Off`] prices everything; the tests hold the two to the same answer.

mod space;

use crate::deployment::{Deployment, Setup, sm};
use crate::estimate;
use crate::layout::Layout;
use crate::legality::{self, Ground, Machines, ModelShape, Options};
use crate::parallel;
use crate::plan::{Choice, Plan};
use crate::question::{Goal, Objective, Space, Traffic};
use crate::serve::Service;
use serde::Serialize;

/// Whether configurations may be skipped by their bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pruning {
    /// Skip what cannot reach a place.
    On,
    /// Price everything.
    Off,
}

/// How to search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Places to fill.
    pub top: usize,
    /// Threads to use.
    pub threads: usize,
    /// Pruning.
    pub pruning: Pruning,
}

/// A layout that is not in the ranking, and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rejected {
    /// The layout.
    pub layout: Layout,
    /// What was wrong and what would be right.
    pub reason: String,
}

/// By how much the best configuration misses its limits; nothing where it meets them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Miss {
    /// TTFT above its limit, ms.
    pub ttft_ms: f64,
    /// TPOT above its limit, ms.
    pub tpot_ms: f64,
}

/// The answer to a question.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Recommendation {
    /// The best configurations, best first. Where nothing meets the limits, the nearest misses.
    pub ranked: Vec<Plan>,
    /// Layouts that cannot run, and why.
    pub rejected: Vec<Rejected>,
    /// Whether the first of `ranked` meets the limits.
    pub met_goal: bool,
    /// By how much it misses them.
    pub miss: Option<Miss>,
    /// Configurations that were priced.
    pub configurations: u64,
    /// Points that were priced: a configuration at one decoding batch.
    pub points: u64,
}

/// A priced configuration.
struct Scored {
    choice: Choice,
    /// Larger is better; those that meet the limits come first.
    meets: bool,
    score: f64,
    throughput: f64,
    latency: f64,
    points: u64,
}

/// What one layout came to.
enum Outcome {
    Scored(Vec<Scored>),
    Rejected(Rejected),
}

/// Ranks every configuration of `space`.
pub fn recommend(
    setup: &Setup<'_>,
    traffic: &Traffic,
    space: &Space,
    goal: &Goal,
    effort: &Effort,
) -> Recommendation {
    // A search that is never told to stop has an answer.
    recommend_while(setup, traffic, space, goal, effort, &|| true).unwrap_or_default()
}

/// Ranks every configuration of `space` as long as `keep_going` says so: it is asked before each
/// layout, from several threads. None where it said no: half a ranking is none.
pub fn recommend_while(
    setup: &Setup<'_>,
    traffic: &Traffic,
    space: &Space,
    goal: &Goal,
    effort: &Effort,
    keep_going: &(dyn Fn() -> bool + Sync),
) -> Option<Recommendation> {
    let search = Search {
        setup,
        traffic,
        space,
        goal,
        shape: ModelShape::of(setup.model),
    };
    let layouts = space::layouts(setup, space);
    let top = effort.top.max(1);
    let mut best: Vec<Scored> = Vec::new();
    let mut rejected = Vec::new();
    let (mut configurations, mut points) = (0, 0);
    // Batches of fixed size keep the answer the same whatever the threads do: what a batch prunes
    // by is what the batches before it found.
    for batch in layouts.chunks(32) {
        let floor = match (effort.pruning, goal.objective) {
            (Pruning::On, Objective::Throughput | Objective::Latency) => place_score(&best, top),
            _ => None,
        };
        let outcomes = parallel::map(batch, effort.threads, |layout| {
            keep_going().then(|| search.outcome(*layout, floor))
        })?;
        for outcome in outcomes {
            match outcome {
                Outcome::Rejected(reason) => rejected.push(reason),
                Outcome::Scored(list) => {
                    configurations += list.len() as u64;
                    points += list.iter().map(|s| s.points).sum::<u64>();
                    best.extend(list.into_iter().filter(|s| s.score.is_finite()));
                }
            }
        }
        if goal.objective == Objective::Pareto {
            best = front(best);
        } else {
            best.sort_by(order);
            keep_layouts(&mut best, top);
        }
    }
    best.sort_by(order);
    if goal.objective != Objective::Pareto {
        best.truncate(top);
    }
    let met_goal = best.first().is_some_and(|s| s.meets);
    let ranked: Vec<Plan> = best
        .iter()
        .map(|s| keep_going().then(|| estimate::plan(setup, traffic, &space.settings, s.choice)))
        .collect::<Option<_>>()?;
    let miss = ranked.first().filter(|_| !met_goal).map(|plan| Miss {
        ttft_ms: over(plan.predicted.ttft_ms.value, goal.ttft_ms),
        tpot_ms: plan
            .predicted
            .tpot_ms
            .map_or(0.0, |tpot| over(tpot.value, goal.tpot_ms)),
    });
    Some(Recommendation {
        ranked,
        rejected,
        met_goal,
        miss,
        configurations,
        points,
    })
}

/// How far `value` lies above `limit`; 0 without one.
fn over(value: f64, limit: Option<f64>) -> f64 {
    limit.map_or(0.0, |limit| (value - limit).max(0.0))
}

fn order(a: &Scored, b: &Scored) -> std::cmp::Ordering {
    b.meets
        .cmp(&a.meets)
        .then(b.score.total_cmp(&a.score))
        .then(a.choice.layout.cmp(&b.choice.layout))
}

/// The score that a newcomer has to beat; none while places are free.
fn place_score(best: &[Scored], top: usize) -> Option<f64> {
    best.get(top - 1).filter(|s| s.meets).map(|s| s.score)
}

/// Keeps the `top` best, and of each layout only its best choice, so that variants of one layout do
/// not fill every place.
fn keep_layouts(best: &mut Vec<Scored>, top: usize) {
    let mut seen: Vec<Layout> = Vec::new();
    best.retain(|s| {
        let new = !seen.contains(&s.choice.layout);
        if new {
            seen.push(s.choice.layout);
        }
        new
    });
    best.truncate(top);
}

/// The configurations that no other beats in both throughput and latency.
fn front(mut all: Vec<Scored>) -> Vec<Scored> {
    all.sort_by(|a, b| {
        b.throughput
            .total_cmp(&a.throughput)
            .then(a.latency.total_cmp(&b.latency))
            .then(a.choice.layout.cmp(&b.choice.layout))
    });
    let mut fastest = f64::INFINITY;
    all.retain(|s| {
        let keep = s.latency < fastest;
        if keep {
            fastest = s.latency;
        }
        keep
    });
    all
}

/// What legality is asked with for one choice of a space.
fn ground<'a>(
    setup: &Setup<'a>,
    traffic: &Traffic,
    space: &Space,
    shape: &'a ModelShape,
    choice: &Choice,
) -> Ground<'a> {
    Ground {
        rules: setup.rules,
        model: shape,
        machines: Machines {
            gpus: space.gpus,
            gpus_per_node: space.gpus.div_ceil(space.nodes.max(1)),
            link_domain: setup.gpu.link_domain_gpus,
            sm: sm(setup.gpu),
        },
        options: Options::of(setup.rules, traffic, &space.settings, choice),
    }
}

/// The first reason for which a choice of the space cannot run; none where it can.
pub fn refusal(
    setup: &Setup<'_>,
    traffic: &Traffic,
    space: &Space,
    choice: Choice,
) -> Option<String> {
    let shape = ModelShape::of(setup.model);
    let ground = ground(setup, traffic, space, &shape, &choice);
    if let Err(refusals) = legality::check(&choice.layout, &ground) {
        return refusals.into_iter().next().map(|refusal| refusal.reason);
    }
    Deployment::new(setup, traffic, &space.settings, choice).does_not_fit(traffic)
}

/// What every layout of a search is priced for.
struct Search<'a> {
    setup: &'a Setup<'a>,
    traffic: &'a Traffic,
    space: &'a Space,
    goal: &'a Goal,
    shape: ModelShape,
}

impl Search<'_> {
    /// The choices of one layout, priced but for those whose bound is below `floor`.
    fn outcome(&self, layout: Layout, floor: Option<f64>) -> Outcome {
        let mut scored = Vec::new();
        // What does not fit says more about a layout than an optional switch that it cannot have.
        let (mut misfit, mut reason) = (None, None);
        for choice in space::choices(self.setup, self.traffic, self.space, layout) {
            let ground = ground(self.setup, self.traffic, self.space, &self.shape, &choice);
            if !legality::is_legal(&layout, &ground) {
                if reason.is_none() {
                    reason = legality::check(&layout, &ground)
                        .err()
                        .and_then(|refusals| refusals.into_iter().next())
                        .map(|refusal| refusal.reason);
                }
                continue;
            }
            let deployment =
                Deployment::new(self.setup, self.traffic, &self.space.settings, choice);
            if let Some(why) = deployment.does_not_fit(self.traffic) {
                misfit.get_or_insert(why);
                continue;
            }
            if let Some(floor) = floor
                && bound(&deployment, self.traffic, self.goal) < floor
            {
                continue;
            }
            let (service, points) = deployment.serve_counted(self.traffic);
            scored.push(score(
                &deployment,
                self.traffic,
                self.goal,
                &service,
                points,
            ));
        }
        match (scored.is_empty(), misfit.or(reason)) {
            (true, Some(reason)) => Outcome::Rejected(Rejected { layout, reason }),
            _ => Outcome::Scored(scored),
        }
    }
}

fn score(
    deployment: &Deployment<'_>,
    traffic: &Traffic,
    goal: &Goal,
    service: &Service,
    points: u64,
) -> Scored {
    let layout = deployment.choice.layout;
    let gpus = f64::from(layout.gpus());
    let throughput = service.requests_per_s * f64::from(layout.replicas) * traffic.osl / gpus;
    let tpot = service.tpot_us.map(|us| us / 1e3);
    let ttft = service.ttft_us / 1e3;
    // A request of one output token has no time between tokens, and keeps every limit on it.
    let misses = [(ttft, goal.ttft_ms), (tpot.unwrap_or(0.0), goal.tpot_ms)];
    let meets = misses
        .iter()
        .all(|&(value, limit)| limit.is_none_or(|limit| value <= limit));
    let score = if meets {
        match goal.objective {
            Objective::Latency => -traffic.request_time(ttft, tpot),
            Objective::Throughput | Objective::Pareto => throughput,
        }
    } else {
        // The nearest miss: the worst ratio to a limit counts.
        -misses
            .iter()
            .filter_map(|&(value, limit)| limit.map(|limit| value / limit))
            .fold(0.0, f64::max)
    };
    Scored {
        choice: deployment.choice,
        meets,
        score,
        throughput,
        latency: tpot.unwrap_or(ttft),
        points,
    }
}

/// The best score that the roofline allows: a decode step reads at least the weights that every
/// token meets, and the cache of its requests.
fn bound(deployment: &Deployment<'_>, traffic: &Traffic, goal: &Goal) -> f64 {
    let setup = deployment.setup;
    let layout = deployment.choice.layout;
    let limits = deployment.limits(traffic);
    let load = deployment.load(traffic);
    let clients = load.clients / limits.dp_ranks;
    let most = clients.min(limits.running_per_rank);
    let code = setup.overheads.model_code(&setup.model.architecture);
    let scale = (setup.overheads.decode_scale * code.decode).min(1.0);
    let weights = deployment.shard.always_read_bytes();
    // Stages take turns on a token: one stage's bytes, once for every stage.
    let step_s = |requests: f64| {
        let cache = deployment.footprint.request_bytes(traffic.isl) * requests;
        scale * (weights + cache) / setup.gpu.memory_bytes_per_s
    };
    match goal.objective {
        Objective::Latency => {
            let tpot = step_s(0.0) * 1e3 / load.tokens_per_step;
            -traffic.request_time(0.0, Some(tpot))
        }
        Objective::Throughput | Objective::Pareto => {
            // Requests over step time grows with the requests, so the most is the bound.
            let tokens_per_s = most * limits.dp_ranks * load.tokens_per_step / step_s(most);
            tokens_per_s * f64::from(layout.replicas) / f64::from(layout.gpus())
        }
    }
}
