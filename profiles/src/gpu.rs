//! What a GPU and a cluster are.

use crate::dtype::TensorRate;
use serde::{Deserialize, Serialize};

/// One GPU model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuProfile {
    /// Short name, for example `h200`.
    pub name: String,
    /// Other names that select it, NVML's among them.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// `nvidia`, `amd`, or `cpu` for a host that serves without a GPU.
    pub vendor: Vendor,
    /// Memory that the driver reports, MiB (`nvidia-smi` total); of a host, that of its first
    /// memory node.
    pub memory_mib: u64,
    /// Memory that an engine process holds before weights, KV cache and buffers, MiB: CUDA context
    /// and libraries, or the interpreter and its libraries on a host; none where it was not
    /// measured, and the planner's figure for CUDA holds.
    #[serde(default)]
    pub context_mib: Option<u32>,
    /// Peak memory bandwidth, bytes per second.
    pub memory_bytes_per_s: f64,
    /// Streaming multiprocessors (compute units on AMD, computing cores of a host).
    pub sms: u32,
    /// L2 cache, bytes.
    pub l2_bytes: u64,
    /// CUDA compute capability, for example `[9, 0]`; `[0, 0]` where there is none.
    pub compute_capability: [u8; 2],
    /// Dense (not sparse) tensor rates, FLOP per second.
    pub tensor: TensorRates,
    /// The link between the GPUs of a node.
    pub link: Link,
    /// GPUs that usually share a node.
    pub gpus_per_node: u32,
    /// GPUs in one NVLink (or xGMI) domain: 8 in an HGX board, 72 in an NVL72 rack, 1 on PCIe.
    pub link_domain_gpus: u32,
    /// Network bandwidth between nodes a GPU, bytes per second and direction.
    pub network_bytes_per_s: f64,
    /// Where each figure is printed, by field name.
    pub sources: std::collections::BTreeMap<String, String>,
}

/// Who makes a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vendor {
    /// NVIDIA.
    Nvidia,
    /// AMD.
    Amd,
    /// A host without a GPU: an engine's CPU build computes on its cores.
    Cpu,
}

impl Vendor {
    /// What devices of this maker are called in a sentence.
    pub const fn devices(self) -> &'static str {
        match self {
            Vendor::Nvidia => "NVIDIA GPUs",
            Vendor::Amd => "AMD GPUs",
            Vendor::Cpu => "hosts without a GPU",
        }
    }

    /// Whether engines replay steps from captured graphs on such a device.
    pub const fn captures_graphs(self) -> bool {
        match self {
            Vendor::Nvidia | Vendor::Amd => true,
            Vendor::Cpu => false,
        }
    }
}

/// Dense tensor rates, FLOP per second. A format that the chip has no unit for is absent, and runs
/// at the rate of the wider format that it is converted to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorRates {
    /// bf16 and fp16.
    pub bf16: f64,
    /// fp8.
    #[serde(default)]
    pub fp8: Option<f64>,
    /// int8.
    #[serde(default)]
    pub int8: Option<f64>,
    /// fp4.
    #[serde(default)]
    pub fp4: Option<f64>,
}

impl TensorRates {
    /// The rate at which products of this kind run, FLOP per second: the chip's own unit, or the
    /// next wider one that it has.
    pub fn rate(&self, kind: TensorRate) -> f64 {
        match kind {
            TensorRate::Bf16 => self.bf16,
            TensorRate::Fp8 => self.fp8.unwrap_or(self.bf16),
            TensorRate::Int8 => self.int8.unwrap_or(self.bf16),
            TensorRate::Fp4 => self.fp4.or(self.fp8).unwrap_or(self.bf16),
        }
    }
}

/// A link between GPUs of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// What it is.
    pub kind: LinkKind,
    /// Bytes per second a GPU can send, one direction, over all its links.
    pub bytes_per_s: f64,
    /// In-switch multicast and reduction (NVLink SHARP) exists.
    #[serde(default)]
    pub multicast: bool,
}

/// Kinds of link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    /// NVLink through NVSwitch: every pair at full rate.
    Nvlink,
    /// AMD Infinity Fabric, a mesh.
    Xgmi,
    /// PCI Express through the host.
    Pcie,
}
