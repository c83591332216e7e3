//! One `recommend` question over every embedded model, GPU and engine, by the way that the command line
//! takes: an answer whose figures can be, or a refusal that says why. Never a panic.

#![allow(clippy::unwrap_used, clippy::panic)]

use clap::Parser;
use parplan::args::{Cli, Command};
use parplan::commands;
use parplan::failure::Failure;
use parplan::output::Style;
use parplan_profiles::{Library, ModelProfile};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What is asked of everything: eight GPUs as one replica, the engine's newest version, attention DP and
/// expert parallelism left open, switches fixed.
const QUESTION: [&str; 23] = [
    "--gpus",
    "8",
    "--replicas",
    "1",
    "--isl",
    "1024",
    "--osl",
    "512",
    "--concurrency",
    "64",
    "--pp",
    "1",
    "--dcp",
    "1",
    "--symmetric-memory",
    "off",
    "--expert-all-to-all",
    "off",
    "--top",
    "2",
    "--profiles",
    env!("CARGO_TARGET_TMPDIR"),
    "--json",
];

/// The answer to the question, as the command gives it.
fn ask(model: &str, gpu: &str, engine: &str) -> Result<Value, Failure> {
    let who = [
        "parplan",
        "recommend",
        "--model",
        model,
        "--gpu",
        gpu,
        "--engine",
        engine,
    ];
    let cli = Cli::try_parse_from(who.iter().chain(&QUESTION)).unwrap();
    let Command::Recommend(args) = cli.command else {
        panic!("not the command that was typed");
    };
    let printed = commands::recommend::run(&args, Style::PLAIN)?;
    Ok(serde_json::from_str(&printed).unwrap())
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

/// Figures that any answer has: positive, finite, in order, and together.
fn check(answer: &Value, what: &str) {
    let ranked = answer["ranked"].as_array().unwrap();
    assert!(!ranked.is_empty(), "{what}: nothing ranked");
    for plan in ranked {
        for name in [
            "tpot_ms",
            "ttft_ms",
            "output_tokens_per_s",
            "decode_step_ms",
            "prefill_pass_ms",
        ] {
            let figure = &plan["predicted"][name];
            let [low, value, high] = ["low", "value", "high"].map(|at| number(&figure[at]));
            assert!(
                0.0 < low && low <= value && value <= high && high.is_finite(),
                "{what}: {name} {figure}"
            );
        }
        let predicted = &plan["predicted"];
        let [ttft, tpot] = ["ttft_ms", "tpot_ms"].map(|name| number(&predicted[name]["value"]));
        // Little's law: 64 clients are kept busy by what is finished.
        let seconds = (ttft + tpot * (0.9 * 512.0 - 1.0)) / 1e3;
        let clients = number(&predicted["requests_per_s"]["value"]) * seconds;
        assert!((40.0..75.0).contains(&clients), "{what}: {clients} clients");
        let map = plan["memory_bytes"].as_object().unwrap();
        let parts: f64 = map
            .iter()
            .filter(|(name, _)| *name != "total")
            .map(|(_, bytes)| number(bytes))
            .sum();
        assert!(
            (parts - number(&map["total"])).abs() < 64.0,
            "{what}: {map:?}"
        );
        let layout = &plan["layout"];
        assert_eq!(number(&layout["gpus"]), 8.0, "{what}: {layout}");
        // A launch command, or the reason why there is none.
        assert!(
            plan["launch"].is_object() || plan["launch_error"].is_string(),
            "{what}"
        );
    }
    for refused in answer["rejected"].as_array().unwrap() {
        reason(refused["reason"].as_str().unwrap(), what);
    }
}

/// A sentence that a person can act on.
fn reason(text: &str, what: &str) {
    assert!(text.len() > 20, "{what}: {text:?}");
    for odd in ["NaN", "inf ", "None", "Some(", "  ", "{", "panicked"] {
        assert!(!text.contains(odd), "{what}: {text:?}");
    }
}

#[test]
fn every_model_gpu_and_engine_is_answered_or_refused_with_a_reason() {
    let library = Library::embedded();
    let names = |list: Vec<parplan_profiles::Listed>| -> Vec<String> {
        list.into_iter().map(|listed| listed.name).collect()
    };
    // Those that differ in their name and longest sequence only have one answer.
    let mut seen: Vec<ModelProfile> = Vec::new();
    let models: Vec<String> = names(library.models().unwrap())
        .into_iter()
        .filter(|name| {
            let own = library.model(name).unwrap();
            let model = ModelProfile {
                name: String::new(),
                aliases: Vec::new(),
                repository: String::new(),
                max_position: 0,
                published: None,
                ..own
            };
            let is_new = !seen.contains(&model);
            if is_new {
                seen.push(model);
            }
            is_new
        })
        .collect();
    assert!(models.len() > 50, "{} models", models.len());
    let gpus = names(library.gpus().unwrap());
    let engines = names(library.engines().unwrap());
    let mut questions = Vec::new();
    for model in &models {
        for gpu in &gpus {
            for engine in &engines {
                questions.push((model.as_str(), gpu.as_str(), engine.as_str()));
            }
        }
    }
    let next = AtomicUsize::new(0);
    let tally: Mutex<BTreeMap<&str, [u32; 2]>> = Mutex::new(BTreeMap::new());
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(&(model, gpu, engine)) =
                    questions.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let what = format!("{model} on {gpu} by {engine}");
                    let answered = match ask(model, gpu, engine) {
                        Ok(answer) => {
                            check(&answer, &what);
                            true
                        }
                        Err(failure) => {
                            reason(&failure.to_string(), &what);
                            false
                        }
                    };
                    let mut tally = tally.lock().unwrap();
                    tally.entry(engine).or_default()[usize::from(answered)] += 1;
                }
            });
        }
    });
    let tally = tally.into_inner().unwrap();
    println!(
        "{} questions; refused and answered: {tally:?}",
        questions.len()
    );
    for (engine, [refused, answered]) in tally {
        // Nobody serves everything, and every engine most of it: what fits and has kernels.
        assert!(
            answered > 300 && refused > 10,
            "{engine}: {answered} answered, {refused} refused"
        );
    }
}
