//! A page of lines under construction.

use super::super::grid::{Grid, clean};
use super::super::theme::Theme;
use crate::render::table::wrap;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

/// Lines of one width.
#[derive(Debug)]
pub struct Pane {
    lines: Vec<Line<'static>>,
    /// Columns.
    pub width: usize,
    /// Colours and characters.
    pub theme: Theme,
}

impl Pane {
    /// An empty page.
    pub fn new(width: usize, theme: Theme) -> Pane {
        Pane {
            lines: Vec::new(),
            width,
            theme,
        }
    }

    /// A heading, with an empty line before it unless it comes first.
    pub fn heading(&mut self, text: &str) {
        if !self.lines.is_empty() {
            self.lines.push(Line::default());
        }
        self.styled(text, self.theme.heading());
    }

    /// Text, wrapped.
    pub fn text(&mut self, text: &str) {
        self.styled(text, Style::new());
    }

    /// Text that explains, wrapped.
    pub fn aside(&mut self, text: &str) {
        self.styled(text, self.theme.dim());
    }

    /// Text that someone should look at, wrapped.
    pub fn alert(&mut self, text: &str) {
        self.styled(text, self.theme.alert());
    }

    /// Text in a style, wrapped.
    pub fn styled(&mut self, text: &str, style: Style) {
        for line in wrap(&clean(text), self.width) {
            self.lines.push(Line::styled(line, style));
        }
    }

    /// Points of a list, wrapped under themselves.
    pub fn list(&mut self, items: &[String]) {
        for item in items {
            for (i, line) in wrap(&clean(item), self.width.saturating_sub(2))
                .iter()
                .enumerate()
            {
                let mark = if i == 0 { "- " } else { "  " };
                self.lines.push(Line::raw(format!("{mark}{line}")));
            }
        }
    }

    /// A table.
    pub fn grid(&mut self, grid: &Grid) {
        self.lines.extend(grid.lines(self.width, self.theme));
    }

    /// A line as it is.
    pub fn line(&mut self, line: Line<'static>) {
        self.lines.push(line);
    }

    /// A line of styled pieces.
    pub fn spans(&mut self, spans: Vec<Span<'static>>) {
        self.lines.push(Line::from(spans));
    }

    /// The lines.
    pub fn finish(self) -> Vec<Line<'static>> {
        self.lines
    }
}
