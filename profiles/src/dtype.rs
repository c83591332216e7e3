//! Number formats of weights, activations and KV caches.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A storage format of weights or of the KV cache.
///
/// Block-scaled formats count the bytes of their scales in [`Dtype::bytes`], because those bytes
/// are read from HBM together with the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// IEEE single precision.
    Fp32,
    /// bfloat16 (float16 is planned the same way).
    Bf16,
    /// 8-bit float (e4m3 or e5m2) with one scale a tensor or a channel.
    Fp8,
    /// 8-bit float with one fp32 scale a 128×128 block of weights (DeepSeek-V3 style).
    Fp8Block,
    /// 8-bit integer with one scale a channel.
    Int8,
    /// 4-bit integer weights with 16-bit activations, one bf16 scale a group of 32 (W4A16).
    Int4,
    /// NVIDIA 4-bit float: e2m1 with one e4m3 scale a group of 16.
    Nvfp4,
    /// OCP MX 4-bit float: e2m1 with one e8m0 scale a group of 32.
    Mxfp4,
    /// OCP MX 8-bit float: e4m3 with one e8m0 scale a group of 32.
    Mxfp8,
}

/// The arithmetic that the tensor cores run for a weight format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TensorRate {
    /// bf16/fp16 products.
    Bf16,
    /// fp8 products.
    Fp8,
    /// int8 products.
    Int8,
    /// fp4 products.
    Fp4,
}

impl Dtype {
    /// Mean bytes a stored value takes, scales included.
    pub const fn bytes(self) -> f64 {
        match self {
            Dtype::Fp32 => 4.0,
            Dtype::Bf16 => 2.0,
            Dtype::Fp8 | Dtype::Int8 => 1.0,
            Dtype::Fp8Block => 1.0 + 4.0 / (128.0 * 128.0),
            Dtype::Int4 => 0.5 + 2.0 / 32.0,
            Dtype::Nvfp4 => 0.5 + 1.0 / 16.0,
            Dtype::Mxfp4 => 0.5 + 1.0 / 32.0,
            Dtype::Mxfp8 => 1.0 + 1.0 / 32.0,
        }
    }

    /// Every format, in the order of this enumeration.
    pub const ALL: [Dtype; 9] = [
        Dtype::Fp32,
        Dtype::Bf16,
        Dtype::Fp8,
        Dtype::Fp8Block,
        Dtype::Int8,
        Dtype::Int4,
        Dtype::Nvfp4,
        Dtype::Mxfp4,
        Dtype::Mxfp8,
    ];

    /// The name used in profiles, on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::Fp32 => "fp32",
            Dtype::Bf16 => "bf16",
            Dtype::Fp8 => "fp8",
            Dtype::Fp8Block => "fp8_block",
            Dtype::Int8 => "int8",
            Dtype::Int4 => "int4",
            Dtype::Nvfp4 => "nvfp4",
            Dtype::Mxfp4 => "mxfp4",
            Dtype::Mxfp8 => "mxfp8",
        }
    }
}

/// A format name that is not one of [`Dtype::ALL`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a number format (known: {known})", known = known())]
pub struct UnknownDtype(String);

fn known() -> String {
    Dtype::ALL.map(Dtype::name).join(", ")
}

impl std::str::FromStr for Dtype {
    type Err = UnknownDtype;

    /// Reads the names that [`Dtype::name`] gives.
    fn from_str(text: &str) -> Result<Self, UnknownDtype> {
        Dtype::ALL
            .into_iter()
            .find(|dtype| dtype.name() == text)
            .ok_or_else(|| UnknownDtype(text.to_owned()))
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
