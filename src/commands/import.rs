//! `import`: results of other tools as calibrations and observed runs.

use crate::args::ImportArgs;
use crate::ask;
use crate::calibration::{assemble, report, store};
use crate::failure::Failure;
use crate::files::write_whole;
use crate::import::{Hints, Imported, read};
use crate::output::Style;
use crate::render::table::Table;
use crate::render::{Page, number};
use parplan_profiles::calibration::{Journal, Measured, Provenance, Sample};
use parplan_profiles::observed::{ObservedRun, ObservedRuns};
use parplan_profiles::{Calibration, GpuProfile, Library};
use std::path::Path;

/// Reads files of other tools.
///
/// # Errors
/// A file of no known kind, files of both kinds at once, or an output that cannot be written.
pub fn run(args: &ImportArgs, style: Style) -> Result<String, Failure> {
    let hints = Hints {
        collective: args.collective,
        registration: args.registration,
    };
    let mut samples: Vec<Measured> = Vec::new();
    let mut runs: Vec<ObservedRun> = Vec::new();
    let mut facts = Provenance::default();
    let mut left = Vec::new();
    if let [one] = args.files.as_slice()
        && one.extension().is_some_and(|end| end == "toml")
    {
        return again(args, style, store::read(one)?);
    }
    for path in &args.files {
        match read(path, &store::text(path)?, hints)? {
            Imported::Runs(more) => runs.extend(more),
            Imported::Samples {
                samples: more,
                device,
                nccl,
                date,
                notes,
            } => {
                one(&mut facts.device, device, "devices", path)?;
                if let Some(nccl) = nccl {
                    facts.nccl = nccl;
                }
                if let Some(date) = date {
                    facts.date = date;
                }
                left.extend(notes);
                merge(&mut samples, more);
            }
        }
    }
    match (samples.is_empty(), runs.is_empty()) {
        (false, true) => calibrate(args, style, samples, facts, &left),
        (true, false) => observed(args, style, runs),
        _ => Err(Failure::unusable(
            "the files hold collectives and serving runs: import them apart, each into its own --out",
        )),
    }
}

/// The samples of a calibration, fitted by the formulas of this parplan.
fn again(args: &ImportArgs, style: Style, before: Calibration) -> Result<String, Failure> {
    let library: Library = ask::library_to_be(args.profiles.as_deref());
    let gpu = library.gpu(args.gpu.as_deref().unwrap_or(&before.provenance.gpu))?;
    let mut facts = before.provenance;
    facts.gpu = gpu.name.clone();
    let measured = |s: Sample| Measured {
        experiment: s.experiment,
        implementation: s.implementation,
        repeats: s.repeats,
        anchor_us: s.anchor_us,
        // What was said of outliers is said again.
        remarks: s
            .remarks
            .into_iter()
            .filter(|text| !text.contains("are outliers"))
            .collect(),
    };
    let journal = Journal {
        provenance: facts,
        experiments: Vec::new(),
        samples: before.samples.into_iter().map(measured).collect(),
        whole_bytes: 0,
    };
    fitted(args, style, journal, &gpu, &[])
}

/// All files must agree.
fn one(known: &mut String, said: Option<String>, what: &str, path: &Path) -> Result<(), Failure> {
    match said {
        Some(said) if known.is_empty() => *known = said,
        Some(said) if *known != said => {
            return Err(Failure::unusable(format!(
                "{}: is of '{said}', the files before it of '{known}'; {what} are imported apart",
                path.display()
            )));
        }
        _ => {}
    }
    Ok(())
}

/// The same experiment again is another repeat of it.
fn merge(all: &mut Vec<Measured>, more: Vec<Measured>) {
    for sample in more {
        match all.iter_mut().find(|s| {
            s.experiment.same(&sample.experiment) && s.implementation == sample.implementation
        }) {
            Some(known) => known.repeats.extend(sample.repeats),
            None => all.push(sample),
        }
    }
}

fn calibrate(
    args: &ImportArgs,
    style: Style,
    samples: Vec<Measured>,
    mut facts: Provenance,
    left: &[String],
) -> Result<String, Failure> {
    let library: Library = ask::library_to_be(args.profiles.as_deref());
    let name = args.gpu.clone().unwrap_or_else(|| facts.device.clone());
    if name.is_empty() {
        return Err(Failure::unusable(
            "the files do not name the GPU; give --gpu NAME",
        ));
    }
    let gpu = library.gpu(&name)?;
    facts.gpu = gpu.name.clone();
    facts.count = samples
        .iter()
        .map(|s| s.experiment.ranks)
        .max()
        .unwrap_or(1);
    facts.backend = "nccl".to_owned();
    facts.measured_by = "imported".to_owned();
    if let Some(date) = &args.date {
        facts.date.clone_from(date);
    }
    if facts.date.is_empty() {
        return Err(Failure::unusable(
            "the files do not say when they were measured; give --date, such as 2026-11-22",
        ));
    }
    if let Some(topology) = &args.topology {
        facts.topology.clone_from(topology);
    }
    let journal = Journal {
        provenance: facts,
        experiments: Vec::new(),
        samples,
        whole_bytes: 0,
    };
    fitted(args, style, journal, &gpu, left)
}

/// Fits the samples of a journal, shows what came of it and keeps it.
fn fitted(
    args: &ImportArgs,
    style: Style,
    journal: Journal,
    gpu: &GpuProfile,
    left: &[String],
) -> Result<String, Failure> {
    let library: Library = ask::library_to_be(args.profiles.as_deref());
    let stem = args.out.as_deref().and_then(Path::file_stem).map_or_else(
        || "imported".to_owned(),
        |s| s.to_string_lossy().into_owned(),
    );
    let found = assemble::calibration(journal, &library, gpu, &stem, &[], None)?;
    let text = found
        .to_toml()
        .map_err(|e| Failure::failed(e.to_string()))?;
    if let Some(out) = &args.out {
        write_whole(out, &text, true)?;
    }
    if args.json {
        return serde_json::to_string_pretty(&found)
            .map(|text| text + "\n")
            .map_err(|e| Failure::failed(e.to_string()));
    }
    let mut page = Page::new(style);
    report::page(&mut page, &found, &[]);
    if !left.is_empty() {
        page.list("Not taken", left);
    }
    kept(&mut page, args);
    Ok(page.finish())
}

fn observed(args: &ImportArgs, style: Style, runs: Vec<ObservedRun>) -> Result<String, Failure> {
    let all = ObservedRuns { schema: 1, runs };
    if let Some(out) = &args.out {
        let text = toml::to_string(&all)
            .map_err(|e| Failure::failed(format!("the runs do not serialise: {e}")))?;
        write_whole(out, &text, true)?;
    }
    if args.json {
        return serde_json::to_string_pretty(&all)
            .map(|text| text + "\n")
            .map_err(|e| Failure::failed(e.to_string()));
    }
    let mut page = Page::new(style);
    page.heading("Observed runs");
    let mut table = Table::new(&[
        "tool",
        ">clients",
        ">input",
        ">output",
        ">TTFT ms",
        ">TPOT ms",
        ">tokens/s",
        "model",
    ]);
    let or_none = |x: Option<f64>| x.map_or_else(|| "-".to_owned(), number::short);
    for run in &all.runs {
        table.row([
            run.tool.clone(),
            or_none(run.concurrency),
            or_none(run.isl),
            or_none(run.osl),
            number::short(run.ttft_ms),
            number::short(run.tpot_ms),
            number::short(run.output_tokens_per_s),
            run.model.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    page.table(&table);
    kept(&mut page, args);
    Ok(page.finish())
}

fn kept(page: &mut Page, args: &ImportArgs) {
    match &args.out {
        Some(out) => page.text(&format!("kept in {}", out.display())),
        None => page.text("nothing was kept; --out FILE keeps it"),
    }
}
