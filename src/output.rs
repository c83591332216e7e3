//! Where an answer goes: stdout for what was asked, stderr for why not, an exit code for scripts.

use crate::failure::Failure;
use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

/// Columns of a page where nothing asks for fewer.
pub const WIDTH: usize = 80;
/// Columns below which a page is not squeezed: its tables have figures in several columns.
const NARROWEST: usize = 48;

/// What the place that text goes to can show: terminal attributes, and how many columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    colour: bool,
    width: usize,
}

impl Style {
    /// No attributes at all, and a page of the usual width.
    pub const PLAIN: Style = Style {
        colour: false,
        width: WIDTH,
    };

    /// Attributes where stdout is a terminal and the environment does not ask for none
    /// (`NO_COLOR`, <https://no-color.org>, or `TERM=dumb`); pages as narrow as a narrow terminal.
    pub fn detect() -> Style {
        if !std::io::stdout().is_terminal() {
            return Style::PLAIN;
        }
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        // A terminal that does not know its size says 0.
        let columns = ratatui::crossterm::terminal::size()
            .map(|(columns, _)| usize::from(columns))
            .unwrap_or(0);
        Style {
            colour: !refused && !dumb,
            width: match columns {
                0 => WIDTH,
                columns => columns.clamp(NARROWEST, WIDTH),
            },
        }
    }

    /// The same with pages of so many columns.
    #[cfg(test)]
    pub fn of_width(self, width: usize) -> Style {
        Style { width, ..self }
    }

    /// Columns of a page.
    pub fn width(self) -> usize {
        self.width
    }

    /// Whether colours may be used.
    pub fn is_coloured(self) -> bool {
        self.colour
    }

    /// A heading.
    pub fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    /// What matters less.
    pub fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    /// What someone should look at.
    pub fn alert(self, text: &str) -> String {
        self.wrap("33", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.colour && !text.is_empty() {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

/// A line on stdout. A reader that has seen enough is no error, as in [`finish`].
macro_rules! say {
    ($($text:tt)*) => {
        $crate::output::line(std::io::stdout(), format_args!($($text)*))
    };
}

/// A line on stderr, where nobody need be reading.
macro_rules! tell {
    ($($text:tt)*) => {
        $crate::output::line(std::io::stderr(), format_args!($($text)*))
    };
}

pub(crate) use {say, tell};

/// A line to where it may no longer be read: `println!` would end the process there, and leave its ranks
/// without it.
pub(crate) fn line(mut to: impl Write, text: std::fmt::Arguments<'_>) {
    // In one piece, so that lines of several writers stay whole.
    let _ = to.write_all(format!("{text}\n").as_bytes());
}

/// Writes an answer to stdout, or a failure to stderr, and gives the exit code.
pub fn finish(answer: Result<String, Failure>) -> ExitCode {
    match answer {
        Ok(text) => match write(std::io::stdout(), &text) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => finish(Err(Failure::failed(format!(
                "the answer cannot be written to stdout: {error}"
            )))),
        },
        Err(failure) => {
            // With its readers gone there is nobody left to tell; the exit code still says it.
            let _ = write(std::io::stdout(), failure.answer().unwrap_or(""));
            let _ = write(std::io::stderr(), &format!("parplan: {failure}\n"));
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Writes all of a text; a reader that has seen enough (`| head`) is no error.
fn write(mut to: impl Write, text: &str) -> std::io::Result<()> {
    match to.write_all(text.as_bytes()).and_then(|()| to.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Gone(ErrorKind);

    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_no_error_and_a_full_disk_is() {
        assert!(write(Gone(ErrorKind::BrokenPipe), "text").is_ok());
        assert!(write(Gone(ErrorKind::StorageFull), "text").is_err());
    }

    #[test]
    fn plain_text_has_no_escapes() {
        assert_eq!(Style::PLAIN.bold("heading"), "heading");
        let coloured = Style {
            colour: true,
            ..Style::PLAIN
        };
        let coloured = coloured.bold("heading");
        assert_eq!(coloured, "\u{1b}[1mheading\u{1b}[0m");
    }
}
