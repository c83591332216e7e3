//! Questions between two candidates on machines that differ from the tables: the experiments that the
//! planner proposes settle them, with few of those that the default set has.

#![allow(clippy::unwrap_used)]

use parplan_planner::calibrate::decide::Question;
use parplan_planner::calibrate::experiments::{Machine, default_set};
use parplan_planner::calibrate::{Layer, Origin, apply, predicted_us, terms};
use parplan_planner::cost::OpCosts;
use parplan_planner::deployment::Setup;
use parplan_planner::estimate;
use parplan_planner::layout::Layout;
use parplan_planner::plan::{Choice, Plan};
use parplan_planner::question::{Balance, Objective, Settings, Spread, Traffic};
use parplan_profiles::calibration::{Calibration, Experiment, Provenance, SCHEMA, Sample};
use parplan_profiles::engine::{EngineRules, embedded, select};
use parplan_profiles::{Dtype, EfficiencyProfile, GpuProfile, Library, ModelProfile, Overheads};

const MACHINE: Machine = Machine {
    ranks: 2,
    gpus: true,
};

/// A machine whose products and links are not those of the tables.
fn truth(base: &EfficiencyProfile, compute: f64, link: f64, attention: f64) -> EfficiencyProfile {
    let mut out = base.clone();
    for fit in out.gemm.values_mut() {
        fit.compute *= compute;
        fit.memory *= compute.sqrt();
    }
    let c = &mut out.collective;
    for ring in [
        &mut c.all_gather,
        &mut c.reduce_scatter,
        &mut c.all_reduce,
        &mut c.all_to_all,
        &mut c.symmetric,
    ] {
        ring.link = ring.link.map(|x| x * link);
        ring.base_us /= link.sqrt();
    }
    for fit in out.decode_gqa.values_mut() {
        fit.memory *= attention;
    }
    out
}

struct World {
    gpu: GpuProfile,
    base: EfficiencyProfile,
    real: EfficiencyProfile,
    overheads: Overheads,
}

impl World {
    fn new(compute: f64, link: f64, attention: f64) -> World {
        let gpu = Library::embedded().gpu("h200").unwrap();
        let base = EfficiencyProfile::embedded("builtin", &gpu)
            .unwrap()
            .clone();
        World {
            real: truth(&base, compute, link, attention),
            overheads: Overheads::embedded("builtin", &gpu).unwrap().clone(),
            base,
            gpu,
        }
    }

    /// What the machine would measure, with a little noise that repeats.
    fn measure(&self, e: &Experiment) -> Option<Sample> {
        let us = predicted_us(e, &self.gpu, &self.real, &self.overheads)?;
        let noise = |i: u32| 1.0 + 0.01 * f64::from(i).mul_add(2.4, us).sin();
        Some(Sample {
            implementation: "parplan".into(),
            unit: e.probe.unit(),
            value: us * noise(0),
            low: us * 0.98,
            high: us * 1.02,
            repeats: (0..5).map(|i| us * noise(i)).collect(),
            anchor_us: Vec::new(),
            outliers: Vec::new(),
            remarks: Vec::new(),
            experiment: e.clone(),
        })
    }

    fn setup<'a>(
        &'a self,
        efficiency: &'a EfficiencyProfile,
        model: &'a ModelProfile,
        rules: &'a EngineRules,
    ) -> Setup<'a> {
        Setup {
            model,
            gpu: &self.gpu,
            rules,
            costs: OpCosts::new(efficiency, &self.gpu).unwrap(),
            overheads: &self.overheads,
        }
    }

    fn prices(&self, samples: &[Sample]) -> EfficiencyProfile {
        let calibration = Calibration {
            schema: SCHEMA,
            name: "test".into(),
            provenance: Provenance {
                gpu: self.gpu.name.clone(),
                date: "2026-01-01".into(),
                ..Provenance::default()
            },
            warnings: Vec::new(),
            terms: terms(&self.gpu, &self.base, &self.overheads, samples),
            samples: Vec::new(),
        };
        let layer = Layer {
            calibration: &calibration,
            origin: Origin::User,
        };
        apply(true, &self.gpu, &self.base, &self.overheads, &[layer]).efficiency
    }
}

fn layout(tp: u32, attention_dp: u32, replicas: u32) -> Layout {
    Layout {
        replicas,
        tp,
        attention_dp,
        dcp: 1,
        ep: 1,
        pp: 1,
        nodes: 1,
    }
}

/// Plans of the two candidates, the better one first.
fn rank(setup: &Setup<'_>, traffic: &Traffic, pair: [Layout; 2]) -> Vec<Plan> {
    let mut plans: Vec<Plan> = pair
        .iter()
        .map(|&layout| {
            let choice = Choice {
                layout,
                kv_dtype: Dtype::Bf16,
                cuda_graphs: true,
                symmetric_memory: false,
                speculative_steps: 0,
                expert_all_to_all: false,
            };
            estimate::plan(setup, traffic, &Settings::default(), choice)
        })
        .collect();
    plans.sort_by(|a, b| {
        let speed = |p: &Plan| p.predicted.output_tokens_per_s_per_gpu.value;
        speed(b).total_cmp(&speed(a))
    });
    plans
}

fn settles(model: &str, concurrency: f64, pair: [Layout; 2], world: &World) -> usize {
    let library = Library::embedded();
    let model = library.model(model).unwrap();
    let profiles = embedded().unwrap();
    let rules = select(&profiles, "builtin", false).unwrap();
    let traffic = Traffic {
        isl: 1024.0,
        osl: 512.0,
        prompts: Spread::NONE,
        outputs: Spread::NONE,
        concurrency,
        prefix_hit: 0.0,
        balance: Balance::Even,
        waves: 10.0,
        requests_per_s: None,
        speculation: None,
    };
    let settings = Settings::default();
    let mut samples: Vec<Sample> = Vec::new();
    let mut done: Vec<Experiment> = Vec::new();
    let winner = loop {
        let prices = world.prices(&samples);
        let setup = world.setup(&prices, &model, &rules);
        let ranked = rank(&setup, &traffic, pair);
        let question = Question {
            setup: &setup,
            traffic: &traffic,
            settings: &settings,
            objective: Objective::Throughput,
            confidence: 0.9,
        };
        let doubts = question.doubts(&ranked);
        let next = question.proposals(&ranked, MACHINE, &done);
        if next.is_empty() {
            assert!(
                doubts[0].settled,
                "{} at {concurrency}: not settled after {}: {:#?}",
                model.name,
                done.len(),
                doubts[0]
            );
            break ranked[0].choice.layout;
        }
        for proposal in next.into_iter().take(2) {
            samples.extend(world.measure(&proposal.experiment));
            done.push(proposal.experiment);
        }
    };
    let setup = world.setup(&world.real, &model, &rules);
    let really = rank(&setup, &traffic, pair);
    let speeds: Vec<f64> = really
        .iter()
        .map(|p| p.predicted.output_tokens_per_s_per_gpu.value)
        .collect();
    assert!(
        really[0].choice.layout == winner || speeds[0] / speeds[1] < 1.02,
        "{}: {winner:?} was found, {speeds:?}",
        model.name
    );
    done.len()
}

#[test]
fn three_questions_are_settled_with_a_fifth_of_the_default_set() {
    let all = default_set(MACHINE).len();
    let questions = [
        // Split over both GPUs, or a copy on each; links half as fast as the tables'.
        (
            "qwen3-8b",
            128.0,
            [layout(2, 1, 1), layout(1, 1, 2)],
            World::new(1.0, 0.5, 1.0),
        ),
        // Attention DP against plain TP, on a machine with slow products and attention.
        (
            "qwen3-8b",
            256.0,
            [layout(2, 2, 1), layout(2, 1, 1)],
            World::new(0.6, 1.0, 0.8),
        ),
        // The same of a model with experts, on a machine that is slower in everything.
        (
            "qwen3-30b-a3b",
            64.0,
            [layout(2, 2, 1), layout(2, 1, 1)],
            World::new(0.9, 0.7, 0.7),
        ),
    ];
    for (model, concurrency, pair, world) in questions {
        let used = settles(model, concurrency, pair, &world);
        println!("{model} at {concurrency}: {used} of {all} experiments");
        assert!(used > 0, "{model}: was never in doubt");
        assert!(used * 5 <= all, "{model}: {used} of {all} experiments");
    }
}

#[test]
fn two_calibrations_of_one_machine_agree_within_their_intervals() {
    use parplan_planner::calibrate::differences;
    let world = World::new(0.9, 0.9, 0.9);
    // Two runs: noise of 1 % a sample, from different places of a fixed sequence.
    let run = |seed: u64| {
        let mut state = seed;
        let mut draw = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 11) as f64 / (1u64 << 53) as f64 - 0.5) * 2.0
        };
        let samples: Vec<Sample> = default_set(MACHINE)
            .iter()
            .filter_map(|e| world.measure(e))
            .map(|mut s| {
                s.value *= 1.0 + 0.017 * draw();
                (s.low, s.high) = (s.value * 0.983, s.value * 1.017);
                s
            })
            .collect();
        terms(&world.gpu, &world.base, &world.overheads, &samples)
    };
    let (first, second) = (run(3), run(77));
    let all = differences(&first, &second);
    let within = all.iter().filter(|d| d.within).count();
    println!("{within} of {} figures agree", all.len());
    assert!(all.len() > 30, "{}", all.len());
    assert!(
        within * 100 >= all.len() * 85,
        "{within} of {}: {all:#?}",
        all.len()
    );
}
