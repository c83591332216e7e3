//! One configuration, resolved: shapes, memory, graphs, limits and step times, ready to be asked.

use crate::engine_comm;
use crate::graphs::{self, CaptureList, GraphContext};
use crate::kv::{self, KvFootprint};
use crate::memory::{self, MemoryInput, MemoryResult, Transients};
use crate::padding::{self, GatherContext, GatherForm, Padding, RankTokens};
use crate::plan::Choice;
use crate::question::{Settings, Speculation, Traffic};
use crate::reserve::{self, Draft, MemoryFraction, ReserveContext};
use crate::serve::open::{Answer, OpenLoop, open_loop};
use crate::serve::{ClosedLoop, Limits, PrefillStyle, Service, closed_loop};
pub use crate::setup::{Setup, sm};
use crate::shard::Shard;
use crate::step::block::busiest;
use crate::step::pass::{ACTIVATION_BYTES, Fixed, ReducePath};
use crate::step::{Steps, launches};
use crate::volume::{DcpMerge, Exchange};
use parplan_profiles::engine::EngineRules;
use parplan_profiles::engine::rules::{self, Batching, GraphUnit, PaddingRule};
use parplan_profiles::{Attention, ModelProfile};

/// Padded share of a captured graph that the recommended capture list accepts.
const GRAPH_WASTE: f64 = 0.125;

/// How often an open loop is sized again, and its requests in flight beyond their mean, in standard
/// deviations of a Poisson count.
const SIZINGS: usize = 8;
const PEAK: f64 = 3.0;

/// More requests in flight than any engine is started for.
const MOST_IN_FLIGHT: f64 = 1e6;

/// One configuration and what follows from it.
#[derive(Debug, Clone)]
pub struct Deployment<'a> {
    /// What stays fixed.
    pub setup: &'a Setup<'a>,
    /// What was chosen.
    pub choice: Choice,
    /// The model on one rank.
    pub shard: Shard,
    /// Cache of a request on one rank.
    pub footprint: KvFootprint,
    /// The engine's memory fraction.
    pub fraction: MemoryFraction,
    /// Memory of one rank.
    pub memory: MemoryResult,
    /// Sizes to capture.
    pub capture: CaptureList,
    /// The sizes were listed by a person rather than planned.
    pub sizes_were_listed: bool,
    /// Captured sizes in requests a rank, ascending.
    buckets: Vec<u32>,
    /// Prefill tokens of one pass, as the command line counts them.
    pub chunk_flag: u32,
    /// The same for one rank.
    pub chunk_tokens: f64,
    /// Tokens of the longest request that the engine takes: the length it is told, or the model's.
    context_limit: f64,
    /// Requests of one attention-DP rank that run at once under the planned traffic: its limit, and
    /// what the KV cache holds of requests half way through their output.
    pub running_per_rank: f64,
    /// The limit alone.
    limit_per_rank: u32,
    /// Decode steps between two looks for new requests.
    pub receive_interval: u32,
    context: GraphContext<'a>,
    /// Padding of the planned decode step.
    pub decode_padding: Option<Padding>,
    /// Padding of a prefill pass.
    pub prefill_padding: Option<Padding>,
    reduce_tp: ReducePath,
    reduce_attention_tp: ReducePath,
    decode_exchange: Exchange,
    prefill_exchange: Exchange,
    /// Mean over maximum of the DP ranks' batches.
    pub mean_over_max: f64,
    /// Clients over the whole deployment, or the requests in flight that an open loop is planned for.
    pub clients: f64,
}

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
fn speculation(choice: &Choice, traffic: &Traffic) -> Option<Speculation> {
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

    /// Requests of a rank that its KV cache holds on average; below nothing where the weights and
    /// what else is needed leave less than nothing for it.
    pub fn requests_held(&self, traffic: &Traffic) -> f64 {
        // A running request holds its prompt and, on average, half of its output; the engine admits
        // as long as there is room.
        let held = traffic.context();
        let kv = self.memory.map.kv_cache - self.memory.missing;
        memory::requests_held(&self.footprint, kv, held)
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
        // Room for a rank that the router favours for a while.
        let slack = if layout.attention_dp > 1 { 1.25 } else { 1.0 };
        let wanted = (mean / mean_over_max * slack)
            .ceil()
            .max(1.0)
            .min(f64::from(u32::MAX / 2));
        let per_rank = (wanted as u32).min(most);
        let asked = settings
            .max_running_requests
            .unwrap_or(match rules.scheduler.requests {
                rules::RequestLimit::Server => per_rank.saturating_mul(layout.attention_dp),
                rules::RequestLimit::Engine => per_rank,
            });
        let mut context = GraphContext {
            layout,
            gpu_mib: Some(setup.gpu.memory_mib),
            gpu: &setup.gpu.name,
            sm: sm(setup.gpu),
            running_requests: Some(asked),
            pool: None,
            query_length: width as u32,
            speculation: spec.is_some(),
            gathers: layout.attention_dp > 1 && !choice.expert_all_to_all,
            two_batch_overlap: false,
            largest: None,
            tokens: settings.chunk_tokens,
            mla: is_mla(setup.model),
        };
        let chunk_flag = graphs::step_tokens(rules, &context);
        let chunk_tokens = if rules.scheduler.chunk_divided_by_attention_dp {
            f64::from(chunk_flag / layout.attention_dp.max(1))
        } else {
            f64::from(chunk_flag)
        };
        let limit = graphs::per_rank(rules, &context, asked);
        let capture = if choice.cuda_graphs {
            match &settings.graph_batch_sizes {
                Some(sizes) => graphs::explicit_list(rules, &context, sizes),
                None => planned_list(rules, &context, limit, layout.attention_dp, width as u32),
            }
        } else {
            CaptureList {
                unit: rules.graphs.unit,
                sizes: Vec::new(),
                lost: Vec::new(),
            }
        };
        context.largest = capture.largest().or(Some(1));
        let in_requests: Vec<u32> = capture
            .sizes
            .iter()
            .map(|&size| match capture.unit {
                GraphUnit::RequestsPerRank => size,
                GraphUnit::RequestsOfAllRanks => size / layout.attention_dp.max(1),
                GraphUnit::Tokens => size / (width as u32).max(1),
            })
            .filter(|&size| size > 0)
            .collect();
        let draft = if spec.is_some() {
            Draft::Eagle
        } else {
            Draft::None
        };
        let backend = match setup.rules.experts.all_to_all() {
            Some(backend) if choice.expert_all_to_all => backend,
            _ => "none",
        };
        let reserve = ReserveContext {
            decode_graphs: choice.cuda_graphs,
            draft,
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
            buckets: in_requests,
            capture,
            sizes_were_listed: choice.cuda_graphs && settings.graph_batch_sizes.is_some(),
            chunk_flag,
            chunk_tokens,
            context_limit: f64::from(settings.context_length.unwrap_or(setup.model.max_position)),
            running_per_rank: f64::from(limit),
            limit_per_rank: limit,
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

    /// How rows reach the feed-forward blocks in the planned decode step.
    pub fn decode_exchange(&self) -> Exchange {
        self.decode_exchange
    }

    /// What the graph rules were asked with.
    pub fn graph_context(&self) -> GraphContext<'a> {
        self.context
    }

    /// Tokens of the longest single request: what a rank's KV cache holds, and no more than the
    /// engine takes.
    pub fn longest_request(&self) -> f64 {
        let held = self.footprint.longest_request(self.memory.map.kv_cache);
        held.floor().min(self.context_limit)
    }

    /// KV tokens of one attention-DP rank, the shares of a DCP group together; windows and recurrent
    /// state of as many requests as are planned are taken off first.
    pub fn kv_tokens(&self) -> f64 {
        let per_token = self.footprint.bytes_per_token;
        if per_token <= 0.0 {
            return 0.0;
        }
        let fixed = self.footprint.request_bytes(0.0)
            + self
                .footprint
                .windows
                .iter()
                .map(|&(bytes, window)| bytes * f64::from(window))
                .sum::<f64>();
        let requests = self.running_per_rank.min(f64::from(self.limit_per_rank));
        ((self.memory.map.kv_cache - fixed * requests) / per_token)
            .max(0.0)
            .floor()
    }

    /// Running requests of one rank that the engine is told to let in.
    pub fn requests_limit(&self) -> u32 {
        self.limit_per_rank
    }

    /// Running requests of one rank that a launch command allows: the planned limit, or fewer where
    /// KV memory cannot hold them (at least one).
    pub fn capped_running(&self) -> f64 {
        f64::from(self.limit_per_rank)
            .min(self.running_per_rank.ceil())
            .max(1.0)
    }

    /// The captured size that `requests` requests of the fullest rank replay.
    pub fn bucket(&self, requests: f64) -> Option<u32> {
        let need = requests.ceil().max(1.0);
        let at = self.buckets.partition_point(|&size| f64::from(size) < need);
        self.buckets.get(at).copied()
    }

    /// Step times under `traffic`. `explain` collects rooflines too.
    pub fn steps(&self, traffic: &Traffic, explain: bool) -> Steps<'_> {
        let setup = self.setup;
        let layout = self.choice.layout;
        let symmetric = self.choice.symmetric_memory;
        let rule = setup.rules.symmetric.as_ref();
        let node = (layout.tp * layout.pp).div_ceil(layout.nodes.max(1));
        // A rack-scale NVLink domain spans nodes; otherwise links end where the node does.
        let link = setup.gpu.link_domain_gpus.max(1);
        let domain = if link > setup.gpu.gpus_per_node {
            link
        } else {
            link.min(node)
        };
        let (mla, gqa) = dcp_merge(setup, layout.dcp <= domain);
        let gathers_symmetric = symmetric
            && rule.is_some_and(|r| {
                r.gathers && (!r.max_len_only || self.decode_exchange == Exchange::MaxLen)
            });
        Steps {
            fixed: Fixed {
                shard: &self.shard,
                costs: &setup.costs,
                dp: layout.attention_dp,
                attention_tp: layout.attention_tp(),
                ep: layout.ep,
                dcp: layout.dcp,
                dcp_mla: mla,
                dcp_gqa: gqa,
                dcp_replicated_q: false,
                dcp_lse_apart: setup.rules.dcp.as_ref().is_some_and(|r| r.lse_apart),
                kernels: setup.rules.kernels,
                exchanges: true,
                dense_on_attention_tp: layout.attention_dp > 1 && setup.dense_on_attention_tp(),
                head_on_attention_tp: layout.attention_dp > 1 && setup.dense_on_attention_tp(),
                ranks_per_domain: domain,
                stage_neighbours: if layout.tp * layout.pp <= domain {
                    2
                } else {
                    1
                },
                kv_dtype: self.choice.kv_dtype,
                reduce_tp: self.reduce_tp,
                reduce_attention_tp: self.reduce_attention_tp,
                symmetric_gathers: gathers_symmetric,
                low_latency_experts: setup.rules.experts.deepep_auto,
                expert_spread: setup.overheads.expert_spread,
                busiest_rank: busiest(layout.ep),
                shared_beside_rows: f64::from(setup.rules.experts.shared_beside_tokens),
                explain,
                record: None,
            },
            overheads: setup.overheads,
            decode_exchange: self.decode_exchange,
            prefill_exchange: self.prefill_exchange,
            buckets: &self.buckets,
            stages: f64::from(layout.pp),
            launches: launches::of(&self.shard),
            graph_kernels: launches::in_graph(
                &self.shard,
                setup.rules.experts.shared_beside_tokens > 0,
            ),
            prefill_graph_tokens: graphs::prefill_buckets(
                setup.rules,
                &self.context,
                self.chunk_tokens as u32,
            )
            .last()
            .map_or(0.0, |&tokens| f64::from(tokens)),
            mean_over_max: self.mean_over_max,
            context: traffic.context(),
            prompt: self.prompt(traffic),
            mixed: setup.rules.scheduler.batching == Batching::Mixed,
            speculation: speculation(&self.choice, traffic),
            sync_us: setup.sync_us(&layout),
        }
    }

    /// Prompt tokens that a request has to prefill.
    fn prompt(&self, traffic: &Traffic) -> f64 {
        (traffic.isl * (1.0 - traffic.prefix_hit)).max(1.0)
    }

    /// Traffic as one replica meets it.
    pub fn load(&self, traffic: &Traffic) -> ClosedLoop {
        let prefill = self.prompt(traffic);
        ClosedLoop {
            clients: self.clients / f64::from(self.choice.layout.replicas),
            prefill_tokens: prefill,
            cached_tokens: (traffic.isl - prefill).max(0.0),
            output_tokens: traffic.osl,
            tokens_per_step: speculation(&self.choice, traffic)
                .map_or(1.0, |s| s.tokens_per_step()),
            waves: traffic.waves,
            weighted_prompt: prefill * traffic.prompts.weighted,
            output_width: traffic.osl * traffic.outputs.width,
        }
    }

    /// Limits of one replica.
    pub fn limits(&self, traffic: &Traffic) -> Limits {
        let o = self.setup.overheads;
        Limits {
            dp_ranks: f64::from(self.choice.layout.attention_dp),
            running_per_rank: self.running_per_rank,
            chunk_tokens: self.chunk_tokens,
            style: match self.setup.rules.scheduler.batching {
                Batching::PrefillFirst => PrefillStyle::Separate,
                Batching::Mixed => PrefillStyle::Mixed,
            },
            request_overhead_us: o.request_us + o.prompt_token_us * traffic.isl,
            balance_steps: f64::from(self.setup.rules.scheduler.context_balance_steps),
            receive_steps: f64::from(self.receive_interval),
        }
    }

    /// Service of one replica.
    pub fn serve(&self, traffic: &Traffic) -> Service {
        self.serve_counted(traffic).0
    }

    /// Service of one replica, and how many points (this configuration at one decoding batch) were
    /// priced to find it. Of an open loop that gets more than it can serve, the service is that of the
    /// clients it is planned for; [`Deployment::does_not_fit`] says so.
    pub fn serve_counted(&self, traffic: &Traffic) -> (Service, u64) {
        let mut before = 0;
        if let Some(arrivals) = traffic.requests_per_s {
            let (answer, tried) = self.open_loop(traffic, arrivals);
            if let Answer::Steady { service, .. } = answer {
                return (service, tried);
            }
            before = tried;
        }
        let steps = self.steps(traffic, false);
        let (service, tried) = closed_loop(&steps, &self.load(traffic), &self.limits(traffic));
        (service, before + tried)
    }

    /// What arrivals at `requests_per_s` over the whole deployment come to on each of its replicas.
    fn open_loop(&self, traffic: &Traffic, requests_per_s: f64) -> (Answer, u64) {
        let steps = self.steps(traffic, false);
        let arrivals = OpenLoop {
            per_us: requests_per_s / 1e6 / f64::from(self.choice.layout.replicas),
            variation: traffic.outputs.weighted - 1.0,
        };
        open_loop(
            &steps,
            &self.load(traffic),
            &arrivals,
            &self.limits(traffic),
        )
    }

    /// Why this configuration cannot serve the traffic at all; none when it can.
    pub fn does_not_fit(&self, traffic: &Traffic) -> Option<String> {
        let gib = 1024.0 * 1024.0 * 1024.0;
        let map = &self.memory.map;
        if self.memory.missing > 0.0 {
            // What a smaller setting would give back is named before more GPUs are asked for.
            let settings = [
                ("prefill chunk", map.activations + map.gathered_buffers),
                (
                    "number of running requests",
                    map.request_tables + map.logits,
                ),
                ("largest graph", map.cuda_graphs),
            ];
            let large = settings
                .iter()
                .filter(|(_, bytes)| *bytes >= self.memory.missing)
                .max_by(|a, b| a.1.total_cmp(&b.1));
            let way_out = match large {
                Some((name, bytes)) => {
                    format!(
                        "{:.1} GiB are for the {name}, which can be smaller",
                        bytes / gib
                    )
                }
                None => "split them over more GPUs or use a smaller format".to_owned(),
            };
            return Some(format!(
                "weights of {:.1} GiB a GPU leave no room for KV cache: {:.1} GiB are missing; {way_out}",
                map.weights / gib,
                self.memory.missing / gib
            ));
        }
        if self.memory.overcommitted > 0.0 {
            let below = self.fraction.value - self.memory.overcommitted / map.total;
            let way_out = if below > 0.0 {
                format!("lower the memory fraction below {below:.3}, or let in fewer requests")
            } else {
                "no memory fraction is low enough; let in fewer requests, or make the prefill chunk or the largest graph smaller".to_owned()
            };
            return Some(format!(
                "memory is overcommitted by {:.1} GiB a GPU: {way_out}",
                self.memory.overcommitted / gib
            ));
        }
        let longest = self.footprint.longest_request(map.kv_cache);
        let needed = traffic.longest();
        if longest < needed {
            return Some(format!(
                "a request of {needed:.0} tokens does not fit: {:.1} GiB of KV cache hold {longest:.0}",
                map.kv_cache / gib
            ));
        }
        if let Some(arrivals) = traffic.requests_per_s
            && let (Answer::Overload { most_per_s }, _) = self.open_loop(traffic, arrivals)
        {
            return Some(format!(
                "{arrivals:.2} requests a second come, and no more than {:.2} get through for good: \
                 use more GPUs, or a layout or format that serves more",
                most_per_s * f64::from(self.choice.layout.replicas)
            ));
        }
        None
    }
}

/// A count of requests, at least one.
fn whole(requests: f64) -> u32 {
    requests.clamp(1.0, f64::from(u32::MAX / 2)) as u32
}

/// Merge of a DCP group's partial outputs, for MLA and for grouped-query layers, with the bytes of a
/// merged value.
fn dcp_merge(setup: &Setup<'_>, one_domain: bool) -> ((DcpMerge, f64), (DcpMerge, f64)) {
    let scatter = DcpMerge::ReduceScatter;
    let Some(rule) = &setup.rules.dcp else {
        return ((scatter, ACTIVATION_BYTES), (scatter, ACTIVATION_BYTES));
    };
    match engine_comm::dcp_merge(rule, None, sm(setup.gpu), one_domain) {
        rules::DcpMerge::AgRs => {
            let gqa = if rule.gqa_all_reduce {
                DcpMerge::AllReduce
            } else {
                scatter
            };
            (
                (scatter, f64::from(rule.mla_merge_bytes)),
                (gqa, f64::from(rule.gqa_merge_bytes)),
            )
        }
        rules::DcpMerge::A2a | rules::DcpMerge::FiA2a => (
            (DcpMerge::AllToAll, ACTIVATION_BYTES),
            (DcpMerge::AllToAll, ACTIVATION_BYTES),
        ),
    }
}

/// Sizes that cover every batch up to `limit` requests a rank with little waste, in the engine's unit.
fn planned_list(
    rules: &EngineRules,
    context: &GraphContext<'_>,
    limit: u32,
    dp: u32,
    width: u32,
) -> CaptureList {
    let unit = match rules.graphs.unit {
        GraphUnit::RequestsPerRank => 1,
        GraphUnit::RequestsOfAllRanks => dp,
        GraphUnit::Tokens => width,
    };
    // Engines cap what they capture; larger batches run eagerly there whatever is asked.
    graphs::covering_list(rules, context, limit.min(1024), unit, GRAPH_WASTE)
}
