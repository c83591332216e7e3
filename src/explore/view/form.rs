//! The question: fields under headings, the meaning of the one under the cursor below.

use super::super::field::Field;
use super::super::form::Editing;
use super::super::grid::{clean, cut, width};
use super::super::state::{Focus, Seen, State};
use super::super::theme::Theme;
use super::{blank, rule, text};
use crate::render::table::wrap;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

/// Completions that are shown at once.
const COMPLETIONS: usize = 7;

/// Lines from which there is room for words below the fields.
const TALK: u16 = 7;

/// A line of the form.
enum Entry {
    Heading(String),
    Field(usize),
}

/// Draws the form.
pub fn draw(state: &State, theme: Theme, area: Rect, buffer: &mut Buffer, seen: &mut Seen) {
    let note = note(state, usize::from(area.width));
    let below = match area.height {
        height if height < TALK => 0,
        height => (note.len() as u16).min(height / 2) + 1,
    };
    let fields = Rect {
        height: area.height - below,
        ..area
    };
    let entries = entries(state);
    let at = entries
        .iter()
        .position(|entry| matches!(entry, Entry::Field(i) if *i == state.form.at))
        .unwrap_or(0);
    let height = usize::from(fields.height);
    // The cursor keeps to the middle, so that what comes next is seen before it is reached.
    let last = entries.len().saturating_sub(height);
    let first = at.saturating_sub(height / 2).min(last);
    let named = state
        .problem
        .as_deref()
        .map(|problem| state.form.named(problem))
        .unwrap_or_default();
    for (y, entry) in (fields.y..fields.bottom()).zip(entries.iter().skip(first)) {
        match entry {
            Entry::Heading(name) => {
                let room = usize::from(fields.width);
                text(buffer, fields, y, &cut(name, room), theme.dim());
            }
            Entry::Field(index) => {
                let line = Rect {
                    y,
                    height: 1,
                    ..fields
                };
                seen.fields.push((line, *index));
                field(
                    state,
                    *index,
                    named.contains(index),
                    theme,
                    line,
                    buffer,
                    seen,
                );
            }
        }
    }
    if below > 0 {
        rule(theme, fields.bottom(), area, buffer);
    }
    let style = if state.problem.is_some() {
        theme.alert()
    } else {
        theme.dim()
    };
    for (y, line) in (fields.bottom() + 1..area.bottom()).zip(&note) {
        text(buffer, area, y, line, style);
    }
    if let Some((_, y)) = seen.cursor {
        completions(state, theme, y, fields, buffer);
    }
}

fn entries(state: &State) -> Vec<Entry> {
    let mut out = Vec::new();
    let mut group = "";
    for (index, field) in state.form.fields.iter().enumerate() {
        if field.group != group {
            group = &field.group;
            // What stands in brackets belongs to the command line.
            let name = group.split(" (").next().unwrap_or(group);
            out.push(Entry::Heading(name.to_owned()));
        }
        out.push(Entry::Field(index));
    }
    out
}

fn field(
    state: &State,
    index: usize,
    wrong: bool,
    theme: Theme,
    line: Rect,
    buffer: &mut Buffer,
    seen: &mut Seen,
) {
    let Some(field) = state.form.fields.get(index) else {
        return;
    };
    let here = index == state.form.at;
    if let (true, Some(editing)) = (here, &state.form.editing) {
        return edited(field, editing, theme, line, buffer, seen);
    }
    let room = usize::from(line.width);
    let mark = if wrong { "!" } else { " " };
    let typed = !field.text.is_empty();
    let value = if typed { &field.text } else { &field.default };
    let label = cut(&format!("{mark}{}", field.flag), room);
    let value = cut(value, room.saturating_sub(width(&label) + 1));
    let (plain, valued) = match (here, wrong, typed) {
        (true, ..) => {
            let style = theme.cursor(state.focus == Focus::Question);
            (style, style)
        }
        (_, true, _) => (theme.alert(), theme.alert()),
        (_, _, true) => (Style::new(), theme.heading()),
        _ => (Style::new(), theme.dim()),
    };
    if here {
        buffer.set_style(line, plain);
    }
    text(buffer, line, line.y, &label, plain);
    let wide = width(&value) as u16;
    let end = Rect {
        x: line.right().saturating_sub(wide),
        width: wide,
        ..line
    };
    text(buffer, end, line.y, &value, valued);
}

/// The field while it is edited: as much of the text as fits, the cursor in sight.
fn edited(
    field: &Field,
    editing: &Editing,
    theme: Theme,
    line: Rect,
    buffer: &mut Buffer,
    seen: &mut Seen,
) {
    let room = usize::from(line.width);
    let label = cut(&format!(" {}", field.flag), room / 2);
    let start = width(&label) + 1;
    let room = room.saturating_sub(start + 1);
    let content: Vec<char> = clean(&editing.line.text()).chars().collect();
    let cursor = editing.line.cursor().min(content.len());
    let mut first = 0;
    let wide = |part: &[char]| width(&part.iter().collect::<String>());
    while first < cursor && wide(&content[first..cursor]) > room {
        first += 1;
    }
    let shown: String = content[first..].iter().collect();
    text(buffer, line, line.y, &label, theme.heading());
    let place = Rect {
        x: line.x + (start as u16).min(line.width),
        width: line.width.saturating_sub(start as u16),
        ..line
    };
    buffer.set_style(place, theme.accent());
    text(buffer, place, line.y, &shown, theme.accent());
    let x = place.x + wide(&content[first..cursor]) as u16;
    seen.cursor = Some((x.min(line.right().saturating_sub(1)), line.y));
}

/// The values that the text could become, over what lies below it.
fn completions(state: &State, theme: Theme, y: u16, area: Rect, buffer: &mut Buffer) {
    let words = state.form.completions();
    let at = state
        .form
        .editing
        .as_ref()
        .and_then(|editing| editing.walk.as_ref())
        .map(|(_, at)| *at);
    let first = at.unwrap_or(0).saturating_sub(COMPLETIONS - 1);
    let shown: Vec<&&str> = words.iter().skip(first).take(COMPLETIONS).collect();
    let place = Rect {
        y: y + 1,
        height: (shown.len() as u16).min(area.bottom().saturating_sub(y + 1)),
        ..area
    };
    blank(buffer, place);
    for (i, (y, word)) in (place.y..place.bottom()).zip(shown).enumerate() {
        let style = match at == Some(first + i) {
            true => theme.cursor(true),
            false => theme.accent(),
        };
        let mark = match i + 1 == usize::from(place.height) && words.len() > first + i + 1 {
            true => format!("   {word} … {} more", words.len() - first - i - 1),
            false => format!("   {word}"),
        };
        text(
            buffer,
            place,
            y,
            &cut(&mark, usize::from(place.width)),
            style,
        );
    }
}

/// What is wrong, or what the field means.
fn note(state: &State, room: usize) -> Vec<String> {
    if let Some(problem) = &state.problem {
        return wrap(&clean(problem), room);
    }
    match state.form.field() {
        Some(field) => wrap(&clean(&field.help), room),
        None => Vec::new(),
    }
}
