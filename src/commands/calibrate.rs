//! `calibrate`: measure this machine, fit, and keep what was found.

use crate::args::{CalibrateArgs, recommend_of};
use crate::ask;
use crate::calibration::machine::{Target, target};
use crate::calibration::question::settle;
use crate::calibration::{assemble, measure, report, store};
use crate::failure::Failure;
use crate::files::write_whole;
use crate::output::Style;
use crate::render::Page;
use parplan_executor::jobs::Backend;
use parplan_executor::probes::{ProbesResult, load};
use parplan_planner::calibrate::experiments::{Machine, default_set};
use parplan_profiles::Calibration;
use parplan_profiles::calibration::{Class, Experiment};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Seconds for measuring, where none are given.
const BUDGET_GPU: f64 = 240.0;
const BUDGET_CPU: f64 = 45.0;

/// Measures this machine.
///
/// # Errors
/// A machine that cannot be measured, a file that cannot be written; what was measured is kept.
pub fn run(args: &CalibrateArgs, style: Style) -> Result<String, Failure> {
    let library = ask::library_to_be(args.profiles.as_deref());
    let target = target(args, &library)?;
    let loaded = load();
    let out = place(args, &target)?;
    let journal = store::journal_of(&out);
    let begin = Instant::now();
    let budget = Duration::from_secs_f64(args.budget.unwrap_or(match target.backend {
        Backend::Nccl | Backend::Peer => BUDGET_GPU,
        Backend::Cpu => BUDGET_CPU,
    }));
    let question = match &args.question {
        Some(words) => Some(recommend_of(words)?),
        None => None,
    };
    let mut done = Vec::new();
    let wanted = if args.resume {
        let begun = store::resume(&journal, &target.provenance)?;
        done = begun.samples.iter().map(|s| s.experiment.clone()).collect();
        begun.experiments
    } else {
        refuse_before(&out)?;
        // A question picks its experiments as it goes.
        let wanted = match question {
            Some(_) => Vec::new(),
            None => chosen(args, &target)?,
        };
        store::begin(&journal, &target.provenance, &wanted)?;
        wanted
    };
    let rest: Vec<Experiment> = wanted
        .into_iter()
        .filter(|e| !done.iter().any(|d: &Experiment| d.same(e)))
        .collect();
    let mut results = Vec::new();
    let mut said = Vec::new();
    if let Some(question) = &question {
        let outcome = settle(args, &target, &library, &journal, question, budget)?;
        said.push(format!(
            "{} experiments were run: {}",
            outcome.run, outcome.why
        ));
        said.extend(outcome.verdict);
        results = outcome.results;
        if outcome.run == 0 {
            std::fs::remove_file(&journal).map_err(|e| {
                Failure::failed(format!("{}: cannot be removed: {e}", journal.display()))
            })?;
            let mut page = Page::new(style);
            page.list("Question", &said);
            return Ok(page.finish());
        }
    } else if !rest.is_empty() {
        let libraries = args.libraries();
        results.push(measure::run(&target, &rest, budget, &journal, libraries)?);
    }
    let read = store::samples(&journal)?;
    if read.samples.is_empty() {
        return Err(Failure::failed(format!(
            "nothing could be measured{}; the journal is {}",
            why_nothing(&results),
            journal.display()
        )));
    }
    let name = name_of(&out);
    let found = assemble::calibration(read, &library, &target.gpu, &name, &results, loaded)?;
    let text = found
        .to_toml()
        .map_err(|e| Failure::failed(e.to_string()))?;
    write_whole(&out, &text, true).map_err(|e| kept(&e, &journal))?;
    // The calibration holds all of it now.
    std::fs::remove_file(&journal)
        .map_err(|e| Failure::failed(format!("{}: cannot be removed: {e}", journal.display())))?;
    answer(args, style, &out, &found, &results, &said, begin.elapsed())
}

/// A failure to write the calibration loses nothing: the journal is there.
fn kept(failure: &Failure, journal: &Path) -> Failure {
    Failure::failed(format!(
        "{failure}; every sample is kept in {}: make room, or give another --out, and go on with \
         --resume",
        journal.display()
    ))
}

/// The experiments of this run.
fn chosen(args: &CalibrateArgs, target: &Target) -> Result<Vec<Experiment>, Failure> {
    let set = default_set(Machine {
        ranks: target.ranks,
        gpus: target.backend == Backend::Nccl,
    });
    if args.only.is_empty() {
        return Ok(set);
    }
    let named = |e: &Experiment| {
        let class = Class::of(e).to_string();
        args.only
            .iter()
            .any(|name| class.starts_with(name.as_str()))
    };
    let some: Vec<Experiment> = set.iter().filter(|e| named(e)).cloned().collect();
    if some.is_empty() {
        let mut classes: Vec<String> = set.iter().map(|e| Class::of(e).to_string()).collect();
        classes.sort();
        classes.dedup();
        return Err(Failure::unusable(format!(
            "--only {}: no class here begins so; classes: {}",
            args.only.join(","),
            classes.join(", ")
        )));
    }
    Ok(some)
}

/// Where the calibration goes.
fn place(args: &CalibrateArgs, target: &Target) -> Result<PathBuf, Failure> {
    if let Some(out) = &args.out {
        return Ok(out.clone());
    }
    let folder = store::folder(args.profiles.as_deref()).ok_or_else(|| {
        Failure::unusable("this user has no configuration folder; give --out FILE")
    })?;
    let stem = format!("{}-x{}", target.gpu.name, target.ranks);
    if args.resume {
        return unfinished(&folder, &stem);
    }
    let day = target.provenance.date.split('T').next().unwrap_or("");
    let free = (1..=1000)
        .map(|n| match n {
            1 => folder.join(format!("{stem}-{day}.toml")),
            n => folder.join(format!("{stem}-{day}-{n}.toml")),
        })
        .find(|path| !path.exists());
    free.ok_or_else(|| {
        Failure::unusable(format!(
            "{}: a thousand calibrations of today are there already; give --out FILE",
            folder.display()
        ))
    })
}

/// The calibration whose journal is there.
fn unfinished(folder: &Path, stem: &str) -> Result<PathBuf, Failure> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
            name.starts_with(stem) && name.ends_with(".toml.journal")
        })
        .collect();
    found.sort();
    match found.as_slice() {
        [one] => Ok(one.with_extension("")),
        [] => Err(Failure::unusable(format!(
            "{}: there is no journal of {stem} to go on with; calibrate without --resume, or give --out",
            folder.display()
        ))),
        several => Err(Failure::unusable(format!(
            "{}: {} runs did not end; name one by --out, such as {}",
            folder.display(),
            several.len(),
            several[0].with_extension("").display()
        ))),
    }
}

/// What could not be written at the end is better said at the beginning.
fn refuse_before(out: &Path) -> Result<(), Failure> {
    match std::fs::symlink_metadata(out) {
        Ok(there) if !there.is_file() => Err(Failure::unusable(format!(
            "--out {}: is not a regular file; give the name of a new file",
            out.display()
        ))),
        _ => Ok(()),
    }
}

fn why_nothing(results: &[ProbesResult]) -> String {
    results
        .iter()
        .flat_map(|r| &r.left_out)
        .next()
        .map(|(experiment, why)| format!(": {experiment}: {why}"))
        .unwrap_or_default()
}

/// The name of a calibration is that of its file.
fn name_of(out: &Path) -> String {
    out.file_stem()
        .map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_else(|| "calibration".to_owned())
}

#[derive(Serialize)]
struct Answer<'a> {
    format: u32,
    file: &'a Path,
    seconds: f64,
    over_budget: usize,
    /// How a question of --for ended.
    question: &'a [String],
    left_out: Vec<Left<'a>>,
    calibration: &'a Calibration,
}

#[derive(Serialize)]
struct Left<'a> {
    experiment: String,
    why: &'a str,
}

fn answer(
    args: &CalibrateArgs,
    style: Style,
    out: &Path,
    found: &Calibration,
    results: &[ProbesResult],
    said: &[String],
    took: Duration,
) -> Result<String, Failure> {
    let left_out: Vec<(Experiment, String)> =
        results.iter().flat_map(|r| r.left_out.clone()).collect();
    let over_budget = results.iter().map(|r| r.over_budget).sum();
    if args.json {
        let answer = Answer {
            format: 1,
            file: out,
            seconds: took.as_secs_f64(),
            over_budget,
            question: said,
            left_out: left_out
                .iter()
                .map(|(experiment, why)| Left {
                    experiment: experiment.to_string(),
                    why,
                })
                .collect(),
            calibration: found,
        };
        return serde_json::to_string_pretty(&answer)
            .map(|text| text + "\n")
            .map_err(|e| Failure::failed(format!("the answer does not serialise: {e}")));
    }
    let mut page = Page::new(style);
    if !said.is_empty() {
        page.list("Question", said);
    }
    report::page(&mut page, found, &left_out);
    if over_budget > 0 {
        page.text(&format!(
            "{over_budget} experiments had no time within the budget; a larger --budget runs them"
        ));
    }
    page.heading("Kept");
    page.text(&format!(
        "{} ({:.0} s). Plans for --gpu {} use it from now on where it lies in your profiles' \
         `calibrations`; elsewhere give --calibration {}",
        out.display(),
        took.as_secs_f64(),
        found.provenance.gpu,
        out.display()
    ));
    Ok(page.finish())
}
