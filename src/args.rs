//! What was typed. Every flag is defined here, once; help, man pages and completions follow.

use crate::failure::Failure;
use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;

mod bench;
mod calibrate;
mod elsewhere;
mod explore;
mod launch;
mod library;
mod question;
mod recommend;
mod side;
mod split;
mod values;

pub use bench::{BenchArgs, BenchManner, BenchTraffic};
pub use calibrate::{CalibrateArgs, ImportArgs, VerifyArgs};
pub use explore::{AsTyped, ExploreArgs, Typed, is_switch, of_the_question, question};
pub use launch::{Asked, Check, LaunchArgs, ScriptKind, StartArgs, WatchArgs};
pub use library::{CompletionsArgs, ManArgs, ProfileKind, ProfilesArgs, ProfilesCommand};
pub use question::{
    EngineArgs, LimitArgs, ModelArgs, OutputArgs, QuestionArgs, SettingArgs, SwitchArgs,
    TrafficArgs,
};
pub use recommend::{By, CompareArgs, Ranking, RankingArgs, RecommendArgs};
pub use side::Side;
pub use split::LayoutArgs;
pub use values::{
    Imbalance, KvFormat, Lengths, MAX_GPUS, Speculative, Switch, named, weight_format,
};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "parplan",
    version,
    about = "Plan how to split an LLM over GPUs for your traffic, and what it will cost",
    after_help = "Start with `parplan profiles list`, then `parplan recommend`, then `parplan explain` on its\nbest layout. `parplan COMMAND --help` shows every option with its unit.",
    propagate_version = true,
    args_override_self = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What parplan can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Find the best layouts for your model, GPUs and traffic, with the launch command
    Recommend(RecommendArgs),
    /// Predict one fixed layout: latency, throughput, memory, KV capacity
    Estimate(QuestionArgs),
    /// Show where the time, bytes and memory of one layout go
    Explain(QuestionArgs),
    /// Compare two layouts, and find where the winner changes
    Compare(CompareArgs),
    /// Change the question and watch the answer: ranking, plot, memory, steps, on a full screen
    Explore(ExploreArgs),
    /// List, show, check or add models, GPUs and engines
    Profiles(ProfilesArgs),
    /// Measure this machine, so that plans rest on what it does
    Calibrate(CalibrateArgs),
    /// Run held-out decoder stacks, and hold predictions against them
    Verify(VerifyArgs),
    /// Read results of nccl-tests, SGLang bench_serving, `vllm bench serve` or AIPerf
    Import(ImportArgs),
    /// Start what was planned, watch it, and hold its own report against the plan
    Launch(Box<LaunchArgs>),
    /// Drive an OpenAI-compatible server with planned traffic, and compare with the plan
    Bench(BenchArgs),
    /// Keep an engine for `launch`; not started by hand
    #[command(hide = true)]
    Keep,
    /// Run collectives, DP gather or metadata sync on this machine's CPU or GPUs
    Run(crate::run::Arguments),
    /// Run a plan of the builtin executor here, and hold it against the prediction
    Exec(Box<crate::exec::ExecArgs>),
    /// Print completions for a shell
    Completions(CompletionsArgs),
    /// Print the man page, or write one page a command into a folder
    Man(ManArgs),
}

/// Reads the process's arguments.
///
/// Help and version are printed here, and end the process with exit code 0.
///
/// # Errors
/// Anything else that clap refuses, in one line.
pub fn parse() -> Result<Cli, Failure> {
    typed(std::env::args_os()).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => error.exit(),
        _ => Failure::unusable(refusal(&error)),
    })
}

/// The arguments of `recommend` from words, as `calibrate --for` takes them.
///
/// # Errors
/// What clap refuses, in one line.
pub fn recommend_of(words: &[String]) -> Result<RecommendArgs, Failure> {
    let all = ["parplan", "recommend"]
        .into_iter()
        .chain(words.iter().map(String::as_str));
    match typed(all) {
        Ok(Cli {
            command: Command::Recommend(args),
        }) => Ok(args),
        Ok(_) => Err(Failure::unusable("--for takes the options of recommend")),
        Err(error) => Err(Failure::unusable(format!("--for: {}", refusal(&error)))),
    }
}

/// The command for parsing, man pages and completions. A value may look like a negative number, so
/// that the option's own message says what is wrong with it. An environment variable that is empty is
/// one that is not set. Help is the short form throughout, a few lines an option.
pub fn command() -> clap::Command {
    fn prepared(command: clap::Command) -> clap::Command {
        let help = Arg::new("help").short('h').long("help").help("Print help");
        command
            .disable_help_flag(true)
            .arg(help.action(ArgAction::HelpShort))
            .mut_args(|arg| {
                let is_empty = |name: &std::ffi::OsStr| {
                    std::env::var_os(name).is_some_and(|value| value.is_empty())
                };
                let arg = match arg.get_env().is_some_and(is_empty) {
                    true => arg.env(Resettable::Reset),
                    false => arg,
                };
                match arg.get_action().takes_values() {
                    true => arg.allow_negative_numbers(true),
                    false => arg,
                }
            })
            .mut_subcommands(prepared)
    }
    prepared(Cli::command())
}

/// Arguments from words, the program's name first.
fn typed<W: Into<OsString> + Clone>(
    words: impl IntoIterator<Item = W>,
) -> clap::error::Result<Cli> {
    let mut command = command();
    let mut matches = command.try_get_matches_from_mut(words)?;
    Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
}

/// What clap refuses, in one line, and where the missing names are found.
fn refusal(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::InvalidUtf8
        && let Some((at, word)) = std::env::args_os()
            .enumerate()
            .find(|(_, word)| word.to_str().is_none())
    {
        return format!(
            "argument {at} is `{}`, which is not UTF-8; names and values are given in UTF-8",
            shortened(&word.to_string_lossy())
        );
    }
    let mut text = one_line(&error.render().to_string());
    if let Some((option, here)) = known_elsewhere(error) {
        return format!("unexpected argument '{option}': {here}");
    }
    if error.kind() == ErrorKind::InvalidSubcommand && !text.contains("tip:") {
        text.push_str("; `parplan --help` lists the commands");
    }
    if let Some((theirs, right)) = number_wanted(error) {
        text = text.replace(&theirs, right);
    }
    if let Some((theirs, right)) = range_wanted(error) {
        text = text.replace(&theirs, &right);
    }
    let missing = error.kind() == ErrorKind::MissingRequiredArgument;
    if missing && (text.contains("--model") || text.contains("--gpu")) {
        text.push_str("; `parplan profiles list` names the models and GPUs");
    }
    text
}

/// An option that another program has, and what stands for it here.
fn known_elsewhere(error: &clap::Error) -> Option<(&str, &'static str)> {
    use clap::error::{ContextKind, ContextValue};
    let ErrorKind::UnknownArgument = error.kind() else {
        return None;
    };
    let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let here = elsewhere::named(option)?;
    // Of use only to a command that has one of what is offered.
    let asked = command_of(&error.render().to_string());
    let offered = |flag: &str| asked.get_arguments().any(|a| a.get_long() == Some(flag));
    elsewhere::offered(here)
        .any(offered)
        .then_some((option, here))
}

/// The command that a message of clap is about, by its line of usage.
fn command_of(message: &str) -> clap::Command {
    let mut asked = command();
    let usage = message.split("Usage: parplan ").nth(1).unwrap_or_default();
    for word in usage.split_whitespace() {
        match asked.find_subcommand(word) {
            Some(below) => asked = below.clone(),
            None => break,
        }
    }
    asked
}

/// Where a number could not be read: Rust's words, and what would be right. Options with a
/// range of their own have words of their own.
fn number_wanted(error: &clap::Error) -> Option<(String, &'static str)> {
    use std::num::{IntErrorKind, ParseFloatError, ParseIntError};
    let source = std::error::Error::source(error)?;
    let right = if let Some(e) = source.downcast_ref::<ParseIntError>() {
        match e.kind() {
            IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => {
                "must be a smaller whole number"
            }
            _ => "must be a whole number, such as 0, 1 or 64",
        }
    } else if source.is::<ParseFloatError>() {
        "must be a number, such as 0.5 or 30"
    } else {
        return None;
    };
    Some((source.to_string(), right))
}

/// Where a number is out of its range: Clap's words, and ours.
fn range_wanted(error: &clap::Error) -> Option<(String, String)> {
    let theirs = std::error::Error::source(error)?.to_string();
    let (_, range) = theirs.split_once(" is not in ")?;
    let right = match range.split_once("..=") {
        Some((low, high)) => format!("must be a whole number from {low} to {high}"),
        None => format!(
            "must be a whole number of {} or more",
            range.strip_suffix("..")?
        ),
    };
    Some((theirs, right))
}

/// Clap's message without its usage block, as one line.
fn one_line(message: &str) -> String {
    let parts: Vec<&str> = message
        .lines()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let text = parts.join("; ").replace(":; ", ": ");
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    shortened(text)
}

/// The beginning and the end of a message that quotes something very long.
fn shortened(text: &str) -> String {
    const ENDS: usize = 300;
    let length = text.chars().count();
    if length <= 2 * ENDS {
        return text.to_owned();
    }
    let begin: String = text.chars().take(ENDS).collect();
    let end: String = text.chars().skip(length - ENDS).collect();
    format!("{begin} … {end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        command().debug_assert();
    }

    #[test]
    fn a_very_long_value_is_quoted_in_part() {
        let long = "x".repeat(100_000);
        let error = typed(["parplan", "estimate", "--tp", &long]).unwrap_err();
        let line = one_line(&error.render().to_string());
        assert!(line.chars().count() < 700, "{}", line.len());
        assert!(line.contains("1 to 16384"), "{line}");
    }

    #[test]
    fn a_number_that_cannot_be_read_is_told_what_would_be_right() {
        let asked = [
            ("sync", "--ranks", "x"),
            ("sync", "--ranks", "-1"),
            ("stack", "--batch", "1.5"),
            ("stack", "--layers", "99999999999999999999999"),
            ("stack", "--scale", "two"),
            ("collectives", "--at-least", "x"),
        ];
        for (run, option, value) in asked {
            let error = typed(["parplan", "run", run, option, value]).unwrap_err();
            let line = refusal(&error);
            assert!(
                line.contains(option) && line.contains(value) && line.contains("must be a "),
                "{line}"
            );
            let theirs = ["digit found", "literal", "target type"];
            assert!(!theirs.iter().any(|t| line.contains(t)), "{line}");
        }
    }

    #[test]
    fn a_number_out_of_its_range_is_told_the_range() {
        for (run, option, value, right) in [
            ("stack", "--scale", "0", "a whole number from 1 to 64"),
            ("sync", "--rounds", "0", "a whole number from 1 to "),
        ] {
            let error = typed(["parplan", "run", run, option, value]).unwrap_err();
            let line = refusal(&error);
            assert!(line.contains(option) && line.contains(right), "{line}");
            assert!(!line.contains(".."), "{line}");
        }
    }

    #[test]
    fn options_of_engines_lead_to_those_of_parplan() {
        for (words, right) in [
            (["--tensor-parallel-size", "8"], "--tp is all GPUs"),
            (["--dp=2", "--json"], "--attn-dp is groups"),
            (["-tp", "8"], "--tp is all GPUs"),
            (["--max-num-seqs", "64"], "--max-running-requests"),
        ] {
            let all = ["parplan", "recommend"].into_iter().chain(words);
            let line = refusal(&typed(all).unwrap_err());
            let named = words[0].split('=').next().unwrap();
            assert!(line.contains(right), "{line}");
            assert!(line.contains(named) || named == "-tp", "{line}");
        }
        // What a command does not have is not offered to it.
        let line = refusal(&typed(["parplan", "calibrate", "--num-gpus", "2"]).unwrap_err());
        assert!(!line.contains("how many there are"), "{line}");
        let line = refusal(&typed(["parplan", "fit"]).unwrap_err());
        assert!(line.contains("'fit'") && line.contains("--help"), "{line}");
    }

    #[test]
    fn a_message_of_clap_becomes_one_line() {
        let error = typed(["parplan", "estimate", "--modell", "x"]).unwrap_err();
        let line = one_line(&error.render().to_string());
        assert!(!line.contains('\n') && !line.starts_with("error"), "{line}");
        assert!(
            line.contains("--modell") && line.contains("--model"),
            "{line}"
        );
    }
}
