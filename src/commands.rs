//! One file a command: resolve, ask the planner, render.

pub mod calibrate;
pub mod compare;
pub mod doubt;
pub mod estimate;
pub mod explain;
pub mod fit;
pub mod import;
pub mod profiles;
pub mod recommend;
pub mod shell;
