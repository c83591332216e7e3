//! A table: aligned columns, units in the header, the last column wrapped to the page.

use crate::output::Style;

/// Which side a column lines up on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows under a header.
#[derive(Debug, Clone)]
pub struct Table {
    header: Vec<(String, Align)>,
    rows: Vec<Row>,
}

#[derive(Debug, Clone)]
enum Row {
    Cells(Vec<String>),
    Rule,
}

/// A space at which no line breaks; it is printed as a space.
pub const KEEP: &str = "\u{a0}";
/// Between columns.
const GAP: &str = "  ";
/// Before a table.
const INDENT: &str = "  ";
/// Width down to which the last column gives way first.
const READABLE: usize = 28;
/// No column of words gets narrower.
const LEAST: usize = 8;

impl Table {
    /// A table with these columns; a name that starts with `>` lines up on the right.
    pub fn new(columns: &[&str]) -> Table {
        let header = columns
            .iter()
            .map(|name| match name.strip_prefix('>') {
                Some(name) => (name.to_owned(), Align::Right),
                None => ((*name).to_owned(), Align::Left),
            })
            .collect();
        Table {
            header,
            rows: Vec::new(),
        }
    }

    /// Adds a row; missing cells are empty.
    pub fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let mut cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        cells.resize(self.header.len(), String::new());
        self.rows.push(Row::Cells(cells));
    }

    /// Adds a line between rows.
    pub fn rule(&mut self) {
        self.rows.push(Row::Rule);
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The most of `measure` over the cells of each column, its name among them.
    fn most(&self, measure: impl Fn(&str) -> usize) -> Vec<usize> {
        let mut most: Vec<usize> = self.header.iter().map(|(name, _)| measure(name)).collect();
        for row in &self.rows {
            if let Row::Cells(cells) = row {
                for (most, cell) in most.iter_mut().zip(cells) {
                    *most = (*most).max(measure(cell));
                }
            }
        }
        most
    }

    fn widths(&self, page: usize) -> Vec<usize> {
        let mut widths = self.most(length);
        let longest_words = self.most(|cell| cell.split(' ').map(length).max().unwrap_or(0));
        let room = page.saturating_sub(INDENT.len() + GAP.len() * widths.len().saturating_sub(1));
        let mut over = widths.iter().sum::<usize>().saturating_sub(room);
        // Text gives way: the last column down to a readable width, then the widest ones between their
        // words, then the widest ones inside of words.
        let text = |i: &usize| self.header[*i].1 == Align::Left;
        let last = widths.len().checked_sub(1).filter(text);
        if let Some(last) = last {
            let give = over.min(widths[last].saturating_sub(READABLE));
            widths[last] -= give;
            over -= give;
        }
        for least in [&longest_words, &vec![0; widths.len()]] {
            while over > 0 {
                let widest = (0..widths.len())
                    .filter(text)
                    .filter(|&i| widths[i] > least[i].max(LEAST))
                    .max_by_key(|&i| widths[i]);
                let Some(i) = widest else { break };
                widths[i] -= 1;
                over -= 1;
            }
        }
        widths
    }

    /// The table without columns that hold nothing at all.
    fn dense(&self) -> Table {
        let holds = |i: usize| {
            let named = !self.header[i].0.is_empty();
            let filled = |row: &Row| match row {
                Row::Cells(cells) => !cells[i].is_empty(),
                Row::Rule => false,
            };
            named || self.rows.iter().any(filled)
        };
        let columns: Vec<usize> = (0..self.header.len()).filter(|&i| holds(i)).collect();
        Table {
            header: columns.iter().map(|&i| self.header[i].clone()).collect(),
            rows: self
                .rows
                .iter()
                .map(|row| match row {
                    Row::Cells(cells) => {
                        Row::Cells(columns.iter().map(|&i| cells[i].clone()).collect())
                    }
                    Row::Rule => Row::Rule,
                })
                .collect(),
        }
    }

    /// The table as lines; columns that hold nothing at all are left out.
    pub fn render(&self, style: Style) -> String {
        self.dense().render_all(style)
    }

    fn render_all(&self, style: Style) -> String {
        let widths = self.widths(style.width());
        let total: usize =
            widths.iter().sum::<usize>() + GAP.len() * widths.len().saturating_sub(1);
        let mut out = String::new();
        if self.header.iter().any(|(name, _)| !name.is_empty()) {
            let names: Vec<String> = self.header.iter().map(|(name, _)| name.clone()).collect();
            out.push_str(&self.lines(&names, &widths, |text| style.dim(text)));
        }
        for row in &self.rows {
            match row {
                Row::Cells(cells) => {
                    out.push_str(&self.lines(cells, &widths, str::to_owned));
                }
                Row::Rule => {
                    out.push_str(INDENT);
                    out.push_str(&style.dim(&"-".repeat(total)));
                    out.push('\n');
                }
            }
        }
        out
    }

    /// One row, over as many lines as its longest cell takes.
    fn lines(&self, cells: &[String], widths: &[usize], paint: impl Fn(&str) -> String) -> String {
        let wrapped: Vec<Vec<String>> = cells
            .iter()
            .zip(widths)
            .map(|(cell, &width)| wrap(cell, width))
            .collect();
        let height = wrapped.iter().map(Vec::len).max().unwrap_or(1);
        let mut out = String::new();
        for line in 0..height {
            let mut text = String::new();
            for (column, parts) in wrapped.iter().enumerate() {
                let part = parts.get(line).map_or("", String::as_str);
                let fill = " ".repeat(widths[column].saturating_sub(length(part)));
                if column > 0 {
                    text.push_str(GAP);
                }
                match self.header[column].1 {
                    Align::Left => text.push_str(&format!("{part}{fill}")),
                    Align::Right => text.push_str(&format!("{fill}{part}")),
                }
            }
            out.push_str(INDENT);
            out.push_str(&paint(&text.trim_end().replace(KEEP, " ")));
            out.push('\n');
        }
        out
    }
}

/// Columns that a text takes; every character that parplan prints takes one.
pub fn length(text: &str) -> usize {
    text.chars().count()
}

/// Breaks a text between words; a word longer than the width is cut.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        let mut rest = word;
        let needs = length(&line) + usize::from(!line.is_empty()) + length(word);
        if needs > width && !line.is_empty() {
            lines.push(std::mem::take(&mut line));
        }
        while length(rest) > width {
            let cut = rest
                .char_indices()
                .nth(width)
                .map_or(rest.len(), |(at, _)| at);
            lines.push(rest[..cut].to_owned());
            rest = &rest[cut..];
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(rest);
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::WIDTH;
    use proptest::prelude::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["part", ">GiB", "note"]);
        table.row(["weights", "83.51", "fp8"]);
        table.row(["kv", "9.1", ""]);
        table.rule();
        table.row(["total", "140.40"]);
        assert_eq!(
            table.render(Style::PLAIN),
            "  part        GiB  note\n  weights   83.51  fp8\n  kv          9.1\n  \
             ---------------------\n  total    140.40\n"
        );
    }

    #[test]
    fn words_that_are_kept_together_break_together() {
        let mut table = Table::new(&["layout"]);
        table.row([format!("{}, ep{KEEP}16", "x".repeat(WIDTH - 6))]);
        let text = table.render(Style::PLAIN);
        assert!(text.ends_with("\n  ep 16\n"), "{text}");
    }

    #[test]
    fn a_column_breaks_between_words_before_another_breaks_a_word() {
        let mut table = Table::new(&["class", ">error %", "timed"]);
        table.row([
            "reduce_scatter.symmetric",
            "12.5",
            "parplan 0.1.0 attention",
        ]);
        let text = table.render(Style::PLAIN.of_width(50));
        assert!(
            text.contains("  reduce_scatter.symmetric     12.5  parplan"),
            "{text}"
        );
        assert!(text.lines().all(|line| length(line) <= 50), "{text}");
        let narrow = table.render(Style::PLAIN.of_width(34));
        assert!(narrow.lines().all(|line| length(line) <= 34), "{narrow}");
    }

    #[test]
    fn a_column_of_nothing_takes_no_room() {
        let mut table = Table::new(&["a", "", "b"]);
        table.row(["1", "", "2"]);
        assert_eq!(table.render(Style::PLAIN), "  a  b\n  1  2\n");
    }

    #[test]
    fn a_long_last_column_wraps_under_itself() {
        let mut table = Table::new(&["layout", "reason"]);
        table.row(["tp 8", &"words that go on ".repeat(10)]);
        let text = table.render(Style::PLAIN);
        assert!(text.lines().count() > 3);
        assert!(
            text.lines()
                .skip(2)
                .all(|line| line.starts_with("          w")
                    || line.trim().is_empty()
                    || line.starts_with("          ")),
            "{text}"
        );
    }

    proptest! {
        #[test]
        fn no_line_is_wider_than_the_page(cells in proptest::collection::vec("[a-zé ]{0,120}", 1..12)) {
            let mut table = Table::new(&["name", ">value", "why"]);
            for cell in &cells {
                table.row([cell.as_str(), "12.5", cell.as_str()]);
            }
            for line in table.render(Style::PLAIN).lines() {
                prop_assert!(length(line) <= WIDTH, "{line}");
            }
        }

        #[test]
        fn wrapping_keeps_every_letter(text in "[a-z ]{0,200}", width in 1usize..60) {
            let lines = wrap(&text, width);
            prop_assert!(lines.iter().all(|line| length(line) <= width));
            let letters = |s: &str| s.replace(' ', "");
            prop_assert_eq!(letters(&lines.concat()), letters(&text));
        }
    }
}
