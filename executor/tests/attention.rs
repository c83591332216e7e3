//! Shared attention on the CPU backend: any number of ranks equals one rank with all KV.

#![allow(clippy::unwrap_used)] // tests, helper functions included
use half::bf16;
use parplan_executor::attention::{
    Batch, Cache, Capacity, DcpAttention, Gather, Kind, KvType, Merge, Shape, Shard,
};
use parplan_executor::comm::{CpuCommunicator, LocalWorld};
use parplan_executor::{Buffer, CpuDevice, Device};
use parplan_kernels::reference::f32_to_e4m3;

fn noise(stream: u64, index: usize) -> f32 {
    let mut x = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ stream.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 29;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 32;
    (x >> 40) as f32 / (1u64 << 22) as f32 - 2.0
}

#[derive(Clone)]
struct Problem {
    /// With the query heads of all ranks.
    all: Shape,
    interleave: usize,
    /// KV and query tokens of each request.
    requests: Vec<(usize, usize)>,
}

impl Problem {
    fn tokens(&self) -> usize {
        self.requests.iter().map(|r| r.1).sum()
    }

    fn query(&self, token: usize, head: usize) -> Vec<bf16> {
        let dim = self.all.query_dim();
        (0..dim)
            .map(|d| bf16::from_f32(noise(3, (token * 64 + head) * 1024 + d)))
            .collect()
    }

    /// Batch and cache of one rank. Pages are handed out from the back.
    fn on(&self, device: &CpuDevice, shard: Shard) -> (Batch, Cache) {
        let (shape, requests) = (&self.all, self.requests.len());
        let max_pages = self
            .requests
            .iter()
            .map(|r| shard.local_len(r.0).div_ceil(shape.page))
            .max()
            .unwrap()
            + 1;
        let total = requests * max_pages;
        let mut k = vec![0xff; total * shape.page_bytes()];
        let mut v = k.clone();
        let mut table = vec![u32::MAX; total];
        let mut next = total as u32;
        for (r, (len, _)) in self.requests.iter().enumerate() {
            for pos in 0..*len {
                let Some(local) = shard.place(pos) else {
                    continue;
                };
                let slot = r * max_pages + local / shape.page;
                if local % shape.page == 0 {
                    next -= 1;
                    table[slot] = next;
                }
                for head in 0..shape.kv_heads() {
                    let row = (table[slot] as usize * shape.kv_heads() + head) * shape.page
                        + local % shape.page;
                    for d in 0..shape.stored_dim() {
                        let index = ((r * 128 + pos) * 8 + head) * 1024 + d;
                        let at = (row * shape.stored_dim() + d) * shape.kv.size();
                        for (cache, stream) in [(&mut k, 1), (&mut v, 2)] {
                            match shape.kv {
                                KvType::Bf16 => cache[at..at + 2].copy_from_slice(
                                    &bf16::from_f32(noise(stream, index)).to_le_bytes(),
                                ),
                                KvType::Fp8 => cache[at] = f32_to_e4m3(noise(stream, index)),
                            }
                        }
                    }
                }
            }
        }
        let put = |name: &str, bytes: &[u8]| {
            let buffer = device.alloc(name, bytes.len()).unwrap();
            device.write(&buffer.all(), bytes).unwrap();
            buffer.all()
        };
        let words = |name: &str, values: &[u32]| put(name, bytemuck::cast_slice(values));
        let mut offsets = vec![0u32];
        for r in &self.requests {
            offsets.push(offsets.last().unwrap() + r.1 as u32);
        }
        let lens: Vec<u32> = self.requests.iter().map(|r| r.0 as u32).collect();
        let batch = Batch {
            requests,
            tokens: self.tokens(),
            max_query: self.requests.iter().map(|r| r.1).max().unwrap(),
            max_pages,
            page_table: words("page table", &table),
            kv_lens: words("lengths", &lens),
            query_offsets: words("offsets", &offsets),
        };
        let k = put("keys", &k);
        let v = if matches!(shape.kind, Kind::Mla { .. }) {
            k.clone()
        } else {
            put("values", &v)
        };
        (batch, Cache { k, v })
    }

    /// Output and LSE of one rank's heads, as `[tokens, heads, dim]` and `[tokens, heads]`.
    fn run(
        &self,
        comm: &mut CpuCommunicator,
        ranks: usize,
        rank: usize,
        gather: Gather,
        merge: Merge,
    ) -> (Vec<bf16>, Vec<f32>) {
        let device = CpuDevice::new();
        let shard = Shard {
            rank,
            size: ranks,
            interleave: self.interleave,
        };
        let heads = self.all.heads() / ranks;
        let local = self.all.with_heads(heads);
        let (batch, cache) = self.on(&device, shard);
        let capacity = Capacity {
            requests: batch.requests,
            tokens: batch.tokens + 3,
            max_query: batch.max_query,
        };
        let mut alloc = |name: &str, bytes: usize| -> parplan_executor::Result<Buffer> {
            device.alloc(name, bytes)
        };
        let dcp = DcpAttention::new(
            &device, &local, shard, capacity, gather, merge, None, &mut alloc,
        )
        .unwrap();
        let mine = match gather {
            Gather::Replicated => 0..self.all.heads(),
            _ => rank * heads..(rank + 1) * heads,
        };
        let q: Vec<bf16> = (0..batch.tokens)
            .flat_map(|t| mine.clone().flat_map(move |h| self.query(t, h)))
            .collect();
        let q_buffer = device.alloc("q", q.len() * 2).unwrap();
        device
            .write(&q_buffer.all(), bytemuck::cast_slice(&q))
            .unwrap();
        let out = device
            .alloc("out", batch.tokens * heads * self.all.value_dim() * 2)
            .unwrap();
        let lse = device.alloc("lse", batch.tokens * heads * 4).unwrap();
        dcp.plan(&device, &batch).unwrap();
        dcp.run(
            &device,
            comm,
            &batch,
            &cache,
            &q_buffer.all(),
            &out.all(),
            &lse.all(),
        )
        .unwrap();
        let out = device.read(&out.all()).unwrap();
        let lse = device.read(&lse.all()).unwrap();
        (
            out.chunks_exact(2)
                .map(bytemuck::pod_read_unaligned)
                .collect(),
            lse.chunks_exact(4)
                .map(bytemuck::pod_read_unaligned)
                .collect(),
        )
    }

    /// All heads of all ranks, `[tokens, all heads, …]`.
    fn over(&self, ranks: usize, gather: Gather, merge: Merge) -> (Vec<bf16>, Vec<f32>) {
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = LocalWorld::connect(ranks)
                .unwrap()
                .into_iter()
                .enumerate()
                .map(|(rank, mut comm)| {
                    scope.spawn(move || self.run(&mut comm, ranks, rank, gather, merge))
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let heads = self.all.heads() / ranks;
        let row = heads * self.all.value_dim();
        let (mut out, mut lse) = (vec![], vec![]);
        for token in 0..self.tokens() {
            for (o, l) in &results {
                out.extend_from_slice(&o[token * row..(token + 1) * row]);
                lse.extend_from_slice(&l[token * heads..(token + 1) * heads]);
            }
        }
        (out, lse)
    }
}

fn relative_error(got: &[bf16], want: &[bf16]) -> f64 {
    let (mut error, mut norm) = (0.0, 0.0);
    for (g, w) in got.iter().zip(want) {
        error += (g.to_f64() - w.to_f64()).powi(2);
        norm += w.to_f64().powi(2);
    }
    // NaN must not pass.
    if error.is_nan() {
        f64::INFINITY
    } else {
        (error / norm.max(1e-30)).sqrt()
    }
}

fn hold(problem: &Problem) {
    let (want, want_lse) = problem.over(1, Gather::Communicator, Merge::AgRs);
    for ranks in [2, 4, 8] {
        for (gather, merge) in [
            (Gather::Communicator, Merge::AgRs),
            (Gather::Communicator, Merge::AllToAll),
            (Gather::Replicated, Merge::AgRs),
            (Gather::Replicated, Merge::AllToAll),
        ] {
            let (out, lse) = problem.over(ranks, gather, merge);
            assert_eq!(out.len(), want.len());
            let error = relative_error(&out, &want);
            assert!(
                error < 1e-2,
                "{ranks} ranks, {gather:?}, {merge:?}: relative error {error}"
            );
            for (row, (got, want)) in lse.iter().zip(&want_lse).enumerate() {
                assert!(
                    got == want || (got - want).abs() < 1e-4,
                    "{ranks} ranks, row {row}: LSE {got}, must be {want}"
                );
            }
        }
    }
}

fn gqa(kv: KvType, page: usize) -> Shape {
    let kind = Kind::Gqa {
        heads: 16,
        kv_heads: 2,
        head_dim: 64,
    };
    Shape::new(kind, kv, page)
}

#[test]
fn uneven_lengths_and_empty_shards() {
    // With 8 ranks the request of 3 KV tokens is on three of them.
    hold(&Problem {
        all: gqa(KvType::Bf16, 4),
        interleave: 1,
        requests: vec![(3, 1), (61, 1), (1, 1), (17, 1)],
    });
}

#[test]
fn several_query_tokens_and_an_interleave() {
    hold(&Problem {
        all: gqa(KvType::Bf16, 3),
        interleave: 5,
        requests: vec![(40, 4), (7, 7), (23, 1), (30, 0), (0, 2)],
    });
}

#[test]
fn mla_and_fp8() {
    let mla = Shape::new(Kind::Mla { heads: 8 }, KvType::Bf16, 16);
    hold(&Problem {
        all: mla,
        interleave: 2,
        requests: vec![(20, 2), (5, 1)],
    });
    let mut fp8 = gqa(KvType::Fp8, 16);
    (fp8.k_scale, fp8.v_scale) = (0.5, 0.25);
    hold(&Problem {
        all: fp8,
        interleave: 1,
        requests: vec![(33, 3), (9, 1)],
    });
}

#[test]
fn what_does_not_fit_is_named() {
    let device = CpuDevice::new();
    let problem = Problem {
        all: gqa(KvType::Bf16, 4),
        interleave: 1,
        requests: vec![(8, 1)],
    };
    let (batch, cache) = problem.on(&device, Shard::WHOLE);
    let capacity = Capacity {
        requests: 1,
        tokens: 1,
        max_query: 1,
    };
    let workspace = device.attention_workspace(&problem.all, capacity).unwrap();
    let mut larger = batch.clone();
    larger.requests = 2;
    let error = device
        .plan_attention(&problem.all, &Shard::WHOLE, &larger, &workspace)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "attention: 2 requests, the workspace was made for at most 1"
    );
    let other = gqa(KvType::Fp8, 4);
    assert!(
        device
            .plan_attention(&other, &Shard::WHOLE, &batch, &workspace)
            .is_err()
    );
    // A page that the cache does not have is noticed on the CPU.
    device
        .write(&batch.page_table.sub(4, 4).unwrap(), &9u32.to_le_bytes())
        .unwrap();
    let out = device.alloc("out", 16 * 64 * 2).unwrap();
    let queries = parplan_executor::attention::Queries {
        q: out.all(),
        out: out.all(),
        lse: None,
        parts: parplan_executor::attention::Parts::WHOLE,
    };
    let error = device
        .attention(
            &problem.all,
            &Shard::WHOLE,
            &batch,
            &cache,
            &workspace,
            &queries,
        )
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "attention: request 0, KV token 4 on this rank: page 9, the cache has 3"
    );
}
