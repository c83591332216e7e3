//! What NVML says of the GPUs of this machine. The library comes with the driver and is loaded at run
//! time.

use super::Card;
use crate::failure::Failure;
use nvml_wrapper::enum_wrappers::device::Clock;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

/// NVLinks of a GPU, at most: 18 on Hopper and Blackwell.
const MOST_LINKS: u32 = 18;

/// Every GPU of this machine.
pub(super) fn cards() -> Result<Vec<Card>, Failure> {
    let nvml = Nvml::init().map_err(|error| missing(&error))?;
    let count = nvml
        .device_count()
        .map_err(|error| failed("the number of GPUs", &error))?;
    (0..count)
        .map(|index| {
            let device = nvml
                .device_by_index(index)
                .map_err(|error| failed(&format!("GPU {index}"), &error))?;
            card(&device, index)
        })
        .collect()
}

fn card(device: &Device<'_>, index: u32) -> Result<Card, Failure> {
    let of = |what: &str| format!("the {what} of GPU {index}");
    let memory = device
        .memory_info()
        .map_err(|error| failed(&of("memory"), &error))?;
    let capability = device
        .cuda_compute_capability()
        .map_err(|error| failed(&of("compute capability"), &error))?;
    let part = |number: i32| u8::try_from(number).unwrap_or(0);
    Ok(Card {
        name: device.name().map_err(|error| failed(&of("name"), &error))?,
        memory_mib: memory.total >> 20,
        compute_capability: [part(capability.major), part(capability.minor)],
        // What older drivers and virtual GPUs leave out is worked out, or asked for, later.
        cores: device.num_cores().ok(),
        bus_bits: device.memory_bus_width().ok(),
        memory_mhz: device.max_clock_info(Clock::Memory).ok(),
        sm_mhz: device.max_clock_info(Clock::SM).ok(),
        nvlinks: links(device),
        pcie: device
            .max_pcie_link_gen()
            .and_then(|generation| Ok((generation, device.max_pcie_link_width()?)))
            .ok(),
        split: device.mig_mode().is_ok_and(|mode| mode.current == 1),
    })
}

/// NVLinks that are up.
fn links(device: &Device<'_>) -> u32 {
    let active = (0..MOST_LINKS).filter(|&link| {
        device
            .link_wrapper_for(link)
            .is_active()
            .is_ok_and(|active| active)
    });
    u32::try_from(active.count()).unwrap_or(0)
}

fn missing(error: &NvmlError) -> Failure {
    let why = match error {
        NvmlError::LibloadingError(error) => {
            format!("the NVIDIA driver's libnvidia-ml.so.1 cannot be loaded: {error}")
        }
        NvmlError::DriverNotLoaded => "the NVIDIA kernel driver is not loaded".to_owned(),
        NvmlError::NoPermission => "this user may not ask the NVIDIA driver".to_owned(),
        other => format!("the NVIDIA driver does not answer: {other}"),
    };
    Failure::failed(format!(
        "{why}. Run this on a machine with the driver, or describe the GPU in TOML (docs/profiles.md) \
         and add it with `parplan profiles add FILE`"
    ))
}

fn failed(what: &str, error: &NvmlError) -> Failure {
    Failure::failed(format!("the NVIDIA driver does not tell {what}: {error}"))
}
