//! Attention over a paged KV cache, in f64.

use half::bf16;
use thiserror::Error;

use super::E4M3_MAX;
use crate::attention::{Kind, KvType, Shape, Shard};

/// What an attention reads. Layouts as the kernels have them.
#[derive(Clone, Copy, Debug)]
pub struct AttentionInputs<'a> {
    /// `[tokens, heads, query dim]`
    pub q: &'a [bf16],
    /// `[pages, kv_heads, page, dim]`; with MLA `[pages, page, 576]`.
    pub k: &'a [u8],
    /// As `k`; with MLA not read.
    pub v: &'a [u8],
    /// `[requests, max_pages]`
    pub page_table: &'a [u32],
    /// Row length of the page table.
    pub max_pages: usize,
    /// KV tokens of each request on all ranks, its query tokens included.
    pub kv_lens: &'a [u32],
    /// First token of each request, and the end of the last.
    pub query_offsets: &'a [u32],
}

/// The result for the tokens from `query_offsets[0]` on.
#[derive(Clone, Debug, PartialEq)]
pub struct Attended {
    /// `[tokens, heads, value dim]`; zero where this rank holds nothing that a token sees.
    pub out: Vec<f64>,
    /// `[tokens, heads]`, natural logarithm; negative infinity where it holds nothing.
    pub lse: Vec<f64>,
}

/// Inputs that do not fit each other.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AttentionError {
    /// Lengths of the arrays.
    #[error("{requests} requests need {} query offsets, {offsets} are given", requests + 1)]
    Offsets {
        /// Requests.
        requests: usize,
        /// Offsets found.
        offsets: usize,
    },
    /// Offsets that fall.
    #[error("request {request} has query tokens {begin} to {end}: offsets must not fall")]
    Queries {
        /// Request.
        request: usize,
        /// First token.
        begin: u32,
        /// End.
        end: u32,
    },
    /// A page outside of the cache, or a page that the table has no room for.
    #[error("request {request}, KV token {token} on this rank: {why}")]
    Page {
        /// Request.
        request: usize,
        /// Token on this rank.
        token: usize,
        /// What is wrong.
        why: String,
    },
    /// Fewer queries than the offsets say.
    #[error("the offsets name {tokens} tokens, the queries have {found}")]
    Tokens {
        /// Tokens named.
        tokens: usize,
        /// Tokens found.
        found: usize,
    },
}

/// An e4m3 value: sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinities.
#[must_use]
pub fn e4m3_to_f64(bits: u8) -> f64 {
    let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f64::from(bits & 7));
    match (exponent, bits & 7) {
        (15, 7) => f64::NAN,
        (0, _) => sign * mantissa / 8.0 * 2f64.powi(-6),
        _ => sign * (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    }
}

/// The nearest e4m3, ties to even; beyond 448 the largest, as hardware saturates.
#[must_use]
pub fn f32_to_e4m3(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    if value.is_nan() {
        return sign | 0x7f;
    }
    let magnitude = value.abs().min(E4M3_MAX);
    // Steps are 2^-3 of the power of two below, but never less than 2^-9.
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(-6);
    let step = f32::from_bits(((exponent - 3 + 127) as u32) << 23);
    // Division by a power of two is exact; rounding to whole steps is the only rounding.
    let steps = (magnitude / step).round_ties_even() as u8;
    // 8 steps of the smallest exponent are its first normal value, 16 of any the next power.
    sign | ((((exponent + 6) as u8) << 3) + steps)
}

fn stored(cache: &[u8], kv: KvType, element: usize) -> f64 {
    match kv {
        KvType::Bf16 => bf16::from_le_bytes([cache[2 * element], cache[2 * element + 1]]).to_f64(),
        KvType::Fp8 => e4m3_to_f64(cache[element]),
    }
}

/// `out = softmax(scale · q kᵀ) v` for each query token over the KV on this rank that it
/// may see: positions up to its own. A request's query tokens are its last positions.
///
/// # Errors
/// [`AttentionError`] when the arrays do not fit each other. The shape itself is the
/// caller's to check.
pub fn attention(
    shape: &Shape,
    shard: &Shard,
    inputs: &AttentionInputs<'_>,
) -> Result<Attended, AttentionError> {
    let requests = inputs.kv_lens.len();
    let (heads, kv_heads) = (shape.heads(), shape.kv_heads());
    let (dim, value_dim, row) = (shape.query_dim(), shape.value_dim(), shape.stored_dim());
    if inputs.query_offsets.len() != requests + 1 {
        return Err(AttentionError::Offsets {
            requests,
            offsets: inputs.query_offsets.len(),
        });
    }
    let first = inputs.query_offsets[0] as usize;
    let last = inputs.query_offsets[requests] as usize;
    let found = inputs.q.len() / (heads * dim);
    if last > found {
        return Err(AttentionError::Tokens {
            tokens: last,
            found,
        });
    }
    let (values, v_scale) = match shape.kind {
        Kind::Gqa { .. } => (inputs.v, shape.v_scale),
        Kind::Mla { .. } => (inputs.k, shape.k_scale),
    };
    let pages = inputs.k.len() / shape.page_bytes();
    let mut out = Vec::new();
    let mut lse = Vec::new();
    for request in 0..requests {
        let [begin, end] = [
            inputs.query_offsets[request],
            inputs.query_offsets[request + 1],
        ];
        let kv_len = inputs.kv_lens[request];
        if end < begin {
            return Err(AttentionError::Queries {
                request,
                begin,
                end,
            });
        }
        let queries = (end - begin) as usize;
        if queries == 0 {
            continue;
        }
        // Row of KV head 0 of each token here; the other heads follow by whole pages.
        let mut places = Vec::new();
        for token in 0..shard.local_len(kv_len as usize) {
            let wrong = |why: String| AttentionError::Page {
                request,
                token,
                why,
            };
            let column = token / shape.page;
            if column >= inputs.max_pages {
                return Err(wrong(format!(
                    "the page table has {} pages a request",
                    inputs.max_pages
                )));
            }
            let page = inputs.page_table.get(request * inputs.max_pages + column);
            let page = *page.ok_or_else(|| wrong("the page table ends before".into()))? as usize;
            if page >= pages {
                return Err(wrong(format!("page {page}, the cache has {pages}")));
            }
            places.push(page * kv_heads * shape.page + token % shape.page);
        }
        for i in 0..queries {
            // A token before position 0 sees nothing: padding of a bucket.
            let seen = shard.local_len((kv_len as usize + i + 1).saturating_sub(queries));
            for head in 0..heads {
                let at = ((begin as usize + i) * heads + head) * dim;
                let q = &inputs.q[at..at + dim];
                let kv_head = head / (heads / kv_heads);
                let element = |place: usize, d: usize| (place + kv_head * shape.page) * row + d;
                let scores: Vec<f64> = places[..seen]
                    .iter()
                    .map(|&p| {
                        let dot: f64 = (0..dim)
                            .map(|d| q[d].to_f64() * stored(inputs.k, shape.kv, element(p, d)))
                            .sum();
                        dot * f64::from(shape.scale) * f64::from(shape.k_scale)
                    })
                    .collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let mut sum = vec![0.0; value_dim];
                let mut total = 0.0;
                for (score, &p) in scores.iter().zip(&places) {
                    let weight = (score - top).exp();
                    total += weight;
                    for (d, s) in sum.iter_mut().enumerate() {
                        *s += weight * stored(values, shape.kv, element(p, d));
                    }
                }
                let norm = if seen == 0 {
                    0.0
                } else {
                    f64::from(v_scale) / total
                };
                out.extend(sum.iter().map(|s| s * norm));
                lse.push(if seen == 0 {
                    f64::NEG_INFINITY
                } else {
                    top + total.ln()
                });
            }
        }
    }
    debug_assert_eq!(lse.len(), (last - first) * heads);
    Ok(Attended { out, lse })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_goes_there_and_back() {
        for bits in 0..=255u8 {
            let value = e4m3_to_f64(bits);
            if value.is_nan() {
                assert!(e4m3_to_f64(f32_to_e4m3(f32::NAN)).is_nan());
            } else {
                assert_eq!(f32_to_e4m3(value as f32), bits, "{value}");
            }
        }
        assert_eq!(e4m3_to_f64(f32_to_e4m3(1e9)), 448.0);
        assert_eq!(e4m3_to_f64(f32_to_e4m3(17.0)), 16.0); // a tie, to even
        assert_eq!(e4m3_to_f64(f32_to_e4m3(19.0)), 20.0);
    }

    #[test]
    fn every_e4m3_code_survives_and_everything_between_goes_to_the_nearest() {
        let of = |c: u8| e4m3_to_f64(c) as f32;
        for c in 0..0x7f_u8 {
            assert_eq!(f32_to_e4m3(of(c)), c);
            assert_eq!(f32_to_e4m3(-of(c)), c | 0x80);
        }
        for c in 0..0x7e_u8 {
            let middle = f32::midpoint(of(c), of(c + 1));
            assert_eq!(f32_to_e4m3(middle), c + c % 2, "{middle}");
            assert_eq!(f32_to_e4m3(middle.next_down()), c);
            assert_eq!(f32_to_e4m3(middle.next_up()), c + 1);
        }
        assert_eq!(f32_to_e4m3(1e30), 0x7e);
        assert_eq!(f32_to_e4m3(f32::INFINITY), 0x7e);
        assert_eq!(f32_to_e4m3(f32::NAN) & 0x7f, 0x7f);
    }
}
