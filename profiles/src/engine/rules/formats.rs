//! Which number formats an engine runs on which devices, and how.

use crate::dtype::Dtype;
use crate::gpu::{GpuProfile, Vendor};
use serde::{Deserialize, Serialize};

/// Formats that need a device of some kind. One that no entry names runs on every device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FormatRule {
    /// Formats of weights; of several entries that fit, the first counts.
    pub weights: Vec<WeightPath>,
    /// Formats of the KV cache.
    #[serde(default)]
    pub kv: Vec<KvPath>,
}

/// Devices of a maker, from one compute capability up to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Devices {
    /// Who makes them.
    pub vendor: Vendor,
    /// Lowest compute capability times ten; 0 where there is none.
    #[serde(default)]
    pub from: u16,
    /// The first compute capability times ten that is too high; none for no end.
    #[serde(default)]
    pub below: Option<u16>,
}

/// A way to multiply by weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightPath {
    /// Formats of the weights.
    pub formats: Vec<Dtype>,
    /// Which weights; none for all of them.
    #[serde(default)]
    pub of: Option<WeightPart>,
    /// Where it runs; nowhere where this is empty.
    pub on: Vec<Devices>,
    /// Weights are unpacked and multiplied in bf16: they save memory and bandwidth, no arithmetic.
    #[serde(default)]
    pub weight_only: bool,
    /// The kernel, where prices know several for the format: a name of
    /// [`crate::EfficiencyProfile::moe_named`]. Engines are told to run it, where they would choose
    /// another and have an option for it.
    #[serde(default)]
    pub kernel: Option<String>,
    /// What that kernel rounds an expert's outer and inner width on a rank up to, in memory and in the
    /// products.
    #[serde(default)]
    pub multiples: Option<[u32; 2]>,
}

/// Weights that an engine multiplies by with kernels of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightPart {
    /// Dense products: projections, dense blocks, shared experts.
    Linear,
    /// Routed experts.
    Experts,
}

impl WeightPart {
    /// Its name, for a sentence.
    pub const fn name(self) -> &'static str {
        match self {
            WeightPart::Linear => "linear layers",
            WeightPart::Experts => "experts",
        }
    }
}

/// A way to read a KV cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvPath {
    /// Formats of the cache.
    pub formats: Vec<Dtype>,
    /// Of latent attention only, or only of attention that is not; none for both.
    #[serde(default)]
    pub latent: Option<bool>,
    /// Where it runs.
    pub on: Vec<Devices>,
}

/// What a rule says of a format on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    /// With the arithmetic of the format, as far as the device has it.
    Natively,
    /// Unpacked to bf16.
    WeightOnly,
    /// Not at all.
    Never,
}

impl Devices {
    /// Whether a device is one of them.
    pub fn contains(&self, gpu: &GpuProfile) -> bool {
        let [major, minor] = gpu.compute_capability.map(u16::from);
        let sm = major * 10 + minor;
        gpu.vendor == self.vendor && sm >= self.from && self.below.is_none_or(|below| sm < below)
    }
}

impl std::fmt::Display for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let point = |sm: u16| format!("{}.{}", sm / 10, sm % 10);
        f.write_str(self.vendor.devices())?;
        match (self.from, self.below) {
            (0, None) => Ok(()),
            (0, Some(below)) => write!(f, " below compute capability {}", point(below)),
            (from, None) => write!(f, " from compute capability {}", point(from)),
            (from, Some(below)) => write!(
                f,
                " of compute capability {} to below {}",
                point(from),
                point(below)
            ),
        }
    }
}

impl FormatRule {
    /// How weights of a kind and format run on a device.
    pub fn weights(&self, format: Dtype, part: WeightPart, gpu: &GpuProfile) -> Runs {
        let mut named = false;
        for path in self.weight_paths(format, part) {
            named = true;
            if path.on.iter().any(|devices| devices.contains(gpu)) {
                return match path.weight_only {
                    true => Runs::WeightOnly,
                    false => Runs::Natively,
                };
            }
        }
        if named { Runs::Never } else { Runs::Natively }
    }

    /// How weights of a kind and format are multiplied by on a device, where an entry says.
    pub fn path(&self, format: Dtype, part: WeightPart, gpu: &GpuProfile) -> Option<&WeightPath> {
        self.weight_paths(format, part)
            .find(|path| path.on.iter().any(|devices| devices.contains(gpu)))
    }

    /// Devices that weights of a kind and format run on.
    pub fn devices_of_weights(&self, format: Dtype, part: WeightPart) -> Vec<Devices> {
        let paths = self.weight_paths(format, part);
        paths.flat_map(|path| path.on.iter().copied()).collect()
    }

    /// Whether a cache of a format can be read on a device.
    pub fn reads_kv(&self, format: Dtype, latent: bool, gpu: &GpuProfile) -> bool {
        let mut paths = self.kv_paths(format, latent).peekable();
        paths.peek().is_none()
            || paths.any(|path| path.on.iter().any(|devices| devices.contains(gpu)))
    }

    /// Devices that a cache of a format can be read on.
    pub fn devices_of_kv(&self, format: Dtype, latent: bool) -> Vec<Devices> {
        let paths = self.kv_paths(format, latent);
        paths.flat_map(|path| path.on.iter().copied()).collect()
    }

    fn weight_paths(&self, format: Dtype, part: WeightPart) -> impl Iterator<Item = &WeightPath> {
        self.weights.iter().filter(move |path| {
            path.formats.contains(&format) && path.of.is_none_or(|of| of == part)
        })
    }

    fn kv_paths(&self, format: Dtype, latent: bool) -> impl Iterator<Item = &KvPath> {
        self.kv.iter().filter(move |path| {
            path.formats.contains(&format) && path.latent.is_none_or(|of| of == latent)
        })
    }
}
