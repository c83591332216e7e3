//! How the ranks of a group that shares KV bring their queries together and merge their
//! outputs: by the communicator, or over memory that they map from each other.

use serde::{Deserialize, Serialize};

use super::Shard;
use super::exchange::Peers;
use crate::{Communicator, DType, Device, Error, ReduceOp, Result, View};

/// How a rank comes to the queries of all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gather {
    /// All-gather of the communicator.
    Communicator,
    /// One kernel over peer memory.
    Peer,
    /// Every rank computes the queries of all heads itself: `[tokens, all heads, dim]`.
    Replicated,
}

/// How partial outputs become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Merge {
    /// All-gather of the LSEs, correction, reduce-scatter of the outputs in bf16.
    AgRs,
    /// All-to-all of outputs and LSEs, merge.
    AllToAll,
    /// One kernel over peer memory.
    Peer,
}

impl Gather {
    /// What runs where the ranks have no memory of each other, or not enough of it.
    #[must_use]
    pub fn without_peers(self) -> Self {
        match self {
            Gather::Peer => Gather::Communicator,
            other => other,
        }
    }
}

impl Merge {
    /// What runs where the ranks have no memory of each other, or not enough of it: the
    /// same bytes in the same direction.
    #[must_use]
    pub fn without_peers(self) -> Self {
        match self {
            Merge::Peer => Merge::AllToAll,
            other => other,
        }
    }

    /// Bytes of scratch that a merge of `rows` rows of `dim`, those of all `size` ranks'
    /// heads together, needs: for LSEs, and for outputs.
    #[must_use]
    pub fn scratch(self, rows: usize, dim: usize, size: usize) -> (usize, usize) {
        match self {
            Merge::AgRs => (rows * size * 4, 0),
            Merge::AllToAll => (rows * 4, rows * dim * 2),
            Merge::Peer => (0, 0),
        }
    }
}

/// Bytes of the largest message that the exchanges around an attention send a rank over
/// peer memory, for `rows` rows of one rank's heads.
#[must_use]
pub fn message_bytes(rows: usize, query_dim: usize, value_dim: usize) -> usize {
    merge_message(rows, value_dim).max(rows * query_dim * 2)
}

/// Bytes that a merge over peer memory sends to each rank: `rows` of one rank's heads.
fn merge_message(rows: usize, dim: usize) -> usize {
    parplan_kernels::attention::bulk_bytes(rows, dim)
}

/// Partial outputs of a rank and where it works on them.
#[derive(Clone, Debug)]
pub struct Partial {
    /// bf16 `[ranks, rows, dim]`: part r is of the heads of rank r. [`Merge::AgRs`]
    /// weighs it in place.
    pub parts: View,
    /// f32 `[ranks, rows]`.
    pub lses: View,
    /// Scratch, as [`Merge::scratch`] says, in that order.
    pub scratch: (View, View),
}

/// A rank's view of the ranks that share its KV.
pub struct Group<'a> {
    /// Where the group's collectives run.
    pub comm: &'a mut dyn Communicator,
    /// Memory that the ranks map from each other, where they have some.
    pub peers: Option<&'a dyn Peers>,
}

impl Group<'_> {
    fn peers(&self) -> Result<&dyn Peers> {
        self.peers.ok_or_else(|| Error::Arguments {
            op: "shared attention",
            why: "no ranks are mapped".into(),
        })
    }

    /// The way that is run for a rank's queries of `bytes`.
    #[must_use]
    pub fn gather_way(&self, wanted: Gather, bytes: usize) -> Gather {
        match self.peers {
            Some(peers) if peers.holds(bytes) => wanted,
            _ => wanted.without_peers(),
        }
    }

    /// The way that is run for outputs of `rows` rows of `dim` of one rank's heads.
    #[must_use]
    pub fn merge_way(&self, wanted: Merge, rows: usize, dim: usize) -> Merge {
        match self.peers {
            Some(peers) if peers.holds(merge_message(rows, dim)) => wanted,
            _ => wanted.without_peers(),
        }
    }

    /// Every rank's queries `q` `[tokens, heads, dim]` in `all`, rank by rank; nothing to
    /// do where they are replicated.
    ///
    /// # Errors
    /// [`Error::Arguments`] for misfit sizes and for peers that are missing; errors of the
    /// exchange.
    pub fn gather(&mut self, way: Gather, q: &View, all: &View) -> Result<()> {
        match way {
            Gather::Communicator => self.comm.all_gather(q, all),
            Gather::Peer => self.peers()?.all_gather(q, all),
            Gather::Replicated => Ok(()),
        }
    }

    /// Merges the partial outputs of all ranks: `out` `[rows, dim]` in bf16 and `lse`
    /// `[rows]` in f32, of this rank's heads.
    ///
    /// # Errors
    /// As [`gather`](Self::gather).
    pub fn merge(
        &mut self,
        device: &dyn Device,
        way: Merge,
        shard: &Shard,
        partial: &Partial,
        dim: usize,
        (out, lse): (&View, &View),
    ) -> Result<()> {
        let Partial {
            parts,
            lses,
            scratch: (all_lses, received),
        } = partial;
        match way {
            Merge::AgRs => {
                self.comm.all_gather(lses, all_lses)?;
                device.correct_rank(parts, all_lses, shard.rank, shard.size, dim, lse)?;
                self.comm
                    .reduce_scatter(parts, out, DType::Bf16, ReduceOp::Sum)
            }
            Merge::AllToAll => {
                self.comm.all_to_all(lses, all_lses)?;
                self.comm.all_to_all(parts, received)?;
                device.merge_ranks(received, all_lses, shard.size, dim, out, lse)
            }
            Merge::Peer => self.peers()?.merge(parts, lses, dim, out, lse),
        }
    }
}
