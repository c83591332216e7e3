//! Merge of attention partials by their log-sum-exp (LSE).
//!
//! Decode context parallelism splits one request's KV cache over ranks. Each rank
//! attends to its shard and returns a normalised output and the LSE of its scores;
//! the attention over the whole KV is then
//! `out = Σ_s exp(lse_s - lse) · out_s`, `lse = log Σ_s exp(lse_s)`.

use thiserror::Error;

/// The base of the logarithm that an attention kernel returns its LSE in.
///
/// FlashAttention returns natural logarithms, FlashInfer base 2. Mixing them up gives
/// plausible and wrong numbers, so the base is always named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogBase {
    /// `ln Σ exp(score)`
    Natural,
    /// `log2 Σ 2^(score · log2 e)`
    Two,
}

impl LogBase {
    fn exp(self, v: f64) -> f64 {
        match self {
            LogBase::Natural => v.exp(),
            LogBase::Two => v.exp2(),
        }
    }

    fn log(self, v: f64) -> f64 {
        match self {
            LogBase::Natural => v.ln(),
            LogBase::Two => v.log2(),
        }
    }
}

/// The floating-point types that a merge is defined for.
pub trait Real: Copy + PartialOrd + std::fmt::Debug {
    /// The value as f64, in which the merge is computed.
    fn to_f64(self) -> f64;
    /// The f64 rounded to this type.
    fn from_f64(v: f64) -> Self;
}

impl Real for f32 {
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn from_f64(v: f64) -> Self {
        v as f32
    }
}

impl Real for f64 {
    fn to_f64(self) -> f64 {
        self
    }
    fn from_f64(v: f64) -> Self {
        v
    }
}

/// One shard's partial result: `rows` is tokens times heads.
#[derive(Clone, Copy, Debug)]
pub struct Shard<'a, T> {
    /// `[rows, dim]`, normalised within the shard.
    pub out: &'a [T],
    /// `[rows]`; negative infinity where the shard held no KV of that row.
    pub lse: &'a [T],
}

/// The merged attention.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged<T> {
    /// `[rows, dim]`; zero where every shard was empty.
    pub out: Vec<T>,
    /// `[rows]`; negative infinity where every shard was empty.
    pub lse: Vec<T>,
}

/// Why partials could not be merged.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MergeError {
    /// There was nothing to merge.
    #[error("no shards to merge: at least one is needed")]
    NoShards,
    /// A head dimension of zero has no output.
    #[error("the head dimension is 0, it must be at least 1")]
    ZeroDim,
    /// A shard's arrays do not fit the first shard's row count.
    #[error(
        "shard {shard} has {out} output values and {lse} LSE values, \
         with head dimension {dim} and {rows} rows it must have {} and {rows}", rows * dim
    )]
    Shape {
        /// Index of the shard.
        shard: usize,
        /// Output values found.
        out: usize,
        /// LSE values found.
        lse: usize,
        /// Rows of the first shard.
        rows: usize,
        /// Head dimension asked for.
        dim: usize,
    },
}

/// Merges shards of `[rows, dim]` partial attention outputs by their LSE.
///
/// A shard whose LSE is negative infinity, NaN or positive infinity for a row counts
/// as empty for that row and its output is not read: kernels leave such rows
/// unwritten, and `0 · NaN` would poison the others.
///
/// # Errors
/// [`MergeError`] when there is no shard, `dim` is 0, or a shard's arrays do not fit.
pub fn merge_by_lse<T: Real>(
    shards: &[Shard<'_, T>],
    dim: usize,
    base: LogBase,
) -> Result<Merged<T>, MergeError> {
    let first = shards.first().ok_or(MergeError::NoShards)?;
    if dim == 0 {
        return Err(MergeError::ZeroDim);
    }
    let rows = first.lse.len();
    for (i, s) in shards.iter().enumerate() {
        if s.lse.len() != rows || s.out.len() != rows * dim {
            return Err(MergeError::Shape {
                shard: i,
                out: s.out.len(),
                lse: s.lse.len(),
                rows,
                dim,
            });
        }
    }

    let mut out = vec![T::from_f64(0.0); rows * dim];
    let mut lse = vec![T::from_f64(f64::NEG_INFINITY); rows];
    let mut acc = vec![0.0f64; dim];
    for row in 0..rows {
        let live = |s: &&Shard<'_, T>| s.lse[row].to_f64().is_finite();
        let max = shards
            .iter()
            .filter(live)
            .map(|s| s.lse[row].to_f64())
            .fold(f64::NEG_INFINITY, f64::max);
        if max == f64::NEG_INFINITY {
            continue;
        }
        acc.fill(0.0);
        let mut total = 0.0;
        for s in shards.iter().filter(live) {
            let w = base.exp(s.lse[row].to_f64() - max);
            total += w;
            for (a, o) in acc.iter_mut().zip(&s.out[row * dim..]) {
                *a += w * o.to_f64();
            }
        }
        for (o, a) in out[row * dim..].iter_mut().zip(&acc) {
            *o = T::from_f64(a / total);
        }
        lse[row] = T::from_f64(max + base.log(total));
    }
    Ok(Merged { out, lse })
}
