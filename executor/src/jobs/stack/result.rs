//! What a run of a stack found.

use serde::{Deserialize, Serialize};

use crate::bench::Launch;
use crate::gather::Mode;
use crate::stack::{Distance, Narrowed, Op, Quantiles, StackSpec, StepSpec};

/// One kind of work in a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The kind, by the name that the planner's breakdown has.
    pub op: Op,
    /// Runs of operations of this kind in a step.
    pub calls: usize,
    /// Time in the step.
    #[serde(flatten)]
    pub time: Quantiles,
}

/// One step, one way of launching it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StackStep {
    /// What ran.
    pub step: StepSpec,
    /// Graph or stream.
    pub launch: Launch,
    /// Requests that its graph was captured for.
    pub bucket: Option<usize>,
    /// How rows were gathered; none where nothing is.
    pub mode: Option<Mode>,
    /// Rows of a rank, padding included (rank 0's).
    pub rows: usize,
    /// Rows that a gathered block computed.
    pub gathered_rows: usize,
    /// The whole step, nothing recorded inside.
    pub time: Quantiles,
    /// By kind of work, with events between them.
    pub parts: Vec<Part>,
    /// The parts' medians together.
    pub sum_of_parts_us: f64,
    /// The same step against the float64 reference, where that was asked for.
    pub distance: Option<Distance>,
}

/// Memory that one captured graph keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphBytes {
    /// Requests that it was captured for.
    pub bucket: usize,
    /// What the driver took for it.
    pub graph_bytes: u64,
    /// Rows, tables and lengths that it reads.
    pub batch_bytes: u64,
}

/// Memory of a kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryKind {
    /// "weights", "KV cache", "communicators" …
    pub what: String,
    /// Bytes on rank 0.
    pub bytes: u64,
}

/// What a run found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StackResult {
    /// GPU name, or "cpu".
    pub device: String,
    /// "cpu-process" or "nccl".
    pub implementation: String,
    /// Who computes matrix products: "cublaslt 13.1.0" or "cpu".
    pub products: String,
    /// What ran.
    pub spec: StackSpec,
    /// Steps, in order, graph before stream.
    pub steps: Vec<StackStep>,
    /// Memory by kind.
    pub memory: Vec<MemoryKind>,
    /// Graphs.
    pub graphs: Vec<GraphBytes>,
    /// Collectives that ran over fewer ranks than in the layout whose shapes were run.
    pub narrowed: Vec<Narrowed>,
    /// Steps that no rank entered, because none had work.
    pub skipped: usize,
    /// What a mark in a graph takes, which was taken off every part.
    pub graph_mark_us: Option<f64>,
    /// What to know when reading the figures.
    pub notes: Vec<String>,
}
