//! The kinds of profile that the library holds.

use super::Library;
use super::overlay::ModelOverlay;
use super::text::Document;
use crate::engine::{EngineError, EngineProfile};
use crate::fault::{Fault, Faults};
use crate::gpu::GpuProfile;
use crate::model::ModelProfile;
use crate::workload::{Lengths, Trace, Workload};
use serde::Deserialize;
use std::path::Path;

/// A kind of profile.
pub(crate) trait Profile: Sized {
    /// What it is called in messages.
    const KIND: &'static str;
    /// The folder that holds its files.
    const FOLDER: &'static str;
    /// Reads one file.
    fn parse(document: &Document<'_>, library: &Library, depth: u32) -> Result<Self, Fault>;
    /// The profile as its text has it, whatever lies beside it.
    fn parse_alone(document: &Document<'_>, library: &Library) -> Result<Self, Fault> {
        Self::parse(document, library, 0)
    }
    /// Faults of the files that the text names.
    fn beside(_: &Document<'_>) -> Vec<Fault> {
        Vec::new()
    }
    /// Every fault of its values.
    fn validate(&self) -> Result<(), Faults>;
}

impl Profile for GpuProfile {
    const KIND: &'static str = "GPU";
    const FOLDER: &'static str = "gpus";

    fn parse(document: &Document<'_>, _: &Library, _: u32) -> Result<Self, Fault> {
        document.read()
    }

    fn validate(&self) -> Result<(), Faults> {
        GpuProfile::validate(self)
    }
}

/// Overlays on overlays are followed this far, so that two that name each other end.
const MAX_OVERLAYS: u32 = 4;

impl Profile for ModelProfile {
    const KIND: &'static str = "model";
    const FOLDER: &'static str = "models";

    fn parse(document: &Document<'_>, library: &Library, depth: u32) -> Result<Self, Fault> {
        if !document.has_key("base") {
            return document.read();
        }
        let overlay: ModelOverlay = document.read()?;
        if depth >= MAX_OVERLAYS {
            let message = format!(
                "is {:?}, the {MAX_OVERLAYS}th base in a row; name a profile without one",
                overlay.base
            );
            return Err(document.place(Fault::field("base", message)));
        }
        // A user's variant that keeps the embedded name means the embedded profile by its base.
        let same = overlay.base.eq_ignore_ascii_case(&overlay.name);
        let embedded = Library::embedded();
        let shelf = if same { &embedded } else { library };
        match shelf.find_unchecked::<ModelProfile>(&overlay.base, depth + 1) {
            Ok(base) => overlay.on(base).map_err(|fault| document.place(fault)),
            Err(error) => {
                let message = format!("cannot be used: {error}");
                Err(document.place(Fault::field("base", message)))
            }
        }
    }

    fn validate(&self) -> Result<(), Faults> {
        ModelProfile::validate(self)
    }
}

/// Fields of a workload that may name a trace, and whether it is the prompts'.
const SIDES: [(&str, bool); 2] = [("input.file", true), ("output.file", false)];

/// The trace `file` beside the document.
fn trace_of(document: &Document<'_>, field: &str, file: &str) -> Result<Trace, Fault> {
    let folder = Path::new(document.file).parent();
    Trace::read(&folder.unwrap_or(Path::new("")).join(file))
        .map_err(|fault| document.place(Fault::field(field, format!("cannot be used: {fault}"))))
}

impl Profile for Workload {
    const KIND: &'static str = "workload";
    const FOLDER: &'static str = "workloads";

    /// Traces that a workload names are read here, from beside its file.
    fn parse(document: &Document<'_>, _: &Library, _: u32) -> Result<Self, Fault> {
        let mut workload: Workload = document.read()?;
        let mut traces: Vec<(String, Trace)> = Vec::new();
        for (field, is_input) in SIDES {
            let lengths = if is_input {
                &mut workload.input
            } else {
                &mut workload.output
            };
            let Lengths::Trace { file } = lengths else {
                continue;
            };
            // Both sides usually name one file.
            if !traces.iter().any(|(read, _)| read == file) {
                traces.push((file.clone(), trace_of(document, field, file)?));
            }
            let read = traces.iter().find(|(read, _)| read == file);
            let measured = read.and_then(|(_, trace)| match is_input {
                true => trace.input(),
                false => trace.output(),
            });
            if is_input && !document.has_key("prefix_hit") {
                let hit = read.and_then(|(_, trace)| trace.prefix_hit());
                workload.prefix_hit = hit.unwrap_or(0.0);
            }
            if let Some(measured) = measured {
                *lengths = measured;
            }
        }
        Ok(workload)
    }

    fn parse_alone(document: &Document<'_>, _: &Library) -> Result<Self, Fault> {
        document.read()
    }

    fn beside(document: &Document<'_>) -> Vec<Fault> {
        /// As much of the text as names a trace, however wrong the rest is.
        #[derive(Deserialize)]
        struct Sides {
            input: Option<toml::Value>,
            output: Option<toml::Value>,
        }
        let Ok(sides) = document.read::<Sides>() else {
            return Vec::new();
        };
        let mut tried: Vec<String> = Vec::new();
        let mut faults = Vec::new();
        for ((field, _), side) in SIDES.iter().zip([sides.input, sides.output]) {
            let text = |key: &str| Some(side.as_ref()?.get(key)?.as_str()?.to_owned());
            let Some(file) = text("file").filter(|_| text("kind").as_deref() == Some("trace"))
            else {
                continue;
            };
            if file.is_empty() || tried.contains(&file) {
                continue;
            }
            faults.extend(trace_of(document, field, &file).err());
            tried.push(file);
        }
        faults
    }

    fn validate(&self) -> Result<(), Faults> {
        Workload::validate(self)
    }
}

impl Profile for EngineProfile {
    const KIND: &'static str = "engine";
    const FOLDER: &'static str = "engines";

    fn parse(document: &Document<'_>, _: &Library, _: u32) -> Result<Self, Fault> {
        document.read()
    }

    fn validate(&self) -> Result<(), Faults> {
        EngineProfile::validate(self).map_err(|error| {
            // The file is named by whoever opened it; here only what is wrong counts.
            let message = match error {
                EngineError::Fault { fault, .. } => fault,
                other => other.to_string(),
            };
            Fault::field("", message).into()
        })
    }
}
