//! What `launch` and the process that keeps an engine tell each other: JSON, one line each.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Set in a keeper's environment, and taken out of its engine's.
pub const MARK: &str = "PARPLAN_KEEPER";

/// The first line to a keeper: what it starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// Program and arguments; no shell reads them.
    pub argv: Vec<String>,
    /// Environment variables to set over the inherited ones.
    pub env: BTreeMap<String, String>,
    /// Where the engine's output goes; what is there is replaced.
    pub log: PathBuf,
    /// Folder to start in: the command's files lie there.
    pub folder: PathBuf,
    /// Seconds between asking the engine to end and killing it.
    pub grace_s: f64,
}

/// Every later line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Pass this signal on, and see to it that everything ends.
    Signal(i32),
    /// End everything now.
    Kill,
    /// Stay when this connection ends.
    Stay,
}

/// What a keeper says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Event {
    /// The engine runs.
    Started {
        /// Its process, which leads its process group.
        pid: i32,
    },
    /// It could not be started.
    Refused {
        /// Why.
        why: String,
    },
    /// It ended, and nothing of it is left.
    Ended {
        /// Its exit code.
        code: Option<i32>,
        /// The signal that killed it.
        signal: Option<i32>,
        /// Processes that it left behind and that were ended for it.
        strays: usize,
        /// It had to be killed: it did not end within its grace.
        killed: bool,
    },
}
