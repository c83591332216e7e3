//! A page: headings, lines, lists and tables, in the order in which they are added.

use super::Table;
use super::table::wrap;
use crate::output::Style;

/// Text under construction.
#[derive(Debug, Clone)]
pub struct Page {
    style: Style,
    text: String,
}

impl Page {
    /// An empty page.
    pub fn new(style: Style) -> Page {
        Page {
            style,
            text: String::new(),
        }
    }

    /// The style of the page.
    pub fn style(&self) -> Style {
        self.style
    }

    /// A heading, with an empty line before it unless it comes first.
    pub fn heading(&mut self, text: &str) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        for line in wrap(text, self.style.width()) {
            self.text.push_str(&self.style.bold(&line));
            self.text.push('\n');
        }
    }

    /// Text, wrapped.
    pub fn text(&mut self, text: &str) {
        for line in wrap(text, self.style.width() - 2) {
            self.text.push_str("  ");
            self.text.push_str(&line);
            self.text.push('\n');
        }
    }

    /// Text that explains, wrapped.
    pub fn aside(&mut self, text: &str) {
        for line in wrap(text, self.style.width() - 2) {
            self.text.push_str("  ");
            self.text.push_str(&self.style.dim(&line));
            self.text.push('\n');
        }
    }

    /// A line that is copied rather than read, and so never wrapped.
    pub fn verbatim(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// A table; nothing when it has no row.
    pub fn table(&mut self, table: &Table) {
        if !table.is_empty() {
            self.text.push_str(&table.render(self.style));
        }
    }

    /// A heading and a list; nothing when the list is empty.
    pub fn list(&mut self, heading: &str, items: &[String]) {
        self.marked(heading, items, Style::bold);
    }

    /// The same, for what someone should look at.
    pub fn alerts(&mut self, heading: &str, items: &[String]) {
        self.marked(heading, items, Style::alert);
    }

    fn marked(&mut self, heading: &str, items: &[String], paint: fn(Style, &str) -> String) {
        if items.is_empty() {
            return;
        }
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.text.push_str(&paint(self.style, heading));
        self.text.push('\n');
        for item in items {
            for (i, line) in wrap(item, self.style.width() - 4).iter().enumerate() {
                self.text.push_str(if i == 0 { "  - " } else { "    " });
                self.text.push_str(line);
                self.text.push('\n');
            }
        }
    }

    /// The finished text.
    pub fn finish(self) -> String {
        self.text
    }
}
