//! From what the driver says to a profile: what is known of the GPU by name, and formulas for one
//! that is not.

use super::{Card, Check};
use crate::failure::Failure;
use parplan_profiles::{GpuProfile, Link, LinkKind, TensorRates, Vendor};
use std::collections::BTreeMap;

/// What was found.
pub(super) struct Machine<'a> {
    /// The one kind of GPU.
    pub card: &'a Card,
    /// How many there are.
    pub gpus: u32,
    /// Network bytes a second and direction a GPU, and where that is from.
    pub network: Option<(f64, String)>,
}

/// Network of a machine whose ports are not known: one port of 100 Gb/s a GPU.
const ASSUMED_NETWORK: f64 = 1.25e10;

/// What every chip of a compute capability has, where NVML does not tell.
struct Chip {
    /// CUDA cores of a multiprocessor.
    cores: u32,
    /// Dense bf16 operations (a product and a sum are two) a clock and multiprocessor.
    bf16: f64,
    /// Rates of fp8, int8 and fp4 over that of bf16; none where there is no unit.
    others: [Option<f64>; 3],
    /// Bytes a second and direction of one NVLink.
    nvlink: f64,
    /// L2 cache of its largest data-centre part, bytes.
    l2: u64,
}

/// Operations a clock: NVIDIA's architecture whitepapers, dense; each reproduces the printed rate at
/// the printed boost clock (A100: 108 · 1.41 GHz · 2048 = 312 TFLOPS; H100 SXM: 132 · 1.83 GHz · 4096
/// = 989; L40S: 142 · 2.52 GHz · 1024 = 366; B200: 148 · 1.85 GHz · 8192 = 2243; RTX PRO 6000:
/// 188 · 2.6 GHz · 1024 = 500).
fn chip(capability: [u8; 2]) -> Option<Chip> {
    let mib = 1024 * 1024;
    Some(match capability {
        [8, 0] => Chip {
            cores: 64,
            bf16: 2048.0,
            others: [None, Some(2.0), None],
            nvlink: 2.5e10,
            l2: 40 * mib,
        },
        [8, 6 | 7] => Chip {
            cores: 128,
            bf16: 1024.0,
            others: [None, Some(2.0), None],
            nvlink: 1.40625e10,
            l2: 6 * mib,
        },
        [8, 9] => Chip {
            cores: 128,
            bf16: 1024.0,
            others: [Some(2.0), Some(2.0), None],
            nvlink: 2.5e10,
            l2: 96 * mib,
        },
        [9, 0] => Chip {
            cores: 128,
            bf16: 4096.0,
            others: [Some(2.0), Some(2.0), None],
            nvlink: 2.5e10,
            l2: 50 * mib,
        },
        [10, 0] => Chip {
            cores: 128,
            bf16: 8192.0,
            others: [Some(2.0), Some(2.0), Some(4.0)],
            nvlink: 5.0e10,
            l2: 126 * mib,
        },
        [10, 3] => Chip {
            cores: 128,
            bf16: 8192.0,
            // Blackwell Ultra gave its int8 units for fp4 ones.
            others: [Some(2.0), None, Some(6.0)],
            nvlink: 5.0e10,
            l2: 126 * mib,
        },
        [12, _] => Chip {
            cores: 128,
            bf16: 1024.0,
            others: [Some(2.0), Some(2.0), Some(4.0)],
            nvlink: 5.0e10,
            l2: 128 * mib,
        },
        _ => return None,
    })
}

/// The profile of a machine, and which of its figures to check.
///
/// A GPU that is known by name keeps its data-sheet figures; what the machine says of itself
/// (memory, links, count) replaces theirs. Of another one, rates follow from clocks and counts.
pub(super) fn profile(
    machine: &Machine<'_>,
    known: Option<&GpuProfile>,
    name: &str,
) -> Result<(GpuProfile, Vec<Check>), Failure> {
    let card = machine.card;
    let mut checks = Vec::new();
    let mut out = match known {
        Some(known) => GpuProfile {
            sources: known
                .sources
                .iter()
                .map(|(field, text)| (field.clone(), format!("as of {}: {text}", known.name)))
                .collect(),
            ..known.clone()
        },
        None => computed(card, &mut checks)?,
    };
    name.clone_into(&mut out.name);
    out.aliases = Vec::new();
    out.memory_mib = card.memory_mib;
    out.sources
        .insert("memory_mib".to_owned(), format!("NVML, {}", card.name));
    out.gpus_per_node = machine.gpus;
    links(machine, &mut out, &mut checks);
    match &machine.network {
        Some((bytes_per_s, words)) => {
            out.network_bytes_per_s = *bytes_per_s;
            out.sources
                .insert("network_bytes_per_s".to_owned(), words.clone());
        }
        None => {
            if known.is_none() {
                out.network_bytes_per_s = ASSUMED_NETWORK;
            }
            out.sources.insert(
                "network_bytes_per_s".to_owned(),
                "assumed: no active RDMA port was found".to_owned(),
            );
            checks.push(Check {
                field: "network_bytes_per_s",
                why: format!(
                    "no active RDMA port was found; {:.1} GB/s a GPU is assumed, and counts only \
                     between nodes",
                    out.network_bytes_per_s / 1e9
                ),
            });
        }
    }
    if card.split {
        checks.push(Check {
            field: "memory_mib",
            why: "the GPUs are split into instances (MIG); the profile is of a whole one"
                .to_owned(),
        });
    }
    Ok((out, checks))
}

/// Links as they are on this machine.
fn links(machine: &Machine<'_>, out: &mut GpuProfile, checks: &mut Vec<Check>) {
    let card = machine.card;
    let per_link = chip(card.compute_capability).map_or(2.5e10, |chip| chip.nvlink);
    if card.nvlinks > 0 {
        out.link = Link {
            kind: LinkKind::Nvlink,
            bytes_per_s: f64::from(card.nvlinks) * per_link,
            // Switches reduce and multicast from Hopper on.
            multicast: card.compute_capability[0] >= 9 && machine.gpus > 2,
        };
        // A rack's domain is larger than what one node sees of it.
        if out.link_domain_gpus <= machine.gpus || out.link_domain_gpus <= 8 {
            out.link_domain_gpus = machine.gpus;
        }
        out.sources.insert(
            "link".to_owned(),
            format!(
                "NVML: {} NVLinks up, {} GB/s a link and direction",
                card.nvlinks,
                per_link / 1e9
            ),
        );
        checks.push(Check {
            field: "link_domain_gpus",
            why: format!(
                "is {}: NVML does not tell how far the NVLink domain reaches (72 in an NVL72 rack, 2 \
                 over a bridge)",
                out.link_domain_gpus
            ),
        });
        checks.push(Check {
            field: "link.multicast",
            why: format!(
                "is {}: whether switches reduce is not told",
                out.link.multicast
            ),
        });
        return;
    }
    let (generation, lanes) = card.pcie.unwrap_or((4, 16));
    // Each generation doubles the one before; 3 to 5 carry 128 bits in 130, 6 in flits of 236 in 256.
    let lane = match generation {
        0..=3 => 8e9 / 8.0 * 128.0 / 130.0,
        4 => 16e9 / 8.0 * 128.0 / 130.0,
        5 => 32e9 / 8.0 * 128.0 / 130.0,
        _ => 64e9 / 8.0 * 236.0 / 256.0,
    };
    out.link = Link {
        kind: LinkKind::Pcie,
        bytes_per_s: lane * f64::from(lanes.max(1)),
        multicast: false,
    };
    out.link_domain_gpus = 1;
    out.sources.insert(
        "link".to_owned(),
        format!("NVML: no NVLink is up; PCIe {generation}.0 x{lanes}, one way"),
    );
}

/// A GPU that no profile knows.
fn computed(card: &Card, checks: &mut Vec<Check>) -> Result<GpuProfile, Failure> {
    let [major, minor] = card.compute_capability;
    let untold = |what: &str| {
        Failure::failed(format!(
            "{} is not known by name and NVML does not tell its {what}; describe it in TOML \
             (docs/profiles.md) and add it with `parplan profiles add FILE`",
            card.name
        ))
    };
    let chip = chip(card.compute_capability).ok_or_else(|| {
        Failure::failed(format!(
            "{} has compute capability {major}.{minor}, whose tensor rates are not known; describe \
             it in TOML (docs/profiles.md) and add it with `parplan profiles add FILE`",
            card.name
        ))
    })?;
    let cores = card.cores.ok_or_else(|| untold("cores"))?;
    let bus = card.bus_bits.ok_or_else(|| untold("memory bus width"))?;
    let memory_mhz = card.memory_mhz.ok_or_else(|| untold("memory clock"))?;
    let sm_mhz = card.sm_mhz.ok_or_else(|| untold("clocks"))?;
    let sms = cores / chip.cores;
    let bandwidth = f64::from(bus) / 8.0 * f64::from(memory_mhz) * 1e6 * 2.0;
    let bf16 = f64::from(sms) * f64::from(sm_mhz) * 1e6 * chip.bf16;
    let [fp8, int8, fp4] = chip.others.map(|ratio| ratio.map(|ratio| ratio * bf16));
    let sources: BTreeMap<String, String> = [
        (
            "memory_bytes_per_s",
            format!("computed: bus of {bus} bits x {memory_mhz} MHz x 2 (both edges), from NVML"),
        ),
        (
            "sms",
            format!("NVML: {cores} CUDA cores, {} a multiprocessor", chip.cores),
        ),
        (
            "l2_bytes",
            format!("of the largest part of compute capability {major}.{minor}"),
        ),
        (
            "tensor",
            format!(
                "computed: {sms} multiprocessors x {sm_mhz} MHz (NVML's highest clock) x {} dense \
                 bf16 operations a clock (compute capability {major}.{minor}, NVIDIA whitepaper)",
                chip.bf16
            ),
        ),
    ]
    .into_iter()
    .map(|(field, text)| (field.to_owned(), text))
    .collect();
    checks.extend([
        Check {
            field: "tensor",
            why: format!(
                "bf16 {:.0} TFLOPS from {sms} multiprocessors at {sm_mhz} MHz; a data sheet takes a \
                 lower clock, and GeForce parts run at half of it",
                bf16 / 1e12
            ),
        },
        Check {
            field: "memory_bytes_per_s",
            why: format!(
                "{:.2} TB/s from {bus} bits at {memory_mhz} MHz, two a clock",
                bandwidth / 1e12
            ),
        },
        Check {
            field: "l2_bytes",
            why: format!("{} MiB, of the largest part of its kind", chip.l2 >> 20),
        },
    ]);
    Ok(GpuProfile {
        name: String::new(),
        aliases: Vec::new(),
        vendor: Vendor::Nvidia,
        memory_mib: card.memory_mib,
        context_mib: None,
        memory_bytes_per_s: bandwidth,
        sms,
        l2_bytes: chip.l2,
        compute_capability: card.compute_capability,
        tensor: TensorRates {
            bf16,
            fp8,
            int8,
            fp4,
        },
        link: Link {
            kind: LinkKind::Pcie,
            bytes_per_s: 0.0,
            multicast: false,
        },
        gpus_per_node: 1,
        link_domain_gpus: 1,
        network_bytes_per_s: ASSUMED_NETWORK,
        sources,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::h200;
    use super::*;
    use parplan_profiles::Library;

    fn of(card: &Card, known: Option<&GpuProfile>, gpus: u32) -> (GpuProfile, Vec<Check>) {
        let machine = Machine {
            card,
            gpus,
            network: None,
        };
        profile(&machine, known, "here").unwrap()
    }

    fn near(a: f64, b: f64, part: f64) {
        assert!(
            (a / b - 1.0).abs() < part,
            "{a} is not within {part} of {b}"
        );
    }

    #[test]
    fn a_known_gpu_keeps_its_data_sheet_and_takes_what_the_machine_says() {
        let library = Library::embedded();
        let known = library.gpu("NVIDIA H200").unwrap();
        let (here, _) = of(&h200(), Some(&known), 2);
        here.validate().unwrap();
        assert_eq!((here.tensor, here.sms), (known.tensor, known.sms));
        assert_eq!(here.memory_bytes_per_s, known.memory_bytes_per_s);
        assert_eq!((here.gpus_per_node, here.link_domain_gpus), (2, 2));
        assert_eq!(here.link.bytes_per_s, 4.5e11);
        assert_eq!(here.name, "here");
    }

    #[test]
    fn an_unknown_gpu_is_computed_to_within_its_clocks() {
        // The same chip under a name that nobody knows: 8 % above the data sheet, by its clock.
        let library = Library::embedded();
        let sheet = library.gpu("h200").unwrap();
        let (here, checks) = of(&h200(), None, 8);
        here.validate().unwrap();
        assert_eq!(here.sms, 132);
        near(here.memory_bytes_per_s, sheet.memory_bytes_per_s, 0.03);
        near(here.tensor.bf16, sheet.tensor.bf16 * 1980.0 / 1830.0, 0.01);
        assert_eq!(here.tensor.fp4, None);
        let fields: Vec<&str> = checks.iter().map(|check| check.field).collect();
        for field in [
            "tensor",
            "memory_bytes_per_s",
            "l2_bytes",
            "network_bytes_per_s",
        ] {
            assert!(fields.contains(&field), "{fields:?}");
        }
    }

    #[test]
    fn the_formulas_give_the_data_sheets_at_the_data_sheets_clocks() {
        let library = Library::embedded();
        for (name, boost_mhz) in [
            ("a100-80g", 1410),
            ("h100-sxm", 1830),
            ("h20", 1980),
            ("l40s", 2520),
            ("b200", 1850),
            ("rtx-pro-6000", 2617),
        ] {
            let sheet = library.gpu(name).unwrap();
            let chip = chip(sheet.compute_capability).unwrap();
            let bf16 = f64::from(sheet.sms) * f64::from(boost_mhz) * 1e6 * chip.bf16;
            if name == "h20" {
                // Cut to a seventh by rule of export: a name that no formula can follow.
                assert!(bf16 > 2.0 * sheet.tensor.bf16);
                continue;
            }
            near(bf16, sheet.tensor.bf16, 0.03);
        }
    }

    #[test]
    fn without_nvlink_the_link_is_pcie() {
        let card = Card {
            name: "NVIDIA L40S".to_owned(),
            compute_capability: [8, 9],
            nvlinks: 0,
            pcie: Some((4, 16)),
            ..h200()
        };
        let (here, _) = of(&card, None, 4);
        assert_eq!(here.link.kind, LinkKind::Pcie);
        near(here.link.bytes_per_s, 3.15e10, 0.01);
        assert_eq!(here.link_domain_gpus, 1);
    }

    #[test]
    fn what_the_driver_leaves_out_is_named() {
        let blind = Card {
            cores: None,
            ..h200()
        };
        let machine = Machine {
            card: &blind,
            gpus: 1,
            network: None,
        };
        let said = profile(&machine, None, "here").unwrap_err().to_string();
        assert!(said.contains("does not tell its cores"), "{said}");
        let old = Card {
            compute_capability: [6, 1],
            ..h200()
        };
        let machine = Machine {
            card: &old,
            gpus: 1,
            network: None,
        };
        let said = profile(&machine, None, "here").unwrap_err().to_string();
        assert!(said.contains("6.1"), "{said}");
    }
}
