//! Reads a log as it grows. The engine writes to the file itself, so nothing it prints can block it,
//! and memory here stays bounded however much that is.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The rest of a line longer than this is not looked at.
const MAX_LINE: usize = 1 << 16;
/// Bytes that one look reads at most, so that signals are heard while a log is flooded.
const MAX_LOOK: usize = 8 << 20;
/// Lines kept for when something goes wrong.
const KEPT: usize = 20;

/// A growing file.
pub struct Tail {
    file: File,
    line: Vec<u8>,
    last: VecDeque<String>,
    lines: u64,
}

impl Tail {
    /// Follows a file from its beginning.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub fn open(path: &Path) -> std::io::Result<Tail> {
        Ok(Tail {
            file: File::open(path)?,
            line: Vec::new(),
            last: VecDeque::new(),
            lines: 0,
        })
    }

    /// Gives every line that was finished since the last look, without what a terminal would obey.
    /// True when there may be more at once.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn look(&mut self, mut see: impl FnMut(&str)) -> std::io::Result<bool> {
        let mut buffer = [0u8; 1 << 16];
        let mut taken = 0;
        while taken < MAX_LOOK {
            let count = self.file.read(&mut buffer)?;
            if count == 0 {
                return Ok(false);
            }
            taken += count;
            for &byte in &buffer[..count] {
                // A progress bar ends its line with a carriage return.
                if byte == b'\n' || byte == b'\r' {
                    self.end_line(&mut see);
                } else if self.line.len() < MAX_LINE {
                    self.line.push(byte);
                }
            }
        }
        Ok(true)
    }

    fn end_line(&mut self, see: &mut impl FnMut(&str)) {
        if !self.line.is_empty() {
            let text = plain(&String::from_utf8_lossy(&self.line));
            self.line.clear();
            self.lines += 1;
            see(&text);
            if self.last.len() == KEPT {
                self.last.pop_front();
            }
            self.last.push_back(text);
        }
    }

    /// The last lines, an unfinished one included.
    pub fn last(&self) -> Vec<String> {
        let rest = plain(&String::from_utf8_lossy(&self.line));
        let rest = (!rest.is_empty()).then_some(rest);
        self.last.iter().cloned().chain(rest).collect()
    }

    /// Lines so far.
    pub fn lines(&self) -> u64 {
        self.lines
    }
}

/// Text without escape sequences and control characters.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' && chars.peek() == Some(&'[') {
            chars.next();
            while let Some(&c) = chars.peek() {
                chars.next();
                if c.is_ascii_alphabetic() {
                    break;
                }
            }
        } else if c == '\t' {
            out.push(' ');
        } else if !c.is_control() {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn lines_come_whole_and_plain_however_they_are_written() {
        let mut log = tempfile::NamedTempFile::new().unwrap();
        let mut tail = Tail::open(log.path()).unwrap();
        let mut seen = Vec::new();
        for piece in ["one\ntw", "o\r\x1b[31mred\x1b[0m\x07\n", "bad \u{fffd}", ""] {
            log.write_all(piece.as_bytes()).unwrap();
            tail.look(|line| seen.push(line.to_owned())).unwrap();
        }
        log.write_all(b"\xff\xfe\n").unwrap();
        tail.look(|line| seen.push(line.to_owned())).unwrap();
        assert_eq!(seen[..3], ["one", "two", "red"]);
        assert!(seen[3].starts_with("bad"));
        assert_eq!(tail.lines(), 4);
    }

    #[test]
    fn a_line_without_end_takes_bounded_memory() {
        let mut log = tempfile::NamedTempFile::new().unwrap();
        let mut tail = Tail::open(log.path()).unwrap();
        log.write_all(&vec![b'x'; 20 << 20]).unwrap();
        while tail.look(|_| ()).unwrap() {}
        assert!(tail.line.len() <= MAX_LINE);
        assert!(tail.last()[0].len() <= MAX_LINE);
    }
}
