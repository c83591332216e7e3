//! Arguments of `explore`: those of `recommend`, none of them required, kept as they were typed.

use super::RecommendArgs;
use crate::failure::Failure;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use std::ffi::OsString;
use std::path::PathBuf;

/// Options of `recommend` that belong to its answer rather than to the question.
const OF_THE_ANSWER: [&str; 4] = ["json", "stats", "save", "top"];

/// Arguments of `explore`.
#[derive(Debug, Clone, Args)]
pub struct ExploreArgs {
    /// The question to begin with.
    #[command(flatten)]
    pub typed: Typed,
    /// Write these files and end, without a screen: the best configuration as a plan (.toml) or as a
    /// launch script (.sh), the whole answer (.json), the plot of throughput against speed (.svg)
    #[arg(long, value_name = "FILE", help_heading = "Output", num_args = 1)]
    pub export: Vec<PathBuf>,
    /// Follow a running calibration: measured points land on the predicted curves
    #[arg(long, value_name = "JOURNAL", help_heading = "Output")]
    pub watch: Option<PathBuf>,
}

/// Options of a question as text, by the name of the flag.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Typed {
    options: Vec<(String, OsString)>,
}

impl Typed {
    /// Fixes an option; text of nothing leaves it open.
    pub fn set(&mut self, flag: &str, value: impl Into<OsString>) {
        let value = value.into();
        self.options.retain(|(name, _)| name != flag);
        if !value.is_empty() {
            self.options.push((flag.to_owned(), value));
        }
    }

    /// What was typed for an option; nothing where it was left open.
    pub fn get(&self, flag: &str) -> Option<&OsString> {
        let typed = self.options.iter().find(|(name, _)| name == flag);
        typed.map(|(_, value)| value)
    }

    /// Every option that is fixed.
    pub fn options(&self) -> &[(String, OsString)] {
        &self.options
    }

    /// The options as words of a command line, but for those in `without`.
    pub fn words(&self, without: &[&str]) -> Vec<String> {
        let command = question();
        let is_switch = |flag: &str| {
            let mut arguments = command.get_arguments();
            arguments.any(|argument| argument.get_long() == Some(flag) && is_switch(argument))
        };
        let mut words = Vec::new();
        for (flag, value) in &self.options {
            if without.contains(&flag.as_str()) {
                continue;
            }
            let value = value.to_string_lossy();
            if is_switch(flag) {
                words.push(format!("--{flag}"));
            } else if value.starts_with('-') {
                words.push(format!("--{flag}={value}"));
            } else {
                words.extend([format!("--{flag}"), value.into_owned()]);
            }
        }
        words
    }

    /// The question, read exactly as the command line of `recommend` is.
    ///
    /// # Errors
    /// The first value that cannot be used, with the flag that it was given for.
    pub fn read(&self) -> Result<RecommendArgs, Failure> {
        let command = question().no_binary_name(true);
        let switches: Vec<String> = command
            .get_arguments()
            .filter(|argument| is_switch(argument))
            .filter_map(|argument| argument.get_long().map(str::to_owned))
            .collect();
        let mut words = Vec::new();
        for (flag, value) in &self.options {
            let mut word = OsString::from(format!("--{flag}"));
            match (switches.contains(flag), value.to_str()) {
                (true, Some("on")) => {}
                (true, Some("off")) => continue,
                (true, _) => {
                    return Err(Failure::unusable(format!(
                        "--{flag} is `{}`; it must be on or off",
                        value.to_string_lossy()
                    )));
                }
                (false, _) => {
                    word.push("=");
                    word.push(value);
                }
            }
            words.push(word);
        }
        command
            .try_get_matches_from(words)
            .and_then(|matches| RecommendArgs::from_arg_matches(&matches))
            .map_err(|error| match (error.kind(), self.missing()) {
                (ErrorKind::MissingRequiredArgument, Some(flag)) => {
                    Failure::unusable(format!("--{flag} is not given"))
                }
                _ => Failure::unusable(super::one_line(&error.render().to_string())),
            })
    }

    /// The first required option that is not given.
    fn missing(&self) -> Option<String> {
        let command = question();
        let mut required = command.get_arguments().filter(|a| a.is_required_set());
        let missing = required.find(|argument| {
            let flag = argument.get_long().unwrap_or_default();
            self.get(flag).is_none()
        });
        Some(missing?.get_long()?.to_owned())
    }
}

/// The options of a question, as `recommend` defines them, in its order.
pub fn question() -> Command {
    RecommendArgs::augment_args(Command::new("explore"))
}

/// Whether an argument is typed without a value.
pub fn is_switch(argument: &Arg) -> bool {
    !argument.get_action().takes_values()
}

/// Whether an argument of `recommend` is about the question.
pub fn of_the_question(argument: &Arg) -> bool {
    argument.get_long().is_some() && !OF_THE_ANSWER.contains(&argument.get_id().as_str())
}

impl Args for Typed {
    fn augment_args(command: Command) -> Command {
        let arguments: Vec<Arg> = question()
            .get_arguments()
            .filter(|argument| of_the_question(argument))
            .map(|argument| argument.clone().required(false))
            .collect();
        command.args(arguments)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Typed::augment_args(command)
    }
}

impl FromArgMatches for Typed {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Typed, clap::Error> {
        let mut typed = Typed::default();
        for argument in question().get_arguments().filter(|a| of_the_question(a)) {
            let id = argument.get_id().as_str();
            // The environment is read again with the question; only words of the line are kept.
            if matches.value_source(id) != Some(ValueSource::CommandLine) {
                continue;
            }
            let flag = argument.get_long().unwrap_or(id);
            if is_switch(argument) {
                typed.set(flag, "on");
            } else if let Some(values) = matches.get_raw(id) {
                let words: Vec<&std::ffi::OsStr> = values.collect();
                typed.set(flag, words.join(std::ffi::OsStr::new(",")));
            }
        }
        Ok(typed)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Typed::from_arg_matches(matches)?;
        Ok(())
    }
}

/// What was typed, beside the question that was read from it.
#[derive(Debug, Clone, Default)]
pub struct AsTyped(pub Typed);

impl Args for AsTyped {
    fn augment_args(command: Command) -> Command {
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        command
    }
}

impl FromArgMatches for AsTyped {
    fn from_arg_matches(matches: &ArgMatches) -> Result<AsTyped, clap::Error> {
        Typed::from_arg_matches(matches).map(AsTyped)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cli, Command as Which};
    use super::*;
    use clap::Parser;

    fn typed(words: &[&str]) -> Typed {
        let mut all = vec!["parplan", "explore"];
        all.extend(words);
        match Cli::try_parse_from(all).unwrap().command {
            Which::Explore(args) => args.typed,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_was_typed_is_kept_and_read_again() {
        let typed = typed(&[
            "--model",
            "qwen3-8b",
            "--gpu",
            "h200",
            "--gpus",
            "4",
            "--kv-dtype",
            "bf16,fp8",
            "--engine-assume",
            "--isl",
            "77.5",
        ]);
        assert_eq!(typed.get("kv-dtype"), Some(&OsString::from("bf16,fp8")));
        assert_eq!(typed.get("osl"), None);
        let read = typed.read().unwrap();
        assert_eq!(read.question.model.model, "qwen3-8b");
        assert_eq!(read.question.model.gpus, Some(4));
        assert_eq!(read.question.switches.kv_dtype.len(), 2);
        assert!(read.question.engine.engine_assume);
        assert_eq!(read.question.traffic.osl, None);
    }

    #[test]
    fn what_was_typed_can_be_typed_again() {
        let words = ["--model", "my model", "--engine-assume", "--workload=-x"];
        let mut all = words.to_vec();
        all.sort_unstable();
        let typed = typed(&words);
        let mut again = typed.words(&[]);
        again.sort_unstable();
        assert_eq!(again, all);
        assert_eq!(typed.words(&["model", "workload"]), ["--engine-assume"]);
    }

    #[test]
    fn nothing_is_required_until_it_is_read() {
        let message = |typed: &Typed| typed.read().unwrap_err().to_string();
        let mut empty = typed(&[]);
        assert_eq!(message(&empty), "--model is not given");
        empty.set("model", "qwen3-8b");
        assert_eq!(message(&empty), "--gpu is not given");
    }

    #[test]
    fn a_switch_is_on_or_off() {
        let mut typed = typed(&["--model", "qwen3-8b", "--gpu", "h200"]);
        for (text, on) in [("on", true), ("off", false)] {
            typed.set("engine-assume", text);
            assert_eq!(typed.read().unwrap().question.engine.engine_assume, on);
        }
        typed.set("engine-assume", "maybe");
        let message = typed.read().unwrap_err().to_string();
        assert!(message.contains("--engine-assume is `maybe`"), "{message}");
    }

    #[test]
    fn any_text_is_a_value_and_never_an_option() {
        let mut typed = Typed::default();
        typed.set("model", "--json");
        typed.set("gpu", "-h200 --help");
        assert_eq!(typed.read().unwrap().question.model.model, "--json");
        typed.set("isl", "-5");
        let message = typed.read().unwrap_err().to_string();
        assert!(
            message.contains("--isl") && message.contains("-5"),
            "{message}"
        );
    }
}
