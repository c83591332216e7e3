//! Colours and characters that the terminal can show. Nothing is said by colour alone.

use ratatui::buffer::Buffer;
use ratatui::style::{Color, Modifier, Style};

/// What the terminal can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Theme {
    /// Colours may be used.
    pub colour: bool,
    /// Nothing but ASCII may be used.
    pub ascii: bool,
}

impl Theme {
    /// By what the environment says: the first of `LC_ALL`, `LC_CTYPE` and `LANG` that is set names
    /// the characters; where none is, they are taken for Unicode.
    pub fn detect(colour: bool, variable: impl Fn(&str) -> Option<String>) -> Theme {
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .find_map(|name| variable(name).filter(|value| !value.is_empty()));
        let ascii = locale.is_some_and(|locale| {
            let locale = locale.to_lowercase();
            !locale.contains("utf-8") && !locale.contains("utf8")
        });
        Theme { colour, ascii }
    }

    fn tint(self, colour: Color) -> Style {
        if self.colour {
            Style::new().fg(colour)
        } else {
            Style::new()
        }
    }

    /// A heading.
    pub fn heading(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// What matters less.
    pub fn dim(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    /// What someone should look at.
    pub fn alert(self) -> Style {
        self.tint(Color::Yellow).add_modifier(Modifier::BOLD)
    }

    /// What is good.
    pub fn good(self) -> Style {
        self.tint(Color::Green)
    }

    /// What is meant by the view.
    pub fn accent(self) -> Style {
        self.tint(Color::Cyan).add_modifier(Modifier::BOLD)
    }

    /// The line under the cursor; `focused` where it takes the keys.
    pub fn cursor(self, focused: bool) -> Style {
        if focused {
            Style::new().add_modifier(Modifier::REVERSED)
        } else {
            Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED)
        }
    }

    /// One of several parts; characters tell them apart, too.
    pub fn part(self, index: usize) -> Style {
        const COLOURS: [Color; 7] = [
            Color::Blue,
            Color::Green,
            Color::Cyan,
            Color::Magenta,
            Color::Yellow,
            Color::Red,
            Color::Gray,
        ];
        self.tint(COLOURS[index % COLOURS.len()])
    }

    /// Replaces what the terminal cannot show.
    pub fn finish(self, buffer: &mut Buffer) {
        if !self.ascii {
            return;
        }
        for cell in &mut buffer.content {
            if cell.symbol().is_ascii() {
                continue;
            }
            cell.set_symbol(match cell.symbol() {
                "─" => "-",
                "│" => "|",
                "┼" | "┴" | "┬" | "├" | "┤" | "└" => "+",
                "█" => "#",
                "▓" => "=",
                "▒" => "+",
                "░" => ".",
                "·" => ".",
                "●" | "○" => "o",
                "◆" => "*",
                "◉" => "@",
                "…" => "~",
                "–" => "-",
                "›" => ">",
                "×" => "x",
                "µ" => "u",
                _ => "?",
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_locale_names_the_characters() {
        let theme = |set: &'static [(&str, &str)]| {
            Theme::detect(true, move |name| {
                let found = set.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        assert!(!theme(&[]).ascii);
        assert!(!theme(&[("LANG", "de_DE.utf8")]).ascii);
        assert!(theme(&[("LC_ALL", "C"), ("LANG", "en_US.UTF-8")]).ascii);
        assert!(!theme(&[("LC_ALL", ""), ("LANG", "C.UTF-8")]).ascii);
    }

    #[test]
    fn without_colour_nothing_is_coloured() {
        let theme = Theme {
            colour: false,
            ascii: false,
        };
        for style in [theme.alert(), theme.good(), theme.accent(), theme.part(2)] {
            assert_eq!((style.fg, style.bg), (None, None));
        }
    }
}
