//! Every view at both sizes, against pictures on file. `PARPLAN_BLESS=1 cargo test` draws them anew;
//! look at what changed before it is committed.

use super::super::edit::Line;
use super::super::journal::{Journal, Point, Run, Series};
use super::super::planning::Table;
use super::super::state::{Focus, Prompt, State, View};
use super::super::theme::Theme;
use super::{PLAIN, draw, fixture};
use std::path::PathBuf;
use std::sync::Arc;

const SIZES: [(u16, u16); 2] = [(80, 24), (200, 60)];

fn check(name: &str, state: &mut State, theme: Theme) {
    for (width, height) in SIZES {
        let picture = draw(state, theme, width, height);
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("src/explore/tests/snapshots")
            .join(format!("{name}_{width}x{height}.txt"));
        if std::env::var_os("PARPLAN_BLESS").is_some() {
            std::fs::write(&path, &picture).unwrap();
        }
        let filed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            filed == picture,
            "{} is not what is drawn:\n{picture}",
            path.display()
        );
    }
}

#[test]
fn every_view() {
    for view in View::ALL {
        // Its words are those of the launch code, whose tests they are.
        if view == View::Command {
            continue;
        }
        let mut state = fixture::answered();
        state.view = view;
        state.focus = Focus::Answer;
        match view {
            View::Diff => fixture::pin(&mut state),
            View::Live => state.journal = Some(journal()),
            _ => {}
        }
        check(view.tab().1, &mut state, PLAIN);
    }
}

#[test]
fn without_unicode() {
    let mut state = fixture::answered();
    state.view = View::Plot;
    let ascii = Theme {
        ascii: true,
        colour: false,
    };
    let picture = draw(&mut state, ascii, 80, 24);
    assert!(picture.is_ascii(), "{picture}");
    assert!(
        !picture.contains('?') || picture.matches('?').count() == 1,
        "{picture}"
    );
    check("ascii", &mut state, ascii);
}

#[test]
fn a_question_that_has_no_answer() {
    let mut empty = fixture::asked(&Default::default());
    empty.problem = Some("--model is not given".to_owned());
    check("empty", &mut empty, PLAIN);

    let mut planning = fixture::asked(&fixture::typed());
    check("planning", &mut planning, PLAIN);

    let mut nothing = fixture::answered();
    let mut table = fixture::table(&fixture::typed());
    let inner = Arc::get_mut(&mut table).unwrap();
    inner.answer.ranked.clear();
    inner.nothing = Some("no layout of qwen3-30b-a3b runs on 8 h200: too small".to_owned());
    nothing.table = Some((1, table));
    nothing.sweep = None;
    check("nothing", &mut nothing, PLAIN);
}

#[test]
fn a_value_being_typed_and_one_that_is_wrong() {
    let mut state = fixture::answered();
    state.form.go(1);
    state.form.edit();
    if let Some(editing) = &mut state.form.editing {
        editing.line.set("h");
    }
    state.form.take_over();
    state.question += 1;
    state.problem = Some("GPU `h` is not known; did you mean h100, h200?".to_owned());
    check("editing", &mut state, PLAIN);
}

#[test]
fn help_and_prompt() {
    let mut state = fixture::answered();
    state.help = Some(0);
    check("help", &mut state, PLAIN);
    state.help = None;
    state.prompt = Some(Prompt {
        line: Line::new("plan.png"),
        wrong: Some("plan.png: the end of the name says what is written".to_owned()),
        replace: None,
    });
    check("prompt", &mut state, PLAIN);
}

#[test]
fn the_changed_row_comes_before_its_table() {
    let mut state = fixture::answered();
    state.question += 1;
    let mut again = state.table().unwrap().answer.ranked[0].clone();
    let tpot = again.predicted.tpot_ms.as_mut();
    tpot.unwrap().value = 99.5;
    state.row = Some(Ok(Box::new(again)));
    check("changed", &mut state, PLAIN);
}

fn journal() -> Journal {
    let mut journal = Journal::new("calibration.jsonl".into());
    let series = |name: &str, factor: f64, measured: usize| Series {
        name: name.to_owned(),
        size: "bytes",
        points: (0..9)
            .map(|i| {
                let size = 4f64.powi(i + 5);
                let predicted = 8.0 + size / 40_000.0;
                let us = predicted * factor * (1.0 + 0.02 * f64::from(i % 3));
                Point {
                    size,
                    predicted_us: Some(predicted),
                    measured_us: ((i as usize) < measured).then_some([us, us * 0.97, us * 1.03]),
                }
            })
            .collect(),
    };
    journal.run = Some(Run {
        machine: "2 × NVIDIA H200".to_owned(),
        done: 10,
        total: 18,
        series: vec![
            series("all-gather, 2 ranks", 1.02, 6),
            series("all-reduce, 2 ranks", 1.4, 4),
        ],
    });
    journal
}

/// The table that the pictures show is one that can be drawn at all.
#[test]
fn the_fixture_is_whole() {
    let table: Arc<Table> = fixture::table(&fixture::typed());
    let memory = &table.answer.ranked[0].memory_bytes;
    let sum: f64 = memory.parts().iter().map(|part| part.1).sum();
    assert!((sum - memory.total).abs() < 1.0);
}
