//! Keys, the mouse, pastes.

use super::super::edit::Line;
use super::super::event::Effect;
use super::super::export::{Kind, Order};
use super::super::keys::{self, Action, Place};
use super::super::state::{Focus, Notice, Prompt, State, View};
use super::{asked, pinned, selected};
use ratatui::crossterm::event::{
    Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseButton, MouseEvent, MouseEventKind,
};
use ratatui::layout::{Position, Rect};
use std::path::Path;
use std::sync::Arc;

/// Lines that one notch of the wheel moves.
const NOTCH: isize = 3;

pub(super) fn input(state: &mut State, event: Event) -> Vec<Effect> {
    match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => pressed(state, key),
        Event::Mouse(event) => mouse(state, event),
        Event::Paste(text) => paste(state, &text),
        // Another size needs another drawing, which every event gets.
        _ => Vec::new(),
    }
}

/// The first question of a session, or the same one again.
pub fn ask(state: &State) -> Effect {
    Effect::Plan(Box::new(state.job()))
}

fn pressed(state: &mut State, key: KeyEvent) -> Vec<Effect> {
    state.notice = None;
    // Ending and suspending work wherever a text is edited, too.
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        match key.code {
            KeyCode::Char('c') => return vec![Effect::Quit],
            KeyCode::Char('z') => return vec![Effect::Suspend],
            KeyCode::Char('l') => return vec![Effect::Redraw],
            _ => {}
        }
    }
    if state.help.is_some() {
        return help(state, key);
    }
    if state.prompt.is_some() {
        return prompt(state, key);
    }
    if state.form.editing.is_some() {
        return editing(state, key);
    }
    let place = match state.focus {
        Focus::Question => Place::Question,
        Focus::Answer => Place::Answer,
    };
    match keys::action(place, key) {
        Some(action) => act(state, action),
        None => Vec::new(),
    }
}

fn act(state: &mut State, action: Action) -> Vec<Effect> {
    let page = state.seen.page.max(1) as isize;
    match action {
        Action::Quit => return vec![Effect::Quit],
        Action::Suspend => return vec![Effect::Suspend],
        Action::Redraw => return vec![Effect::Redraw],
        Action::Mouse => {
            state.mouse = !state.mouse;
            state.notice = Some(Notice {
                text: if state.mouse {
                    "the mouse points and scrolls; hold Shift to select text".to_owned()
                } else {
                    "the mouse is left to the terminal".to_owned()
                },
                alert: false,
            });
            return vec![Effect::Mouse(state.mouse)];
        }
        Action::Help => state.help = Some(0),
        Action::Close => {}
        Action::Focus => {
            state.focus = match state.focus {
                Focus::Question => Focus::Answer,
                Focus::Answer => Focus::Question,
            };
        }
        Action::Move(by) => return moved(state, by),
        Action::Page(by) => return moved(state, by * page),
        Action::First => return moved(state, isize::MIN / 2),
        Action::Last => return moved(state, isize::MAX / 2),
        Action::Row(by) if state.view == View::Live => curve(state, by),
        Action::Row(by) => return selected(state, state.cursor.saturating_add_signed(by)),
        Action::Turn(by) => {
            let count = View::ALL.len() as isize;
            let next = (state.view.index() as isize + by).rem_euclid(count);
            show(state, next as usize);
        }
        Action::View(index) => show(state, index),
        Action::Edit => state.form.edit(),
        Action::Clear if state.form.set("") => return asked(state),
        Action::Change(by) if state.form.turn(by) => return asked(state),
        Action::Change(_) => {
            let closed = state.form.field().is_some_and(|field| field.closed);
            if !closed {
                state.notice = Some(Notice {
                    text: "Enter edits this value".to_owned(),
                    alert: false,
                });
            }
        }
        Action::Clear => {}
        Action::Pin(side) => return pinned(state, side),
        Action::Write => {
            state.prompt = Some(Prompt {
                line: Line::new("plan.toml"),
                wrong: None,
                replace: None,
            });
        }
    }
    Vec::new()
}

/// Another curve of the calibration.
fn curve(state: &mut State, by: isize) {
    let run = state
        .journal
        .as_ref()
        .and_then(|journal| journal.run.as_ref());
    let last = run.map_or(0, |run| run.series.len().saturating_sub(1));
    state.curve = state.curve.saturating_add_signed(by).min(last);
}

fn show(state: &mut State, index: usize) {
    if let Some(view) = View::ALL.get(index) {
        state.view = *view;
        state.scroll = 0;
        state.focus = Focus::Answer;
    }
}

fn moved(state: &mut State, by: isize) -> Vec<Effect> {
    match state.focus {
        Focus::Question => state.form.step(by),
        Focus::Answer if state.view.moves_rows() => {
            return selected(state, state.cursor.saturating_add_signed(by));
        }
        Focus::Answer => {
            state.scroll = state
                .scroll
                .saturating_add_signed(by)
                .min(state.seen.beyond);
        }
    }
    Vec::new()
}

fn help(state: &mut State, key: KeyEvent) -> Vec<Effect> {
    let page = state.seen.page.max(1) as isize;
    let by = match keys::action(Place::Anywhere, key) {
        Some(Action::Move(by)) => by,
        Some(Action::Page(by)) => by * page,
        Some(Action::First) => isize::MIN / 2,
        Some(Action::Last) => isize::MAX / 2,
        _ => {
            state.help = None;
            return Vec::new();
        }
    };
    state.help = state
        .help
        .map(|at| at.saturating_add_signed(by).min(state.seen.help_beyond));
    Vec::new()
}

fn editing(state: &mut State, key: KeyEvent) -> Vec<Effect> {
    let changed = match key.code {
        KeyCode::Esc => state.form.end_edit(false),
        KeyCode::Enter => {
            state.form.take_over();
            state.form.end_edit(true)
        }
        KeyCode::Tab | KeyCode::Down => state.form.complete(1) && state.form.take_over(),
        KeyCode::BackTab | KeyCode::Up => state.form.complete(-1) && state.form.take_over(),
        _ => state.form.key(key) && state.form.take_over(),
    };
    if changed { asked(state) } else { Vec::new() }
}

fn paste(state: &mut State, text: &str) -> Vec<Effect> {
    if let Some(prompt) = &mut state.prompt {
        prompt.line.insert(text);
        return Vec::new();
    }
    if let Some(editing) = &mut state.form.editing {
        editing.line.insert(text);
        editing.walk = None;
        if state.form.take_over() {
            return asked(state);
        }
    }
    Vec::new()
}

fn prompt(state: &mut State, key: KeyEvent) -> Vec<Effect> {
    let Some(prompt) = &mut state.prompt else {
        return Vec::new();
    };
    match key.code {
        KeyCode::Esc => state.prompt = None,
        KeyCode::Enter => {
            let name = prompt.line.text().trim().to_owned();
            let replace = prompt.replace.as_deref() == Some(name.as_str());
            match order(state, &name, replace) {
                Ok(order) => {
                    state.prompt = None;
                    return vec![Effect::Write(Box::new(order))];
                }
                Err(wrong) => {
                    if let Some(prompt) = &mut state.prompt {
                        prompt.wrong = Some(wrong);
                    }
                }
            }
        }
        _ => {
            prompt.line.key(key);
            prompt.wrong = None;
            prompt.replace = None;
        }
    }
    Vec::new()
}

/// What is to be written, from what the screen shows.
fn order(state: &State, name: &str, replace: bool) -> Result<Order, String> {
    let path = Path::new(name);
    let kind = Kind::of(path).map_err(|failure| failure.to_string())?;
    let (true, Some(table)) = (state.is_current(), state.table()) else {
        return Err("there is no answer to write yet".to_owned());
    };
    if table.answer.ranked.is_empty() {
        return Err("nothing can run, so there is nothing to write".to_owned());
    }
    Ok(Order {
        path: path.to_path_buf(),
        kind,
        table: Arc::clone(table),
        row: state.cursor,
        replace,
    })
}

fn mouse(state: &mut State, event: MouseEvent) -> Vec<Effect> {
    if state.help.is_some() || state.prompt.is_some() || state.form.editing.is_some() {
        return Vec::new();
    }
    let at = Position::new(event.column, event.row);
    let hit = |all: &[(Rect, usize)]| {
        let found = all.iter().find(|(area, _)| area.contains(at));
        found.map(|(_, index)| *index)
    };
    match event.kind {
        MouseEventKind::Down(MouseButton::Left) => {
            if let Some(tab) = hit(&state.seen.tabs) {
                show(state, tab);
            } else if let Some(field) = hit(&state.seen.fields) {
                state.focus = Focus::Question;
                if state.form.at == field {
                    state.form.edit();
                }
                state.form.go(field);
            } else if let Some(row) = hit(&state.seen.rows) {
                state.focus = Focus::Answer;
                return selected(state, row);
            } else if state.seen.answer.contains(at) {
                state.focus = Focus::Answer;
            }
            Vec::new()
        }
        MouseEventKind::ScrollDown | MouseEventKind::ScrollUp => {
            state.focus = if state.seen.answer.contains(at) {
                Focus::Answer
            } else {
                Focus::Question
            };
            let by = match event.kind {
                MouseEventKind::ScrollDown => NOTCH,
                _ => -NOTCH,
            };
            moved(state, by)
        }
        _ => Vec::new(),
    }
}
