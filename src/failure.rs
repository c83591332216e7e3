//! Why a command ends without its answer, and with which exit code.

use parplan_planner::cost::CostError;
use parplan_profiles::engine::EngineError;
use parplan_profiles::overheads::OverheadsError;
use parplan_profiles::{EfficiencyError, Fault, Faults, LibraryError};
use std::fmt;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// What was asked cannot be used: exit code 2.
    Unusable(String),
    /// It was understood and could not be done: exit code 1.
    Failed(String),
    /// The same, with an answer that says so to a program that reads stdout.
    FailedWith {
        /// What is printed on stdout.
        answer: String,
        /// What is said on stderr.
        message: String,
    },
}

impl Failure {
    /// Input that cannot be used.
    pub fn unusable(message: impl Into<String>) -> Failure {
        Failure::Unusable(message.into())
    }

    /// Work that could not be done.
    pub fn failed(message: impl Into<String>) -> Failure {
        Failure::Failed(message.into())
    }

    /// The same, said to be about one of several things.
    pub fn about(self, what: &str) -> Failure {
        match self {
            Failure::Unusable(message) => Failure::Unusable(format!("{what}: {message}")),
            Failure::Failed(message) => Failure::Failed(format!("{what}: {message}")),
            Failure::FailedWith { answer, message } => Failure::FailedWith {
                answer,
                message: format!("{what}: {message}"),
            },
        }
    }

    /// What belongs on stdout even so.
    pub fn answer(&self) -> Option<&str> {
        match self {
            Failure::FailedWith { answer, .. } => Some(answer),
            Failure::Unusable(_) | Failure::Failed(_) => None,
        }
    }

    /// 1 for work that failed, 2 for input that cannot be used.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Failed(_) | Failure::FailedWith { .. } => 1,
            Failure::Unusable(_) => 2,
        }
    }
}

impl From<parplan_executor::Error> for Failure {
    fn from(error: parplan_executor::Error) -> Failure {
        match error.exit_code() {
            2 => Failure::unusable(error.to_string()),
            _ => Failure::failed(error.to_string()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Failure::Unusable(message)
        | Failure::Failed(message)
        | Failure::FailedWith { message, .. }) = self;
        // A name or a file may hold anything; what reaches the terminal is text.
        for c in message.trim_end().chars() {
            match c {
                '\n' => f.write_str("\n")?,
                c if c.is_control() => f.write_str("\u{fffd}")?,
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

macro_rules! unusable_from {
    ($($error:ty),*) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Failure {
                Failure::unusable(error.to_string())
            }
        })*
    };
}

unusable_from!(
    LibraryError,
    Faults,
    Fault,
    EngineError,
    EfficiencyError,
    OverheadsError,
    CostError
);
