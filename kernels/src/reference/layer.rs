//! The small operations of a decoder layer: norms, rotary embedding with the KV write,
//! activations, routing, and the weighted sum of expert outputs.
//!
//! Everything is computed in f32 and rounded to bf16 where the kernels store.

use half::bf16;

fn f(v: bf16) -> f32 {
    v.to_f32()
}

/// `residual += delta` (rounded to bf16), then `residual / rms(residual) · weight`, a row
/// of `weight.len()` columns at a time.
#[must_use]
pub fn add_rms_norm(
    residual: &mut [bf16],
    delta: Option<&[bf16]>,
    weight: &[bf16],
    eps: f32,
) -> Vec<bf16> {
    if let Some(delta) = delta {
        for (r, d) in residual.iter_mut().zip(delta) {
            *r = bf16::from_f32(f(*r) + f(*d));
        }
    }
    residual
        .chunks_exact(weight.len())
        .flat_map(|row| rms_norm(row, Some(weight), eps))
        .map(bf16::from_f32)
        .collect()
}

/// One row over its root mean square, times `weight` where there is one; not rounded.
fn rms_norm(row: &[bf16], weight: Option<&[bf16]>, eps: f32) -> Vec<f32> {
    let square: f32 = row.iter().map(|v| f(*v) * f(*v)).sum();
    let inverse = 1.0 / (square / row.len() as f32 + eps).sqrt();
    row.iter()
        .enumerate()
        .map(|(i, v)| f(*v) * inverse * weight.map_or(1.0, |w| f(w[i])))
        .collect()
}

/// Rotates pairs `(i, i + n/2)` in place (the NeoX way); `cos_sin` is n/2 cosines and then
/// n/2 sines.
fn rotate(row: &mut [f32], cos_sin: &[f32]) {
    let half = row.len() / 2;
    for i in 0..half {
        let (a, b, cos, sin) = (row[i], row[i + half], cos_sin[i], cos_sin[i + half]);
        row[i] = a * cos - b * sin;
        row[i + half] = b * cos + a * sin;
    }
}

/// Sizes of [`rope_gqa`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GqaRow {
    /// Query heads.
    pub q_heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

impl GqaRow {
    /// Columns of a row of Q, K and V.
    #[must_use]
    pub fn columns(&self) -> usize {
        (self.q_heads + 2 * self.kv_heads) * self.head_dim
    }
}

/// One row of Q, K and V as the projection made it: Q and K normed by head where `norms`
/// gives weights for Q and for K, then rotated. Returns Q, K and V, the last two `[kv_heads, head_dim]`.
#[must_use]
pub fn rope_gqa(
    shape: GqaRow,
    qkv: &[bf16],
    cos_sin: &[f32],
    norms: Option<[&[bf16]; 2]>,
    eps: f32,
) -> (Vec<bf16>, Vec<bf16>, Vec<bf16>) {
    let dim = shape.head_dim;
    let (q, kv) = qkv.split_at(shape.q_heads * dim);
    let (k, v) = kv.split_at(shape.kv_heads * dim);
    let heads = |part: &[bf16], weight: Option<&[bf16]>| -> Vec<bf16> {
        part.chunks_exact(dim)
            .flat_map(|head| {
                let mut head = match weight {
                    Some(w) => rms_norm(head, Some(w), eps),
                    None => head.iter().map(|v| f(*v)).collect(),
                };
                rotate(&mut head, cos_sin);
                head
            })
            .map(bf16::from_f32)
            .collect()
    };
    (
        heads(q, norms.map(|n| n[0])),
        heads(k, norms.map(|n| n[1])),
        v.to_vec(),
    )
}

/// One row of MLA's fused compression, `q_lora + kv_lora + rope` wide: the normed query
/// compression, and the row of the cache: the normed KV compression and the rotated part.
#[must_use]
pub fn rope_latent(
    row: &[bf16],
    q_lora: usize,
    kv_lora: usize,
    cos_sin: &[f32],
    norms: [&[bf16]; 2],
    eps: f32,
) -> (Vec<bf16>, Vec<bf16>) {
    let round = |v: Vec<f32>| v.into_iter().map(bf16::from_f32);
    let query = if q_lora == 0 {
        Vec::new()
    } else {
        round(rms_norm(&row[..q_lora], Some(norms[0]), eps)).collect()
    };
    let mut cache: Vec<bf16> = round(rms_norm(
        &row[q_lora..q_lora + kv_lora],
        Some(norms[1]),
        eps,
    ))
    .collect();
    let mut rope: Vec<f32> = row[q_lora + kv_lora..].iter().map(|v| f(*v)).collect();
    rotate(&mut rope, cos_sin);
    cache.extend(round(rope));
    (query, cache)
}

/// The rotated part of one head of an MLA query.
#[must_use]
pub fn rope_head(head: &[bf16], cos_sin: &[f32]) -> Vec<bf16> {
    let mut head: Vec<f32> = head.iter().map(|v| f(*v)).collect();
    rotate(&mut head, cos_sin);
    head.into_iter().map(bf16::from_f32).collect()
}

/// `silu(gate) · up`, rows of `[gate | up]`, each `width` wide.
#[must_use]
pub fn silu_mul(gate_up: &[bf16], width: usize) -> Vec<bf16> {
    gate_up
        .chunks_exact(2 * width)
        .flat_map(|row| {
            let (gate, up) = row.split_at(width);
            gate.iter().zip(up).map(|(g, u)| {
                let g = f(*g);
                bf16::from_f32(g / (1.0 + (-g).exp()) * f(*u))
            })
        })
        .collect()
}

/// The `top_k` largest of a row of router logits, largest first (of equal ones the lower
/// expert), and their softmax weights among themselves. NaN counts as −∞.
#[must_use]
pub fn route(logits: &[f32], top_k: usize) -> (Vec<i32>, Vec<f32>) {
    let of = |e: usize| {
        if logits[e].is_nan() {
            f32::NEG_INFINITY
        } else {
            logits[e]
        }
    };
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // Never NaN: see `of`. Zeros of either sign are equal.
    order.sort_by(|a, b| {
        let by_score = of(*b).partial_cmp(&of(*a));
        by_score.unwrap_or(std::cmp::Ordering::Equal).then(a.cmp(b))
    });
    order.truncate(top_k);
    let largest = order.first().map_or(0.0, |e| of(*e));
    let weights: Vec<f32> = order
        .iter()
        .map(|e| {
            if largest == f32::NEG_INFINITY {
                1.0
            } else {
                (of(*e) - largest).exp()
            }
        })
        .collect();
    let sum: f32 = weights.iter().sum();
    (
        order.iter().map(|e| *e as i32).collect(),
        weights.iter().map(|w| w / sum).collect(),
    )
}

/// Tokens sorted by expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sorted {
    /// Pairs (token · top_k + choice) of the local experts, expert by expert; within an
    /// expert in no promised order.
    pub order: Vec<i32>,
    /// First slot of each local expert, and the end: `experts + 1` values.
    pub offsets: Vec<i32>,
}

/// Sorts the pairs whose expert is one of `first .. first + experts`.
#[must_use]
pub fn sort_pairs(ids: &[i32], first: i32, experts: usize) -> Sorted {
    let mut order = Vec::new();
    let mut offsets = vec![0];
    for e in first..first + experts as i32 {
        order.extend((0..ids.len()).filter(|p| ids[*p] == e).map(|p| p as i32));
        offsets.push(order.len() as i32);
    }
    Sorted { order, offsets }
}

/// `Σ_j weight[j] · outputs[row · top_k + j]` over the choices whose expert is local, plus
/// the row of `base` where there is one.
#[must_use]
pub fn sum_experts(
    outputs: &[bf16],
    ids: &[i32],
    weights: &[f32],
    local: std::ops::Range<i32>,
    top_k: usize,
    hidden: usize,
    base: Option<&[bf16]>,
) -> Vec<bf16> {
    let rows = ids.len() / top_k;
    let mut out = Vec::with_capacity(rows * hidden);
    for row in 0..rows {
        for c in 0..hidden {
            let mut sum = base.map_or(0.0, |b| f(b[row * hidden + c]));
            for pair in row * top_k..(row + 1) * top_k {
                if local.contains(&ids[pair]) {
                    sum += weights[pair] * f(outputs[pair * hidden + c]);
                }
            }
            out.push(bf16::from_f32(sum));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn b(values: &[f32]) -> Vec<bf16> {
        values.iter().map(|v| bf16::from_f32(*v)).collect()
    }

    #[test]
    fn a_normed_row_has_the_weights_as_root_mean_square() {
        let mut residual = b(&[3.0, -4.0, 1.0, 0.0]);
        let delta = b(&[0.0, 0.0, -1.0, 5.0]);
        let out = add_rms_norm(&mut residual, Some(&delta), &b(&[1.0, 2.0, 1.0, 1.0]), 0.0);
        assert_eq!(residual, b(&[3.0, -4.0, 0.0, 5.0]));
        let rms = (50.0f32 / 4.0).sqrt();
        assert_eq!(out, b(&[3.0 / rms, -8.0 / rms, 0.0, 5.0 / rms]));
    }

    #[test]
    fn a_quarter_turn_swaps_the_halves() {
        let (q, k, v) = rope_gqa(
            GqaRow {
                q_heads: 1,
                kv_heads: 1,
                head_dim: 4,
            },
            &b(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 1.0, 2.0, 3.0]),
            &[0.0, 1.0, 1.0, 0.0],
            None,
            0.0,
        );
        assert_eq!(q, b(&[-3.0, 2.0, 1.0, 4.0]));
        assert_eq!(k, b(&[-7.0, 6.0, 5.0, 8.0]));
        assert_eq!(v, b(&[9.0, 1.0, 2.0, 3.0]));
    }

    #[test]
    fn routing_takes_the_largest_and_normalises_among_them() {
        let (ids, weights) = route(&[0.0, 2.0, f32::NAN, 2.0, 1.0], 3);
        assert_eq!(ids, [1, 3, 4]);
        let sum: f32 = weights.iter().sum();
        assert!((sum - 1.0).abs() < 1e-6);
        assert!((weights[0] / weights[2] - 1f32.exp()).abs() < 1e-5);
        let (ids, weights) = route(&[f32::NAN; 4], 2);
        assert_eq!((ids, weights), (vec![0, 1], vec![0.5, 0.5]));
    }

    #[test]
    fn pairs_of_other_ranks_experts_are_left_out() {
        let ids = [3, 0, 2, 3, 1, 2];
        let sorted = sort_pairs(&ids, 2, 2);
        assert_eq!(sorted.order, [2, 5, 0, 3]);
        assert_eq!(sorted.offsets, [0, 2, 4]);
        let outputs = b(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let weights = [0.5, 0.5, 0.25, 0.75, 1.0, 0.5];
        let sum = sum_experts(&outputs, &ids, &weights, 2..4, 2, 1, Some(&b(&[10.0; 3])));
        assert_eq!(sum, b(&[10.5, 13.75, 13.0]));
    }
}
