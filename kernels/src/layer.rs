//! Launch description of a decoder layer's kernels; `cuda/layer.cu` and
//! `cuda/grouped.cu` say what each computes.

/// Entry points of `cuda/layer.cu`.
#[allow(missing_docs)] // described once, beside the kernels
pub mod names {
    pub const SYNTHETIC_BF16: &str = "parplan_synthetic_bf16";
    pub const SYNTHETIC_E4M3: &str = "parplan_synthetic_e4m3";
    pub const QUANTISE_E4M3: &str = "parplan_quantise_e4m3";
    pub const ADD_RMS_NORM: &str = "parplan_add_rms_norm";
    pub const ADD_BF16: &str = "parplan_add_bf16";
    pub const ROPE_GQA: &str = "parplan_rope_gqa";
    pub const ROPE_LATENT: &str = "parplan_rope_latent";
    pub const ROPE_QUERIES: &str = "parplan_rope_queries";
    pub const SILU_MUL: &str = "parplan_silu_mul";
    pub const ROUTE: &str = "parplan_route";
    pub const SORT_PAIRS: &str = "parplan_sort_pairs";
    pub const SUM_EXPERTS: &str = "parplan_sum_experts";
    pub const PACK_ROWS: &str = "parplan_pack_rows";
    pub const UNPACK_CHOICES: &str = "parplan_unpack_choices";
    pub const SUM_PARTS: &str = "parplan_sum_parts";
    pub const PAIR_ORDER: &str = "parplan_pair_order";

    /// All of them.
    pub const ALL: [&str; 16] = [
        SYNTHETIC_BF16,
        SYNTHETIC_E4M3,
        QUANTISE_E4M3,
        ADD_RMS_NORM,
        ADD_BF16,
        ROPE_GQA,
        ROPE_LATENT,
        ROPE_QUERIES,
        SILU_MUL,
        ROUTE,
        SORT_PAIRS,
        SUM_EXPERTS,
        PACK_ROWS,
        UNPACK_CHOICES,
        SUM_PARTS,
        PAIR_ORDER,
    ];
}

/// Threads of the kernels that take a row a block, or a stride over words.
pub const THREADS: u32 = 256;
/// Rows of a block of the routing kernel, a warp each.
pub const ROUTE_WARPS: u32 = 4;
/// Threads of the sorting kernel's one block, and the most experts.
pub const SORT_THREADS: u32 = 1024;

/// Mirror of `struct CacheArgs` in `cuda/layer.cu`, passed by value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)] // described once, in the source
pub struct CacheArgs {
    pub slots: u64,
    pub cos_sin: u64,
    pub keys: u64,
    pub values: u64,
    pub page: u32,
    pub fp8: u32,
}

/// Mirror of `struct GroupedArgs` in `cuda/grouped.cu`, passed by value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)] // described once, in the source
pub struct GroupedArgs {
    pub x: u64,
    pub w: u64,
    pub y: u64,
    pub order: u64,
    pub offsets: u64,
    pub tiles: u64,
    pub n: u32,
    pub k: u32,
    pub x_pitch: u32,
    pub top_k: u32,
    pub max_tiles: u32,
    pub to_slots: u32,
    pub scale: f32,
    pub pad: u32,
}

/// One grouped product and how it is launched: `(columns of the result / columns, tiles)` blocks, or
/// where blocks walk over the tiles by themselves one a multiprocessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grouped {
    /// Entry point; argument `(GroupedArgs)`.
    pub name: &'static str,
    /// Rows of a tile.
    pub rows: u32,
    /// Columns of the result that a block makes at a time.
    pub columns: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, bytes.
    pub shared: u32,
    /// Whether a block walks over the tiles.
    pub walks: bool,
    /// Whether it reads its rows in the order of [`names::PAIR_ORDER`].
    pub pair_order: bool,
}

impl Grouped {
    /// Entry points for any GPU.
    pub const NAMES: [&str; 4] = [
        "parplan_grouped_bf16_narrow",
        "parplan_grouped_bf16_wide",
        "parplan_grouped_fp8_narrow",
        "parplan_grouped_fp8_wide",
    ];
    /// Entry points for sm_90a and many rows an expert: bf16, fp8.
    pub const WGMMA: [&str; 2] = ["parplan_grouped_bf16_wgmma", "parplan_grouped_fp8_wgmma"];
    /// Rows of the smallest tiles for many rows an expert.
    const WIDE: u32 = 64;
    /// Rows an expert, on average, from which kernels for many are taken: on an H200, in µs, with 16, 24
    /// and 32 rows an expert 428, 488 and 551 for few rows against 405, 409 and 412 (bf16, Qwen3-235B's
    /// gates and ups at TP2); 1268, 1854 and 2116 against 1256, 1258 and 1263, but 638 against 750 with 16
    /// (e4m3, DeepSeek-V3's gates and ups at TP2, and its downs).
    pub const WIDE_FROM: usize = 20;

    /// The kernel for weights in fp8 or bf16, for few rows an expert or for many.
    #[must_use]
    pub fn choose(fp8: bool, wide: bool, capability: (i32, i32)) -> Self {
        let hopper = capability == (9, 0);
        if wide && hopper {
            // A ring of stages of 64 columns of k, each with two barriers. Of e4m3 weights only the bytes
            // lie there; whose registers make them bf16 have room for the sums of 128 rows.
            let (rows, columns, weight, stages) = if fp8 {
                (128, 256, 1, 6)
            } else {
                (192, 256, 2, 4)
            };
            return Grouped {
                name: Self::WGMMA[usize::from(fp8)],
                rows,
                columns,
                threads: 384,
                shared: stages * (64 * (rows * 2 + columns * weight) + 2 * 8),
                walks: true,
                pair_order: fp8,
            };
        }
        let rows = if wide { Self::WIDE } else { 16 };
        let weight = if fp8 { 1 } else { 2 };
        // A ring of stages of 64 columns of k; the portable PTX, which newer GPUs run
        // too, has three.
        let stages = if hopper { 4 } else { 3 };
        let columns = 128;
        Grouped {
            name: Self::NAMES[usize::from(fp8) * 2 + usize::from(wide)],
            rows,
            columns,
            threads: 128,
            shared: stages * 64 * (rows * 2 + columns * weight),
            walks: false,
            pair_order: false,
        }
    }

    /// Tiles that `pairs` rows of at most `experts` experts may make: every expert that
    /// has a row rounds its rows up.
    #[must_use]
    pub fn max_tiles(&self, pairs: usize, experts: usize) -> usize {
        tiles(self.rows, pairs, experts)
    }

    /// The same for whatever kernel a GPU has.
    #[must_use]
    pub fn most_tiles(wide: bool, pairs: usize, experts: usize) -> usize {
        tiles(if wide { Self::WIDE } else { 16 }, pairs, experts)
    }
}

fn tiles(rows: u32, pairs: usize, experts: usize) -> usize {
    pairs / rows as usize + experts.min(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_enough_for_the_worst_routing() {
        for pairs in 0..200usize {
            for experts in 1..20usize {
                // One row to each expert but the last, which gets the rest.
                let ones = experts.saturating_sub(1).min(pairs);
                let tiles = ones + (pairs - ones).div_ceil(16);
                assert!(tiles <= Grouped::most_tiles(false, pairs, experts));
            }
        }
    }

    #[test]
    fn no_kernel_makes_more_tiles_than_there_is_room_for() {
        for capability in [(8, 0), (9, 0)] {
            for (fp8, wide) in [(false, false), (false, true), (true, false), (true, true)] {
                let kernel = Grouped::choose(fp8, wide, capability);
                assert!(kernel.max_tiles(1000, 7) <= Grouped::most_tiles(wide, 1000, 7));
            }
        }
    }

    #[test]
    fn blocks_share_a_multiprocessor_or_have_it_for_themselves() {
        for fp8 in [false, true] {
            for wide in [false, true] {
                let hopper = Grouped::choose(fp8, wide, (9, 0));
                let blocks = if hopper.walks { 1 } else { 2 };
                assert!(blocks * (hopper.shared + 1024) <= 228 * 1024, "{hopper:?}");
                let ampere = Grouped::choose(fp8, wide, (8, 0));
                assert!(2 * (ampere.shared + 1024) <= 164 * 1024, "{ampere:?}");
                let ada = Grouped::choose(fp8, wide, (8, 9));
                assert!(ada.shared <= 99 * 1024, "{ada:?}");
            }
        }
    }
}
