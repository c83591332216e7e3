//! What happens to the state. Nothing in here reads a clock, a file or the terminal.

mod input;

use super::edit::Line;
use super::event::{Effect, Event};
use super::planning::Pin;
use super::state::{Ended, Notice, Prompt, State};
use super::worker::Answer;
use crate::failure::Failure;
use std::path::Path;
use std::sync::Arc;

pub use input::ask;

/// Lets an event happen.
pub fn update(state: &mut State, event: Event) -> Vec<Effect> {
    match event {
        Event::Input(event) => input::input(state, event),
        Event::Answer(answer) => answered(state, answer),
        Event::Written(path, outcome) => {
            written(state, &path, outcome);
            Vec::new()
        }
        Event::Journal(progress) => {
            if let Some(journal) = &mut state.journal {
                journal.add(progress);
            }
            Vec::new()
        }
        Event::Signal(signal) => {
            state.ended = Some(Ended::Signal(signal));
            vec![Effect::Quit]
        }
        Event::Stop => vec![Effect::Suspend],
        Event::Continued => vec![Effect::Redraw],
        Event::Died(what) => {
            state.ended = Some(Ended::Fault(what));
            vec![Effect::Quit]
        }
    }
}

/// A file was written, or stands in the way, or cannot be written.
fn written(state: &mut State, path: &Path, outcome: Result<(), Failure>) {
    match outcome {
        Ok(()) => {
            state.notice = Some(Notice {
                text: format!("wrote {}", path.display()),
                alert: false,
            });
        }
        // Only a file that exists already is refused as unusable.
        Err(Failure::Unusable(_)) => {
            let name = path.display().to_string();
            state.prompt = Some(Prompt {
                line: Line::new(&name),
                wrong: Some("exists already: Enter replaces it".to_owned()),
                replace: Some(name),
            });
        }
        Err(failure) => {
            state.notice = Some(Notice {
                text: failure.to_string(),
                alert: true,
            });
        }
    }
}

fn answered(state: &mut State, answer: Answer) -> Vec<Effect> {
    match answer {
        Answer::Refused { question, failure } if question == state.question => {
            state.problem = Some(failure.to_string());
            state.row = None;
        }
        Answer::Row { question, row } if question == state.question => state.row = Some(row),
        Answer::Table { question, table } if question == state.question => {
            let kept = state.choice.and_then(|choice| table.position(&choice));
            let last = table.answer.ranked.len().saturating_sub(1);
            // A configuration that is gone leaves the cursor with the best one.
            state.cursor = kept.unwrap_or(0).min(last);
            state.choice = table
                .answer
                .ranked
                .get(state.cursor)
                .map(|plan| plan.choice);
            if table.answer.ranked.is_empty() {
                state.detail = None;
            }
            state.table = Some((question, table));
            state.row = None;
            state.problem = None;
            state.selection += 1;
            return vec![Effect::Plan(Box::new(state.job()))];
        }
        Answer::Detail {
            question,
            selection,
            detail,
        } if (question, selection) == (state.question, state.selection) => {
            state.detail = Some(detail);
        }
        Answer::Sweep { question, sweep } if question == state.question => {
            state.sweep = Some((question, sweep));
        }
        Answer::Diff { pinning, diff } if pinning == state.pinning => state.diff = Some(diff),
        // An answer to an older question is of no use.
        Answer::Refused { .. }
        | Answer::Row { .. }
        | Answer::Table { .. }
        | Answer::Sweep { .. }
        | Answer::Detail { .. }
        | Answer::Diff { .. } => {}
    }
    Vec::new()
}

/// The question was changed.
fn asked(state: &mut State) -> Vec<Effect> {
    state.question += 1;
    state.row = None;
    state.problem = None;
    vec![Effect::Plan(Box::new(state.job()))]
}

/// Another row is under the cursor.
fn selected(state: &mut State, row: usize) -> Vec<Effect> {
    let Some(table) = state.table() else {
        return Vec::new();
    };
    let row = row.min(table.answer.ranked.len().saturating_sub(1));
    if row == state.cursor {
        return Vec::new();
    }
    let choice = table.answer.ranked.get(row).map(|plan| plan.choice);
    state.cursor = row;
    state.choice = choice;
    state.row = None;
    state.selection += 1;
    if !state.view.moves_rows() {
        state.scroll = 0;
    }
    vec![Effect::Plan(Box::new(state.job()))]
}

/// Remembers the selected configuration.
fn pinned(state: &mut State, side: usize) -> Vec<Effect> {
    let name = ["A", "B"][side.min(1)];
    let current = state.is_current();
    let pin = match (state.table(), state.selected()) {
        (Some(table), Some(plan)) if current => Arc::new(Pin {
            resolved: Arc::clone(&table.resolved),
            plan: plan.clone(),
        }),
        _ => {
            state.notice = Some(Notice {
                text: "there is no configuration to pin yet".to_owned(),
                alert: true,
            });
            return Vec::new();
        }
    };
    let other = ["B", "A"][side.min(1)];
    let missing = state.pins[1 - side.min(1)].is_none();
    state.notice = Some(Notice {
        text: if missing {
            format!("pinned as {name}; pin another one as {other}, then 9 compares them")
        } else {
            format!("pinned as {name}; 9 compares A and B")
        },
        alert: false,
    });
    state.pins[side.min(1)] = Some(pin);
    state.pinning += 1;
    state.diff = None;
    vec![Effect::Plan(Box::new(state.job()))]
}
