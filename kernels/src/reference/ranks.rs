//! References of the merges over ranks (`cuda/attention_merge.cu`).

use half::bf16;

use super::{LogBase, Shard, merge_by_lse};

/// `parplan_dcp_merge`: partial outputs `[ranks, rows, dim]` and LSEs `[ranks, rows]`
/// become one output `[rows, dim]` and its LSE `[rows]`. `None` when lengths do not fit.
#[must_use]
pub fn merge_ranks(
    parts: &[bf16],
    lses: &[f32],
    ranks: usize,
    dim: usize,
) -> Option<(Vec<bf16>, Vec<f32>)> {
    if ranks == 0 || !lses.len().is_multiple_of(ranks) || parts.len() != lses.len() * dim {
        return None;
    }
    let rows = lses.len() / ranks;
    if rows == 0 {
        return Some((Vec::new(), Vec::new()));
    }
    let wide: Vec<f64> = parts.iter().map(|v| v.to_f64()).collect();
    let lses: Vec<f64> = lses.iter().map(|v| f64::from(*v)).collect();
    let shards: Vec<Shard<'_, f64>> = (0..ranks)
        .map(|r| Shard {
            out: &wide[r * rows * dim..(r + 1) * rows * dim],
            lse: &lses[r * rows..(r + 1) * rows],
        })
        .collect();
    let merged = merge_by_lse(&shards, dim, LogBase::Natural).ok()?;
    Some((
        merged.out.into_iter().map(bf16::from_f64).collect(),
        merged.lse.into_iter().map(|v| v as f32).collect(),
    ))
}

/// `parplan_dcp_correct`: the rows `[ranks, rows, dim]` of one rank, each times its
/// weight among all ranks' LSEs `[ranks, ranks, rows]`, and the merged LSE of the rank's
/// own part. `None` when lengths do not fit.
#[must_use]
pub fn correct_rank(
    parts: &[bf16],
    lses: &[f32],
    rank: usize,
    ranks: usize,
    dim: usize,
) -> Option<(Vec<bf16>, Vec<f32>)> {
    if rank >= ranks || !lses.len().is_multiple_of(ranks * ranks) {
        return None;
    }
    let all_rows = lses.len() / ranks;
    let rows = all_rows / ranks;
    if parts.len() != all_rows * dim {
        return None;
    }
    let mut out = Vec::with_capacity(parts.len());
    let mut own = Vec::with_capacity(rows);
    for row in 0..all_rows {
        let of = |r: usize| f64::from(lses[r * all_rows + row]);
        let finite = (0..ranks).map(of).filter(|l| l.is_finite());
        let top = finite.clone().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = finite.map(|l| (l - top).exp()).sum();
        let mine = of(rank);
        for value in &parts[row * dim..(row + 1) * dim] {
            let weighed = if mine.is_finite() {
                value.to_f64() * (mine - top).exp() / total
            } else {
                0.0
            };
            out.push(bf16::from_f64(weighed));
        }
        if row / rows == rank {
            own.push(if total > 0.0 {
                (top + total.ln()) as f32
            } else {
                f32::NEG_INFINITY
            });
        }
    }
    Some((out, own))
}
