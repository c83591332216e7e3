//! What a step works on: requests, their pages, positions and input rows, in device
//! memory that captured graphs read again at every replay.

use std::f64::consts::PI;

use super::compute::Compute;
use super::place::Place;
use super::spec::{Format, StackSpec};
use super::tensors::{Name, POSITIONS, REQUESTS, input, tensor};
use super::weights::Layer;
use crate::{Buffer, Error, Result};

/// The paged cache of one layer.
#[derive(Debug)]
pub struct Cache {
    /// Keys, or latent rows.
    pub keys: Buffer,
    /// Values; empty where latent.
    pub values: Buffer,
}

/// How much of a request a rank holds, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    /// Requests that there are pages for.
    pub requests: usize,
    /// Pages of each.
    pub pages: usize,
    /// Tokens of a page.
    pub page_size: usize,
    /// This rank's share of the positions.
    pub rank: usize,
    /// Ranks that share them.
    pub ranks: usize,
    /// Consecutive positions of one rank.
    pub interleave: usize,
}

impl Paging {
    /// Pages for `requests` requests of `tokens` tokens.
    #[must_use]
    pub fn new(spec: &StackSpec, place: &Place, requests: usize, tokens: usize) -> Self {
        let mut paging = Paging {
            requests,
            pages: 1,
            page_size: spec.page_size,
            rank: place.dcp,
            ranks: spec.shard_of.dcp,
            interleave: spec.dcp_interleave,
        };
        paging.pages = paging.held(tokens).div_ceil(spec.page_size).max(1);
        paging
    }

    /// Positions below `end` that this rank holds.
    #[must_use]
    pub fn held(&self, end: usize) -> usize {
        let round = self.interleave * self.ranks;
        let rest = (end % round).saturating_sub(self.rank * self.interleave);
        end / round * self.interleave + rest.min(self.interleave)
    }

    /// Which of this rank's tokens position `p` is; none where another rank holds it.
    #[must_use]
    pub fn local(&self, p: usize) -> Option<usize> {
        (p / self.interleave % self.ranks == self.rank)
            .then(|| p / (self.interleave * self.ranks) * self.interleave + p % self.interleave)
    }

    /// Slots of the cache.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.requests * self.pages * self.page_size
    }

    /// The page behind entry `i` of request `r`: scattered, as in a server that has run
    /// for a while.
    #[must_use]
    pub fn page(&self, r: usize, i: usize) -> usize {
        let all = self.requests * self.pages;
        let mut step = (all as f64 * 0.618) as usize | 1;
        while gcd(step, all) != 1 {
            step += 2;
        }
        (r * self.pages + i) * step % all
    }

    /// The slot of this rank's token `local` of request `r`.
    #[must_use]
    pub fn slot(&self, r: usize, local: usize) -> usize {
        self.page(r, local / self.page_size) * self.page_size + local % self.page_size
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The number of a token among the synthetic rows.
#[must_use]
pub(crate) fn token(dp: usize, request: usize, position: usize) -> u64 {
    ((dp * REQUESTS + request) * POSITIONS + position) as u64
}

/// The number of a token's cached row of a KV head.
#[must_use]
pub(crate) fn cached_row(token: u64, head: usize) -> u64 {
    token << 10 | head as u64
}

/// Checks that tokens have numbers of their own.
pub(super) fn check_size(requests: usize, tokens: usize, dp: usize) -> Result<()> {
    if requests > REQUESTS || tokens > POSITIONS || dp > 8 {
        return Err(Error::Unusable(format!(
            "{requests} requests of {tokens} tokens on each of {dp} DP ranks: at most {REQUESTS} of {POSITIONS} on 8"
        )));
    }
    Ok(())
}

impl Cache {
    /// The cache of a layer, filled with what `position`s of each request hold.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(
        device: &dyn Compute,
        spec: &StackSpec,
        layer: &Layer,
        paging: &Paging,
    ) -> Result<Self> {
        let slots = paging.slots() * layer.mixer.kv_heads() * spec.kv.bytes();
        let keys = device.alloc("KV cache", slots * layer.mixer.qk_dim())?;
        let values = match layer.mixer {
            super::place::MixerShape::Mla { .. } => 0,
            super::place::MixerShape::Gqa { .. } => slots * layer.mixer.out_dim(),
        };
        Ok(Cache {
            keys,
            values: device.alloc("KV cache", values)?,
        })
    }

    /// Writes the synthetic keys and values of every position into their slots.
    ///
    /// # Errors
    /// A device error.
    pub fn fill(
        &self,
        device: &dyn Compute,
        spec: &StackSpec,
        place: &Place,
        (index, layer): (usize, &Layer),
        paging: &Paging,
    ) -> Result<()> {
        use super::place::MixerShape;
        let (kv_heads, first) = match layer.mixer {
            MixerShape::Gqa {
                kv_heads, first_kv, ..
            } => (kv_heads, first_kv),
            MixerShape::Mla { .. } => (1, 0),
        };
        let page = paging.page_size;
        let mut rows = vec![0; paging.slots() * kv_heads];
        let unit = paging.interleave;
        for r in 0..paging.requests {
            for i in 0..paging.pages {
                let begin = paging.page(r, i) * kv_heads * page;
                for offset in 0..page {
                    let local = i * page + offset;
                    let p = local / unit * unit * paging.ranks + paging.rank * unit + local % unit;
                    for head in 0..kv_heads {
                        rows[begin + head * page + offset] =
                            cached_row(token(place.dp, r, p), first + head);
                    }
                }
            }
        }
        for (buffer, name) in [
            (&self.keys, Name::CachedKey),
            (&self.values, Name::CachedValue),
        ] {
            if buffer.is_empty() {
                continue;
            }
            let what = tensor(spec.seed, index, name, layer.mixer.qk_dim());
            device.synthetic(&buffer.all(), spec.kv, 1.0, &what, &rows)?;
        }
        Ok(())
    }
}

/// Requests of one rank in one step, padding ones behind the real ones.
#[derive(Debug)]
pub struct Batch {
    /// Requests, padding included.
    pub slots: usize,
    /// New tokens of each.
    pub q_tokens: usize,
    /// u32 `[slots, pages]`
    pub table: Buffer,
    /// u32 `[slots]`
    pub lengths: Buffer,
    /// u32 `[slots + 1]`
    pub offsets: Buffer,
    /// i32 `[rows]`
    pub cache_slots: Buffer,
    /// f32 `[rows, rope dim]`, for each rotary width of the stack.
    pub cos_sin: Vec<(usize, Buffer)>,
    /// bf16 `[rows, hidden]`
    pub input: Buffer,
}

impl Batch {
    /// Memory for `slots` requests of `q_tokens` tokens.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(
        device: &dyn Compute,
        spec: &StackSpec,
        layers: &[Layer],
        paging: &Paging,
        slots: usize,
        q_tokens: usize,
    ) -> Result<Self> {
        let rows = slots * q_tokens;
        let mut widths: Vec<usize> = layers.iter().map(|l| l.mixer.rope_dim()).collect();
        widths.sort_unstable();
        widths.dedup();
        let cos_sin = widths
            .into_iter()
            .map(|w| Ok((w, device.alloc("cosines and sines", rows * w * 4)?)))
            .collect::<Result<_>>()?;
        Ok(Batch {
            slots,
            q_tokens,
            table: device.alloc("page table", slots * paging.pages * 4)?,
            lengths: device.alloc("lengths", slots * 4)?,
            offsets: device.alloc("query offsets", (slots + 1) * 4)?,
            cache_slots: device.alloc("cache slots", rows * 4)?,
            cos_sin,
            input: device.alloc("input rows", rows * spec.hidden * 2)?,
        })
    }

    /// Rows, padding included.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.slots * self.q_tokens
    }

    /// Puts `requests` requests with `context` cached tokens each into the batch. Padding
    /// requests have rows of their own, so that they choose experts as real ones do, and
    /// see and write nothing.
    ///
    /// # Errors
    /// A device error.
    pub fn write(
        &self,
        device: &dyn Compute,
        spec: &StackSpec,
        place: &Place,
        paging: &Paging,
        (requests, context): (usize, usize),
    ) -> Result<()> {
        let q = self.q_tokens;
        let mut table = Vec::with_capacity(self.slots * paging.pages);
        let mut lengths = Vec::with_capacity(self.slots);
        let (mut cache_slots, mut numbers) = (Vec::new(), Vec::new());
        let mut positions = Vec::new();
        for r in 0..self.slots {
            // Padding requests name the pages of the first one, which they never read.
            let real = r < requests;
            table
                .extend((0..paging.pages).map(|i| paging.page(if real { r } else { 0 }, i) as u32));
            lengths.push(if real { (context + q) as u32 } else { 0 });
            for j in 0..q {
                let p = context + j;
                let local = paging.local(p).filter(|_| real);
                cache_slots.push(local.map_or(-1, |l| paging.slot(r, l) as i32));
                numbers.push(token(place.dp, r, p));
                positions.push(p);
            }
        }
        device.write(&self.table.all(), bytemuck::cast_slice(&table))?;
        device.write(&self.lengths.all(), bytemuck::cast_slice(&lengths))?;
        let offsets: Vec<u32> = (0..=self.slots).map(|r| (r * q) as u32).collect();
        device.write(&self.offsets.all(), bytemuck::cast_slice(&offsets))?;
        device.write(&self.cache_slots.all(), bytemuck::cast_slice(&cache_slots))?;
        for (width, buffer) in &self.cos_sin {
            let values: Vec<f32> = positions
                .iter()
                .flat_map(|p| cos_sin(*p, *width, spec.rope_theta))
                .collect();
            device.write(&buffer.all(), bytemuck::cast_slice(&values))?;
        }
        let what = input(spec.seed, spec.hidden);
        device.synthetic(&self.input.all(), Format::Bf16, 1.0, &what, &numbers)
    }

    /// Cosines and sines for a rotary width.
    ///
    /// # Errors
    /// [`Error::Arguments`] for a width that no layer has.
    pub fn turns(&self, width: usize) -> Result<&Buffer> {
        let found = self.cos_sin.iter().find(|(w, _)| *w == width);
        found.map(|(_, b)| b).ok_or_else(|| Error::Arguments {
            op: "rotary embedding",
            why: format!("no cosines of width {width} were made"),
        })
    }
}

/// `width / 2` cosines, then as many sines, of a position.
#[must_use]
pub(crate) fn cos_sin(position: usize, width: usize, theta: f32) -> Vec<f32> {
    let half = width / 2;
    let angle = |i: usize| {
        let frequency = f64::from(theta).powf(-2.0 * i as f64 / width as f64);
        // Reduced first: large angles lose nothing.
        (position as f64 * frequency) % (2.0 * PI)
    };
    (0..half)
        .map(|i| angle(i).cos() as f32)
        .chain((0..half).map(|i| angle(i).sin() as f32))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paging(rank: usize, ranks: usize, interleave: usize) -> Paging {
        Paging {
            requests: 3,
            pages: 5,
            page_size: 4,
            rank,
            ranks,
            interleave,
        }
    }

    #[test]
    fn every_position_is_held_by_one_rank_in_order() {
        for (ranks, interleave) in [(1, 1), (2, 1), (4, 1), (2, 3), (3, 16)] {
            for p in 0..200 {
                let holders: Vec<usize> = (0..ranks)
                    .filter(|r| paging(*r, ranks, interleave).local(p).is_some())
                    .collect();
                assert_eq!(holders.len(), 1);
                let of = paging(holders[0], ranks, interleave);
                assert_eq!(
                    of.local(p),
                    Some(of.held(p)),
                    "{p} of {ranks}, {interleave}"
                );
            }
        }
    }

    #[test]
    fn no_two_tokens_share_a_slot() {
        let paging = paging(0, 1, 1);
        let mut slots: Vec<usize> = (0..3)
            .flat_map(|r| (0..20).map(move |t| (r, t)))
            .map(|(r, t)| paging.slot(r, t))
            .collect();
        slots.sort_unstable();
        assert_eq!(slots, (0..60).collect::<Vec<_>>());
    }
}
