//! The command line of parplan: parse, call, render.
//!
//! [`args`] is what was typed, [`ask`] what it means, [`commands`] one file a command, [`render`]
//! the tables, [`json`] the documented JSON and [`explore`] the full screen. Every figure comes from `parplan-planner`.

pub mod args;
pub mod ask;
pub mod bench;
pub mod calibration;
pub mod commands;
pub mod exec;
pub mod explore;
pub mod failure;
pub mod files;
pub mod http;
pub mod import;
pub mod json;
pub mod launch;
pub mod launching;
pub mod output;
pub mod render;
pub mod run;
pub mod saved;
pub mod stats;
pub mod verify;

pub use failure::Failure;
