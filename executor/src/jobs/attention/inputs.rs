//! Inputs of an attention that every rank can compute for itself, and the check of its
//! result.

use half::bf16;
use parplan_kernels::reference::{AttentionInputs, attention, fill_word};

use super::AttentionJob;
use crate::attention::{Batch, Cache, Capacity, Kind, KvType, Shape, Shard};
use crate::{Device, Error, Result, View};

/// Caches in all: enough that repeated attentions do not find their KV in the GPU's cache.
const ROTATE_BYTES: usize = 512 << 20;
const MOST_SETS: usize = 8;
/// Products that the reference may take on one rank, in all.
const CHECK_PRODUCTS: usize = 60_000_000;

/// One rank's share of the inputs.
pub(super) struct Inputs {
    pub local: Shape,
    pub shard: Shard,
    pub capacity: Capacity,
    pub batch: Batch,
    /// Bytes of KV that an attention reads here.
    pub kv_bytes: u64,
    sets: Vec<Cache>,
    requests: Vec<(usize, usize)>,
    seed: u64,
    all: Shape,
}

/// A generator of its own for every purpose.
fn stream(seed: u64, purpose: u64, index: u64) -> u64 {
    u64::from_le_bytes(fill_word(
        seed ^ purpose.wrapping_mul(0xd6e8_feb8_6659_fd93),
        index,
        KvType::Bf16,
    ))
}

/// Pages in an order that the seed decides; the same as a walk over all of them.
fn scattered(pages: usize, seed: u64, rank: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..pages as u32).collect();
    for i in (1..pages).rev() {
        let x = stream(seed, 5 + rank as u64, i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        order.swap(i, (x >> 16) as usize % (i + 1));
    }
    order
}

/// Where the pages of each request lie on a rank.
fn page_table(
    shape: &Shape,
    shard: Shard,
    requests: &[(usize, usize)],
    seed: u64,
) -> (Vec<u32>, usize, usize) {
    let pages_of = |kv: usize| shard.local_len(kv).div_ceil(shape.page);
    let total: usize = requests.iter().map(|r| pages_of(r.0)).sum();
    let max_pages = requests
        .iter()
        .map(|r| pages_of(r.0))
        .max()
        .unwrap_or(0)
        .max(1);
    let order = scattered(total, seed, shard.rank);
    let mut next = order.into_iter();
    // A page that may not be read: no cache is that large.
    let mut table = vec![u32::MAX >> 1; requests.len() * max_pages];
    for (r, (kv, _)) in requests.iter().enumerate() {
        for (slot, page) in table[r * max_pages..]
            .iter_mut()
            .zip(next.by_ref().take(pages_of(*kv)))
        {
            *slot = page;
        }
    }
    (table, max_pages, total.max(1))
}

fn kv_seed(seed: u64, rank: usize, set: usize, values: bool) -> u64 {
    stream(
        seed,
        1,
        (rank * MOST_SETS + set) as u64 * 2 + u64::from(values),
    )
}

fn unusable(why: String) -> Error {
    Error::Unusable(format!("attention: {why}"))
}

/// Shapes that kernels run, of requests that page numbers can tell apart.
fn check_shapes(job: &AttentionJob, shard: Shard) -> Result<()> {
    let (all, requests) = (job.shape, &job.requests);
    all.check().map_err(|e| unusable(e.to_string()))?;
    shard.check().map_err(|e| unusable(e.to_string()))?;
    if !all.heads().is_multiple_of(shard.size) {
        return Err(unusable(format!(
            "{} query heads do not divide over {} ranks",
            all.heads(),
            shard.size
        )));
    }
    if let Some((kv, queries)) = requests.iter().find(|(kv, queries)| queries > kv) {
        return Err(unusable(format!(
            "a request of {kv} KV tokens cannot have {queries} query tokens among them"
        )));
    }
    // Page numbers are u32, and one of them means none.
    let most = u64::from(u32::MAX >> 1);
    let needed: u64 = requests
        .iter()
        .map(|r| shard.local_len(r.0).div_ceil(all.page) as u64)
        .fold(0, u64::saturating_add);
    if needed >= most {
        return Err(unusable(format!(
            "the KV cache would have {needed} pages; fewer than {most} can be told apart: \
             shorten --context, or lessen --batch"
        )));
    }
    Ok(())
}

impl Inputs {
    pub fn new(
        device: &dyn Device,
        on_gpu: bool,
        job: &AttentionJob,
        shard: Shard,
    ) -> Result<Self> {
        check_shapes(job, shard)?;
        let (all, requests) = (job.shape, job.requests.clone());
        let (table, max_pages, pages) = page_table(&all, shard, &requests, job.seed);
        let mut offsets = vec![0u32];
        let mut tokens = 0usize;
        for r in &requests {
            tokens += r.1;
            offsets.push(
                u32::try_from(tokens)
                    .map_err(|_| unusable(format!("{tokens} query tokens are too many")))?,
            );
        }
        let lens: Vec<u32> = requests
            .iter()
            .map(|r| {
                u32::try_from(r.0)
                    .map_err(|_| unusable(format!("a context of {} tokens is too long", r.0)))
            })
            .collect::<Result<_>>()?;
        let max_query = requests.iter().map(|r| r.1).max().unwrap_or(0);

        let words = |name: &str, values: &[u32]| -> Result<View> {
            let buffer = device.alloc(name, values.len() * 4)?;
            device.write(&buffer.all(), bytemuck::cast_slice(values))?;
            Ok(buffer.all())
        };
        let batch = Batch {
            requests: requests.len(),
            tokens,
            max_query,
            max_pages,
            page_table: words("page table", &table)?,
            kv_lens: words("KV lengths", &lens)?,
            query_offsets: words("query offsets", &offsets)?,
        };
        let held: usize = requests.iter().map(|r| shard.local_len(r.0)).sum();
        let kv_bytes = held * all.token_bytes();
        let sets = match on_gpu {
            true => ROTATE_BYTES.div_ceil(kv_bytes.max(1)).clamp(1, MOST_SETS),
            false => 1,
        };
        let cache_bytes = (pages * all.page_bytes()).next_multiple_of(8 * all.page_bytes());
        let mut caches = Vec::with_capacity(sets);
        for set in 0..sets {
            let fill = |name: &str, values: bool| -> Result<View> {
                let view = device.alloc(name, cache_bytes)?.all();
                device.fill_values(&view, all.kv, kv_seed(job.seed, shard.rank, set, values))?;
                Ok(view)
            };
            let k = fill("keys", false)?;
            let v = match all.kind {
                Kind::Mla { .. } => k.clone(),
                Kind::Gqa { .. } => fill("values", true)?,
            };
            caches.push(Cache { k, v });
        }
        Ok(Inputs {
            local: all.with_heads(all.heads() / shard.size),
            shard,
            capacity: Capacity {
                requests: requests.len(),
                tokens,
                max_query,
            },
            batch,
            kv_bytes: kv_bytes as u64,
            sets: caches,
            requests,
            seed: job.seed,
            all,
        })
    }

    pub fn cache(&self, round: usize) -> &Cache {
        &self.sets[round % self.sets.len()]
    }

    /// The query of a token and a head of all ranks.
    fn query(&self, token: usize, head: usize) -> Vec<u8> {
        let words = self.all.query_dim() / 4;
        let first = (token * self.all.heads() + head) * words;
        let seed = stream(self.seed, 2, 0);
        (first..first + words)
            .flat_map(|w| fill_word(seed, w as u64, KvType::Bf16))
            .collect()
    }

    /// This rank's queries, or those of all ranks.
    pub fn write_queries(&self, device: &dyn Device, q: &View, all: bool) -> Result<()> {
        let heads = match all {
            true => 0..self.all.heads(),
            false => {
                let each = self.local.heads();
                self.shard.rank * each..(self.shard.rank + 1) * each
            }
        };
        let bytes: Vec<u8> = (0..self.batch.tokens)
            .flat_map(|t| heads.clone().flat_map(move |h| self.query(t, h)))
            .collect();
        device.write(q, &bytes)
    }

    /// Every element was written, and some rows are those of the reference over the KV of
    /// all ranks. The relative error over those rows.
    pub fn check(
        &self,
        job: &AttentionJob,
        device: &dyn Device,
        out: &View,
        lse: &View,
    ) -> Result<Option<f64>> {
        let out: Vec<bf16> = device
            .read(out)?
            .chunks_exact(2)
            .map(bytemuck::pod_read_unaligned)
            .collect();
        let lse: Vec<f32> = device
            .read(lse)?
            .chunks_exact(4)
            .map(bytemuck::pod_read_unaligned)
            .collect();
        let (heads, dim) = (self.local.heads(), self.local.value_dim());
        if let Some(at) = out.iter().position(|v| v.is_nan()) {
            return Err(Error::Wrong(format!(
                "token {}, head {} on rank {}: element {} of the output is NaN or was not written",
                at / dim / heads,
                at / dim % heads,
                self.shard.rank,
                at % dim
            )));
        }
        if !job.check || out.is_empty() {
            return Ok(None);
        }
        let tables: Vec<_> = (0..self.shard.size)
            .map(|rank| {
                let shard = Shard { rank, ..self.shard };
                page_table(&self.all, shard, &self.requests, self.seed)
            })
            .collect();
        let (mut error, mut norm, mut left) = (0.0, 0.0, CHECK_PRODUCTS);
        let tokens: Vec<(usize, usize)> = self
            .requests
            .iter()
            .enumerate()
            .flat_map(|(r, &(_, queries))| (0..queries).map(move |i| (r, i)))
            .collect();
        for sample in 0.. {
            // First and last token, then anywhere.
            let token = match sample {
                0 => 0,
                1 => tokens.len() - 1,
                n => stream(job.seed, 3, n as u64) as usize % tokens.len(),
            };
            let head = stream(job.seed, 4, sample as u64) as usize % heads;
            let (request, i) = tokens[token];
            let cost = self.requests[request].0 * (self.all.query_dim() + dim);
            if sample >= 2 && (cost > left || sample >= 64) {
                break;
            }
            left = left.saturating_sub(cost);
            let (want, want_lse) = self.reference(&tables, request, i, token, head)?;
            let row = token * heads + head;
            let got_lse = f64::from(lse[row]);
            // Both may be infinite; NaN is never near.
            let near = got_lse == want_lse || (got_lse - want_lse).abs() < 1e-2;
            if !near {
                return Err(Error::Wrong(format!(
                    "token {token}, head {head} on rank {}: LSE {got_lse}, the reference says {want_lse}",
                    self.shard.rank
                )));
            }
            for (got, want) in out[row * dim..].iter().zip(&want) {
                error += (got.to_f64() - want).powi(2);
                norm += want * want;
            }
        }
        let relative = if norm > 0.0 {
            (error / norm).sqrt()
        } else {
            error.sqrt()
        };
        if relative < TOLERANCE {
            return Ok(Some(relative));
        }
        Err(Error::Wrong(format!(
            "rank {}: relative error {relative:.2e} against the float64 reference, it must be below {TOLERANCE}",
            self.shard.rank
        )))
    }

    /// One query row over the whole KV of its request, gathered from the seeds of all ranks.
    fn reference(
        &self,
        tables: &[(Vec<u32>, usize, usize)],
        request: usize,
        i: usize,
        token: usize,
        head: usize,
    ) -> Result<(Vec<f64>, f64)> {
        let (kv_len, queries) = self.requests[request];
        let seen = kv_len - queries + i + 1;
        let head = self.shard.rank * self.local.heads() + head;
        let kv_head = head / (self.all.heads() / self.all.kv_heads());
        let row_bytes = self.all.stored_dim() * self.all.kv.size();
        let (mut k, mut v) = (Vec::new(), Vec::new());
        let shards: Vec<Shard> = (0..self.shard.size)
            .map(|rank| Shard { rank, ..self.shard })
            .collect();
        for pos in 0..seen {
            for shard in &shards {
                let Some(local) = shard.place(pos) else {
                    continue;
                };
                let (table, max_pages, _) = &tables[shard.rank];
                let page = table[request * max_pages + local / self.all.page] as usize;
                let row =
                    (page * self.all.kv_heads() + kv_head) * self.all.page + local % self.all.page;
                let words = (row * row_bytes / 8) as u64..((row + 1) * row_bytes / 8) as u64;
                for (to, values) in [(&mut k, false), (&mut v, true)] {
                    let seed = kv_seed(self.seed, shard.rank, 0, values);
                    to.extend(words.clone().flat_map(|w| fill_word(seed, w, self.all.kv)));
                }
            }
        }
        // One request of one head, in one page.
        let kind = match self.all.kind {
            Kind::Gqa { head_dim, .. } => Kind::Gqa {
                heads: 1,
                kv_heads: 1,
                head_dim,
            },
            Kind::Mla { .. } => Kind::Mla { heads: 1 },
        };
        let shape = Shape {
            kind,
            page: seen,
            ..self.all
        };
        let q: Vec<bf16> = self
            .query(token, head)
            .chunks_exact(2)
            .map(bytemuck::pod_read_unaligned)
            .collect();
        let result = attention(
            &shape,
            &Shard::WHOLE,
            &AttentionInputs {
                q: &q,
                k: &k,
                v: &v,
                page_table: &[0],
                max_pages: 1,
                kv_lens: &[seen as u32],
                query_offsets: &[0, 1],
            },
        )
        .map_err(|e| Error::Wrong(e.to_string()))?;
        Ok((
            result.out,
            result.lse.first().copied().unwrap_or(f64::NEG_INFINITY),
        ))
    }
}

/// Largest relative error of outputs in bf16, and of fp8 KV against the reference over
/// the same stored values: what the cache's own rounding costs is not counted.
const TOLERANCE: f64 = 1e-2;
