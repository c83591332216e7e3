//! From a choice to a deployment: how many requests it lets in, its graphs, exchanges and memory.

use super::{Deployment, Setup, sm};
use crate::graphs::{self, CaptureList, GraphContext};
use crate::kv::{self, KvFootprint};
use crate::memory::{self, MemoryInput, MemoryResult, Transients};
use crate::padding::{self, GatherContext, GatherForm, Padding, RankTokens};
use crate::plan::Choice;
use crate::question::{GraphSizes, Settings, Traffic};
use crate::reserve::{self, Draft, ReserveContext};
use crate::serve::open::Answer;
use crate::shard::Shard;
use crate::step::launches;
use crate::step::pass::ACTIVATION_BYTES;
use crate::volume::Exchange;
use parplan_profiles::engine::EngineRules;
use parplan_profiles::engine::rules::{self, GraphUnit, PaddingRule};
use parplan_profiles::{Attention, ModelProfile, Speculation};

/// Padded share of a captured graph that the recommended capture list accepts.
const GRAPH_WASTE: f64 = 0.125;

/// How often an open loop is sized again, and its requests in flight beyond their mean, in standard
/// deviations of a Poisson count.
const SIZINGS: usize = 8;
const PEAK: f64 = 3.0;

/// More requests in flight than any engine is started for.
const MOST_IN_FLIGHT: f64 = 1e6;

/// The model on one rank of a configuration, whatever its traffic.
#[derive(Debug, Clone)]
struct Shapes {
    shard: Shard,
    footprint: KvFootprint,
}

impl Shapes {
    fn of(setup: &Setup<'_>, traffic: &Traffic, choice: &Choice) -> Shapes {
        let layout = &choice.layout;
        let speculates = speculation(choice, traffic).is_some();
        Shapes {
            shard: Shard::new(setup.model, layout, &setup.split(choice)),
            footprint: kv::footprint(setup.model, layout, choice.kv_dtype, speculates),
        }
    }
}

/// Speculation that a choice runs.
pub(super) fn speculation(choice: &Choice, traffic: &Traffic) -> Option<Speculation> {
    traffic
        .speculation
        .filter(|_| choice.speculative_steps > 0)
        .map(|s| Speculation {
            steps: choice.speculative_steps,
            ..s
        })
}

fn exchange(padding: &Padding) -> Exchange {
    match padding.form {
        GatherForm::AllGather => Exchange::MaxLen,
        GatherForm::AllReduce => Exchange::SumLen,
        GatherForm::Exact => Exchange::Exact,
    }
}

/// Whether decode rows are multi-head latent attention, as graph and reserve rules ask.
fn is_mla(model: &ModelProfile) -> bool {
    model.layers.iter().any(|g| {
        matches!(
            g.attention,
            Some(Attention::Mla(_) | Attention::Compressed(_))
        )
    })
}

impl<'a> Deployment<'a> {
    /// Resolves `choice` for `traffic`. The layout must be legal.
    ///
    /// An open loop is planned for as many requests in flight as it has on average and three standard
    /// deviations of a Poisson count more.
    pub fn new(
        setup: &'a Setup<'a>,
        traffic: &Traffic,
        settings: &Settings,
        choice: Choice,
    ) -> Deployment<'a> {
        let shapes = Shapes::of(setup, traffic, &choice);
        let sized = |clients| Deployment::sized(setup, traffic, settings, choice, &shapes, clients);
        let Some(arrivals) = traffic.requests_per_s else {
            return sized(traffic.concurrency);
        };
        let replicas = f64::from(choice.layout.replicas);
        let ranks = replicas * f64::from(choice.layout.attention_dp);
        let mut clients = ranks.max(8.0);
        let mut out = sized(clients);
        for _ in 0..SIZINGS {
            let (answer, _) = out.open_loop(traffic, arrivals);
            let need = match answer {
                Answer::Steady { in_flight, .. } => {
                    let mean = in_flight * replicas;
                    (mean + PEAK * mean.sqrt()).max(ranks).ceil()
                }
                // Where memory holds the requests back, letting more in gets no more through.
                Answer::Overload { .. } if out.running_per_rank < f64::from(out.limit_per_rank) => {
                    return out;
                }
                Answer::Overload { .. } => clients * 4.0,
            };
            if need <= clients && 2.0 * need >= clients {
                break;
            }
            clients = need.min(MOST_IN_FLIGHT);
            out = sized(clients);
        }
        out
    }

    /// Resolves `choice` for so many clients over the whole deployment.
    ///
    /// Request tables, logits, graphs and some engines' own reserve grow with the requests that are
    /// let in. Where the KV cache that they leave holds fewer requests than there are clients, fewer
    /// are let in, as many as it then holds: clients that wait take no memory from those that run.
    fn sized(
        setup: &'a Setup<'a>,
        traffic: &Traffic,
        settings: &Settings,
        choice: Choice,
        shapes: &Shapes,
        clients: f64,
    ) -> Deployment<'a> {
        let resolve =
            |most| Deployment::letting_in(setup, traffic, settings, choice, shapes, clients, most);
        let all = resolve(u32::MAX);
        let all_limit = f64::from(all.limit_per_rank);
        let all_held = all.requests_held(traffic);
        if settings.max_running_requests.is_some() || all_held >= all_limit {
            return all;
        }
        let few = resolve(whole(all_held.ceil()));
        let few_limit = f64::from(few.limit_per_rank);
        let spare = few.requests_held(traffic) - few_limit;
        // What is held falls about evenly with what is let in; they meet in between.
        let share = spare / (spare + all_limit - all_held);
        let most = whole((few_limit + (all_limit - few_limit) * share).ceil());
        if spare <= 0.0 || most <= few.limit_per_rank {
            return few;
        }
        let between = resolve(most);
        if between.running_per_rank >= few.running_per_rank {
            between
        } else {
            few
        }
    }

    /// The same, with at most `most` running requests a rank.
    fn letting_in(
        setup: &'a Setup<'a>,
        traffic: &Traffic,
        settings: &Settings,
        choice: Choice,
        shapes: &Shapes,
        clients: f64,
        most: u32,
    ) -> Deployment<'a> {
        let layout = choice.layout;
        let rules = setup.rules;
        let dp = f64::from(layout.attention_dp);
        let Shapes { shard, footprint } = shapes.clone();
        let spec = speculation(&choice, traffic);
        let width = 1.0 + spec.map_or(0.0, |s| f64::from(s.steps));
        let of_replica = clients / f64::from(layout.replicas);
        let mean = of_replica / dp;
        let mean_over_max = traffic.balance.mean_over_max(layout.attention_dp, mean);
        let asked = settings.max_running_requests.unwrap_or_else(|| {
            // Room for a rank that the router favours for a while.
            let slack = if layout.attention_dp > 1 { 1.25 } else { 1.0 };
            let per_rank = whole((mean / mean_over_max * slack).ceil()).min(most);
            match rules.scheduler.requests {
                rules::RequestLimit::Server => per_rank.saturating_mul(layout.attention_dp),
                rules::RequestLimit::Engine => per_rank,
            }
        });
        let mut context = graph_context(setup, settings, &choice, asked, spec);
        let chunk_flag = graphs::step_tokens(rules, &context);
        let chunk_tokens = if rules.scheduler.chunk_divided_by_attention_dp {
            f64::from(chunk_flag / layout.attention_dp.max(1))
        } else {
            f64::from(chunk_flag)
        };
        let limit = graphs::per_rank(rules, &context, asked);
        let capture = match choice.cuda_graphs {
            true => capture_list(rules, settings, &context, limit),
            false => CaptureList {
                unit: rules.graphs.unit,
                sizes: Vec::new(),
                lost: Vec::new(),
            },
        };
        // The engine reserves memory by the largest size that it is told, or by its own, whether or not so
        // many requests can run.
        context.largest = match settings.graph_sizes {
            Some(GraphSizes::Engine) if choice.cuda_graphs => {
                Some(graphs::default_largest(rules, &context))
            }
            _ => capture.largest().or(Some(1)),
        };
        let backend = match rules.experts.all_to_all() {
            Some(backend) if choice.expert_all_to_all => backend,
            _ => "none",
        };
        let reserve = ReserveContext {
            decode_graphs: choice.cuda_graphs,
            draft: match spec {
                Some(_) => Draft::Eagle,
                None => Draft::None,
            },
            expert_backend: backend,
        };
        let mut fraction = reserve::memory_fraction(rules, &context, &reserve);
        if let Some(value) = settings.memory_fraction {
            fraction.value = value;
        }
        let mut out = Deployment {
            setup,
            choice,
            footprint,
            fraction,
            memory: MemoryResult {
                map: crate::plan::MemoryMap::empty(),
                missing: 0.0,
                overcommitted: 0.0,
            },
            buckets: in_requests(&capture, layout.attention_dp, width as u32),
            capture,
            sizes_were_listed: choice.cuda_graphs
                && matches!(settings.graph_sizes, Some(GraphSizes::Listed(_))),
            chunk_flag,
            chunk_tokens,
            context_limit: f64::from(settings.context_length.unwrap_or(setup.model.max_position)),
            running_per_rank: f64::from(limit),
            limit_per_rank: limit,
            limit_asked: settings.max_running_requests,
            company_steps: settings.company_steps.unwrap_or(0),
            receive_interval: settings.receive_interval.unwrap_or_else(|| {
                let scheduler = &rules.scheduler;
                scheduler.receive_interval(sm(setup.gpu), of_replica, layout.attention_dp)
            }),
            context,
            decode_padding: None,
            prefill_padding: None,
            reduce_tp: setup.reduce_path(layout.tp, choice.symmetric_memory),
            reduce_attention_tp: setup.reduce_path(layout.attention_tp(), choice.symmetric_memory),
            decode_exchange: Exchange::AllReduce,
            prefill_exchange: Exchange::AllReduce,
            mean_over_max,
            clients,
            shard,
        };
        // Clients beyond those that are let in decode nothing.
        let decoding = mean.min(f64::from(limit) * mean_over_max);
        out.set_exchanges(backend, decoding, width, spec.is_some());
        out.set_memory(traffic, limit, width);
        out
    }

    fn set_exchanges(&mut self, backend: &str, mean: f64, width: f64, speculation: bool) {
        let layout = self.choice.layout;
        if self.choice.expert_all_to_all && layout.ep > 1 {
            self.decode_exchange = Exchange::AllToAll;
            self.prefill_exchange = Exchange::AllToAll;
            return;
        }
        if layout.attention_dp <= 1 {
            return;
        }
        let setup = self.setup;
        let rule: &PaddingRule = &setup.rules.padding;
        let attention_tp = layout.attention_tp();
        let total = |tokens: f64| tokens.ceil().clamp(1.0, 1e12) as u64;
        let decode_rows = RankTokens::imbalanced(
            total(mean * width * f64::from(layout.attention_dp)),
            layout.attention_dp,
            attention_tp,
            self.mean_over_max,
        );
        let fullest = mean / self.mean_over_max;
        let bucket = self.bucket(fullest);
        let own_reduce = self.reduce_tp.custom_graph_bytes > 0.0;
        let context = GatherContext {
            extend: false,
            graph_rows: bucket.map(|size| u64::from(size) * width as u64),
            prefill_graph_rows: None,
            row_bytes: (self.shard.hidden * ACTIVATION_BYTES) as u64,
            expert_backend: backend,
            speculation,
            custom_all_reduce: own_reduce,
            hybrid: setup.model.has_recurrent_state(),
            max_len_requested: false,
            planned: None,
        };
        let decode = padding::padding(rule, &decode_rows, &context);
        let chunk = RankTokens::balanced(
            total(self.chunk_tokens * f64::from(layout.attention_dp)),
            layout.attention_dp,
            attention_tp,
        );
        let prefill = padding::padding(
            rule,
            &chunk,
            &GatherContext {
                extend: true,
                graph_rows: None,
                ..context
            },
        );
        self.decode_exchange = exchange(&decode);
        self.prefill_exchange = exchange(&prefill);
        self.decode_padding = Some(decode);
        self.prefill_padding = Some(prefill);
    }

    fn set_memory(&mut self, traffic: &Traffic, limit: u32, width: f64) {
        let setup = self.setup;
        let layout = self.choice.layout;
        let dp = f64::from(layout.attention_dp);
        let gathers = layout.attention_dp > 1 && !self.choice.expert_all_to_all;
        let limit = f64::from(limit);
        let split = setup.split(&self.choice);
        let symmetric = match (&setup.rules.symmetric, self.choice.symmetric_memory) {
            (Some(rule), true) => rule.prealloc_mib as f64 * 1024.0 * 1024.0,
            _ => 0.0,
        };
        let chunk = self.chunk_tokens.min(self.clients * traffic.isl).max(1.0);
        let transients = Transients {
            prefill_rows: chunk,
            gathered_prefill_rows: if gathers { chunk * dp } else { 0.0 },
            gathered_decode_rows: if gathers { limit * width * dp } else { 0.0 },
            decode_in_graph: self.bucket(limit).is_some(),
            decode_requests: limit,
            decode_requests_all: limit * dp,
            speculative_steps: width - 1.0,
            shared_head: gathers && split.head_ranks == layout.tp,
            head_ranks: f64::from(split.head_ranks),
        };
        let mtp = if width > 1.0 {
            self.shard.mtp_bytes
        } else {
            0.0
        };
        let largest = self
            .buckets
            .last()
            .map_or(0.0, |&size| f64::from(size) * width);
        self.memory = memory::map(&MemoryInput {
            card_bytes: setup.gpu.memory_mib as f64 * 1024.0 * 1024.0,
            context_bytes: setup.gpu.context_mib.map_or(memory::CONTEXT_BYTES, |mib| {
                f64::from(mib) * 1024.0 * 1024.0
            }),
            shard: &self.shard,
            weights: self.shard.weight_bytes + mtp,
            fraction: self.fraction,
            graphs: self.buckets.len(),
            graph_layer_bytes: match setup.overheads.graph_node_bytes {
                Some(bytes) => bytes * launches::of(&self.shard) / self.shard.layers.max(1.0),
                None => memory::GRAPH_LAYER_BYTES,
            },
            graph_rows: largest * if gathers { dp } else { 1.0 },
            transients,
            prefill_ffn_rows: if gathers { chunk * dp } else { chunk },
            symmetric_bytes: symmetric,
            request_table_bytes: limit * self.context_limit * 4.0,
            ranks: f64::from(layout.tp),
        });
        self.running_per_rank = limit.min(self.requests_held(traffic).max(0.0));
    }
}

/// What an engine goes by when it decides what to capture, with `asked` running requests.
fn graph_context<'a>(
    setup: &Setup<'a>,
    settings: &Settings,
    choice: &Choice,
    asked: u32,
    spec: Option<Speculation>,
) -> GraphContext<'a> {
    GraphContext {
        layout: choice.layout,
        gpu_mib: Some(setup.gpu.memory_mib),
        gpu: &setup.gpu.name,
        sm: sm(setup.gpu),
        // An engine that is told neither sizes nor a limit captures what its own limit allows.
        running_requests: match settings.graph_sizes {
            Some(GraphSizes::Engine) => settings.max_running_requests,
            _ => Some(asked),
        },
        pool: None,
        query_length: 1 + spec.map_or(0, |s| s.steps),
        speculation: spec.is_some(),
        gathers: choice.layout.attention_dp > 1 && !choice.expert_all_to_all,
        two_batch_overlap: false,
        largest: None,
        tokens: settings.chunk_tokens,
        mla: is_mla(setup.model),
    }
}

/// The graphs that are captured: those that were listed, the engine's own, or those of every batch up to
/// `limit` requests a rank.
fn capture_list(
    rules: &EngineRules,
    settings: &Settings,
    context: &GraphContext<'_>,
    limit: u32,
) -> CaptureList {
    match &settings.graph_sizes {
        Some(GraphSizes::Listed(sizes)) => graphs::explicit_list(rules, context, sizes),
        Some(GraphSizes::Engine) => graphs::default_list(rules, context),
        None => planned_list(rules, context, limit),
    }
}

/// Sizes of a capture list in requests of one rank, each of `width` tokens.
fn in_requests(capture: &CaptureList, dp: u32, width: u32) -> Vec<u32> {
    capture
        .sizes
        .iter()
        .map(|&size| match capture.unit {
            GraphUnit::RequestsPerRank => size,
            GraphUnit::RequestsOfAllRanks => size / dp.max(1),
            GraphUnit::Tokens => size / width.max(1),
        })
        .filter(|&size| size > 0)
        .collect()
}

/// A count of requests, at least one.
fn whole(requests: f64) -> u32 {
    requests.clamp(1.0, f64::from(u32::MAX / 2)) as u32
}

/// Sizes that cover every batch up to `limit` requests a rank with little waste, in the engine's unit.
fn planned_list(rules: &EngineRules, context: &GraphContext<'_>, limit: u32) -> CaptureList {
    let unit = match rules.graphs.unit {
        GraphUnit::RequestsPerRank => 1,
        GraphUnit::RequestsOfAllRanks => context.layout.attention_dp,
        GraphUnit::Tokens => context.query_length,
    };
    // Engines cap what they capture; larger batches run eagerly there whatever is asked.
    graphs::covering_list(rules, context, limit.min(1024), unit, GRAPH_WASTE)
}
