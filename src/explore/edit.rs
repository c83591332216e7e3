//! A line of text under a cursor.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// Characters that a value may have; more is a slip of a paste.
const MOST: usize = 4096;

/// A line being edited.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Line {
    text: Vec<char>,
    cursor: usize,
}

impl Line {
    /// A text with the cursor behind it.
    pub fn new(text: &str) -> Line {
        let text: Vec<char> = text.chars().collect();
        Line {
            cursor: text.len(),
            text,
        }
    }

    /// The text.
    pub fn text(&self) -> String {
        self.text.iter().collect()
    }

    /// Characters before the cursor.
    pub fn cursor(&self) -> usize {
        self.cursor
    }

    /// Replaces the text.
    pub fn set(&mut self, text: &str) {
        *self = Line::new(text);
    }

    /// Adds text at the cursor; control characters of a paste are left out.
    pub fn insert(&mut self, text: &str) {
        for c in text.chars().filter(|c| !c.is_control()) {
            if self.text.len() < MOST {
                self.text.insert(self.cursor, c);
                self.cursor += 1;
            }
        }
    }

    /// Does what a key asks for; false for a key that is nothing to a line.
    pub fn key(&mut self, key: KeyEvent) -> bool {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('a') if control => self.cursor = 0,
            KeyCode::Char('e') if control => self.cursor = self.text.len(),
            KeyCode::Char('u') if control => {
                self.text.drain(..self.cursor);
                self.cursor = 0;
            }
            KeyCode::Char('k') if control => self.text.truncate(self.cursor),
            KeyCode::Char('w') if control => {
                let from = self.word_before();
                self.text.drain(from..self.cursor);
                self.cursor = from;
            }
            KeyCode::Char(_) if control || key.modifiers.contains(KeyModifiers::ALT) => {
                return false;
            }
            KeyCode::Char(c) => self.insert(c.encode_utf8(&mut [0; 4])),
            KeyCode::Backspace if self.cursor > 0 => {
                self.cursor -= 1;
                self.text.remove(self.cursor);
            }
            KeyCode::Delete if self.cursor < self.text.len() => {
                self.text.remove(self.cursor);
            }
            KeyCode::Backspace | KeyCode::Delete => {}
            KeyCode::Left => self.cursor = self.cursor.saturating_sub(1),
            KeyCode::Right => self.cursor = (self.cursor + 1).min(self.text.len()),
            KeyCode::Home => self.cursor = 0,
            KeyCode::End => self.cursor = self.text.len(),
            _ => return false,
        }
        true
    }

    /// Where the word before the cursor begins.
    fn word_before(&self) -> usize {
        let mut at = self.cursor;
        while at > 0 && self.text[at - 1].is_whitespace() {
            at -= 1;
        }
        while at > 0 && !self.text[at - 1].is_whitespace() {
            at -= 1;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn press(line: &mut Line, code: KeyCode, modifiers: KeyModifiers) {
        line.key(KeyEvent::new(code, modifiers));
    }

    #[test]
    fn letters_of_any_script_are_typed_moved_over_and_deleted() {
        let mut line = Line::new("aé漢");
        press(&mut line, KeyCode::Left, KeyModifiers::NONE);
        press(&mut line, KeyCode::Backspace, KeyModifiers::NONE);
        assert_eq!((line.text().as_str(), line.cursor()), ("a漢", 1));
        press(&mut line, KeyCode::Char('ß'), KeyModifiers::SHIFT);
        assert_eq!(line.text(), "aß漢");
        press(&mut line, KeyCode::Char('u'), KeyModifiers::CONTROL);
        assert_eq!((line.text().as_str(), line.cursor()), ("漢", 0));
    }

    #[test]
    fn a_paste_brings_no_control_characters_and_no_end() {
        let mut line = Line::default();
        line.insert("one\n\u{1b}[31mtwo");
        assert_eq!(line.text(), "one[31mtwo");
        line.insert(&"x".repeat(100_000));
        assert_eq!(line.text().chars().count(), MOST);
    }

    proptest! {
        #[test]
        fn no_key_moves_the_cursor_out_of_the_text(keys in proptest::collection::vec(0u8..12, 0..60)) {
            let mut line = Line::new("some text");
            for key in keys {
                let (code, modifiers) = match key {
                    0 => (KeyCode::Left, KeyModifiers::NONE),
                    1 => (KeyCode::Right, KeyModifiers::NONE),
                    2 => (KeyCode::Home, KeyModifiers::NONE),
                    3 => (KeyCode::End, KeyModifiers::NONE),
                    4 => (KeyCode::Backspace, KeyModifiers::NONE),
                    5 => (KeyCode::Delete, KeyModifiers::NONE),
                    6 => (KeyCode::Char('w'), KeyModifiers::CONTROL),
                    7 => (KeyCode::Char('k'), KeyModifiers::CONTROL),
                    8 => (KeyCode::Char('u'), KeyModifiers::CONTROL),
                    9 => (KeyCode::Char('a'), KeyModifiers::CONTROL),
                    10 => (KeyCode::Char('e'), KeyModifiers::CONTROL),
                    _ => (KeyCode::Char('é'), KeyModifiers::NONE),
                };
                press(&mut line, code, modifiers);
                prop_assert!(line.cursor() <= line.text().chars().count());
            }
        }
    }
}
