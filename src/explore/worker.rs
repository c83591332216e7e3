//! The planning thread: always at the newest question, never in the way of a key.

use super::planning::{Detail, Diff, Pin, Resolved, Sweep, Table};
use crate::args::Typed;
use crate::failure::Failure;
use parplan_planner::plan::{Choice, Plan};
use parplan_planner::sweep::Curve;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Everything that is wanted now. A newer job replaces one that nobody has begun.
#[derive(Debug, Clone)]
pub struct Job {
    /// Counts questions; an answer to an older one is of no use.
    pub question: u64,
    /// The question.
    pub typed: Typed,
    /// The row to show again first.
    pub keep: Option<Choice>,
    /// Counts selections.
    pub selection: u64,
    /// The row to lay open, and the one to hold it against.
    pub open: Option<(Choice, Option<Choice>)>,
    /// Counts pins.
    pub pinning: u64,
    /// The pinned pair.
    pub pins: Option<(Arc<Pin>, Arc<Pin>)>,
}

/// What comes back.
#[derive(Debug)]
pub enum Answer {
    /// The question cannot be used.
    Refused {
        /// Which question.
        question: u64,
        /// Why.
        failure: Failure,
    },
    /// The row that was selected, under the new question.
    Row {
        /// Which question.
        question: u64,
        /// Its figures, or why it has none.
        row: Result<Box<Plan>, String>,
    },
    /// The whole table.
    Table {
        /// Which question.
        question: u64,
        /// The table.
        table: Arc<Table>,
    },
    /// Every row over numbers of clients.
    Sweep {
        /// Which question.
        question: u64,
        /// The curves, in the order of the rows.
        sweep: Arc<Sweep>,
    },
    /// The selected row laid open.
    Detail {
        /// Which question.
        question: u64,
        /// Which selection.
        selection: u64,
        /// The row.
        detail: Arc<Detail>,
    },
    /// The pinned pair.
    Diff {
        /// Which pins.
        pinning: u64,
        /// The pair.
        diff: Arc<Diff>,
    },
}

/// Where the newest job waits.
#[derive(Debug, Default)]
struct Desk {
    job: Mutex<(Option<Job>, bool)>,
    wake: Condvar,
    /// The newest question; work on an older one is called off.
    question: AtomicU64,
    /// A job waits; work that can wait lets it go first.
    waiting: AtomicBool,
}

/// The way to the planning thread.
#[derive(Debug, Clone, Default)]
pub struct Worker {
    desk: Arc<Desk>,
}

impl Worker {
    /// Puts a job in place of the one that waits, and calls off work that it makes useless.
    pub fn submit(&self, job: Job) {
        self.desk.question.store(job.question, Ordering::Release);
        let mut slot = self.desk.job.lock().unwrap_or_else(PoisonError::into_inner);
        slot.0 = Some(job);
        self.desk.waiting.store(true, Ordering::Release);
        self.desk.wake.notify_one();
    }

    /// Ends the thread after the step that it is in.
    pub fn stop(&self) {
        self.desk.question.store(u64::MAX, Ordering::Release);
        let mut slot = self.desk.job.lock().unwrap_or_else(PoisonError::into_inner);
        slot.1 = true;
        self.desk.wake.notify_one();
    }

    fn next(&self) -> Option<Job> {
        let mut slot = self.desk.job.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if slot.1 {
                return None;
            }
            if let Some(job) = slot.0.take() {
                self.desk.waiting.store(false, Ordering::Release);
                return Some(job);
            }
            slot = self
                .desk
                .wake
                .wait(slot)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Does jobs until it is stopped; `send` takes answers and says whether anyone still listens.
    pub fn run(&self, threads: usize, mut send: impl FnMut(Answer) -> bool) {
        let mut bench = Bench::new(threads);
        while let Some(job) = self.next() {
            let wanted = || {
                let free = !self.desk.waiting.load(Ordering::Acquire);
                Wanted {
                    question: self.desk.question.load(Ordering::Acquire) == job.question,
                    free,
                    idle: free,
                }
            };
            if !bench.work(&job, &wanted, &mut send) {
                return;
            }
        }
    }
}

/// Whether the work of a job is still of use.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Its question is the newest.
    pub question: bool,
    /// No newer job waits.
    pub free: bool,
    /// There is time for what nobody waits for.
    pub idle: bool,
}

/// Rows whose curves are drawn before the next look at what else is wanted.
const BLOCK: usize = 8;

/// What the planning thread has done so far, so that nothing is done twice.
#[derive(Debug)]
pub struct Bench {
    threads: usize,
    resolved: Option<(u64, Arc<Resolved>)>,
    /// The question that was answered, or refused; and its rows.
    table_of: u64,
    rows: Vec<Choice>,
    detail_of: (u64, u64),
    /// The curves of the rows, as far as they were drawn.
    curves: Vec<Curve>,
    swept: bool,
    pinning: u64,
}

impl Bench {
    /// Nothing yet; questions, selections and pins count from 1.
    pub fn new(threads: usize) -> Bench {
        Bench {
            threads,
            resolved: None,
            table_of: 0,
            rows: Vec::new(),
            detail_of: (0, 0),
            curves: Vec::new(),
            swept: true,
            pinning: 0,
        }
    }

    /// Does what is new in a job, the selected row first. False when nobody listens any more.
    pub fn work(
        &mut self,
        job: &Job,
        wanted: &(dyn Fn() -> Wanted + Sync),
        send: &mut dyn FnMut(Answer) -> bool,
    ) -> bool {
        let question = job.question;
        if let (Some((a, b)), true) = (&job.pins, self.pinning != job.pinning) {
            self.pinning = job.pinning;
            if let Ok(diff) = Diff::new(a, b)
                && !send(Answer::Diff {
                    pinning: job.pinning,
                    diff: Arc::new(diff),
                })
            {
                return false;
            }
        }
        let resolved = match self.resolved(job) {
            Ok(resolved) => resolved,
            Err(Some(failure)) => return send(Answer::Refused { question, failure }),
            Err(None) => return true,
        };
        if self.table_of != question {
            if let Some(choice) = &job.keep {
                let row = resolved.row(choice).map(Box::new);
                if !send(Answer::Row { question, row }) {
                    return false;
                }
            }
            let table = match resolved.table(self.threads, &|| wanted().question) {
                Ok(Some(table)) => Arc::new(table),
                Ok(None) => return true,
                Err(failure) => return send(Answer::Refused { question, failure }),
            };
            self.table_of = question;
            self.rows = table.answer.ranked.iter().map(|p| p.choice).collect();
            self.curves.clear();
            self.swept = self.rows.is_empty();
            if !send(Answer::Table { question, table }) {
                return false;
            }
        }
        let fresh = self.detail_of != (question, job.selection);
        if let (Some((choice, rival)), true) = (job.open, fresh && wanted().free) {
            self.detail_of = (question, job.selection);
            let answer = match resolved.detail(choice, rival) {
                Ok(detail) => Answer::Detail {
                    question,
                    selection: job.selection,
                    detail: Arc::new(detail),
                },
                Err(failure) => Answer::Refused { question, failure },
            };
            if !send(answer) {
                return false;
            }
        }
        // The first row is laid open before the curves of all of them are drawn.
        if job.open.is_some() && !self.swept {
            return self.sweep(question, &resolved, wanted, send);
        }
        true
    }

    /// Goes on with the curves, a few at a time, for as long as nothing else is wanted.
    fn sweep(
        &mut self,
        question: u64,
        resolved: &Resolved,
        wanted: &(dyn Fn() -> Wanted + Sync),
        send: &mut dyn FnMut(Answer) -> bool,
    ) -> bool {
        while self.curves.len() < self.rows.len() {
            let now = wanted();
            if !now.question || !now.idle {
                return true;
            }
            let from = self.curves.len();
            let to = (from + BLOCK).min(self.rows.len());
            match resolved.curves(&self.rows[from..to], self.threads) {
                Ok(curves) => self.curves.extend(curves),
                Err(failure) => return send(Answer::Refused { question, failure }),
            }
        }
        self.swept = true;
        let sweep = Arc::new(Sweep::new(std::mem::take(&mut self.curves)));
        send(Answer::Sweep { question, sweep })
    }

    /// The job's question, resolved once; no failure where it was refused already.
    fn resolved(&mut self, job: &Job) -> Result<Arc<Resolved>, Option<Failure>> {
        if let Some((question, resolved)) = &self.resolved
            && *question == job.question
        {
            return Ok(Arc::clone(resolved));
        }
        if self.table_of == job.question {
            return Err(None);
        }
        match Resolved::new(&job.typed) {
            Ok(resolved) => {
                let resolved = Arc::new(resolved);
                self.resolved = Some((job.question, Arc::clone(&resolved)));
                Ok(resolved)
            }
            Err(failure) => {
                self.table_of = job.question;
                Err(Some(failure))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    fn job(question: u64, options: &[(&str, &str)]) -> Job {
        let mut typed = Typed::default();
        for (flag, value) in options {
            typed.set(flag, *value);
        }
        Job {
            question,
            typed,
            keep: None,
            selection: 0,
            open: None,
            pinning: 0,
            pins: None,
        }
    }

    const SMALL: [(&str, &str); 3] = [("model", "qwen3-8b"), ("gpu", "h200"), ("gpus", "4")];

    fn answers(bench: &mut Bench, job: &Job, wanted: Wanted) -> Vec<Answer> {
        let mut all = Vec::new();
        let listened = bench.work(job, &|| wanted, &mut |answer| {
            all.push(answer);
            true
        });
        assert!(listened);
        all
    }

    const ALL: Wanted = Wanted {
        question: true,
        free: true,
        idle: true,
    };

    #[test]
    fn the_kept_row_comes_before_the_table_and_nothing_is_done_twice() {
        let mut bench = Bench::new(1);
        let first = answers(&mut bench, &job(1, &SMALL), ALL);
        let [Answer::Table { question: 1, table }] = first.as_slice() else {
            panic!("{first:?}");
        };
        let choice = table.answer.ranked[1].choice;
        let mut again = job(1, &SMALL);
        again.open = Some((choice, Some(table.answer.ranked[0].choice)));
        again.selection = 1;
        let opened = answers(&mut bench, &again, ALL);
        let [Answer::Detail { .. }, Answer::Sweep { sweep, .. }] = opened.as_slice() else {
            panic!("{opened:?}");
        };
        // A curve a row, in their order.
        let rows = table.answer.ranked.iter().map(|plan| plan.choice);
        assert!(rows.eq(sweep.curves.iter().map(|curve| curve.choice)));
        assert!(answers(&mut bench, &again, ALL).is_empty());

        let mut more = job(2, &[SMALL.as_slice(), &[("concurrency", "128")]].concat());
        more.keep = Some(choice);
        let changed = answers(&mut bench, &more, ALL);
        let [
            Answer::Row { row: Ok(row), .. },
            Answer::Table { table, .. },
        ] = changed.as_slice()
        else {
            panic!("{changed:?}");
        };
        // The row that came first is the row of the table.
        let position = table.position(&choice).unwrap();
        assert_eq!(table.answer.ranked[position].layout, row.layout);
    }

    #[test]
    fn a_question_that_is_no_longer_wanted_gives_no_table() {
        let mut bench = Bench::new(2);
        let stale = Wanted {
            question: false,
            free: true,
            idle: true,
        };
        assert!(answers(&mut bench, &job(1, &SMALL), stale).is_empty());
        // The same question, wanted again, is answered.
        assert_eq!(answers(&mut bench, &job(1, &SMALL), ALL).len(), 1);
    }

    #[test]
    fn what_cannot_be_used_is_refused_once() {
        let mut bench = Bench::new(1);
        let wrong = job(
            1,
            &[("model", "no-such-model"), ("gpu", "h200"), ("gpus", "4")],
        );
        let refused = answers(&mut bench, &wrong, ALL);
        let [Answer::Refused { failure, .. }] = refused.as_slice() else {
            panic!("{refused:?}");
        };
        assert!(failure.to_string().contains("no-such-model"), "{failure}");
        assert!(answers(&mut bench, &wrong, ALL).is_empty());
    }

    #[test]
    fn the_newest_of_many_questions_is_answered_and_the_thread_ends() {
        let worker = Worker::default();
        let (send, receive) = mpsc::channel();
        let thread = {
            let worker = worker.clone();
            std::thread::spawn(move || worker.run(1, |answer| send.send(answer).is_ok()))
        };
        for question in 1..=50 {
            let clients = question.to_string();
            worker.submit(job(
                question,
                &[SMALL.as_slice(), &[("concurrency", &clients)]].concat(),
            ));
        }
        let answered = loop {
            match receive.recv_timeout(Duration::from_secs(60)).unwrap() {
                Answer::Table {
                    question: 50,
                    table,
                } => break table,
                _ => continue,
            }
        };
        assert_eq!(answered.resolved.ask.traffic.concurrency, 50.0);
        worker.stop();
        thread.join().unwrap();
        assert!(receive.recv().is_err());
    }
}
