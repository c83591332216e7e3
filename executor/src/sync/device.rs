//! The device ways as an engine would run them: pinned host memory, copy in,
//! collective, copy out, eager or as one captured graph.

use std::sync::Arc;

use super::{ROW, WORDS, words};
use crate::cuda::{Gpu, Graph, Pinned};
use crate::{Buffer, Result, View};

/// A sync over pinned memory. The table of `size` rows is copied in, `collective` works
/// on it in place, and it is copied out again.
pub struct PinnedSync {
    gpu: Arc<Gpu>,
    rank: usize,
    host: Pinned,
    table: Buffer,
    graph: Option<Graph>,
}

impl PinnedSync {
    /// A sync over `table`, which holds one row for each rank.
    ///
    /// # Errors
    /// Errors of the device; [`crate::Error::Arguments`] for a table that lacks this
    /// rank's row.
    pub fn new(gpu: &Arc<Gpu>, rank: usize, table: Buffer) -> Result<Self> {
        table.view(rank * ROW, ROW)?;
        Ok(PinnedSync {
            gpu: Arc::clone(gpu),
            rank,
            host: Pinned::new(gpu, table.len())?,
            table,
            graph: None,
        })
    }

    /// The table and this rank's row in it.
    ///
    /// # Errors
    /// None in practice: the row is part of the table.
    pub fn views(&self) -> Result<(View, View)> {
        Ok((self.table.all(), self.table.view(self.rank * ROW, ROW)?))
    }

    fn enqueue(&mut self, collective: impl FnOnce(&View, &View) -> Result<()>) -> Result<()> {
        let (table, own) = self.views()?;
        self.host.enqueue_to(&self.gpu, &table)?;
        collective(&table, &own)?;
        self.host.enqueue_from(&self.gpu, &table)
    }

    /// One eager sync; `collective` gets the table and this rank's row in it.
    ///
    /// # Errors
    /// Errors of the device and the collective.
    pub fn run(
        &mut self,
        row: &[i64; WORDS],
        collective: impl FnOnce(&View, &View) -> Result<()>,
    ) -> Result<Vec<i64>> {
        self.put(row);
        self.enqueue(collective)?;
        self.finish()
    }

    /// Captures the sync; [`replay`](Self::replay) runs it.
    ///
    /// # Errors
    /// Errors of the device and the collective.
    pub fn capture(&mut self, collective: impl FnOnce(&View, &View) -> Result<()>) -> Result<()> {
        let gpu = Arc::clone(&self.gpu);
        self.graph = Some(gpu.capture(|| self.enqueue(collective))?);
        Ok(())
    }

    /// One sync by the captured graph.
    ///
    /// # Errors
    /// Errors of the device; [`crate::Error::Arguments`] before a capture.
    pub fn replay(&mut self, row: &[i64; WORDS]) -> Result<Vec<i64>> {
        self.put(row);
        match &self.graph {
            Some(graph) => graph.launch()?,
            None => {
                return Err(crate::Error::Arguments {
                    op: "metadata sync",
                    why: "replayed before it was captured".into(),
                });
            }
        }
        self.finish()
    }

    fn put(&mut self, row: &[i64; WORDS]) {
        // Zero but for the own row: what the summing way needs, and the gathering ways
        // overwrite.
        self.host.bytes_mut().fill(0);
        self.host.bytes_mut()[self.rank * ROW..][..ROW].copy_from_slice(super::bytes(row));
    }

    fn finish(&mut self) -> Result<Vec<i64>> {
        self.gpu.wait(None)?;
        Ok(words(self.host.bytes_mut()))
    }
}
