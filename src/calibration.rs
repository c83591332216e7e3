//! Calibrations on disk, and the run that makes one.

pub mod assemble;
pub mod machine;
pub mod measure;
pub mod question;
pub mod report;
pub mod store;
