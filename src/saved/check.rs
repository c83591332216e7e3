//! What makes a plan file one that parplan could have written: figures that can be, parts that say the
//! same, and a layout that the planner itself calls legal for its model, GPU and engine.

use super::SavedPlan;
use crate::ask::{as_path, model_named, plan_again_hint};
use crate::failure::Failure;
use crate::render::number::gib;
use parplan_planner::cost::OpCosts;
use parplan_planner::deployment::{Deployment, Setup, sm};
use parplan_planner::formats;
use parplan_planner::legality::{self, Ground, Machines, ModelShape, Options};
use parplan_planner::plan::{MemoryMap, Predicted};
use parplan_planner::question::{Balance, GraphSizes, Settings, Traffic};
use parplan_profiles::engine::rules::RequestLimit;
use parplan_profiles::engine::{EngineProfile, EngineRules};
use parplan_profiles::{GpuProfile, Library, ModelProfile};

/// What to do about a file that was changed.
const AGAIN: &str = "plan again instead of editing the file";

/// Sizes that follow from model and layout alone may differ by this share: rounding of a text.
const SAME: f64 = 0.01;

/// Share of a card by which what is held beside weights and cache may be off.
const UNSURE: f64 = 0.02;

/// Refuses numbers of any field that are none.
pub(super) fn finite(table: &toml::Table) -> Result<(), String> {
    fn walk(at: &str, value: &toml::Value) -> Result<(), String> {
        match value {
            toml::Value::Float(number) if !number.is_finite() => {
                Err(format!("{at} is {number}, it must be a finite number"))
            }
            toml::Value::Table(table) => table
                .iter()
                .try_for_each(|(key, value)| walk(&format!("{at}.{key}"), value)),
            toml::Value::Array(list) => list
                .iter()
                .enumerate()
                .try_for_each(|(index, value)| walk(&format!("{at}[{index}]"), value)),
            _ => Ok(()),
        }
    }
    table.iter().try_for_each(|(key, value)| walk(key, value))
}

/// Refuses figures that no plan has, and parts that contradict each other.
pub(super) fn coherent(plan: &SavedPlan) -> Result<(), String> {
    within("kv_tokens_per_rank", plan.kv_tokens_per_rank, 0.0, f64::MAX)?;
    let per_token = plan.kv_bytes_per_token_per_rank;
    within("kv_bytes_per_token_per_rank", per_token, 0.0, f64::MAX)?;
    within("memory_fraction", plan.memory_fraction, 0.01, 1.0)?;
    traffic(&plan.traffic)?;
    predictions(plan)?;
    memory(&plan.memory_bytes)?;
    started_as_planned(plan)
}

fn within(field: &str, value: f64, low: f64, high: f64) -> Result<(), String> {
    match (low..=high).contains(&value) {
        true => Ok(()),
        false if high == f64::MAX => Err(format!(
            "{field} is {value}, it must be a number from {low}"
        )),
        false => Err(format!(
            "{field} is {value}, it must be a number from {low} to {high}"
        )),
    }
}

fn traffic(traffic: &Traffic) -> Result<(), String> {
    // Ratios to the mean: a rounding error is no smaller longest.
    const ONE: f64 = 1.0 - 1e-9;
    for (field, value, low, high) in [
        ("isl", traffic.isl, 1.0, f64::MAX),
        ("osl", traffic.osl, 1.0, f64::MAX),
        ("concurrency", traffic.concurrency, 1.0, f64::MAX),
        ("waves", traffic.waves, 1.0, f64::MAX),
        ("prefix_hit", traffic.prefix_hit, 0.0, 1.0),
        ("prompts.longest", traffic.prompts.longest, ONE, f64::MAX),
        ("prompts.weighted", traffic.prompts.weighted, ONE, f64::MAX),
        ("prompts.width", traffic.prompts.width, 0.0, f64::MAX),
        ("outputs.longest", traffic.outputs.longest, ONE, f64::MAX),
        ("outputs.weighted", traffic.outputs.weighted, ONE, f64::MAX),
        ("outputs.width", traffic.outputs.width, 0.0, f64::MAX),
    ] {
        within(&format!("traffic.{field}"), value, low, high)?;
    }
    if let Some(rate) = traffic.requests_per_s {
        within("traffic.requests_per_s", rate, 1e-9, f64::MAX)?;
    }
    if let Some(s) = traffic.speculation {
        within("traffic.speculation.acceptance", s.acceptance, 0.0, 1.0)?;
    }
    match &traffic.balance {
        Balance::MeanOverMax(ratio) => within("traffic.balance.mean_over_max", *ratio, 1e-9, 1.0),
        Balance::Ranks(list) => list.iter().enumerate().try_for_each(|(rank, batch)| {
            let field = format!("traffic.balance.ranks[{rank}]");
            within(&field, *batch, 0.0, f64::MAX)
        }),
        Balance::Even | Balance::Random(_) => Ok(()),
    }
}

/// Each figure lies in its interval, and requests and tokens are one throughput.
fn predictions(plan: &SavedPlan) -> Result<(), String> {
    let p = &plan.predicted;
    let figures = [
        ("tpot_ms", p.tpot_ms),
        ("ttft_ms", Some(p.ttft_ms)),
        (
            "output_tokens_per_s_per_gpu",
            Some(p.output_tokens_per_s_per_gpu),
        ),
        ("output_tokens_per_s", Some(p.output_tokens_per_s)),
        ("requests_per_s", Some(p.requests_per_s)),
        ("decode_step_ms", Some(p.decode_step_ms)),
        ("prefill_pass_ms", Some(p.prefill_pass_ms)),
    ];
    for (name, figure) in figures {
        let Some(Predicted { value, low, high }) = figure else {
            continue;
        };
        if !(0.0 <= low && low <= value && value <= high) {
            return Err(format!(
                "predicted.{name} is {value} within {low} to {high}: its value must be at least 0 and \
                 lie in its interval"
            ));
        }
    }
    of_one_throughput(
        "requests_per_s",
        p.requests_per_s.value,
        p.output_tokens_per_s.value / plan.traffic.osl,
        "output_tokens_per_s over traffic.osl",
    )
}

/// Refuses a figure that is another throughput than the one which it follows from.
fn of_one_throughput(name: &str, found: f64, right: f64, from: &str) -> Result<(), String> {
    match (found - right).abs() > SAME * right.abs() {
        true => Err(format!(
            "predicted.{name} is {found}, and its {from} is {right}; {AGAIN}"
        )),
        false => Ok(()),
    }
}

fn memory(map: &MemoryMap) -> Result<(), String> {
    for (name, bytes) in map.parts() {
        if name != "headroom" {
            within(&format!("memory_bytes.{name}"), bytes, 0.0, f64::MAX)?;
        }
    }
    let sum: f64 = map.parts().iter().map(|part| part.1).sum();
    if (sum - map.total).abs() > SAME * map.total {
        return Err(format!(
            "the parts of memory_bytes sum to {} GiB, and its total is {} GiB; {AGAIN}",
            gib(sum),
            gib(map.total)
        ));
    }
    Ok(())
}

/// What is started says what was planned, field by field.
fn started_as_planned(plan: &SavedPlan) -> Result<(), String> {
    let (choice, start) = (&plan.choice, &plan.start);
    let ranks = choice
        .layout
        .attention_dp
        .saturating_mul(choice.layout.replicas)
        .max(1);
    let graphs = match choice.cuda_graphs {
        true => plan.graph_batch_sizes.clone(),
        false => Vec::new(),
    };
    let drafted = start.speculation.as_ref().map_or(0, |s| s.steps);
    let same = [
        (
            "start.layout",
            "choice.layout",
            start.layout == choice.layout,
        ),
        (
            "start.kv_dtype",
            "choice.kv_dtype",
            start.kv_dtype == Some(choice.kv_dtype),
        ),
        (
            "start.symmetric_memory",
            "choice.symmetric_memory",
            start.symmetric_memory == choice.symmetric_memory,
        ),
        (
            "start.expert_backend",
            "choice.expert_all_to_all",
            start.expert_backend.is_some() == choice.expert_all_to_all,
        ),
        (
            "start.speculation",
            "choice.speculative_steps",
            drafted == choice.speculative_steps,
        ),
        (
            "start.graph_sizes",
            "graph_batch_sizes (empty where choice.cuda_graphs is off)",
            start.graph_sizes.as_ref() == Some(&graphs),
        ),
        (
            "start.memory_fraction",
            "memory_fraction",
            start.memory_fraction == Some(plan.memory_fraction),
        ),
        (
            "start.chunk_tokens",
            "chunk_tokens",
            start.chunk_tokens == Some(plan.chunk_tokens) && plan.chunk_tokens > 0,
        ),
        (
            "start.running_per_rank",
            "max_running_requests over its ranks",
            start.running_per_rank == Some((plan.max_running_requests / ranks).max(1)),
        ),
    ];
    match same.iter().find(|(_, _, same)| !same) {
        Some((started, planned, _)) => Err(format!(
            "{started} is not {planned}: what is started must be what was planned; {AGAIN}"
        )),
        None => Ok(()),
    }
}

impl SavedPlan {
    /// Holds the plan against the planner: its GPU, engine and model are known, its layout is legal for
    /// them and fits, and the sizes that it states are those of that layout. `model_path` is where the
    /// model lies, if somebody says so.
    ///
    /// # Errors
    /// What is not so, with the value and what would be right.
    pub fn verify(&self, library: &Library, model_path: Option<&str>) -> Result<(), Failure> {
        let wrong = |why: String| Failure::unusable(format!("the plan cannot be started: {why}"));
        let gpu = library.gpu(&self.gpu)?;
        let rules = engine(library, &self.engine)?.1;
        let model = self.model(library, model_path)?;
        let settings = self.settings(&rules);
        let layout = &self.choice.layout;
        let shape = ModelShape::of(&model);
        let machines = Machines {
            gpus: layout.gpus(),
            gpus_per_node: self.start.gpus_per_node.min(gpu.gpus_per_node),
            link_domain: gpu.link_domain_gpus,
            sm: sm(&gpu),
        };
        let ground = Ground {
            rules: &rules,
            model: &shape,
            machines,
            options: Options::of(&rules, &self.traffic, &settings, &self.choice),
        };
        let refused = formats::refused_weights(&rules, &gpu, &model)
            .or_else(|| formats::refused_kv(&rules, &gpu, &model, self.choice.kv_dtype));
        if let Some(why) = refused {
            return Err(wrong(why));
        }
        legality::check(layout, &ground).map_err(|refusals| {
            let reasons: Vec<&str> = refusals.iter().map(|r| r.reason.as_str()).collect();
            wrong(format!(
                "{} {} on {} cannot run its layout: {}",
                rules.name,
                rules.version,
                gpu.name,
                reasons.join("; ")
            ))
        })?;
        let backend = rules.experts.all_to_all();
        if self.choice.expert_all_to_all && self.start.expert_backend.as_deref() != backend {
            return Err(wrong(format!(
                "start.expert_backend is {:?}, and plans for {} {} start {}; {AGAIN}",
                self.start.expert_backend.as_deref().unwrap_or("none"),
                rules.name,
                rules.version,
                backend.unwrap_or("none")
            )));
        }
        let kernel = formats::expert_kernel(&rules, &gpu, &model);
        if self.start.expert_kernel.as_deref() != kernel {
            return Err(wrong(format!(
                "start.expert_kernel is {:?}, and plans of {} for {} {} on {} start {}; {AGAIN}",
                self.start.expert_kernel.as_deref().unwrap_or("none"),
                model.name,
                rules.name,
                rules.version,
                gpu.name,
                kernel.unwrap_or("none")
            )));
        }
        self.sizes(library, &model, &gpu, &rules, &settings)
            .map_err(wrong)
    }

    /// The model's profile: of its own name, or of the folder or repository that it lies in.
    fn model(&self, library: &Library, model_path: Option<&str>) -> Result<ModelProfile, Failure> {
        let path = as_path(&self.repository).map(|_| self.repository.as_str());
        let named = [
            path,
            model_path.filter(|_| path.is_some()),
            Some(self.model.as_str()).filter(|_| path.is_none()),
            Some(self.repository.as_str()).filter(|_| path.is_none()),
            model_path.filter(|_| path.is_none()),
        ];
        let mut first = None;
        for name in named.into_iter().flatten() {
            match model_named(library, name, self.start.quantization) {
                Ok(model) => return Ok(model),
                Err(failure) => first = first.or(Some(failure)),
            }
        }
        Err(Failure::unusable(format!(
            "the layout of the plan cannot be checked, because its model is not known here: {}; give \
             its folder with --model-path",
            first.map_or_else(|| self.model.clone(), |failure| failure.to_string())
        )))
    }

    /// The settings that the plan was resolved to, in the engine's own units.
    fn settings(&self, rules: &EngineRules) -> Settings {
        let running = self
            .start
            .running_per_rank
            .map(|each| match rules.scheduler.requests {
                RequestLimit::Server => each.saturating_mul(self.choice.layout.attention_dp),
                RequestLimit::Engine => each,
            });
        Settings {
            memory_fraction: Some(self.memory_fraction),
            max_running_requests: running,
            chunk_tokens: Some(self.chunk_tokens),
            receive_interval: self.start.receive_interval,
            company_steps: None,
            graph_sizes: self
                .choice
                .cuda_graphs
                .then(|| GraphSizes::Listed(self.graph_batch_sizes.clone())),
            context_length: self.start.context_length,
        }
    }

    /// Sizes that follow from model and layout, whatever the prices are.
    fn sizes(
        &self,
        library: &Library,
        model: &ModelProfile,
        gpu: &GpuProfile,
        rules: &EngineRules,
        settings: &Settings,
    ) -> Result<(), String> {
        let efficiency = library
            .efficiency(&rules.name, gpu)
            .map_err(|e| e.to_string())?;
        let overheads = library
            .overheads(&rules.name, gpu)
            .map_err(|e| e.to_string())?;
        let setup = Setup {
            model,
            gpu,
            rules,
            costs: OpCosts::new(&efficiency.figures, gpu).map_err(|e| e.to_string())?,
            overheads: &overheads.figures,
        };
        of_one_throughput(
            "output_tokens_per_s",
            self.predicted.output_tokens_per_s.value,
            self.predicted.output_tokens_per_s_per_gpu.value * f64::from(self.choice.layout.gpus()),
            "output_tokens_per_s_per_gpu times the GPUs of its layout",
        )?;
        let differs = |stated: f64, found: f64| (stated - found).abs() > SAME * found.max(1.0);
        let card = gpu.memory_mib as f64 * 1024.0 * 1024.0;
        if differs(self.memory_bytes.total, card) {
            return Err(format!(
                "memory_bytes.total is {} GiB, and {} has {} GiB: the plan is for another GPU; {AGAIN}",
                gib(self.memory_bytes.total),
                gpu.name,
                gib(card)
            ));
        }
        let again = Deployment::new(&setup, &self.traffic, settings, self.choice);
        // Calibrations measure what processes and graphs hold; without them it is known less well.
        if again.memory.missing > UNSURE * card {
            return Err(again
                .does_not_fit(&self.traffic)
                .unwrap_or_else(|| "its weights do not fit".to_owned()));
        }
        let (stated, found) = (self.memory_bytes.weights, again.memory.map.weights);
        if differs(stated, found) {
            return Err(format!(
                "memory_bytes.weights is {} GiB, and a rank of its layout has {} GiB; {AGAIN}",
                gib(stated),
                gib(found)
            ));
        }
        let (stated, found) = (
            self.kv_bytes_per_token_per_rank,
            again.footprint.bytes_per_token,
        );
        if differs(stated, found) {
            return Err(format!(
                "kv_bytes_per_token_per_rank is {stated:.0}, and a token of its layout takes \
                 {found:.0}; {AGAIN}"
            ));
        }
        Ok(())
    }
}

/// The engine of `NAME@VERSION` and its rules at that version.
fn engine(library: &Library, text: &str) -> Result<(EngineProfile, EngineRules), Failure> {
    let (name, version) = match text.split_once('@') {
        Some((name, version)) => (name, Some(version)),
        None => (text, None),
    };
    let engine = library.engine(name)?;
    let rules = engine.resolve(version, false).map_err(plan_again_hint)?;
    Ok((engine, rules))
}
