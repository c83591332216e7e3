//! `profiles check`.

use super::add::Staged;
use crate::failure::Failure;
use parplan_profiles::{Library, hf};
use std::path::Path;

pub(super) fn run(library: &Library, path: Option<&Path>) -> Result<String, Failure> {
    let Some(path) = path.or_else(|| library.folder()) else {
        return Err(Failure::unusable(
            "no folder is named and this system has no configuration folder; give one",
        ));
    };
    if path.is_dir() && !path.join("config.json").is_file() {
        let checked = Library::check(path)?;
        let files = if checked == 1 { "file" } else { "files" };
        return Ok(format!("{}: {checked} {files}, no fault\n", path.display()));
    }
    if path.is_dir() || path.extension().is_some_and(|ending| ending == "json") {
        let model = hf::read(path)?;
        return Ok(format!(
            "{}: {}, no fault\n",
            path.display(),
            model.architecture
        ));
    }
    let staged = Staged::read(library, path)?;
    Ok(format!(
        "{}: {} `{}`, no fault\n",
        path.display(),
        staged.kind,
        staged.name
    ))
}
