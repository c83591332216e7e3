//! The terminal: taken, given back whatever happens, and the threads that listen to it.

use super::event::Event;
use crate::failure::Failure;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{
    self, DisableBracketedPaste, DisableMouseCapture, EnableBracketedPaste, EnableMouseCapture,
};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGTERM, SIGTSTP};
use signal_hook::iterator::Signals;
use std::io::{Stdout, stdout};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

/// Whether the terminal is taken.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal while it is taken; it is given back when this is dropped.
#[derive(Debug)]
pub struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    mouse: bool,
}

impl Screen {
    /// Takes the terminal. From then on a panic gives it back before it says anything.
    ///
    /// # Errors
    /// A terminal that cannot be set up.
    pub fn enter() -> Result<Screen, Failure> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                give_back();
                before(panic);
            }));
        });
        let terminal = take()
            .and_then(|()| Terminal::new(CrosstermBackend::new(stdout())))
            .map_err(|error| {
                give_back();
                Failure::failed(format!("the terminal cannot be taken: {error}"))
            })?;
        Ok(Screen {
            terminal,
            mouse: false,
        })
    }

    /// Draws.
    ///
    /// # Errors
    /// A terminal that is gone.
    pub fn draw(&mut self, draw: impl FnOnce(&mut ratatui::Frame<'_>)) -> Result<(), Failure> {
        let drawn = self.terminal.draw(draw);
        drawn.map(|_| ()).map_err(gone)
    }

    /// Takes the mouse, or leaves it to the terminal.
    ///
    /// # Errors
    /// A terminal that is gone.
    pub fn mouse(&mut self, take: bool) -> Result<(), Failure> {
        self.mouse = take;
        let done = if take {
            execute!(stdout(), EnableMouseCapture)
        } else {
            execute!(stdout(), DisableMouseCapture)
        };
        done.map_err(gone)
    }

    /// Takes the terminal again as it was, after someone else had it.
    ///
    /// # Errors
    /// A terminal that is gone.
    pub fn again(&mut self) -> Result<(), Failure> {
        give_back();
        take().map_err(gone)?;
        self.mouse(self.mouse)?;
        // `clear` would ask the terminal where its cursor is, and the thread that reads keys would
        // get the answer.
        let size = self.terminal.size().map_err(gone)?;
        self.terminal.resize(size.into()).map_err(gone)
    }

    /// Gives the terminal back and stops the process, as Ctrl-Z does, until it is continued.
    ///
    /// # Errors
    /// A terminal that is gone.
    pub fn suspend(&mut self) -> Result<(), Failure> {
        give_back();
        signal_hook::low_level::emulate_default_handler(SIGTSTP).map_err(gone)?;
        self.again()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

fn gone(error: std::io::Error) -> Failure {
    Failure::failed(format!("the terminal cannot be written to: {error}"))
}

fn take() -> std::io::Result<()> {
    TAKEN.store(true, Ordering::SeqCst);
    enable_raw_mode()?;
    execute!(stdout(), EnterAlternateScreen, EnableBracketedPaste)
}

/// Whether a shell waits for this process alone, and so would notice that it stops and could
/// continue it.
pub fn has_shell() -> bool {
    use rustix::process::{getpgid, getppid, getsid};
    let Some(parent) = getppid() else {
        return false;
    };
    let same_session = match (getsid(Some(parent)), getsid(None)) {
        (Ok(theirs), Ok(mine)) => theirs == mine,
        _ => false,
    };
    let own_group = match (getpgid(Some(parent)), getpgid(None)) {
        (Ok(theirs), Ok(mine)) => theirs != mine,
        _ => false,
    };
    same_session && own_group
}

/// Leaves the terminal as it was found; a second time does nothing.
fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        // With the terminal gone there is nothing left to restore.
        let _ = execute!(
            stdout(),
            DisableMouseCapture,
            DisableBracketedPaste,
            LeaveAlternateScreen,
            Show
        );
        let _ = disable_raw_mode();
    }
}

/// Says so when the thread that holds it dies.
#[derive(Debug)]
pub struct Watch {
    what: &'static str,
    events: Sender<Event>,
}

impl Watch {
    /// Over the thread that does this.
    pub fn new(what: &'static str, events: Sender<Event>) -> Watch {
        Watch { what, events }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.events.send(Event::Died(self.what));
        }
    }
}

/// Listens to keys, the mouse and sizes, for as long as there is a terminal.
pub fn listen_to_input(events: Sender<Event>) {
    std::thread::spawn(move || {
        let _watch = Watch::new("reading keys", events.clone());
        loop {
            match event::read() {
                Ok(event) => {
                    if events.send(Event::Input(event)).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // A terminal that went away is a hang-up, signalled or not.
                    let _ = events.send(Event::Signal(SIGHUP));
                    return;
                }
            }
        }
    });
}

/// Listens to signals.
///
/// # Errors
/// Signals that cannot be caught.
pub fn listen_to_signals(events: Sender<Event>) -> Result<(), Failure> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGTSTP, SIGCONT])
        .map_err(|error| Failure::failed(format!("signals cannot be caught: {error}")))?;
    std::thread::spawn(move || {
        let _watch = Watch::new("listening to signals", events.clone());
        for signal in signals.forever() {
            let event = match signal {
                SIGTSTP => Event::Stop,
                SIGCONT => Event::Continued,
                other => Event::Signal(other),
            };
            if events.send(event).is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// Ends the process the way a signal would have ended it, so that its parent sees which.
pub fn end_by(signal: i32) {
    // What it returns is that the signal has no effect, and then the exit code says it.
    let _ = signal_hook::low_level::emulate_default_handler(signal);
}
