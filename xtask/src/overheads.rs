//! `cargo xtask overheads`: what engines add around their kernels, fitted from measured runs.

mod choices;
mod errors;
mod figures;
mod fit;
mod folds;
mod runs;
mod write;

#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use errors::{Outcome, Pairs, outcomes, promised, ratios, table};
use folds::Fold;
use parplan_profiles::Overheads;
use runs::Run;

/// Engines that are fitted, in the order of the file.
const ENGINES: [&str; 3] = ["sglang", "vllm", "trtllm"];

/// How far a figure of the file may be from a fresh fit, as a part of it: the search's last step.
const ROUNDING: f64 = 0.005;

/// What to do.
#[derive(clap::Args)]
pub struct Arguments {
    /// Table of measured runs, with the columns of aiconfigurator-core's silicon_sample.csv.
    #[arg(long)]
    runs: PathBuf,
    /// Fail when profiles/data/overheads.toml is not what the runs give.
    #[arg(long, conflicts_with = "write")]
    check: bool,
    /// Write profiles/data/overheads.toml.
    #[arg(long)]
    write: bool,
    /// Show the errors on each model, GPU, engine version, pair of lengths and range of concurrency of
    /// fits that had not seen it.
    #[arg(long)]
    held_out: bool,
    /// Write every run beside its prediction to this file, as CSV.
    #[arg(long)]
    table: Option<PathBuf>,
    /// Show every run whose model, GPU, engine and layout contain all of these words, term by term.
    #[arg(long, num_args = 1..)]
    explain: Vec<String>,
}

/// Fits, and shows, writes or checks.
pub fn run(arguments: &Arguments) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the workspace root")?
        .join("profiles/data/overheads.toml");
    let old =
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let runs = runs::read(&arguments.runs)?;
    println!("{} runs", runs.kept.len());
    for (reason, count) in &runs.dropped {
        println!("left out: {count} ({reason})");
    }
    let fits = in_parallel(ENGINES.map(|engine| {
        let own: Vec<&Run> = runs.kept.iter().filter(|r| r.engine == engine).collect();
        move || full(&own, arguments.held_out)
    }))?;
    let entries: Vec<Overheads> = fits.iter().flat_map(|f| f.entries.clone()).collect();
    let all: Vec<&Run> = runs
        .kept
        .iter()
        .filter(|r| ENGINES.contains(&r.engine.as_str()))
        .collect();
    let outcomes = outcomes(&all, &entries)?;
    if !arguments.explain.is_empty() {
        return explain(&outcomes, &entries, &arguments.explain);
    }
    let model = held_out(&fits, Fold::Model);
    if let Some(path) = &arguments.table {
        let mut text = format!("{},ttft_model_left_out,tpot_model_left_out\n", Run::COLUMNS);
        for outcome in &outcomes {
            text += &outcome.run.line(entry_of(outcome.run, &entries)?)?;
            let unseen = model.iter().find(|o| std::ptr::eq(o.run, outcome.run));
            let errors = unseen.map_or(outcome.errors, |o| o.errors);
            let measured = &outcome.run.measured;
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                ",{:.3},{:.3}",
                measured.ttft_ms * errors.ttft.exp(),
                measured.tpot_ms * errors.tpot.exp()
            );
        }
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    report(&entries, &outcomes, &model);
    println!(
        "Which of two is faster, in sample:\n\n{}",
        choices::table(&outcomes)
    );
    println!(
        "Which of two is faster, the model left out:\n\n{}",
        choices::table(&model)
    );
    if arguments.held_out {
        for fold in Fold::ALL {
            println!("{} left out:\n", fold.title());
            print_tables(&held_out(&fits, fold));
        }
    }
    if arguments.write {
        std::fs::write(&path, write::render(&old, &entries)?)
            .with_context(|| format!("writing {}", path.display()))?;
        println!("wrote {}", path.display());
    }
    if arguments.check {
        let differences = write::differences(&write::parse(&old)?, &entries, ROUNDING);
        if !differences.is_empty() {
            bail!(
                "{} is not what the runs give; run 'cargo xtask overheads --runs CSV --write':\n{}",
                path.display(),
                differences.join("\n")
            );
        }
        println!("{} is current", path.display());
    }
    Ok(())
}

/// A fit of one engine, and its errors on what other fits had left out.
struct Fit<'a> {
    entries: Vec<Overheads>,
    folds: Vec<(Fold, Vec<Outcome<'a>>)>,
}

/// Fits one engine. Its spreads are those of predictions for what fits had not seen, a model, a GPU or a
/// version, where the runs have more than one.
fn full<'a>(runs: &[&'a Run], held_out: bool) -> Result<Fit<'a>> {
    ensure!(!runs.is_empty(), "an engine has no run to fit");
    let figures = fit::fit_from_expected(runs)?;
    let mut folds = Vec::new();
    for fold in Fold::ALL {
        if held_out || fold.gives_spreads() {
            folds.push((fold, fold.without_each(runs, &figures)?));
        }
    }
    let mut judged: Vec<Outcome<'_>> = folds
        .iter()
        .filter(|(fold, _)| fold.gives_spreads())
        .flat_map(|(_, outcomes)| outcomes.iter().copied())
        .collect();
    if judged.is_empty() {
        judged = outcomes(runs, &fit::finished(runs, &figures, &[]))?;
    }
    let entries = fit::finished(runs, &figures, &judged);
    for (_, outcomes) in &mut folds {
        *outcomes = promised(outcomes, &entries);
    }
    Ok(Fit { entries, folds })
}

/// What the fits of all engines say of one fold.
fn held_out<'a>(fits: &[Fit<'a>], fold: Fold) -> Vec<Outcome<'a>> {
    fits.iter()
        .flat_map(|fit| &fit.folds)
        .filter(|(of, _)| *of == fold)
        .flat_map(|(_, outcomes)| outcomes.iter().copied())
        .collect()
}

/// Runs jobs at the same time; results keep their order.
fn in_parallel<T: Send, F: FnOnce() -> Result<T> + Send>(
    jobs: impl IntoIterator<Item = F>,
) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let handles: Vec<_> = jobs.into_iter().map(|job| scope.spawn(job)).collect();
        handles
            .into_iter()
            .map(|handle| match handle.join() {
                Ok(result) => result,
                Err(_) => bail!("a fit ended by a fault of the program"),
            })
            .collect()
    })
}

fn report(entries: &[Overheads], outcomes: &[Outcome<'_>], held_out: &[Outcome<'_>]) {
    for e in entries {
        println!(
            "\n{} {:?}, {} runs: step {} us + {} a request, layer {} us in a graph and {} launched, prefill pass {} us, request {} us + {} a prompt token, kernels x{} decode and x{} prefill, expert spread {}; sigma TPOT {}, TTFT {}",
            e.engine,
            e.architecture,
            e.runs,
            e.step_us,
            e.step_request_us,
            e.graph_layer_us,
            e.eager_layer_us,
            e.prefill_pass_us,
            e.request_us,
            e.prompt_token_us,
            e.decode_scale,
            e.prefill_scale,
            e.expert_spread,
            e.tpot_sigma,
            e.ttft_sigma
        );
        for code in &e.model_code {
            println!(
                "  {}: decode x{}, prefill x{}, front end x{}",
                code.architecture, code.decode, code.prefill, code.request
            );
        }
        for release in &e.front_ends {
            println!("  {}: front end x{}", release.version, release.request);
        }
    }
    println!();
    print_tables(outcomes);
    for (title, pairs) in [
        ("layouts at one concurrency", Pairs::Layouts),
        ("concurrencies of one layout", Pairs::Concurrencies),
    ] {
        let r = ratios(held_out, pairs);
        println!(
            "Ratios of two {title}, the model left out, {} pairs: sigma TPOT {:.3} ({:.2} of independent errors), TTFT {:.3} ({:.2})",
            r.pairs, r.tpot, r.tpot_share, r.ttft, r.ttft_share
        );
    }
}

fn print_tables(outcomes: &[Outcome<'_>]) {
    let by_all = |_: &Outcome<'_>| "all".to_owned();
    println!("{}", table("all", outcomes, by_all));
    println!(
        "{}",
        table("engine, GPU", outcomes, |o| format!(
            "{}, {}",
            o.run.engine, o.run.gpu_name
        ))
    );
    println!(
        "{}",
        table("model, GPU, engine", outcomes, |o| format!(
            "{}, {}, {}",
            o.run.model.name, o.run.gpu_name, o.run.engine
        ))
    );
}

fn label(run: &Run) -> String {
    let l = run.choice.layout;
    format!(
        "{} {} {} {} tp{} dp{} ep{} isl{:.0} osl{:.0} c{}",
        run.model.name,
        run.gpu_name,
        run.engine,
        run.version,
        l.tp,
        l.attention_dp,
        l.ep,
        run.traffic.isl,
        run.traffic.osl,
        run.traffic.concurrency
    )
}

fn entry_of<'e>(run: &Run, entries: &'e [Overheads]) -> Result<&'e Overheads> {
    entries
        .iter()
        .find(|e| e.engine == run.engine && e.architecture == run.architecture)
        .context("no entry of the run")
}

fn explain(outcomes: &[Outcome<'_>], entries: &[Overheads], words: &[String]) -> Result<()> {
    for o in outcomes {
        let label = label(o.run);
        let parts: Vec<&str> = label.split(' ').collect();
        if !words.iter().all(|w| parts.contains(&w.as_str())) {
            continue;
        }
        let m = &o.run.measured;
        println!(
            "{label}: TPOT {:.2} ms, predicted {:.2}; TTFT {:.0} ms, predicted {:.0}",
            m.tpot_ms,
            m.tpot_ms * o.errors.tpot.exp(),
            m.ttft_ms,
            m.ttft_ms * o.errors.ttft.exp()
        );
        print!("{}", o.run.explain(entry_of(o.run, entries)?)?);
    }
    Ok(())
}
