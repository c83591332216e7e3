//! The embedded efficiency profiles.

use super::EfficiencyProfile;
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
