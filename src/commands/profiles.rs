//! `profiles`: what parplan knows, and what you add to it.

use crate::args::{ProfilesArgs, ProfilesCommand};
use crate::ask;
use crate::failure::Failure;
use crate::output::Style;

mod add;
mod check;
mod list;
mod machine;
mod show;

/// Runs one of the profile commands.
///
/// # Errors
/// A name that is not known, a file that cannot be used, a folder that cannot be written to.
pub fn run(args: &ProfilesArgs, style: Style) -> Result<String, Failure> {
    let library = match &args.command {
        // A profile may be the first one of its folder.
        ProfilesCommand::Add { .. } => ask::library_to_be(args.profiles.as_deref()),
        _ => ask::library(args.profiles.as_deref())?,
    };
    match &args.command {
        ProfilesCommand::List { kind } => list::run(&library, *kind, args.json, style),
        ProfilesCommand::Show { name, kind } => show::run(&library, name, *kind, args.json),
        ProfilesCommand::Check { path } => check::run(&library, path.as_deref()),
        ProfilesCommand::Add {
            file,
            from_this_machine: _,
            name,
            replace,
        } => match file {
            Some(file) => add::run(&library, file, name.as_deref(), *replace),
            None => machine::run(&library, name.as_deref(), *replace),
        },
    }
}
