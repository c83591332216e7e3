//! `cargo xtask calibrations`: shipped calibrations in the form in which plans read them fast.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use parplan_planner::calibrate::terms;
use parplan_profiles::calibration::SAMPLES_FOLDER;
use parplan_profiles::{Calibration, EfficiencyProfile, Library, Overheads};

/// What to do.
#[derive(clap::Args)]
pub struct Arguments {
    /// Fail when a calibration of profiles/data/calibrations holds samples that no plan needs.
    #[arg(long)]
    check: bool,
    /// Fit the terms of these classes (the beginning of their names, such as all_gather.symmetric)
    /// again from the samples, after their formula changed.
    #[arg(
        long,
        value_name = "CLASS",
        value_delimiter = ',',
        conflicts_with = "check"
    )]
    fit_again: Vec<String>,
}

/// Moves the samples that no plan needs out of every calibration of `profiles/data/calibrations`, into a
/// file of the same name in its `samples` folder.
pub fn run(arguments: &Arguments) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the workspace root")?
        .join("profiles/data/calibrations");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .with_context(|| format!("reading {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "toml"))
        .collect();
    files.sort();
    if !arguments.fit_again.is_empty() {
        return fit_again(&files, &arguments.fit_again);
    }
    for path in files {
        let shown = path.display();
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {shown}"))?;
        let mut calibration = Calibration::from_toml(&shown.to_string(), &text)?;
        let Some(samples) = calibration.take_fitted_samples()? else {
            continue;
        };
        if arguments.check {
            bail!("{shown} holds samples that no plan needs: run 'cargo xtask calibrations'");
        }
        let beside = folder
            .join(SAMPLES_FOLDER)
            .join(format!("{}.toml", calibration.name));
        if beside.exists() {
            bail!(
                "{shown} holds samples, and so does {}: remove the one that is old",
                beside.display()
            );
        }
        // The samples first: a calibration that lost them could not be fitted again.
        write(&beside, &samples)?;
        write(&path, &calibration.to_toml()?)?;
        println!("{shown}: samples moved to {}", beside.display());
    }
    Ok(())
}

/// Replaces the terms of `classes` by what all samples of their file are fitted to.
fn fit_again(files: &[PathBuf], classes: &[String]) -> Result<()> {
    let mut unmet: Vec<&String> = classes.iter().collect();
    for path in files {
        let shown = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {shown}"))?;
        let mut calibration = Calibration::from_toml(&shown.to_string(), &text)?;
        let gpu = Library::embedded().gpu(&calibration.provenance.gpu)?;
        let efficiency = EfficiencyProfile::embedded("builtin", &gpu)
            .with_context(|| format!("no figures of the builtin engine on {}", gpu.name))?;
        let overheads = Overheads::embedded("builtin", &gpu)
            .with_context(|| format!("no overheads of the builtin engine on {}", gpu.name))?;
        let samples = calibration.clone().with_all_samples()?.samples;
        let fitted = terms(&gpu, efficiency, overheads, &samples);
        let mut changed = Vec::new();
        for term in &mut calibration.terms {
            let name = term.class.to_string();
            let again = fitted.iter().find(|new| new.class == term.class);
            if let Some(new) = again
                && classes.iter().any(|c| name.starts_with(c.as_str()))
            {
                let error =
                    |t: &parplan_profiles::calibration::Term| 100.0 * t.leave_one_out.median;
                unmet.retain(|class| !name.starts_with(class.as_str()));
                changed.push(format!("{name} {:.1} → {:.1} %", error(term), error(new)));
                *term = new.clone();
            }
        }
        if !changed.is_empty() {
            write(path, &calibration.to_toml()?)?;
            println!("{shown}: {} (left out)", changed.join(", "));
        }
    }
    if let [first, ..] = unmet.as_slice() {
        bail!("no term of a shipped calibration that can be fitted is called {first}…");
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("creating {}", folder.display()))?;
    }
    let whole = path.with_extension("toml.new");
    std::fs::write(&whole, text)
        .and_then(|()| std::fs::rename(&whole, path))
        .with_context(|| format!("writing {}", path.display()))
}
