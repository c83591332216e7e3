//! What was typed, resolved once into a question that the planner can answer.

use crate::args::QuestionArgs;
use crate::failure::Failure;
use parplan_planner::cost::OpCosts;
use parplan_planner::deployment::Setup;
use parplan_planner::formats;
use parplan_planner::question::{Settings, Traffic};
use parplan_profiles::engine::EngineRules;
use parplan_profiles::{
    Calibration, Dtype, EfficiencyProfile, GpuProfile, ModelProfile, Overheads, Slo, Sourced,
};

pub mod assume;
pub mod calibrated;
pub mod choice;
pub mod hub;
mod names;
pub mod space;
mod traffic;
pub mod workload;

pub use assume::Assumptions;
pub use names::{
    DEFAULT_ENGINE, PROFILES_VARIABLE, as_path, library, library_to_be, model_named,
    plan_again_hint, user_folder,
};

/// A resolved question: everything but the layouts to answer it for.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The model.
    pub model: ModelProfile,
    /// The GPU.
    pub gpu: GpuProfile,
    /// The engine's rules.
    pub rules: EngineRules,
    /// How close kernels come to the roofline.
    pub efficiency: Sourced<EfficiencyProfile>,
    /// What the engine adds.
    pub overheads: Sourced<Overheads>,
    /// The traffic.
    pub traffic: Traffic,
    /// Limits that it is to keep.
    pub slo: Slo,
    /// Engine settings that were fixed.
    pub settings: Settings,
    /// What the engine quantises the checkpoint to while it loads it.
    pub quantization: Option<Dtype>,
    /// What was not said and had to be assumed.
    pub assumptions: Assumptions,
}

impl Ask {
    /// Resolves the shared options.
    ///
    /// # Errors
    /// The first thing that cannot be used, with the value and what would be right.
    pub fn resolve(args: &QuestionArgs) -> Result<Ask, Failure> {
        Ask::resolve_with(args, None)
    }

    /// As [`Ask::resolve`], with samples that were just measured beside the calibrations that are kept.
    ///
    /// # Errors
    /// As [`Ask::resolve`].
    pub fn resolve_with(
        args: &QuestionArgs,
        measured: Option<&Calibration>,
    ) -> Result<Ask, Failure> {
        let mut assumptions = Assumptions::default();
        let library = library(args.model.profiles.as_deref())?;
        let (model, asked) = names::model(&library, &args.model, &mut assumptions)?;
        let mut gpu = library.gpu(&args.model.gpu)?;
        let rules = names::rules(&library, &args.engine, &mut assumptions)?;
        names::runs_on(&rules, &gpu)?;
        let quantization = names::quantization(&rules, asked)?;
        if let Some(why) = formats::refused_weights(&rules, &gpu, &model) {
            return Err(Failure::unusable(format!(
                "{why}; name a checkpoint in another format, another GPU or another --engine"
            )));
        }
        assumptions.of_formats(&formats::weight_only(&rules, &gpu, &model), &gpu);
        let mut efficiency = library.efficiency(&rules.name, &gpu)?;
        let mut overheads = library.overheads(&rules.name, &gpu)?;
        let settings = settings(args, &model, &mut assumptions)?;
        let (traffic, slo) = traffic::resolve(
            &args.traffic,
            &args.limits,
            &library,
            &model,
            &settings,
            &mut assumptions,
        )?;
        calibrated::price(
            &args.model,
            measured,
            &rules,
            &mut gpu,
            &mut efficiency,
            &mut overheads,
            &mut assumptions,
        )?;
        formats::price_as_run(&rules, &gpu, efficiency.figures.to_mut());
        assumptions.of_links(&gpu);
        assumptions.of_efficiency(&efficiency, &gpu);
        assumptions.of_overheads(&overheads);
        Ok(Ask {
            model,
            gpu,
            rules,
            efficiency,
            overheads,
            traffic,
            slo,
            settings,
            quantization,
            assumptions,
        })
    }

    /// What the planner keeps fixed while it compares configurations.
    ///
    /// # Errors
    /// A GPU profile without a figure that prices need.
    pub fn setup(&self) -> Result<Setup<'_>, Failure> {
        Ok(Setup {
            model: &self.model,
            gpu: &self.gpu,
            rules: &self.rules,
            costs: OpCosts::new(&self.efficiency.figures, &self.gpu)?,
            overheads: &self.overheads.figures,
        })
    }
}

fn settings(
    args: &QuestionArgs,
    model: &ModelProfile,
    assumptions: &mut Assumptions,
) -> Result<Settings, Failure> {
    let typed = &args.settings;
    if let Some(length) = typed.context_length
        && length > model.max_position
    {
        assumptions.warn(format!(
            "--context-length {length} is beyond the {} tokens that {} was configured for: the \
             launch command lets the engine take it, and what the model answers there is good only \
             if its rope scaling is set for it",
            model.max_position, model.name
        ));
    }
    if let Some(fraction) = typed.memory_fraction
        && fraction >= 1.0
    {
        return Err(Failure::unusable(
            "--memory-fraction 1 leaves nothing for CUDA itself; give a share below 1, such as 0.9",
        ));
    }
    Ok(Settings {
        memory_fraction: typed.memory_fraction,
        max_running_requests: typed.max_running_requests,
        chunk_tokens: typed.chunk_tokens,
        receive_interval: typed.receive_interval,
        company_steps: None,
        graph_sizes: typed.graph_sizes.clone(),
        context_length: typed.context_length,
    })
}
