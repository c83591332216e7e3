//! The profiles that are embedded in the binary, overridden by those of a user's folder.

use crate::engine::EngineProfile;
use crate::fault::{Fault, Faults};
use crate::gpu::GpuProfile;
use crate::model::ModelProfile;
use crate::workload::{Trace, Workload};
use std::path::{Path, PathBuf};

mod check;
mod embedded;
mod figures;
mod kind;
mod lookup;
mod overlay;
mod text;

pub use embedded::EmbeddedFile;
pub use figures::Sourced;
pub(crate) use kind::Profile;
pub use text::{MAX_PROFILE_BYTES, read_limited};

/// Where profiles are looked up: the embedded ones, and before them those of a user's folder.
///
/// A folder holds `models/*.toml`, `gpus/*.toml` and so on. A profile in it replaces an embedded
/// one of the same name. Nothing is read before a profile is asked for.
#[derive(Debug, Clone, Default)]
pub struct Library {
    folder: Option<PathBuf>,
}

/// Why a profile could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LibraryError {
    /// No profile answers to the name.
    #[error("{kind} `{name}` is not known{}", suggest(nearest, kind))]
    Unknown {
        /// `model`, `GPU` and so on.
        kind: &'static str,
        /// The name asked for, cut to a printable length.
        name: String,
        /// Names that look like it, nearest first; may be empty.
        nearest: Vec<String>,
    },
    /// A profile answers to the name, but it is not valid.
    #[error(transparent)]
    Faults(#[from] Faults),
}

impl From<Fault> for LibraryError {
    fn from(fault: Fault) -> Self {
        LibraryError::Faults(fault.into())
    }
}

fn suggest(nearest: &[String], kind: &str) -> String {
    let is_model = kind == "model";
    match nearest {
        [] if is_model => {
            "; `parplan profiles list` shows every model, and any other can be given by \
             the path of its config.json"
                .to_owned()
        }
        [] if kind == "GPU" => {
            "; `parplan profiles list gpus` shows every GPU, and `parplan profiles \
             add --from-this-machine` describes the one at hand"
                .to_owned()
        }
        [] => format!("; `parplan profiles list` shows every {kind}"),
        names if is_model => format!(
            "; did you mean {}? Any other model can be given by the path of its config.json",
            names.join(", ")
        ),
        names => format!("; did you mean {}?", names.join(", ")),
    }
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The profile's name.
    pub name: String,
    /// Other names that select it.
    pub aliases: Vec<String>,
    /// The user's file that it comes from; none for an embedded profile.
    pub file: Option<PathBuf>,
}

impl Library {
    /// The embedded profiles only.
    pub fn embedded() -> Self {
        Library::default()
    }

    /// The embedded profiles, overridden by those of a folder. The folder may be absent.
    pub fn with_folder(folder: impl Into<PathBuf>) -> Self {
        Library {
            folder: Some(folder.into()),
        }
    }

    /// The user's folder, when there is one.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The model of a name, an alias or a Hugging Face id, with or without its organisation; upper
    /// and lower case are one. Several ids may share a profile: the one that was named is the
    /// [`ModelProfile::repository`] that comes back, so that it is what gets launched.
    ///
    /// # Errors
    /// An unknown name with the nearest known ones, or every fault of the profile.
    pub fn model(&self, name: &str) -> Result<ModelProfile, LibraryError> {
        let mut model: ModelProfile = self.find(name)?;
        if let Some(named) = lookup::repository_of(&model, name) {
            model.repository = named;
        }
        Ok(model)
    }

    /// The GPU of a name or an alias; upper and lower case are one.
    ///
    /// # Errors
    /// An unknown name with the nearest known ones, or every fault of the profile.
    pub fn gpu(&self, name: &str) -> Result<GpuProfile, LibraryError> {
        self.find(name)
    }

    /// The workload of a name or an alias, its traces read; upper and lower case are one.
    ///
    /// # Errors
    /// An unknown name with the nearest known ones, or every fault of the profile.
    pub fn workload(&self, name: &str) -> Result<Workload, LibraryError> {
        self.find(name)
    }

    /// The workload of a file: a TOML profile, or a trace (see [`Trace`](crate::Trace)).
    ///
    /// # Errors
    /// Every fault of a profile, or the first line that is no request of a trace.
    pub fn workload_file(&self, path: &Path) -> Result<Workload, LibraryError> {
        let is_profile = path
            .extension()
            .is_some_and(|ending| ending.eq_ignore_ascii_case("toml"));
        if is_profile {
            return self.open_file(path);
        }
        let trace = Trace::read(path)?;
        Workload::of_trace(path, &trace)
            .ok_or_else(|| Fault::whole(path.display().to_string(), "holds no request").into())
    }

    /// The engine of a name or an alias; upper and lower case are one. Its rules follow from
    /// [`EngineProfile::resolve`] and a version.
    ///
    /// # Errors
    /// An unknown name with the nearest known ones, or what is wrong with the profile.
    pub fn engine(&self, name: &str) -> Result<EngineProfile, LibraryError> {
        self.find(name)
    }

    /// Every engine, by name.
    ///
    /// # Errors
    /// Files of the user's folder that cannot be read or have no name.
    pub fn engines(&self) -> Result<Vec<Listed>, Faults> {
        self.list::<EngineProfile>()
    }

    /// Every workload, by name.
    ///
    /// # Errors
    /// Files of the user's folder that cannot be read or have no name.
    pub fn workloads(&self) -> Result<Vec<Listed>, Faults> {
        self.list::<Workload>()
    }

    /// Every model, by name.
    ///
    /// # Errors
    /// Files of the user's folder that cannot be read or have no name.
    pub fn models(&self) -> Result<Vec<Listed>, Faults> {
        self.list::<ModelProfile>()
    }

    /// Every GPU, by name.
    ///
    /// # Errors
    /// Files of the user's folder that cannot be read or have no name.
    pub fn gpus(&self) -> Result<Vec<Listed>, Faults> {
        self.list::<GpuProfile>()
    }
}
