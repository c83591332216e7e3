//! Prices of kernels and overheads of engines: the embedded ones, and figures of a user's folder in
//! their place.
//!
//! A file of `efficiency/` or `overheads/` says whose figures it holds (`engine`, `architecture`, and
//! `gpu` where they are of one GPU only) and gives those that differ from the embedded ones.

use super::lookup::toml_files;
use super::text::{Document, MAX_PROFILE_BYTES, read_limited};
use super::{Library, LibraryError};
use crate::efficiency::{EfficiencyProfile, GpuArchitecture};
use crate::fault::{Fault, Faults};
use crate::gpu::GpuProfile;
use crate::overheads::{Overheads, OverheadsError};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Figures, and the user's file that some of them come from.
#[derive(Debug, Clone)]
pub struct Sourced<T: Clone + 'static> {
    /// The figures.
    pub figures: Cow<'static, T>,
    /// The user's file; none where all are embedded.
    pub file: Option<PathBuf>,
}

/// Whose figures a file holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Owner {
    engine: String,
    architecture: Architecture,
    #[serde(default)]
    gpu: Option<String>,
}

/// An architecture in the order of its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(transparent)]
struct Architecture(String);

/// A kind of figures.
pub(super) trait Figures: Clone + DeserializeOwned {
    /// The folder of its files.
    const FOLDER: &'static str;
    /// What it is called.
    const KIND: &'static str;
    /// The embedded figures of an engine on an architecture, as TOML.
    fn base(engine: &str, architecture: GpuArchitecture) -> Result<Cow<'static, str>, String>;
    /// Every figure that cannot be.
    fn validate(&self) -> Result<(), Faults>;
}

impl Figures for EfficiencyProfile {
    const FOLDER: &'static str = "efficiency";
    const KIND: &'static str = "kernel prices";

    fn base(engine: &str, architecture: GpuArchitecture) -> Result<Cow<'static, str>, String> {
        Ok(EfficiencyProfile::embedded_text(engine, architecture).into())
    }

    fn validate(&self) -> Result<(), Faults> {
        EfficiencyProfile::validate(self)
    }
}

impl Figures for Overheads {
    const FOLDER: &'static str = "overheads";
    const KIND: &'static str = "overheads";

    fn base(engine: &str, architecture: GpuArchitecture) -> Result<Cow<'static, str>, String> {
        match Overheads::of(engine, architecture) {
            Ok(entry) => toml::to_string(entry)
                .map(Cow::from)
                .map_err(|error| error.to_string()),
            // An engine of the user's own: its file has to be whole.
            Err(OverheadsError::Unknown { .. }) => Ok("".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn validate(&self) -> Result<(), Faults> {
        Overheads::validate(self)
    }
}

impl Library {
    /// What kernels of an engine cost on a GPU: the user's figures over the embedded ones.
    ///
    /// # Errors
    /// Every fault of the user's file, or two files that hold figures of the same.
    pub fn efficiency(
        &self,
        engine: &str,
        gpu: &GpuProfile,
    ) -> Result<Sourced<EfficiencyProfile>, LibraryError> {
        if let Some(mine) = self.figures(engine, gpu)? {
            return Ok(mine);
        }
        let embedded = EfficiencyProfile::embedded(engine, gpu)
            .map_err(|error| Fault::field("", error.to_string()))?;
        Ok(Sourced {
            figures: Cow::Borrowed(embedded),
            file: None,
        })
    }

    /// What an engine adds around its kernels on a GPU: the user's figures over the embedded ones.
    ///
    /// # Errors
    /// Every fault of the user's file, or an engine that no entry has.
    pub fn overheads(
        &self,
        engine: &str,
        gpu: &GpuProfile,
    ) -> Result<Sourced<Overheads>, LibraryError> {
        if let Some(mine) = self.figures(engine, gpu)? {
            return Ok(mine);
        }
        let embedded = Overheads::embedded(engine, gpu)
            .map_err(|error| Fault::field("", error.to_string()))?;
        Ok(Sourced {
            figures: Cow::Borrowed(embedded),
            file: None,
        })
    }

    /// The user's figures of an engine on a GPU; those of the one GPU come before those of its
    /// architecture.
    fn figures<T: Figures>(
        &self,
        engine: &str,
        gpu: &GpuProfile,
    ) -> Result<Option<Sourced<T>>, LibraryError> {
        let architecture = GpuArchitecture::of(gpu);
        let mut best: Option<(bool, PathBuf, String)> = None;
        for path in self.user_paths(T::FOLDER)? {
            let file = path.display().to_string();
            // What cannot be read at all may be about anything, so that it stands in the way.
            let text = read_limited(&path, MAX_PROFILE_BYTES)?;
            let owner: Owner = Document::parse(&file, &text)?.read()?;
            let own_gpu = owner.gpu.as_deref();
            let is_mine = owner.engine == engine
                && owner.architecture.known() == Some(architecture)
                && own_gpu.is_none_or(|name| name.eq_ignore_ascii_case(&gpu.name));
            if !is_mine {
                continue;
            }
            match &best {
                Some((narrow, other, _)) if *narrow == own_gpu.is_some() => {
                    let message = format!(
                        "holds {} of {engine} on {architecture}, and so does {}; keep one",
                        T::KIND,
                        other.display()
                    );
                    return Err(Fault::whole(file, message).into());
                }
                Some((true, ..)) => {}
                _ => best = Some((own_gpu.is_some(), path, text)),
            }
        }
        let Some((_, path, text)) = best else {
            return Ok(None);
        };
        let figures = read::<T>(&path.display().to_string(), &text)?;
        Ok(Some(Sourced {
            figures: Cow::Owned(figures),
            file: Some(path),
        }))
    }
}

impl Architecture {
    fn known(&self) -> Option<GpuArchitecture> {
        GpuArchitecture::ALL
            .into_iter()
            .find(|known| known.to_string() == self.0)
    }
}

/// The figures of a text over the embedded ones; every fault of it.
fn read<T: Figures>(file: &str, text: &str) -> Result<T, Faults> {
    let mut document = match Document::parse(file, text) {
        Ok(document) => document,
        Err(fault) => {
            let all = Document::syntax_faults(file, text);
            return Err(Faults(if all.is_empty() { vec![fault] } else { all }));
        }
    };
    let owner: Owner = document.read()?;
    let Some(architecture) = owner.architecture.known() else {
        let known = GpuArchitecture::ALL
            .map(|known| known.to_string())
            .join(", ");
        let message = format!("is {:?}; it must be one of {known}", owner.architecture.0);
        return Err(document.place(Fault::field("architecture", message)).into());
    };
    document.take("gpu");
    let base = T::base(&owner.engine, architecture)
        .map_err(|error| document.place(Fault::field("engine", error)))?;
    let base = Document::parse("embedded", &base)?;
    document.complete_from(&base);
    let figures = document
        .read::<T>()
        .map_err(|_| Faults(document.every_fault(|document| document.read::<T>(), T::validate)))?;
    figures
        .validate()
        .map_err(|faults| document.place_all(faults))?;
    Ok(figures)
}

/// Checks every file of a kind in a folder; returns how many there are.
pub(super) fn check<T: Figures>(folder: &Path, faults: &mut Vec<Fault>) -> usize {
    let paths = match toml_files(&folder.join(T::FOLDER)) {
        Ok(paths) => paths,
        Err(fault) => {
            faults.push(fault);
            return 0;
        }
    };
    let mut taken: BTreeMap<Owner, String> = BTreeMap::new();
    for path in &paths {
        let file = path.display().to_string();
        let text = match read_limited(path, MAX_PROFILE_BYTES) {
            Ok(text) => text,
            Err(fault) => {
                faults.push(fault);
                continue;
            }
        };
        if let Err(found) = read::<T>(&file, &text) {
            faults.extend(found.0);
        }
        let Ok(owner) = Document::parse(&file, &text).and_then(|document| document.read::<Owner>())
        else {
            continue;
        };
        if let Some(other) = taken.get(&owner) {
            let message = format!("holds {} of the same engine and GPU as {other}", T::KIND);
            faults.push(Fault::whole(file.clone(), message));
        }
        taken.entry(owner).or_insert(file);
    }
    paths.len()
}
