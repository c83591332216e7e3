//! Attention of a group of ranks that share the KV of its requests (decode context
//! parallelism, DCP).
//!
//! Each rank has some of the query heads and, of every request, the KV positions that
//! [`Shard`] gives it. It gathers the queries of all ranks, attends with all of them to
//! its own KV, and the partial outputs are merged by their log-sum-exps, each rank
//! keeping its own heads. Outputs of the gathered heads lie in one part for each rank,
//! `[ranks, tokens, heads, dim]`, so no exchange needs a transposition.

use std::rc::Rc;

use super::exchange::Peers;
use super::share::{Gather, Group, Merge, Partial};
use super::types::{Batch, Cache, Capacity, Parts, Queries, Workspace};
use super::{Shape, Shard};
use crate::{Buffer, Communicator, Device, Error, Result, View};

/// The group's memory, for steps up to a capacity.
pub struct DcpAttention {
    local: Shape,
    all: Shape,
    shard: Shard,
    gather: Gather,
    merge: Merge,
    workspace: Workspace,
    peers: Option<Rc<dyn Peers>>,
    q: Buffer,
    parts: Buffer,
    lses: Buffer,
    // LSEs of all ranks, or what all ranks sent.
    all_lses: Buffer,
    received: Buffer,
}

impl DcpAttention {
    /// `local` has this rank's query heads. `peers` is needed where `gather` or `merge`
    /// go over peer memory. `alloc` makes the buffers that the communicator sees, in an
    /// order that is the same on all ranks, so that they can be registered.
    ///
    /// # Errors
    /// [`Error::Arguments`] for shapes that no kernel runs and for peers that are
    /// missing; errors of `alloc`.
    #[allow(clippy::too_many_arguments)] // a group's attention is these things
    pub fn new(
        device: &dyn Device,
        local: &Shape,
        shard: Shard,
        capacity: Capacity,
        gather: Gather,
        merge: Merge,
        peers: Option<Rc<dyn Peers>>,
        alloc: &mut dyn FnMut(&str, usize) -> Result<Buffer>,
    ) -> Result<Self> {
        let wrong = |why: String| Error::Arguments {
            op: "shared attention",
            why,
        };
        shard.check().map_err(|e| wrong(e.to_string()))?;
        if peers.is_none() && shard.size > 1 && (gather == Gather::Peer || merge == Merge::Peer) {
            return Err(wrong(
                "peer memory is asked for, but no ranks are mapped".into(),
            ));
        }
        let all = local.with_heads(local.heads() * shard.size);
        let workspace = device.attention_workspace(&all, capacity)?;
        let rows = capacity.tokens * all.heads();
        // With one rank there is nothing to exchange.
        let shared = |bytes: usize| if shard.size == 1 { 0 } else { bytes };
        let q = match gather {
            Gather::Replicated => 0,
            _ => shared(rows * all.query_dim() * 2),
        };
        let (all_lses, received) = merge.scratch(rows, all.value_dim(), shard.size);
        Ok(DcpAttention {
            q: alloc("gathered queries", q)?,
            parts: alloc("partial outputs", shared(rows * all.value_dim() * 2))?,
            lses: alloc("LSE of partial outputs", shared(rows * 4))?,
            all_lses: alloc("LSE of all ranks", shared(all_lses))?,
            received: alloc("partial outputs of all ranks", shared(received))?,
            local: *local,
            all,
            shard,
            gather,
            merge,
            workspace,
            peers,
        })
    }

    /// The workspace, with the kernel that was chosen.
    #[must_use]
    pub fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    /// Plans a step, see [`Device::plan_attention`].
    ///
    /// # Errors
    /// As there.
    pub fn plan(&self, device: &dyn Device, batch: &Batch) -> Result<()> {
        device.plan_attention(&self.all, &self.shard, batch, &self.workspace)
    }

    fn group<'a>(&'a self, comm: &'a mut dyn Communicator) -> Group<'a> {
        Group {
            comm,
            peers: self.peers.as_deref(),
        }
    }

    fn rows(&self, batch: &Batch) -> usize {
        batch.tokens * self.all.heads()
    }

    /// Brings the queries of all ranks here. `q` is `[tokens, heads, dim]`, with
    /// [`Gather::Replicated`] of all ranks' heads. Nothing where there is one rank.
    ///
    /// # Errors
    /// [`Error::Arguments`] for misfit sizes, errors of the exchange.
    pub fn gather(&self, comm: &mut dyn Communicator, batch: &Batch, q: &View) -> Result<()> {
        if self.shard.size == 1 || self.gather == Gather::Replicated {
            return Ok(());
        }
        let all = self
            .q
            .view(0, self.rows(batch) * self.all.query_dim() * 2)?;
        self.group(comm).gather(self.gather, q, &all)
    }

    /// Attends with the gathered queries to the KV on this rank. `q` is what
    /// [`gather`](Self::gather) was given; with one rank the results go straight to
    /// `out` and `lse`.
    ///
    /// # Errors
    /// As [`Device::attention`].
    pub fn attend(
        &self,
        device: &dyn Device,
        batch: &Batch,
        cache: &Cache,
        q: &View,
        out: &View,
        lse: &View,
    ) -> Result<()> {
        let rows = self.rows(batch);
        let queries = if self.shard.size == 1 {
            Queries {
                q: q.clone(),
                out: out.clone(),
                lse: Some(lse.clone()),
                parts: Parts::WHOLE,
            }
        } else {
            let replicated = self.gather == Gather::Replicated;
            Queries {
                q: if replicated {
                    q.clone()
                } else {
                    self.q.view(0, rows * self.all.query_dim() * 2)?
                },
                out: self.parts.view(0, rows * self.all.value_dim() * 2)?,
                lse: Some(self.lses.view(0, rows * 4)?),
                parts: Parts {
                    q: if replicated { 1 } else { self.shard.size },
                    out: self.shard.size,
                },
            }
        };
        device.attention(
            &self.all,
            &self.shard,
            batch,
            cache,
            &self.workspace,
            &queries,
        )
    }

    /// Merges the partial outputs of all ranks: `out` `[tokens, heads, value dim]` in
    /// bf16 and `lse` `[tokens, heads]` in f32, of this rank's heads. Nothing where there
    /// is one rank.
    ///
    /// # Errors
    /// [`Error::Arguments`] for misfit sizes, errors of the exchange.
    pub fn merge(
        &self,
        device: &dyn Device,
        comm: &mut dyn Communicator,
        batch: &Batch,
        out: &View,
        lse: &View,
    ) -> Result<()> {
        let size = self.shard.size;
        if size == 1 {
            return Ok(());
        }
        let (rows, dim) = (self.rows(batch), self.all.value_dim());
        let (all_lses, received) = self.merge.scratch(rows, dim, size);
        let partial = Partial {
            parts: self.parts.view(0, rows * dim * 2)?,
            lses: self.lses.view(0, rows * 4)?,
            scratch: (
                self.all_lses.view(0, all_lses)?,
                self.received.view(0, received)?,
            ),
        };
        let shard = &self.shard;
        self.group(comm)
            .merge(device, self.merge, shard, &partial, dim, (out, lse))
    }

    /// Gather, attention and merge. `batch` must have been planned.
    ///
    /// # Errors
    /// As each of them.
    #[allow(clippy::too_many_arguments)] // an attention is these things
    pub fn run(
        &self,
        device: &dyn Device,
        comm: &mut dyn Communicator,
        batch: &Batch,
        cache: &Cache,
        q: &View,
        out: &View,
        lse: &View,
    ) -> Result<()> {
        self.gather(comm, batch, q)?;
        self.attend(device, batch, cache, q, out, lse)?;
        self.merge(device, comm, batch, out, lse)
    }

    /// This rank's shape.
    #[must_use]
    pub fn local(&self) -> &Shape {
        &self.local
    }
}
