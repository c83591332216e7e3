//! The kinds of rule that decide how an engine behaves, with their parameters as data.
//!
//! Each kind is read by one function of the planner. A profile names, for every range of versions,
//! which kind holds and with which numbers; nothing else in the project asks which engine it is.

mod communication;
mod formats;
mod fusion;
mod geometry;
mod graphs;
mod kernels;
mod memory;
mod scheduling;

pub use communication::{
    AllReduceCandidate, AllReduceKind, AllReduceRule, DcpMerge, DcpRule, ExpertExchange,
    GatherCost, PaddingRule, SymmetricRule,
};
pub use formats::{Devices, FormatRule, KvPath, Runs, WeightPart, WeightPath};
pub use fusion::{FusionRule, QuantisedBy, ReduceNorm};
pub use geometry::{AttentionDpWidths, DenseFfnSplit, ExpertWidths, GeometryRule};
pub use graphs::{
    GraphAlignment, GraphRule, GraphUnit, LargestGraph, PoolCap, PrefillGraphs, Span,
};
pub use kernels::KernelRule;
pub use memory::{
    MemoryRule, PrefillReserve, ReserveRule, ReserveStep, ReserveSteps, SizeDefaults, SizeStep,
    StatePoolRule,
};
pub use scheduling::{Batching, Receive, RequestLimit, SchedulerRule, SyncRule};
