//! One configuration, resolved: shapes, memory, graphs, limits and step times, ready to be asked.

mod resolve;

use crate::engine_comm;
use crate::graphs::{self, CaptureList, GraphContext};
use crate::kv::KvFootprint;
use crate::memory::{CachePools, MemoryResult};
use crate::padding::Padding;
use crate::plan::Choice;
use crate::question::{Traffic, tokens_per_step};
use crate::reserve::MemoryFraction;
use crate::serve::open::{Answer, OpenLoop, open_loop};
use crate::serve::{ClosedLoop, Limits, PrefillStyle, Service, closed_loop};
pub use crate::setup::{Setup, sm};
use crate::shard::Shard;
use crate::step::block::busiest;
use crate::step::pass::{ACTIVATION_BYTES, Fixed, ReducePath};
use crate::step::{Steps, launches};
use crate::volume::{DcpMerge, Exchange};
use parplan_profiles::engine::rules::{self, Batching};
use resolve::speculation;

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
    /// The limit that a person set, as the engine's own flag counts it.
    limit_asked: Option<u32>,
    /// Decode steps between two looks for new requests.
    pub receive_interval: u32,
    /// Decode steps that a prompt waits for others to be prefilled with it.
    company_steps: u32,
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

impl<'a> Deployment<'a> {
    /// Requests of a rank that its KV cache holds on average; below nothing where the weights and
    /// what else is needed leave less than nothing for it.
    pub fn requests_held(&self, traffic: &Traffic) -> f64 {
        // A running request holds its prompt and, on average, half of its output; the engine admits
        // as long as there is room.
        let held = traffic.context();
        self.pools(self.memory.map.kv_cache - self.memory.missing)
            .requests_held(&self.footprint, held)
    }

    /// So many bytes of cache, divided between rows and recurrent states as the engine does.
    fn pools(&self, kv_bytes: f64) -> CachePools {
        let rule = self.setup.rules.state_pool.as_ref();
        CachePools::of(rule, &self.footprint, kv_bytes)
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
        let held = self.pools(self.memory.map.kv_cache);
        let held = held.longest_request(&self.footprint);
        held.floor().min(self.context_limit)
    }

    /// KV tokens of one attention-DP rank, the shares of a DCP group together; windows and recurrent
    /// state of as many requests as are planned are taken off first.
    pub fn kv_tokens(&self) -> f64 {
        let per_token = self.footprint.bytes_per_token;
        if per_token <= 0.0 {
            return 0.0;
        }
        let pools = self.pools(self.memory.map.kv_cache);
        let states = match pools.states {
            Some(_) => 0.0,
            None => self.footprint.state_bytes,
        };
        let fixed = states
            + self
                .footprint
                .windows
                .iter()
                .map(|&(bytes, window)| bytes * f64::from(window))
                .sum::<f64>();
        let requests = self.running_per_rank.min(f64::from(self.limit_per_rank));
        ((pools.rows - fixed * requests) / per_token)
            .max(0.0)
            .floor()
    }

    /// What a limit of running requests that a person set comes to, where its number is not that of the
    /// whole deployment: the limit, and the requests of one rank.
    pub fn limit_shared(&self) -> Option<(u32, u32)> {
        let layout = &self.choice.layout;
        let all = self
            .limit_per_rank
            .saturating_mul(layout.attention_dp)
            .saturating_mul(layout.replicas);
        self.limit_asked
            .filter(|&asked| asked != all)
            .map(|asked| (asked, self.limit_per_rank))
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
                fused_norms: setup.fuses_norms(&self.choice),
                quantised: setup.quantised(&self.choice),
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
                busiest_rank: busiest(f64::from(layout.ep)),
                shared_beside_rows: f64::from(setup.rules.experts.shared_beside_tokens),
                explain,
                record: None,
            },
            overheads: setup.overheads,
            model_code: setup.overheads.model_code(&setup.model.architecture),
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
                .map_or(1.0, |draft| tokens_per_step(&draft)),
            waves: traffic.waves,
            weighted_prompt: prefill * traffic.prompts.weighted,
            outputs: traffic.outputs,
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
            request_overhead_us: o
                .request_us_of(self.setup.rules.version, &self.setup.model.architecture)
                + o.prompt_token_us * traffic.isl,
            balance_steps: f64::from(self.setup.rules.scheduler.context_balance_steps),
            receive_steps: f64::from(self.receive_interval),
            company_steps: f64::from(self.company_steps),
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
        let longest = self.pools(map.kv_cache).longest_request(&self.footprint);
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
