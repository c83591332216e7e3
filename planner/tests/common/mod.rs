//! Questions for tests, from embedded profiles.

#![allow(dead_code, clippy::unwrap_used)]

use parplan_planner::Layout;
use parplan_planner::cost::OpCosts;
use parplan_planner::deployment::Setup;
use parplan_planner::plan::Choice;
use parplan_planner::question::{Balance, Spread, Traffic};
use parplan_profiles::engine::{EngineRules, embedded, select};
use parplan_profiles::{Dtype, EfficiencyProfile, GpuProfile, Library, ModelProfile, Overheads};

/// What a setup borrows.
pub struct Ground {
    pub model: ModelProfile,
    pub gpu: GpuProfile,
    pub rules: EngineRules,
}

impl Ground {
    /// Of embedded profiles, by name.
    pub fn new(model: &str, gpu: &str, engine: &str) -> Ground {
        let library = Library::embedded();
        Ground {
            model: library.model(model).unwrap(),
            gpu: library.gpu(gpu).unwrap(),
            rules: select(&embedded().unwrap(), engine, false).unwrap(),
        }
    }

    /// The setup on this ground.
    pub fn setup(&self) -> Setup<'_> {
        let profile = EfficiencyProfile::embedded(&self.rules.name, &self.gpu).unwrap();
        Setup {
            model: &self.model,
            gpu: &self.gpu,
            rules: &self.rules,
            costs: OpCosts::new(profile, &self.gpu).unwrap(),
            overheads: Overheads::embedded(&self.rules.name, &self.gpu).unwrap(),
        }
    }

    /// A choice with the model's own KV format, graphs on, everything else off.
    pub fn choice(&self, layout: Layout) -> Choice {
        Choice {
            layout,
            kv_dtype: self.model.kv_dtype,
            cuda_graphs: true,
            symmetric_memory: false,
            speculative_steps: 0,
            expert_all_to_all: false,
        }
    }
}

/// One replica on one node.
pub fn layout(tp: u32, attention_dp: u32, dcp: u32, ep: u32) -> Layout {
    Layout {
        replicas: 1,
        tp,
        attention_dp,
        dcp,
        ep,
        pp: 1,
        nodes: 1,
    }
}

/// Traffic with lengths as InferenceX draws them: evenly from 80 to 100 % of the given ones.
pub fn traffic(isl: f64, osl: f64, concurrency: f64) -> Traffic {
    Traffic {
        isl: 0.9 * isl,
        osl: 0.9 * osl,
        prompts: Spread::even(0.8),
        outputs: Spread::even(0.8),
        concurrency,
        prefix_hit: 0.0,
        balance: Balance::Even,
        waves: 10.0,
        requests_per_s: None,
        speculation: None,
    }
}

/// Formats that KV caches are planned in.
pub const KV_FORMATS: [Dtype; 2] = [Dtype::Bf16, Dtype::Fp8];
