//! Models that Hugging Face's client fetched to this machine before.

use std::path::{Path, PathBuf};

/// The folder of a repository's copies, where there is one: `models--ORGANISATION--NAME`.
pub fn folder(repository: &str) -> Option<PathBuf> {
    inside(&cache()?, repository)
}

/// The `config.json` of the copy that is in use: the commit that `refs/main` names, or else the
/// newest one that has a configuration.
pub fn config(repository: &str) -> Option<PathBuf> {
    config_of(&folder(repository)?)
}

fn inside(cache: &Path, repository: &str) -> Option<PathBuf> {
    let folder = cache.join(format!("models--{}", repository.replace('/', "--")));
    folder.is_dir().then_some(folder)
}

fn config_of(folder: &Path) -> Option<PathBuf> {
    let snapshots = folder.join("snapshots");
    let named = std::fs::read_to_string(folder.join("refs").join("main")).ok();
    let in_use = named
        .map(|commit| snapshots.join(commit.trim()).join("config.json"))
        .filter(|config| config.is_file());
    in_use.or_else(|| {
        let copies = std::fs::read_dir(snapshots).ok()?.flatten();
        let configs = copies.map(|copy| copy.path().join("config.json"));
        configs
            .filter(|config| config.is_file())
            .max_by_key(|config| config.metadata().and_then(|file| file.modified()).ok())
    })
}

/// Where the client keeps what it fetched: `$HF_HUB_CACHE`, `$HF_HOME/hub`, or
/// `~/.cache/huggingface/hub` (`huggingface_hub/constants.py`).
fn cache() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(folder) = set("HF_HUB_CACHE") {
        return Some(PathBuf::from(folder));
    }
    match set("HF_HOME") {
        Some(home) => Some(PathBuf::from(home).join("hub")),
        None => {
            let cache = match set("XDG_CACHE_HOME") {
                Some(folder) => PathBuf::from(folder),
                None => dirs::home_dir()?.join(".cache"),
            };
            Some(cache.join("huggingface").join("hub"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_copy_in_use_comes_before_others() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("models--org--name");
        for commit in ["aaaa", "bbbb"] {
            fs::create_dir_all(folder.join("snapshots").join(commit)).unwrap();
        }
        assert_eq!(inside(cache.path(), "org/name"), Some(folder.clone()));
        assert_eq!(inside(cache.path(), "org/other"), None);
        assert_eq!(inside(cache.path(), "org/../name"), None);
        assert_eq!(config_of(&folder), None, "no copy has a configuration");

        let config = |commit: &str| folder.join("snapshots").join(commit).join("config.json");
        fs::write(config("bbbb"), "{}").unwrap();
        assert_eq!(config_of(&folder), Some(config("bbbb")));
        fs::write(config("aaaa"), "{}").unwrap();
        fs::create_dir_all(folder.join("refs")).unwrap();
        for commit in ["aaaa", "bbbb"] {
            fs::write(folder.join("refs/main"), format!("{commit}\n")).unwrap();
            assert_eq!(config_of(&folder), Some(config(commit)));
        }
    }
}
