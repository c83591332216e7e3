//! The kernels by module and name, and the PTX that fits a GPU.

/// One `.cu` file and the PTX built from it by `cargo xtask kernels`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// File name without its ending.
    pub name: &'static str,
    compute_80: &'static str,
    compute_90a: &'static str,
}

impl Module {
    /// Whether this module has the entry point `kernel`.
    #[must_use]
    pub fn has(&self, kernel: &str) -> bool {
        self.compute_80.contains(&format!(".entry {kernel}("))
            || self.compute_90a.contains(&format!(".entry {kernel}("))
    }

    /// The PTX for a GPU of this compute capability; `None` below 8.0. Code for 9.0a
    /// runs on 9.0 only, so newer GPUs get the portable one.
    #[must_use]
    pub fn ptx(&self, major: i32, minor: i32) -> Option<&'static str> {
        match (major, minor) {
            (9, 0) => Some(self.compute_90a),
            (8.., _) => Some(self.compute_80),
            _ => None,
        }
    }
}

macro_rules! module {
    ($name:literal) => {
        Module {
            name: $name,
            compute_80: include_str!(concat!("../ptx/", $name, ".compute_80.ptx")),
            compute_90a: include_str!(concat!("../ptx/", $name, ".compute_90a.ptx")),
        }
    };
}

/// Row kernels of DP gather and scatter.
pub const ROWS: Module = module!("rows");
/// Small collectives over peer memory.
pub const PEER: Module = module!("peer");

/// The plan of attention's splits, and the merge of what was split.
pub const ATTENTION_PLAN: Module = module!("attention_plan");
/// Grouped-query attention.
pub const ATTENTION_GQA: Module = module!("attention_gqa");

/// Grouped-query attention for sm_90a and many rows; on others its kernel only traps.
pub const ATTENTION_GQA_WGMMA: Module = module!("attention_gqa_wgmma");

/// Multi-head latent attention for any GPU.
pub const ATTENTION_MLA: Module = module!("attention_mla");
/// Multi-head latent attention for sm_90a; on others its kernels only trap.
pub const ATTENTION_MLA_WGMMA: Module = module!("attention_mla_wgmma");
/// Merges of attention over ranks.
pub const ATTENTION_MERGE: Module = module!("attention_merge");

/// All-gather of what attention needs of other ranks.
pub const ATTENTION_GATHER: Module = module!("attention_gather");

/// The small operations of a decoder layer.
pub const LAYER: Module = module!("layer");
/// Products of many experts in one launch.
pub const GROUPED: Module = module!("grouped");
/// The same for sm_90a and many rows an expert; on others its kernels only trap.
pub const GROUPED_WGMMA: Module = module!("grouped_wgmma");

/// Reading and filling memory.
pub const MEMORY: Module = module!("memory");
/// When a point of a stream is reached.
pub const STAMP: Module = module!("stamp");

/// Every module.
pub const MODULES: [Module; 14] = [
    ROWS,
    PEER,
    MEMORY,
    ATTENTION_PLAN,
    ATTENTION_GQA,
    ATTENTION_GQA_WGMMA,
    ATTENTION_MLA,
    ATTENTION_MLA_WGMMA,
    ATTENTION_MERGE,
    ATTENTION_GATHER,
    STAMP,
    LAYER,
    GROUPED,
    GROUPED_WGMMA,
];

/// `(u4* global, const u4* local, const u64 place[2], u64 total_rows, u64 row_words)`
pub const PLACE_ROWS: &str = "parplan_place_rows";
/// `(u4* local, const u4* global, const u64 place[2], u64 local_rows, u64 row_words)`
pub const TAKE_ROWS: &str = "parplan_take_rows";
/// `(u16* out, const u16* in, f32 factor, u64 count)`
pub const SCALE_BF16: &str = "parplan_scale_bf16";
/// `(const u4* from, u64 words, u4* sink)`
pub const READ: &str = "parplan_read";
/// `(u64* out, u64 words, u64 fp8, u64 seed)`
pub const FILL_VALUES: &str = "parplan_fill_values";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gpu_gets_the_ptx_that_runs_on_it() {
        let target = |major, minor| {
            let ptx = ROWS.ptx(major, minor)?;
            ptx.lines().find_map(|l| l.strip_prefix(".target "))
        };
        assert_eq!(target(7, 5), None);
        assert_eq!(target(8, 0), Some("sm_80"));
        assert_eq!(target(8, 9), Some("sm_80"));
        assert_eq!(target(9, 0), Some("sm_90a"));
        assert_eq!(target(10, 0), Some("sm_80"));
    }

    #[test]
    fn every_named_kernel_is_an_entry_of_its_module() {
        let named = [
            (ROWS, vec![PLACE_ROWS, TAKE_ROWS, SCALE_BF16]),
            (MEMORY, vec![READ, FILL_VALUES]),
            (
                PEER,
                crate::peer::Operation::ALL
                    .iter()
                    .flat_map(|o| o.kernels())
                    .collect(),
            ),
            (
                ATTENTION_PLAN,
                [
                    crate::attention::PLAN,
                    "parplan_attention_combine_d64",
                    "parplan_attention_combine_d128",
                    "parplan_attention_combine_d256",
                    "parplan_attention_combine_d512",
                ]
                .to_vec(),
            ),
            (
                ATTENTION_GQA,
                crate::attention::Kernel::GQA_NAMES.concat().concat(),
            ),
            (
                ATTENTION_GQA_WGMMA,
                vec![crate::attention::Kernel::GQA_WGMMA],
            ),
            (ATTENTION_MLA, vec!["parplan_mla_bf16", "parplan_mla_fp8"]),
            (
                ATTENTION_MLA_WGMMA,
                vec!["parplan_mla_bf16_wgmma", "parplan_mla_fp8_wgmma"],
            ),
            (ATTENTION_MERGE, crate::attention::MERGE_KERNELS.to_vec()),
            (ATTENTION_GATHER, vec![crate::attention::ALL_GATHER_LINES]),
            (STAMP, vec![crate::stamp::STAMP]),
            (LAYER, crate::layer::names::ALL.to_vec()),
            (GROUPED, crate::layer::Grouped::NAMES.to_vec()),
            (GROUPED_WGMMA, crate::layer::Grouped::WGMMA.to_vec()),
        ];
        assert_eq!(named.len(), MODULES.len());
        for (module, kernels) in named {
            for ptx in [module.compute_80, module.compute_90a] {
                for kernel in &kernels {
                    assert!(
                        ptx.contains(&format!(".entry {kernel}(")),
                        "{kernel} in {}",
                        module.name
                    );
                }
                assert_eq!(
                    ptx.matches(".visible .entry ").count(),
                    kernels.len(),
                    "{}",
                    module.name
                );
            }
        }
    }
}
