//! Nonsense: sizes of no use, names of any length and script, any key at any time.

use super::super::event::Event;
use super::super::state::View;
use super::{PLAIN, draw, fixture, keys};
use proptest::prelude::*;
use ratatui::crossterm::event::Event as Input;
use std::sync::Arc;

#[test]
fn no_size_is_a_panic() {
    for (width, height) in [
        (0, 0),
        (1, 1),
        (2, 3),
        (16, 4),
        (17, 5),
        (20, 5),
        (30, 8),
        (63, 12),
        (64, 10),
        (80, 4),
        (97, 40),
        (300, 6),
        (250, 90),
    ] {
        let mut state = fixture::answered();
        fixture::pin(&mut state);
        for view in View::ALL {
            state.view = view;
            for key in ["Tab", "?", "Escape", "G"] {
                for event in keys(key) {
                    super::update(&mut state, Event::Input(Input::Key(event)));
                }
                draw(&mut state, PLAIN, width, height);
            }
        }
    }
}

#[test]
fn names_of_any_length_stay_in_their_places() {
    let mut state = fixture::answered();
    let long = "漢字\u{1b}[31m\u{202e}é".repeat(200);
    let mut table = fixture::table(&fixture::typed());
    let inner = Arc::get_mut(&mut table).unwrap();
    let resolved = Arc::get_mut(&mut inner.resolved).unwrap();
    resolved.ask.model.name = long.clone();
    state.table = Some((1, table));
    state.form.go(0);
    state.form.set(&long);
    for (width, height) in [(80, 24), (200, 60), (20, 5)] {
        let picture = draw(&mut state, PLAIN, width, height);
        assert!(!picture.contains('\u{1b}'));
        assert!(picture.lines().count() == usize::from(height));
    }
    state.form.edit();
    let picture = draw(&mut state, PLAIN, 80, 24);
    assert!(!picture.contains('\u{1b}'));
}

/// As many rows as one asks for.
#[test]
fn hundreds_of_rows_are_paged() {
    let mut state = fixture::answered();
    let typed = fixture::typed();
    let mut table = fixture::table(&typed);
    let inner = Arc::get_mut(&mut table).unwrap();
    inner.answer.ranked = (0..300)
        .map(|i| {
            let value = 1000.0 - f64::from(i);
            fixture::plan(fixture::layout(8, 1, 1, 1), i % 2 == 0, value, 10.0)
        })
        .collect();
    state.table = Some((1, table));
    state.sweep = None;
    state.cursor = 299;
    let picture = draw(&mut state, PLAIN, 80, 24);
    assert!(picture.contains("300 of 300"), "{picture}");
    assert!(picture.contains("\u{2502}300 "), "{picture}");
}

#[test]
fn nonsense_in_every_field_is_a_message() {
    for text in [
        "-1", "nan", "1e999", "zzz", "🦀", "--help", "1,2,3", " ", "../..", "\u{0}",
    ] {
        let mut state = fixture::answered();
        for at in 0..state.form.fields.len() {
            state.form.go(at);
            let before = state.form.fields[at].text.clone();
            state.form.set(text);
            let outcome = super::super::planning::Resolved::new(&state.form.typed());
            if let Err(failure) = outcome {
                assert!(failure.to_string().len() > 8, "{text}: {failure}");
            }
            state.form.set(&before);
        }
    }
}

const KEYS: [&str; 30] = [
    "Enter", "Escape", "Tab", "BTab", "Up", "Down", "Left", "Right", "BSpace", "PgDn", "C-u",
    "C-d", "j", "k", "J", "K", "g", "G", "1", "2", "5", "9", "0", "c", "n", "a", "b", "w", "?",
    "x",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Any keys in any order: drawn after each, at a size that changes.
    #[test]
    fn no_script_is_a_panic(script in proptest::collection::vec((0usize..30, 1u16..120, 1u16..50), 1..60)) {
        let mut state = fixture::answered();
        fixture::pin(&mut state);
        for (key, width, height) in script {
            for event in keys(KEYS[key]) {
                // What is to be planned or written is left undone: the state must stand by itself.
                let _ = super::update(&mut state, Event::Input(Input::Key(event)));
            }
            draw(&mut state, PLAIN, width, height);
        }
    }
}
