//! What stays fixed while configurations are compared, and what follows from it for a layout.

use crate::cost::OpCosts;
use crate::engine_comm::{self, AllReduceCall};
use crate::formats;
use crate::layout::Layout;
use crate::plan::Choice;
use crate::shard::Split;
use crate::step::pass::{Quantised, ReducePath};
use crate::sync::{self, SyncPath};
use parplan_profiles::engine::EngineRules;
use parplan_profiles::engine::rules::{DenseFfnSplit, QuantisedBy};
use parplan_profiles::{GpuProfile, ModelProfile, Overheads};

/// What stays fixed while configurations are compared.
#[derive(Debug, Clone)]
pub struct Setup<'a> {
    /// The model.
    pub model: &'a ModelProfile,
    /// The GPU.
    pub gpu: &'a GpuProfile,
    /// The engine's rules.
    pub rules: &'a EngineRules,
    /// Prices of operations.
    pub costs: OpCosts<'a>,
    /// What the engine adds.
    pub overheads: &'a Overheads,
}

/// Compute capability times ten, 0 where there is none (AMD).
pub fn sm(gpu: &GpuProfile) -> u16 {
    u16::from(gpu.compute_capability[0]) * 10 + u16::from(gpu.compute_capability[1])
}

impl<'a> Setup<'a> {
    pub(crate) fn split(&self, choice: &Choice) -> Split {
        let layout = &choice.layout;
        let attention_tp = layout.attention_tp();
        let alone = layout.attention_dp > 1 && self.dense_on_attention_tp();
        let stage = if alone { attention_tp } else { layout.tp };
        Split {
            dense_ranks: stage,
            shared_ranks: if choice.expert_all_to_all { 1 } else { stage },
            head_ranks: stage,
            expert_multiples: formats::expert_multiples(self.rules, self.gpu, self.model),
        }
    }

    pub(crate) fn dense_on_attention_tp(&self) -> bool {
        self.rules.geometry.dense_ffn == DenseFfnSplit::AttentionTp
    }

    /// Whether the sums over ranks of a layer add the residual and norm, too.
    pub(crate) fn fuses_norms(&self, choice: &Choice) -> bool {
        let layout = &choice.layout;
        let rule = self.rules.fusion.as_ref();
        let rule = rule.and_then(|rule| rule.reduce_norm.as_ref());
        layout.attention_dp == 1
            && layout.tp > 1
            && layout.nodes == 1
            && !choice.expert_all_to_all
            && rule.is_some_and(|rule| rule.holds(&self.model.architecture, sm(self.gpu)))
    }

    /// Which kernels write the format of the product that follows.
    pub(crate) fn quantised(&self, choice: &Choice) -> Quantised {
        let by = |kernel| {
            let rule = self.rules.fusion.as_ref();
            rule.is_some_and(|rule| rule.quantised_by.contains(&kernel))
        };
        Quantised {
            by_norm: by(QuantisedBy::Norm)
                || by(QuantisedBy::ReducedNorm) && self.fuses_norms(choice),
            by_attention: by(QuantisedBy::Attention),
            by_activation: by(QuantisedBy::Activation),
        }
    }

    /// Largest buffer that the engine's own all-reduce takes over `ranks` ranks of one domain, bytes.
    pub(crate) fn reduce_path(&self, ranks: u32, symmetric: bool) -> ReducePath {
        let reach = |graph: bool| {
            let call = AllReduceCall {
                bytes: 0,
                ranks,
                sm: sm(self.gpu),
                graph,
                peer_access: true,
                multicast: self.gpu.link.multicast,
                symmetric: false,
                custom_off: false,
            };
            engine_comm::largest_custom(&self.rules.all_reduce, &call) as f64
        };
        let local = ranks <= self.gpu.link_domain_gpus;
        let rule = self.rules.symmetric.as_ref();
        ReducePath {
            custom_graph_bytes: if local { reach(true) } else { 0.0 },
            custom_eager_bytes: if local { reach(false) } else { 0.0 },
            symmetric: symmetric && local && rule.is_some_and(|r| ranks >= r.least_world),
        }
    }

    /// Exchange of batch shapes before a step, microseconds.
    pub(crate) fn sync_us(&self, layout: &Layout) -> f64 {
        match sync::metadata_sync(&self.rules.sync, layout, None) {
            None => 0.0,
            Some(exchange) => match exchange.path {
                SyncPath::Device => self.overheads.sync.device_us,
                // Measured over one hop; half of it is taken as fixed, half as the hop.
                SyncPath::Host => {
                    self.overheads.sync.host_us * (1.0 + f64::from(exchange.serial_hops.max(1)))
                        / 2.0
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::deployment::Deployment;
    use crate::question::{Balance, Settings, Spread, Traffic};
    use crate::step::tally::Op;
    use parplan_profiles::{EfficiencyProfile, Library};

    struct Ground {
        model: ModelProfile,
        gpu: GpuProfile,
        rules: EngineRules,
    }

    impl Ground {
        fn of(model: &str, gpu: &str, engine: &str, version: &str) -> Ground {
            let library = Library::embedded();
            Ground {
                model: library.model(model).unwrap(),
                gpu: library.gpu(gpu).unwrap(),
                rules: library
                    .engine(engine)
                    .unwrap()
                    .resolve(Some(version), false)
                    .unwrap(),
            }
        }

        fn setup(&self) -> Setup<'_> {
            let prices = EfficiencyProfile::embedded(&self.rules.name, &self.gpu).unwrap();
            Setup {
                model: &self.model,
                gpu: &self.gpu,
                rules: &self.rules,
                costs: OpCosts::new(prices, &self.gpu).unwrap(),
                overheads: Overheads::embedded(&self.rules.name, &self.gpu).unwrap(),
            }
        }
    }

    fn choice(tp: u32, attention_dp: u32) -> Choice {
        Choice {
            layout: Layout {
                replicas: 1,
                tp,
                attention_dp,
                dcp: 1,
                ep: 1,
                pp: 1,
                nodes: 1,
            },
            kv_dtype: parplan_profiles::Dtype::Bf16,
            cuda_graphs: true,
            symmetric_memory: false,
            speculative_steps: 0,
            expert_all_to_all: false,
        }
    }

    #[test]
    fn sums_over_ranks_norm_where_the_engine_s_version_and_model_have_it() {
        let fuses = |model, gpu, engine, version, tp, dp| {
            let ground = Ground::of(model, gpu, engine, version);
            ground.setup().fuses_norms(&choice(tp, dp))
        };
        assert!(fuses(
            "llama-3.1-70b-fp8",
            "h200",
            "trtllm",
            "1.2.0rc2",
            8,
            1
        ));
        assert!(!fuses(
            "llama-3.1-70b-fp8",
            "h200",
            "trtllm",
            "1.2.0rc2",
            1,
            1
        ));
        assert!(!fuses("qwen3-32b-fp8", "h200", "trtllm", "1.2.0rc2", 8, 1));
        assert!(!fuses("gpt-oss-120b", "b200", "trtllm", "1.2.0rc2", 4, 4));
        assert!(!fuses("qwen3-32b", "h200", "vllm", "0.16.0", 2, 1));
        assert!(fuses("qwen3-32b", "h200", "vllm", "0.17.0", 2, 1));
        assert!(!fuses("qwen3-32b", "b300", "vllm", "0.18.0", 2, 1));
        assert!(fuses("qwen3-32b", "b300", "vllm", "0.19.0", 2, 1));
        assert!(!fuses("deepseek-r1", "h200", "sglang", "0.5.6.post2", 8, 1));
        assert!(fuses("deepseek-r1", "h200", "sglang", "0.5.9", 8, 1));
    }

    #[test]
    fn what_is_folded_costs_its_bytes_and_no_launch() {
        let ground = Ground::of("llama-3.1-70b-fp8", "h200", "trtllm", "1.2.0rc2");
        let plain = Ground {
            rules: EngineRules {
                fusion: None,
                ..ground.rules.clone()
            },
            model: ground.model.clone(),
            gpu: ground.gpu.clone(),
        };
        let traffic = Traffic {
            isl: 1024.0,
            osl: 1024.0,
            prompts: Spread::NONE,
            outputs: Spread::NONE,
            concurrency: 8.0,
            prefix_hit: 0.0,
            balance: Balance::Even,
            waves: 10.0,
            requests_per_s: None,
            speculation: None,
        };
        let step = |ground: &Ground| {
            let setup = ground.setup();
            let settings = Settings::default();
            let deployment = Deployment::new(&setup, &traffic, &settings, choice(8, 1));
            deployment.steps(&traffic, false).decode(8.0)
        };
        let (folded, apart) = (step(&ground), step(&plain));
        for op in [
            Op::Elementwise,
            Op::QkvProjection,
            Op::OutProjection,
            Op::DenseFfn,
        ] {
            assert!(folded.us(op) < apart.us(op), "{}", op.name());
        }
        // Two norms and four quantisations of 80 layers, some 2 us each.
        let saved = apart.total_us() - folded.total_us();
        assert!((500.0..1500.0).contains(&saved), "{saved}");
        assert_eq!(
            folded.us(Op::AttentionReduce),
            apart.us(Op::AttentionReduce)
        );
    }
}
