//! The time of one pass: its operations, and what the engine adds around them.

pub mod pass;
pub mod tally;
