//! Which kernels an engine folds into others.

use serde::{Deserialize, Serialize};

/// Kernels that an engine folds into those before them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FusionRule {
    /// Where the sum over attention-TP ranks adds the residual and norms the rows in the same kernel; none
    /// where it never does.
    #[serde(default)]
    pub reduce_norm: Option<ReduceNorm>,
    /// Kernels that write the format of the per-tensor quantised product that follows, so that no kernel of
    /// its own does.
    #[serde(default)]
    pub quantised_by: Vec<QuantisedBy>,
}

/// Where a sum over ranks norms, too. Never with attention DP, which has no such sum.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReduceNorm {
    /// Architectures of models, by their Hugging Face names; empty: all of them.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// Compute capabilities of GPUs times ten; empty: all of them.
    #[serde(default)]
    pub sm: Vec<u16>,
}

impl ReduceNorm {
    /// Whether it holds for a model and a GPU of compute capability `sm` / 10.
    pub fn holds(&self, architecture: &str, sm: u16) -> bool {
        (self.architectures.is_empty() || self.architectures.iter().any(|a| a == architecture))
            && (self.sm.is_empty() || self.sm.contains(&sm))
    }
}

/// A kernel before a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuantisedBy {
    /// The norm before attention and before the block.
    Norm,
    /// The same, only where it is part of the sum over ranks.
    ReducedNorm,
    /// Attention, before the output projection.
    Attention,
    /// The activation of a dense block, before its last product.
    Activation,
}
