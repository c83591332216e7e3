//! Throughput of a GPU against the speed that one user sees, a point a configuration.

use super::super::grid::{cut, width};
use super::super::planning::place;
use super::super::scale::Scale;
use super::super::state::State;
use super::super::theme::Theme;
use super::pane::Pane;
use super::{notes, text};
use crate::render::{number, ranking};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

/// Draws the plot, its axes, and the words of the configuration under the cursor.
pub fn draw(state: &State, theme: Theme, area: Rect, buffer: &mut Buffer) {
    let Some(table) = state.table().filter(|table| table.nothing.is_none()) else {
        let mut pane = Pane::new(usize::from(area.width), theme);
        notes::empty(state, &mut pane);
        return super::paged(state, pane.finish(), theme, area, buffer, None);
    };
    let rows = &table.answer.ranked;
    if area.height < 6 || area.width < 24 {
        return text(buffer, area, area.y, "too small for a plot", theme.dim());
    }
    let places: Vec<(f64, f64)> = rows.iter().map(place).collect();
    let y = Scale::from_zero(
        places.iter().map(|p| p.1),
        usize::from(area.height / 5).max(2),
    );
    let label = y
        .ticks
        .iter()
        .map(|tick| width(&number::plain(*tick)))
        .max()
        .unwrap_or(1) as u16;
    // Under the plot: its axis, the ticks, and two lines of words.
    let field = Rect {
        x: area.x + label + 1,
        y: area.y + 1,
        width: area.width.saturating_sub(label + 1),
        height: area.height.saturating_sub(5),
    };
    let x = Scale::from_zero(
        places.iter().map(|p| p.0),
        usize::from(field.width / 12).max(2),
    );
    let at = |(fast, much): (f64, f64)| {
        let across = (x.share(fast) * f64::from(field.width.saturating_sub(1))).round() as u16;
        let up = (y.share(much) * f64::from(field.height.saturating_sub(1))).round() as u16;
        (field.x + across, field.bottom() - 1 - up)
    };
    text(buffer, area, area.y, "output tokens/s and GPU", theme.dim());
    axes(&x, &y, theme, (area, field), buffer, at);
    if let Some(limit) = table.resolved.goal.tpot_ms {
        let (column, _) = at((1e3 / limit, 0.0));
        for line in field.y..field.bottom() {
            text(buffer, one(column, line), line, "│", theme.alert());
        }
    }
    let stale = !state.is_current();
    let ordinary = if stale { theme.dim() } else { Style::new() };
    for spot in &places {
        let (column, line) = at(*spot);
        text(buffer, one(column, line), line, "·", ordinary);
    }
    for &row in &table.front {
        let (column, line) = at(places[row]);
        text(
            buffer,
            one(column, line),
            line,
            "◆",
            if stale { theme.dim() } else { theme.good() },
        );
    }
    for (pin, name) in state.pins.iter().zip(["A", "B"]) {
        if let Some(pin) = pin {
            let (column, line) = at(place(&pin.plan));
            text(buffer, one(column, line), line, name, theme.accent());
        }
    }
    let words = match state.selected() {
        Some(plan) => {
            let (column, line) = at(place(plan));
            let style = theme
                .accent()
                .add_modifier(ratatui::style::Modifier::REVERSED);
            text(buffer, one(column, line), line, "◉", style);
            format!(
                "◉ {} {}",
                state.cursor + 1,
                ranking::choice_words(&plan.choice)
            )
        }
        None => String::new(),
    };
    let room = usize::from(area.width);
    text(
        buffer,
        area,
        area.bottom() - 2,
        &cut(&words, room),
        theme.accent(),
    );
    let legend = match table.resolved.goal.tpot_ms {
        Some(limit) => format!(
            "◆ beaten by none in both  · others  │ TPOT {} ms",
            number::plain(limit)
        ),
        None => "◆ beaten by none in both  · others".to_owned(),
    };
    text(
        buffer,
        area,
        area.bottom() - 1,
        &cut(&legend, room),
        theme.dim(),
    );
}

/// One cell.
fn one(x: u16, y: u16) -> Rect {
    Rect {
        x,
        y,
        width: 1,
        height: 1,
    }
}

/// Both axes with their ticks.
fn axes(
    x: &Scale,
    y: &Scale,
    theme: Theme,
    (area, field): (Rect, Rect),
    buffer: &mut Buffer,
    at: impl Fn((f64, f64)) -> (u16, u16),
) {
    let axis = field.x.saturating_sub(1);
    for line in field.y..field.bottom() {
        text(buffer, one(axis, line), line, "│", theme.dim());
    }
    let base = field.bottom();
    text(buffer, one(axis, base), base, "└", theme.dim());
    for column in field.x..field.right() {
        text(buffer, one(column, base), base, "─", theme.dim());
    }
    for tick in &y.ticks {
        let (_, line) = at((0.0, *tick));
        let label = number::plain(*tick);
        let wide = width(&label) as u16;
        let place = Rect {
            x: axis.saturating_sub(wide),
            width: wide,
            ..area
        };
        text(buffer, place, line, &label, theme.dim());
        text(buffer, one(axis, line), line, "┤", theme.dim());
    }
    let unit = "tokens/s a user";
    let end = area.right().saturating_sub(width(unit) as u16);
    let mut free = field.x.saturating_sub(1);
    for tick in &x.ticks {
        let (column, _) = at((*tick, 0.0));
        let label = number::plain(*tick);
        let wide = width(&label) as u16;
        let start = column.saturating_sub(wide / 2);
        text(buffer, one(column, base), base, "┴", theme.dim());
        if start >= free && start + wide < end {
            let place = Rect {
                x: start,
                width: wide,
                ..area
            };
            text(buffer, place, base + 1, &label, theme.dim());
            free = start + wide + 1;
        }
    }
    let place = Rect {
        x: end,
        width: width(unit) as u16,
        ..area
    };
    text(buffer, place, base + 1, unit, theme.dim());
}
