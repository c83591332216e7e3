//! Throughput of a GPU against the speed that one user sees: every layout over numbers of clients.

use super::super::grid::{cut, width};
use super::super::planning::{Sweep, place};
use super::super::scale::Scale;
use super::super::state::State;
use super::super::theme::Theme;
use super::pane::Pane;
use super::{notes, text};
use crate::render::{number, ranking};
use parplan_planner::plan::Choice;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};

/// Lines that the plot itself keeps, before leaders are listed below it, and most of those.
const LISTED: (u16, usize) = (17, 6);

/// A point to draw.
type Spot = (f64, f64);

/// Draws the plot, its axes, and the words of the configuration under the cursor.
pub fn draw(state: &State, theme: Theme, area: Rect, buffer: &mut Buffer) {
    let Some(table) = state.table().filter(|table| table.nothing.is_none()) else {
        let mut pane = Pane::new(usize::from(area.width), theme);
        notes::empty(state, &mut pane);
        return super::paged(state, pane.finish(), theme, area, buffer, None);
    };
    if area.height < 7 || area.width < 24 {
        return text(buffer, area, area.y, "too small for a plot", theme.dim());
    }
    let sweep = state.sweep();
    let below = list(sweep, theme, area, buffer);
    let spots: Vec<Spot> = match sweep {
        Some(sweep) => sweep
            .curves
            .iter()
            .flat_map(|curve| curve.points.iter().map(spot))
            .collect(),
        None => table.answer.ranked.iter().map(place).collect(),
    };
    // Under the plot: its axis, the ticks, and two lines of words.
    let height = area.height.saturating_sub(5 + below);
    let field = Field::of(&spots, state.selected().map(place), area, height);
    text(buffer, area, area.y, "output tokens/s and GPU", theme.dim());
    field.axes(area, theme, buffer);
    let limit = table.resolved.goal.tpot_ms;
    field.marks(state, theme, &spots, limit, buffer);
    let last = area.bottom() - 1 - below;
    let room = usize::from(area.width);
    if let Some(plan) = state.selected() {
        let words = format!(
            "◉ {} {}, {}",
            state.cursor + 1,
            ranking::choice_words(&plan.choice),
            crate::render::plan::load_words(&table.resolved.ask.traffic)
        );
        text(buffer, area, last - 1, &cut(&words, room), theme.accent());
    }
    let mut legend = match sweep {
        Some(_) => "○ it at 1, 2, 4 … clients  ◆ beaten by none  · others".to_owned(),
        None => "· all layouts; their curves over numbers of clients follow".to_owned(),
    };
    if let Some(limit) = limit {
        legend.push_str(&format!("  │ TPOT {} ms", number::plain(limit)));
    }
    text(buffer, area, last, &cut(&legend, room), theme.dim());
}

/// Where spots lie on the screen.
struct Field {
    area: Rect,
    x: Scale,
    y: Scale,
}

impl Field {
    /// A field of so many lines that holds all of these, to the right of the labels of its axis.
    fn of(spots: &[Spot], selected: Option<Spot>, area: Rect, height: u16) -> Field {
        let all = || spots.iter().copied().chain(selected);
        let y = Scale::from_zero(all().map(|p| p.1), usize::from(height / 5).max(2));
        let label = y.ticks.iter().map(|tick| width(&number::plain(*tick)));
        let label = label.max().unwrap_or(1) as u16;
        let area = Rect {
            x: area.x + label + 1,
            y: area.y + 1,
            width: area.width.saturating_sub(label + 1),
            height,
        };
        let x = Scale::from_zero(all().map(|p| p.0), usize::from(area.width / 12).max(2));
        Field { area, x, y }
    }

    /// Column and line of a spot.
    fn at(&self, (fast, much): Spot) -> (u16, u16) {
        let share =
            |share: f64, cells: u16| (share * f64::from(cells.saturating_sub(1))).round() as u16;
        let across = share(self.x.share(fast), self.area.width);
        let up = share(self.y.share(much), self.area.height);
        (self.area.x + across, self.area.bottom() - 1 - up)
    }

    /// Both axes with their ticks, whose labels lie around the field in `area`.
    fn axes(&self, area: Rect, theme: Theme, buffer: &mut Buffer) {
        let field = self.area;
        let axis = field.x.saturating_sub(1);
        for line in field.y..field.bottom() {
            text(buffer, one(axis, line), line, "│", theme.dim());
        }
        let base = field.bottom();
        text(buffer, one(axis, base), base, "└", theme.dim());
        for column in field.x..field.right() {
            text(buffer, one(column, base), base, "─", theme.dim());
        }
        for tick in &self.y.ticks {
            let (_, line) = self.at((0.0, *tick));
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
        for tick in &self.x.ticks {
            let (column, _) = self.at((*tick, 0.0));
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

    /// The limit, all spots, the curve of the configuration under the cursor, the front, the pins and the
    /// cursor, later ones over earlier ones.
    fn marks(
        &self,
        state: &State,
        theme: Theme,
        spots: &[Spot],
        limit_ms: Option<f64>,
        buffer: &mut Buffer,
    ) {
        let mut dot = |spot: Spot, letter: &str, style: Style| {
            let (column, line) = self.at(spot);
            text(buffer, one(column, line), line, letter, style);
        };
        if let Some(limit) = limit_ms {
            let height = self.area.height;
            let step = self.y.ticks.last().copied().unwrap_or(1.0) / f64::from(height.max(2) - 1);
            for i in 0..height {
                dot((1e3 / limit, step * f64::from(i)), "│", theme.alert());
            }
        }
        let stale = !state.is_current();
        let faint = if stale { theme.dim() } else { Style::new() };
        for spot in spots {
            dot(*spot, "·", faint);
        }
        if let Some(sweep) = state.sweep() {
            if let Some(curve) = sweep.curves.get(state.cursor) {
                for point in &curve.points {
                    dot(spot(point), "○", theme.accent());
                }
            }
            for &(curve, point) in &sweep.front {
                let style = match (stale, curve == state.cursor) {
                    (true, _) => theme.dim(),
                    (false, true) => theme.accent(),
                    (false, false) => theme.good(),
                };
                dot(spot(&sweep.curves[curve].points[point]), "◆", style);
            }
        }
        for (pin, name) in state.pins.iter().zip(["A", "B"]) {
            if let Some(pin) = pin {
                dot(place(&pin.plan), name, theme.accent());
            }
        }
        if let Some(plan) = state.selected() {
            let cursor = theme.accent().add_modifier(Modifier::REVERSED);
            dot(place(plan), "◉", cursor);
        }
    }
}

fn spot(point: &parplan_planner::sweep::Point) -> Spot {
    (point.tokens_per_s_user, point.tokens_per_s_gpu)
}

/// Who leads at which numbers of clients, most first; how many lines that took.
fn list(sweep: Option<&Sweep>, theme: Theme, area: Rect, buffer: &mut Buffer) -> u16 {
    let room = usize::from(area.height.saturating_sub(LISTED.0)).min(LISTED.1);
    let Some(sweep) = sweep.filter(|_| room > 0) else {
        return 0;
    };
    let mut leaders: Vec<(Choice, f64, f64)> = Vec::new();
    for &(curve, point) in sweep.front.iter().rev() {
        let (choice, clients) = (
            sweep.curves[curve].choice,
            sweep.curves[curve].points[point].clients,
        );
        match leaders.last_mut() {
            Some((last, least, most)) if *last == choice => {
                *least = least.min(clients);
                *most = most.max(clients);
            }
            _ => leaders.push((choice, clients, clients)),
        }
    }
    let shown = leaders.len().min(room);
    let first = area.bottom() - shown as u16;
    let more = leaders.len() - shown;
    for (i, (choice, least, most)) in leaders.iter().take(shown).enumerate() {
        let clients = match least == most {
            true => number::counted(*least, "client"),
            false => format!("{}–{} clients", number::plain(*least), number::plain(*most)),
        };
        let rest = match i + 1 == shown && more > 0 {
            true => format!(" … and {more} more"),
            false => String::new(),
        };
        let line = format!("◆ {clients}: {}{rest}", ranking::switch_words(choice));
        let room = usize::from(area.width);
        text(
            buffer,
            area,
            first + i as u16,
            &cut(&line, room),
            theme.good(),
        );
    }
    shown as u16
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
