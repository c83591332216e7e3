//! The model can be read by the engine.

use super::{Start, Verdict, is_builtin};
use crate::ask::{as_path, hub};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Endings of files that hold weights.
const WEIGHTS: [&str; 4] = ["safetensors", "bin", "pt", "gguf"];

pub(super) fn check(start: &Start) -> Verdict {
    if is_builtin(start) {
        return Verdict::Passed("it runs on weights of its own making".to_owned());
    }
    let model = &start.spec.model;
    match as_path(model) {
        Some(path) => local(path),
        None => remote(model),
    }
}

fn local(path: &Path) -> Verdict {
    let shown = path.display();
    let failed = |why: String| Verdict::Failed(format!("{why}; give its folder with --model-path"));
    let folder = match std::fs::read_dir(path) {
        Ok(folder) => folder,
        Err(error) => return failed(format!("{shown} cannot be read: {error}")),
    };
    if let Err(error) = File::open(path.join("config.json")) {
        return failed(format!(
            "{shown} has no config.json that can be read: {error}"
        ));
    }
    let weights: Vec<PathBuf> = folder
        .flatten()
        .map(|entry| entry.path())
        .filter(|file| {
            file.extension()
                .is_some_and(|ending| WEIGHTS.iter().any(|known| ending == *known))
        })
        .collect();
    for file in &weights {
        if let Err(error) = File::open(file) {
            return failed(format!("{} cannot be read: {error}", file.display()));
        }
    }
    match weights.len() {
        0 => failed(format!(
            "{shown} holds no weights (.{})",
            WEIGHTS.join(", .")
        )),
        count => Verdict::Passed(format!("{shown}, {count} files of weights")),
    }
}

/// A repository's name: the engine fetches it, or finds it where it was fetched before.
fn remote(model: &str) -> Verdict {
    let offline = |name| std::env::var(name).is_ok_and(|value| value == "1" || value == "true");
    match hub::folder(model) {
        Some(folder) => Verdict::Passed(format!("{model}, fetched before to {}", folder.display())),
        _ if offline("HF_HUB_OFFLINE") || offline("TRANSFORMERS_OFFLINE") => {
            Verdict::Failed(format!(
                "{model} was not fetched before, and HF_HUB_OFFLINE forbids to fetch it; give a \
                 folder with --model-path"
            ))
        }
        _ => Verdict::Passed(format!("{model} is no folder here: the engine fetches it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_a_model_when_it_has_both_parts() {
        let folder = tempfile::tempdir().unwrap();
        let says = |part: &str| match local(folder.path()) {
            Verdict::Passed(text) | Verdict::Failed(text) | Verdict::Skipped(text) => {
                assert!(text.contains(part), "{text}");
            }
        };
        says("no config.json");
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        says("no weights");
        std::fs::write(folder.path().join("model.safetensors"), "").unwrap();
        says("1 files of weights");
        assert!(matches!(
            local(Path::new("/nowhere/at/all")),
            Verdict::Failed(_)
        ));
    }
}
