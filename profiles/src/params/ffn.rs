//! Parameters of feed-forward blocks.

use crate::model::{Ffn, MoeFfn};
use serde::Serialize;

/// Parameters of one feed-forward block, by what can be split.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct FfnParams {
    /// A dense block, split over the TP ranks.
    pub dense: u64,
    /// All routed experts, biases included; split by expert (EP) or inside each expert (MoE TP).
    pub routed: u64,
    /// Routed experts in `routed`; 0 in a dense block.
    pub experts: u32,
    /// Routed experts that a token visits.
    pub top_k: u32,
    /// Shared experts, split over the TP ranks.
    pub shared: u64,
    /// The router; every rank holds it whole.
    pub router: u64,
    /// Projections into and out of the latent width of routed experts; every rank holds them whole.
    pub latent: u64,
    /// The shared expert's gate vector and the router's bias; held whole.
    pub small: u64,
}

impl FfnParams {
    /// All parameters of the block.
    pub fn total(&self) -> u64 {
        self.dense + self.routed + self.shared + self.router + self.latent + self.small
    }

    /// Routed parameters that one token visits.
    pub fn routed_active(&self) -> u64 {
        match u64::from(self.experts) {
            0 => 0,
            experts => self.routed / experts * u64::from(self.top_k),
        }
    }

    /// Parameters that one token meets.
    pub fn active(&self) -> u64 {
        self.total() - self.routed + self.routed_active()
    }

    pub(super) fn of(ffn: &Ffn, hidden: u64) -> Self {
        match ffn {
            Ffn::Dense(dims) => FfnParams {
                dense: matrices(dims.gated) * hidden * u64::from(dims.intermediate),
                ..FfnParams::default()
            },
            Ffn::Moe(dims) => moe(dims, hidden),
        }
    }
}

/// Matrices of a block: gate, up and down, or up and down.
fn matrices(gated: bool) -> u64 {
    if gated { 3 } else { 2 }
}

fn moe(dims: &MoeFfn, hidden: u64) -> FfnParams {
    let experts = u64::from(dims.experts);
    let intermediate = u64::from(dims.intermediate);
    let width = match dims.latent {
        0 => hidden,
        latent => u64::from(latent),
    };
    let biases = if dims.bias {
        (matrices(dims.gated) - 1) * intermediate + width
    } else {
        0
    };
    let latent = match dims.latent {
        0 => 0,
        latent => 2 * hidden * u64::from(latent),
    };
    FfnParams {
        dense: 0,
        routed: experts * (matrices(dims.gated) * width * intermediate + biases),
        experts: dims.experts,
        top_k: dims.top_k,
        shared: matrices(dims.gated) * hidden * u64::from(dims.shared_intermediate),
        router: experts * hidden,
        latent,
        small: if dims.shared_gate { hidden } else { 0 } + if dims.bias { experts } else { 0 },
    }
}
