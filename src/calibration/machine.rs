//! Which machine is measured: backend, ranks, the profile of its GPU.

use crate::args::CalibrateArgs;
use crate::failure::Failure;
use parplan_executor::cuda::device_count;
use parplan_executor::jobs::Backend;
use parplan_executor::probes::survey;
use parplan_profiles::calibration::Provenance;
use parplan_profiles::{GpuProfile, Library};

/// A machine to be measured.
#[derive(Debug)]
pub struct Target {
    /// What computes.
    pub backend: Backend,
    /// Ranks that are measured together.
    pub ranks: u32,
    /// The profile of its GPU.
    pub gpu: GpuProfile,
    /// Its facts, with the GPU profile's name.
    pub provenance: Provenance,
}

/// Finds out what is there.
///
/// # Errors
/// No GPU where one is asked for, more ranks than GPUs, or a GPU that no profile knows.
pub fn target(args: &CalibrateArgs, library: &Library) -> Result<Target, Failure> {
    let backend = args.backend.unwrap_or_else(Backend::found_here);
    let on_gpus = backend == Backend::Nccl;
    let there = match backend {
        Backend::Nccl => u32::try_from(device_count()?).unwrap_or(u32::MAX),
        Backend::Cpu | Backend::Peer => 2,
    };
    let ranks = args.ranks.unwrap_or(there);
    if ranks == 0 || (on_gpus && ranks > there) {
        let right = match on_gpus {
            true => format!("this machine has {there} GPUs; give 1 to {there}"),
            false => "nothing can be measured without a rank; give 1 or more".to_owned(),
        };
        return Err(Failure::unusable(format!("--ranks {ranks}: {right}")));
    }
    let mut provenance = survey(on_gpus, ranks)?;
    let gpu = match (&args.gpu, backend) {
        (Some(name), _) => library.gpu(name)?,
        (None, Backend::Cpu | Backend::Peer) => library.gpu("cpu")?,
        (None, Backend::Nccl) => library.gpu(&provenance.device).map_err(|_| {
            Failure::unusable(format!(
                "no profile knows the GPU '{}': give --gpu NAME, or make one with `parplan profiles \
                 add --from-this-machine`",
                provenance.device
            ))
        })?,
    };
    provenance.gpu = gpu.name.clone();
    provenance.date = jiff::Timestamp::now()
        .round(jiff::Unit::Second)
        .map(|now| now.to_string())
        .unwrap_or_default();
    Ok(Target {
        backend,
        ranks,
        gpu,
        provenance,
    })
}
