//! `parplan run sync`: what can be asked.

use clap::Args;
use parplan_executor::Result;
use parplan_executor::jobs::{Job, SyncJob, Work};
use parplan_executor::sync::Way;

use super::arguments::{Common, Sampling};
use super::values::times;

/// `parplan run sync`
#[derive(Debug, Args)]
pub struct Sync {
    #[command(flatten)]
    pub common: Common,
    #[command(flatten)]
    sampling: Sampling,
    /// Timed rounds of each way.
    #[arg(long, default_value = "200", value_parser = times)]
    rounds: usize,
}

impl Sync {
    pub fn job(&self) -> Result<Job> {
        Ok(self.common.job(Work::Sync(SyncJob {
            ways: Way::ALL.to_vec(),
            launches: self.sampling.launches(),
            registrations: self.sampling.registrations(),
            rounds: self.rounds,
        })))
    }
}
