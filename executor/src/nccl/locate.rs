//! Where `libnccl.so.2` is: the path that the user gave, the system's search path, or
//! a Python environment.

use std::path::{Path, PathBuf};

use crate::loading::{in_packages, python_environments};
use crate::{Error, Result};

/// The file that every NCCL package ships; `libnccl.so` is in development packages only.
pub(crate) const FILE: &str = "libnccl.so.2";

/// Where a library was looked for, and whether it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// This file.
    File(PathBuf),
    /// No file of its own: the dynamic loader is asked for the bare name.
    System,
}

/// Candidates in order of preference. A given path is the only candidate: what the
/// user names is used, or refused with its reason.
///
/// # Errors
/// [`Error::Library`] when the given path holds no NCCL.
pub fn locate(given: Option<&Path>, env: impl Fn(&str) -> Option<String>) -> Result<Vec<Found>> {
    if let Some(path) = given {
        return Ok(vec![Found::File(in_path(path)?)]);
    }
    let mut all = vec![Found::System];
    all.extend(
        python_environments(&env)
            .into_iter()
            .flat_map(|p| in_environment(&p))
            .map(Found::File),
    );
    Ok(all)
}

/// [`locate`] in this process's environment.
///
/// # Errors
/// As [`locate`].
pub fn find(given: Option<&Path>) -> Result<Vec<Found>> {
    locate(given, |name| std::env::var(name).ok())
}

fn in_path(path: &Path) -> Result<PathBuf> {
    if path.is_file() {
        return Ok(path.to_owned());
    }
    let inside = [
        path.join(FILE),
        path.join("lib").join(FILE),
        path.join("nvidia/nccl/lib").join(FILE),
    ];
    inside.into_iter().chain(in_environment(path)).find(|p| p.is_file()).ok_or_else(|| Error::Library {
        library: path.display().to_string(),
        why: format!("there is no {FILE} there; give the file, its folder, or the root of a Python environment"),
    })
}

/// `lib/python3.*/site-packages/nvidia/nccl/lib/libnccl.so.2` under a root.
fn in_environment(root: &Path) -> Vec<PathBuf> {
    in_packages(root, "nvidia/nccl/lib", FILE)
}
