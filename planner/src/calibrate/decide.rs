//! What would settle a ranking: which candidates cannot be told apart, the operations in whose prices
//! they differ, and the experiments that would make those prices sure.
//!
//! A candidate's time is a sum over classes of operations. Two candidates of one engine share the error
//! of a class as far as they share its time, so the spread of their ratio is
//!
//! `Var = Σ σ² · ((1 − own) · (s_a − s_b)² + own · (s_a² + s_b²))`
//!
//! over classes, with `s` a class's share of a candidate's time, `σ` the spread of its figures, and
//! `own` the part of a class's error that belongs to the shape rather than to the class.

use super::apply::{IN_COMPANY, OTHER_RANKS};
use super::experiments::Machine;
use super::operation;
use crate::cost::OpClass;
use crate::deployment::{Deployment, Setup};
use crate::layout::Layout;
use crate::plan::Plan;
use crate::question::{Objective, Settings, Traffic};
use crate::step::priced::{OWN, UNKNOWN};
use crate::step::record::{Record, Recorded};
use crate::step::tally::{Op, Tally};
use parplan_profiles::calibration::Experiment;
use serde::Serialize;
use statrs::distribution::{ContinuousCDF, Normal};
use std::collections::BTreeMap;

/// What a class may be off by, beside the spread of its fit, on a machine where it was not measured: an
/// assumption, wider than what separates the machines of two tables (0.08), because a user who calibrates
/// may have links, clocks or neighbours that those had not.
const ELSEWHERE: f64 = 0.15;

/// Two candidates whose ratio is surely within this are the same for every purpose.
const ALIKE: f64 = 0.02;

/// Experiments that would remove less than this share of a doubt are not worth running.
const WORTH: f64 = 0.02;

/// A question about a ranking: its setup, and how sure is sure.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// What is fixed.
    pub setup: &'a Setup<'a>,
    /// Traffic.
    pub traffic: &'a Traffic,
    /// Engine settings.
    pub settings: &'a Settings,
    /// What counts.
    pub objective: Objective,
    /// Probability from which on the winner counts as settled.
    pub confidence: f64,
}

/// A candidate beside the winner.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Doubt {
    /// Its place in the ranking, from 2.
    pub place: usize,
    /// Its layout.
    #[serde(skip)]
    pub layout: Layout,
    /// How much better the winner is predicted to be: a ratio.
    pub by: f64,
    /// Probability that the winner is the better one, given the spread of the prices.
    pub confidence: f64,
    /// The winner is settled against it, at the confidence asked for.
    pub settled: bool,
    /// They are the same within 2 %, surely.
    pub alike: bool,
    /// Classes that were not measured on this machine and whose being off by a factor of two would
    /// turn the two around, however unlikely the tables call it.
    #[serde(skip)]
    pub exposed: Vec<(OpClass, u32)>,
    /// Classes in whose prices the two differ, those that matter most first, with their part of the
    /// variance.
    pub deciding: Vec<Deciding>,
}

/// A class in whose price two candidates differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Deciding {
    /// Which; none for host and launch time.
    #[serde(skip)]
    pub of: Option<OpClass>,
    /// Which, in words.
    pub class: String,
    /// Ranks that share an operation of it.
    pub ranks: u32,
    /// Its share of the winner's time.
    pub share: f64,
    /// Its share of the other's time.
    pub other_share: f64,
    /// Spread of its figures.
    pub sigma: f64,
    /// Part of the variance of the ratio.
    pub variance: f64,
}

/// An experiment that would help.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    /// The experiment.
    pub experiment: Experiment,
    /// Share of the doubt that it is expected to remove.
    pub value: f64,
}

type Key = (OpClass, u32);

/// A candidate as a sum of classes.
struct Portrait {
    score: f64,
    shares: BTreeMap<Key, f64>,
    /// Share of time outside kernels.
    host: f64,
    operations: Vec<(f64, Recorded)>,
}

impl Question<'_> {
    fn portrait(&self, plan: &Plan) -> Portrait {
        let record = Record::default();
        let d = Deployment::new(self.setup, self.traffic, self.settings, plan.choice);
        let service = d.serve(self.traffic);
        let mut steps = d.steps(self.traffic, false);
        steps.fixed.record = Some(&record);
        let decode = steps.decode(service.decoding_per_rank);
        let decode_ran = record.take();
        let chunk = d.chunk_tokens.min(d.load(self.traffic).prefill_tokens);
        let prefill = steps.prefill(chunk, 0.0, 1.0, 0.0);
        let prefill_ran = record.take();
        let p = &plan.predicted;
        let tokens = (self.traffic.osl - 1.0).max(0.0);
        let request_ms = p.ttft_ms.value + p.tpot_ms.map_or(0.0, |tpot| tokens * tpot.value);
        let (score, in_prefill) = match self.objective {
            Objective::Latency => (1.0 / request_ms, p.ttft_ms.value / request_ms),
            Objective::Throughput | Objective::Pareto => {
                (p.output_tokens_per_s_per_gpu.value, p.prefill_load)
            }
        };
        let mut out = Portrait {
            score,
            shares: BTreeMap::new(),
            host: 0.0,
            operations: Vec::new(),
        };
        out.add(&decode, decode_ran, 1.0 - in_prefill.clamp(0.0, 1.0));
        out.add(&prefill, prefill_ran, in_prefill.clamp(0.0, 1.0));
        out
    }

    fn sigma(&self, key: Key) -> f64 {
        let costs = &self.setup.costs;
        let sigma = costs.spread(key.0, f64::from(key.1)).unwrap_or(UNKNOWN);
        match costs.note(key.0) {
            Some(note) if note.here => sigma,
            _ => sigma.hypot(ELSEWHERE),
        }
    }

    /// The candidates behind the winner, and how sure the ranking is of each.
    pub fn doubts(&self, ranked: &[Plan]) -> Vec<Doubt> {
        let portraits: Vec<Portrait> = ranked.iter().map(|p| self.portrait(p)).collect();
        let Some((winner, others)) = portraits.split_first() else {
            return Vec::new();
        };
        others
            .iter()
            .zip(ranked.iter().skip(1))
            .enumerate()
            .map(|(at, (other, plan))| self.doubt(winner, other, plan.choice.layout, at + 2))
            .collect()
    }

    fn doubt(&self, winner: &Portrait, other: &Portrait, layout: Layout, place: usize) -> Doubt {
        let mut deciding = Vec::new();
        let mut variance = 0.0;
        let mut take = |of: Option<OpClass>, ranks: u32, a: f64, b: f64, sigma: f64| {
            let part = sigma * sigma * ((1.0 - OWN) * (a - b).powi(2) + OWN * (a * a + b * b));
            variance += part;
            deciding.push(Deciding {
                of,
                class: of.map_or_else(|| "host and launch time".to_owned(), label),
                ranks,
                share: a,
                other_share: b,
                sigma,
                variance: part,
            });
        };
        for key in keys(winner, other) {
            let share = |p: &Portrait| p.shares.get(&key).copied().unwrap_or(0.0);
            let (a, b) = (share(winner), share(other));
            take(Some(key.0), key.1, a, b, self.sigma(key));
        }
        let host_sigma = self.setup.overheads.tpot_sigma;
        take(None, 1, winner.host, other.host, host_sigma);
        for term in &mut deciding {
            term.variance /= variance.max(1e-30);
        }
        deciding.sort_by(|a, b| b.variance.total_cmp(&a.variance));

        let spread = variance.sqrt().max(1e-9);
        let lead = (winner.score / other.score).ln();
        let exposed = keys(winner, other)
            .into_iter()
            .filter(|key| {
                let share = |p: &Portrait| p.shares.get(key).copied().unwrap_or(0.0);
                let here = self.setup.costs.note(key.0).is_some_and(|n| n.here);
                let (mine, theirs) = (share(winner), share(other));
                // Twice as slow, or twice as fast.
                let turned = (1.0 + mine).ln() - (1.0 + theirs).ln() > lead
                    || (1.0 - theirs / 2.0).ln() - (1.0 - mine / 2.0).ln() < -lead;
                !here && turned
            })
            .collect();
        let confidence = Normal::standard().cdf(lead / spread);
        // The whole 90 % interval of the ratio within the band.
        let alike = lead.abs() + 1.645 * spread <= ALIKE;
        Doubt {
            place,
            layout,
            by: lead.exp(),
            confidence,
            settled: confidence >= self.confidence || alike,
            alike,
            exposed,
            deciding,
        }
    }

    /// Experiments that would settle what is in doubt, best first. `done` are not proposed again.
    pub fn proposals(
        &self,
        ranked: &[Plan],
        machine: Machine,
        done: &[Experiment],
    ) -> Vec<Proposal> {
        let portraits: Vec<Portrait> = ranked.iter().map(|p| self.portrait(p)).collect();
        let Some((winner, others)) = portraits.split_first() else {
            return Vec::new();
        };
        let mut out: Vec<Proposal> = Vec::new();
        for (other, plan) in others.iter().zip(ranked.iter().skip(1)) {
            let doubt = self.doubt(winner, other, plan.choice.layout, 2);
            if doubt.alike {
                continue;
            }
            for key in keys(winner, other) {
                let exposed = doubt.exposed.contains(&key);
                let part = doubt
                    .deciding
                    .iter()
                    .find(|d| d.of == Some(key.0) && d.ranks == key.1);
                let Some(part) = part.filter(|_| exposed || !doubt.settled) else {
                    continue;
                };
                let elsewhere = if key.1 > machine.ranks {
                    OTHER_RANKS
                } else {
                    0.0
                };
                let after = IN_COMPANY.hypot(elsewhere).min(part.sigma);
                let gain = part.variance * (1.0 - (after / part.sigma).powi(2));
                let worth = gain * (1.0 - doubt.confidence) * 2.0;
                let worth = if exposed {
                    worth.max(2.0 * WORTH)
                } else {
                    worth
                };
                if worth < WORTH {
                    continue;
                }
                for (weight, experiment) in self.shapes(key, [winner, other], machine) {
                    // Once a shape was measured, its neighbours tell the slope of the curve it is on.
                    for near in operation::neighbours(&experiment) {
                        propose(&mut out, near, worth * weight * 0.3, done);
                    }
                    propose(&mut out, experiment, worth * weight, done);
                }
            }
        }
        out.sort_by(|a, b| b.value.total_cmp(&a.value));
        out
    }

    /// Experiments on the operations of a class as two candidates run them, each with its share of the
    /// class's time.
    fn shapes(&self, key: Key, both: [&Portrait; 2], machine: Machine) -> Vec<(f64, Experiment)> {
        let own = self.setup.rules.own_kernels;
        let mut out: Vec<(f64, Experiment)> = Vec::new();
        let mut whole = 0.0;
        for (us, ran) in both.iter().flat_map(|p| &p.operations) {
            if (ran.operation.class(), ran.operation.ranks() as u32) != key {
                continue;
            }
            whole += us;
            let Some(experiment) = operation::of(ran, own, machine) else {
                continue;
            };
            match out.iter_mut().find(|(_, e)| e.same(&experiment)) {
                Some((weight, _)) => *weight += us,
                None => out.push((*us, experiment)),
            }
        }
        for (weight, _) in &mut out {
            *weight /= f64::max(whole, 1e-30);
        }
        out
    }
}

fn propose(out: &mut Vec<Proposal>, experiment: Experiment, value: f64, done: &[Experiment]) {
    if done.iter().any(|d| d.same(&experiment)) {
        return;
    }
    match out.iter_mut().find(|p| p.experiment.same(&experiment)) {
        Some(known) => known.value += value,
        None => out.push(Proposal { experiment, value }),
    }
}

fn keys(a: &Portrait, b: &Portrait) -> Vec<Key> {
    let mut all: Vec<Key> = a.shares.keys().chain(b.shares.keys()).copied().collect();
    all.sort_unstable();
    all.dedup();
    all
}

impl Portrait {
    fn add(&mut self, tally: &Tally, ran: Vec<Recorded>, weight: f64) {
        let total = tally.total_us();
        if total <= 0.0 || weight <= 0.0 {
            return;
        }
        let host: f64 = Op::ALL
            .iter()
            .filter(|op| !op.is_kernel())
            .map(|&op| tally.us(op))
            .sum();
        self.host += weight * host / total;
        // Records are of one stage and one layer each; what a kind of work took in all is the tally's.
        let listed: f64 = ran.iter().map(|r| r.count * r.us).sum();
        for r in ran {
            let us = r.count * r.us / listed.max(1e-30) * (total - host);
            let share = weight * us / total;
            let key = (r.operation.class(), r.operation.ranks() as u32);
            *self.shares.entry(key).or_default() += share;
            self.operations.push((share, r));
        }
    }
}

/// A class in words.
fn label(class: OpClass) -> String {
    match class {
        OpClass::Gemm(d) => format!("{d} products"),
        OpClass::MlaBmm(d) => format!("{d} absorption products"),
        OpClass::DecodeGqa(d) => format!("decode attention, {d} cache"),
        OpClass::PrefillGqa(d) => format!("prefill attention, {d} cache"),
        OpClass::DecodeMla(d) => format!("MLA decode attention, {d} cache"),
        OpClass::PrefillMla(d) => format!("MLA prefill attention, {d} cache"),
        OpClass::DecodeDsa(d) => format!("sparse decode attention, {d} cache"),
        OpClass::PrefillDsa(d) => format!("sparse prefill attention, {d} cache"),
        OpClass::GatedDeltaDecode | OpClass::GatedDeltaPrefill => "Gated DeltaNet".to_owned(),
        OpClass::Mamba2Decode | OpClass::Mamba2Prefill => "Mamba-2".to_owned(),
        OpClass::Moe(d) => format!("{d} routed experts"),
        OpClass::Elementwise => "norms, rope, copies".to_owned(),
        OpClass::AllGather => "all-gather".to_owned(),
        OpClass::ReduceScatter => "reduce-scatter".to_owned(),
        OpClass::AllReduce => "all-reduce".to_owned(),
        OpClass::AllToAll => "all-to-all".to_owned(),
        OpClass::SymmetricAllGather => "symmetric all-gather".to_owned(),
        OpClass::SymmetricReduceScatter => "symmetric reduce-scatter".to_owned(),
        OpClass::SymmetricAllReduce => "symmetric all-reduce".to_owned(),
        OpClass::CustomAllReduce => "the engine's own all-reduce".to_owned(),
        OpClass::PeerGather => "gather over peer memory".to_owned(),
        OpClass::PeerMerge => "merge over peer memory".to_owned(),
        OpClass::Network => "network".to_owned(),
        OpClass::ExpertLowLatency => "expert all-to-all, low latency".to_owned(),
        OpClass::ExpertNormal => "expert all-to-all".to_owned(),
    }
}
