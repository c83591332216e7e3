//! A made-up table goes the whole way: read, repaired, fitted, compared.

#![allow(clippy::unwrap_used)]

use super::errors::{Errors, Outcome, Pairs, outcomes, quantile, ratios, table};
use super::figures::Figures;
use super::fit::{finished, fit, predict};
use super::runs::{Run, Runs, read};
use super::write::{differences, parse, render};
use parplan_planner::question::Spread;
use parplan_profiles::{GpuArchitecture, Overheads};

const HEADER: &str = "id,backend,backend_version,model_path,system,precision,mode,isl,concurrency,osl,tp_size,attention_dp_size,moe_tp_size,moe_ep_size,silicon_ttft_ms,silicon_tpot_ms";

/// Reads rows as a table.
fn table_of(rows: &[String]) -> anyhow::Result<Runs> {
    let name = format!(
        "parplan-overheads-{}-{:?}.csv",
        std::process::id(),
        std::thread::current().id()
    );
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, format!("{HEADER}\n{}\n", rows.join("\n"))).unwrap();
    let runs = read(&path);
    std::fs::remove_file(&path).unwrap();
    runs
}

fn row(layout: &str, concurrency: u32, times: (f64, f64)) -> String {
    format!(
        "x,vllm,0.19.0,MiniMaxAI/MiniMax-M2.5,b200_sxm,fp8,agg,1024,{concurrency},1024,{layout},{},{}",
        times.0, times.1
    )
}

#[test]
fn rows_are_repaired_matched_and_left_out_with_a_reason() {
    let runs = table_of(&[
        // Attention DP counted twice, and the run again, rounded.
        row("4.0,4.0,1.0,16.0", 64, (147.21, 16.233)),
        row("1.0,4.0,1.0,4.0", 64, (147.2, 16.23)),
        // Tensor parallelism multiplied by expert parallelism.
        row("16.0,1.0,4.0,4.0", 64, (120.0, 14.0)),
        // More GPUs than a node has, a missing time, a queue that no column explains.
        row("32.0,1.0,32.0,1.0", 64, (120.0, 14.0)),
        row("4.0,1.0,4.0,1.0", 64, (120.0, f64::NAN)).replace("NaN", ""),
        row("4.0,1.0,4.0,1.0", 64, (90_000.0, 14.0)),
        row("4.0,1.0,4.0,1.0", 64, (120.0, 14.0)).replace(",agg,", ",disagg,"),
        row("4.0,1.0,4.0,1.0", 64, (120.0, 14.0)).replace("MiniMax-M2.5", "Unheard-Of"),
    ])
    .unwrap();
    let layouts: Vec<[u32; 3]> = runs
        .kept
        .iter()
        .map(|r| {
            let l = r.choice.layout;
            [l.tp, l.attention_dp, l.ep]
        })
        .collect();
    assert_eq!(layouts, [[4, 4, 4], [4, 1, 4]]);
    assert!((runs.kept[0].traffic.isl - 921.6).abs() < 1e-9);
    assert_eq!(runs.kept[0].traffic.outputs, Spread::even(0.8));
    assert_eq!(runs.dropped.values().sum::<u32>(), 6);
    assert!(
        runs.dropped
            .keys()
            .any(|reason| reason.contains("Unheard-Of"))
    );
    assert!(
        table_of(&[])
            .unwrap_err()
            .to_string()
            .contains("none of its rows")
    );
    let broken = table_of(&[row("four,1.0,4.0,1.0", 64, (120.0, 14.0))]);
    assert!(format!("{:#}", broken.unwrap_err()).contains("invalid float"));
}

fn truth() -> Overheads {
    Overheads {
        step_us: 1500.0,
        decode_scale: 1.1,
        ..Figures::expected(&[]).overheads("vllm", GpuArchitecture::Blackwell)
    }
}

/// Runs whose times are what the planner predicts under [`truth`].
fn planted() -> Vec<Run> {
    let mut rows = Vec::new();
    for layout in ["4.0,1.0,4.0,1.0", "8.0,1.0,8.0,1.0", "1.0,4.0,1.0,4.0"] {
        for concurrency in [4, 16, 64] {
            rows.push(row(layout, concurrency, (120.0, 14.0)));
        }
    }
    let mut runs = table_of(&rows).unwrap().kept;
    for run in &mut runs {
        run.measured = run.predict(&truth()).unwrap();
    }
    runs
}

#[test]
fn a_fit_finds_planted_figures_and_takes_the_same_path_twice() {
    let runs = planted();
    let runs: Vec<&Run> = runs.iter().collect();
    let start = Figures::expected(&runs);
    let figures = fit(&runs, start.clone()).unwrap();
    assert_eq!(figures, fit(&runs, start).unwrap());
    let plain = finished(&runs, &figures, &[]);
    let judged = outcomes(&runs, &plain).unwrap();
    let entries = finished(&runs, &figures, &judged);
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].runs, 9);
    assert!(entries[0].tpot_sigma < 0.05);
    let times = predict(&runs, &entries).unwrap();
    for (run, times) in runs.iter().zip(&times) {
        assert!(Errors::of(times, &run.measured).tpot.abs() < 0.05);
    }
    let plain = [Figures::expected(&[]).overheads("vllm", GpuArchitecture::Blackwell)];
    let before = predict(&runs, &plain).unwrap();
    let off: Vec<f64> = runs
        .iter()
        .zip(&before)
        .map(|(run, times)| Errors::of(times, &run.measured).tpot.abs())
        .collect();
    assert!(quantile(off, 0.5) > 0.08, "nothing was there to find");
    assert!(predict(&runs, &[]).is_err());
}

#[test]
fn tables_and_ratios_say_what_the_errors_are() {
    let runs = planted();
    let outcome = |run, tpot: f64| Outcome {
        run,
        errors: Errors { tpot, ttft: -tpot },
        sigma: Errors {
            tpot: 0.1,
            ttft: 0.01,
        },
    };
    // Every layout errs by its own amount: at one concurrency ratios err, within a layout they do not.
    let outcomes: Vec<Outcome<'_>> = runs
        .iter()
        .map(|run| {
            let l = run.choice.layout;
            outcome(
                run,
                0.02 * f64::from(l.tp) + 0.1 * f64::from(l.attention_dp - 1),
            )
        })
        .collect();
    let text = table("all", &outcomes, |_| "everything".to_owned());
    assert!(
        text.contains("| everything | 9 | 17.4 | 46.2 | +17.4 | 67 |"),
        "{text}"
    );
    let layouts = ratios(&outcomes, Pairs::Layouts);
    assert_eq!(layouts.pairs, 9);
    assert!((layouts.tpot - 0.3 / 1.645).abs() < 1e-9);
    let steady = ratios(&outcomes, Pairs::Concurrencies);
    assert_eq!(
        (steady.pairs, steady.tpot, steady.tpot_share),
        (9, 0.0, 0.0)
    );
}

#[test]
fn a_written_file_keeps_comments_and_other_engines_and_checks_clean() {
    let old = include_str!("../../../profiles/data/overheads.toml");
    let mut fresh = parse(old).unwrap();
    fresh.retain(|entry| entry.engine != "builtin");
    assert_eq!(render(old, &fresh).unwrap(), old);
    assert!(differences(&fresh, &fresh, 0.0).is_empty());
    fresh[0].step_us += 100.0;
    fresh[1].runs += 1;
    let text = render(old, &fresh).unwrap();
    assert!(text.starts_with("# Fitted from measured serving runs"));
    assert!(text.contains("# parplan's own executor"));
    assert_eq!(parse(&text).unwrap().len(), parse(old).unwrap().len());
    let found = differences(&parse(old).unwrap(), &fresh, 0.005);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("step_us"));
    fresh[0].engine = "lmdeploy".to_owned();
    assert!(differences(&parse(old).unwrap(), &fresh, 0.005)[0].contains("no entry"));
}

#[test]
fn what_one_release_differs_by_is_found_and_left_to_it() {
    let mut runs = planted();
    // One of two releases answers 40 ms later.
    for (at, run) in runs.iter_mut().enumerate() {
        if at % 2 == 0 {
            run.version = "0.18.0".to_owned();
            run.measured.ttft_ms += 40.0;
        }
    }
    let runs: Vec<&Run> = runs.iter().collect();
    let figures = fit(&runs, Figures::expected(&runs)).unwrap();
    let o = figures.exact("vllm", GpuArchitecture::Blackwell);
    let later =
        |version: &str| o.request_us_of(version.parse().unwrap(), "MiniMaxM2ForCausalLM") / 1e3;
    let gap = later("0.18.0") - later("0.19.0");
    assert!((20.0..45.0).contains(&gap), "{gap}");
    // Without its runs nothing is said of it.
    let others: Vec<&Run> = runs
        .iter()
        .copied()
        .filter(|r| r.version != "0.18.0")
        .collect();
    let left = figures
        .seen_by(&others)
        .exact("vllm", GpuArchitecture::Blackwell);
    assert_eq!(left.front_ends.len(), 1);
}
