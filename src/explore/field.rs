//! One field of the form: an option of `recommend`, as its definition has it.

use crate::args::{self, Typed};
use clap::Arg;
use parplan_profiles::{Dtype, Library};

/// Options that a search cannot do without, although other commands can.
const NEEDED: [&str; 1] = ["gpus"];
/// One option.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// The name of its flag, which is its label.
    pub flag: String,
    /// The heading that it stands under.
    pub group: String,
    /// What it means.
    pub help: String,
    /// What holds where nothing is typed.
    pub default: String,
    /// Values to choose from or to complete; any other may be typed unless `closed`.
    pub words: Vec<String>,
    /// Nothing but one of the words is right.
    pub closed: bool,
    /// What is typed; nothing leaves the default.
    pub text: String,
}

/// Names that fields complete to.
#[derive(Debug, Clone, Default)]
pub struct Vocabulary {
    /// Names by flag.
    pub words: Vec<(&'static str, Vec<String>)>,
}

impl Vocabulary {
    /// The names of a library's profiles, and of number formats.
    pub fn of(library: &Library) -> Vocabulary {
        let names = |listed: Result<Vec<parplan_profiles::Listed>, _>| -> Vec<String> {
            let listed: Result<_, parplan_profiles::Faults> = listed;
            // A broken profile of the user's is said when it is used.
            listed
                .map(|all| all.into_iter().map(|one| one.name).collect())
                .unwrap_or_default()
        };
        let formats = || Dtype::ALL.map(|dtype| dtype.name().to_owned()).to_vec();
        Vocabulary {
            words: vec![
                ("model", names(library.models())),
                ("gpu", names(library.gpus())),
                ("engine", names(library.engines())),
                ("workload", names(library.workloads())),
                ("weights", formats()),
                ("kv-dtype", formats()),
            ],
        }
    }

    fn of_flag(&self, flag: &str) -> Vec<String> {
        let known = self.words.iter().find(|(name, _)| *name == flag);
        known.map(|(_, words)| words.clone()).unwrap_or_default()
    }
}

/// The field of an option, filled in with what was typed.
pub fn field(argument: &Arg, vocabulary: &Vocabulary, typed: &Typed) -> Field {
    let flag = argument.get_long().unwrap_or_default().to_owned();
    let help = argument
        .get_help()
        .map(ToString::to_string)
        .unwrap_or_default();
    let possible: Vec<String> = argument
        .get_possible_values()
        .iter()
        .map(|value| value.get_name().to_owned())
        .collect();
    let switch = args::is_switch(argument);
    let (words, closed) = match (switch, possible.is_empty()) {
        (true, _) => (vec!["off".to_owned(), "on".to_owned()], true),
        (false, false) => (possible, true),
        (false, true) => (vocabulary.of_flag(&flag), false),
    };
    let default = match argument.get_default_values().first() {
        _ if switch => "off".to_owned(),
        Some(value) => value.to_string_lossy().into_owned(),
        None if argument.is_required_set() || NEEDED.contains(&flag.as_str()) => "?".to_owned(),
        None => said_default(&help).unwrap_or_default(),
    };
    let group = argument.get_help_heading().unwrap_or("Other").to_owned();
    Field {
        text: typed
            .get(&flag)
            .map(|value| value.to_string_lossy().into_owned())
            .unwrap_or_default(),
        // A layout's help names what `estimate` takes; a search leaves sizes open.
        default: if group.starts_with("Layout") {
            "any".to_owned()
        } else {
            default
        },
        group,
        flag,
        help: help.replace('\n', " "),
        words,
        closed,
    }
}

/// The default that a help text names: `… [default: 1024]`, up to a first `;` or `,`.
fn said_default(help: &str) -> Option<String> {
    let (_, rest) = help.split_once("[default: ")?;
    let (said, _) = rest.split_once(']')?;
    let said = said.split([';', ',']).next().unwrap_or(said).trim();
    // A rule in words is told below the form.
    Some(match said.split_whitespace().count() {
        0..=2 => said.to_owned(),
        _ => "by rule".to_owned(),
    })
}
