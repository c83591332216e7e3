//! Ranks as processes: who a process is, and the supervisor that starts and ends them.

mod affinity;
mod child;
mod launcher;
mod run;
mod supervisor;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use affinity::{has_own_cores, take_share};
pub use child::{Channel, end_process, receive_spec};
pub use launcher::{Launcher, from_environment};
pub use supervisor::{End, Ended, Event, Plan, Supervised, supervise};

use crate::rendezvous::Secret;

/// Who a rank is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Rank in the world.
    pub rank: usize,
    /// Ranks in the world.
    pub world: usize,
    /// Rank on its machine; the GPU that it takes.
    pub local_rank: usize,
    /// Ranks on its machine.
    pub local_world: usize,
}

/// Everything that a supervised rank is told, on its standard input.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Who it is.
    pub identity: Identity,
    /// Where the ranks meet, "host:port".
    pub rendezvous: String,
    /// What proves that it belongs.
    pub secret: Secret,
    /// What it is to do; a job of this crate, serialised.
    pub job: Value,
}

/// What a supervised rank tells its supervisor, one JSON line each.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Report {
    /// The work is done; rank 0 carries the result.
    Done(Value),
    /// The rank failed, with the message and the exit code that it ends with.
    Failed {
        /// What went wrong.
        error: String,
        /// Exit code.
        code: u8,
    },
    /// Something that a user should see while it runs.
    Note(String),
    /// How far the work is; the shape is the job's.
    Progress(Value),
}
