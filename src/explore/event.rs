//! What may happen, and what is then to be done outside of the state.

use super::export::Order;
use super::journal::Progress;
use super::worker::{Answer, Job};
use crate::failure::Failure;
use ratatui::crossterm::event as input;
use std::path::PathBuf;

/// Everything that happens, over one channel.
#[derive(Debug)]
pub enum Event {
    /// A key, the mouse, a paste, another size.
    Input(input::Event),
    /// Something was planned.
    Answer(Answer),
    /// A file was written, or not.
    Written(PathBuf, Result<(), Failure>),
    /// The journal that is watched has grown, or cannot be read.
    Journal(Progress),
    /// The process was told to end.
    Signal(i32),
    /// The process was told to stop for a while.
    Stop,
    /// The process was continued.
    Continued,
    /// A thread died, which is a fault of parplan.
    Died(&'static str),
}

/// What the loop around the state has to do.
#[derive(Debug)]
pub enum Effect {
    /// Plan this.
    Plan(Box<Job>),
    /// Write this.
    Write(Box<Order>),
    /// Take the mouse, or leave it to the terminal.
    Mouse(bool),
    /// Give the terminal back until the shell continues the process.
    Suspend,
    /// Draw everything anew.
    Redraw,
    /// End.
    Quit,
}
