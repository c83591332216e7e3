//! Names to profiles: the model, the library, the engine's rules.

use super::{Assumptions, hub};
use crate::args::{EngineArgs, ModelArgs};
use crate::failure::Failure;
use crate::output::tell;
use parplan_profiles::engine::version::VersionError;
use parplan_profiles::engine::{EngineError, EngineRules};
use parplan_profiles::{Dtype, GpuProfile, Library, LibraryError, ModelProfile, WeightFormats, hf};
use std::path::{Path, PathBuf};
use std::sync::Once;

/// Engine that is planned for when none is named.
pub const DEFAULT_ENGINE: &str = "sglang";

/// Names the folder of profiles where no option does.
pub const PROFILES_VARIABLE: &str = "PARPLAN_PROFILES";

/// The profiles: the built-in ones, and before them those of the user's folder.
///
/// # Errors
/// A folder that somebody typed and that is not there, or what is named and is no folder. One that only
/// the environment names may come to be by the first `calibrate`: until then it is said that it is not
/// there.
pub fn library(folder: Option<&Path>) -> Result<Library, Failure> {
    static SAID: Once = Once::new();
    if let Some(folder) = folder
        && !folder.is_dir()
    {
        let of_environment =
            std::env::var_os(PROFILES_VARIABLE).is_some_and(|known| known == folder.as_os_str());
        let option = match of_environment {
            true => format!("{PROFILES_VARIABLE}={}", folder.display()),
            false => format!("--profiles {}", folder.display()),
        };
        if folder.exists() {
            return Err(Failure::unusable(format!(
                "{option}: is no folder; name the folder that holds models/, gpus/ and so on"
            )));
        }
        if !of_environment {
            return Err(Failure::unusable(format!(
                "{option}: there is no such folder; check its name, or leave --profiles out to plan \
                 with the built-in profiles"
            )));
        }
        SAID.call_once(|| {
            tell!("note: {option}: there is no such folder; the built-in profiles are used");
        });
    }
    Ok(library_to_be(folder))
}

/// The same for what writes into the folder, and makes it where it is not there.
pub fn library_to_be(folder: Option<&Path>) -> Library {
    match folder.map(Path::to_path_buf).or_else(user_folder) {
        Some(folder) => Library::with_folder(folder),
        None => Library::embedded(),
    }
}

/// `parplan/profiles` in the platform's configuration folder, which need not exist.
pub fn user_folder() -> Option<PathBuf> {
    dirs::config_dir().map(|dir| dir.join("parplan").join("profiles"))
}

/// Another format than the checkpoint's own that its linear layers are asked to have.
pub(super) struct Requantised {
    to: Dtype,
    /// Whether the checkpoint is in bf16.
    from_bf16: bool,
}

/// The model that was named, and whether its checkpoint is to be stored otherwise; a copy that its
/// configuration was found in is noted.
pub(super) fn model(
    library: &Library,
    args: &ModelArgs,
    assumptions: &mut Assumptions,
) -> Result<(ModelProfile, Option<Requantised>), Failure> {
    let (model, fetched) = find(library, &args.model)?;
    if let Some(config) = fetched {
        assumptions.note(format!(
            "{} is as {} describes it",
            model.repository,
            config.display()
        ));
    }
    let Some(to) = args.weights else {
        return Ok((model, None));
    };
    let stored = stored_in(model.clone(), Some(to));
    let asked = (stored != model).then(|| Requantised {
        to,
        from_bf16: stored_in(model.clone(), Some(Dtype::Bf16)) == model,
    });
    Ok((stored, asked))
}

/// What the engine is told to quantise the checkpoint to while it loads it; formats that the engine's
/// profile does not list need a checkpoint that has them.
///
/// # Errors
/// A format that this engine cannot make of this checkpoint.
pub(super) fn quantization(
    rules: &EngineRules,
    asked: Option<Requantised>,
) -> Result<Option<Dtype>, Failure> {
    let Some(asked) = asked else {
        return Ok(None);
    };
    // parplan's own executor makes its weights itself, whatever the checkpoint has.
    let can_read = asked.from_bf16 || rules.own_kernels;
    if can_read && rules.load_names.contains_key(&asked.to) {
        return Ok(Some(asked.to));
    }
    let made: Vec<&str> = rules
        .load_names
        .keys()
        .map(|format| format.name())
        .collect();
    let why = if made.is_empty() {
        format!("{} quantises nothing while it loads", rules.name)
    } else if can_read {
        format!(
            "{} makes only {} of a checkpoint in {}",
            rules.name,
            made.join(" and "),
            match rules.own_kernels {
                true => "any format",
                false => "bf16",
            }
        )
    } else {
        "the checkpoint is not in bf16".to_owned()
    };
    Err(Failure::unusable(format!(
        "--weights {}: {why}; name a checkpoint that is stored so (`parplan profiles list models`), \
         or leave --weights out",
        asked.to
    )))
}

/// The model of a profile's name, a Hugging Face id or a path, its linear layers stored in
/// `weights` where that is given. An id that no profile answers to is read from where Hugging
/// Face's client keeps what it fetched.
///
/// # Errors
/// A name that nothing has, or a file that cannot be read.
pub fn model_named(
    library: &Library,
    name: &str,
    weights: Option<Dtype>,
) -> Result<ModelProfile, Failure> {
    let (model, _) = find(library, name)?;
    Ok(stored_in(model, weights))
}

/// The model of a name, and the fetched configuration that it comes from, if it does.
fn find(library: &Library, name: &str) -> Result<(ModelProfile, Option<PathBuf>), Failure> {
    if let Some(path) = as_path(name) {
        return Ok((hf::read(path)?, None));
    }
    match library.model(name) {
        Err(unknown @ LibraryError::Unknown { .. }) => match hub::config(name.trim()) {
            Some(config) => Ok((hf::read(&config)?, Some(config))),
            None => Err(unknown.into()),
        },
        found => Ok((found?, None)),
    }
}

fn stored_in(model: ModelProfile, weights: Option<Dtype>) -> ModelProfile {
    match weights {
        Some(format) => {
            let embedding = model.weights.embedding;
            model.with_weights(WeightFormats::uniform(format, embedding))
        }
        None => model,
    }
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
    let (name, version) = match text.split_once('@') {
        Some((name, version)) => (name, Some(version)),
        None => (text, None),
    };
    let rules = library
        .engine(name)?
        .resolve(version, args.engine_assume)
        .map_err(assume_hint)?;
    assumptions.of_engine(args, &rules);
    Ok(rules)
}

/// Whether the engine has code for the maker of the GPU.
///
/// # Errors
/// It has none.
pub(super) fn runs_on(rules: &EngineRules, gpu: &GpuProfile) -> Result<(), Failure> {
    if rules.vendors.is_empty() || rules.vendors.contains(&gpu.vendor) {
        return Ok(());
    }
    let known: Vec<&str> = rules
        .vendors
        .iter()
        .map(|vendor| vendor.devices())
        .collect();
    Err(Failure::unusable(format!(
        "{} runs on {} only, and {} is none of them; name another --engine",
        rules.name,
        known.join(" and "),
        gpu.name
    )))
}

/// What to do about a plan for an unknown version: the nearest known one is assumed when it is planned.
pub fn plan_again_hint(error: EngineError) -> Failure {
    match &error {
        EngineError::OutOfRange {
            engine, nearest, ..
        } => Failure::unusable(format!(
            "{error}: plan again with --engine-assume, or start it with --engine {engine}@{nearest}"
        )),
        _ => error.into(),
    }
}

/// Names the flag that plans an unknown version by the nearest known one.
fn assume_hint(error: EngineError) -> Failure {
    match error {
        EngineError::OutOfRange { .. }
        | EngineError::Version {
            source: VersionError::Nightly(_),
            ..
        } => Failure::unusable(format!("{error} (--engine-assume)")),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::as_path;

    #[test]
    fn a_hugging_face_id_is_no_path() {
        for name in ["deepseek-v3", "Qwen/Qwen3-8B", "meta-llama/Llama-3.1-70B"] {
            assert_eq!(as_path(name), None, "{name}");
        }
        for path in [
            "./config.json",
            "/models/x",
            "some/config.json",
            "folder/",
            "../x",
            ".",
        ] {
            assert!(as_path(path).is_some(), "{path}");
        }
    }
}
