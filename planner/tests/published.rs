//! Published comparisons of two configurations (docs/ab.md), each asked as a person would ask it:
//! `published_ab.txt` has them, one a line. `cargo test -p parplan-planner --test published -- --nocapture`
//! prints the table of docs/ab.md.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Ground, layout};
use parplan_planner::cost::OpCosts;
use parplan_planner::deployment::Setup;
use parplan_planner::estimate;
use parplan_planner::formats;
use parplan_planner::plan::{Choice, Plan};
use parplan_planner::question::{Balance, GraphSizes, Settings, Spread, Traffic};
use parplan_profiles::engine::{embedded, select};
use parplan_profiles::{Dtype, EfficiencyProfile, Lengths, Speculation};

const CASES: &str = include_str!("published_ab.txt");

/// Those whose winner is still the wrong one; docs/ab.md says why, as far as that is known.
const WRONG: &[&str] = &["r1-h200-vllm-vs-trt", "v32-tp-vs-dp8", "air-vllm-sgl"];

/// Two configurations that were measured within so much of each other (ln) are not told apart.
const TIE: f64 = 0.06;

/// A line, by the names of its columns.
struct Case<'a> {
    columns: Vec<&'a str>,
    fields: Vec<&'a str>,
}

impl Case<'_> {
    fn get(&self, name: &str) -> &str {
        let at = self.columns.iter().position(|c| *c == name).unwrap();
        self.fields[at]
    }

    fn number(&self, name: &str) -> f64 {
        self.get(name).parse().unwrap()
    }

    /// One of a side's options, such as `mem=0.8`.
    fn option(&self, side: &str, name: &str) -> Option<String> {
        self.get(&format!("options_{side}"))
            .split(' ')
            .find_map(|word| match word.split_once('=') {
                Some((key, value)) => (key == name).then(|| value.to_owned()),
                None => (word == name).then(String::new),
            })
    }

    fn traffic(&self) -> Traffic {
        let (prompts, outputs) = (lengths(self.get("prompts")), lengths(self.get("outputs")));
        Traffic {
            isl: prompts.mean().unwrap(),
            osl: outputs.mean().unwrap(),
            prompts: Spread::of(&prompts).unwrap(),
            outputs: Spread::of(&outputs).unwrap(),
            concurrency: self.number("clients"),
            prefix_hit: self
                .option("a", "hit")
                .map_or(0.0, |hit| hit.parse().unwrap()),
            balance: Balance::Even,
            waves: self.number("waves"),
            requests_per_s: None,
            speculation: None,
        }
    }

    fn plan(&self, side: &str) -> Plan {
        let of = |what: &str| self.get(&format!("{what}_{side}"));
        let mut ground = Ground::new(of("model"), of("gpu"), "sglang");
        ground.rules = select(&embedded().unwrap(), of("engine"), true).unwrap();
        let mut prices = EfficiencyProfile::embedded(&ground.rules.name, &ground.gpu)
            .unwrap()
            .clone();
        formats::price_as_run(&ground.rules, &ground.gpu, &mut prices);
        let setup = Setup {
            costs: OpCosts::new(&prices, &ground.gpu).unwrap(),
            ..ground.setup()
        };
        let sizes: Vec<u32> = of("layout")
            .split('/')
            .map(|n| n.parse().unwrap())
            .collect();
        let [tp, attention_dp, dcp, ep, pp] = sizes[..] else {
            panic!("{}: a layout has five sizes", self.get("name"));
        };
        let mut traffic = self.traffic();
        traffic.speculation = self.option(side, "spec").map(|text| {
            let (steps, acceptance) = text.split_once(',').unwrap();
            Speculation {
                steps: steps.parse().unwrap(),
                acceptance: acceptance.parse().unwrap(),
            }
        });
        let number = |name: &str| self.option(side, name).map(|n| n.parse::<f64>().unwrap());
        let settings = Settings {
            memory_fraction: number("mem"),
            max_running_requests: number("running").map(|n| n as u32),
            chunk_tokens: number("chunk").map(|n| n as u32),
            graph_sizes: self
                .option(side, "engine-graphs")
                .map(|_| GraphSizes::Engine),
            ..Settings::default()
        };
        let choice = Choice {
            kv_dtype: match of("kv") {
                "fp8" => Dtype::Fp8,
                "bf16" => Dtype::Bf16,
                _ => ground.model.kv_dtype,
            },
            symmetric_memory: self.option(side, "symm").is_some(),
            expert_all_to_all: self.option(side, "a2a").is_some(),
            speculative_steps: traffic.speculation.map_or(0, |s| s.steps),
            ..ground.choice(parplan_planner::Layout {
                pp,
                nodes: number("nodes").map_or(1, |n| n as u32),
                ..layout(tp, attention_dp, dcp, ep)
            })
        };
        estimate::plan(&setup, &traffic, &settings, choice)
    }
}

/// `fixed:1024`, `uniform:8192,0.5` or `log-normal:70,1.5,4096`, as the command line has them.
fn lengths(text: &str) -> Lengths {
    let (kind, rest) = text.split_once(':').unwrap();
    let n: Vec<f64> = rest.split(',').map(|n| n.parse().unwrap()).collect();
    match kind {
        "fixed" => Lengths::Fixed {
            tokens: n[0] as u32,
        },
        "uniform" => Lengths::Uniform {
            max: n[0] as u32,
            range_ratio: n[1],
        },
        _ => Lengths::LogNormal {
            median: n[0],
            sigma: n[1],
            max: n[2] as u32,
        },
    }
}

#[test]
fn published_comparisons_keep_their_winners() {
    let mut lines = CASES.lines().filter(|line| !line.starts_with('#'));
    let columns: Vec<&str> = lines.next().unwrap().split('|').collect();
    let mut off = Vec::new();
    let mut turned = Vec::new();
    for line in lines {
        let case = Case {
            columns: columns.clone(),
            fields: line.split('|').collect(),
        };
        assert_eq!(case.fields.len(), columns.len(), "{line}");
        let (a, b) = (case.plan("a"), case.plan("b"));
        // Above 1 where the second is the better.
        let better = |x: f64, y: f64| match case.get("metric") {
            "tpot" => x / y,
            _ => y / x,
        };
        let value = |plan: &Plan| match case.get("metric") {
            "tpot" => plan.predicted.tpot_ms.unwrap().value,
            _ => plan.predicted.output_tokens_per_s.value,
        };
        let measured = better(case.number("measured_a"), case.number("measured_b"));
        let predicted = better(value(&a), value(&b));
        let tie = measured.ln().abs() < TIE;
        let right = measured.ln() * predicted.ln() > 0.0 || (tie && predicted.ln().abs() < TIE);
        println!(
            "| [{}]({}) | {} | {:.2} | {:.2} | {} |",
            case.get("name"),
            case.get("source"),
            case.get("what"),
            measured,
            predicted,
            match (right, tie) {
                (true, true) => "a tie",
                (true, false) => "yes",
                (false, true) => "a tie, predicted apart",
                (false, false) => "**no**",
            }
        );
        off.push((predicted / measured).ln().abs());
        if !right && !tie {
            turned.push(case.get("name").to_owned());
        }
    }
    off.sort_by(f64::total_cmp);
    println!(
        "{} comparisons; |ln| of the ratio off: median {:.3}, 90th percentile {:.3}; wrong: {turned:?}",
        off.len(),
        off[off.len() / 2],
        off[off.len() * 9 / 10]
    );
    assert_eq!(turned, WRONG);
    assert!(off[off.len() / 2] < 0.15);
}
