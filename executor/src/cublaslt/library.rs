//! A located and loaded cuBLASLt: version checked, results turned into errors.

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::sys::{self, Status, Symbols};
use crate::loading::{Version, first_that_loads, in_packages, python_environments};
use crate::{Error, Result};

/// The files, newest first, and the Python package that ships each.
const FILES: [(&str, &str); 2] = [
    ("libcublasLt.so.13", "nvidia/cu13/lib"),
    ("libcublasLt.so.12", "nvidia/cublas/lib"),
];

/// The oldest accepted: fp8 products and the layout of the heuristics' result as here.
pub const MINIMUM: Version = Version(120_000);

/// cuBLASLt, loaded for the rest of the process's life.
pub struct Library {
    symbols: Symbols,
    version: Version,
    path: String,
    // Last: dropped after the symbols that point into it.
    _library: libloading::Library,
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cuBLASLt {} ({})", self.version, self.path)
    }
}

/// Where it may be, best first: the given file, folder or Python environment alone; else
/// the system's search path, then the Python environments in use.
fn candidates(given: Option<&Path>, env: &impl Fn(&str) -> Option<String>) -> Result<Vec<PathBuf>> {
    let inside = |root: &Path| -> Vec<PathBuf> {
        let mut all = Vec::new();
        for (file, package) in FILES {
            all.extend([
                root.join(file),
                root.join("lib").join(file),
                root.join("lib64").join(file),
            ]);
            all.extend(in_packages(root, package, file));
        }
        all.retain(|p| p.is_file());
        all
    };
    match given {
        Some(path) if path.is_file() => Ok(vec![path.to_owned()]),
        Some(path) => match inside(path) {
            none if none.is_empty() => Err(Error::Library {
                library: path.display().to_string(),
                why: format!(
                    "there is no {} or {} there; give the file, its folder, or the root of a Python environment",
                    FILES[0].0, FILES[1].0
                ),
            }),
            found => Ok(found),
        },
        None => {
            let mut all: Vec<PathBuf> = FILES.iter().map(|(f, _)| PathBuf::from(f)).collect();
            all.extend(
                python_environments(env)
                    .iter()
                    .flat_map(|root| inside(root)),
            );
            Ok(all)
        }
    }
}

impl Library {
    /// Loads cuBLASLt from `given` (a file, its folder, or a Python environment), or else
    /// from the system's search path, or else from the Python environment in use.
    ///
    /// # Errors
    /// [`Error::Library`]: not found (and where it was looked for), too old, or the
    /// names of the symbols that it lacks.
    pub fn open(given: Option<&Path>) -> Result<Arc<Self>> {
        let names = candidates(given, &|n| std::env::var(n).ok())?
            .into_iter()
            .map(|path| path.display().to_string());
        let how = "install it (pip install nvidia-cublas) or name it with --cublas-path";
        // SAFETY: cuBLASLt's initialisers only set up its own state.
        let (library, name) = unsafe { first_that_loads("cuBLASLt", names, how) }?;
        Self::check(library, &name)
    }

    fn check(library: libloading::Library, name: &str) -> Result<Arc<Self>> {
        let fail = |why: String| Error::Library {
            library: name.to_owned(),
            why,
        };
        // SAFETY: the file is what the user or the system calls cuBLASLt.
        let symbols = unsafe { Symbols::load(&library) }.map_err(|missing| {
            fail(format!(
                "it lacks {}; cuBLAS {MINIMUM} or newer has them",
                missing.join(", ")
            ))
        })?;
        // SAFETY: takes nothing and returns a number.
        let code = unsafe { (symbols.get_version)() };
        let Ok(version) = u32::try_from(code).map(Version) else {
            return Err(fail(format!("cublasLtGetVersion says {code}")));
        };
        if version < MINIMUM {
            return Err(fail(format!(
                "it is cuBLAS {version}, {MINIMUM} or newer is needed"
            )));
        }
        Ok(Arc::new(Library {
            symbols,
            version,
            path: name.to_owned(),
            _library: library,
        }))
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The file or name that it was loaded from.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn symbols(&self) -> &Symbols {
        &self.symbols
    }

    /// Turns a status into an error with the library's own words.
    pub(super) fn ok(&self, call: impl FnOnce() -> String, status: Status) -> Result<()> {
        if status == sys::SUCCESS {
            return Ok(());
        }
        // SAFETY: returns a static C string, or null.
        let text = unsafe { (self.symbols.status_string)(status) };
        let words = if text.is_null() {
            String::new()
        } else {
            // SAFETY: not null, and static.
            unsafe { CStr::from_ptr(text) }
                .to_string_lossy()
                .into_owned()
        };
        Err(Error::Cublas {
            call: call(),
            why: format!("{words} (status {})", status.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_folder_is_searched_and_an_empty_one_refused_by_name() {
        let root = tempfile::tempdir().unwrap();
        let none = |_: &str| None;
        let error = candidates(Some(root.path()), &none)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("libcublasLt.so.13") && error.contains("Python environment"),
            "{error}"
        );
        let package = root
            .path()
            .join("lib/python3.12/site-packages/nvidia/cu13/lib");
        std::fs::create_dir_all(&package).unwrap();
        let file = package.join("libcublasLt.so.13");
        std::fs::write(&file, "not a library").unwrap();
        let found = candidates(Some(root.path()), &none).unwrap();
        assert_eq!(found, std::slice::from_ref(&file));
        let found = candidates(Some(&file), &none).unwrap();
        assert_eq!(found, std::slice::from_ref(&file));
        let error = Library::open(Some(&file)).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("--cublas-path"), "{error}");
        let home = root.path().display().to_string();
        let active = move |n: &str| (n == "VIRTUAL_ENV").then(|| home.clone());
        assert_eq!(candidates(None, &active).unwrap().last(), Some(&file));
    }
}
