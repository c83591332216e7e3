//! What stays fixed while configurations are compared, and what follows from it for a layout.

use crate::cost::OpCosts;
use crate::engine_comm::{self, AllReduceCall};
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
