//! `cargo xtask calibrations`: shipped calibrations in the form in which plans read them fast.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use parplan_profiles::Calibration;
use parplan_profiles::calibration::SAMPLES_FOLDER;

/// What to do.
#[derive(clap::Args)]
pub struct Arguments {
    /// Fail when a calibration of profiles/data/calibrations holds samples that no plan needs.
    #[arg(long)]
    check: bool,
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
