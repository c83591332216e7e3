//! Calibrations of a question: which apply, and the prices under them.

use super::Assumptions;
use crate::args::ModelArgs;
use crate::calibration::store;
use crate::failure::Failure;
use parplan_planner::calibrate::{Calibrated, Layer, Origin, apply};
use parplan_profiles::engine::EngineRules;
use parplan_profiles::{Calibration, EfficiencyProfile, GpuProfile, Library, Overheads, Sourced};
use std::borrow::Cow;
use std::path::Path;

/// What `--calibration none` is.
const NONE: &str = "none";

/// Lets calibrations of the GPU price its operations, and says which.
pub(super) fn price(
    args: &ModelArgs,
    measured: Option<&Calibration>,
    rules: &EngineRules,
    gpu: &mut GpuProfile,
    efficiency: &mut Sourced<EfficiencyProfile>,
    overheads: &mut Sourced<Overheads>,
    assumptions: &mut Assumptions,
) -> Result<(), Failure> {
    let mut found: Vec<(Origin, Calibration)> = Vec::new();
    found.extend(measured.map(|c| (Origin::User, c.clone())));
    let plain = efficiency.file.is_none();
    match args.calibration.as_deref() {
        Some(NONE) if measured.is_none() => {
            assumptions.note("no calibration is used (--calibration none)");
        }
        named => {
            found.extend(kept(named, args.profiles.as_deref(), gpu, plain)?);
            if found.is_empty() {
                assumptions.note(format!(
                    "no calibration of {} is known: prices rest on tables of other machines \
                     (`parplan calibrate` measures this one)",
                    gpu.name
                ));
            }
        }
    }
    let priced = under(&found, rules, gpu, &efficiency.figures, &overheads.figures);
    for used in priced.used {
        assumptions.note(format!("prices: {used} (--calibration)"));
    }
    *gpu = priced.gpu;
    efficiency.figures = Cow::Owned(priced.efficiency);
    overheads.figures = Cow::Owned(priced.overheads);
    Ok(())
}

/// Figures of an engine under the calibrations that were found. Also under none: what parplan's own
/// executor never does holds there as well.
fn under(
    found: &[(Origin, Calibration)],
    rules: &EngineRules,
    gpu: &GpuProfile,
    efficiency: &EfficiencyProfile,
    overheads: &Overheads,
) -> Calibrated {
    let layers: Vec<Layer<'_>> = found
        .iter()
        .map(|(origin, calibration)| Layer {
            calibration,
            origin: *origin,
        })
        .collect();
    apply(rules.own_kernels, gpu, efficiency, overheads, &layers)
}

/// The calibrations that apply to a GPU: the one that is named, or all of the user's folder, and, unless
/// figures that a user wrote down hold, the shipped ones.
///
/// # Errors
/// One that does not read, or a named one of another GPU.
pub fn kept(
    named: Option<&str>,
    profiles: Option<&Path>,
    gpu: &GpuProfile,
    with_shipped: bool,
) -> Result<Vec<(Origin, Calibration)>, Failure> {
    let mut found = Vec::new();
    match named {
        Some(NONE) => return Ok(found),
        Some(file) => {
            let calibration = store::read(Path::new(file))?;
            calibration
                .is_for(file, gpu)
                .map_err(|e| Failure::unusable(e.to_string()))?;
            found.push((Origin::User, calibration));
        }
        None => {
            let own = store::of_gpu(profiles, gpu)?;
            found.extend(own.into_iter().map(|(_, c)| (Origin::User, c)));
        }
    }
    if with_shipped {
        let shipped = Calibration::shipped(gpu).map_err(|e| Failure::failed(e.to_string()))?;
        found.extend(shipped.into_iter().map(|c| (Origin::Shipped, c)));
    }
    Ok(found)
}

/// Prices of parplan's own executor on a GPU.
pub struct BuiltinPrices {
    /// Its rules.
    pub rules: EngineRules,
    /// Figures under the calibrations that apply.
    pub calibrated: Calibrated,
}

/// What the builtin engine is priced by: its figures for `gpu`, under the calibration that is named, or
/// those of the user's folder and the shipped ones.
///
/// # Errors
/// A calibration that does not read or is of another GPU; a GPU without figures.
pub fn builtin(
    library: &Library,
    gpu: &GpuProfile,
    named: Option<&str>,
    profiles: Option<&Path>,
) -> Result<BuiltinPrices, Failure> {
    let rules = library
        .engine("builtin")?
        .resolve(None, false)
        .map_err(|e| Failure::failed(e.to_string()))?;
    let efficiency = library.efficiency(&rules.name, gpu)?;
    let overheads = library.overheads(&rules.name, gpu)?;
    let found = kept(named, profiles, gpu, efficiency.file.is_none())?;
    let calibrated = under(&found, &rules, gpu, &efficiency.figures, &overheads.figures);
    Ok(BuiltinPrices { rules, calibrated })
}
