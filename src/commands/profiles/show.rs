//! `profiles show`.

use crate::args::ProfileKind;
use crate::ask::as_path;
use crate::failure::Failure;
use crate::json;
use crate::render::number;
use parplan_profiles::{Library, LibraryError, ModelProfile, hf};
use serde::Serialize;

pub(super) fn run(
    library: &Library,
    name: &str,
    kind: Option<ProfileKind>,
    as_json: bool,
) -> Result<String, Failure> {
    if let Some(path) = as_path(name) {
        return model(&hf::read(path)?, as_json);
    }
    match kind {
        Some(kind) => of_kind(library, name, kind, as_json),
        None => any(library, name, as_json),
    }
}

/// The first kind that knows the name; where none does, what the models say of it.
fn any(library: &Library, name: &str, as_json: bool) -> Result<String, Failure> {
    let bare = name.split('@').next().unwrap_or(name);
    if unless_unknown(library.model(name))?.is_some() {
        return of_kind(library, name, ProfileKind::Models, as_json);
    }
    if unless_unknown(library.gpu(name))?.is_some() {
        return of_kind(library, name, ProfileKind::Gpus, as_json);
    }
    if unless_unknown(library.engine(bare))?.is_some() {
        return of_kind(library, name, ProfileKind::Engines, as_json);
    }
    if unless_unknown(library.workload(name))?.is_some() {
        return of_kind(library, name, ProfileKind::Workloads, as_json);
    }
    let mut near: Vec<String> = Vec::new();
    let misses = [
        library.model(name).err(),
        library.gpu(name).err(),
        library.engine(bare).err(),
        library.workload(name).err(),
    ];
    for miss in misses.into_iter().flatten() {
        if let LibraryError::Unknown { nearest, .. } = miss {
            near.extend(nearest);
        }
    }
    near.truncate(4);
    let shown: String = name.chars().take(80).collect();
    Err(Failure::unusable(if near.is_empty() {
        format!("no profile is called `{shown}`; `parplan profiles list` shows every one")
    } else {
        format!(
            "no profile is called `{shown}`; did you mean {}?",
            near.join(", ")
        )
    }))
}

/// A profile, nothing where the name is unknown, or what is wrong with the profile.
fn unless_unknown<T>(found: Result<T, LibraryError>) -> Result<Option<T>, Failure> {
    match found {
        Ok(profile) => Ok(Some(profile)),
        Err(LibraryError::Unknown { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn of_kind(
    library: &Library,
    name: &str,
    kind: ProfileKind,
    as_json: bool,
) -> Result<String, Failure> {
    match kind {
        ProfileKind::Models => model(&library.model(name)?, as_json),
        ProfileKind::Gpus => print("", &library.gpu(name)?, as_json),
        ProfileKind::Workloads => print("", &library.workload(name)?, as_json),
        ProfileKind::Engines => match name.split_once('@') {
            None => print("", &library.engine(name)?, as_json),
            Some((engine, version)) => {
                let rules = library.engine(engine)?.resolve(Some(version), false)?;
                print(
                    "# The rules that hold for this version.\n\n",
                    &rules,
                    as_json,
                )
            }
        },
    }
}

/// A model with the parameters that its dimensions make.
fn model(model: &ModelProfile, as_json: bool) -> Result<String, Failure> {
    let params = model.params();
    let billions = |count: u64| number::fixed(count as f64 / 1e9, 2);
    let head = format!(
        "# {} B parameters, {} B active for a token (output projection included, embedding not);\n\
         # MTP layers {} B more. Counted from the dimensions below.\n\n",
        billions(params.total()),
        billions(params.active()),
        billions(params.mtp)
    );
    print(&head, model, as_json)
}

fn print(head: &str, profile: &impl Serialize, as_json: bool) -> Result<String, Failure> {
    if as_json {
        return json::print(profile);
    }
    let text = toml::to_string(profile).map_err(|error| {
        Failure::failed(format!("the profile cannot be written as TOML: {error}"))
    })?;
    Ok(format!("{head}{text}"))
}
