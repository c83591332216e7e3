//! `parplan explore`: the question on the left, the answer on the right, changed and seen at once.
//!
//! Everything that happens is an [`event::Event`] over one channel; [`update`] lets it happen to the
//! [`state::State`], which reads no clock, file or terminal, and says what is to be done outside;
//! [`view`] draws the state. Planning has a thread of its own ([`worker`]), where a newer question
//! calls off an older one, so that no key ever waits for it.

pub mod edit;
pub mod event;
pub mod export;
pub mod field;
pub mod form;
pub mod grid;
pub mod journal;
pub mod keys;
pub mod planning;
pub mod scale;
pub mod state;
pub mod svg;
pub mod terminal;
#[cfg(test)]
mod tests;
pub mod theme;
pub mod update;
pub mod view;
pub mod watch;
pub mod worker;

use crate::args::{self, ExploreArgs};
use crate::ask;
use crate::failure::Failure;
use crate::output::Style;
use event::{Effect, Event};
use field::Vocabulary;
use form::Form;
use planning::Resolved;
use state::{Ended, State};
use std::io::IsTerminal;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use terminal::{Screen, Watch};
use theme::Theme;
use update::update;
use worker::Worker;

/// Runs the screen, or writes the files that were asked for.
///
/// # Errors
/// No terminal, a terminal that goes away, a question or a file that cannot be used.
pub fn run(args: &ExploreArgs, style: Style) -> Result<String, Failure> {
    if !args.export.is_empty() {
        return export_only(args);
    }
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return Err(Failure::unusable(
            "explore needs a terminal for its screen, and standard input or output is none; \
             give --export FILE to write files without one, or use `parplan recommend`",
        ));
    }
    let variable = |name: &str| std::env::var(name).ok();
    let theme = Theme::detect(style.is_coloured(), variable);
    let folder = args.typed.get("profiles").cloned();
    let folder = folder
        .or_else(|| std::env::var_os(ask::PROFILES_VARIABLE).filter(|folder| !folder.is_empty()));
    let library = ask::library(folder.as_deref().map(Path::new))?;
    let vocabulary = Vocabulary::of(&library);
    let form = Form::new(&args::question(), &vocabulary, &args.typed);
    let watched = args
        .watch
        .as_ref()
        .map(|path| watch::Reader::new(path.clone(), library, engine_of(&args.typed)));
    match screen(State::new(form), theme, watched)? {
        Some(Ended::Signal(signal)) => {
            terminal::end_by(signal);
            Err(Failure::failed(format!("ended by signal {signal}")))
        }
        Some(Ended::Fault(what)) => Err(Failure::failed(format!(
            "a thread of parplan died while {what}, which is a fault of parplan"
        ))),
        None => Ok(String::new()),
    }
}

/// The engine whose predictions a calibration is held against.
fn engine_of(typed: &args::Typed) -> String {
    let typed = typed.get("engine").map(|engine| engine.to_string_lossy());
    let name = typed.as_deref().and_then(|text| text.split('@').next());
    name.unwrap_or(ask::DEFAULT_ENGINE).to_owned()
}

/// Answers the question once and writes the files.
fn export_only(args: &ExploreArgs) -> Result<String, Failure> {
    let kinds: Vec<_> = args
        .export
        .iter()
        .map(|path| export::Kind::of(path).map(|kind| (path, kind)))
        .collect::<Result<_, _>>()?;
    let resolved = Arc::new(Resolved::new(&args.typed)?);
    let Some(table) = resolved.table(threads(), &|| true)? else {
        return Err(Failure::failed("the search was called off"));
    };
    let table = Arc::new(table);
    if let Some(nothing) = &table.nothing {
        return Err(Failure::failed(nothing.clone()));
    }
    for (path, kind) in kinds {
        let order = export::Order {
            path: path.clone(),
            kind,
            table: Arc::clone(&table),
            row: 0,
            replace: true,
        };
        order.write()?;
    }
    Ok(String::new())
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The loop: wait, let happen, do, draw.
fn screen(
    mut state: State,
    theme: Theme,
    watched: Option<watch::Reader>,
) -> Result<Option<Ended>, Failure> {
    let (events, happens) = mpsc::channel();
    let worker = Worker::default();
    let mut screen = Screen::enter()?;
    terminal::listen_to_signals(events.clone())?;
    terminal::listen_to_input(events.clone());
    plan_in_background(worker.clone(), events.clone());
    if let Some(reader) = watched {
        state.watch(reader.path());
        watch::in_background(reader, events.clone());
    }
    let mut effects = vec![update::ask(&state)];
    let mut writing: Vec<JoinHandle<()>> = Vec::new();
    loop {
        for effect in std::mem::take(&mut effects) {
            match effect {
                Effect::Plan(job) => worker.submit(*job),
                Effect::Write(order) => writing.push(write_in_background(*order, events.clone())),
                Effect::Mouse(take) => screen.mouse(take)?,
                Effect::Suspend if terminal::has_shell() => screen.suspend()?,
                Effect::Suspend => state.say("no shell would continue a stopped process here"),
                Effect::Redraw => screen.again()?,
                Effect::Quit => {
                    worker.stop();
                    // What was ordered is written; a thread that died has said so.
                    writing.into_iter().for_each(|thread| drop(thread.join()));
                    return Ok(state.ended);
                }
            }
        }
        screen.draw(|frame| {
            state.seen = view::draw(&state, theme, frame);
        })?;
        // The senders live in this function, so there is always one.
        let Ok(first) = happens.recv() else {
            return Ok(state.ended);
        };
        effects.extend(update(&mut state, first));
        // What has piled up happens before the next drawing.
        while let Ok(next) = happens.try_recv() {
            effects.extend(update(&mut state, next));
        }
    }
}

fn plan_in_background(worker: Worker, events: mpsc::Sender<Event>) {
    std::thread::spawn(move || {
        let _watch = Watch::new("planning", events.clone());
        worker.run(threads(), |answer| {
            events.send(Event::Answer(answer)).is_ok()
        });
    });
}

fn write_in_background(order: export::Order, events: mpsc::Sender<Event>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let _watch = Watch::new("writing a file", events.clone());
        let outcome = order.write();
        // Nobody to tell is no fault: the file is written.
        let _ = events.send(Event::Written(order.path, outcome));
    })
}
