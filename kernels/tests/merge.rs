//! The merge by LSE against attention over all the KV, from first principles.

#![allow(clippy::unwrap_used)] // tests, helper functions included
use parplan_kernels::reference::{LogBase, MergeError, Real, Shard, merge_by_lse};
use proptest::prelude::*;

/// Attention of one row over `keys` scores and `[keys, dim]` values, in f64.
/// The LSE is taken in `base` of the same natural-exponential weights.
fn attend(scores: &[f64], values: &[f64], dim: usize, base: LogBase) -> (Vec<f64>, f64) {
    let mut out = vec![0.0; dim];
    if scores.is_empty() {
        return (vec![f64::NAN; dim], f64::NEG_INFINITY);
    }
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
    for (s, v) in scores.iter().zip(values.chunks(dim)) {
        for (o, v) in out.iter_mut().zip(v) {
            *o += (s - max).exp() / total * v;
        }
    }
    let natural = max + total.ln();
    match base {
        LogBase::Natural => (out, natural),
        LogBase::Two => (out, natural * std::f64::consts::LOG2_E),
    }
}

#[derive(Debug, Clone)]
struct Problem {
    dim: usize,
    /// Scores of each row, and the value vectors they weigh.
    rows: Vec<(Vec<f64>, Vec<f64>)>,
    /// `cuts[row]` splits the row's keys into shards; equal cuts make empty shards.
    cuts: Vec<Vec<usize>>,
}

fn problem() -> impl Strategy<Value = Problem> {
    (1usize..6, 1usize..5, 1usize..9).prop_flat_map(|(dim, rows, shards)| {
        let row = (1usize..24).prop_flat_map(move |keys| {
            (
                prop::collection::vec(-40.0f64..40.0, keys),
                prop::collection::vec(-3.0f64..3.0, keys * dim),
                prop::collection::vec(0..=keys, shards - 1),
            )
        });
        prop::collection::vec(row, rows).prop_map(move |rows| {
            let mut p = Problem {
                dim,
                rows: vec![],
                cuts: vec![],
            };
            for (scores, values, mut cuts) in rows {
                cuts.sort_unstable();
                cuts.insert(0, 0);
                cuts.push(scores.len());
                p.rows.push((scores, values));
                p.cuts.push(cuts);
            }
            p
        })
    })
}

/// Largest difference between the merge of the shards and attention over all the KV.
fn worst_error<T: Real>(p: &Problem, base: LogBase) -> f64 {
    let shards = p.cuts[0].len() - 1;
    let mut outs = vec![vec![]; shards];
    let mut lses = vec![vec![]; shards];
    for ((scores, values), cuts) in p.rows.iter().zip(&p.cuts) {
        for s in 0..shards {
            let (a, b) = (cuts[s], cuts[s + 1]);
            let (o, l) = attend(&scores[a..b], &values[a * p.dim..b * p.dim], p.dim, base);
            outs[s].extend(o.iter().map(|v| T::from_f64(*v)));
            lses[s].push(T::from_f64(l));
        }
    }
    let parts: Vec<_> = outs
        .iter()
        .zip(&lses)
        .map(|(out, lse)| Shard { out, lse })
        .collect();
    let merged = merge_by_lse(&parts, p.dim, base).unwrap();
    let mut worst = 0.0f64;
    for (r, (scores, values)) in p.rows.iter().enumerate() {
        let (out, lse) = attend(scores, values, p.dim, base);
        worst = worst.max((merged.lse[r].to_f64() - lse).abs());
        for (got, want) in merged.out[r * p.dim..].iter().zip(&out) {
            let diff = (got.to_f64() - want).abs();
            // A NaN must not slip through `max`.
            worst = if diff.is_nan() {
                f64::INFINITY
            } else {
                worst.max(diff)
            };
        }
    }
    worst
}

proptest! {
    #[test]
    fn merging_shards_equals_attention_over_all_the_kv(p in problem()) {
        for base in [LogBase::Natural, LogBase::Two] {
            prop_assert!(worst_error::<f64>(&p, base) < 1e-12);
            prop_assert!(worst_error::<f32>(&p, base) < 4e-5);
        }
    }

    #[test]
    fn the_wrong_base_is_not_the_same_answer(p in problem()) {
        // Guards the test above: where two shards of a row hold keys of different
        // weight, reading natural LSE as base 2 changes the result.
        let (out_a, out_b) = ([1.0f64], [0.0f64]);
        let lse = p.rows[0].0[0].abs() + 1.0;
        let parts = [Shard { out: &out_a, lse: &[lse] }, Shard { out: &out_b, lse: &[0.0] }];
        let e = merge_by_lse(&parts, 1, LogBase::Natural).unwrap();
        let two = merge_by_lse(&parts, 1, LogBase::Two).unwrap();
        prop_assert!(e.out[0] > two.out[0] || lse > 36.0);
    }
}

#[test]
fn empty_and_nan_shards_do_not_poison_the_others() {
    let nan = f32::NAN;
    for empty in [f32::NEG_INFINITY, nan, f32::INFINITY] {
        let parts = [
            Shard {
                out: &[nan, nan],
                lse: &[empty],
            },
            Shard {
                out: &[2.0, -4.0],
                lse: &[0.5],
            },
        ];
        let m = merge_by_lse(&parts, 2, LogBase::Natural).unwrap();
        assert_eq!(m.out, [2.0, -4.0]);
        assert_eq!(m.lse, [0.5]);
    }
}

#[test]
fn all_shards_empty_gives_zero_and_negative_infinity() {
    let parts = [Shard {
        out: &[f64::NAN],
        lse: &[f64::NEG_INFINITY],
    }; 3];
    let m = merge_by_lse(&parts, 1, LogBase::Two).unwrap();
    assert_eq!(m.out, [0.0]);
    assert_eq!(m.lse, [f64::NEG_INFINITY]);
}

#[test]
fn scores_far_outside_exp_range_still_merge() {
    // exp(1000) overflows; only differences may be exponentiated.
    let parts = [
        Shard {
            out: &[1.0f64],
            lse: &[1000.0],
        },
        Shard {
            out: &[3.0],
            lse: &[1000.0],
        },
    ];
    let m = merge_by_lse(&parts, 1, LogBase::Natural).unwrap();
    assert_eq!(m.out, [2.0]);
    assert!((m.lse[0] - (1000.0 + 2.0f64.ln())).abs() < 1e-12);
}

#[test]
fn misfit_shapes_are_named() {
    assert_eq!(
        merge_by_lse::<f32>(&[], 1, LogBase::Natural),
        Err(MergeError::NoShards)
    );
    let good = Shard {
        out: &[0.0f32, 0.0],
        lse: &[0.0],
    };
    let bad = Shard {
        out: &[0.0f32, 0.0, 0.0],
        lse: &[0.0],
    };
    let err = merge_by_lse(&[good, bad], 2, LogBase::Natural).unwrap_err();
    assert_eq!(
        err.to_string(),
        "shard 1 has 3 output values and 1 LSE values, with head dimension 2 and 1 rows \
         it must have 2 and 1"
    );
    assert_eq!(
        merge_by_lse(&[good], 0, LogBase::Two),
        Err(MergeError::ZeroDim)
    );
}
