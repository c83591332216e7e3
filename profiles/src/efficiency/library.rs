//! The embedded efficiency profiles, and their validation.

use super::{EfficiencyProfile, Note};
use crate::dtype::Dtype;
use crate::fault::{Fault, Faults};
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

impl std::fmt::Display for GpuArchitecture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            GpuArchitecture::Hopper => "hopper",
            GpuArchitecture::Blackwell => "blackwell",
            GpuArchitecture::Cpu => "cpu",
            GpuArchitecture::Generic => "generic",
        })
    }
}

impl GpuArchitecture {
    /// Every architecture.
    pub const ALL: [GpuArchitecture; 4] = [Self::Hopper, Self::Blackwell, Self::Cpu, Self::Generic];

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
        Self::at(position(engine, GpuArchitecture::of(gpu)))
    }

    /// The text of the embedded profile for an engine family on an architecture.
    pub(crate) fn embedded_text(engine: &str, architecture: GpuArchitecture) -> &'static str {
        FILES[position(engine, architecture)].1
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
        let faults = profile.validate().err().map_or_else(Vec::new, |all| all.0);
        match faults.into_iter().next() {
            None => Ok(profile),
            Some(fault) => Err(EfficiencyError::Value {
                name: name.to_owned(),
                field: fault.field,
                problem: fault.message,
            }),
        }
    }

    /// Every figure that is outside its range, every weight format that is missing.
    ///
    /// # Errors
    /// All of them, each naming its field.
    pub fn validate(&self) -> Result<(), Faults> {
        let mut check = Figures::default();
        for dtype in Dtype::ALL {
            let field = format!("gemm.{dtype}");
            if let Some(gemm) = check.has(&field, self.gemm.get(&dtype)) {
                check.fractions(
                    &field,
                    &[("memory", gemm.memory), ("compute", gemm.compute)],
                );
                check.times(
                    &field,
                    &[
                        ("base_us", gemm.base_us),
                        ("depth_us", gemm.depth_us),
                        ("depth_tile_us", gemm.depth_tile_us),
                        ("output_passes", gemm.output_passes),
                    ],
                );
                check.spread(&format!("{field}.note"), &gemm.note);
            }
            let field = format!("moe.{dtype}");
            if let Some(moe) = check.has(&field, self.moe.get(&dtype)) {
                check.fractions(&field, &[("memory", moe.memory), ("compute", moe.compute)]);
                check.times(
                    &field,
                    &[
                        ("base_us", moe.base_us),
                        ("pad_rows", moe.pad_rows),
                        ("hidden_passes", moe.hidden_passes),
                        ("intermediate_passes", moe.intermediate_passes),
                        ("expert_us", moe.expert_us),
                        ("local_expert_us", moe.local_expert_us),
                        ("remote_passes", moe.remote_passes),
                        ("remote_us", moe.remote_us),
                    ],
                );
                check.spread(&format!("{field}.note"), &moe.note);
            }
        }
        for (dtype, moe) in &self.moe_alternative {
            let field = format!("moe_alternative.{dtype}");
            check.fractions(&field, &[("memory", moe.memory), ("compute", moe.compute)]);
        }
        self.check_attention(&mut check);
        self.check_links(&mut check);
        Faults::or_ok(check.faults)
    }

    fn check_attention(&self, check: &mut Figures) {
        for dtype in [Dtype::Bf16, Dtype::Fp8] {
            for (class, map) in [
                ("decode_gqa", &self.decode_gqa),
                ("decode_mla", &self.decode_mla),
                ("sparse.attention_decode", &self.sparse.attention_decode),
            ] {
                let field = format!("{class}.{dtype}");
                if let Some(fit) = check.has(&field, map.get(&dtype)) {
                    check.fractions(&field, &[("memory", fit.memory), ("compute", fit.compute)]);
                    check.times(
                        &field,
                        &[
                            ("base_us", fit.base_us),
                            ("item_us", fit.item_us),
                            ("split_us", fit.split_us),
                        ],
                    );
                    check.spread(&format!("{field}.note"), &fit.note);
                }
            }
            for (class, map) in [
                ("prefill_gqa", &self.prefill_gqa),
                ("prefill_mla", &self.prefill_mla),
                ("sparse.attention_prefill", &self.sparse.attention_prefill),
            ] {
                let field = format!("{class}.{dtype}");
                if let Some(fit) = check.has(&field, map.get(&dtype)) {
                    check.fractions(&field, &[("memory", fit.memory), ("compute", fit.compute)]);
                    check.times(
                        &field,
                        &[
                            ("base_us", fit.base_us),
                            ("item_us", fit.item_us),
                            ("depth_us", fit.depth_us),
                        ],
                    );
                    check.spread(&format!("{field}.note"), &fit.note);
                }
            }
            let field = format!("mla_bmm.{dtype}");
            if let Some(bmm) = check.has(&field, self.mla_bmm.get(&dtype)) {
                check.fractions(&field, &[("memory", bmm.memory), ("compute", bmm.compute)]);
            }
        }
        check.fractions("sparse", &[("topk_memory", self.sparse.topk_memory)]);
        check.fractions("elementwise", &[("memory", self.elementwise.memory)]);
        for (field, scan) in [("gated_delta", &self.gated_delta), ("mamba2", &self.mamba2)] {
            check.fractions(
                field,
                &[
                    ("decode_memory", scan.decode_memory),
                    ("prefill_memory", scan.prefill_memory),
                    ("prefill_compute", scan.prefill_compute),
                ],
            );
            check.spread(&format!("{field}.decode_note"), &scan.decode_note);
            check.spread(&format!("{field}.prefill_note"), &scan.prefill_note);
        }
    }

    fn check_links(&self, check: &mut Figures) {
        let c = &self.collective;
        for (field, ring) in [
            ("collective.all_gather", &c.all_gather),
            ("collective.reduce_scatter", &c.reduce_scatter),
            ("collective.all_reduce", &c.all_reduce),
            ("collective.all_to_all", &c.all_to_all),
            ("collective.symmetric", &c.symmetric),
        ] {
            check.times(
                field,
                &[
                    ("base_us", ring.base_us),
                    ("rank_us", ring.rank_us),
                    ("ramp_us", ring.ramp_us),
                ],
            );
            for (at, link) in ring.link.iter().enumerate() {
                check.within(
                    &format!("{field}.link[{at}]"),
                    *link,
                    2.0,
                    "fraction of the link",
                );
            }
            if let Some(low) = &ring.low_latency {
                let field = format!("{field}.low_latency");
                check.times(
                    &field,
                    &[
                        ("base_us", low.base_us),
                        ("rank_us", low.rank_us),
                        ("ramp_us", low.ramp_us),
                    ],
                );
                check.fractions(&field, &[("link", low.link)]);
            }
            check.spread(&format!("{field}.note"), &ring.note);
        }
        let custom = &c.custom_all_reduce;
        check.fractions(
            "collective.custom_all_reduce",
            &[
                ("one_shot_link", custom.one_shot_link),
                ("two_shot_link", custom.two_shot_link),
            ],
        );
        check.times(
            "collective.custom_all_reduce",
            &[
                ("one_shot_us", custom.one_shot_us),
                ("two_shot_us", custom.two_shot_us),
                ("rank_us", custom.rank_us),
                ("two_shot_rank_us", custom.two_shot_rank_us()),
                ("eager_us", custom.eager_us),
            ],
        );
        let network = &c.network;
        check.fractions(
            "collective.network",
            &[("network", network.network), ("pcie", network.pcie)],
        );
        let deepep = &self.deepep;
        for (field, a2a) in [
            ("deepep.low_latency_dispatch", &deepep.low_latency_dispatch),
            ("deepep.low_latency_combine", &deepep.low_latency_combine),
            ("deepep.normal_dispatch", &deepep.normal_dispatch),
            ("deepep.normal_combine", &deepep.normal_combine),
        ] {
            check.fractions(field, &[("link", a2a.link), ("network", a2a.network)]);
            check.times(
                field,
                &[
                    ("base_us", a2a.base_us),
                    ("node_us", a2a.node_us),
                    ("row_us", a2a.row_us),
                ],
            );
        }
    }
}

/// The embedded file for an engine family on an architecture; the generic one where there is none.
fn position(engine: &str, architecture: GpuArchitecture) -> usize {
    let wanted = match architecture {
        GpuArchitecture::Hopper => format!("{engine}-hopper"),
        GpuArchitecture::Blackwell => format!("{engine}-blackwell"),
        GpuArchitecture::Cpu | GpuArchitecture::Generic => String::new(),
    };
    FILES
        .iter()
        .position(|(name, _)| *name == wanted)
        .unwrap_or(FILES.len() - 1)
}

/// Collects figures that cannot be.
#[derive(Default)]
struct Figures {
    faults: Vec<Fault>,
}

impl Figures {
    fn fault(&mut self, field: String, message: String) {
        self.faults.push(Fault::field(field, message));
    }

    /// The entry of a class, or a fault that says that it is missing.
    fn has<'a, T>(&mut self, field: &str, entry: Option<&'a T>) -> Option<&'a T> {
        if entry.is_none() {
            self.fault(field.to_owned(), "is missing".to_owned());
        }
        entry
    }

    fn within(&mut self, field: &str, value: f64, most: f64, what: &str) {
        if !(value > 0.0 && value <= most) {
            let message = format!("is {value}; a {what} lies in (0, {most}]");
            self.fault(field.to_owned(), message);
        }
    }

    fn fractions(&mut self, field: &str, values: &[(&str, f64)]) {
        for (name, value) in values {
            self.within(
                &format!("{field}.{name}"),
                *value,
                1.0,
                "fraction of the roofline",
            );
        }
    }

    fn times(&mut self, field: &str, values: &[(&str, f64)]) {
        for (name, value) in values {
            if !(*value >= 0.0 && *value < 1e6) {
                let message = format!("is {value}; it must lie in [0, 1e6)");
                self.fault(format!("{field}.{name}"), message);
            }
        }
    }

    fn spread(&mut self, field: &str, note: &Note) {
        if !(note.sigma > 0.0 && note.sigma < 3.0) {
            let message = format!("is {}; a spread lies in (0, 3)", note.sigma);
            self.fault(format!("{field}.sigma"), message);
        }
        if note.source.is_empty() {
            self.fault(
                format!("{field}.source"),
                "is empty; it names what was measured".to_owned(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_embedded_profile_reads_and_names_itself() {
        for (index, (name, _)) in FILES.iter().enumerate() {
            let profile = EfficiencyProfile::at(index).unwrap();
            let architecture = match profile.architecture {
                GpuArchitecture::Hopper => "hopper",
                GpuArchitecture::Blackwell => "blackwell",
                GpuArchitecture::Cpu => "cpu",
                GpuArchitecture::Generic => "generic",
            };
            assert_eq!(format!("{}-{architecture}", profile.engine), *name);
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
}
