//! `completions` and `man`: made from the definitions of the flags.

use crate::args;
use crate::failure::Failure;
use clap_complete::Shell;
use std::path::Path;

/// Completions for a shell.
///
/// # Errors
/// A script that is not text, which no shell's is.
pub fn completions(shell: Shell) -> Result<String, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::command(), "parplan", &mut script);
    text(script)
}

/// The man page, or one page a command in a folder.
///
/// # Errors
/// A folder that cannot be written to.
pub fn man(folder: Option<&Path>) -> Result<String, Failure> {
    let Some(folder) = folder else {
        let mut page = Vec::new();
        let rendered = clap_mangen::Man::new(args::command()).render(&mut page);
        rendered.map_err(|error| Failure::failed(error.to_string()))?;
        return text(page);
    };
    let cannot = |error: std::io::Error| {
        Failure::failed(format!("{}: cannot be written: {error}", folder.display()))
    };
    std::fs::create_dir_all(folder).map_err(cannot)?;
    clap_mangen::generate_to(args::command(), folder).map_err(cannot)?;
    Ok(String::new())
}

fn text(bytes: Vec<u8>) -> Result<String, Failure> {
    String::from_utf8(bytes).map_err(|error| Failure::failed(error.to_string()))
}
