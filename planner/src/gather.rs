//! DP gather of one deployment, laid open: which padding mode its decode meets and why, what each mode
//! would cost, and what an idle rank or a rank in prefill costs the others.

use crate::deployment::Deployment;
use crate::layout::Layout;
use crate::padding::Padding;
use crate::question::{Balance, Traffic};
use crate::serve::Service;
use crate::step::pass::{self, ACTIVATION_BYTES};
use crate::step::tally::Tally;
use crate::sync::{self, MetadataSync};
use crate::volume::{self, Exchange, Rows};
use serde::Serialize;

/// The gather of the planned decode step, and its alternatives.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GatherReport {
    /// Attention-DP ranks.
    pub ranks: u32,
    /// Mean over maximum of their batches.
    pub mean_over_max: f64,
    /// Padding of the planned decode step; none where experts are reached by all-to-all.
    pub decode: Option<Padding>,
    /// Padding of a prefill pass.
    pub prefill: Option<Padding>,
    /// Bytes of the gathered buffer in the planned decode step.
    pub buffer_bytes: f64,
    /// Gather and combine of one layer under max_len, microseconds.
    pub max_len_us: f64,
    /// The same under sum_len.
    pub sum_len_us: f64,
    /// How many rows of max_len cost as much as one row of sum_len, at these sizes: `c` in
    /// `max_len · dp = c · sum_len`. 2 is the limit of a ring.
    pub c: f64,
    /// Mean over maximum at which the two modes cost the same: `1 / c`.
    pub break_even_balance: f64,
    /// Exchange of batch shapes before each step; none where the engine has none.
    pub sync: Option<MetadataSync>,
    /// What it takes, microseconds.
    pub sync_us: f64,
    /// A decode step as planned, microseconds.
    pub step_us: f64,
    /// The same work with one rank idle: the others carry its requests, and it steps along.
    pub one_rank_idle_us: f64,
    /// The same with one rank in prefill: nobody replays a graph.
    pub one_rank_in_prefill_us: f64,
}

/// Lays open the gather of `d`; none without attention DP.
pub fn report(d: &Deployment<'_>, traffic: &Traffic, service: &Service) -> Option<GatherReport> {
    let layout = d.choice.layout;
    if layout.attention_dp <= 1 {
        return None;
    }
    let steps = d.steps(traffic, false);
    let mean = service.decoding_per_rank;
    let fullest = mean / d.mean_over_max;
    let width = 1.0 + f64::from(d.choice.speculative_steps);
    let row_bytes = d.shard.hidden * ACTIVATION_BYTES;
    let rows = Rows {
        max: d.bucket(fullest).map_or(fullest.ceil(), f64::from).max(1.0) * width,
        sum: (mean * width * f64::from(layout.attention_dp))
            .ceil()
            .max(1.0),
        dp: layout.attention_dp,
        attention_tp: layout.attention_tp(),
        row_bytes,
    };
    let cost = |exchange: Exchange| {
        let mut tally = Tally::new();
        let calls = volume::layer(&rows, exchange, true, true);
        pass::collectives(
            &steps.fixed,
            calls.as_slice(),
            d.bucket(fullest).is_some(),
            &mut tally,
        );
        tally.total_us()
    };
    let (max_len_us, sum_len_us) = (cost(Exchange::MaxLen), cost(Exchange::SumLen));
    let per_row = |us: f64, exchange| us / rows.ffn(exchange);
    let c = per_row(sum_len_us, Exchange::SumLen) / per_row(max_len_us, Exchange::MaxLen);
    let chunk = d.chunk_tokens.min(d.load(traffic).prefill_tokens);
    Some(GatherReport {
        ranks: layout.attention_dp,
        mean_over_max: d.mean_over_max,
        decode: d.decode_padding,
        prefill: d.prefill_padding,
        buffer_bytes: rows.gathered(d.decode_exchange()) * row_bytes,
        max_len_us,
        sum_len_us,
        c,
        break_even_balance: 1.0 / c,
        sync: sync::metadata_sync(&d.setup.rules.sync, &layout, None),
        sync_us: steps.sync_us,
        step_us: steps.decode(mean).total_us(),
        one_rank_idle_us: idle(d, traffic, layout, mean),
        one_rank_in_prefill_us: steps.prefill(chunk, 0.0, 1.0, mean).total_us(),
    })
}

/// A decode step of `mean` requests a rank when one rank has none.
fn idle(d: &Deployment<'_>, traffic: &Traffic, layout: Layout, mean: f64) -> f64 {
    let mut loads = vec![1.0; layout.attention_dp as usize];
    loads[0] = 0.0;
    let traffic = Traffic {
        balance: Balance::Ranks(loads),
        ..traffic.clone()
    };
    let mut steps = d.steps(&traffic, false);
    steps.mean_over_max = traffic.balance.mean_over_max(layout.attention_dp, mean);
    steps.decode(mean).total_us()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::cost::OpCosts;
    use crate::deployment::Setup;
    use crate::plan::Choice;
    use crate::question::{Settings, Spread};
    use parplan_profiles::engine::{embedded, select};
    use parplan_profiles::{EfficiencyProfile, Library, Overheads};

    fn of(attention_dp: u32, clients: f64) -> Option<GatherReport> {
        let library = Library::embedded();
        let model = library.model("deepseek-v3").unwrap();
        let gpu = library.gpu("h200").unwrap();
        let rules = select(&embedded().unwrap(), "sglang@0.5.9", false).unwrap();
        let setup = Setup {
            model: &model,
            gpu: &gpu,
            rules: &rules,
            costs: OpCosts::new(EfficiencyProfile::embedded("sglang", &gpu).unwrap(), &gpu)
                .unwrap(),
            overheads: Overheads::embedded("sglang", &gpu).unwrap(),
        };
        let traffic = Traffic {
            isl: 4096.0,
            osl: 1024.0,
            prompts: Spread::even(0.8),
            outputs: Spread::even(0.8),
            concurrency: clients,
            prefix_hit: 0.0,
            balance: Balance::Even,
            waves: 10.0,
            requests_per_s: None,
            speculation: None,
        };
        let choice = Choice {
            layout: Layout {
                replicas: 1,
                tp: 8,
                attention_dp,
                dcp: 1,
                ep: 8,
                pp: 1,
                nodes: 1,
            },
            kv_dtype: model.kv_dtype,
            cuda_graphs: true,
            symmetric_memory: false,
            speculative_steps: 0,
            expert_all_to_all: false,
        };
        let deployment = Deployment::new(&setup, &traffic, &Settings::default(), choice);
        let service = deployment.serve(&traffic);
        report(&deployment, &traffic, &service)
    }

    #[test]
    fn one_rank_has_no_gather_and_idle_or_prefilling_ranks_cost() {
        assert!(of(1, 256.0).is_none());
        let report = of(8, 256.0).unwrap();
        // SGLang 0.5.6 to 0.5.12 exchange six int64 a rank, over gloo.
        let sync = report.sync.unwrap();
        assert_eq!((sync.bytes_per_rank, sync.ranks), (48, 8));
        assert!(report.sync_us > 0.0);
        assert!(report.one_rank_idle_us > report.step_us);
        assert!(report.one_rank_in_prefill_us > report.one_rank_idle_us);
        // An all-reduce does more than an all-gather, and at most a reduce-scatter on top of it.
        assert!(report.c > 0.8 && report.c < 2.6, "{}", report.c);
        assert!((report.break_even_balance * report.c - 1.0).abs() < 1e-12);
    }
}
