//! Where calibrations lie, and the journal of one that is being measured.

use crate::failure::Failure;
use parplan_profiles::calibration::{Experiment, Journal, Provenance};
use parplan_profiles::library::read_limited;
use parplan_profiles::{Calibration, GpuProfile};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// The largest calibration that is read: thousands of samples are a few MiB.
const MOST_BYTES: u64 = 64 << 20;

/// The folder of a user's calibrations, which need not exist.
pub fn folder(profiles: Option<&Path>) -> Option<PathBuf> {
    profiles
        .map(Path::to_path_buf)
        .or_else(crate::ask::user_folder)
        .map(|folder| folder.join("calibrations"))
}

/// Reads one calibration.
///
/// # Errors
/// A file that is not there, too large, or no calibration of this schema.
pub fn read(path: &Path) -> Result<Calibration, Failure> {
    let text = text(path)?;
    Calibration::from_toml(&path.display().to_string(), &text)
        .map_err(|error| Failure::unusable(error.to_string()))
}

/// The text of a file of bounded size.
///
/// # Errors
/// A file that is not there, no regular file, or too large.
pub fn text(path: &Path) -> Result<String, Failure> {
    Ok(read_limited(path, MOST_BYTES)?)
}

/// The user's calibrations of a GPU, in order of file name; those of other GPUs are passed over.
///
/// # Errors
/// A file in the folder that is no calibration.
pub fn of_gpu(
    profiles: Option<&Path>,
    gpu: &GpuProfile,
) -> Result<Vec<(PathBuf, Calibration)>, Failure> {
    let Some(folder) = folder(profiles) else {
        return Ok(Vec::new());
    };
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(Failure::unusable(format!(
                "{}: cannot be read: {error}",
                folder.display()
            )));
        }
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "toml"))
        .collect();
    paths.sort();
    let mut out = Vec::new();
    for path in paths {
        let calibration = read(&path)?;
        if calibration.provenance.gpu == gpu.name {
            out.push((path, calibration));
        }
    }
    Ok(out)
}

/// The journal beside a calibration's file.
pub fn journal_of(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".journal");
    PathBuf::from(name)
}

/// Begins a journal.
///
/// # Errors
/// One that is there already, or a folder that cannot be written to.
pub fn begin(
    path: &Path,
    provenance: &Provenance,
    experiments: &[Experiment],
) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| {
        Failure::failed(format!(
            "{}: cannot be written: {error}; nothing was measured",
            path.display()
        ))
    };
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(cannot)?;
    }
    let head = Journal::head(provenance, experiments)
        .map_err(|e| Failure::failed(format!("the journal cannot be begun: {e}")))?;
    let mut file = match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(Failure::unusable(format!(
                "{} is the journal of a run that did not end: go on with it by --resume, or remove it",
                path.display()
            )));
        }
        Err(error) => return Err(cannot(error)),
    };
    let written = file
        .write_all(head.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| sync_folder(path));
    written.map_err(|error| {
        // Half a journal would only be in the way of the next run.
        let _ = std::fs::remove_file(path);
        cannot(error)
    })
}

/// Reads a journal to go on with, and cuts off a line that a kill left half written.
///
/// # Errors
/// None there, one of another machine, or one that is damaged.
pub fn resume(path: &Path, now: &Provenance) -> Result<Journal, Failure> {
    let about = |why: String| Failure::unusable(format!("{}: {why}", path.display()));
    if !path.exists() {
        return Err(about(
            "there is no journal to go on with; calibrate without --resume".to_owned(),
        ));
    }
    let journal = Journal::read(&text(path)?).map_err(|e| about(e.to_string()))?;
    let then = &journal.provenance;
    for (what, then, now) in [
        ("GPU profile", &then.gpu, &now.gpu),
        ("device", &then.device, &now.device),
        ("backend", &then.backend, &now.backend),
        ("driver", &then.driver, &now.driver),
    ] {
        if then != now {
            return Err(about(format!(
                "was begun on another machine: its {what} is '{then}', here it is '{now}'; nothing \
                 was changed"
            )));
        }
    }
    if then.count != now.count {
        return Err(about(format!(
            "was begun with {} ranks; give --ranks {}",
            then.count, then.count
        )));
    }
    let cut = OpenOptions::new().write(true).open(path).and_then(|file| {
        file.set_len(journal.whole_bytes as u64)?;
        file.sync_all()
    });
    cut.map_err(|e| Failure::failed(format!("{}: cannot be written: {e}", path.display())))?;
    Ok(journal)
}

/// The samples of a journal.
///
/// # Errors
/// One that cannot be read any more.
pub fn samples(path: &Path) -> Result<Journal, Failure> {
    Journal::read(&text(path)?).map_err(|e| Failure::failed(format!("{}: {e}", path.display())))
}

/// Makes a new or removed name in a folder durable.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}
