//! Attention over a paged KV cache: what is computed, in which layout, by which kernel.
//!
//! `cuda/attention.cuh` describes how the work is cut; [`crate::reference::attention`]
//! is the same computation in plain f64.

mod launch;
mod shape;

pub use launch::{AttentionArgs, COMBINE_THREADS, Kernel, PLAN, PLAN_THREADS, plan_bytes};
pub use shape::{Kind, KvType, LATENT, ROPE, Shape, ShapeError, Shard};
