//! Arguments of the commands around planning: profiles, completions, man pages.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Arguments of `profiles`.
#[derive(Debug, Args)]
pub struct ProfilesArgs {
    /// What to do with profiles.
    #[command(subcommand)]
    pub command: ProfilesCommand,
    /// Folder of your own profiles, which come before the built-in ones
    /// [default: parplan/profiles in your configuration folder]
    #[arg(long, value_name = "DIR", env = crate::ask::PROFILES_VARIABLE, global = true)]
    pub profiles: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
}

/// What can be done with profiles.
#[derive(Debug, Subcommand)]
pub enum ProfilesCommand {
    /// List every profile, or those of one kind
    List {
        /// Only these
        kind: Option<ProfileKind>,
    },
    /// Show one profile as TOML, with what follows from it
    Show {
        /// A model, GPU, workload or engine (name or name@version), or a path to a config.json
        name: String,
        /// Where a name could mean several things
        #[arg(long)]
        kind: Option<ProfileKind>,
    },
    /// Check every profile of a folder, or one file or config.json, and name every fault
    Check {
        /// The folder or file [default: your own profiles]
        path: Option<PathBuf>,
    },
    /// Check a profile (TOML) or a config.json, or make one of this machine's GPUs, and add it to
    /// your own profiles
    Add {
        /// The file
        #[arg(required_unless_present = "from_this_machine")]
        file: Option<PathBuf>,
        /// Describe the NVIDIA GPUs of this machine as their driver does (NVML)
        #[arg(long, conflicts_with = "file")]
        from_this_machine: bool,
        /// Call it this instead of the name in the file [default for --from-this-machine:
        /// this-machine]
        #[arg(long)]
        name: Option<String>,
        /// Replace one of yours that has the name
        #[arg(long)]
        replace: bool,
    },
}

/// A kind of profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProfileKind {
    /// Models
    #[value(alias = "model")]
    Models,
    /// GPUs
    #[value(alias = "gpu")]
    Gpus,
    /// Engines
    #[value(alias = "engine")]
    Engines,
    /// Workloads
    #[value(alias = "workload")]
    Workloads,
}

impl ProfileKind {
    /// Its name, as typed and in JSON.
    pub fn plural(self) -> &'static str {
        match self {
            ProfileKind::Models => "models",
            ProfileKind::Gpus => "gpus",
            ProfileKind::Engines => "engines",
            ProfileKind::Workloads => "workloads",
        }
    }
}

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// Arguments of `man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write parplan.1, parplan-estimate.1 and so on into this folder
    #[arg(long, value_name = "DIR")]
    pub folder: Option<PathBuf>,
}
