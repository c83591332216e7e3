//! Finding a profile by any of its names.

use super::embedded::{self, EmbeddedFile};
use super::text::{Document, MAX_PROFILE_BYTES, read_limited};
use super::{Library, LibraryError, Listed, Profile};
use crate::fault::{Fault, Faults};
use crate::model::ModelProfile;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The part of a profile that names it.
#[derive(Debug, Deserialize)]
pub(super) struct Header {
    pub(super) name: String,
    #[serde(default)]
    pub(super) aliases: Vec<String>,
    #[serde(default)]
    repository: Option<String>,
}

impl Header {
    fn read(file: &str, text: &str) -> Result<Header, Fault> {
        Document::parse(file, text)?.read()
    }

    fn answers_to(&self, name: &str, how: Answers) -> bool {
        self.names().any(|known| match how {
            Answers::ToItself => known.eq_ignore_ascii_case(name),
            Answers::ToShort => is_short_for(name, known),
        })
    }

    /// Every name that selects the profile.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.name.as_str())
            .chain(self.repository.as_deref())
            .chain(self.aliases.iter().map(String::as_str))
    }
}

/// How a name is compared. A name that some profile has comes before an id that it is short for.
#[derive(Clone, Copy)]
enum Answers {
    /// The whole name or alias.
    ToItself,
    /// A Hugging Face id without its organisation.
    ToShort,
}

/// Whether a name is a Hugging Face id without its organisation.
fn is_short_for(name: &str, id: &str) -> bool {
    id.split_once('/')
        .is_some_and(|(_, model)| model.eq_ignore_ascii_case(name))
}

/// The Hugging Face id that a name means among those that a profile answers to: itself, or the
/// one that it is short for. None where the name is the profile's own or a nickname.
pub(super) fn repository_of(model: &ModelProfile, name: &str) -> Option<String> {
    let name = name.trim();
    if model.name.eq_ignore_ascii_case(name) {
        return None;
    }
    let ids = std::iter::once(&model.repository)
        .chain(&model.aliases)
        .filter(|id| id.contains('/'));
    let mut meant = ids.filter(|id| id.eq_ignore_ascii_case(name) || is_short_for(name, id));
    meant.next().cloned()
}

impl Library {
    /// The valid profile of a name.
    pub(super) fn find<P: Profile>(&self, name: &str) -> Result<P, LibraryError> {
        self.find_at(name, 0, true)
    }

    /// The profile of a name as it is written; the caller validates what it makes of it.
    pub(super) fn find_unchecked<P: Profile>(
        &self,
        name: &str,
        depth: u32,
    ) -> Result<P, LibraryError> {
        self.find_at(name, depth, false)
    }

    fn find_at<P: Profile>(&self, name: &str, depth: u32, check: bool) -> Result<P, LibraryError> {
        let name = name.trim();
        for how in [Answers::ToItself, Answers::ToShort] {
            if let Some((path, text)) = self.user_file::<P>(name, how)? {
                return self.open(&path.display().to_string(), &text, depth, check);
            }
            if let Some(file) = embedded_file::<P>(name, how) {
                return self.open(file.path, file.text, depth, check);
            }
        }
        Err(self.unknown::<P>(name))
    }

    /// The valid profile of a file.
    pub(super) fn open_file<P: Profile>(&self, path: &Path) -> Result<P, LibraryError> {
        let text = read_limited(path, MAX_PROFILE_BYTES)?;
        self.open(&path.display().to_string(), &text, 0, true)
    }

    fn open<P: Profile>(
        &self,
        file: &str,
        text: &str,
        depth: u32,
        check: bool,
    ) -> Result<P, LibraryError> {
        let document = Document::parse(file, text)?;
        let profile = P::parse(&document, self, depth)?;
        if check {
            profile
                .validate()
                .map_err(|faults| document.place_all(faults))?;
        }
        Ok(profile)
    }

    /// The user's file that answers to a name.
    fn user_file<P: Profile>(
        &self,
        name: &str,
        how: Answers,
    ) -> Result<Option<(PathBuf, String)>, Fault> {
        for path in self.user_paths(P::FOLDER)? {
            let text = read_limited(&path, MAX_PROFILE_BYTES);
            let header = match &text {
                Ok(text) => Header::read(&path.display().to_string(), text),
                Err(fault) => Err(fault.clone()),
            };
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            match (header, text) {
                (Ok(header), Ok(text)) if header.answers_to(name, how) => {
                    return Ok(Some((path, text)));
                }
                // A broken file only stands in the way of the profile that it is named after;
                // `check` reports it in any case.
                (Err(fault), _) if stem.is_some_and(|stem| stem.eq_ignore_ascii_case(name)) => {
                    return Err(fault);
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// The TOML files of a kind in the user's folder, in order of name.
    pub(super) fn user_paths(&self, kind: &str) -> Result<Vec<PathBuf>, Fault> {
        match &self.folder {
            Some(folder) => toml_files(&folder.join(kind)),
            None => Ok(Vec::new()),
        }
    }

    pub(super) fn list<P: Profile>(&self) -> Result<Vec<Listed>, Faults> {
        let mut listed = Vec::new();
        let mut faults = Vec::new();
        for path in self.user_paths(P::FOLDER)? {
            let header = read_limited(&path, MAX_PROFILE_BYTES)
                .and_then(|text| Header::read(&path.display().to_string(), &text));
            match header {
                Ok(header) => listed.push(Listed {
                    name: header.name,
                    aliases: header.aliases,
                    file: Some(path),
                }),
                Err(fault) => faults.push(fault),
            }
        }
        Faults::or_ok(faults)?;
        for file in embedded::files(P::FOLDER) {
            let header = Header::read(file.path, file.text)?;
            let overridden = |known: &Listed| known.name.eq_ignore_ascii_case(&header.name);
            if !listed.iter().any(overridden) {
                listed.push(Listed {
                    name: header.name,
                    aliases: header.aliases,
                    file: None,
                });
            }
        }
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    fn unknown<P: Profile>(&self, name: &str) -> LibraryError {
        let user = self.user_paths(P::FOLDER).unwrap_or_default();
        let mut known: Vec<Header> = Vec::new();
        for path in user {
            let text = read_limited(&path, MAX_PROFILE_BYTES);
            known.extend(text.and_then(|text| Header::read("", &text)));
        }
        known
            .extend(embedded::files(P::FOLDER).flat_map(|file| Header::read(file.path, file.text)));
        LibraryError::Unknown {
            kind: P::KIND,
            name: printable(name),
            nearest: nearest(name, &known),
        }
    }
}

/// The embedded file that answers to a name. A profile's own name is its file's, so the files are
/// only opened when the name is an alias.
fn embedded_file<P: Profile>(name: &str, how: Answers) -> Option<EmbeddedFile> {
    embedded::files(P::FOLDER)
        .find(|file| file.stem.eq_ignore_ascii_case(name))
        .or_else(|| {
            embedded::files(P::FOLDER).find(|file| {
                Header::read(file.path, file.text).is_ok_and(|header| header.answers_to(name, how))
            })
        })
}

/// The `.toml` files of a folder, in order of name; none when the folder is absent.
pub(super) fn toml_files(folder: &Path) -> Result<Vec<PathBuf>, Fault> {
    let cannot = |error: std::io::Error| {
        Fault::whole(
            folder.display().to_string(),
            format!("cannot be listed: {error}"),
        )
    };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(cannot(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(cannot)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Up to three profiles that have a name like this one, nearest first, by that name.
fn nearest(name: &str, known: &[Header]) -> Vec<String> {
    let wanted: String = name.chars().take(80).collect::<String>().to_lowercase();
    let score = |candidate: &str| {
        let lower = candidate.to_lowercase();
        let alike = strsim::jaro_winkler(&wanted, &lower);
        // `qwen3` is closer to `qwen3-32b` than letter distance alone says.
        match wanted.len() >= 3 && lower.contains(&wanted) {
            true => alike + 0.5,
            false => alike,
        }
    };
    let mut scored: Vec<(f64, &str)> = known
        .iter()
        .filter_map(|header| {
            let scored = header.names().map(|name| (score(name), name));
            scored.max_by(|a, b| a.0.total_cmp(&b.0).then_with(|| b.1.cmp(a.1)))
        })
        .filter(|(score, _)| *score > 0.75)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    scored.dedup_by(|a, b| a.1.eq_ignore_ascii_case(b.1));
    let first = scored.into_iter().take(3);
    first.map(|(_, name)| name.to_owned()).collect()
}

fn printable(name: &str) -> String {
    let short: String = name
        .chars()
        .take(80)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if name.chars().count() > 80 {
        format!("{short}…")
    } else {
        short
    }
}
