//! One file a command: resolve, ask the planner, render.

pub mod estimate;
pub mod explain;
pub mod profiles;
pub mod shell;
