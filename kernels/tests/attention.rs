//! The attention reference against attention over one contiguous KV, written out.

#![allow(clippy::unwrap_used)] // tests, helper functions included
use half::bf16;
use parplan_kernels::attention::{Kind, KvType, Shape, Shard};
use parplan_kernels::reference::{
    AttentionInputs, LogBase, Shard as Piece, attention, e4m3_to_f64, f32_to_e4m3, merge_by_lse,
};
use proptest::prelude::*;

/// A number between -2 and 2 that every (stream, index) has for itself.
fn noise(stream: u64, index: usize) -> f32 {
    let mut x = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ stream.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 29;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 32;
    (x >> 40) as f32 / (1u64 << 22) as f32 - 2.0
}

#[derive(Debug, Clone)]
struct Problem {
    kind: Kind,
    kv: KvType,
    page: usize,
    ranks: usize,
    interleave: usize,
    /// KV and query tokens of each request.
    requests: Vec<(usize, usize)>,
}

fn problem() -> impl Strategy<Value = Problem> {
    let kind = prop_oneof![
        (1usize..3, 1usize..4).prop_map(|(kv_heads, group)| Kind::Gqa {
            heads: kv_heads * group,
            kv_heads,
            head_dim: 64
        }),
        (1usize..3).prop_map(|heads| Kind::Mla { heads }),
    ];
    let kv = prop_oneof![Just(KvType::Bf16), Just(KvType::Fp8)];
    let request = (0usize..20, 0usize..4);
    (
        kind,
        kv,
        1usize..9,
        1usize..5,
        1usize..4,
        prop::collection::vec(request, 1..4),
    )
        .prop_map(|(kind, kv, page, ranks, interleave, requests)| Problem {
            kind,
            kv,
            page,
            ranks,
            interleave,
            requests,
        })
}

/// Stored bytes of a value, and what they mean.
fn store(kv: KvType, value: f32) -> (Vec<u8>, f64) {
    match kv {
        KvType::Bf16 => {
            let v = bf16::from_f32(value);
            (v.to_le_bytes().to_vec(), v.to_f64())
        }
        KvType::Fp8 => {
            let v = f32_to_e4m3(value);
            (vec![v], e4m3_to_f64(v))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn shards_merged_equal_attention_over_all_the_kv(p in problem()) {
        let mut shape = Shape::new(p.kind, p.kv, p.page);
        if p.kv == KvType::Fp8 {
            (shape.k_scale, shape.v_scale) = (0.5, 0.5);
        }
        shape.check().unwrap();
        let (heads, kv_heads, dim, value_dim) =
            (shape.heads(), shape.kv_heads(), shape.query_dim(), shape.value_dim());
        let mla = matches!(p.kind, Kind::Mla { .. });
        let value = |stream: u64, r: usize, pos: usize, head: usize, d: usize| {
            noise(stream, ((r * 64 + pos) * 8 + head) * 1024 + d)
        };
        let kv_lens: Vec<u32> = p.requests.iter().map(|r| r.0 as u32).collect();
        let mut query_offsets = vec![0u32];
        for r in &p.requests {
            query_offsets.push(query_offsets[query_offsets.len() - 1] + r.1 as u32);
        }
        let tokens = query_offsets[p.requests.len()] as usize;
        let q: Vec<bf16> = (0..tokens * heads * dim).map(|i| bf16::from_f32(noise(7, i))).collect();

        let mut outs = vec![];
        let mut lses = vec![];
        for rank in 0..p.ranks {
            let shard = Shard { rank, size: p.ranks, interleave: p.interleave };
            // Pages from the back, with one between that nobody may read.
            let max_pages = p.requests.iter().map(|r| shard.local_len(r.0).div_ceil(p.page)).max().unwrap();
            let total = p.requests.len() * max_pages + 1;
            let nan = vec![0xff; total * shape.page_bytes()];
            let (mut k, mut v) = (nan.clone(), nan);
            let mut table = vec![u32::MAX; p.requests.len() * max_pages];
            let mut next = total;
            for (r, (len, _)) in p.requests.iter().enumerate() {
                for pos in 0..*len {
                    let Some(local) = shard.place(pos) else { continue };
                    let slot = r * max_pages + local / p.page;
                    if table[slot] == u32::MAX {
                        next -= 1;
                        table[slot] = next as u32;
                    }
                    for head in 0..kv_heads {
                        for d in 0..dim {
                            let row = (table[slot] as usize * kv_heads + head) * p.page + local % p.page;
                            let at = (row * dim + d) * p.kv.size();
                            k[at..at + p.kv.size()].copy_from_slice(&store(p.kv, value(1, r, pos, head, d)).0);
                            v[at..at + p.kv.size()].copy_from_slice(&store(p.kv, value(2, r, pos, head, d)).0);
                        }
                    }
                }
            }
            let inputs = AttentionInputs {
                q: &q, k: &k, v: &v, page_table: &table, max_pages, kv_lens: &kv_lens, query_offsets: &query_offsets,
            };
            let part = attention(&shape, &shard, &inputs).unwrap();
            outs.push(part.out);
            lses.push(part.lse);
        }
        let pieces: Vec<Piece<'_, f64>> = outs.iter().zip(&lses).map(|(out, lse)| Piece { out, lse }).collect();
        let merged = merge_by_lse(&pieces, value_dim, LogBase::Natural).unwrap();

        for (r, (len, queries)) in p.requests.iter().enumerate() {
            for i in 0..*queries {
                for head in 0..heads {
                    let row = (query_offsets[r] as usize + i) * heads + head;
                    let kv_head = head * kv_heads / heads;
                    let seen = (len + i + 1).saturating_sub(*queries);
                    let weight: Vec<f64> = (0..seen).map(|pos| {
                        let dot: f64 = (0..dim).map(|d| {
                            q[row * dim + d].to_f64() * store(p.kv, value(1, r, pos, kv_head, d)).1
                        }).sum();
                        (dot * f64::from(shape.scale) * f64::from(shape.k_scale)).exp()
                    }).collect();
                    let total: f64 = weight.iter().sum();
                    let want_lse = total.ln();
                    prop_assert!(merged.lse[row] == want_lse || (merged.lse[row] - want_lse).abs() < 1e-9);
                    for d in 0..value_dim {
                        let stream = if mla { 1 } else { 2 };
                        let sum: f64 = (0..seen).map(|pos| weight[pos] * store(p.kv, value(stream, r, pos, kv_head, d)).1).sum();
                        let want = if seen == 0 { 0.0 } else { sum / total * f64::from(shape.v_scale) };
                        prop_assert!((merged.out[row * value_dim + d] - want).abs() < 1e-9);
                    }
                }
            }
        }
    }
}
