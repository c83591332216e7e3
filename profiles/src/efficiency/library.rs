//! The embedded efficiency profiles, and their validation.

use super::{EfficiencyProfile, Note};
use crate::dtype::Dtype;
use crate::gpu::{GpuProfile, Vendor};
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;

/// GPUs that share kernels, and so share fractions of the roofline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GpuArchitecture {
    /// Compute capability 9: H100, H200, H20, GH200.
    Hopper,
    /// Compute capability 10: B200, B300, GB200, GB300.
    Blackwell,
    /// A host without a GPU. It has overheads of its own; its operations take the generic table.
    Cpu,
    /// Any GPU that no table covers: the same fractions of the roofline, with a wider spread.
    Generic,
}

impl GpuArchitecture {
    /// The architecture of a GPU.
    pub fn of(gpu: &GpuProfile) -> Self {
        match (gpu.vendor, gpu.compute_capability[0]) {
            (Vendor::Nvidia, 9) => Self::Hopper,
            (Vendor::Nvidia, 10) => Self::Blackwell,
            (Vendor::Cpu, _) => Self::Cpu,
            _ => Self::Generic,
        }
    }
}

/// What is wrong with an efficiency profile.
#[derive(Debug, thiserror::Error)]
pub enum EfficiencyError {
    /// It is not TOML of this shape.
    #[error("efficiency profile {name}: {source}")]
    Parse {
        /// Which profile.
        name: String,
        /// What the TOML reader says.
        source: toml::de::Error,
    },
    /// A figure is outside its range, or a weight format is missing.
    #[error("efficiency profile {name}: {field} {problem}")]
    Value {
        /// Which profile.
        name: String,
        /// Which field.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
}

const FILES: [(&str, &str); 9] = [
    (
        "sglang-hopper",
        include_str!("../../data/efficiency/sglang-hopper.toml"),
    ),
    (
        "sglang-blackwell",
        include_str!("../../data/efficiency/sglang-blackwell.toml"),
    ),
    (
        "vllm-hopper",
        include_str!("../../data/efficiency/vllm-hopper.toml"),
    ),
    (
        "vllm-blackwell",
        include_str!("../../data/efficiency/vllm-blackwell.toml"),
    ),
    (
        "trtllm-hopper",
        include_str!("../../data/efficiency/trtllm-hopper.toml"),
    ),
    (
        "trtllm-blackwell",
        include_str!("../../data/efficiency/trtllm-blackwell.toml"),
    ),
    (
        "builtin-hopper",
        include_str!("../../data/efficiency/builtin-hopper.toml"),
    ),
    (
        "builtin-blackwell",
        include_str!("../../data/efficiency/builtin-blackwell.toml"),
    ),
    (
        "any-generic",
        include_str!("../../data/efficiency/any-generic.toml"),
    ),
];

/// Weight formats that every profile must price.
const WEIGHTS: [Dtype; 9] = [
    Dtype::Fp32,
    Dtype::Bf16,
    Dtype::Fp8,
    Dtype::Fp8Block,
    Dtype::Int8,
    Dtype::Int4,
    Dtype::Nvfp4,
    Dtype::Mxfp4,
    Dtype::Mxfp8,
];

static PARSED: [OnceLock<EfficiencyProfile>; FILES.len()] =
    [const { OnceLock::new() }; FILES.len()];

impl EfficiencyProfile {
    /// The embedded profile for an engine family (`sglang`, `vllm`, `trtllm`, `builtin`) on a GPU.
    /// An engine or a GPU that no table covers gets the generic one.
    ///
    /// # Errors
    /// When an embedded file does not read, which the tests of this crate rule out.
    pub fn embedded(
        engine: &str,
        gpu: &GpuProfile,
    ) -> Result<&'static EfficiencyProfile, EfficiencyError> {
        let wanted = match GpuArchitecture::of(gpu) {
            GpuArchitecture::Hopper => format!("{engine}-hopper"),
            GpuArchitecture::Blackwell => format!("{engine}-blackwell"),
            GpuArchitecture::Cpu | GpuArchitecture::Generic => String::new(),
        };
        let index = FILES
            .iter()
            .position(|(name, _)| *name == wanted)
            .unwrap_or(FILES.len() - 1);
        Self::at(index)
    }

    /// Names of the embedded profiles.
    pub fn embedded_names() -> impl Iterator<Item = &'static str> {
        FILES.iter().map(|(name, _)| *name)
    }

    /// The embedded profile of this name.
    ///
    /// # Errors
    /// When there is none, or it does not read.
    pub fn by_name(name: &str) -> Result<&'static EfficiencyProfile, EfficiencyError> {
        match FILES.iter().position(|(n, _)| *n == name) {
            Some(index) => Self::at(index),
            None => Err(EfficiencyError::Value {
                name: name.to_owned(),
                field: "name".to_owned(),
                problem: "is not an embedded profile".to_owned(),
            }),
        }
    }

    fn at(index: usize) -> Result<&'static EfficiencyProfile, EfficiencyError> {
        if let Some(profile) = PARSED[index].get() {
            return Ok(profile);
        }
        let (name, text) = FILES[index];
        let profile = Self::from_toml(name, text)?;
        Ok(PARSED[index].get_or_init(|| profile))
    }

    /// Reads and validates a profile.
    ///
    /// # Errors
    /// When the text is not a profile, or a figure is outside its range.
    pub fn from_toml(name: &str, text: &str) -> Result<Self, EfficiencyError> {
        let profile: Self = toml::from_str(text).map_err(|source| EfficiencyError::Parse {
            name: name.to_owned(),
            source,
        })?;
        profile
            .check()
            .map_err(|(field, problem)| EfficiencyError::Value {
                name: name.to_owned(),
                field,
                problem,
            })?;
        Ok(profile)
    }

    fn check(&self) -> Result<(), (String, String)> {
        for dtype in WEIGHTS {
            let gemm = self
                .gemm
                .get(&dtype)
                .ok_or_else(|| missing("gemm", dtype))?;
            fraction(&format!("gemm.{dtype}"), &[gemm.memory, gemm.compute])?;
            time(
                &format!("gemm.{dtype}"),
                &[
                    gemm.base_us,
                    gemm.depth_us,
                    gemm.depth_tile_us,
                    gemm.output_passes,
                ],
            )?;
            spread(&format!("gemm.{dtype}"), &gemm.note)?;
            let moe = self.moe.get(&dtype).ok_or_else(|| missing("moe", dtype))?;
            fraction(&format!("moe.{dtype}"), &[moe.memory, moe.compute])?;
            time(
                &format!("moe.{dtype}"),
                &[
                    moe.base_us,
                    moe.pad_rows,
                    moe.hidden_passes,
                    moe.intermediate_passes,
                    moe.expert_us,
                    moe.local_expert_us,
                    moe.remote_passes,
                    moe.remote_us,
                ],
            )?;
            spread(&format!("moe.{dtype}"), &moe.note)?;
        }
        for (dtype, moe) in &self.moe_alternative {
            fraction(
                &format!("moe_alternative.{dtype}"),
                &[moe.memory, moe.compute],
            )?;
        }
        for dtype in [Dtype::Bf16, Dtype::Fp8] {
            for (class, map) in [
                ("decode_gqa", &self.decode_gqa),
                ("decode_mla", &self.decode_mla),
                ("sparse.attention_decode", &self.sparse.attention_decode),
            ] {
                let fit = map.get(&dtype).ok_or_else(|| missing(class, dtype))?;
                let field = format!("{class}.{dtype}");
                fraction(&field, &[fit.memory, fit.compute])?;
                time(&field, &[fit.base_us, fit.item_us, fit.split_us])?;
                spread(&field, &fit.note)?;
            }
            for (class, map) in [
                ("prefill_gqa", &self.prefill_gqa),
                ("prefill_mla", &self.prefill_mla),
                ("sparse.attention_prefill", &self.sparse.attention_prefill),
            ] {
                let fit = map.get(&dtype).ok_or_else(|| missing(class, dtype))?;
                let field = format!("{class}.{dtype}");
                fraction(&field, &[fit.memory, fit.compute])?;
                time(&field, &[fit.base_us, fit.item_us, fit.depth_us])?;
                spread(&field, &fit.note)?;
            }
            let bmm = self
                .mla_bmm
                .get(&dtype)
                .ok_or_else(|| missing("mla_bmm", dtype))?;
            fraction(&format!("mla_bmm.{dtype}"), &[bmm.memory, bmm.compute])?;
        }
        fraction("sparse.topk_memory", &[self.sparse.topk_memory])?;
        fraction("elementwise.memory", &[self.elementwise.memory])?;
        for (field, scan) in [("gated_delta", &self.gated_delta), ("mamba2", &self.mamba2)] {
            fraction(
                field,
                &[
                    scan.decode_memory,
                    scan.prefill_memory,
                    scan.prefill_compute,
                ],
            )?;
            spread(field, &scan.decode_note)?;
            spread(field, &scan.prefill_note)?;
        }
        let c = &self.collective;
        for (field, ring) in [
            ("collective.all_gather", &c.all_gather),
            ("collective.reduce_scatter", &c.reduce_scatter),
            ("collective.all_reduce", &c.all_reduce),
            ("collective.all_to_all", &c.all_to_all),
            ("collective.symmetric", &c.symmetric),
        ] {
            time(field, &[ring.base_us, ring.rank_us, ring.ramp_us])?;
            if ring.link.iter().any(|x| !(*x > 0.0 && *x <= 2.0)) {
                return Err((
                    field.to_owned(),
                    "needs link fractions in (0, 2]".to_owned(),
                ));
            }
            spread(field, &ring.note)?;
        }
        let custom = &c.custom_all_reduce;
        fraction(
            "collective.custom_all_reduce",
            &[custom.one_shot_link, custom.two_shot_link],
        )?;
        fraction("collective.network", &[c.network.network, c.network.pcie])?;
        for (field, a2a) in [
            (
                "deepep.low_latency_dispatch",
                &self.deepep.low_latency_dispatch,
            ),
            (
                "deepep.low_latency_combine",
                &self.deepep.low_latency_combine,
            ),
            ("deepep.normal_dispatch", &self.deepep.normal_dispatch),
            ("deepep.normal_combine", &self.deepep.normal_combine),
        ] {
            fraction(field, &[a2a.link, a2a.network])?;
            time(field, &[a2a.base_us, a2a.node_us, a2a.row_us])?;
        }
        Ok(())
    }
}

fn missing(class: &str, dtype: Dtype) -> (String, String) {
    (format!("{class}.{dtype}"), "is missing".to_owned())
}

fn fraction(field: &str, values: &[f64]) -> Result<(), (String, String)> {
    if values.iter().all(|x| *x > 0.0 && *x <= 1.0) {
        return Ok(());
    }
    Err((
        field.to_owned(),
        "needs fractions of the roofline in (0, 1]".to_owned(),
    ))
}

fn time(field: &str, values: &[f64]) -> Result<(), (String, String)> {
    if values.iter().all(|x| *x >= 0.0 && *x < 1e6) {
        return Ok(());
    }
    Err((
        field.to_owned(),
        "needs finite, non-negative figures".to_owned(),
    ))
}

fn spread(field: &str, note: &Note) -> Result<(), (String, String)> {
    if note.sigma > 0.0 && note.sigma < 3.0 && !note.source.is_empty() {
        return Ok(());
    }
    Err((
        format!("{field}.note"),
        "needs a sigma in (0, 3) and a source".to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_embedded_profile_reads_and_names_itself() {
        for name in EfficiencyProfile::embedded_names() {
            let profile = EfficiencyProfile::by_name(name).unwrap();
            let architecture = match profile.architecture {
                GpuArchitecture::Hopper => "hopper",
                GpuArchitecture::Blackwell => "blackwell",
                GpuArchitecture::Cpu => "cpu",
                GpuArchitecture::Generic => "generic",
            };
            assert_eq!(format!("{}-{architecture}", profile.engine), name);
        }
    }

    #[test]
    fn a_fraction_above_one_is_refused() {
        let (name, text) = FILES[0];
        let broken = text.replacen("\nmemory = 0.", "\nmemory = 3.", 1);
        assert_ne!(broken, text);
        let error = EfficiencyProfile::from_toml(name, &broken).unwrap_err();
        assert!(error.to_string().contains("(0, 1]"), "{error}");
    }

    #[test]
    fn an_unknown_name_is_refused() {
        assert!(EfficiencyProfile::by_name("sglang-volta").is_err());
    }
}
