//! Shapes of attention, and which KV positions a rank holds.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Elements of the compressed KV of a token in multi-head latent attention (MLA).
pub const LATENT: usize = 512;
/// Elements of its rotary part.
pub const ROPE: usize = 64;

/// How queries meet keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Grouped queries: `heads / kv_heads` query heads share a KV head.
    Gqa {
        /// Query heads on this rank.
        heads: usize,
        /// KV heads on this rank, a divisor of `heads`.
        kv_heads: usize,
        /// Elements of a head, of keys and of values.
        head_dim: usize,
    },
    /// Multi-head latent attention, absorbed: queries of [`LATENT`] + [`ROPE`] elements
    /// against one shared KV row of as many, whose first [`LATENT`] are the value.
    Mla {
        /// Query heads on this rank.
        heads: usize,
    },
}

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvType {
    /// bfloat16.
    Bf16,
    /// 8-bit float e4m3 (largest value 448), with one scale for keys and one for values.
    Fp8,
}

impl KvType {
    /// Bytes of an element.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            KvType::Bf16 => 2,
            KvType::Fp8 => 1,
        }
    }

    /// Name in tables and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            KvType::Bf16 => "bf16",
            KvType::Fp8 => "fp8",
        }
    }
}

/// The shape of one attention on one rank.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shape {
    /// Heads and dimensions.
    pub kind: Kind,
    /// Element type of the cache.
    pub kv: KvType,
    /// Tokens of a page, at least 1.
    pub page: usize,
    /// Scores are multiplied by this before the softmax; `1/sqrt(dim)` as a rule.
    pub scale: f32,
    /// What a stored fp8 key is multiplied by; 1 for bf16.
    pub k_scale: f32,
    /// What a stored fp8 value is multiplied by; 1 for bf16. With MLA the stored row is
    /// key and value at once, and both scales are the same.
    pub v_scale: f32,
}

/// Why a shape cannot be run.
#[derive(Debug, Error, PartialEq)]
pub enum ShapeError {
    /// A count is zero.
    #[error("{0} is 0, it must be at least 1")]
    Zero(&'static str),
    /// Query heads do not share KV heads evenly.
    #[error("{heads} query heads over {kv_heads} KV heads: the KV heads must divide them")]
    Heads {
        /// Query heads.
        heads: usize,
        /// KV heads.
        kv_heads: usize,
    },
    /// No kernel for this head dimension.
    #[error("head dimension {0}: the kernels have 64, 128 and 256")]
    HeadDim(usize),
    /// More heads than one MLA kernel takes.
    #[error("{0} heads of MLA: 1 to 128 are right")]
    MlaHeads(usize),
    /// A scale that is no positive number.
    #[error("{what} is {value}, it must be a positive number")]
    Scale {
        /// Which scale.
        what: &'static str,
        /// Its value.
        value: f32,
    },
    /// MLA with two different scales.
    #[error("MLA stores one row for key and value, but the scales are {k} and {v}")]
    MlaScales {
        /// Of keys.
        k: f32,
        /// Of values.
        v: f32,
    },
    /// A shard that does not exist.
    #[error(
        "KV shard {rank} of {size} with an interleave of {interleave}: the rank must be below the size, and both size and interleave at least 1"
    )]
    Shard {
        /// Rank.
        rank: usize,
        /// Ranks.
        size: usize,
        /// Interleave.
        interleave: usize,
    },
}

impl Shape {
    /// A shape with the usual scale, bf16 or unscaled fp8.
    #[must_use]
    pub fn new(kind: Kind, kv: KvType, page: usize) -> Self {
        let dim = match kind {
            Kind::Gqa { head_dim, .. } => head_dim,
            // DeepSeek's heads have 128 + 64 elements before absorption.
            Kind::Mla { .. } => 192,
        };
        Shape {
            kind,
            kv,
            page,
            scale: 1.0 / (dim as f32).sqrt(),
            k_scale: 1.0,
            v_scale: 1.0,
        }
    }

    /// Whether the kernels can run it.
    ///
    /// # Errors
    /// [`ShapeError`] naming the value that does not do.
    pub fn check(&self) -> Result<(), ShapeError> {
        match self.kind {
            Kind::Gqa { kv_heads: 0, .. } => {
                return Err(ShapeError::Zero("the number of KV heads"));
            }
            Kind::Gqa { heads: 0, .. } | Kind::Mla { heads: 0 } => {
                return Err(ShapeError::Zero("the number of query heads"));
            }
            Kind::Gqa {
                heads, kv_heads, ..
            } if !heads.is_multiple_of(kv_heads) => {
                return Err(ShapeError::Heads { heads, kv_heads });
            }
            Kind::Gqa { head_dim, .. } if ![64, 128, 256].contains(&head_dim) => {
                return Err(ShapeError::HeadDim(head_dim));
            }
            Kind::Mla {
                heads: heads @ 129..,
            } => return Err(ShapeError::MlaHeads(heads)),
            _ => {}
        }
        if self.page == 0 {
            return Err(ShapeError::Zero("the page size"));
        }
        for (what, value) in [
            ("the softmax scale", self.scale),
            ("the scale of keys", self.k_scale),
            ("the scale of values", self.v_scale),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return Err(ShapeError::Scale { what, value });
            }
        }
        if matches!(self.kind, Kind::Mla { .. }) && self.k_scale != self.v_scale {
            return Err(ShapeError::MlaScales {
                k: self.k_scale,
                v: self.v_scale,
            });
        }
        Ok(())
    }

    /// Query heads.
    #[must_use]
    pub fn heads(&self) -> usize {
        match self.kind {
            Kind::Gqa { heads, .. } | Kind::Mla { heads } => heads,
        }
    }

    /// The same with another number of query heads. With grouped queries the KV heads stay.
    #[must_use]
    pub fn with_heads(mut self, new: usize) -> Self {
        match &mut self.kind {
            Kind::Gqa { heads, .. } | Kind::Mla { heads } => *heads = new,
        }
        self
    }

    /// KV heads that are stored; 1 for MLA.
    #[must_use]
    pub fn kv_heads(&self) -> usize {
        match self.kind {
            Kind::Gqa { kv_heads, .. } => kv_heads,
            Kind::Mla { .. } => 1,
        }
    }

    /// Elements of a query head.
    #[must_use]
    pub fn query_dim(&self) -> usize {
        match self.kind {
            Kind::Gqa { head_dim, .. } => head_dim,
            Kind::Mla { .. } => LATENT + ROPE,
        }
    }

    /// Elements of an output head.
    #[must_use]
    pub fn value_dim(&self) -> usize {
        match self.kind {
            Kind::Gqa { head_dim, .. } => head_dim,
            Kind::Mla { .. } => LATENT,
        }
    }

    /// Elements of one token's stored key row of one KV head; the value row is as long,
    /// and with MLA the same row.
    #[must_use]
    pub fn stored_dim(&self) -> usize {
        self.query_dim()
    }

    /// Bytes of a page in each of the caches (keys and values; with MLA there is one).
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.kv_heads() * self.page * self.stored_dim() * self.kv.size()
    }

    /// Bytes of KV of one token, keys and values.
    #[must_use]
    pub fn token_bytes(&self) -> usize {
        let caches = match self.kind {
            Kind::Gqa { .. } => 2,
            Kind::Mla { .. } => 1,
        };
        caches * self.kv_heads() * self.stored_dim() * self.kv.size()
    }

    /// Floating-point operations of one query token against one KV token, both products.
    #[must_use]
    pub fn pair_flops(&self) -> f64 {
        2.0 * (self.heads() * (self.query_dim() + self.value_dim())) as f64
    }
}

/// Which KV positions a rank of a decode-context-parallel group holds: position `p` lies
/// on rank `(p / interleave) % size`, behind the rank's earlier positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// This rank in its group.
    pub rank: usize,
    /// Ranks that share the KV.
    pub size: usize,
    /// Neighbouring positions that stay together.
    pub interleave: usize,
}

impl Shard {
    /// All KV on one rank.
    pub const WHOLE: Shard = Shard {
        rank: 0,
        size: 1,
        interleave: 1,
    };

    /// Whether there is such a shard.
    ///
    /// # Errors
    /// [`ShapeError::Shard`].
    pub fn check(&self) -> Result<(), ShapeError> {
        if self.rank < self.size && self.interleave > 0 {
            return Ok(());
        }
        Err(ShapeError::Shard {
            rank: self.rank,
            size: self.size,
            interleave: self.interleave,
        })
    }

    /// How many of the positions below `len` this rank holds.
    #[must_use]
    pub fn local_len(&self, len: usize) -> usize {
        let round = self.interleave * self.size;
        let part = (len % round).saturating_sub(self.rank * self.interleave);
        len / round * self.interleave + part.min(self.interleave)
    }

    /// Where this rank holds position `p`; `None` when another rank does.
    #[must_use]
    pub fn place(&self, p: usize) -> Option<usize> {
        let block = p / self.interleave;
        (block % self.size == self.rank)
            .then(|| block / self.size * self.interleave + p % self.interleave)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_lengths_count_what_places_say() {
        for size in 1..=8 {
            for interleave in [1, 2, 3, 16] {
                for rank in 0..size {
                    let shard = Shard {
                        rank,
                        size,
                        interleave,
                    };
                    for len in 0..130 {
                        let held: Vec<usize> = (0..len).filter_map(|p| shard.place(p)).collect();
                        assert_eq!(held, (0..shard.local_len(len)).collect::<Vec<_>>());
                    }
                }
            }
        }
    }

    #[test]
    fn what_cannot_run_is_named() {
        let gqa = |heads, kv_heads, head_dim| {
            let kind = Kind::Gqa {
                heads,
                kv_heads,
                head_dim,
            };
            Shape::new(kind, KvType::Bf16, 16).check()
        };
        assert_eq!(gqa(64, 8, 128), Ok(()));
        assert_eq!(
            gqa(64, 8, 96).unwrap_err().to_string(),
            "head dimension 96: the kernels have 64, 128 and 256"
        );
        assert_eq!(
            gqa(6, 4, 64).unwrap_err().to_string(),
            "6 query heads over 4 KV heads: the KV heads must divide them"
        );
        assert!(gqa(0, 1, 64).is_err() && gqa(4, 0, 64).is_err());
        let mut mla = Shape::new(Kind::Mla { heads: 129 }, KvType::Fp8, 64);
        assert_eq!(
            mla.check().unwrap_err().to_string(),
            "129 heads of MLA: 1 to 128 are right"
        );
        mla = mla.with_heads(128);
        mla.k_scale = 0.5;
        assert!(mla.check().is_err());
        mla.v_scale = 0.5;
        assert_eq!(mla.check(), Ok(()));
        mla.page = 0;
        assert_eq!(
            mla.check().unwrap_err().to_string(),
            "the page size is 0, it must be at least 1"
        );
        let shard = Shard {
            rank: 2,
            size: 2,
            interleave: 1,
        };
        assert!(shard.check().is_err());
    }
}
