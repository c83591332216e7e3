//! Which kernels an engine launches, where they are known one by one.

use serde::{Deserialize, Serialize};

/// The kernels that an engine launches, where they are known one by one: those between the products of
/// a layer, each a small memory-bound kernel, and how many an attention and a layer's experts are.
/// Engines without the rule have the usual numbers, and the fit of their overheads what is around them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelRule {
    /// Between the projection of grouped queries and their attention: norms, rotary embedding, cache
    /// write.
    pub gqa: u32,
    /// The same in latent attention, its compressions and expansions being products.
    pub mla: u32,
    /// Choosing experts from the router's logits.
    pub route: u32,
    /// Placing rows before a gather over DP ranks, and taking them back after the block: two copies, each
    /// worth half a kernel.
    pub gather: u32,
    /// One attention.
    pub attention: u32,
    /// The routed experts of a layer.
    pub experts: u32,
    /// A pass beside its layers: the residual stream in and out, the plan of attention.
    pub pass: u32,
}
