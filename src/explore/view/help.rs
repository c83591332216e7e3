//! The keys, over everything else.

use super::super::keys::{BINDINGS, Place};
use super::super::state::Seen;
use super::super::theme::Theme;
use super::pane::Pane;
use super::{blank, rule, text};
use crate::explore::grid::{Grid, words};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::Line;

/// Draws the keys in as many columns as they need.
pub fn draw(scroll: usize, theme: Theme, area: Rect, buffer: &mut Buffer, seen: &mut Seen) {
    let wide = area.width.min(92);
    let place = Rect {
        width: wide,
        ..area
    };
    let mut pane = Pane::new(usize::from(wide), theme);
    for place in Place::ALL {
        pane.heading(place.name());
        let mut grid = Grid::new(&[words("", 0), words("", 0)]).wrapping();
        for binding in BINDINGS.iter().filter(|binding| binding.place == place) {
            grid.row([binding.shown, binding.words]);
        }
        pane.grid(&grid);
    }
    pane.heading("Marks");
    let mut grid = Grid::new(&[words("", 0), words("", 0)]).wrapping();
    for (mark, meaning) in [
        (
            "◆",
            "at some number of clients no layout beats it in both throughput and speed",
        ),
        ("×", "misses a limit"),
        ("A B", "pinned"),
        (
            "dim",
            "misses a limit, or belongs to the question before this one",
        ),
        ("!", "a field that the message below is about"),
    ] {
        grid.row([mark, meaning]);
    }
    pane.grid(&grid);
    let lines: Vec<Line<'static>> = pane.finish();
    blank(buffer, place);
    let height = usize::from(area.height.saturating_sub(1));
    seen.help_beyond = lines.len().saturating_sub(height);
    let scroll = scroll.min(seen.help_beyond);
    for (y, line) in (area.y..area.bottom().saturating_sub(1)).zip(lines.iter().skip(scroll)) {
        buffer.set_line(place.x, y, line, place.width);
    }
    let last = area.bottom().saturating_sub(1);
    rule(theme, last, place, buffer);
    let note = match seen.help_beyond - scroll {
        0 => " any other key closes this ".to_owned(),
        below => format!(" {below} more below; any other key closes this "),
    };
    text(buffer, place, last, &note, theme.dim());
}
