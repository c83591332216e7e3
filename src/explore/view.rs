//! The screen, drawn from the state.

mod communication;
mod diff;
mod flip;
mod form;
mod graphs;
mod help;
mod kv;
mod live;
mod memory;
mod notes;
mod pane;
mod plot;
mod ranking;
mod step;
mod summary;

use super::grid::{cut, width};
use super::state::{Focus, Seen, State, View};
use super::theme::Theme;
use crate::render::number;
use pane::Pane;
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

/// Columns below which the question and the answer take turns.
const BOTH: u16 = 64;
/// Size from which the table, the plot and another view are shown together.
const ALL: (u16, u16) = (96, 36);
/// Lines below which the table stands alone.
const SUMMARY: u16 = 15;

/// Draws everything, and says where it is.
pub fn draw(state: &State, theme: Theme, frame: &mut Frame<'_>) -> Seen {
    let area = frame.area();
    let mut seen = Seen::default();
    let buffer = frame.buffer_mut();
    screen(state, theme, area, buffer, &mut seen);
    theme.finish(buffer);
    if let Some(at) = seen.cursor
        && area.contains(at.into())
    {
        frame.set_cursor_position(at);
    }
    seen
}

fn screen(state: &State, theme: Theme, area: Rect, buffer: &mut Buffer, seen: &mut Seen) {
    if area.height < 4 || area.width < 16 {
        let lines = ["parplan explore", "needs a larger", "terminal"];
        for (y, line) in (area.y..area.bottom()).zip(lines) {
            text(buffer, area, y, line, Style::new());
        }
        return;
    }
    title(state, theme, area, buffer);
    tabs(state, theme, area, buffer, seen);
    let body = Rect {
        y: area.y + 2,
        height: area.height - 3,
        ..area
    };
    let (left, right) = halves(state, body);
    if let Some(left) = left {
        form::draw(state, theme, left, buffer, seen);
    }
    if let Some(right) = right {
        if let Some(left) = left {
            for y in left.y..left.bottom() {
                text(
                    buffer,
                    Rect {
                        x: left.right(),
                        width: 1,
                        ..left
                    },
                    y,
                    "│",
                    theme.dim(),
                );
            }
        }
        seen.answer = right;
        answer(state, theme, right, buffer, seen);
    }
    bottom(state, theme, area, buffer, seen);
    if let Some(scroll) = state.help {
        help::draw(scroll, theme, body, buffer, seen);
    }
}

/// The halves of the body: both, or the one that takes the keys.
fn halves(state: &State, body: Rect) -> (Option<Rect>, Option<Rect>) {
    if body.width < BOTH {
        return match state.focus {
            Focus::Question => (Some(body), None),
            Focus::Answer => (None, Some(body)),
        };
    }
    let wide = match body.width {
        0..=95 => 28,
        96..=159 => 34,
        _ => 40,
    };
    let left = Rect {
        width: wide,
        ..body
    };
    let right = Rect {
        x: body.x + wide + 1,
        width: body.width - wide - 1,
        ..body
    };
    (Some(left), Some(right))
}

/// The right half: one view, or several where there is room.
fn answer(state: &State, theme: Theme, area: Rect, buffer: &mut Buffer, seen: &mut Seen) {
    let (left, height) = ALL;
    if area.width >= left && area.height >= height {
        let upper = Rect {
            height: area.height / 2,
            ..area
        };
        let table = Rect {
            width: upper.width * 11 / 20,
            ..upper
        };
        let plot = Rect {
            x: table.right() + 2,
            width: upper.width - table.width - 2,
            ..upper
        };
        ranking::draw(state, theme, table, buffer, seen);
        plot::draw(state, theme, plot, buffer);
        let lower = Rect {
            y: upper.bottom() + 1,
            height: area.height - upper.height - 1,
            ..area
        };
        rule(theme, upper.bottom(), area, buffer);
        match state.view {
            View::Ranking | View::Plot => {
                let half = Rect {
                    width: table.width,
                    ..lower
                };
                let other = Rect {
                    x: plot.x,
                    width: plot.width,
                    ..lower
                };
                let lines = summary::lines(state, theme, usize::from(half.width));
                paged(state, lines, theme, half, buffer, None);
                if state.open().is_some() {
                    let mut pane = Pane::new(usize::from(other.width), theme);
                    memory::show(state, &mut pane);
                    paged(state, pane.finish(), theme, other, buffer, None);
                }
            }
            _ => view(state, theme, lower, buffer, seen),
        }
        return;
    }
    match state.view {
        View::Ranking if area.height >= SUMMARY && state.selected().is_some() => {
            let below = (area.height / 2).min(11);
            let table = Rect {
                height: area.height - below - 1,
                ..area
            };
            ranking::draw(state, theme, table, buffer, seen);
            rule(theme, table.bottom(), area, buffer);
            let lower = Rect {
                y: table.bottom() + 1,
                height: below,
                ..area
            };
            let lines = summary::lines(state, theme, usize::from(area.width));
            paged(state, lines, theme, lower, buffer, None);
        }
        View::Ranking => ranking::draw(state, theme, area, buffer, seen),
        View::Plot => plot::draw(state, theme, area, buffer),
        _ => view(state, theme, area, buffer, seen),
    }
}

/// A view that is a page of lines.
fn view(state: &State, theme: Theme, area: Rect, buffer: &mut Buffer, seen: &mut Seen) {
    let wide = usize::from(area.width);
    let mut pane = Pane::new(wide, theme);
    match state.view {
        View::Ranking | View::Plot => return,
        View::Memory => memory::show(state, &mut pane),
        View::Step => step::show(state, &mut pane),
        View::Communication => communication::show(state, &mut pane),
        View::Graphs => graphs::show(state, &mut pane),
        View::Kv => kv::show(state, &mut pane),
        View::Flip => flip::show(state, &mut pane),
        View::Diff => diff::show(state, &mut pane),
        View::Live => live::show(state, &mut pane, area.height),
        View::Command => notes::command(state, &mut pane),
        View::Notes => notes::show(state, &mut pane),
    }
    paged(state, pane.finish(), theme, area, buffer, Some(seen));
}

/// As many of the lines as fit, from where the view is scrolled to; `seen` where it scrolls.
fn paged(
    state: &State,
    lines: Vec<ratatui::text::Line<'static>>,
    theme: Theme,
    area: Rect,
    buffer: &mut Buffer,
    seen: Option<&mut Seen>,
) {
    let mut height = usize::from(area.height);
    if lines.len() > height && height > 2 {
        // The last line says how much there is beyond.
        height -= 1;
    }
    let beyond = lines.len().saturating_sub(height);
    let scroll = match seen {
        Some(seen) => {
            seen.page = height;
            seen.beyond = beyond;
            state.scroll.min(beyond)
        }
        None => 0,
    };
    let shown = lines.iter().skip(scroll).take(height);
    for (y, line) in (area.y..area.bottom()).zip(shown) {
        buffer.set_line(area.x, y, line, area.width);
    }
    if beyond > 0 && usize::from(area.height) > height {
        let note = match (scroll, beyond - scroll) {
            (0, below) => format!("… {below} more below"),
            (above, 0) => format!("… {above} more above"),
            (above, below) => format!("… {above} more above, {below} below"),
        };
        text(buffer, area, area.bottom() - 1, &note, theme.dim());
    }
}

/// What is asked, and how far the answer is.
fn title(state: &State, theme: Theme, area: Rect, buffer: &mut Buffer) {
    let status = status(state);
    let wide = width(&status) as u16;
    let room = usize::from(area.width.saturating_sub(wide + 1));
    let about = match state.table() {
        Some(table) => {
            let ask = &table.resolved.ask;
            format!(
                "{} on {} {}, {} {}",
                ask.model.name,
                table.resolved.space.gpus,
                ask.gpu.name,
                ask.rules.name,
                ask.rules.version,
            )
        }
        None => "parplan explore".to_owned(),
    };
    text(buffer, area, area.y, &cut(&about, room), theme.heading());
    if wide < area.width {
        let corner = Rect {
            x: area.right() - wide,
            width: wide,
            ..area
        };
        let style = if state.problem.is_some() {
            theme.alert()
        } else {
            theme.dim()
        };
        text(buffer, corner, area.y, &status, style);
    }
}

fn status(state: &State) -> String {
    if state.problem.is_some() {
        return "cannot answer".to_owned();
    }
    match state.table() {
        _ if state.is_planning() => "planning …".to_owned(),
        Some(table) => format!(
            "{}, {} refused, {} ms",
            number::counted(table.answer.ranked.len() as f64, "layout"),
            number::whole(table.answer.rejected.len() as f64),
            number::short(table.stats.seconds * 1e3),
        ),
        None => String::new(),
    }
}

fn tabs(state: &State, theme: Theme, area: Rect, buffer: &mut Buffer, seen: &mut Seen) {
    let y = area.y + 1;
    let full: usize = View::ALL
        .iter()
        .map(|view| view.tab().0.len() + view.tab().1.len() + 1)
        .sum();
    let names = full <= usize::from(area.width);
    let mut x = area.x;
    for (index, view) in View::ALL.iter().enumerate() {
        let (key, name) = view.tab();
        let label = match names || *view == state.view {
            true => format!("{key}{name}"),
            false => key.to_owned(),
        };
        let wide = width(&label) as u16;
        if x + wide > area.right() {
            break;
        }
        let place = Rect {
            x,
            y,
            width: wide,
            height: 1,
        };
        let style = if *view == state.view {
            theme.cursor(state.focus == Focus::Answer)
        } else {
            theme.dim()
        };
        text(buffer, place, y, &label, style);
        seen.tabs.push((place, index));
        x += wide + 1;
    }
}

/// The last line: what is asked for, what is to be said, or the keys that help.
fn bottom(state: &State, theme: Theme, area: Rect, buffer: &mut Buffer, seen: &mut Seen) {
    let y = area.bottom() - 1;
    let room = usize::from(area.width);
    if let Some(prompt) = &state.prompt {
        let label = "write to: ";
        let name = prompt.line.text();
        let start = area.x + width(label) as u16;
        text(
            buffer,
            area,
            y,
            &format!("{label}{}", cut(&name, room)),
            theme.heading(),
        );
        let before: String = name.chars().take(prompt.line.cursor()).collect();
        seen.cursor = Some((start + width(&before) as u16, y));
        let note = match &prompt.wrong {
            Some(wrong) => wrong.clone(),
            None => hints(
                &[
                    ".toml plan",
                    ".sh launch script",
                    ".json answer",
                    ".svg plot",
                    "Enter writes",
                    "Esc gives up",
                ],
                room,
            ),
        };
        let style = if prompt.wrong.is_some() {
            theme.alert()
        } else {
            theme.dim()
        };
        let above = Rect {
            y: y - 1,
            height: 1,
            ..area
        };
        blank(buffer, above);
        text(buffer, area, y - 1, &cut(&note, room), style);
        return;
    }
    if let Some(notice) = &state.notice {
        let style = if notice.alert {
            theme.alert()
        } else {
            theme.good()
        };
        text(buffer, area, y, &cut(&notice.text, room), style);
        return;
    }
    let keys: &[&str] = match (state.form.editing.is_some(), state.focus) {
        (true, _) => &["Enter keeps", "Esc gives up", "Tab completes"],
        (false, Focus::Question) => &[
            "Tab answer",
            "j/k field",
            "Enter edit",
            "h/l change",
            "x default",
            "w write",
            "? keys",
            "q end",
        ],
        (false, Focus::Answer) => &[
            "Tab question",
            "j/k move",
            "h/l view",
            "J/K layout",
            "a/b pin",
            "w write",
            "? keys",
            "q end",
        ],
    };
    text(buffer, area, y, &hints(keys, room), theme.dim());
}

/// Hints in one line. Where they do not all fit, the last two stay, which lead to the others, and of
/// the rest as many as there is room for.
fn hints(all: &[&str], room: usize) -> String {
    let (rest, last) = all.split_at(all.len().saturating_sub(2));
    let line = |kept: usize| [&rest[..kept], last].concat().join("  ");
    let longest = (0..=rest.len())
        .rev()
        .map(line)
        .find(|line| width(line) <= room);
    longest.unwrap_or_else(|| cut(&line(0), room))
}

/// A line across.
fn rule(theme: Theme, y: u16, area: Rect, buffer: &mut Buffer) {
    text(
        buffer,
        area,
        y,
        &"─".repeat(usize::from(area.width)),
        theme.dim(),
    );
}

/// Text in one line of an area, cut at its end.
fn text(buffer: &mut Buffer, area: Rect, y: u16, text: &str, style: Style) {
    if area.width > 0 && y >= area.y && buffer.area.contains((area.x, y).into()) {
        buffer.set_stringn(area.x, y, text, usize::from(area.width), style);
    }
}

/// Nothing where something was drawn.
fn blank(buffer: &mut Buffer, area: Rect) {
    for y in area.y..area.bottom() {
        for x in area.x..area.right() {
            if let Some(cell) = buffer.cell_mut((x, y)) {
                cell.reset();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::hints;

    #[test]
    fn the_way_to_all_keys_is_said_on_the_narrowest_screen() {
        let all = ["Tab answer", "j/k field", "w write", "? keys", "q end"];
        assert_eq!(hints(&all, 80), all.join("  "));
        assert_eq!(hints(&all, 40), "Tab answer  j/k field  ? keys  q end");
        assert_eq!(hints(&all, 16), "? keys  q end");
        assert_eq!(hints(&all, 8), "? keys …");
    }
}
