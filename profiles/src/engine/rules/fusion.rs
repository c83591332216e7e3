//! Which kernels an engine folds into others.

use serde::{Deserialize, Serialize};

/// Kernels that an engine folds into those before or after them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FusionRule {
    /// Architectures of models, by their Hugging Face names, whose sum over attention-TP ranks adds the
    /// residual, norms the rows and quantises them in the same kernel. Not with attention DP, which has no
    /// such sum.
    pub reduce_norm: Vec<String>,
    /// Attention and the activation of a dense block write the format of the fp8 product that follows.
    pub quantised_outputs: bool,
}
