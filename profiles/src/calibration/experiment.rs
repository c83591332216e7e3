//! What can be measured, fully resolved: every shape, rank, registration and launch mode.

use super::Probe;
use serde::{Deserialize, Serialize};
use std::fmt;

/// One experiment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Ranks that take part, one GPU (or CPU process) each.
    pub ranks: u32,
    /// How the work reaches the GPU.
    pub launch: LaunchMode,
    /// What its outcome decides, in words.
    #[serde(default)]
    pub decides: String,
    /// What runs.
    pub probe: Probe,
}

/// How work reaches a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LaunchMode {
    /// One call each.
    Stream,
    /// Captured once in a CUDA graph, replayed.
    Graph,
}

impl fmt::Display for Experiment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.probe)?;
        if self.ranks > 1 {
            write!(f, ", {} ranks", self.ranks)?;
        }
        match self.launch {
            LaunchMode::Graph => f.write_str(", graph"),
            LaunchMode::Stream => Ok(()),
        }
    }
}

impl Experiment {
    /// An experiment on one rank.
    pub fn alone(probe: Probe, launch: LaunchMode, decides: impl Into<String>) -> Experiment {
        Experiment {
            ranks: 1,
            launch,
            decides: decides.into(),
            probe,
        }
    }

    /// Whether both measure the same thing, whatever they are to decide.
    pub fn same(&self, other: &Experiment) -> bool {
        self.probe == other.probe && self.ranks == other.ranks && self.launch == other.launch
    }
}
