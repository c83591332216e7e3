//! Everything that the screen shows.

use super::edit::Line;
use super::form::Form;
use super::journal::Journal;
use super::planning::{Detail, Diff, Pin, Sweep, Table};
use super::worker::Job;
use parplan_planner::plan::{Choice, Plan};
use ratatui::layout::Rect;
use std::path::Path;
use std::sync::Arc;

/// Which half takes the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Focus {
    /// The question.
    Question,
    /// The answer.
    Answer,
}

/// What the right half shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// The ranked table.
    Ranking,
    /// Throughput of a GPU against the speed that one user sees.
    Plot,
    /// The memory of each rank.
    Memory,
    /// Where the time of a step goes.
    Step,
    /// What is sent, and how rows are padded for it.
    Communication,
    /// CUDA graphs.
    Graphs,
    /// Copies of the KV cache, by DCP width.
    Kv,
    /// What would flip the choice.
    Flip,
    /// Two pinned configurations.
    Diff,
    /// A running calibration.
    Live,
    /// The launch command.
    Command,
    /// Warnings, assumptions, refused layouts.
    Notes,
}

impl View {
    /// Every view, in order.
    pub const ALL: [View; 12] = [
        View::Ranking,
        View::Plot,
        View::Memory,
        View::Step,
        View::Communication,
        View::Graphs,
        View::Kv,
        View::Flip,
        View::Diff,
        View::Live,
        View::Command,
        View::Notes,
    ];

    /// Its key and its short name, as the tabs show them.
    pub fn tab(self) -> (&'static str, &'static str) {
        match self {
            View::Ranking => ("1", "Rank"),
            View::Plot => ("2", "Plot"),
            View::Memory => ("3", "Mem"),
            View::Step => ("4", "Step"),
            View::Communication => ("5", "Comm"),
            View::Graphs => ("6", "Graph"),
            View::Kv => ("7", "KV"),
            View::Flip => ("8", "Flip"),
            View::Diff => ("9", "Diff"),
            View::Live => ("0", "Live"),
            View::Command => ("c", "Cmd"),
            View::Notes => ("n", "Notes"),
        }
    }

    /// Its title.
    pub fn title(self) -> &'static str {
        match self {
            View::Ranking => "Ranked layouts",
            View::Plot => "Throughput against speed",
            View::Memory => "Memory of the ranks",
            View::Step => "Where the time goes",
            View::Communication => "Communication of a decode step",
            View::Graphs => "CUDA graphs",
            View::Kv => "KV cache by DCP width",
            View::Flip => "What would flip the choice",
            View::Diff => "A and B",
            View::Live => "Calibration",
            View::Command => "Launch command",
            View::Notes => "Warnings, assumptions, refusals",
        }
    }

    /// Its place among all.
    pub fn index(self) -> usize {
        View::ALL.iter().position(|view| *view == self).unwrap_or(0)
    }

    /// Whether its lines are the rows of the table.
    pub fn moves_rows(self) -> bool {
        matches!(self, View::Ranking | View::Plot)
    }
}

/// A line of text that asks for a file's name.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// The name.
    pub line: Line,
    /// What was wrong with it.
    pub wrong: Option<String>,
    /// A name that exists; Enter once more replaces it.
    pub replace: Option<String>,
}

/// Something to say once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// What.
    pub text: String,
    /// Something went wrong.
    pub alert: bool,
}

/// What the last drawing found out, for the mouse and for paging.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Fields on the screen, each with its place in the form.
    pub fields: Vec<(Rect, usize)>,
    /// Rows of the table on the screen, each with its place in the ranking.
    pub rows: Vec<(Rect, usize)>,
    /// Tabs, each with its place among the views.
    pub tabs: Vec<(Rect, usize)>,
    /// The right half.
    pub answer: Rect,
    /// Lines of a page in the right half.
    pub page: usize,
    /// Lines of the view that do not fit.
    pub beyond: usize,
    /// Lines of the help that do not fit.
    pub help_beyond: usize,
    /// Where the text cursor is.
    pub cursor: Option<(u16, u16)>,
}

/// The whole state.
#[derive(Debug)]
pub struct State {
    /// The question.
    pub form: Form,
    /// Which half takes the keys.
    pub focus: Focus,
    /// What the right half shows.
    pub view: View,
    /// The row of the table under the cursor.
    pub cursor: usize,
    /// The configuration under the cursor, which survives a changed question.
    pub choice: Option<Choice>,
    /// Lines that the view is scrolled by.
    pub scroll: usize,
    /// Counts questions.
    pub question: u64,
    /// Counts selections.
    pub selection: u64,
    /// Counts pins.
    pub pinning: u64,
    /// The table, and the question that it answers.
    pub table: Option<(u64, Arc<Table>)>,
    /// The curves of the table's rows, and the question that they belong to.
    pub sweep: Option<(u64, Arc<Sweep>)>,
    /// The selected row under the newest question, until the table is there.
    pub row: Option<Result<Box<Plan>, String>>,
    /// Why the newest question cannot be answered.
    pub problem: Option<String>,
    /// The selected row laid open.
    pub detail: Option<Arc<Detail>>,
    /// Pinned configurations.
    pub pins: [Option<Arc<Pin>>; 2],
    /// The pinned pair.
    pub diff: Option<Arc<Diff>>,
    /// The calibration that is watched.
    pub journal: Option<Journal>,
    /// Its curve that is drawn.
    pub curve: usize,
    /// The prompt for a file.
    pub prompt: Option<Prompt>,
    /// Help is shown, scrolled by so many lines.
    pub help: Option<usize>,
    /// Something to say.
    pub notice: Option<Notice>,
    /// The mouse is taken.
    pub mouse: bool,
    /// What the last drawing found out.
    pub seen: Seen,
    /// The signal, or the fault, that ended it.
    pub ended: Option<Ended>,
}

/// What ended it, other than the person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// A signal.
    Signal(i32),
    /// A thread died.
    Fault(&'static str),
}

impl State {
    /// A form, and nothing known yet.
    pub fn new(form: Form) -> State {
        State {
            focus: Focus::Question,
            view: View::Ranking,
            form,
            cursor: 0,
            choice: None,
            scroll: 0,
            question: 1,
            selection: 0,
            pinning: 0,
            table: None,
            sweep: None,
            row: None,
            problem: None,
            detail: None,
            pins: [None, None],
            diff: None,
            journal: None,
            curve: 0,
            prompt: None,
            help: None,
            notice: None,
            mouse: false,
            seen: Seen::default(),
            ended: None,
        }
    }

    /// Says something that went wrong.
    pub fn say(&mut self, text: &str) {
        self.notice = Some(Notice {
            text: text.to_owned(),
            alert: true,
        });
    }

    /// Shows a calibration while it is measured.
    pub fn watch(&mut self, path: &Path) {
        self.journal = Some(Journal::new(path.to_path_buf()));
        self.view = View::Live;
        self.focus = Focus::Answer;
    }

    /// The table, whatever question it answers.
    pub fn table(&self) -> Option<&Arc<Table>> {
        self.table.as_ref().map(|(_, table)| table)
    }

    /// The curves of the table's rows, where they are drawn already.
    pub fn sweep(&self) -> Option<&Sweep> {
        match (&self.sweep, &self.table) {
            (Some((of, sweep)), Some((question, _))) if of == question => Some(sweep),
            _ => None,
        }
    }

    /// Whether the table answers the newest question.
    pub fn is_current(&self) -> bool {
        matches!(&self.table, Some((question, _)) if *question == self.question)
    }

    /// Whether an answer is on its way.
    pub fn is_planning(&self) -> bool {
        !self.is_current() && self.problem.is_none()
    }

    /// The configuration under the cursor, as it is known at this moment.
    pub fn selected(&self) -> Option<&Plan> {
        match &self.row {
            Some(Ok(plan)) if !self.is_current() => Some(plan),
            _ => self.table()?.answer.ranked.get(self.cursor),
        }
    }

    /// The selected row laid open, where it is that row.
    pub fn open(&self) -> Option<&Detail> {
        self.detail.as_deref()
    }

    /// All that is wanted now.
    pub fn job(&self) -> Job {
        let rows = match &self.table {
            Some((question, table)) if *question == self.question => &table.answer.ranked[..],
            _ => &[],
        };
        let rival = usize::from(self.cursor == 0);
        Job {
            question: self.question,
            typed: self.form.typed(),
            keep: self.choice,
            selection: self.selection,
            open: rows
                .get(self.cursor)
                .map(|plan| (plan.choice, rows.get(rival).map(|plan| plan.choice))),
            pinning: self.pinning,
            pins: match &self.pins {
                [Some(a), Some(b)] => Some((Arc::clone(a), Arc::clone(b))),
                _ => None,
            },
        }
    }
}
