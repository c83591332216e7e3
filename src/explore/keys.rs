//! Every key, once: what it does and in what words. The help screen and docs/explore.md follow.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// End.
    Quit,
    /// Show or hide the keys.
    Help,
    /// Move between the question and the answer.
    Focus,
    /// Up by so many lines; down below nothing.
    Move(isize),
    /// A page down, or up below nothing.
    Page(isize),
    /// To the first line.
    First,
    /// To the last line.
    Last,
    /// Another configuration, from any view.
    Row(isize),
    /// Another view, in order.
    Turn(isize),
    /// This view.
    View(usize),
    /// Edit the field.
    Edit,
    /// Back to the default.
    Clear,
    /// The next value.
    Change(isize),
    /// Remember the configuration as A or B.
    Pin(usize),
    /// Write a file.
    Write,
    /// Stop the program until the shell continues it.
    Suspend,
    /// Draw everything anew.
    Redraw,
    /// Take the mouse, or leave it to the terminal.
    Mouse,
    /// Close what is open.
    Close,
}

/// Where a key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Wherever no text is edited.
    Anywhere,
    /// In the question.
    Question,
    /// In the answer.
    Answer,
    /// While a text is edited; these are for help only, the text takes the keys itself.
    Text,
}

impl Place {
    /// Every place, in the order of the help screen.
    pub const ALL: [Place; 4] = [Place::Anywhere, Place::Question, Place::Answer, Place::Text];

    /// Its heading.
    pub fn name(self) -> &'static str {
        match self {
            Place::Anywhere => "Anywhere",
            Place::Question => "In the question",
            Place::Answer => "In the answer",
            Place::Text => "While typing a value",
        }
    }
}

/// One key.
type Chord = (KeyCode, KeyModifiers);

/// Keys with one meaning.
#[derive(Debug)]
pub struct Binding {
    /// Where they hold.
    pub place: Place,
    /// As they are printed.
    pub shown: &'static str,
    /// In words.
    pub words: &'static str,
    /// The keys, each with what it does.
    pub keys: &'static [(Chord, Action)],
}

const NONE: KeyModifiers = KeyModifiers::NONE;
const CONTROL: KeyModifiers = KeyModifiers::CONTROL;

/// A character without modifiers but its own shift.
const fn char(c: char) -> Chord {
    (KeyCode::Char(c), NONE)
}

/// A named key.
const fn key(code: KeyCode) -> Chord {
    (code, NONE)
}

/// A character with Ctrl.
const fn ctrl(c: char) -> Chord {
    (KeyCode::Char(c), CONTROL)
}

/// Every key.
pub const BINDINGS: &[Binding] = &[
    Binding {
        place: Place::Anywhere,
        shown: "Tab",
        words: "move between the question and the answer",
        keys: &[
            (key(KeyCode::Tab), Action::Focus),
            (key(KeyCode::BackTab), Action::Focus),
        ],
    },
    Binding {
        place: Place::Anywhere,
        shown: "j k  Down Up",
        words: "next and previous line",
        keys: &[
            (char('j'), Action::Move(1)),
            (char('k'), Action::Move(-1)),
            (key(KeyCode::Down), Action::Move(1)),
            (key(KeyCode::Up), Action::Move(-1)),
        ],
    },
    Binding {
        place: Place::Anywhere,
        shown: "Ctrl-D Ctrl-U  PgDn PgUp",
        words: "a page down and up",
        keys: &[
            (ctrl('d'), Action::Page(1)),
            (ctrl('u'), Action::Page(-1)),
            (key(KeyCode::PageDown), Action::Page(1)),
            (key(KeyCode::PageUp), Action::Page(-1)),
        ],
    },
    Binding {
        place: Place::Anywhere,
        shown: "g G  Home End",
        words: "first and last line",
        keys: &[
            (char('g'), Action::First),
            (char('G'), Action::Last),
            (key(KeyCode::Home), Action::First),
            (key(KeyCode::End), Action::Last),
        ],
    },
    Binding {
        place: Place::Anywhere,
        shown: "J K",
        words: "next and previous configuration, in any view",
        keys: &[(char('J'), Action::Row(1)), (char('K'), Action::Row(-1))],
    },
    Binding {
        place: Place::Anywhere,
        shown: "1 … 9, 0, c, n",
        words: "the view of that number or letter",
        keys: &[
            (char('1'), Action::View(0)),
            (char('2'), Action::View(1)),
            (char('3'), Action::View(2)),
            (char('4'), Action::View(3)),
            (char('5'), Action::View(4)),
            (char('6'), Action::View(5)),
            (char('7'), Action::View(6)),
            (char('8'), Action::View(7)),
            (char('9'), Action::View(8)),
            (char('0'), Action::View(9)),
            (char('c'), Action::View(10)),
            (char('n'), Action::View(11)),
        ],
    },
    Binding {
        place: Place::Anywhere,
        shown: "a b",
        words: "pin the configuration as A or B; view 9 compares them",
        keys: &[(char('a'), Action::Pin(0)), (char('b'), Action::Pin(1))],
    },
    Binding {
        place: Place::Anywhere,
        shown: "w",
        words: "write a file: plan, launch script, JSON or plot",
        keys: &[(char('w'), Action::Write)],
    },
    Binding {
        place: Place::Anywhere,
        shown: "?",
        words: "these keys",
        keys: &[
            (char('?'), Action::Help),
            (key(KeyCode::F(1)), Action::Help),
        ],
    },
    Binding {
        place: Place::Anywhere,
        shown: "m",
        words: "use the mouse, or leave it to the terminal (as it begins)",
        keys: &[(char('m'), Action::Mouse)],
    },
    Binding {
        place: Place::Anywhere,
        shown: "Ctrl-L",
        words: "draw the screen anew",
        keys: &[(ctrl('l'), Action::Redraw)],
    },
    Binding {
        place: Place::Anywhere,
        shown: "Ctrl-Z",
        words: "suspend; fg comes back",
        keys: &[(ctrl('z'), Action::Suspend)],
    },
    Binding {
        place: Place::Anywhere,
        shown: "q  Ctrl-C",
        words: "end",
        keys: &[(char('q'), Action::Quit), (ctrl('c'), Action::Quit)],
    },
    Binding {
        place: Place::Anywhere,
        shown: "Esc",
        words: "close what is open",
        keys: &[(key(KeyCode::Esc), Action::Close)],
    },
    Binding {
        place: Place::Question,
        shown: "Enter  i",
        words: "edit the value; the answer follows while you type",
        keys: &[
            (key(KeyCode::Enter), Action::Edit),
            (char('i'), Action::Edit),
        ],
    },
    Binding {
        place: Place::Question,
        shown: "l h  Right Left  Space",
        words: "next and previous value of a choice; twice and half a number",
        keys: &[
            (char('l'), Action::Change(1)),
            (char('h'), Action::Change(-1)),
            (char(' '), Action::Change(1)),
            (key(KeyCode::Right), Action::Change(1)),
            (key(KeyCode::Left), Action::Change(-1)),
        ],
    },
    Binding {
        place: Place::Question,
        shown: "x  Del  Backspace",
        words: "back to the default",
        keys: &[
            (char('x'), Action::Clear),
            (key(KeyCode::Delete), Action::Clear),
            (key(KeyCode::Backspace), Action::Clear),
        ],
    },
    Binding {
        place: Place::Answer,
        shown: "l h  Right Left",
        words: "next and previous view",
        keys: &[
            (char('l'), Action::Turn(1)),
            (char('h'), Action::Turn(-1)),
            (key(KeyCode::Right), Action::Turn(1)),
            (key(KeyCode::Left), Action::Turn(-1)),
        ],
    },
    Binding {
        place: Place::Answer,
        shown: "Enter",
        words: "lay the configuration open: memory, step, communication, …",
        keys: &[(key(KeyCode::Enter), Action::Turn(1))],
    },
    Binding {
        place: Place::Text,
        shown: "Enter",
        words: "keep the value",
        keys: &[],
    },
    Binding {
        place: Place::Text,
        shown: "Esc",
        words: "bring back the value from before",
        keys: &[],
    },
    Binding {
        place: Place::Text,
        shown: "Tab  Down Up",
        words: "next and previous completion",
        keys: &[],
    },
    Binding {
        place: Place::Text,
        shown: "Ctrl-A Ctrl-E Ctrl-U Ctrl-K Ctrl-W",
        words: "begin, end, and erase before, after, a word",
        keys: &[],
    },
];

/// What a key asks for, outside of texts.
pub fn action(place: Place, event: KeyEvent) -> Option<Action> {
    let modifiers = event.modifiers - KeyModifiers::SHIFT;
    BINDINGS
        .iter()
        // The narrower place goes first.
        .filter(|binding| binding.place == place)
        .chain(BINDINGS.iter().filter(|b| b.place == Place::Anywhere))
        .flat_map(|binding| binding.keys)
        .find(|((code, with), _)| *code == event.code && *with == modifiers)
        .map(|(_, action)| *action)
}

/// The keys as a Markdown table, for docs/explore.md.
pub fn markdown() -> String {
    let mut out = String::from("| where | keys | what they do |\n|---|---|---|\n");
    for place in Place::ALL {
        for binding in BINDINGS.iter().filter(|binding| binding.place == place) {
            let keys: Vec<String> = binding
                .shown
                .split("  ")
                .map(|part| format!("`{part}`"))
                .collect();
            out.push_str(&format!(
                "| {} | {} | {} |\n",
                place.name(),
                keys.join(" "),
                binding.words
            ));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_means_two_things_in_one_place() {
        for place in [Place::Anywhere, Place::Question, Place::Answer] {
            let mut seen: Vec<Chord> = Vec::new();
            for (chord, _) in BINDINGS
                .iter()
                .filter(|binding| binding.place == place)
                .flat_map(|binding| binding.keys)
            {
                assert!(!seen.contains(chord), "{place:?} {chord:?}");
                seen.push(*chord);
            }
        }
    }

    #[test]
    fn capital_letters_come_with_and_without_shift() {
        for modifiers in [KeyModifiers::NONE, KeyModifiers::SHIFT] {
            let event = KeyEvent::new(KeyCode::Char('G'), modifiers);
            assert_eq!(action(Place::Answer, event), Some(Action::Last));
        }
    }

    #[test]
    fn a_narrower_place_goes_first() {
        let enter = KeyEvent::new(KeyCode::Enter, NONE);
        assert_eq!(action(Place::Question, enter), Some(Action::Edit));
        assert_eq!(action(Place::Answer, enter), Some(Action::Turn(1)));
        let unknown = KeyEvent::new(KeyCode::F(9), NONE);
        assert_eq!(action(Place::Answer, unknown), None);
    }

    /// docs/explore.md has the table that follows from the definitions.
    #[test]
    fn the_documented_keys_are_these() {
        let page = include_str!("../../docs/explore.md");
        assert!(
            page.contains(&markdown()),
            "the keys are now:\n{}",
            markdown()
        );
    }
}
