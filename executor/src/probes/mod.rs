//! Experiments run: from a fully resolved description to raw repeats, each durable on disk before the
//! next begins.
//!
//! A repeat is measured as nccl-tests does it: operations back to back (or a captured graph of them),
//! the host's clock around them. Repeats of the experiment alternate with repeats of an anchor, one
//! and the same small kernel, so that a drift of the clocks shows.

mod kernels;
mod machine;
mod prepare;
mod series;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use parplan_profiles::calibration::{Experiment, GpuState, Journal, Measured, Probe, Provenance};
use serde::{Deserialize, Serialize};

pub use machine::{Monitor, available_memory, load, survey, total_memory};
use prepare::{Bench, Outcome};
pub use series::Effort;

use crate::jobs::Context;
use crate::{Communicator, Error, Result};

/// Experiments to run on one world of ranks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProbesJob {
    /// What to measure, in this order; each needs one rank, all of them, or the first few.
    pub experiments: Vec<Experiment>,
    /// How much.
    pub effort: Effort,
    /// Seconds after which no further experiment begins.
    pub budget_seconds: f64,
    /// Where rank 0 appends a line a sample, each on disk before the next experiment begins.
    pub journal: Option<PathBuf>,
    /// cuBLASLt, where the user named a file or folder.
    pub cublas_path: Option<PathBuf>,
}

/// What happened.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ProbesResult {
    /// Samples, in order.
    pub samples: Vec<Measured>,
    /// Experiments that could not be run here, and why.
    pub left_out: Vec<(Experiment, String)>,
    /// Experiments that the budget had no time for.
    pub over_budget: usize,
    /// The machine, without the names that only the caller knows.
    pub machine: Provenance,
    /// State of this rank's GPU before and after.
    pub clocks: Vec<GpuState>,
}

/// What a run says while it goes on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Progress {
    /// Experiments done or left out.
    pub done: usize,
    /// Of how many.
    pub all: usize,
    /// The one that is next.
    pub next: Option<Experiment>,
}

impl ProbesJob {
    /// Runs on this rank; all ranks call it.
    ///
    /// # Errors
    /// A journal that cannot be written, which ends the run at once; any failure of a measurement.
    pub fn run(&self, context: &mut Context) -> Result<ProbesResult> {
        let world = context.identity.world as u32;
        let rank = context.identity.rank;
        let monitor = Monitor::open(context.gpu.as_deref());
        let mut result = ProbesResult {
            machine: machine::facts(context, &monitor)?,
            ..ProbesResult::default()
        };
        let own = context.identity.local_rank as u32;
        result.clocks.extend(monitor.state(own));
        let mut journal = match (&self.journal, rank) {
            (Some(path), 0) => Some(Durable::open(path.clone())?),
            _ => None,
        };
        let begin = Instant::now();
        let budget = Duration::from_secs_f64(self.budget_seconds.clamp(0.0, 1e6));
        let mut bench = Bench::new(context, self.largest(), self.cublas_path.clone())?;
        let mut groups = self.groups(context)?;
        for (done, experiment) in self.experiments.iter().enumerate() {
            context.report(&Progress {
                done,
                all: self.experiments.len(),
                next: Some(experiment.clone()),
            });
            // All ranks go by rank 0's clock, or some would enter an experiment alone.
            let more = begin.elapsed() < budget;
            let votes = context.control.all_gather_bytes(&[u8::from(more)])?;
            if votes[0] == [0] {
                result.over_budget = self.experiments.len() - done;
                break;
            }
            if experiment.ranks == 0 || experiment.ranks > world {
                result.left_out.push((
                    experiment.clone(),
                    format!("it needs {} ranks, this run has {world}", experiment.ranks),
                ));
                continue;
            }
            if (rank as u32) < experiment.ranks {
                let found = match groups.get_mut(&experiment.ranks) {
                    Some((own, bench)) => self.one(own, bench, experiment, &monitor)?,
                    None => self.one(context, &mut bench, experiment, &monitor)?,
                };
                match found {
                    Ok(measured) => {
                        if let Some(journal) = &mut journal {
                            journal.append(&measured)?;
                        }
                        result.samples.push(measured);
                    }
                    Err(why) => result.left_out.push((experiment.clone(), why)),
                }
            }
            // Nobody begins the next while another still measures, or writes, this one.
            context.control.barrier()?;
        }
        for (_, (mut own, bench)) in groups {
            bench.finish(&mut own)?;
        }
        bench.finish(context)?;
        result.clocks.extend(monitor.state(own));
        Ok(result)
    }

    /// This rank in the first 2, 4 … of all ranks, for experiments of so many, each with memory of its
    /// own. Collective: all ranks of the run call it.
    fn groups(&self, context: &mut Context) -> Result<BTreeMap<u32, (Context, Bench)>> {
        let world = context.identity.world as u32;
        let mut counts: Vec<u32> = self.experiments.iter().map(|e| e.ranks).collect();
        counts.retain(|ranks| (2..world).contains(ranks));
        counts.sort_unstable();
        counts.dedup();
        let mut out = BTreeMap::new();
        for ranks in counts {
            let Some(own) = context.first_ranks(ranks as usize)? else {
                continue;
            };
            let bench = Bench::new(&own, self.largest(), self.cublas_path.clone())?;
            out.insert(ranks, (own, bench));
        }
        Ok(out)
    }

    fn largest(&self) -> usize {
        self.experiments
            .iter()
            .map(|e| match e.probe {
                Probe::Collective { bytes, .. } | Probe::PeerCollective { bytes, .. } => bytes,
                _ => 0,
            })
            .max()
            .unwrap_or(0)
            .try_into()
            .unwrap_or(usize::MAX)
    }

    /// One experiment, or why it cannot be run here.
    fn one(
        &self,
        context: &mut Context,
        bench: &mut Bench,
        experiment: &Experiment,
        monitor: &Monitor,
    ) -> Result<std::result::Result<Measured, String>> {
        let (implementation, outcome) = match bench.prepare(context, experiment)? {
            Ok(prepared) => prepared,
            Err(why) => return Ok(Err(why)),
        };
        let own = context.identity.local_rank as u32;
        let before = monitor.state(own);
        let (repeats, anchor_us) = match outcome {
            Outcome::Work(work) => {
                series::run(context, &self.effort, experiment, work, bench.anchor())?
            }
            Outcome::Rounds(round) => series::rounds(context, &self.effort, round)?,
            Outcome::Bytes(values) => (values, Vec::new()),
        };
        if repeats.iter().any(|x| !(x.is_finite() && *x > 0.0)) {
            return Ok(Err(format!("it measured {repeats:?}, which is no time")));
        }
        let remarks = machine::remarks(before.as_ref(), monitor.state(own).as_ref());
        Ok(Ok(Measured {
            experiment: experiment.clone(),
            implementation,
            repeats,
            anchor_us,
            remarks,
        }))
    }
}

/// A journal that rank 0 appends to.
struct Durable {
    file: File,
    path: PathBuf,
}

impl Durable {
    fn open(path: PathBuf) -> Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(Error::io(format!("opening the journal {}", path.display())))?;
        Ok(Durable { file, path })
    }

    /// Appends one sample and waits until the disk has it.
    fn append(&mut self, sample: &Measured) -> Result<()> {
        let line = Journal::entry(sample)
            .map_err(|e| Error::Wrong(format!("a sample does not serialise: {e}")))?;
        self.file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(Error::io(format!(
                "writing a sample to {} (the samples before it are kept; make room and go on with --resume)",
                self.path.display()
            )))
    }
}
