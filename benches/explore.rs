#![allow(clippy::expect_used)]
//! How long `parplan explore` takes from a changed question to its answer.
//!
//! `cargo bench --bench explore`; a frame is 16 ms, the whole table has 300 ms.

use divan::Bencher;
use parplan::args::{Typed, question};
use parplan::explore::field::Vocabulary;
use parplan::explore::form::Form;
use parplan::explore::planning::{Resolved, Sweep};
use parplan::explore::state::State;
use parplan::explore::theme::Theme;
use parplan::explore::view;
use parplan_planner::plan::Choice;
use parplan_profiles::Library;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use std::sync::Arc;

fn main() {
    divan::main();
}

/// Model and GPUs.
const QUESTIONS: [(&str, u32); 4] = [
    ("qwen3-30b-a3b", 8),
    ("deepseek-v3", 16),
    ("deepseek-v3", 64),
    ("deepseek-v3", 256),
];

fn typed((model, gpus): (&str, u32)) -> Typed {
    let mut typed = Typed::default();
    for (flag, value) in [
        ("model", model),
        ("gpu", "h200"),
        ("gpus", &gpus.to_string()),
        ("isl", "2048"),
        ("osl", "512"),
        ("concurrency", "256"),
    ] {
        typed.set(flag, value);
    }
    typed
}

fn resolved(question: (&str, u32)) -> Arc<Resolved> {
    Arc::new(Resolved::new(&typed(question)).expect("embedded profiles"))
}

fn choices(resolved: &Arc<Resolved>) -> Vec<Choice> {
    let table = resolved.table(threads(), &|| true).expect("figures");
    let table = table.expect("never called off");
    table.answer.ranked.iter().map(|plan| plan.choice).collect()
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// From what was typed to the selected row under the new question.
#[divan::bench(args = QUESTIONS)]
fn selected_row(bencher: Bencher<'_, '_>, question: (&str, u32)) {
    let typed = typed(question);
    let choice = choices(&resolved(question))[0];
    bencher.bench(|| {
        let resolved = Resolved::new(divan::black_box(&typed)).expect("embedded profiles");
        resolved.row(&choice).expect("a row that runs")
    });
}

/// From what was typed to the whole table.
#[divan::bench(args = QUESTIONS)]
fn whole_table(bencher: Bencher<'_, '_>, question: (&str, u32)) {
    let typed = typed(question);
    bencher.bench(|| {
        let resolved = Resolved::new(divan::black_box(&typed)).expect("embedded profiles");
        Arc::new(resolved)
            .table(threads(), &|| true)
            .expect("figures")
    });
}

/// The selected row laid open, with its rival.
#[divan::bench(args = QUESTIONS)]
fn row_laid_open(bencher: Bencher<'_, '_>, question: (&str, u32)) {
    let resolved = resolved(question);
    let rows = choices(&resolved);
    bencher.bench(|| {
        resolved
            .detail(rows[0], rows.get(1).copied())
            .expect("figures")
    });
}

/// The curves of every row over numbers of clients.
#[divan::bench(args = QUESTIONS)]
fn curves(bencher: Bencher<'_, '_>, question: (&str, u32)) {
    let resolved = resolved(question);
    let rows = choices(&resolved);
    bencher.bench(|| Sweep::new(resolved.curves(&rows, threads()).expect("figures")));
}

/// One drawing of the whole screen, at its largest.
#[divan::bench(args = [(80, 24), (200, 60)])]
fn drawing(bencher: Bencher<'_, '_>, (width, height): (u16, u16)) {
    let question = QUESTIONS[2];
    let resolved = resolved(question);
    let table = resolved.table(threads(), &|| true).expect("figures");
    let table = Arc::new(table.expect("never called off"));
    let rows = choices(&resolved);
    let vocabulary = Vocabulary::of(&Library::embedded());
    let form = Form::new(&parplan::args::question(), &vocabulary, &typed(question));
    let mut state = State::new(form);
    state.choice = rows.first().copied();
    let detail = resolved.detail(rows[0], rows.get(1).copied());
    state.detail = Some(Arc::new(detail.expect("figures")));
    let curves = resolved.curves(&rows, threads()).expect("figures");
    state.sweep = Some((state.question, Arc::new(Sweep::new(curves))));
    state.table = Some((state.question, table));
    let theme = Theme {
        colour: true,
        ascii: false,
    };
    let backend = TestBackend::new(width, height);
    let mut terminal = Terminal::new(backend).expect("a terminal in memory");
    bencher.bench_local(|| {
        terminal
            .draw(|frame| {
                view::draw(&state, theme, frame);
            })
            .map(|_| ())
            .expect("memory")
    });
}

/// The definition of every option, which the form and each reading of it start from.
#[divan::bench]
fn options() -> clap::Command {
    question()
}
