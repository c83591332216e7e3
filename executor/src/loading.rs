//! Shared libraries that the user's machine has: where Python packages keep them, the first
//! that loads, and how their versions are written.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A version as NCCL and cuBLASLt say it: major · 10000 + minor · 100 + patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Version(v) = self;
        write!(f, "{}.{}.{}", v / 10_000, v / 100 % 100, v % 100)
    }
}

/// Loads the first of `names` (files, or bare names for the system's search path) that the
/// loader takes, and says which it was. `how` says what to do when there is none.
///
/// # Safety
/// A library's initialisers run: `names` must be of libraries whose initialisers only set
/// up their own state.
///
/// # Errors
/// [`Error::Library`] with every name that was tried and why it was not taken.
pub(crate) unsafe fn first_that_loads(
    library: &str,
    names: impl IntoIterator<Item = String>,
    how: &str,
) -> Result<(libloading::Library, String)> {
    let mut tried = Vec::new();
    for name in names {
        // SAFETY: the caller vouches for what `names` name.
        match unsafe { libloading::Library::new(&name) } {
            Ok(library) => return Ok((library, name)),
            Err(e) => tried.push(format!("{name} ({})", reason(&e))),
        }
    }
    Err(Error::Library {
        library: library.to_owned(),
        why: format!("not found; tried {}; {how}", tried.join(", ")),
    })
}

/// The loader's reason without the name, which is said already.
fn reason(e: &libloading::Error) -> String {
    let text = std::error::Error::source(e).map_or_else(|| e.to_string(), ToString::to_string);
    text.split_once(": ")
        .map_or(text.clone(), |(_, rest)| rest.to_owned())
}

/// Roots of the Python environments in use: the activated ones, and that of `python3`.
pub(crate) fn python_environments(env: &impl Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"]
        .iter()
        .filter_map(|n| env(n))
        .map(PathBuf::from)
        .collect();
    let on_path = env("PATH").into_iter().flat_map(|path| {
        path.split(':')
            .map(|folder| Path::new(folder).join("python3"))
            .filter(|p| p.is_file())
            .collect::<Vec<_>>()
    });
    // bin/python3 → the environment around it; no interpreter is run.
    roots.extend(on_path.filter_map(|p| Some(p.parent()?.parent()?.to_owned())));
    roots
}

/// `file` of the Python package folder `package`, wherever the environment at `root` has it.
pub(crate) fn in_packages(root: &Path, package: &str, file: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(root.join("lib")) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with("python3"))
        .flat_map(|e| {
            ["site-packages", "dist-packages"].map(|s| e.path().join(s).join(package).join(file))
        })
        .filter(|p| p.is_file())
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_people_write_them() {
        assert_eq!(Version(130_100).to_string(), "13.1.0");
        assert_eq!(Version(22_803).to_string(), "2.28.3");
    }

    #[test]
    fn what_was_tried_is_told_once_each_with_the_reason_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("libnot.so");
        std::fs::write(&file, "not a library").unwrap();
        let names = [file.display().to_string(), "libnowhere.so.7".to_owned()];
        // SAFETY: neither is a library.
        let error = unsafe { first_that_loads("It", names.clone(), "install it") }
            .unwrap_err()
            .to_string();
        for name in &names {
            assert_eq!(error.matches(name.as_str()).count(), 1, "{error}");
        }
        assert!(error.contains("file too short"), "{error}");
        assert!(error.ends_with("; install it"), "{error}");
    }
}
