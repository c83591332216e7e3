//! Element types and reductions, and the CPU's exact meaning of both.

use bytemuck::{Pod, cast_slice};
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Element type of a buffer that is reduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// 8-bit unsigned integer.
    U8,
    /// 32-bit signed integer.
    I32,
    /// 64-bit signed integer.
    I64,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
}

impl DType {
    /// Every type, for tests that go through all of them.
    pub const ALL: [DType; 7] = [
        DType::U8,
        DType::I32,
        DType::I64,
        DType::F16,
        DType::Bf16,
        DType::F32,
        DType::F64,
    ];

    /// Bytes of one element.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            DType::U8 => 1,
            DType::F16 | DType::Bf16 => 2,
            DType::I32 | DType::F32 => 4,
            DType::I64 | DType::F64 => 8,
        }
    }

    /// Name as it is printed and given on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DType::U8 => "u8",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::F32 => "f32",
            DType::F64 => "f64",
        }
    }

    /// Small integers as elements of this type, little-endian; exact for |v| ≤ 255.
    #[must_use]
    pub fn encode(self, values: impl Iterator<Item = i64>) -> Vec<u8> {
        match self {
            DType::U8 => values.map(|v| v as u8).collect(),
            DType::I32 => pack(values.map(|v| v as i32)),
            DType::I64 => pack(values),
            DType::F16 => pack(values.map(|v| f16::from_f64(v as f64))),
            DType::Bf16 => pack(values.map(|v| bf16::from_f64(v as f64))),
            DType::F32 => pack(values.map(|v| v as f32)),
            DType::F64 => pack(values.map(|v| v as f64)),
        }
    }

    /// Elements of this type as f64 (i64 beyond 2^53 are rounded).
    #[must_use]
    pub fn decode(self, bytes: &[u8]) -> Vec<f64> {
        match self {
            DType::U8 => bytes.iter().map(|v| f64::from(*v)).collect(),
            DType::I32 => unpack(bytes, |v: i32| f64::from(v)),
            DType::I64 => unpack(bytes, |v: i64| v as f64),
            DType::F16 => unpack(bytes, |v: f16| v.to_f64()),
            DType::Bf16 => unpack(bytes, |v: bf16| v.to_f64()),
            DType::F32 => unpack(bytes, |v: f32| f64::from(v)),
            DType::F64 => unpack(bytes, |v: f64| v),
        }
    }
}

fn pack<T: Pod>(values: impl Iterator<Item = T>) -> Vec<u8> {
    cast_slice(&values.collect::<Vec<T>>()).to_vec()
}

fn unpack<T: Pod>(bytes: &[u8], f: impl Fn(T) -> f64) -> Vec<f64> {
    bytes
        .chunks_exact(size_of::<T>())
        .map(|c| f(bytemuck::pod_read_unaligned(c)))
        .collect()
}

/// How elements of different ranks become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReduceOp {
    /// Sum; 16-bit floats are summed in f32 and rounded once.
    Sum,
    /// Largest.
    Max,
    /// Smallest.
    Min,
}

/// Reduces equally long contributions in the order given (by rank), so that every
/// rank that computes it gets the same bits.
///
/// # Errors
/// [`Error::Arguments`] when the lengths differ, or are no multiple of the element size.
pub(crate) fn reduce(dtype: DType, op: ReduceOp, parts: &[&[u8]]) -> Result<Vec<u8>> {
    let len = parts.first().map_or(0, |p| p.len());
    if let Some(bad) = parts.iter().find(|p| p.len() != len) {
        return Err(Error::Arguments {
            op: "reduce",
            why: format!(
                "contributions of {len} and {} bytes, all must be equal",
                bad.len()
            ),
        });
    }
    if !len.is_multiple_of(dtype.size()) {
        return Err(Error::Arguments {
            op: "reduce",
            why: format!(
                "{len} bytes are not whole elements of {} ({} bytes)",
                dtype.name(),
                dtype.size()
            ),
        });
    }
    Ok(match dtype {
        DType::U8 => fold(parts, |v: u8| v, |a: u8| a, op, u8::wrapping_add),
        DType::I32 => fold(parts, |v: i32| v, |a: i32| a, op, i32::wrapping_add),
        DType::I64 => fold(parts, |v: i64| v, |a: i64| a, op, i64::wrapping_add),
        DType::F16 => fold(parts, f16::to_f32, f16::from_f32, op, |a, b| a + b),
        DType::Bf16 => fold(parts, bf16::to_f32, bf16::from_f32, op, |a, b| a + b),
        DType::F32 => fold(parts, |v: f32| v, |a: f32| a, op, |a, b| a + b),
        DType::F64 => fold(parts, |v: f64| v, |a: f64| a, op, |a, b| a + b),
    })
}

fn fold<T: Pod, A: Copy + PartialOrd>(
    parts: &[&[u8]],
    load: impl Fn(T) -> A,
    store: impl Fn(A) -> T,
    op: ReduceOp,
    add: impl Fn(A, A) -> A,
) -> Vec<u8> {
    let size = size_of::<T>();
    let count = parts.first().map_or(0, |p| p.len() / size);
    let mut out = Vec::with_capacity(count * size);
    for i in 0..count {
        let mut values = parts
            .iter()
            .map(|p| load(bytemuck::pod_read_unaligned(&p[i * size..(i + 1) * size])));
        let Some(first) = values.next() else { break };
        let all = values.fold(first, |a, b| match op {
            ReduceOp::Sum => add(a, b),
            ReduceOp::Max => {
                if b > a {
                    b
                } else {
                    a
                }
            }
            ReduceOp::Min => {
                if b < a {
                    b
                } else {
                    a
                }
            }
        });
        out.extend_from_slice(bytemuck::bytes_of(&store(all)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_keeps_small_integers_exactly_and_sums_them() {
        for dtype in DType::ALL {
            let a = dtype.encode([1i64, 2, 100].into_iter());
            let b = dtype.encode([3i64, 0, 27].into_iter());
            assert_eq!(a.len(), 3 * dtype.size());
            assert_eq!(
                dtype.decode(&reduce(dtype, ReduceOp::Sum, &[&a, &b]).unwrap()),
                [4.0, 2.0, 127.0]
            );
            assert_eq!(
                dtype.decode(&reduce(dtype, ReduceOp::Max, &[&a, &b]).unwrap()),
                [3.0, 2.0, 100.0]
            );
            assert_eq!(
                dtype.decode(&reduce(dtype, ReduceOp::Min, &[&a, &b]).unwrap()),
                [1.0, 0.0, 27.0]
            );
        }
    }

    #[test]
    fn bf16_sums_are_rounded_once() {
        // 256 + 1 + 1 = 258 is a bf16; rounding after each step would stay at 256.
        let parts: Vec<Vec<u8>> = [256i64, 1, 1]
            .iter()
            .map(|v| DType::Bf16.encode(std::iter::once(*v)))
            .collect();
        let refs: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        assert_eq!(
            DType::Bf16.decode(&reduce(DType::Bf16, ReduceOp::Sum, &refs).unwrap()),
            [258.0]
        );
    }

    #[test]
    fn uneven_or_split_elements_are_refused() {
        let e = reduce(DType::F32, ReduceOp::Sum, &[&[0; 4], &[0; 8]]).unwrap_err();
        assert_eq!(
            e.to_string(),
            "reduce: contributions of 4 and 8 bytes, all must be equal"
        );
        let e = reduce(DType::F32, ReduceOp::Sum, &[&[0; 6]]).unwrap_err();
        assert_eq!(
            e.to_string(),
            "reduce: 6 bytes are not whole elements of f32 (4 bytes)"
        );
    }
}
