//! Tables for panes of any width: columns of less importance give way first.

use super::theme::Theme;
use crate::render::table::wrap;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

/// Between columns.
const GAP: usize = 2;
/// Columns that words keep at least, as long as any other column may give way.
const WORDS: usize = 22;

/// One column.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Its heading.
    pub title: &'static str,
    /// Numbers line up on the right.
    pub right: bool,
    /// 0 stays whatever the width; a higher one gives way sooner.
    pub rank: u8,
}

/// A column of numbers.
pub const fn number(title: &'static str, rank: u8) -> Column {
    Column {
        title,
        right: true,
        rank,
    }
}

/// A column of words.
pub const fn words(title: &'static str, rank: u8) -> Column {
    Column {
        title,
        right: false,
        rank,
    }
}

/// A row.
#[derive(Debug, Clone)]
pub struct Row {
    cells: Vec<String>,
    style: Style,
}

/// A table.
#[derive(Debug, Clone)]
pub struct Grid {
    columns: Vec<Column>,
    rows: Vec<Row>,
    wraps: bool,
}

impl Grid {
    /// A table with these columns; the last one of words takes the room that is left.
    pub fn new(columns: &[Column]) -> Grid {
        Grid {
            columns: columns.to_vec(),
            rows: Vec::new(),
            wraps: false,
        }
    }

    /// Words that do not fit go on in the next line.
    pub fn wrapping(mut self) -> Grid {
        self.wraps = true;
        self
    }

    /// Adds a row.
    pub fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.styled(Style::new(), cells);
    }

    /// Adds a row in a style.
    pub fn styled<T: Into<String>>(&mut self, style: Style, cells: impl IntoIterator<Item = T>) {
        let mut cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        cells.resize(self.columns.len(), String::new());
        self.rows.push(Row { cells, style });
    }

    /// The columns that fit, each with its width.
    fn fitting(&self, room: usize) -> Vec<(usize, usize)> {
        let mut kept: Vec<usize> = (0..self.columns.len())
            // A column of nothing takes no room.
            .filter(|&i| self.rows.iter().any(|row| !row.cells[i].is_empty()))
            .collect();
        let wide = |i: usize| {
            let cells = self.rows.iter().map(|row| width(&row.cells[i]));
            cells
                .chain([width(self.columns[i].title)])
                .max()
                .unwrap_or(0)
        };
        // Words may be cut, so they ask for less than they could use.
        let least = |i: usize| {
            if self.columns[i].right {
                wide(i)
            } else {
                wide(i).min(WORDS)
            }
        };
        loop {
            let needed = kept.iter().map(|&i| least(i) + GAP).sum::<usize>();
            if needed <= room + GAP {
                break;
            }
            let gives = kept
                .iter()
                .copied()
                .max_by_key(|&i| (self.columns[i].rank, i));
            match gives.filter(|&i| self.columns[i].rank > 0) {
                Some(gives) => kept.retain(|&i| i != gives),
                None => break,
            }
        }
        let mut spare = (room + GAP).saturating_sub(kept.iter().map(|&i| least(i) + GAP).sum());
        kept.iter()
            .map(|&i| {
                let more = (wide(i) - least(i)).min(spare);
                spare -= more;
                (i, least(i) + more)
            })
            .collect()
    }

    /// The heading and the rows as lines of at most so many columns; the heading comes first.
    pub fn lines(&self, room: usize, theme: Theme) -> Vec<Line<'static>> {
        let fitting = self.fitting(room);
        let mut out = Vec::new();
        if fitting
            .iter()
            .any(|(i, _)| !self.columns[*i].title.is_empty())
        {
            let titles: Vec<String> = self.columns.iter().map(|c| c.title.to_owned()).collect();
            out.extend(self.line(&titles, &fitting, theme.dim()));
        }
        for row in &self.rows {
            out.extend(self.line(&row.cells, &fitting, row.style));
        }
        out
    }

    fn line(
        &self,
        cells: &[String],
        fitting: &[(usize, usize)],
        style: Style,
    ) -> Vec<Line<'static>> {
        let parts: Vec<Vec<String>> = fitting
            .iter()
            .map(|&(i, wide)| match self.wraps && !self.columns[i].right {
                true => wrap(&clean(&cells[i]), wide),
                false => vec![cut(&cells[i], wide)],
            })
            .collect();
        let height = parts.iter().map(Vec::len).max().unwrap_or(1);
        (0..height)
            .map(|at| {
                let mut text = String::new();
                for (place, (&(i, wide), part)) in fitting.iter().zip(&parts).enumerate() {
                    let part = part.get(at).map_or("", String::as_str);
                    let fill = " ".repeat(wide.saturating_sub(width(part)));
                    if place > 0 {
                        text.push_str(&" ".repeat(GAP));
                    }
                    if self.columns[i].right {
                        text.push_str(&fill);
                        text.push_str(part);
                    } else {
                        text.push_str(part);
                        text.push_str(&fill);
                    }
                }
                Line::styled(text.trim_end().to_owned(), style)
            })
            .collect()
    }
}

/// Columns that a text takes.
pub fn width(text: &str) -> usize {
    Span::raw(text).width()
}

/// Text without characters that would move the cursor.
pub fn clean(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// A text in so many columns; what is cut off shows as an ellipsis.
pub fn cut(text: &str, room: usize) -> String {
    let text = clean(text);
    if width(&text) <= room {
        return text;
    }
    let mut out = String::new();
    let mut taken = 0;
    for c in text.chars() {
        let wide = width(c.encode_utf8(&mut [0; 4]));
        if taken + wide + 1 > room {
            break;
        }
        taken += wide;
        out.push(c);
    }
    if room > 0 {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAIN: Theme = Theme {
        colour: false,
        ascii: false,
    };

    fn sample() -> Grid {
        let mut grid = Grid::new(&[
            words("layout", 0),
            number("tokens/s/GPU", 0),
            number("TPOT ms", 1),
            number("fits", 2),
        ]);
        grid.row(["tp 8", "306", "48.9", "2,164"]);
        grid.row(["tp 16, attn-dp 16, ep 16", "290", "50.5", "4,474"]);
        grid
    }

    fn text(lines: &[Line<'_>]) -> Vec<String> {
        lines.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn columns_give_way_by_their_rank() {
        let wide = text(&sample().lines(60, PLAIN));
        assert_eq!(
            wide[0],
            "layout                    tokens/s/GPU  TPOT ms   fits"
        );
        assert_eq!(
            wide[1],
            "tp 8                               306     48.9  2,164"
        );
        let narrow = text(&sample().lines(46, PLAIN));
        assert_eq!(narrow[0], "layout                   tokens/s/GPU  TPOT ms");
        assert_eq!(narrow[2], "tp 16, attn-dp 16, ep …           290     50.5");
        let least = text(&sample().lines(5, PLAIN));
        assert_eq!(least[0], "layout                  tokens/s/GPU");
    }

    #[test]
    fn wide_characters_count_twice_and_none_moves_the_cursor() {
        assert_eq!(cut("漢字漢字", 5), "漢字…");
        assert_eq!(cut("a\u{1b}[2Jb", 10), "a?[2Jb");
        assert_eq!(cut("abc", 0), "");
    }

    proptest! {
        #[test]
        fn what_is_cut_fits(text in "\\PC{0,40}", room in 0usize..30) {
            prop_assert!(width(&cut(&text, room)) <= room);
        }
    }
}
