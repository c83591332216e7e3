//! What an engine is: how it pads, captures, reserves, schedules and is started, by version.
//!
//! An [`EngineProfile`] lists, for each kind of rule, what holds from which version on. Asking it
//! for one version gives [`EngineRules`], the resolved view that the planner reads. The data rests
//! on the engines' published sources; each entry names the file.

pub mod flags;
mod resolve;
pub mod rules;
pub mod table;
pub mod version;

pub use resolve::EngineRules;

use crate::dtype::Dtype;
use crate::engine::flags::{DraftMethod, Flag, FlagForm, Meaning};
use crate::engine::rules::{
    AllReduceRule, DcpRule, ExpertExchange, FormatRule, FusionRule, GeometryRule, GraphRule,
    KernelRule, MemoryRule, PaddingRule, SchedulerRule, SizeDefaults, StatePoolRule, SymmetricRule,
    SyncRule,
};
use crate::engine::version::{Version, VersionError};
use crate::gpu::Vendor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One engine over a range of versions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineProfile {
    /// Short name, for example `sglang`.
    pub name: String,
    /// Other names that select it.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// The form of its commands.
    pub dialect: Dialect,
    /// First version that the rules describe.
    pub oldest: Version,
    /// Last version that the rules describe; also the one meant when none is named.
    pub newest: Version,
    /// Commands were run through the engine's own parser.
    pub verified: bool,
    /// It runs parplan's own kernels, which samples of them price.
    #[serde(default)]
    pub own_kernels: bool,
    /// Makers of the devices that it runs on; empty for any.
    #[serde(default)]
    pub vendors: Vec<Vendor>,
    /// Splits and their meaning.
    pub geometry: Vec<Since<GeometryRule>>,
    /// Padding of data-parallel rows.
    pub padding: Vec<Since<PaddingRule>>,
    /// CUDA graphs.
    pub graphs: Vec<Since<GraphRule>>,
    /// Sizes by GPU memory.
    pub sizes: Vec<Since<SizeDefaults>>,
    /// Memory for weights and KV cache.
    pub memory: Vec<Since<MemoryRule>>,
    /// Memory for recurrent states, where it is set apart.
    #[serde(default)]
    pub state_pool: Vec<Since<StatePoolRule>>,
    /// Batching.
    pub scheduler: Vec<Since<SchedulerRule>>,
    /// Exchange of batch shapes.
    pub sync: Vec<Since<SyncRule>>,
    /// Decode context parallelism, where a version has it.
    #[serde(default)]
    pub dcp: Vec<Since<DcpRule>>,
    /// All-reduce implementations.
    pub all_reduce: Vec<Since<AllReduceRule>>,
    /// Symmetric memory, where a version has it.
    #[serde(default)]
    pub symmetric: Vec<Since<SymmetricRule>>,
    /// Expert all-to-all.
    pub experts: Vec<Since<ExpertExchange>>,
    /// Kernels of a layer, where they are known one by one.
    #[serde(default)]
    pub kernels: Vec<Since<KernelRule>>,
    /// Kernels that are folded into others, where they are known.
    #[serde(default)]
    pub fusion: Vec<Since<FusionRule>>,
    /// Number formats that need a device of some kind, where they are known.
    #[serde(default)]
    pub formats: Vec<Since<FormatRule>>,
    /// Spellings of KV cache formats on the command line.
    pub kv_names: Vec<Since<BTreeMap<Dtype, String>>>,
    /// Spellings of formats that a checkpoint in bf16 is quantised to while it is loaded, where there
    /// are any.
    #[serde(default)]
    pub load_names: Vec<Since<BTreeMap<Dtype, String>>>,
    /// Spellings of ways to draft on the command line.
    pub draft_names: Vec<Since<BTreeMap<DraftMethod, String>>>,
    /// Spellings.
    #[serde(default)]
    pub flags: BTreeMap<Meaning, Vec<Flag>>,
}

/// A rule that holds from a version on, until the next entry of its list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Since<T> {
    /// First version.
    pub from: Version,
    /// Where it is written: the engine's file, and what to look for.
    pub source: String,
    /// The rule.
    pub rule: T,
}

/// The form of an engine's commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dialect {
    /// `python -m sglang.launch_server`.
    Sglang,
    /// `vllm serve`.
    Vllm,
    /// `trtllm-serve`.
    Trtllm,
    /// `parplan exec`.
    Builtin,
}

/// Why an engine profile cannot be used, or not for the version asked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// No profile has that name.
    #[error("unknown engine '{name}'; known: {known}")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The version cannot be read.
    #[error("{engine}: {source}")]
    Version {
        /// The engine.
        engine: String,
        /// What is wrong with it.
        source: VersionError,
    },
    /// The rules do not reach that version.
    #[error(
        "{engine} {asked} is outside of the versions that parplan has rules for, \
         {oldest} to {newest}; the nearest is {nearest}, which can be assumed if asked for"
    )]
    OutOfRange {
        /// The engine.
        engine: String,
        /// The version asked for.
        asked: Version,
        /// First known version.
        oldest: Version,
        /// Last known version.
        newest: Version,
        /// The known version nearest to it.
        nearest: Version,
    },
    /// The profile itself is at fault.
    #[error("engine profile '{engine}': {fault}")]
    Fault {
        /// The engine, or the file where the name could not be read.
        engine: String,
        /// What is wrong and what would be right.
        fault: String,
    },
}

impl EngineProfile {
    /// Reads and checks a profile. `file` names it in errors.
    ///
    /// # Errors
    /// TOML that does not parse or does not match, and everything [`EngineProfile::validate`] finds.
    pub fn from_toml(text: &str, file: &str) -> Result<Self, EngineError> {
        let profile: Self = toml::from_str(text).map_err(|error| EngineError::Fault {
            engine: file.to_owned(),
            fault: error.to_string().trim_end().to_owned(),
        })?;
        profile.validate()?;
        Ok(profile)
    }

    /// Checks that every kind of rule covers the range of versions, in order, and that spellings of
    /// one meaning do not overlap.
    ///
    /// # Errors
    /// The first fault found.
    pub fn validate(&self) -> Result<(), EngineError> {
        let fault = |fault: String| {
            Err(EngineError::Fault {
                engine: self.name.clone(),
                fault,
            })
        };
        if self.oldest > self.newest {
            return fault(format!(
                "oldest {} is newer than newest {}",
                self.oldest, self.newest
            ));
        }
        let kinds: [(&str, bool, Vec<Version>); 18] = [
            ("geometry", true, starts(&self.geometry)),
            ("padding", true, starts(&self.padding)),
            ("graphs", true, starts(&self.graphs)),
            ("sizes", true, starts(&self.sizes)),
            ("memory", true, starts(&self.memory)),
            ("state_pool", false, starts(&self.state_pool)),
            ("scheduler", true, starts(&self.scheduler)),
            ("sync", true, starts(&self.sync)),
            ("dcp", false, starts(&self.dcp)),
            ("all_reduce", true, starts(&self.all_reduce)),
            ("symmetric", false, starts(&self.symmetric)),
            ("experts", true, starts(&self.experts)),
            ("kernels", false, starts(&self.kernels)),
            ("fusion", false, starts(&self.fusion)),
            ("formats", false, starts(&self.formats)),
            ("kv_names", true, starts(&self.kv_names)),
            ("load_names", false, starts(&self.load_names)),
            ("draft_names", true, starts(&self.draft_names)),
        ];
        for (kind, required, starts) in kinds {
            if required && starts.first().is_none_or(|first| *first > self.oldest) {
                return fault(format!(
                    "[[{kind}]] must begin at or before version {}",
                    self.oldest
                ));
            }
            if let Some(pair) = starts.windows(2).find(|pair| pair[0] >= pair[1]) {
                return fault(format!(
                    "[[{kind}]] entries must ascend by version; {} is followed by {}",
                    pair[0], pair[1]
                ));
            }
        }
        for (meaning, spellings) in &self.flags {
            for (at, flag) in spellings.iter().enumerate() {
                let bare = matches!(flag.form, FlagForm::Positional | FlagForm::Environment);
                if flag.flag.is_empty() != bare {
                    return fault(format!(
                        "flags.{meaning:?} from {}: a positional value has an empty flag, every other form a spelling",
                        flag.from
                    ));
                }
                let overlaps = spellings[at + 1..].iter().any(|later| {
                    flag.until.is_none_or(|until| until > later.from)
                        && later.until.is_none_or(|until| until > flag.from)
                });
                if overlaps {
                    return fault(format!(
                        "flags.{meaning:?}: '{}' from {} overlaps another spelling; give it an 'until'",
                        flag.flag, flag.from
                    ));
                }
            }
        }
        Ok(())
    }

    /// Every version at which a rule or a spelling changes, and the ends of the range, in order.
    pub fn versions_of_change(&self) -> Vec<Version> {
        let mut versions = vec![self.oldest, self.newest];
        versions.extend(starts(&self.geometry));
        versions.extend(starts(&self.padding));
        versions.extend(starts(&self.graphs));
        versions.extend(starts(&self.sizes));
        versions.extend(starts(&self.memory));
        versions.extend(starts(&self.state_pool));
        versions.extend(starts(&self.scheduler));
        versions.extend(starts(&self.sync));
        versions.extend(starts(&self.dcp));
        versions.extend(starts(&self.all_reduce));
        versions.extend(starts(&self.symmetric));
        versions.extend(starts(&self.experts));
        versions.extend(starts(&self.kernels));
        versions.extend(starts(&self.fusion));
        versions.extend(starts(&self.formats));
        versions.extend(starts(&self.kv_names));
        versions.extend(starts(&self.load_names));
        versions.extend(starts(&self.draft_names));
        for flag in self.flags.values().flatten() {
            versions.push(flag.from);
            versions.extend(flag.until);
        }
        versions.retain(|version| (self.oldest..=self.newest).contains(version));
        versions.sort_unstable();
        versions.dedup();
        versions
    }
}

fn starts<T>(entries: &[Since<T>]) -> Vec<Version> {
    entries.iter().map(|entry| entry.from).collect()
}

/// The engine profiles in the binary: file name and text.
pub const EMBEDDED: [(&str, &str); 4] = [
    ("sglang.toml", include_str!("../data/engines/sglang.toml")),
    ("vllm.toml", include_str!("../data/engines/vllm.toml")),
    ("trtllm.toml", include_str!("../data/engines/trtllm.toml")),
    ("builtin.toml", include_str!("../data/engines/builtin.toml")),
];

/// Every embedded profile, read and checked.
///
/// # Errors
/// A fault in an embedded file, which the tests of this crate rule out.
pub fn embedded() -> Result<Vec<EngineProfile>, EngineError> {
    EMBEDDED
        .iter()
        .map(|(file, text)| EngineProfile::from_toml(text, file))
        .collect()
}

/// Resolves `name` or `name@version` among `profiles`.
///
/// # Errors
/// An unknown name, with the known ones; and everything [`EngineProfile::resolve`] refuses.
pub fn select(
    profiles: &[EngineProfile],
    text: &str,
    assume: bool,
) -> Result<EngineRules, EngineError> {
    let (name, version) = match text.split_once('@') {
        Some((name, version)) => (name, Some(version)),
        None => (text, None),
    };
    let wanted = name.trim().to_ascii_lowercase();
    let profile = profiles
        .iter()
        .find(|profile| profile.name == wanted || profile.aliases.contains(&wanted))
        .ok_or_else(|| EngineError::Unknown {
            name: name.chars().take(60).collect(),
            known: profiles
                .iter()
                .map(|profile| profile.name.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        })?;
    profile.resolve(version, assume)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests;
