//! What is wrong with a profile: where, what, and what would be right.

use std::fmt;

/// One thing that is wrong with a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// File (or another name of the text) that the profile came from.
    pub file: Option<String>,
    /// Line and column in it, both counted from 1.
    pub position: Option<(usize, usize)>,
    /// The field, for example `layers[2].attention.q_heads`; empty for the profile as a whole.
    pub field: String,
    /// The value, why it cannot be, and what would be right, in one clause.
    pub message: String,
}

impl Fault {
    /// A fault of a field, not yet tied to a file.
    pub fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Fault {
            file: None,
            position: None,
            field: field.into(),
            message: message.into(),
        }
    }

    /// A fault of a whole text.
    pub fn whole(file: impl Into<String>, message: impl Into<String>) -> Self {
        Fault {
            file: Some(file.into()),
            ..Fault::field("", message)
        }
    }

    /// The same fault, said to be in a file.
    pub fn in_file(mut self, file: &str) -> Self {
        self.file = Some(file.to_owned());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}")?;
            if let Some((line, column)) = self.position {
                write!(f, ":{line}:{column}")?;
            }
            write!(f, ": ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{} ", self.field)?;
        }
        // One fault, one line, whatever a name or a parser put into it.
        for c in self.message.chars() {
            match c {
                '\n' | '\r' | '\t' => write!(f, " ")?,
                c if c.is_control() => write!(f, "\u{fffd}")?,
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

/// Everything that is wrong with a profile or a folder of them, one line each; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    /// `Ok` when nothing is wrong.
    pub fn or_ok(faults: Vec<Fault>) -> Result<(), Faults> {
        if faults.is_empty() {
            Ok(())
        } else {
            Err(Faults(faults))
        }
    }
}

impl From<Fault> for Faults {
    fn from(fault: Fault) -> Self {
        Faults(vec![fault])
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
