//! Launch description of the attention kernels; the mirror of `cuda/attention.cuh`.

use super::{Kind, KvType, Shape, Shard};

/// Mirror of `struct AttentionArgs` in `cuda/attention.cuh`, passed by value. Addresses
/// are of device memory; the arrays' shapes stand there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)] // described once, in the header
pub struct AttentionArgs {
    pub q: u64,
    pub k: u64,
    pub v: u64,
    pub out: u64,
    pub lse: u64,
    pub page_table: u64,
    pub kv_lens: u64,
    pub query_offsets: u64,
    pub plan: u64,
    pub partial_out: u64,
    pub partial_lse: u64,
    pub requests: u32,
    pub max_pages: u32,
    pub page: u32,
    pub page_shift: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub group: u32,
    pub rows: u32,
    pub unit_tokens: u32,
    pub chunks: u32,
    pub min_chunk: u32,
    pub max_tiles: u32,
    pub shard_rank: u32,
    pub shard_size: u32,
    pub interleave: u32,
    pub scale_log2: f32,
    pub v_scale: f32,
    pub tokens: u32,
    pub q_part_heads: u32,
    pub out_part_heads: u32,
    pub item_units: u32,
}

impl AttentionArgs {
    /// The part that follows from the shape and the shard; addresses and sizes are zero.
    #[must_use]
    pub fn of(shape: &Shape, shard: &Shard, kernel: &Kernel) -> Self {
        // The kernels read e4m3 as f16 that are 2^-8 of it.
        let (k_scale, v_scale) = match shape.kv {
            KvType::Bf16 => (1.0, 1.0),
            KvType::Fp8 => (shape.k_scale * 256.0, shape.v_scale * 256.0),
        };
        AttentionArgs {
            page: shape.page as u32,
            page_shift: if shape.page.is_power_of_two() {
                shape.page.trailing_zeros()
            } else {
                32
            },
            heads: shape.heads() as u32,
            kv_heads: shape.kv_heads() as u32,
            group: (shape.heads() / shape.kv_heads()) as u32,
            rows: kernel.rows,
            unit_tokens: kernel.unit_tokens,
            min_chunk: MIN_CHUNK,
            item_units: kernel.item_units,
            shard_rank: shard.rank as u32,
            shard_size: shard.size as u32,
            interleave: shard.interleave as u32,
            scale_log2: shape.scale * k_scale * std::f32::consts::LOG2_E,
            v_scale,
            q_part_heads: shape.heads() as u32,
            out_part_heads: shape.heads() as u32,
            ..AttentionArgs::default()
        }
    }
}

/// Fewest units of a chunk: shorter ones cost more in the merge than they save.
const MIN_CHUNK: u32 = 2;

/// Entry point of the plan kernel; one block. Arguments of all attention kernels: `(AttentionArgs)`.
pub const PLAN: &str = "parplan_attention_plan";
/// Threads of the plan kernel.
pub const PLAN_THREADS: u32 = 256;

/// How the merge of pieces is launched: `columns` times rows of a tile that may exist blocks of
/// `threads`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Combine {
    /// Blocks that share the items that were cut.
    pub columns: u32,
    /// Threads of a block.
    pub threads: u32,
}

impl Combine {
    /// For at most `items` items in `chunks` chunks, of tiles of which `rows` rows may exist.
    #[must_use]
    pub fn of(items: usize, chunks: usize, rows: usize) -> Self {
        // Blocks of 128 threads that a GPU of 132 multiprocessors runs in four turns; most of
        // them find nothing to do.
        const BLOCKS: usize = 8192;
        let many_pieces = items * 8 <= chunks;
        Combine {
            columns: items.min(chunks).min(BLOCKS / rows.max(1)).max(1) as u32,
            threads: if many_pieces { 256 } else { 128 },
        }
    }
}

/// One attention kernel and how it is launched: `chunks * blocks_per_chunk` blocks of
/// `threads`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Entry point.
    pub name: &'static str,
    /// Entry point of the merge that follows it.
    pub combine: &'static str,
    /// Rows of a query tile: query tokens times query heads of a KV head.
    pub rows: u32,
    /// KV tokens of a unit.
    pub unit_tokens: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, bytes.
    pub shared: u32,
    /// Blocks that are resident on a multiprocessor at once.
    pub resident: u32,
    /// Blocks of a chunk, each with its share of a tile's rows.
    pub blocks_per_chunk: u32,
    /// What an item costs beside its units, in units: a tile of one KV head, its queries and its results.
    /// Whole prompts have items of very unequal lengths: 64/8 heads, 8192 tokens, with 0 to 4 units 3004,
    /// 2453, 2139, 2106 and 2088 µs on an H200 by warpgroups, with 0 and 1 4379 and 3919 by mma.sync.
    pub item_units: u32,
}

/// KV tokens of a unit of most GQA kernels.
const UNIT: u32 = 64;

impl Kernel {
    /// Entry points of the GQA kernels: by head dimension, type of the KV, and rows of a tile.
    pub(crate) const GQA_NAMES: [[[&str; 3]; 2]; 3] = [
        [
            [
                "parplan_gqa_bf16_d64_narrow",
                "parplan_gqa_bf16_d64_middle",
                "parplan_gqa_bf16_d64_wide",
            ],
            [
                "parplan_gqa_fp8_d64_narrow",
                "parplan_gqa_fp8_d64_middle",
                "parplan_gqa_fp8_d64_wide",
            ],
        ],
        [
            [
                "parplan_gqa_bf16_d128_narrow",
                "parplan_gqa_bf16_d128_middle",
                "parplan_gqa_bf16_d128_wide",
            ],
            [
                "parplan_gqa_fp8_d128_narrow",
                "parplan_gqa_fp8_d128_middle",
                "parplan_gqa_fp8_d128_wide",
            ],
        ],
        [
            [
                "parplan_gqa_bf16_d256_narrow",
                "parplan_gqa_bf16_d256_middle",
                "parplan_gqa_bf16_d256_wide",
            ],
            [
                "parplan_gqa_fp8_d256_narrow",
                "parplan_gqa_fp8_d256_middle",
                "parplan_gqa_fp8_d256_wide",
            ],
        ],
    ];

    /// Entry point for sm_90a, heads of 128 in bf16 and many rows.
    pub(crate) const GQA_WGMMA: &str = "parplan_gqa_bf16_d128_wgmma";

    /// The kernel for a shape on a GPU of this compute capability, where no request has
    /// more than `max_query` query tokens. `None` where there is none, see [`Shape::check`].
    #[must_use]
    pub fn choose(shape: &Shape, max_query: usize, capability: (i32, i32)) -> Option<Self> {
        let rows = shape.heads() / shape.kv_heads().max(1) * max_query;
        match shape.kind {
            Kind::Gqa { head_dim, .. } => Self::gqa(shape.kv, head_dim, rows, capability),
            Kind::Mla { .. } => Some(Self::mla(shape.kv, rows, capability)),
        }
    }

    /// The MLA kernels. Warpgroup products have 64 rows at least and exist on sm_90a alone;
    /// they win there even where 16 rows are used, being less bound by shared memory. But not with
    /// fp8, which has to become f16 for them in shared memory: 215 µs against 200 at 64 × 8192 tokens
    /// and 16 heads on an H200, and 77 against 196 with 64 heads at 16 × 8192.
    fn mla(kv: KvType, rows: usize, capability: (i32, i32)) -> Self {
        const COMBINE: &str = "parplan_attention_combine_d512";
        if capability == (9, 0) && (kv == KvType::Bf16 || rows > 16) {
            let pair = u32::from(rows > 64) + 1;
            return Kernel {
                name: match kv {
                    KvType::Bf16 => "parplan_mla_bf16_wgmma",
                    KvType::Fp8 => "parplan_mla_fp8_wgmma",
                },
                combine: COMBINE,
                rows: 64 * pair,
                unit_tokens: 64,
                threads: 384,
                // Queries, two units, two tiles of weights, four rows of f32, 24 barriers.
                shared: (8 + 2 * 9 + 2) * 8192 + 4 * 64 * 4 + 24 * 8,
                resident: 1,
                blocks_per_chunk: pair,
                item_units: 0,
            };
        }
        let row = 576 * kv.size() as u32;
        let stages = if capability == (9, 0) { 5 } else { 2 } * 2 / kv.size() as u32;
        Kernel {
            name: match kv {
                KvType::Bf16 => "parplan_mla_bf16",
                KvType::Fp8 => "parplan_mla_fp8",
            },
            combine: COMBINE,
            rows: 16,
            unit_tokens: 32,
            threads: 256,
            shared: stages * 32 * row + 2 * 16 * (32 + 8) * 4,
            resident: 1,
            blocks_per_chunk: 1,
            item_units: 0,
        }
    }

    /// The GQA kernels; shared memory as `struct Shared` in `attention_gqa.cu` lays it out.
    fn gqa(kv: KvType, dim: usize, rows: usize, capability: (i32, i32)) -> Option<Self> {
        let (at, combine) = match dim {
            64 => (0, "parplan_attention_combine_d64"),
            128 => (1, "parplan_attention_combine_d128"),
            256 => (2, "parplan_attention_combine_d256"),
            _ => return None,
        };
        let fp8 = kv == KvType::Fp8;
        if capability == (9, 0) && dim == 128 && !fp8 && rows > 32 {
            return Some(Kernel {
                name: Self::GQA_WGMMA,
                combine,
                rows: 128,
                unit_tokens: 128,
                threads: 384,
                // Queries, three units of keys and of values, 14 barriers.
                shared: (1 + 2 * 3) * 128 * 256 + 14 * 8,
                resident: 1,
                blocks_per_chunk: 1,
                item_units: 2,
            });
        }
        // Keys and values of 256 in bf16 take more than the 99 KB that a block has on these,
        // but for the kernel for many rows.
        let small = matches!(capability, (8, 6 | 9) | (12, _)) && dim == 256 && !fp8;
        let groups = match rows {
            ..=16 if !small => 1,
            ..=32 if !small => 2,
            _ => 4,
        };
        let dim = dim as u32;
        let row = dim * kv.size() as u32;
        let halved = groups > 1 && dim == 256;
        let most = if capability == (9, 0) { 3 } else { 2 };
        let stages = match (groups, dim) {
            // A row of K may be a fraction of 256 bytes; the ring then has as many more stages.
            (1 | 2, ..=128) => most * 256 / row,
            (1, _) if !fp8 => most,
            (_, 256) => 2,
            _ => most,
        };
        let unit = if halved { 32 } else { UNIT };
        let merge = if groups < 4 { 2 * 16 * dim * 4 } else { 0 };
        // Queries that registers have no room for, by steps of 16 dims.
        let queries = match groups {
            2 if halved => 4,
            4 if halved => 10,
            _ => 0,
        };
        let shared = stages * 2 * unit * row + merge + 2 * 4 * 16 * 4 + queries * 128 * 16;
        let multiprocessor = if capability == (9, 0) { 228 } else { 164 } * 1024;
        Some(Kernel {
            name: Self::GQA_NAMES[at][usize::from(fp8)][groups as usize / 2],
            combine,
            rows: 16 * groups,
            unit_tokens: unit,
            threads: 128,
            shared,
            // 1 KB of each block is reserved.
            resident: if 2 * (shared + 1024) <= multiprocessor {
                2
            } else {
                1
            },
            blocks_per_chunk: 1,
            item_units: u32::from(groups == 4),
        })
    }

    /// Tiles that requests may have: every request rounds its rows up to whole tiles.
    #[must_use]
    pub fn max_tiles(&self, shape: &Shape, requests: usize, tokens: usize) -> usize {
        let rows = tokens * (shape.heads() / shape.kv_heads().max(1));
        requests + rows / self.rows as usize
    }
}

/// Bytes of the plan, as `plan_of` lays it out.
#[must_use]
pub fn plan_bytes(requests: usize, max_tiles: usize, chunks: usize) -> usize {
    16 * 4 + max_tiles * 32 + chunks * (16 + 32) + (requests + 1) * 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_fits_the_gpus_that_a_kernel_is_for() {
        let gqa = |head_dim| Kind::Gqa {
            heads: 8,
            kv_heads: 1,
            head_dim,
        };
        for kind in [
            gqa(64),
            gqa(128),
            gqa(256),
            Kind::Mla { heads: 16 },
            Kind::Mla { heads: 128 },
        ] {
            for kv in [KvType::Bf16, KvType::Fp8] {
                for max_query in [1, 2, 3, 100] {
                    let shape = Shape::new(kind, kv, 16);
                    let hopper = Kernel::choose(&shape, max_query, (9, 0)).unwrap();
                    // 228 KB of a multiprocessor, 1 KB of each block reserved.
                    assert!(
                        hopper.resident * (hopper.shared + 1024) <= 228 * 1024,
                        "{hopper:?}"
                    );
                    let ada = Kernel::choose(&shape, max_query, (8, 9)).unwrap();
                    assert!(ada.shared <= 99 * 1024, "{ada:?}");
                    let ampere = Kernel::choose(&shape, max_query, (8, 0)).unwrap();
                    assert!(
                        ampere.resident * (ampere.shared + 1024) <= 164 * 1024,
                        "{ampere:?}"
                    );
                }
            }
        }
    }
}
