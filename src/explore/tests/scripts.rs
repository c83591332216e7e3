//! Sessions as scripts of keys, with the real planner behind them.

use super::super::event::{Effect, Event};
use super::super::field::Vocabulary;
use super::super::form::Form;
use super::super::state::{Ended, Focus, State, View};
use super::Session;
use crate::args::{self, Typed};
use crate::failure::Failure;
use parplan_profiles::Library;

fn typed(options: &[(&str, &str)]) -> Typed {
    let mut typed = Typed::default();
    for (flag, value) in options {
        typed.set(flag, *value);
    }
    typed
}

fn session(options: &[(&str, &str)]) -> Session {
    let vocabulary = Vocabulary::of(&Library::embedded());
    let form = Form::new(&args::question(), &vocabulary, &typed(options));
    Session::new(State::new(form))
}

const SMALL: [(&str, &str); 4] = [
    ("model", "qwen3-30b-a3b"),
    ("gpu", "h200"),
    ("gpus", "4"),
    ("concurrency", "32"),
];

fn rows(session: &Session) -> usize {
    session.state.table().unwrap().answer.ranked.len()
}

#[test]
fn from_nothing_to_an_answer() {
    let mut session = session(&[]);
    assert!(session.screen(80, 24).contains("--model is not given"));
    session.press(&["Enter", "qwen3-8", "Tab", "Enter"]);
    session.press(&[
        "j", "j", "Enter", "h200", "Enter", "j", "Enter", "2", "Enter",
    ]);
    let ask = &session.state.table().unwrap().resolved.ask;
    assert_eq!(
        (ask.model.name.as_str(), ask.gpu.name.as_str()),
        ("qwen3-8b", "h200")
    );
    let screen = session.screen(80, 24);
    assert!(screen.contains("qwen3-8b on 2 h200"), "{screen}");
    assert!(screen.contains("throughput of a GPU"), "{screen}");
}

#[test]
fn the_cursor_stays_with_its_layout_when_the_question_changes() {
    let mut session = session(&SMALL);
    session.press(&["Tab", "j", "j", "j"]);
    assert_eq!(session.state.cursor, 3);
    let layout = session.state.selected().unwrap().choice.layout;
    // Back to the question: one more client at a time.
    session.press(&["Tab", "g"]);
    let at = |flag: &str, session: &Session| {
        let fields = &session.state.form.fields;
        fields.iter().position(|field| field.flag == flag).unwrap()
    };
    let field = at("concurrency", &session);
    for _ in 0..field {
        session.press(&["j"]);
    }
    for _ in 0..6 {
        session.press(&["l"]);
        assert_eq!(session.state.selected().unwrap().choice.layout, layout);
        assert!(session.state.is_current());
    }
    let traffic = &session.state.table().unwrap().resolved.ask.traffic;
    assert_eq!(traffic.concurrency, 2048.0);
    // On twice the GPUs the layout is gone, and the best is under the cursor.
    let field = at("gpus", &session);
    session.state.form.go(field);
    session.press(&["l"]);
    assert_eq!(session.state.cursor, 0);
    assert_eq!(session.state.selected().unwrap().layout.gpus, 8);
}

#[test]
fn giving_up_an_edit_brings_the_answer_back() {
    let mut session = session(&SMALL);
    let before = session.state.table().unwrap().resolved.typed.clone();
    session.press(&["j", "j", "j", "Enter", "C-u", "99999"]);
    assert!(session.state.problem.as_deref().unwrap().contains("--gpus"));
    // What was answered stays in sight.
    assert!(session.screen(80, 24).contains("tok/s/GPU"));
    session.press(&["Escape"]);
    assert_eq!(session.state.problem, None);
    assert_eq!(session.state.table().unwrap().resolved.typed, before);
    assert!(session.state.is_current());
}

#[test]
fn every_view_has_a_key_and_scrolls_to_its_end() {
    let mut session = session(&SMALL);
    for (index, view) in View::ALL.into_iter().enumerate() {
        session.press(&[view.tab().0]);
        assert_eq!(
            (session.state.view, session.state.focus),
            (view, Focus::Answer)
        );
        session.screen(80, 24);
        session.press(&["G"]);
        let end = session.screen(80, 24);
        assert!(!end.contains(" more below"), "{end}");
        assert!(!end.contains(", 0 below"), "{end}");
        session.press(&["g"]);
        session.screen(80, 24);
        assert_eq!(view.index(), index);
    }
    session.press(&["1", "h"]);
    assert_eq!(session.state.view, View::Notes);
    session.press(&["l", "l"]);
    assert_eq!(session.state.view, View::Plot);
}

#[test]
fn curves_mark_the_layouts_that_lead() {
    let mut session = session(&SMALL);
    assert!(session.state.sweep().is_none());
    session.draw_curves();
    let sweep = session.state.sweep().unwrap();
    assert_eq!(sweep.curves.len(), rows(&session));
    let leader = sweep.front[0].0;
    assert!(sweep.leads(leader));
    session.press(&["2"]);
    let screen = session.screen(100, 30);
    assert!(
        screen.contains('◆') && screen.contains("clients: "),
        "{screen}"
    );
    // Curves of an older question are not shown with a newer table.
    session.state.form.go(2);
    session.press(&["Tab", "l"]);
    assert!(session.state.is_current());
}

#[test]
fn rows_are_laid_open_as_the_cursor_moves() {
    let mut session = session(&SMALL);
    for view in ["1", "3"] {
        session.press(&[view, "J"]);
        let choice = session.state.selected().unwrap().choice;
        assert_eq!(session.state.open().unwrap().plan.choice, choice);
    }
    session.press(&["1", "G"]);
    assert_eq!(session.state.cursor, rows(&session) - 1);
    session.press(&["C-d", "j"]);
    assert_eq!(session.state.cursor, rows(&session) - 1);
    session.press(&["g", "k", "C-u"]);
    assert_eq!(session.state.cursor, 0);
    let flip = session.state.open().unwrap().flip.as_ref().unwrap();
    let second = &session.state.table().unwrap().answer.ranked[1];
    assert_eq!(flip.b.choice, second.choice);
}

#[test]
fn a_letter_that_is_typed_is_no_command() {
    let mut session = session(&SMALL);
    session.press(&["Enter", "q"]);
    assert!(session.effects.is_empty());
    assert!(session.state.form.field().unwrap().text.ends_with('q'));
    session.press(&["C-c"]);
    assert!(matches!(session.effects.as_slice(), [Effect::Quit]));
}

#[test]
fn two_pins_are_compared_also_across_engines() {
    let mut session = session(&SMALL);
    session.press(&["9"]);
    assert!(session.screen(80, 24).contains("a pins the configuration"));
    session.press(&["a"]);
    let field = session
        .state
        .form
        .fields
        .iter()
        .position(|f| f.flag == "engine");
    session.state.form.go(field.unwrap());
    session.press(&["Tab", "Enter", "vllm", "Enter", "b", "9"]);
    let screen = session.screen(80, 60);
    assert!(screen.contains("--engine"), "{screen}");
    assert!(screen.contains("Verdict"), "{screen}");
    assert!(session.state.diff.as_ref().unwrap().verdict.is_ok());
    // Another number of clients is another question: there is no verdict on both.
    let field = session
        .state
        .form
        .fields
        .iter()
        .position(|f| f.flag == "concurrency");
    session.state.form.go(field.unwrap());
    session.press(&["Tab", "l", "b"]);
    assert!(session.state.diff.as_ref().unwrap().verdict.is_err());
}

#[test]
fn files_are_ordered_by_name_and_replaced_only_when_said_twice() {
    let mut session = session(&SMALL);
    session.press(&["Tab", "j", "w", "C-u", "plot.png", "Enter"]);
    let wrong = session
        .state
        .prompt
        .as_ref()
        .unwrap()
        .wrong
        .clone()
        .unwrap();
    assert!(wrong.contains(".svg the plot"), "{wrong}");
    let folder = tempfile::tempdir().unwrap();
    for name in ["plan.toml", "launch.sh", "answer.json", "plot.svg"] {
        let path = folder.path().join(name);
        if session.state.prompt.is_none() {
            session.press(&["w"]);
        }
        session.press(&["C-u", path.to_str().unwrap(), "Enter"]);
        let Some(Effect::Write(order)) = session.effects.pop() else {
            panic!("nothing was ordered for {name}");
        };
        assert_eq!((order.row, order.replace), (1, false));
        order.write().unwrap();
        assert!(!std::fs::read_to_string(&path).unwrap().is_empty());
        // A second time it stands in the way, until that is confirmed.
        let refused = order.write().unwrap_err();
        session.happen(Event::Written(path.clone(), Err(refused)));
        assert!(session.screen(80, 24).contains("Enter replaces it"));
        session.press(&["Enter"]);
        let Some(Effect::Write(again)) = session.effects.pop() else {
            panic!("nothing was replaced for {name}");
        };
        assert!(again.replace);
        again.write().unwrap();
        session.happen(Event::Written(path, Ok(())));
        assert!(session.screen(80, 24).contains("wrote "));
    }
    let plan: toml::Table = std::fs::read_to_string(folder.path().join("plan.toml"))
        .unwrap()
        .parse()
        .unwrap();
    let layout = session.state.table().unwrap().answer.ranked[1].layout;
    let tp = plan["choice"]["layout"]["tp"].as_integer().unwrap();
    assert_eq!(tp, i64::from(layout.tp));
    session.happen(Event::Written(
        "x".into(),
        Err(Failure::failed("disk is full")),
    ));
    assert!(session.screen(80, 24).contains("disk is full"));
}

#[test]
fn an_answer_to_an_older_question_changes_nothing() {
    let mut first = session(&SMALL);
    let (question, table) = first.state.table.clone().unwrap();
    first.press(&["j", "j", "j", "l"]);
    assert_eq!(first.state.selected().unwrap().layout.gpus, 8);
    first.happen(Event::Answer(super::super::worker::Answer::Table {
        question,
        table,
    }));
    assert_eq!(first.state.selected().unwrap().layout.gpus, 8);
}

#[test]
fn the_mouse_points_at_rows_fields_and_tabs() {
    use ratatui::crossterm::event::{
        Event as Input, KeyModifiers, MouseButton, MouseEvent, MouseEventKind,
    };
    let mut session = session(&SMALL);
    session.press(&["m"]);
    assert!(matches!(session.effects.as_slice(), [Effect::Mouse(true)]));
    session.screen(120, 30);
    let click = |session: &mut Session, area: ratatui::layout::Rect, kind| {
        session.happen(Event::Input(Input::Mouse(MouseEvent {
            kind,
            column: area.x,
            row: area.y,
            modifiers: KeyModifiers::NONE,
        })));
        session.screen(120, 30);
    };
    let left = MouseEventKind::Down(MouseButton::Left);
    let (area, row) = session.state.seen.rows[3];
    click(&mut session, area, left);
    assert_eq!(session.state.cursor, row);
    let (area, field) = session.state.seen.fields[5];
    click(&mut session, area, left);
    assert_eq!(
        (session.state.form.at, session.state.focus),
        (field, Focus::Question)
    );
    let (area, tab) = session.state.seen.tabs[11];
    click(&mut session, area, left);
    assert_eq!(session.state.view.index(), tab);
    let answer = session.state.seen.answer;
    click(&mut session, answer, MouseEventKind::ScrollDown);
    assert_eq!(session.state.scroll, 3);
}

#[test]
fn signals_and_dead_threads_end_it() {
    let mut one = session(&SMALL);
    one.happen(Event::Signal(15));
    assert!(matches!(one.effects.as_slice(), [Effect::Quit]));
    assert_eq!(one.state.ended, Some(Ended::Signal(15)));
    let mut other = session(&SMALL);
    other.happen(Event::Stop);
    other.happen(Event::Continued);
    other.happen(Event::Died("planning"));
    assert!(matches!(
        other.effects.as_slice(),
        [Effect::Suspend, Effect::Redraw, Effect::Quit]
    ));
}
