//! Checks of GPU profiles.

use super::Checker;
use crate::fault::Faults;
use crate::gpu::{GpuProfile, LinkKind, Vendor};

/// Fields whose figures must name the place they are printed in.
const SOURCED: [&str; 6] = [
    "memory_mib",
    "memory_bytes_per_s",
    "sms",
    "l2_bytes",
    "tensor",
    "link",
];

impl GpuProfile {
    /// Checks that every figure is of a size that a GPU can have, and names its source.
    ///
    /// # Errors
    /// Every fault, each naming its field and value.
    pub fn validate(&self) -> Result<(), Faults> {
        let mut check = Checker::new();
        check.name(&self.name);
        if !(1024..=16 << 20).contains(&self.memory_mib) {
            check.fault(
                "memory_mib",
                format!(
                    "is {}; it must be from 1024 to {} (MiB, as the driver reports it)",
                    self.memory_mib,
                    16 << 20
                ),
            );
        }
        if let Some(context) = self.context_mib
            && u64::from(context) >= self.memory_mib
        {
            check.fault(
                "context_mib",
                format!(
                    "is {context}; it must be below memory_mib, {}",
                    self.memory_mib
                ),
            );
        }
        let bandwidth = self.memory_bytes_per_s;
        check.quantity("memory_bytes_per_s", bandwidth, 1e10, 1e15, "B/s");
        check.size("sms", self.sms, 1 << 14);
        if !(1 << 16..=1 << 36).contains(&self.l2_bytes) {
            check.fault(
                "l2_bytes",
                format!(
                    "is {}; it must be from 65536 to {} bytes",
                    self.l2_bytes,
                    1u64 << 36
                ),
            );
        }
        check.quantity("tensor.bf16", self.tensor.bf16, 1e11, 1e18, "FLOP/s");
        for (name, rate) in [
            ("tensor.fp8", self.tensor.fp8),
            ("tensor.int8", self.tensor.int8),
            ("tensor.fp4", self.tensor.fp4),
        ] {
            if let Some(rate) = rate {
                check.quantity(name, rate, 1e11, 1e18, "FLOP/s");
            }
        }
        check.quantity("link.bytes_per_s", self.link.bytes_per_s, 1e9, 1e14, "B/s");
        if self.link.multicast && self.link.kind != LinkKind::Nvlink {
            check.fault(
                "link.multicast",
                "is true on a link that is not nvlink; only NVLink switches can multicast",
            );
        }
        let network = self.network_bytes_per_s;
        check.quantity("network_bytes_per_s", network, 1e8, 1e13, "B/s");
        check.size("gpus_per_node", self.gpus_per_node, 1024);
        check.size("link_domain_gpus", self.link_domain_gpus, 4096);
        if self.vendor == Vendor::Nvidia && self.compute_capability[0] < 7 {
            check.fault(
                "compute_capability",
                format!(
                    "is {:?}; an NVIDIA GPU that serves these models has at least [7, 0]",
                    self.compute_capability
                ),
            );
        }
        for field in SOURCED {
            if self
                .sources
                .get(field)
                .is_none_or(|text| text.trim().is_empty())
            {
                check.fault(
                    "sources",
                    format!("lacks `{field}`: say where that figure is printed"),
                );
            }
        }
        Faults::or_ok(check.faults)
    }
}
