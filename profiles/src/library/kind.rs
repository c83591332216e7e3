//! The kinds of profile that the library holds.

use super::Library;
use super::overlay::ModelOverlay;
use super::text::Document;
use crate::fault::{Fault, Faults};
use crate::gpu::GpuProfile;
use crate::model::ModelProfile;

/// A kind of profile.
pub(crate) trait Profile: Sized {
    /// What it is called in messages.
    const KIND: &'static str;
    /// The folder that holds its files.
    const FOLDER: &'static str;
    /// Reads one file.
    fn parse(document: &Document<'_>, library: &Library, depth: u32) -> Result<Self, Fault>;
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
            Ok(base) => Ok(overlay.on(base)),
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
