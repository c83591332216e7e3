//! The options that an engine version takes, generated from its own parser.

use super::version::Version;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Every option of one version. `cargo xtask engines` writes these from the engine's own parser.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlagTable {
    /// The engine.
    pub engine: String,
    /// The version.
    pub version: Version,
    /// Options by spelling; the empty spelling is the positional model.
    pub flags: BTreeMap<String, TableEntry>,
}

/// One spelling of an option.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableEntry {
    /// What follows it.
    pub takes: Takes,
    /// The engine warns when it is used.
    #[serde(default)]
    pub deprecated: bool,
    /// The values it takes; empty where any value parses.
    #[serde(default)]
    pub choices: Vec<String>,
}

/// How many values follow an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Takes {
    /// None.
    None,
    /// One.
    One,
    /// None or one.
    Optional,
    /// One or more.
    Several,
}

/// What an engine version would not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlagFault {
    /// No such option.
    #[error("{engine} {version} has no option {flag}")]
    Unknown {
        /// The engine.
        engine: String,
        /// The version.
        version: Version,
        /// The option.
        flag: String,
    },
    /// The wrong number of values.
    #[error("{flag} takes {takes:?} value(s), and {found} follow")]
    Values {
        /// The option.
        flag: String,
        /// What it takes.
        takes: Takes,
        /// How many follow.
        found: usize,
    },
    /// A value that is not among the choices.
    #[error("{flag} does not take '{value}'; it takes {choices}")]
    Choice {
        /// The option.
        flag: String,
        /// The value.
        value: String,
        /// What it takes.
        choices: String,
    },
}

impl FlagTable {
    /// Checks arguments, program left out. A word that begins with `--` is an option, every other
    /// one a value of the option before it, or the positional model.
    ///
    /// # Errors
    /// The first option or value that the version does not take.
    pub fn check(&self, arguments: &[String]) -> Result<(), FlagFault> {
        let mut rest = arguments;
        while let Some((word, tail)) = rest.split_first() {
            let (flag, inline) = match word.split_once('=') {
                Some((flag, value)) if word.starts_with("--") => (flag, Some(value)),
                _ if word.starts_with("--") => (word.as_str(), None),
                // A leading value is the model.
                _ => ("", Some(word.as_str())),
            };
            let entry = self.flags.get(flag).ok_or_else(|| FlagFault::Unknown {
                engine: self.engine.clone(),
                version: self.version,
                flag: word.clone(),
            })?;
            let following = match inline {
                Some(_) => 0,
                None => tail
                    .iter()
                    .take_while(|word| !word.starts_with("--"))
                    .count(),
            };
            let (values, tail) = tail.split_at(following);
            let found = following + usize::from(inline.is_some());
            let right = match entry.takes {
                Takes::None => found == 0,
                Takes::One => found == 1,
                Takes::Optional => found <= 1,
                Takes::Several => found >= 1,
            };
            if !right {
                return Err(FlagFault::Values {
                    flag: flag.to_owned(),
                    takes: entry.takes,
                    found,
                });
            }
            let values = values.iter().map(String::as_str).chain(inline);
            for value in values {
                if !entry.choices.is_empty() && !entry.choices.iter().any(|one| one == value) {
                    return Err(FlagFault::Choice {
                        flag: flag.to_owned(),
                        value: value.to_owned(),
                        choices: entry.choices.join(", "),
                    });
                }
            }
            rest = tail;
        }
        Ok(())
    }
}

/// The tables in the binary, as TOML.
const EMBEDDED: [&str; 6] = [
    include_str!("../../data/engine_flags/sglang-0.5.6.post2.toml"),
    include_str!("../../data/engine_flags/sglang-0.5.14.toml"),
    include_str!("../../data/engine_flags/sglang-0.5.23.toml"),
    include_str!("../../data/engine_flags/vllm-0.24.0.toml"),
    include_str!("../../data/engine_flags/vllm-0.32.0.toml"),
    include_str!("../../data/engine_flags/vllm-0.33.0.toml"),
];

/// Every generated table.
///
/// # Errors
/// A table that does not parse, which the tests of this crate rule out.
pub fn tables() -> Result<Vec<FlagTable>, toml::de::Error> {
    EMBEDDED.iter().map(|text| toml::from_str(text)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn check(version: &str, words: &[&str]) -> Result<(), String> {
        let tables = tables().unwrap();
        let table = tables
            .iter()
            .find(|table| table.version.to_string() == version)
            .unwrap();
        let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
        table.check(&words).map_err(|fault| fault.to_string())
    }

    #[test]
    fn tables_know_what_changed() {
        assert_eq!(tables().unwrap().len(), 6);
        assert!(check("0.5.23", &["--attn-dp-size", "8"]).is_ok());
        assert!(check("0.5.14", &["--attn-dp-size", "8"]).is_err());
        assert!(check("0.5.14", &["--cuda-graph-bs", "1", "2"]).is_ok());
        assert!(check("0.5.23", &["--cuda-graph-bs", "1", "2"]).is_err());
        assert!(check("0.33.0", &["model", "--decode-context-parallel-size=2"]).is_ok());
    }

    #[test]
    fn faults_are_named() {
        let unknown = check("0.5.23", &["--enable-ep-moe"]).unwrap_err();
        assert!(
            unknown.contains("sglang 0.5.23 has no option --enable-ep-moe"),
            "{unknown}"
        );
        let none = check("0.5.23", &["--tp-size"]).unwrap_err();
        assert!(
            none.contains("takes One") && none.contains("0 follow"),
            "{none}"
        );
        let extra = check("0.5.23", &["--enable-symm-mem", "yes"]).unwrap_err();
        assert!(extra.contains("takes None"), "{extra}");
        let choice = check("0.5.23", &["--kv-cache-dtype", "fp3"]).unwrap_err();
        assert!(
            choice.contains("'fp3'") && choice.contains("fp8_e4m3"),
            "{choice}"
        );
        assert!(check("0.5.23", &["stray"]).is_err());
    }
}
