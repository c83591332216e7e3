//! `profiles add`: a profile is checked among yours before it becomes one of them.

use crate::failure::Failure;
use crate::files::write_whole;
use parplan_profiles::library::{MAX_PROFILE_BYTES, read_limited};
use parplan_profiles::{Fault, Faults, Library, hf};
use std::path::{Path, PathBuf};

pub(super) fn run(
    library: &Library,
    file: &Path,
    name: Option<&str>,
    replace: bool,
) -> Result<String, Failure> {
    let is_toml = file.extension().is_some_and(|ending| ending == "toml");
    let staged = match (is_toml, name) {
        (true, None) => Staged::read(library, file)?,
        (true, Some(_)) => {
            return Err(Failure::unusable(
                "--name renames a config.json only; a TOML profile has its name in it",
            ));
        }
        (false, name) => Staged::of_config(library, file, name)?,
    };
    place(library, &staged, replace)
}

/// Writes a profile into the user's folder, and says where.
///
/// # Errors
/// No folder, or a profile of that name in it already.
pub(super) fn place(library: &Library, staged: &Staged, replace: bool) -> Result<String, Failure> {
    let Some(folder) = library.folder() else {
        return Err(Failure::unusable(
            "this system has no configuration folder; say where your profiles are with --profiles",
        ));
    };
    let place = folder
        .join(staged.folder)
        .join(format!("{}.toml", staged.name));
    if place.exists() && !replace {
        return Err(Failure::unusable(format!(
            "{}: exists already; --replace replaces it",
            place.display()
        )));
    }
    write_whole(&place, &staged.text, replace)?;
    Ok(format!(
        "{}: {} `{}`\n",
        place.display(),
        staged.kind,
        staged.name
    ))
}

/// A profile that was found to be without fault.
#[derive(Debug)]
pub(super) struct Staged {
    /// What it is, in words.
    pub(super) kind: &'static str,
    /// The folder of its kind.
    folder: &'static str,
    /// Its name.
    pub(super) name: String,
    text: String,
}

/// Kinds by a key that only they have.
const KINDS: [(&str, &str, &str); 5] = [
    ("memory_mib", "gpus", "GPU"),
    ("dialect", "engines", "engine"),
    ("hidden_size", "models", "model"),
    ("base", "models", "model"),
    ("input", "workloads", "workload"),
];

impl Staged {
    /// Reads and checks a TOML profile of any kind.
    pub(super) fn read(library: &Library, file: &Path) -> Result<Staged, Failure> {
        let text = read_limited(file, MAX_PROFILE_BYTES)?;
        Staged::check(library, file, text)
    }

    /// Reads a `config.json` and makes a profile of it.
    fn of_config(library: &Library, file: &Path, name: Option<&str>) -> Result<Staged, Failure> {
        let mut model = hf::read(file)?;
        if let Some(name) = name {
            name.clone_into(&mut model.name);
        }
        let text = toml::to_string(&model)
            .map_err(|error| Failure::failed(format!("{}: {error}", file.display())))?;
        Staged::check(library, file, text)
    }

    /// Checks a text that was made here.
    pub(super) fn of_text(library: &Library, shown: &str, text: String) -> Result<Staged, Failure> {
        Staged::check(library, Path::new(shown), text)
    }

    fn check(library: &Library, file: &Path, text: String) -> Result<Staged, Failure> {
        let shown = file.display().to_string();
        let fault = |message: &str| Failure::from(Fault::whole(shown.clone(), message));
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map_or(1, |span| {
                text.get(..span.start).unwrap_or("").matches('\n').count() + 1
            });
            Failure::unusable(format!("{shown}:{line}: {}", error.message()))
        })?;
        let (_, folder, kind) = KINDS
            .into_iter()
            .find(|(key, ..)| table.contains_key(*key))
            .ok_or_else(|| {
                fault(
                    "is no profile: a model has hidden_size or base, a GPU memory_mib, an engine \
                     dialect, a workload input",
                )
            })?;
        let name = table
            .get("name")
            .and_then(toml::Value::as_str)
            .ok_or_else(|| fault("has no name"))?;
        if !is_file_name(name) {
            return Err(fault(
                "has a name that cannot be a file's; use letters, digits, '-', '_' and '.'",
            ));
        }
        let name = name.to_owned();
        stage(library, folder, &name, &text, &shown)?;
        Ok(Staged {
            kind,
            folder,
            name,
            text,
        })
    }
}

fn is_file_name(name: &str) -> bool {
    (1..=80).contains(&name.len())
        && !name.starts_with('.')
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// Checks a text among the profiles that it may build on, in a folder of its own.
fn stage(
    library: &Library,
    kind: &str,
    name: &str,
    text: &str,
    shown: &str,
) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        Failure::failed(format!("a temporary folder cannot be used: {error}"))
    };
    let scratch = tempfile::tempdir().map_err(failed)?;
    let folder = scratch.path().join(kind);
    std::fs::create_dir_all(&folder).map_err(failed)?;
    if let Some(mine) = library.folder().map(|mine| mine.join(kind)) {
        for path in existing(&mine) {
            if let Some(file) = path.file_name() {
                // A file that cannot be read is no base of this one; `check` names it.
                let _ = std::fs::copy(&path, folder.join(file));
            }
        }
    }
    let place = folder.join(format!("{name}.toml"));
    std::fs::write(&place, text).map_err(failed)?;
    let placed = place.display().to_string();
    match Library::check(scratch.path()) {
        Ok(_) => Ok(()),
        Err(Faults(faults)) => {
            let own: Vec<Fault> = faults
                .into_iter()
                .filter(|fault| fault.file.as_deref() == Some(placed.as_str()))
                .map(|fault| fault.in_file(shown))
                .collect();
            Faults::or_ok(own).map_err(Failure::from)
        }
    }
}

/// Small TOML files of a folder; none where it cannot be listed.
fn existing(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "toml"))
        .filter(|path| {
            path.metadata()
                .is_ok_and(|about| about.is_file() && about.len() <= MAX_PROFILE_BYTES)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside_their_folder() {
        for name in ["qwen3-8b", "GLM_4.5"] {
            assert!(is_file_name(name), "{name}");
        }
        for name in ["", "../x", "a/b", ".hidden", "a b", "a\nb"] {
            assert!(!is_file_name(name), "{name}");
        }
    }
}
