//! Devices that are there, and what of their memory is free.

use super::{Start, Verdict, output};
use crate::render::number::whole;
use parplan_planner::launch::NodeCommand;
use parplan_profiles::gpu::Vendor;
use std::time::Duration;

const MIB: f64 = 1_048_576.0;
/// Time for the driver to answer; it takes seconds where no process keeps it loaded.
const LIMIT: Duration = Duration::from_secs(20);
/// Share of a device that counts for nothing: drivers keep a few MiB even where no process runs.
const DRIVER_SHARE: f64 = 0.002;
/// A host's memory may differ from its profile's by this share.
const HOST_SHARE: f64 = 0.05;

/// One device.
#[derive(Debug, Clone, PartialEq)]
struct Device {
    name: String,
    total_mib: f64,
    /// What no process uses. The driver's own reserve is in it: a plan counts that among its parts.
    free_mib: f64,
}

/// The devices of this machine.
#[derive(Debug, Default)]
pub(super) struct Devices {
    found: Vec<Device>,
    /// Why they cannot be told.
    unknown: Option<String>,
}

impl Devices {
    /// Asks the driver, or the kernel where the plan is for a host without GPUs.
    pub(super) async fn look(start: &Start) -> Devices {
        let found = match start.gpu.vendor {
            Vendor::Nvidia => nvidia().await,
            Vendor::Cpu => host().map(|device| vec![device]),
            Vendor::Amd => Err("AMD GPUs are not looked at".to_owned()),
        };
        match found {
            Ok(found) => Devices {
                found,
                unknown: None,
            },
            Err(why) => Devices {
                found: Vec::new(),
                unknown: Some(why),
            },
        }
    }

    /// The plan's devices are there, in number and kind.
    pub(super) fn present(&self, start: &Start, nodes: &[&NodeCommand]) -> Verdict {
        if let Some(why) = &self.unknown {
            return match start.gpu.vendor {
                Vendor::Amd => Verdict::Skipped(why.clone()),
                Vendor::Nvidia => Verdict::Failed(format!(
                    "no NVIDIA GPU can be seen here: {why}; start this on the machine that has {} {}, \
                     or plan for --gpu cpu",
                    needed(nodes),
                    start.gpu.name
                )),
                Vendor::Cpu => Verdict::Failed(why.clone()),
            };
        }
        if start.gpu.vendor == Vendor::Cpu {
            return self.host_as_planned(start);
        }
        let needed = needed(nodes);
        if self.found.len() < needed {
            return Verdict::Failed(format!(
                "{} GPUs are here, and the plan needs {needed} on this machine",
                self.found.len()
            ));
        }
        for (index, device) in self.found.iter().take(needed).enumerate() {
            let known = start.library.gpu(&device.name).ok();
            if known.as_ref().is_none_or(|gpu| gpu.name != start.gpu.name) {
                return Verdict::Failed(format!(
                    "GPU {index} is {}{}, and the plan is for {}: plan again with the GPU that is \
                     here",
                    device.name,
                    known.map_or_else(String::new, |gpu| format!(" ({})", gpu.name)),
                    start.gpu.name
                ));
            }
        }
        Verdict::Passed(format!(
            "{} of {} GPUs here: {}",
            needed,
            self.found.len(),
            self.found.first().map_or("", |device| &device.name)
        ))
    }

    fn host_as_planned(&self, start: &Start) -> Verdict {
        let total = self.found.first().map_or(0.0, |host| host.total_mib);
        let planned = start.gpu.memory_mib as f64;
        if (total / planned - 1.0).abs() > HOST_SHARE {
            return Verdict::Failed(format!(
                "this host has {} MiB of memory, and {} has {}: copy that profile with the figures \
                 of this host, and plan again",
                whole(total),
                start.gpu.name,
                whole(planned)
            ));
        }
        Verdict::Passed(format!("a host with {} MiB of memory", whole(total)))
    }

    /// Enough of their memory is free.
    pub(super) fn free(&self, start: &Start, nodes: &[&NodeCommand]) -> Verdict {
        if self.found.is_empty() {
            return Verdict::Skipped("there is no device to look at".to_owned());
        }
        let needed_mib = start.plan.memory_bytes.used() / MIB;
        let count = needed(nodes).max(1);
        let short = self
            .found
            .iter()
            .take(count)
            .enumerate()
            .find(|(_, device)| device.free_mib + DRIVER_SHARE * device.total_mib < needed_mib);
        match short {
            Some((index, device)) => Verdict::Failed(format!(
                "{} {index} has {} MiB free, and the plan takes {}: end what uses it, or plan with \
                 --memory-fraction {:.2}",
                device.name,
                whole(device.free_mib),
                whole(needed_mib),
                (device.free_mib / device.total_mib * 0.98).max(0.0)
            )),
            None => {
                let least = self.found.iter().take(count).map(|d| d.free_mib);
                Verdict::Passed(format!(
                    "{} MiB free, {} planned",
                    whole(least.fold(f64::INFINITY, f64::min)),
                    whole(needed_mib)
                ))
            }
        }
    }
}

/// Devices that the commands of this machine take together.
fn needed(nodes: &[&NodeCommand]) -> usize {
    nodes.iter().map(|node| node.gpus as usize).sum()
}

async fn nvidia() -> Result<Vec<Device>, String> {
    let query = "--query-gpu=name,memory.total,memory.used";
    let text = output(
        "nvidia-smi",
        &[query, "--format=csv,noheader,nounits"],
        LIMIT,
    )
    .await?;
    parse(&text)
}

fn parse(text: &str) -> Result<Vec<Device>, String> {
    let devices: Option<Vec<Device>> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let mut cells = line.rsplitn(3, ',').map(str::trim);
            let (used, total, name) = (cells.next()?, cells.next()?, cells.next()?);
            let (used, total_mib): (f64, f64) = (used.parse().ok()?, total.parse().ok()?);
            Some(Device {
                name: name.to_owned(),
                total_mib,
                free_mib: total_mib - used,
            })
        })
        .collect();
    match devices {
        Some(devices) if !devices.is_empty() => Ok(devices),
        _ => Err(format!(
            "nvidia-smi answered something else than its table: {}",
            text.lines().next().unwrap_or("nothing")
        )),
    }
}

/// The host's memory as vLLM's CPU build counts it (`utils/cpu_resource_utils.py`): the first memory
/// node, or everything where there are no nodes.
fn host() -> Result<Device, String> {
    let node = std::fs::read_to_string("/sys/devices/system/node/node0/meminfo");
    let text = match node {
        Ok(text) => text,
        Err(_) => std::fs::read_to_string("/proc/meminfo")
            .map_err(|error| format!("the memory of this host cannot be read: {error}"))?,
    };
    host_memory(&text).ok_or_else(|| "the memory of this host cannot be read".to_owned())
}

fn host_memory(text: &str) -> Option<Device> {
    let kib = |name: &str| {
        text.lines().find_map(|line| {
            // Lines of a node begin with `Node 0 `.
            let line = line.strip_prefix("Node 0 ").unwrap_or(line);
            let rest = line.strip_prefix(name)?.strip_prefix(':')?;
            rest.split_whitespace().next()?.parse::<f64>().ok()
        })
    };
    let caches = ["Active(file)", "Inactive(file)", "SReclaimable"];
    let free = kib("MemFree")? + caches.iter().filter_map(|name| kib(name)).sum::<f64>();
    Some(Device {
        name: "this host".to_owned(),
        total_mib: kib("MemTotal")? / 1024.0,
        free_mib: free / 1024.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drivers_table_is_read() {
        let devices = parse("NVIDIA H200, 143771, 4\nNVIDIA H200, 143771, 143000\n").unwrap();
        assert_eq!(devices.len(), 2);
        assert_eq!(
            (devices[1].total_mib, devices[1].free_mib),
            (143_771.0, 771.0)
        );
        assert!(
            parse("NVIDIA-SMI has failed\n")
                .unwrap_err()
                .contains("has failed")
        );
        assert!(parse("").is_err());
    }

    #[test]
    fn a_memory_node_and_a_whole_host_are_read() {
        let node = "Node 0 MemTotal:       13199564 kB\nNode 0 MemFree:         7962168 kB\n\
                    Node 0 Active(file):   1024 kB\nNode 0 Inactive(file): 1024 kB\n\
                    Node 0 SReclaimable: 2048 kB\n";
        let device = host_memory(node).unwrap();
        assert!((device.total_mib - 12_890.2).abs() < 0.1);
        assert!((device.free_mib - (7_962_168.0 + 4096.0) / 1024.0).abs() < 1e-9);
        assert!(host_memory("MemTotal: 1024 kB\nMemFree: 512 kB\n").is_some());
        assert_eq!(host_memory("nothing"), None);
    }
}
