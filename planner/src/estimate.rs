//! A resolved configuration as a plan: everything that is reported of it.

use crate::cost::OpClass;
use crate::deployment::{Deployment, Setup};
use crate::graphs::{self, GraphContext};
use crate::kv;
use crate::plan::{
    Breakdown, Choice, GraphPlan, LayerVolume, LayoutReport, Performance, Plan, Predicted, Term,
};
use crate::question::{Settings, Traffic};
use crate::serve::Service;
use crate::shard::Mixer;
use crate::step::pass::{self, ACTIVATION_BYTES};
use crate::step::record::{Record, Recorded};
use crate::step::tally::{Op, Tally};
use crate::volume::{self, Exchange, Rows};
use parplan_profiles::engine::rules::{GraphUnit, RequestLimit};
use parplan_profiles::{Attention, Ffn, LayerGroup};

/// Everything that is predicted of one configuration. The layout must be legal.
pub fn plan(setup: &Setup<'_>, traffic: &Traffic, settings: &Settings, choice: Choice) -> Plan {
    let deployment = Deployment::new(setup, traffic, settings, choice);
    let service = deployment.serve(traffic);
    from_parts(&deployment, traffic, &service)
}

/// The plan of a configuration whose service is known.
pub fn from_parts(d: &Deployment<'_>, traffic: &Traffic, service: &Service) -> Plan {
    let layout = d.choice.layout;
    let model = d.setup.model;
    let dp = f64::from(layout.attention_dp);
    let replicas = f64::from(layout.replicas);
    let fullest = service.decoding_per_rank / d.mean_over_max;
    let kv_tokens = d.kv_tokens();
    let kv_concurrency = d.requests_held(traffic).max(0.0) * dp * replicas;
    let graphs = graph_plan(d, fullest);
    let running = d.capped_running() * dp * replicas;
    let padding_mode = match d.decode_exchange() {
        Exchange::MaxLen => "max_len",
        Exchange::SumLen => "sum_len",
        Exchange::Exact => "exact",
        Exchange::AllReduce | Exchange::AllToAll => "none",
    };
    Plan {
        choice: d.choice,
        layout: LayoutReport::from(layout),
        predicted: performance(d, traffic, service),
        memory_bytes: d.memory.map,
        kv_bytes_per_token_per_rank: d.footprint.bytes_per_token,
        kv_redundancy: kv::redundancy(model, &layout),
        max_kv_tokens: kv_tokens,
        max_request_tokens: d.longest_request(),
        padding_mode,
        exchange: d.decode_exchange(),
        graph_batch_sizes: graphs.batch_sizes.clone(),
        graphs,
        max_running_requests: running.clamp(0.0, f64::from(u32::MAX)) as u32,
        kv_concurrency,
        memory_fraction: d.fraction.value,
        chunk_tokens: d.chunk_flag,
        receive_interval: d.receive_interval,
        warnings: warnings(d, traffic, service, kv_concurrency),
    }
}

/// Predicted service with its intervals.
fn performance(d: &Deployment<'_>, traffic: &Traffic, service: &Service) -> Performance {
    let o = d.setup.overheads;
    let replicas = f64::from(d.choice.layout.replicas);
    let gpus = f64::from(d.choice.layout.gpus());
    let spread = transfer_sigma(d.setup);
    let sigma = |own: f64| (own * own + spread * spread).sqrt();
    let tpot = service
        .tpot_us
        .map(|us| Predicted::log_normal(us / 1e3, sigma(o.tpot_sigma)));
    let steps = d.steps(traffic, false);
    let chunk = d.chunk_tokens.min(d.load(traffic).prefill_tokens);
    let requests = service.requests_per_s * replicas;
    let finished = match service.most_requests_per_s {
        Some(most) => Predicted::arriving(requests, most * replicas, sigma(o.tpot_sigma)),
        None => Predicted::log_normal(requests, sigma(o.tpot_sigma)),
    };
    let tokens = finished.scaled(traffic.osl);
    Performance {
        tpot_ms: tpot,
        ttft_ms: Predicted::log_normal(service.ttft_us / 1e3, sigma(o.ttft_sigma)),
        output_tokens_per_s: tokens,
        output_tokens_per_s_per_gpu: tokens.scaled(1.0 / gpus),
        requests_per_s: finished,
        decode_step_ms: Predicted::log_normal(service.decode_step_us / 1e3, sigma(o.tpot_sigma)),
        prefill_pass_ms: Predicted::log_normal(
            steps.prefill(chunk, 0.0, 1.0, 0.0).total_us() / 1e3,
            sigma(o.tpot_sigma),
        ),
        ttft_waiting_ms: (service.queue_us + service.burst_us) / 1e3,
        decoding_per_rank: service.decoding_per_rank,
        prefill_load: service.prefill_load,
    }
}

/// How far prices may be off because no table covers the GPU: the spread of the carried-over figures
/// beyond that of measured ones.
fn transfer_sigma(setup: &Setup<'_>) -> f64 {
    let formats = setup.model.weights;
    let class = if setup.model.is_moe() {
        OpClass::Moe(formats.experts)
    } else {
        OpClass::Gemm(formats.dense_ffn)
    };
    match setup.costs.note(class) {
        Some(note) if note.samples == 0 => note.sigma,
        _ => 0.0,
    }
}

fn graph_plan(d: &Deployment<'_>, fullest: f64) -> GraphPlan {
    let rules = d.setup.rules;
    let unit = match d.capture.unit {
        GraphUnit::RequestsPerRank => "requests_per_rank",
        GraphUnit::RequestsOfAllRanks => "requests_of_all_ranks",
        GraphUnit::Tokens => "tokens",
    };
    let bucket = d.bucket(fullest);
    let eager_reason = if !d.choice.cuda_graphs {
        Some("CUDA graphs are off".to_owned())
    } else if bucket.is_none() {
        let largest = d.capture.largest().unwrap_or(0);
        Some(format!(
            "a batch of {:.0} requests a rank is above the largest captured size {largest}",
            fullest.ceil()
        ))
    } else {
        None
    };
    let context = GraphContext {
        largest: None,
        ..d.graph_context()
    };
    GraphPlan {
        batch_sizes: d.capture.sizes.clone(),
        unit,
        engine_default: graphs::default_list(rules, &context).sizes,
        bucket,
        waste: bucket.map_or(0.0, |size| 1.0 - (fullest / f64::from(size)).min(1.0)),
        eager_reason,
    }
}

fn warnings(
    d: &Deployment<'_>,
    traffic: &Traffic,
    service: &Service,
    kv_concurrency: f64,
) -> Vec<String> {
    // Why it cannot serve at all is worded in one place.
    let mut out: Vec<String> = d.does_not_fit(traffic).into_iter().collect();
    if d.memory.missing <= 0.0 && kv_concurrency < d.clients {
        out.push(format!(
            "KV memory holds {kv_concurrency:.0} of {:.0} concurrent requests; the others wait {:.0} ms for a place",
            d.clients,
            service.queue_us / 1e3
        ));
    }
    let closed = traffic.requests_per_s.is_none();
    if closed
        && d.choice.layout.attention_dp > 1
        && d.clients < f64::from(d.choice.layout.attention_dp)
    {
        let (clients, leave) = match d.clients {
            1.0 => ("1 client".to_owned(), "leaves"),
            many => (format!("{many:.0} clients"), "leave"),
        };
        out.push(format!(
            "{clients} {leave} some of the {} attention-DP ranks idle, and idle ranks step along",
            d.choice.layout.attention_dp
        ));
    }
    out.extend(lost_sizes(d));
    out.extend(shared_limit(d));
    out
}

/// Says what a limit of running requests comes to that counts those of a replica or of a rank.
fn shared_limit(d: &Deployment<'_>) -> Option<String> {
    let (asked, each) = d.limit_shared()?;
    let layout = &d.choice.layout;
    let all = u64::from(each) * u64::from(layout.attention_dp) * u64::from(layout.replicas);
    let whose = match d.setup.rules.scheduler.requests {
        RequestLimit::Server => "those of a replica, divided among its attention-DP ranks",
        RequestLimit::Engine => "those of one attention-DP rank",
    };
    Some(format!(
        "the limit of {asked} running requests counts {whose}: {each} a rank, {all} in all"
    ))
}

/// Says which of the graph sizes that a person listed the engine would not capture, and why.
fn lost_sizes(d: &Deployment<'_>) -> Option<String> {
    let lost = &d.capture.lost;
    let largest = lost.last()?;
    if !d.sizes_were_listed {
        return None;
    }
    let listed: Vec<String> = lost.iter().map(u32::to_string).collect();
    let named = match listed.as_slice() {
        [one] => format!("graph size {one} is"),
        few if few.len() <= 6 => format!("graph sizes {} are", few.join(", ")),
        many => format!("{} graph sizes, the largest {largest}, are", many.len()),
    };
    let unit = match d.capture.unit {
        GraphUnit::RequestsPerRank => "a size counts requests of a rank",
        GraphUnit::RequestsOfAllRanks => "a size counts requests of all ranks",
        GraphUnit::Tokens => "a size counts tokens",
    };
    let multiple = graphs::alignment(d.setup.rules, &d.graph_context());
    let aligned = match multiple {
        0 | 1 => String::new(),
        multiple => format!(", and sizes are multiples of {multiple}"),
    };
    Some(format!(
        "{named} not captured: {unit}, whose limit of running requests is {}{aligned}",
        d.requests_limit()
    ))
}

/// A decode step and a prefill pass, term by term, at the service's own batch.
pub fn breakdowns(d: &Deployment<'_>, traffic: &Traffic, service: &Service) -> [Breakdown; 2] {
    let record = Record::default();
    let mut steps = d.steps(traffic, true);
    steps.fixed.record = Some(&record);
    let batch = service.decoding_per_rank;
    let decode = steps.decode(batch);
    let decode_ran = record.take();
    let chunk = d.chunk_tokens.min(d.load(traffic).prefill_tokens);
    let prefill = steps.prefill(chunk, 0.0, 1.0, 0.0);
    let title = format!(
        "decode step, {batch:.1} requests a rank at {:.0} tokens",
        steps.context
    );
    [
        breakdown(d, title, &decode, &decode_ran),
        breakdown(
            d,
            format!("prefill pass, {chunk:.0} tokens on one rank"),
            &prefill,
            &record.take(),
        ),
    ]
}

fn breakdown(d: &Deployment<'_>, title: String, tally: &Tally, ran: &[Recorded]) -> Breakdown {
    let terms = Op::ALL
        .iter()
        .filter(|&&op| tally.us(op) > 0.0)
        .map(|&op| {
            let (implementation, source, sigma) = provenance(d, op, ran);
            let us = Predicted::log_normal(tally.us(op), sigma);
            Term {
                name: op.name().to_owned(),
                count: tally.count(op),
                us: us.value,
                roofline_us: op
                    .is_kernel()
                    .then(|| tally.roofline_us(op))
                    .filter(|&us| us > 0.0),
                low_us: us.low,
                high_us: us.high,
                implementation,
                source,
            }
        })
        .collect();
    Breakdown {
        title,
        terms,
        total_us: tally.total_us(),
    }
}

/// Implementation, source and spread of the figures behind a kind of work: those of the operation
/// that takes most of its time.
fn provenance(d: &Deployment<'_>, op: Op, ran: &[Recorded]) -> (String, String, f64) {
    let setup = d.setup;
    let engine = setup.rules.name.clone();
    let overheads = setup.overheads;
    match op {
        Op::LayerGaps | Op::EagerLaunch | Op::Host => {
            return (engine, overheads.source.clone(), overheads.tpot_sigma);
        }
        Op::MetadataSync => {
            return (
                "gloo or nccl".to_owned(),
                overheads.sync.source.clone(),
                overheads.sync.sigma,
            );
        }
        _ => {}
    }
    let most = ran
        .iter()
        .filter(|r| r.op == op)
        .max_by(|a, b| (a.count * a.us).total_cmp(&(b.count * b.us)));
    // Drafts and the hand-over between stages are priced as sums; their kind of work says enough.
    let (class, ranks) = match (most, op) {
        (Some(r), _) => (r.operation.class(), r.operation.ranks()),
        (None, Op::Pipeline) => (OpClass::AllToAll, 2.0),
        (None, _) => (OpClass::Gemm(setup.model.weights.attention), 1.0),
    };
    let implementation = match class {
        OpClass::CustomAllReduce => format!("{engine} all-reduce"),
        OpClass::PeerGather => format!("{engine} gather over peer memory"),
        OpClass::PeerMerge => format!("{engine} merge over peer memory"),
        OpClass::AllGather | OpClass::ReduceScatter | OpClass::AllReduce | OpClass::AllToAll => {
            "nccl".to_owned()
        }
        OpClass::SymmetricAllGather
        | OpClass::SymmetricReduceScatter
        | OpClass::SymmetricAllReduce => "nccl, symmetric windows".to_owned(),
        OpClass::Network => "nccl over the network".to_owned(),
        _ => engine,
    };
    match (setup.costs.note(class), setup.costs.spread(class, ranks)) {
        (Some(note), Some(sigma)) => (implementation, note.source.clone(), sigma),
        _ => (implementation, "spec sheet".to_owned(), 0.5),
    }
}

/// Collectives of each kind of layer in the planned decode step.
pub fn volumes(d: &Deployment<'_>, traffic: &Traffic, service: &Service) -> Vec<LayerVolume> {
    let layout = d.choice.layout;
    let steps = d.steps(traffic, false);
    let fullest = service.decoding_per_rank / d.mean_over_max;
    let width = 1.0 + f64::from(d.choice.speculative_steps);
    let own = d.bucket(fullest).map_or(fullest.ceil(), f64::from).max(1.0) * width;
    let sum = (service.decoding_per_rank.ceil() * width * f64::from(layout.attention_dp)).max(own);
    let rows = Rows {
        max: own,
        sum,
        dp: layout.attention_dp,
        attention_tp: layout.attention_tp(),
        row_bytes: d.shard.hidden * ACTIVATION_BYTES,
    };
    d.setup
        .model
        .layers
        .iter()
        .zip(&d.shard.groups)
        .map(|(group, shard)| {
            let (rows, exchange, alone) =
                pass::meeting(&steps.fixed, &shard.block, rows, steps.decode_exchange);
            let calls = volume::layer(
                &rows,
                exchange,
                group.attention.is_some(),
                group.ffn.is_some(),
            );
            let mut calls = calls.as_slice().to_vec();
            if alone {
                // With one DP rank the group of a stage is an attention-TP group.
                calls
                    .iter_mut()
                    .for_each(|call| call.group = volume::Group::AttentionTp);
            }
            if let Mixer::Gqa(attention) = &shard.mixer
                && attention.shared_norm
                && layout.attention_tp() > 1
            {
                calls.insert(0, volume::shared_norm(own, layout.attention_tp()));
            }
            if layout.dcp > 1
                && let Some(shape) = steps.dcp_shape(group, own)
            {
                calls.splice(0..0, volume::dcp(&shape).as_slice().iter().copied());
            }
            if let (Exchange::AllToAll, Some(Ffn::Moe(moe))) = (steps.decode_exchange, &group.ffn) {
                let width = if moe.latent > 0 {
                    moe.latent
                } else {
                    d.setup.model.hidden_size
                };
                // Attention-TP ranks of one DP rank share its tokens between them.
                let tokens = own / f64::from(layout.attention_tp());
                let formats = d.setup.model.formats_of(group);
                let exchange = volume::experts(
                    tokens,
                    f64::from(moe.top_k),
                    f64::from(width),
                    formats.experts,
                    layout.ep,
                );
                calls.extend_from_slice(exchange.as_slice());
            }
            LayerVolume {
                layers: f64::from(group.count) / f64::from(layout.pp),
                layer: layer_name(group),
                calls,
            }
        })
        .collect()
}

/// Names a layer by its mixer and block, for example `mla + moe`.
pub fn layer_name(group: &LayerGroup) -> String {
    let mixer = group.attention.as_ref().map(|a| match a {
        Attention::Gqa(a) if a.window.is_some() => "sliding gqa",
        Attention::Gqa(_) => "gqa",
        Attention::Mla(a) if a.indexer.is_some() => "sparse mla",
        Attention::Mla(_) => "mla",
        Attention::GatedDelta(_) => "gated delta",
        Attention::Mamba2(_) => "mamba-2",
        Attention::Compressed(_) => "compressed",
        Attention::KimiDelta(_) => "kimi delta",
    });
    let block = group.ffn.as_ref().map(|f| match f {
        Ffn::Dense(_) => "dense",
        Ffn::Moe(_) => "moe",
    });
    [mixer, block]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(" + ")
}
