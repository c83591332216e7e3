//! `profiles add --from-this-machine`: a GPU profile of what is in this machine.

use super::add::{self, Staged};
use crate::failure::Failure;
use parplan_profiles::{GpuProfile, Library};
use std::fmt::Write as _;

mod derive;
mod network;
mod nvml;

/// What a person should look at before trusting the profile.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Check {
    /// The field.
    field: &'static str,
    /// Why.
    why: String,
}

/// One GPU as the driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Card {
    /// NVML's name, such as `NVIDIA H200`.
    name: String,
    /// Memory in MiB.
    memory_mib: u64,
    /// CUDA compute capability.
    compute_capability: [u8; 2],
    /// CUDA cores; none where the driver does not say.
    cores: Option<u32>,
    /// Width of the memory bus, bits.
    bus_bits: Option<u32>,
    /// Highest memory clock, MHz.
    memory_mhz: Option<u32>,
    /// Highest clock of the multiprocessors, MHz.
    sm_mhz: Option<u32>,
    /// NVLinks that are up.
    nvlinks: u32,
    /// PCI Express generation and lanes.
    pcie: Option<(u32, u32)>,
    /// Split into instances (MIG).
    split: bool,
}

/// Reads the GPUs of this machine and adds a profile of them.
///
/// # Errors
/// No driver, no GPU, GPUs of several kinds, or one that no profile can be made for.
pub(super) fn run(library: &Library, name: Option<&str>, replace: bool) -> Result<String, Failure> {
    let cards = nvml::cards()?;
    let card = alike(&cards)?;
    let count = u32::try_from(cards.len()).unwrap_or(u32::MAX);
    let known = library.gpu(&card.name).ok();
    let machine = derive::Machine {
        card,
        gpus: count,
        network: network::per_gpu(count),
    };
    let name = name.unwrap_or("this-machine");
    let (profile, checks) = derive::profile(&machine, known.as_ref(), name)?;
    let text = text(&profile)?;
    let staged = Staged::of_text(library, &format!("the profile of {}", card.name), text)?;
    let mut out = add::place(library, &staged, replace)?;
    report(&mut out, &profile, count, &card.name, &checks);
    Ok(out)
}

/// The one kind of GPU that all are.
fn alike(cards: &[Card]) -> Result<&Card, Failure> {
    let Some(first) = cards.first() else {
        return Err(Failure::failed(
            "the NVIDIA driver is there and lists no GPU; nothing to make a profile of",
        ));
    };
    let mut kinds: Vec<(String, usize)> = Vec::new();
    for card in cards {
        let kind = format!("{} with {} MiB", card.name, card.memory_mib);
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => kinds.push((kind, 1)),
        }
    }
    if kinds.len() > 1 {
        let list: Vec<String> = kinds
            .iter()
            .map(|(kind, count)| format!("{count} x {kind}"))
            .collect();
        return Err(Failure::failed(format!(
            "the GPUs of this machine differ: {}; a layout is planned for GPUs of one kind, because \
             the slowest sets the pace of all. Add a profile of the kind that will serve: \
             `parplan profiles list gpus` shows those that are built in",
            list.join(", ")
        )));
    }
    Ok(first)
}

fn text(profile: &GpuProfile) -> Result<String, Failure> {
    toml::to_string(profile)
        .map_err(|error| Failure::failed(format!("the profile cannot be written as TOML: {error}")))
}

fn report(out: &mut String, profile: &GpuProfile, count: u32, card: &str, checks: &[Check]) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{count} x {card}; plan with --gpu {}", profile.name);
    if checks.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "NVML does not tell all. Please check, and correct in the file:"
    );
    for check in checks {
        let _ = writeln!(out, "  {:20} {}", check.field, check.why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn h200() -> Card {
        Card {
            name: "NVIDIA H200".to_owned(),
            memory_mib: 143_771,
            compute_capability: [9, 0],
            cores: Some(16_896),
            bus_bits: Some(6144),
            memory_mhz: Some(3201),
            sm_mhz: Some(1980),
            nvlinks: 18,
            pcie: Some((5, 16)),
            split: false,
        }
    }

    #[test]
    fn mixed_nodes_are_refused_by_name_and_count() {
        let other = Card {
            name: "NVIDIA L40S".to_owned(),
            memory_mib: 46_068,
            ..h200()
        };
        let said = alike(&[h200(), other, h200()]).unwrap_err().to_string();
        for part in ["2 x NVIDIA H200 with 143771 MiB", "1 x NVIDIA L40S"] {
            assert!(said.contains(part), "{said}");
        }
        assert_eq!(alike(&[h200(), h200()]).unwrap().name, "NVIDIA H200");
        assert!(alike(&[]).unwrap_err().to_string().contains("no GPU"));
    }
}
