//! Arguments of `launch` and of the process that keeps an engine.

use super::{QuestionArgs, values};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches, ValueEnum};
use std::path::PathBuf;

/// Arguments of `launch`.
#[derive(Debug, Args)]
#[command(
    after_help = "Sizes that are left open are decided as `parplan recommend` does. What is \
    started is stopped by Ctrl-C;\nwhen it has failed, the log says why."
)]
pub struct LaunchArgs {
    // Read first: what is read before it can no longer be seen to have been given.
    /// What is asked, where no plan is given.
    #[command(flatten)]
    pub asked: Asked,
    /// A plan that `recommend --save` wrote; without one, the question is asked by its options
    #[arg(value_name = "PLAN.TOML")]
    pub plan: Option<PathBuf>,
    /// How it is started.
    #[command(flatten)]
    pub start: StartArgs,
    /// How it is watched.
    #[command(flatten)]
    pub watch: WatchArgs,
    /// More arguments for the engine, each passed on as it is
    #[arg(last = true, value_name = "ENGINE ARGS")]
    pub extra: Vec<String>,
}

/// What the engine is told, beside the plan.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Start")]
pub struct StartArgs {
    /// Path or repository that the engine loads [default: the plan's]
    #[arg(long, value_name = "PATH|ID")]
    pub model_path: Option<String>,
    /// Name that clients ask for [default: the engine's, the path of the model]
    #[arg(long, value_name = "NAME")]
    pub served_name: Option<String>,
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: String,
    /// Port of the first replica; the next ones follow 100 apart
    #[arg(long, value_name = "PORT", default_value = "30000")]
    pub port: u16,
    /// Virtual environment that holds the engine [default: what PATH finds]
    #[arg(long, value_name = "DIR", env = "PARPLAN_ENGINE_VENV")]
    pub venv: Option<PathBuf>,
    /// Environment variable for the engine, over those of the plan
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// Run code that the model repository ships
    #[arg(long)]
    pub trust_remote_code: bool,
    /// Names or addresses of the machines of a plan over several, in order
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub machines: Vec<String>,
    /// Which of the plan's machines this one is, from 0
    #[arg(long, value_name = "N")]
    pub node: Option<u32>,
    /// Start although SGLang's symmetric-memory option turns NVLS on in its processes, against
    /// NCCL_NVLS_ENABLE=0 in this environment
    #[arg(long)]
    pub allow_nvls: bool,
    /// Checks before the start to leave out
    #[arg(long, value_name = "NAME", value_enum, value_delimiter = ',')]
    pub skip_preflight: Vec<Check>,
}

/// How the engine is watched.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Watch")]
pub struct WatchArgs {
    /// Print what would run, and its checks, and start nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Write a script instead of starting anything: sh, slurm, kubernetes (LeaderWorkerSet) or ray
    /// (vLLM), to this file
    #[arg(long, value_name = "KIND=FILE", value_parser = write)]
    pub write: Option<(ScriptKind, PathBuf)>,
    /// Leave the engine running once it is ready; its process is named
    #[arg(long)]
    pub detach: bool,
    /// Where the engine's output goes [default: parplan-ENGINE-PORT.log in this folder]
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Seconds until the engine must be ready
    #[arg(long, value_name = "SECONDS", default_value = "1800", value_parser = values::seconds)]
    pub deadline: f64,
    /// Seconds that the engine has to end after it was asked to, before it is killed
    #[arg(long, value_name = "SECONDS", default_value = "20", value_parser = values::seconds)]
    pub grace: f64,
}

/// A check before the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum Check {
    /// The GPUs of the plan are there
    Gpus,
    /// Their memory is free, as far as the plan needs it
    Memory,
    /// The engine is installed
    Engine,
    /// In the version that the plan is for
    Version,
    /// Which takes every flag of the command
    Flags,
    /// The model can be read
    Model,
    /// The port is free
    Port,
    /// Nobody turned NVLS off; `--allow-nvls` alone passes over it
    #[value(skip)]
    Nvls,
}

impl Check {
    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Check::Gpus => "gpus",
            Check::Memory => "memory",
            Check::Engine => "engine",
            Check::Version => "version",
            Check::Flags => "flags",
            Check::Model => "model",
            Check::Port => "port",
            Check::Nvls => "nvls",
        }
    }
}

/// What starts a plan on machines that parplan does not run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ScriptKind {
    /// A POSIX shell script, one branch a machine
    Sh,
    /// A Slurm batch script
    Slurm,
    /// A LeaderWorkerSet for Kubernetes
    Kubernetes,
    /// Ray's commands, and vLLM over them
    Ray,
}

fn write(text: &str) -> Result<(ScriptKind, PathBuf), String> {
    const WHAT: &str =
        "must be KIND=FILE with sh, slurm, kubernetes or ray, such as slurm=serve.sbatch";
    let (kind, file) = text.split_once('=').ok_or(WHAT)?;
    let kind = ScriptKind::from_str(kind, false).map_err(|_| WHAT)?;
    match file {
        "" => Err(WHAT.to_owned()),
        file => Ok((kind, PathBuf::from(file))),
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("must be NAME=VALUE".to_owned()),
    }
}

/// The options of a question, which a plan file makes needless. With a plan only those that say
/// which engine starts it and how the answer looks may be given.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The question, where it is asked.
    pub question: Option<QuestionArgs>,
    /// `--engine`.
    pub engine: Option<String>,
    /// `--profiles`.
    pub profiles: Option<PathBuf>,
    /// `--json`.
    pub json: bool,
}

/// Options that a plan file leaves open.
const BESIDE_A_PLAN: [&str; 3] = ["engine", "profiles", "json"];

impl Args for Asked {
    fn augment_args(command: Command) -> Command {
        ["model", "gpu"]
            .into_iter()
            .fold(QuestionArgs::augment_args(command), |command, id| {
                command.mut_arg(id, |arg| {
                    arg.required(false).required_unless_present("plan")
                })
            })
    }

    fn augment_args_for_update(command: Command) -> Command {
        QuestionArgs::augment_args_for_update(command)
    }
}

impl FromArgMatches for Asked {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Asked, clap::Error> {
        let engine = matches.get_one::<String>("engine").cloned();
        let profiles = matches.get_one::<PathBuf>("profiles").cloned();
        let json = matches.get_flag("json");
        let planned = matches.value_source("plan").is_some();
        if planned {
            let options = QuestionArgs::augment_args(Command::new("question"));
            let typed = options.get_arguments().find(|arg| {
                let id = arg.get_id().as_str();
                !BESIDE_A_PLAN.contains(&id)
                    && matches.value_source(id) == Some(ValueSource::CommandLine)
            });
            if let Some(arg) = typed {
                let flag = arg.get_long().unwrap_or_else(|| arg.get_id().as_str());
                return Err(clap::Error::raw(
                    ErrorKind::ArgumentConflict,
                    format!(
                        "--{flag} belongs to a question, and the plan file answers one; leave it \
                         out, or leave the plan out\n"
                    ),
                ));
            }
        }
        let question = match planned {
            true => None,
            false => Some(QuestionArgs::from_arg_matches(matches)?),
        };
        Ok(Asked {
            question,
            engine,
            profiles,
            json,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Asked::from_arg_matches(matches)?;
        Ok(())
    }
}
