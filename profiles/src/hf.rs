//! Reading a Hugging Face `config.json` into a [`ModelProfile`].
//!
//! An architecture is read by the file of [`arch`] that knows it; one that none knows, or a field
//! that is missing or senseless, is refused by name. How a checkpoint is quantised is read by
//! [`quant`], module by module, because ignore lists work that way.

use crate::dtype::Dtype;
use crate::fault::{Fault, Faults};
use crate::library::read_limited;
use crate::model::ModelProfile;
use serde_json::Value;
use std::path::{Path, PathBuf};

mod arch;
mod draft;
mod fields;
mod json;
mod quant;
#[cfg(test)]
mod tests;

use fields::Fields;
use quant::Scheme;

/// Largest `config.json` that is read, bytes; the largest known one has 58 KB.
pub const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// Reads the model that a `config.json`, or a folder with one, describes. A
/// `hf_quant_config.json` beside it is read too.
///
/// # Errors
/// A file that cannot be read, is not a JSON object or larger than [`MAX_CONFIG_BYTES`]; an
/// architecture or a field that cannot be planned with, by name; dimensions that cannot be.
pub fn read(path: &Path) -> Result<ModelProfile, Faults> {
    let config = if path.is_dir() {
        path.join("config.json")
    } else {
        path.to_path_buf()
    };
    let text = read_limited(&config, MAX_CONFIG_BYTES)?;
    let beside = quant_config_beside(&config).filter(|file| file.is_file());
    let quant = match &beside {
        Some(file) => Some(read_limited(file, MAX_CONFIG_BYTES)?),
        None => None,
    };
    let (name, repository) = names(&config);
    let shown = config.display().to_string();
    read_text(&text, quant.as_deref(), &name, &repository).map_err(|faults| {
        Faults(
            faults
                .0
                .into_iter()
                .map(|fault| match &beside {
                    // Faults of the second file say so themselves.
                    Some(file) if fault.file.is_some() => {
                        fault.in_file(&file.display().to_string())
                    }
                    _ => fault.in_file(&shown),
                })
                .collect(),
        )
    })
}

/// Reads a model from the text of a `config.json` and, where there is one, of the
/// `hf_quant_config.json` beside it. `name` and `repository` are what the profile is called and
/// what a launch command serves.
///
/// # Errors
/// As [`read`]; faults of the second text carry `hf_quant_config.json` as their file.
pub fn read_text(
    config: &str,
    hf_quant_config: Option<&str>,
    name: &str,
    repository: &str,
) -> Result<ModelProfile, Faults> {
    let config = json::object(config)?;
    let quant = hf_quant_config
        .map(|text| json::object(text).map_err(|fault| fault.in_file("hf_quant_config.json")))
        .transpose()?;
    let root = Fields::root(&config);
    let text = match config.get("text_config") {
        Some(Value::Object(map)) => Fields::nested("text_config", map),
        Some(other) => return Err(root.wrong("text_config", other, "an object").into()),
        None => root,
    };
    let architecture = architecture(&root)?;
    let scheme = Scheme::read(&root, &text, quant.as_ref())?;
    let draft = arch::draft(&architecture, &root, &text)?;
    let (layers, weights) = draft.formats(&scheme);
    let mtp_layer = draft.mtp_layer(&scheme, &weights);
    let tied = match root.optional_bool("tie_word_embeddings")? {
        Some(tied) => tied,
        None => text.bool_or("tie_word_embeddings", false)?,
    };
    let profile = ModelProfile {
        name: profile_name(name),
        aliases: Vec::new(),
        repository: repository.to_owned(),
        architecture,
        hidden_size: text.dimension("hidden_size")?,
        vocab_size: text.dimension("vocab_size")?,
        tied_embeddings: tied,
        max_position: text.dimension("max_position_embeddings")?,
        weights,
        kv_dtype: draft.kv_dtype.or(scheme.kv_dtype()).unwrap_or(Dtype::Bf16),
        layers,
        mtp_layers: if mtp_layer.is_some() {
            draft.mtp_layers
        } else {
            0
        },
        mtp_layer,
        hyper_connections: draft.hyper_connections,
        published: None,
    };
    profile.validate()?;
    Ok(profile)
}

fn architecture(root: &Fields<'_>) -> Result<String, Fault> {
    match root.list("architectures")?.and_then(|list| list.first()) {
        Some(Value::String(name)) => Ok(name.clone()),
        Some(other) => Err(root.wrong("architectures[0]", other, "the name of a model class")),
        None => Err(Fault::field(
            "architectures",
            "is missing; its first entry names the model class",
        )),
    }
}

/// `hf_quant_config.json` beside `config.json`, `X_hf_quant_config.json` beside `X_config.json`.
fn quant_config_beside(config: &Path) -> Option<PathBuf> {
    let stem = config.file_name()?.to_str()?.strip_suffix("config.json")?;
    Some(config.with_file_name(format!("{stem}hf_quant_config.json")))
}

/// A short name and a repository for a file: from a Hugging Face cache folder
/// (`models--org--name/snapshots/…`), from a file called `org--name_config.json`, or else the
/// folder the file lies in, which a launch command can serve as it is.
fn names(config: &Path) -> (String, String) {
    let parts: Vec<&str> = config.iter().filter_map(|part| part.to_str()).collect();
    let cached = parts
        .iter()
        .rev()
        .find_map(|part| part.strip_prefix("models--"));
    let file = config.file_name().and_then(|name| name.to_str());
    let named = file
        .and_then(|name| name.strip_suffix("_config.json"))
        .filter(|name| name.contains("--"));
    if let Some((organisation, model)) = cached.or(named).and_then(|id| id.split_once("--")) {
        return (model.to_owned(), format!("{organisation}/{model}"));
    }
    let folder = config.parent().unwrap_or(Path::new("."));
    let folder_name = folder.file_name().and_then(|name| name.to_str());
    let name = match (file, folder_name) {
        (Some("config.json"), Some(folder)) => folder,
        (Some(file), _) => file.strip_suffix(".json").unwrap_or(file),
        (None, _) => "model",
    };
    (name.to_owned(), folder.display().to_string())
}

/// A name in the letters that profile names are made of.
fn profile_name(name: &str) -> String {
    let name: String = name
        .to_lowercase()
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "-._".contains(c) {
                c
            } else {
                '-'
            }
        })
        .take(80)
        .collect();
    if name.is_empty() {
        "model".to_owned()
    } else {
        name
    }
}
