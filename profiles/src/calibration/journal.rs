//! A calibration that is being measured: one JSON line a sample, so that a run that is killed
//! loses what it was measuring and nothing else.

use super::{Experiment, Measured, Provenance, SCHEMA};
use serde::{Deserialize, Serialize};

/// The first line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    journal: u32,
    provenance: Provenance,
    experiments: Vec<Experiment>,
}

/// What a journal's text holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Journal {
    /// The machine.
    pub provenance: Provenance,
    /// What was to be measured, in order.
    pub experiments: Vec<Experiment>,
    /// What was measured so far.
    pub samples: Vec<Measured>,
    /// Bytes of the text that are whole lines; a kill may leave part of a line behind them.
    pub whole_bytes: usize,
}

/// Why a journal cannot be gone on with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// It has no first line.
    #[error("the journal holds nothing whole: remove it and calibrate without --resume")]
    Empty,
    /// A line before the last is broken, which no kill does.
    #[error(
        "line {line} of the journal is damaged ({why}); the {kept} samples before it read well"
    )]
    Damaged {
        /// Which line, from 1.
        line: usize,
        /// What the reader says.
        why: String,
        /// Samples before it.
        kept: usize,
    },
    /// Another schema.
    #[error(
        "the journal is of schema {0}, this parplan writes {SCHEMA}: finish it with the parplan that began it, or calibrate without --resume"
    )]
    Schema(u32),
}

impl Journal {
    /// The first line of a new journal.
    ///
    /// # Errors
    /// What cannot be written as JSON.
    pub fn head(
        provenance: &Provenance,
        experiments: &[Experiment],
    ) -> Result<String, serde_json::Error> {
        line(&Head {
            journal: SCHEMA,
            provenance: provenance.clone(),
            experiments: experiments.to_vec(),
        })
    }

    /// The line of one sample.
    ///
    /// # Errors
    /// What cannot be written as JSON.
    pub fn entry(sample: &Measured) -> Result<String, serde_json::Error> {
        line(sample)
    }

    /// Reads a journal, a torn last line left out.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn read(text: &str) -> Result<Journal, JournalError> {
        let whole_bytes = text.rfind('\n').map_or(0, |at| at + 1);
        let mut lines = text[..whole_bytes].lines().enumerate();
        let damaged = |line: usize, why: String, kept: usize| JournalError::Damaged {
            line: line + 1,
            why,
            kept,
        };
        let (_, first) = lines.next().ok_or(JournalError::Empty)?;
        let version: serde_json::Value =
            serde_json::from_str(first).map_err(|e| damaged(0, e.to_string(), 0))?;
        match version.get("journal").and_then(serde_json::Value::as_u64) {
            Some(found) if found == u64::from(SCHEMA) => {}
            Some(found) => {
                return Err(JournalError::Schema(
                    u32::try_from(found).unwrap_or(u32::MAX),
                ));
            }
            None => return Err(damaged(0, "it names no schema".to_owned(), 0)),
        }
        let head: Head = serde_json::from_str(first).map_err(|e| damaged(0, e.to_string(), 0))?;
        let mut samples = Vec::new();
        for (at, text) in lines {
            let sample: Measured = serde_json::from_str(text)
                .map_err(|e| damaged(at, e.to_string(), samples.len()))?;
            sample
                .check()
                .map_err(|why| damaged(at, why, samples.len()))?;
            samples.push(sample);
        }
        Ok(Journal {
            provenance: head.provenance,
            experiments: head.experiments,
            samples,
            whole_bytes,
        })
    }
}

fn line<T: Serialize>(value: &T) -> Result<String, serde_json::Error> {
    serde_json::to_string(value).map(|mut text| {
        text.push('\n');
        text
    })
}
