//! Names to profiles: the model, the library, the engine's rules.

use super::Assumptions;
use crate::args::{EngineArgs, ModelArgs};
use crate::failure::Failure;
use parplan_profiles::engine::{self, EngineProfile, EngineRules};
use parplan_profiles::library::{MAX_PROFILE_BYTES, read_limited};
use parplan_profiles::{Library, ModelProfile, WeightFormats, hf};
use std::path::{Path, PathBuf};

/// Engine that is planned for when none is named.
const DEFAULT_ENGINE: &str = "sglang";

/// The profiles: the built-in ones, and before them those of the user's folder.
pub fn library(folder: Option<&Path>) -> Library {
    match folder.map(Path::to_path_buf).or_else(user_folder) {
        Some(folder) => Library::with_folder(folder),
        None => Library::embedded(),
    }
}

/// `parplan/profiles` in the platform's configuration folder, which need not exist.
pub fn user_folder() -> Option<PathBuf> {
    dirs::config_dir().map(|dir| dir.join("parplan").join("profiles"))
}

/// The model that was named, by profile or by `config.json`.
pub(super) fn model(library: &Library, args: &ModelArgs) -> Result<ModelProfile, Failure> {
    let model = match as_path(&args.model) {
        Some(path) => hf::read(path)?,
        None => library.model(&args.model)?,
    };
    Ok(match args.weights {
        Some(format) => {
            let embedding = model.weights.embedding;
            model.with_weights(WeightFormats::uniform(format, embedding))
        }
        None => model,
    })
}

/// The path that a model's name is, if it is one: it exists, or it cannot be anything else.
/// `Qwen/Qwen3-8B` is a Hugging Face id even though it has a slash.
pub fn as_path(text: &str) -> Option<&Path> {
    let path = Path::new(text);
    let looks = text.ends_with(".json")
        || text.ends_with('/')
        || path.is_absolute()
        || path.starts_with(".")
        || path.starts_with("..");
    (looks || path.is_dir() || path.is_file()).then_some(path)
}

/// The engine's rules for the version that was named.
pub(super) fn rules(
    library: &Library,
    args: &EngineArgs,
    assumptions: &mut Assumptions,
) -> Result<EngineRules, Failure> {
    let text = args.engine.as_deref().unwrap_or(DEFAULT_ENGINE);
    let profiles = engines(library)?;
    let rules = engine::select(&profiles, text, args.engine_assume)?;
    assumptions.of_engine(args, &rules);
    Ok(rules)
}

/// Every engine profile: those of `engines/*.toml` in the user's folder, then the built-in ones.
///
/// # Errors
/// A file of the user's folder that cannot be read.
pub fn engines(library: &Library) -> Result<Vec<EngineProfile>, Failure> {
    let mut profiles = Vec::new();
    if let Some(folder) = library.folder().map(|folder| folder.join("engines")) {
        for file in toml_files(&folder)? {
            let text = read_limited(&file, MAX_PROFILE_BYTES)?;
            profiles.push(EngineProfile::from_toml(&text, &file.display().to_string())?);
        }
    }
    for built_in in engine::embedded()? {
        if !profiles.iter().any(|mine| mine.name == built_in.name) {
            profiles.push(built_in);
        }
    }
    Ok(profiles)
}

/// The `.toml` files of a folder in order of name; none where there is no folder.
fn toml_files(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let cannot = |error: std::io::Error| {
        Failure::unusable(format!("{}: cannot be listed: {error}", folder.display()))
    };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(cannot(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(cannot)?.path();
        if path.extension().is_some_and(|ending| ending == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::as_path;

    #[test]
    fn a_hugging_face_id_is_no_path() {
        for name in ["deepseek-v3", "Qwen/Qwen3-8B", "meta-llama/Llama-3.1-70B"] {
            assert_eq!(as_path(name), None, "{name}");
        }
        for path in ["./config.json", "/models/x", "some/config.json", "folder/", "../x", "."] {
            assert!(as_path(path).is_some(), "{path}");
        }
    }
}
