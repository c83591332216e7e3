//! What a rank does once it is connected: the work behind `parplan run`.

mod attention;
mod collectives;
mod context;
mod gather;
mod stack;
mod sync;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use attention::{
    AttentionJob, AttentionPart, AttentionResult, AttentionSample, ExchangeSample,
    Way as AttentionWay,
};
pub(crate) use collectives::{Buffers, Point};
pub use collectives::{
    CollectivesJob, CollectivesResult, Implementation, RegistrationCosts, Sample,
};
pub use context::{Backend, Context, Doing, Limits, Listener};
pub use gather::{GatherJob, GatherResult, GatherSample, GatherStep, MemorySample, ReplaySample};
pub use stack::{GraphBytes, MemoryKind, Part, StackJob, StackResult, StackStep, StackTiming};
pub use sync::{SyncJob, SyncResult, SyncSample};

use crate::probes::ProbesJob;
use crate::{Error, Result};

/// A job, as it travels to the ranks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// What computes and communicates.
    pub backend: Backend,
    /// File or folder of NCCL, when the user named one.
    pub nccl_path: Option<std::path::PathBuf>,
    /// Times that bound every wait.
    pub limits: Limits,
    /// The work.
    pub work: Work,
}

/// The kinds of work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Work {
    /// Time and check collectives.
    Collectives(CollectivesJob),
    /// DP gather and scatter.
    Gather(GatherJob),
    /// Metadata sync.
    Sync(SyncJob),
    /// Experiments of a calibration.
    Probes(ProbesJob),
    /// A stack of decoder layers.
    Stack(StackJob),
    /// Attention, shared by the ranks.
    Attention(AttentionJob),
}

impl Work {
    /// Bytes of the buffers that one of `world` ranks cannot do without, before any of them is made.
    #[must_use]
    pub fn least_bytes(&self, world: usize) -> u64 {
        match self {
            Work::Collectives(job) => job.least_bytes(),
            Work::Gather(job) => job.least_bytes(),
            Work::Attention(job) => job.least_bytes(world),
            Work::Stack(job) => {
                let cache = job.spec.cache_bytes(&job.steps);
                job.spec.weight_bytes().saturating_add(cache) as u64
            }
            // A few words a rank, and what the experiments of a calibration choose for themselves.
            Work::Sync(_) | Work::Probes(_) => 0,
        }
    }
}

impl Job {
    /// Does the work on this rank. Rank 0's value is the result of the run.
    ///
    /// # Errors
    /// Whatever stopped it.
    pub fn run(&self, context: &mut Context) -> Result<Value> {
        if self.backend == Backend::Peer
            && !matches!(self.work, Work::Attention(_) | Work::Collectives(_))
        {
            return Err(Error::Unusable(
                "--backend peer runs attention and collectives only; the others need nccl or cpu"
                    .into(),
            ));
        }
        let value = match &self.work {
            Work::Collectives(job) => serde_json::to_value(job.run(context)?),
            Work::Gather(job) => serde_json::to_value(job.run(context)?),
            Work::Sync(job) => serde_json::to_value(job.run(context)?),
            Work::Probes(job) => serde_json::to_value(job.run(context)?),
            Work::Stack(job) => serde_json::to_value(job.run(context)?),
            Work::Attention(job) => serde_json::to_value(job.run(context)?),
        };
        value.map_err(|e| Error::Wrong(format!("the result does not serialise: {e}")))
    }
}
