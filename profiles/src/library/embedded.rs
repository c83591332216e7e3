//! The profile files compiled into the binary.

use include_dir::{Dir, include_dir};

static MODELS: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/data/models");
static GPUS: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/data/gpus");
static WORKLOADS: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/data/workloads");

/// One embedded file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbeddedFile {
    /// File name without `.toml`; the name of the profile in it.
    pub stem: &'static str,
    /// Path below `profiles/data`, for messages.
    pub path: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// The embedded files of a kind, by the name of their folder, in order of name.
pub(super) fn files(folder: &str) -> impl Iterator<Item = EmbeddedFile> + use<> {
    let dir = match folder {
        "models" => Some(&MODELS),
        "gpus" => Some(&GPUS),
        "workloads" => Some(&WORKLOADS),
        _ => None,
    };
    let files = dir.into_iter().flat_map(|dir| {
        dir.files().filter_map(|file| {
            Some(EmbeddedFile {
                stem: file.path().file_stem()?.to_str()?,
                path: file.path().to_str()?,
                text: file.contents_utf8()?,
            })
        })
    });
    // The engines' room embeds its own few files.
    let engines: &'static [(&'static str, &'static str)] = match folder {
        "engines" => &crate::engine::EMBEDDED,
        _ => &[],
    };
    files.chain(engines.iter().filter_map(|(path, text)| {
        Some(EmbeddedFile {
            stem: path.strip_suffix(".toml")?,
            path,
            text,
        })
    }))
}
