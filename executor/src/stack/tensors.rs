//! The synthetic model: every tensor as a whole, of which ranks make their parts and the
//! float64 reference all.
//!
//! Values are uniform with a variance of one over the width that is summed, so that
//! every product of a row of unit variance has unit variance again and no term is lost
//! beside another.

use parplan_kernels::attention::LATENT;
use parplan_kernels::reference::Synthetic;

/// Names of a layer's tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Name {
    /// Norm before the mixer, `[1, hidden]`.
    AttentionNorm,
    /// Norm before the feed-forward block, `[1, hidden]`.
    BlockNorm,
    /// GQA `[q_heads · head_dim, hidden]`; MLA `[heads · (nope + rope), q_lora or hidden]`.
    Query,
    /// `[kv_heads · head_dim, hidden]`.
    Key,
    /// `[kv_heads · head_dim, hidden]`.
    Value,
    /// `[1, head_dim]`, or `[1, q_lora]` in MLA.
    QueryNorm,
    /// `[1, head_dim]`, or `[1, kv_lora]` in MLA.
    KeyNorm,
    /// MLA: `[q_lora, hidden]`.
    QueryDown,
    /// MLA: `[kv_lora + rope, hidden]`.
    LatentDown,
    /// MLA: `[heads · kv_lora, nope]`, queries into the latent space.
    Absorb,
    /// MLA: `[heads · v_dim, kv_lora]`, outputs out of it.
    Expand,
    /// `[hidden, heads · v_dim]`.
    Output,
    /// Dense `[2 · intermediate, hidden]`: gates, then ups.
    DenseUp,
    /// Dense `[hidden, intermediate]`.
    DenseDown,
    /// `[experts, hidden]`.
    Router,
    /// `[experts · 2 · intermediate, hidden]`: of each expert gates, then ups.
    ExpertUp,
    /// `[experts · hidden, intermediate]`.
    ExpertDown,
    /// `[2 · shared, hidden]`.
    SharedUp,
    /// `[hidden, shared]`.
    SharedDown,
    /// Cached keys, or latent rows: `[requests · positions, kv_heads · head_dim]`.
    CachedKey,
    /// Cached values.
    CachedValue,
}

/// Requests of one DP rank at most.
pub(crate) const REQUESTS: usize = 2048;

/// Positions that a request may have: the row of a cached token is
/// `request · POSITIONS + position`.
pub(crate) const POSITIONS: usize = 1 << 18;

/// A tensor of the model, as a whole.
#[must_use]
pub(crate) fn tensor(seed: u64, layer: usize, name: Name, columns: usize) -> Synthetic {
    let unit = 3f32.sqrt();
    let (scale, offset) = match name {
        Name::AttentionNorm | Name::BlockNorm | Name::QueryNorm | Name::KeyNorm => (0.25, 1.0),
        // Wider than one, so that attention is not a plain mean and values stay visible.
        Name::CachedKey | Name::CachedValue => (unit, 0.0),
        // Gates make silu(g)·u, of variance about 0.36: made up for on the way down.
        Name::DenseDown | Name::ExpertDown | Name::SharedDown => {
            (unit * (2.8 / columns as f32).sqrt(), 0.0)
        }
        // Keys are summed over the latent row, not over the columns of a head.
        Name::Absorb => (unit / (LATENT as f32).sqrt(), 0.0),
        Name::Router => (unit * (4.0 / columns as f32).sqrt(), 0.0),
        _ => (unit / (columns as f32).sqrt(), 0.0),
    };
    Synthetic {
        seed: number(seed, layer as u64 + 1, name as u64),
        full_columns: columns as u64,
        column: 0,
        columns,
        scale,
        offset,
    }
}

/// The rows that enter the stack: `request · POSITIONS + position`.
#[must_use]
pub(crate) fn input(seed: u64, hidden: usize) -> Synthetic {
    Synthetic {
        seed: number(seed, 0, 0),
        full_columns: hidden as u64,
        column: 0,
        columns: hidden,
        scale: 3f32.sqrt(),
        offset: 0.0,
    }
}

/// Largest magnitude over the largest e4m3 value: what a tensor is divided by before it
/// is stored in fp8.
#[must_use]
pub(crate) fn fp8_unit(tensor: &Synthetic) -> f32 {
    tensor.scale / parplan_kernels::reference::E4M3_MAX
}

/// What activations are divided by before an fp8 product: their variance is about one,
/// so ±28 is room enough.
pub(crate) const FP8_ACTIVATION_UNIT: f32 = 1.0 / 16.0;

fn number(seed: u64, layer: u64, name: u64) -> u64 {
    // The element's own hash mixes further.
    (seed.wrapping_mul(0xd6e8_feb8_6659_fd93) ^ (layer << 8 | name))
        .wrapping_mul(0xff51_afd7_ed55_8ccd)
}
