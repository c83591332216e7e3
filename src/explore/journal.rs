//! A calibration that is being measured, as the live view shows it.

use std::path::PathBuf;

/// What is watched.
#[derive(Debug, Clone)]
pub struct Journal {
    /// The file.
    pub path: PathBuf,
    /// What it holds so far; none before it was read.
    pub run: Option<Run>,
    /// Why it cannot be read now.
    pub problem: Option<String>,
}

/// News of a journal.
#[derive(Debug, Clone)]
pub enum Progress {
    /// All that it holds.
    Read(Box<Run>),
    /// Why it cannot be read.
    Failed(String),
}

/// What a journal holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Run {
    /// The device and how many of them.
    pub machine: String,
    /// Measured so far.
    pub done: usize,
    /// To be measured in all.
    pub total: usize,
    /// One curve a kind of work.
    pub series: Vec<Series>,
}

/// One kind of work at several sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// What is measured.
    pub name: String,
    /// What the sizes count.
    pub size: &'static str,
    /// Sizes in ascending order.
    pub points: Vec<Point>,
}

/// One size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// The size.
    pub size: f64,
    /// Microseconds that were predicted before the calibration; none where nothing was.
    pub predicted_us: Option<f64>,
    /// Microseconds that were measured, with the ends of their 90 % interval.
    pub measured_us: Option<[f64; 3]>,
}

impl Journal {
    /// A journal that was not read yet.
    pub fn new(path: PathBuf) -> Journal {
        Journal {
            path,
            run: None,
            problem: None,
        }
    }

    /// Takes news in; a journal that cannot be read for a moment keeps what it showed.
    pub fn add(&mut self, progress: Progress) {
        match progress {
            Progress::Read(run) => {
                self.run = Some(*run);
                self.problem = None;
            }
            Progress::Failed(problem) => self.problem = Some(problem),
        }
    }
}

impl Series {
    /// Measured sizes.
    pub fn done(&self) -> usize {
        self.points
            .iter()
            .filter(|p| p.measured_us.is_some())
            .count()
    }

    /// Geometric mean of measured over predicted, where both are known.
    pub fn ratio(&self) -> Option<f64> {
        let logs: Vec<f64> = self
            .points
            .iter()
            .filter_map(|p| Some((p.measured_us?[0] / p.predicted_us?).ln()))
            .filter(|log| log.is_finite())
            .collect();
        let count = logs.len();
        (count > 0).then(|| (logs.iter().sum::<f64>() / count as f64).exp())
    }
}
