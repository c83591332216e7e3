#![allow(clippy::expect_used)]
//! Points a second of the search: a point is one configuration at one decoding batch.
//!
//! `cargo bench -p parplan-planner --bench search`

use divan::Bencher;
use divan::counter::ItemsCount;
use parplan_planner::cost::OpCosts;
use parplan_planner::deployment::Setup;
use parplan_planner::question::{Balance, Goal, Objective, Settings, Space, Spread, Traffic};
use parplan_planner::search::{Effort, Pruning, recommend};
use parplan_profiles::engine::{embedded, select};
use parplan_profiles::{Dtype, EfficiencyProfile, Library, Overheads};

fn main() {
    divan::main();
}

fn space(gpus: u32) -> Space {
    Space {
        gpus,
        nodes: gpus.div_ceil(8),
        tp: None,
        attention_dp: None,
        dcp: None,
        ep: None,
        pp: None,
        replicas: None,
        kv_dtypes: vec![Dtype::Bf16, Dtype::Fp8],
        cuda_graphs: vec![true, false],
        symmetric_memory: vec![false, true],
        expert_all_to_all: vec![false, true],
        settings: Settings::default(),
    }
}

#[divan::bench(args = [8, 32])]
fn deepseek_v3_on_h200(bencher: Bencher<'_, '_>, gpus: u32) {
    let library = Library::embedded();
    let model = library.model("deepseek-v3").expect("embedded");
    let gpu = library.gpu("h200").expect("embedded");
    let rules = select(&embedded().expect("embedded"), "sglang", false).expect("embedded");
    let profile = EfficiencyProfile::embedded("sglang", &gpu).expect("embedded");
    let setup = Setup {
        model: &model,
        gpu: &gpu,
        rules: &rules,
        costs: OpCosts::new(profile, &gpu).expect("embedded"),
        overheads: Overheads::embedded("sglang", &gpu).expect("embedded"),
    };
    let traffic = Traffic {
        isl: 4096.0,
        osl: 1024.0,
        prompts: Spread::even(0.8),
        outputs: Spread::even(0.8),
        concurrency: 512.0,
        prefix_hit: 0.0,
        balance: Balance::Even,
        waves: 10.0,
        requests_per_s: None,
        speculation: None,
    };
    let space = space(gpus);
    let goal = Goal {
        ttft_ms: None,
        tpot_ms: None,
        objective: Objective::Throughput,
    };
    let effort = Effort {
        top: 5,
        threads: 1,
        pruning: Pruning::Off,
    };
    let points = recommend(&setup, &traffic, &space, &goal, &effort).points;
    bencher
        .counter(ItemsCount::new(points))
        .bench(|| recommend(divan::black_box(&setup), &traffic, &space, &goal, &effort));
}
