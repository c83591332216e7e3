//! Pictures of every view, and scripts of keys.

mod fixture;
mod hostile;
mod pictures;
mod scripts;

use super::event::{Effect, Event};
use super::state::State;
use super::theme::Theme;
use super::update::update;
use super::view;
use super::worker::{Bench, Wanted};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{Event as Input, KeyCode, KeyEvent, KeyModifiers};

/// No colour, any character.
pub const PLAIN: Theme = Theme {
    colour: false,
    ascii: false,
};

/// What the screen shows, trailing blanks left out; the state learns where things are.
pub fn draw(state: &mut State, theme: Theme, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| state.seen = view::draw(state, theme, frame))
        .unwrap();
    let buffer = terminal.backend().buffer();
    let mut out = String::new();
    for y in 0..height {
        let line: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// A key by its name, as tmux spells them, or a text that is typed.
pub fn keys(name: &str) -> Vec<KeyEvent> {
    let one = |code| vec![KeyEvent::new(code, KeyModifiers::NONE)];
    let control = |c| vec![KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL)];
    match name {
        "Enter" => one(KeyCode::Enter),
        "Escape" => one(KeyCode::Esc),
        "Tab" => one(KeyCode::Tab),
        "BTab" => one(KeyCode::BackTab),
        "Up" => one(KeyCode::Up),
        "Down" => one(KeyCode::Down),
        "Left" => one(KeyCode::Left),
        "Right" => one(KeyCode::Right),
        "BSpace" => one(KeyCode::Backspace),
        "PgDn" => one(KeyCode::PageDown),
        "C-c" => control('c'),
        "C-u" => control('u'),
        "C-z" => control('z'),
        "C-d" => control('d'),
        text => text
            .chars()
            .map(|c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::NONE))
            .collect(),
    }
}

/// A session without a terminal: what is to be planned is planned at once.
pub struct Session {
    pub state: State,
    bench: Bench,
    curves: bool,
    /// Effects other than planning, in order.
    pub effects: Vec<Effect>,
}

impl Session {
    /// Of a state, whose first question is asked.
    pub fn new(state: State) -> Session {
        let first = super::update::ask(&state);
        let mut session = Session {
            state,
            bench: Bench::new(1),
            curves: false,
            effects: Vec::new(),
        };
        session.perform(vec![first]);
        session
    }

    /// Presses keys, one after the other.
    pub fn press(&mut self, names: &[&str]) {
        for name in names {
            for key in keys(name) {
                self.happen(Event::Input(Input::Key(key)));
            }
        }
    }

    /// Lets something happen, and plans what that asks for.
    pub fn happen(&mut self, event: Event) {
        let effects = update(&mut self.state, event);
        self.perform(effects);
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            let Effect::Plan(job) = effect else {
                self.effects.push(effect);
                continue;
            };
            let wanted = || Wanted {
                question: true,
                free: true,
                // Curves take long without optimisation, and most scripts look at none.
                idle: self.curves,
            };
            let mut answers = Vec::new();
            assert!(self.bench.work(&job, &wanted, &mut |answer| {
                answers.push(answer);
                true
            }));
            for answer in answers {
                self.happen(Event::Answer(answer));
            }
        }
    }

    /// Draws the curves, too, from now on.
    pub fn draw_curves(&mut self) {
        self.curves = true;
        let again = super::update::ask(&self.state);
        self.perform(vec![again]);
    }

    /// What the screen shows.
    pub fn screen(&mut self, width: u16, height: u16) -> String {
        draw(&mut self.state, PLAIN, width, height)
    }
}
