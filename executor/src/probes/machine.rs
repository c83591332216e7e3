//! The machine that is measured: its facts, and what it says of itself meanwhile.

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use parplan_profiles::calibration::{GpuState, Provenance};

use crate::Result;
use crate::cuda::Gpu;
use crate::jobs::Context;

/// NVML, where the machine has it; looks only, and changes nothing.
pub struct Monitor {
    nvml: Option<Nvml>,
    /// PCI address of this rank's GPU: NVML counts GPUs otherwise than CUDA does.
    address: Option<String>,
}

/// Reasons that hold clocks down for good cause: nothing to do, or a choice of the owner.
const USUAL: ThrottleReasons = ThrottleReasons::GPU_IDLE
    .union(ThrottleReasons::APPLICATIONS_CLOCKS_SETTING)
    .union(ThrottleReasons::DISPLAY_CLOCK_SETTING);

impl Monitor {
    /// Opens NVML for a GPU. Without NVML nothing is known, which is no error.
    pub fn open(gpu: Option<&Gpu>) -> Monitor {
        let Some(gpu) = gpu else {
            return Monitor {
                nvml: None,
                address: None,
            };
        };
        Monitor {
            nvml: Nvml::init().ok(),
            address: gpu.pci_address().ok(),
        }
    }

    /// The state of this rank's GPU now, called `number`.
    pub fn state(&self, number: u32) -> Option<GpuState> {
        let device = self
            .nvml
            .as_ref()?
            .device_by_pci_bus_id(self.address.as_deref()?)
            .ok()?;
        let own = std::process::id();
        let throttled = device
            .current_throttle_reasons()
            .map(|reasons| {
                (reasons - USUAL)
                    .iter_names()
                    .map(|(name, _)| name.to_ascii_lowercase().replace('_', " "))
                    .collect()
            })
            .unwrap_or_default();
        let others = device.running_compute_processes().map_or(0, |list| {
            list.iter().filter(|process| process.pid != own).count() as u32
        });
        Some(GpuState {
            gpu: number,
            sm_mhz: device.clock_info(Clock::SM).unwrap_or(0),
            sm_max_mhz: device.max_clock_info(Clock::SM).unwrap_or(0),
            memory_mhz: device.clock_info(Clock::Memory).unwrap_or(0),
            temperature_c: device.temperature(TemperatureSensor::Gpu).unwrap_or(0),
            power_w: device.power_usage().map_or(0.0, |mw| f64::from(mw) / 1e3),
            throttled,
            others,
        })
    }

    fn driver(&self) -> Option<String> {
        self.nvml.as_ref()?.sys_driver_version().ok()
    }
}

/// The facts of this rank's machine; names that only the caller knows stay empty.
pub(super) fn facts(context: &Context, monitor: &Monitor) -> Result<Provenance> {
    let (device, memory_bytes, cuda) = match &context.gpu {
        Some(gpu) => (
            gpu.name()?,
            gpu.memory()?.1,
            gpu.driver_cuda().unwrap_or_default(),
        ),
        None => (processor(), total_memory(), String::new()),
    };
    let world = context.identity.world;
    Ok(Provenance {
        device,
        memory_bytes,
        count: world as u32,
        backend: if context.gpu.is_some() { "nccl" } else { "cpu" }.into(),
        driver: monitor.driver().unwrap_or_default(),
        cuda,
        nccl: context
            .nccl
            .as_ref()
            .map(|n| n.library().version().to_string())
            .unwrap_or_default(),
        topology: match (&context.gpu, world) {
            (_, 1) => "one device".into(),
            (Some(_), n) => format!("{n} GPUs of one machine"),
            (None, n) => format!("{n} processes over loopback TCP"),
        },
        host: host(),
        measured_by: concat!("parplan ", env!("CARGO_PKG_VERSION")).into(),
        ..Provenance::default()
    })
}

/// What a machine says of itself before any rank is started; names that only the caller knows stay
/// empty. Opens no context on a GPU.
///
/// # Errors
/// [`crate::Error::Unusable`] where GPUs are asked for and NVML shows none.
pub fn survey(gpus: bool, ranks: u32) -> Result<Provenance> {
    let mut out = Provenance {
        device: processor(),
        memory_bytes: total_memory(),
        count: ranks,
        backend: if gpus { "nccl" } else { "cpu" }.into(),
        topology: format!("{ranks} processes over loopback TCP"),
        host: host(),
        measured_by: concat!("parplan ", env!("CARGO_PKG_VERSION")).into(),
        ..Provenance::default()
    };
    if !gpus {
        return Ok(out);
    }
    let unusable = |e: nvml_wrapper::error::NvmlError| {
        crate::Error::Unusable(format!("the GPU cannot be described: NVML says: {e}"))
    };
    let nvml = Nvml::init().map_err(unusable)?;
    let device = nvml.device_by_index(0).map_err(unusable)?;
    out.device = device.name().map_err(unusable)?;
    out.memory_bytes = device.memory_info().map_err(unusable)?.total;
    out.driver = nvml.sys_driver_version().unwrap_or_default();
    out.cuda = nvml
        .sys_cuda_driver_version()
        .map(|v| format!("{}.{}", v / 1000, v % 1000 / 10))
        .unwrap_or_default();
    // Up to 18 links on Hopper and Blackwell; numbers beyond a GPU's own answer with an error.
    let links = (0..32)
        .filter(|&at| device.link_wrapper_for(at).is_active().unwrap_or(false))
        .count();
    out.topology = match (ranks, links) {
        (1, _) => "one GPU".into(),
        (n, 0) => format!("{n} GPUs of one machine, no NVLink"),
        (n, links) => format!("{n} GPUs of one machine, {links} NVLinks each"),
    };
    Ok(out)
}

/// What a measurement between two states should say of them.
pub(super) fn remarks(before: Option<&GpuState>, after: Option<&GpuState>) -> Vec<String> {
    let mut out = Vec::new();
    for state in [before, after].into_iter().flatten() {
        for reason in &state.throttled {
            let text = format!("clocks held down: {reason}");
            if !out.contains(&text) {
                out.push(text);
            }
        }
    }
    if let Some(others) = [before, after]
        .into_iter()
        .flatten()
        .map(|s| s.others)
        .max()
        .filter(|n| *n > 0)
    {
        out.push(format!("{others} other processes on the GPU"));
    }
    out
}

/// Processor and operating system.
fn host() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{}, Linux {}", processor(), release.trim())
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let model = text
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .and_then(|rest| rest.split_once(':'))
        .map_or("a processor", |(_, name)| name.trim());
    format!("{model}, {cores} cores")
}

/// Bytes of the host's memory; 0 where the system does not say.
pub fn total_memory() -> u64 {
    meminfo("MemTotal:").unwrap_or(0)
}

/// Bytes of the host's memory that can be had without swapping; none where the system does not say.
pub fn available_memory() -> Option<u64> {
    meminfo("MemAvailable:")
}

/// A line of the kernel's account of memory, bytes.
fn meminfo(field: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.trim().split(' ').next()?.parse().ok()?;
    Some(kib * 1024)
}

/// Processes that want to run, a core, over the last minute; none where the system does not say.
pub fn load() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Some(text.split(' ').next()?.parse::<f64>().ok()? / cores as f64)
}
