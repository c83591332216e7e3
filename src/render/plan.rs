//! One configuration: what it is, what it is predicted to do, what it keeps in memory.

use super::launch::shell_words;
use super::{Page, Table, memory, number};
use crate::args::Typed;
use crate::ask::Ask;
use crate::stats::Stats;
use parplan_planner::Layout;
use parplan_planner::plan::{Choice, Plan, Predicted};
use parplan_planner::question::{Balance, Traffic};
use parplan_planner::volume::Exchange;
use parplan_profiles::Slo;

/// Clients, or the requests a second of an open loop.
pub fn load_words(traffic: &Traffic) -> String {
    match traffic.requests_per_s {
        Some(rate) => format!("{} requests a second", number::plain(rate)),
        None => number::counted(traffic.concurrency, "client"),
    }
}

/// The question in two lines.
pub fn question(page: &mut Page, ask: &Ask, gpus: u32) {
    page.heading(&format!(
        "{} on {gpus} {}, {} {}",
        ask.model.name, ask.gpu.name, ask.rules.name, ask.rules.version
    ));
    let traffic = &ask.traffic;
    let drawn = if traffic.prompts.longest > 1.0 || traffic.outputs.longest > 1.0 {
        " on average"
    } else {
        ""
    };
    let mut parts = vec![
        format!(
            "{} in, {} out{drawn}",
            number::counted(traffic.isl.round(), "token"),
            number::whole(traffic.osl)
        ),
        load_words(traffic),
    ];
    if traffic.prefix_hit > 0.0 {
        parts.push(format!(
            "{} % prefix hits",
            number::percent(traffic.prefix_hit)
        ));
    }
    parts.push(match &traffic.balance {
        Balance::Even => "even ranks".to_owned(),
        Balance::MeanOverMax(ratio) => format!("mean/max {}", number::plain(*ratio)),
        Balance::Ranks(list) => format!("batches of {} ranks given", list.len()),
        Balance::Random(seed) => format!("requests dealt with seed {seed}"),
    });
    if let Some(s) = traffic.speculation {
        parts.push(format!(
            "{} accepted with {}",
            number::counted(f64::from(s.steps), "drafted token"),
            number::plain(s.acceptance)
        ));
    }
    page.text(&parts.join("; "));
}

/// A layout in a few words, sizes of 1 left out.
pub fn layout_words(layout: &Layout) -> String {
    let mut words = vec![format!("tp {}", layout.tp)];
    let mut add = |name: &str, value: u32| {
        if value > 1 {
            words.push(format!("{name} {value}"));
        }
    };
    add("attn-dp", layout.attention_dp);
    add("dcp", layout.dcp);
    add("ep", layout.ep);
    add("pp", layout.pp);
    add("replicas", layout.replicas);
    words.join(", ")
}

/// Options of `recommend` that its answer decides, and those that only rank.
const DECIDED: [&str; 12] = [
    "gpus",
    "tp",
    "attn-dp",
    "dcp",
    "ep",
    "pp",
    "replicas",
    "kv-dtype",
    "cuda-graphs",
    "symmetric-memory",
    "expert-all-to-all",
    "objective",
];

/// What to type next about the configuration that was chosen for a question.
pub fn next_steps(page: &mut Page, question: &Typed, choice: &Choice) {
    let mut words = vec!["parplan".to_owned(), "explain".to_owned()];
    // Batches by rank mean nothing to a layout with one batch, and `explain` refuses them.
    let one_batch = (choice.layout.attention_dp == 1).then_some("imbalance");
    let left_out: Vec<&str> = DECIDED.into_iter().chain(one_batch).collect();
    words.extend(question.words(&left_out));
    for size in layout_words(&choice.layout).split(", ") {
        let option = size.split(' ').map(str::to_owned);
        words.extend(option.enumerate().map(|(i, word)| match i {
            0 => format!("--{word}"),
            _ => word,
        }));
    }
    let kv_dtype = question.get("kv-dtype").map(|_| choice.kv_dtype.name());
    for (flag, value) in [
        ("--kv-dtype", kv_dtype),
        (
            "--expert-all-to-all",
            choice.expert_all_to_all.then_some("on"),
        ),
        (
            "--symmetric-memory",
            choice.symmetric_memory.then_some("on"),
        ),
        ("--cuda-graphs", (!choice.cuda_graphs).then_some("off")),
    ] {
        words.extend(
            value
                .into_iter()
                .flat_map(|value| [flag.to_owned(), value.to_owned()]),
        );
    }
    page.heading("Next");
    page.text("where its time and memory go:");
    for line in shell_words(&words, page.style().width()) {
        page.verbatim(&line);
    }
}

/// What was chosen, in words.
pub fn configuration(page: &mut Page, plan: &Plan) {
    let report = &plan.layout;
    page.heading("Layout");
    page.text(&format!(
        "{}, on {}",
        layout_words(&plan.choice.layout),
        number::counted(f64::from(report.gpus), "GPU")
    ));
    let mut facts = Table::new(&["", ""]);
    facts.row(["attention", &attention(plan)]);
    facts.row(["feed-forward", &feed_forward(plan)]);
    facts.row(["KV cache", &format!("{}", plan.choice.kv_dtype)]);
    facts.row(["CUDA graphs", &graphs(plan)]);
    facts.row([
        "symmetric memory",
        if plan.choice.symmetric_memory {
            "on"
        } else {
            "off"
        },
    ]);
    page.table(&facts);
}

fn attention(plan: &Plan) -> String {
    let report = &plan.layout;
    let mut words = match (report.attention_dp, report.attention_tp) {
        (1, 1) => "on one GPU".to_owned(),
        (1, ranks) => format!("heads over {ranks} ranks"),
        (groups, 1) => format!("requests over {groups} ranks, each with all heads"),
        (groups, ranks) => format!("requests over {groups} groups, heads over {ranks} ranks"),
    };
    if report.dcp > 1 {
        words.push_str(&format!(", KV tokens over {} ranks", report.dcp));
    }
    words
}

fn feed_forward(plan: &Plan) -> String {
    let report = &plan.layout;
    let split = match (report.ep, report.moe_tp) {
        (1, 1) if report.tp == 1 => return "on one GPU".to_owned(),
        (1, 1) => "on one GPU".to_owned(),
        (1, ways) => format!("split {ways} ways"),
        (ranks, 1) => format!("experts over {ranks} ranks, each one whole"),
        (ranks, ways) => format!("experts over {ranks} ranks, each one split {ways} ways"),
    };
    let exchange = match plan.exchange {
        Exchange::AllReduce => "all-reduce",
        Exchange::MaxLen => "rows padded to the longest rank (max_len)",
        Exchange::SumLen => "rows in one buffer of the summed length (sum_len)",
        Exchange::Exact => "rows gathered at their exact sizes",
        Exchange::AllToAll => "expert all-to-all",
    };
    format!("{split}; {exchange}")
}

fn graphs(plan: &Plan) -> String {
    match (&plan.graphs.eager_reason, plan.graphs.bucket) {
        (Some(reason), _) => format!("decode runs eagerly: {reason}"),
        (None, Some(bucket)) => format!(
            "decode replays the graph of {bucket}, {} % of it padding",
            number::percent(plan.graphs.waste)
        ),
        (None, None) => "decode runs eagerly".to_owned(),
    }
}

/// Why a plan has no time per output token.
pub const NO_TPOT: &str = "one output token a request: none follows the first, so there is no TPOT";

/// The predicted figures with their intervals.
pub fn predicted(page: &mut Page, plan: &Plan) {
    page.heading("Predicted");
    let p = &plan.predicted;
    let mut table = Table::new(&["", ">value", ">90 % interval", "unit"]);
    let mut add = |name: &str, value: &Predicted, unit: &str| {
        table.row([
            name.to_owned(),
            number::short(value.value),
            number::range(value.low, value.high),
            unit.to_owned(),
        ]);
    };
    if let Some(tpot) = &p.tpot_ms {
        add("time per output token (TPOT)", tpot, "ms");
    }
    add("time to first token (TTFT)", &p.ttft_ms, "ms");
    add(
        "output throughput per GPU",
        &p.output_tokens_per_s_per_gpu,
        "tokens/s",
    );
    add(
        "output throughput, all GPUs",
        &p.output_tokens_per_s,
        "tokens/s",
    );
    add("finished requests", &p.requests_per_s, "requests/s");
    add("decode step", &p.decode_step_ms, "ms");
    add("prefill pass", &p.prefill_pass_ms, "ms");
    page.table(&table);
    if p.tpot_ms.is_none() {
        page.aside(NO_TPOT);
    }
}

/// Room for requests.
pub fn capacity(page: &mut Page, plan: &Plan) {
    page.heading("Capacity");
    let mut table = Table::new(&["", ">value", "unit"]);
    let mut add = |name: &str, value: String, unit: &str| {
        table.row([name.to_owned(), value, unit.to_owned()]);
    };
    add(
        "KV cache of a token on a rank",
        number::whole(plan.kv_bytes_per_token_per_rank),
        "bytes",
    );
    add(
        "copies of a token's KV",
        number::plain(plan.kv_redundancy),
        "(1: none redundant)",
    );
    add(
        "KV cache of an attention DP rank",
        number::whole(plan.max_kv_tokens),
        "tokens",
    );
    add(
        "longest single request",
        number::whole(plan.max_request_tokens),
        "tokens",
    );
    add(
        "requests that fit at these lengths",
        number::whole(plan.kv_concurrency),
        "requests",
    );
    add(
        "running requests allowed",
        number::whole(f64::from(plan.max_running_requests)),
        "requests",
    );
    page.table(&table);
}

/// Everything about one configuration.
pub fn whole(page: &mut Page, plan: &Plan) {
    configuration(page, plan);
    predicted(page, plan);
    capacity(page, plan);
    memory::map(page, &plan.memory_bytes);
    page.alerts("Warnings", &plan.warnings);
}

/// Whether the limits are kept.
pub fn limits(page: &mut Page, limits: &Slo, plan: &Plan) {
    let predicted = &plan.predicted;
    let checks = [
        ("TTFT", limits.ttft_ms, Some(predicted.ttft_ms)),
        ("TPOT", limits.tpot_ms, predicted.tpot_ms),
    ];
    if checks.iter().all(|(_, limit, _)| limit.is_none()) {
        return;
    }
    page.heading("Limits");
    for (name, limit, value) in checks {
        let (Some(limit), Some(value)) = (limit, value) else {
            continue;
        };
        let verdict = if value.value > limit {
            "missed"
        } else if value.high > limit {
            "kept on average, not at the high end of the interval"
        } else {
            "kept"
        };
        page.text(&format!(
            "{name} under {} ms: {verdict} ({} ms, up to {})",
            number::plain(limit),
            number::short(value.value),
            number::short(value.high)
        ));
    }
}

/// What was computed and how long it took.
pub fn stats(page: &mut Page, stats: &Stats) {
    page.heading("Stats");
    let mut table = Table::new(&["", ">value", "unit"]);
    if let Some(points) = stats.points {
        table.row(["points", &number::whole(points as f64), "priced"]);
    }
    if let Some(rate) = stats.points_per_cpu_second() {
        table.row(["points a CPU second", &number::whole(rate), "priced"]);
    }
    table.row(["wall time", &number::short(stats.seconds * 1e3), "ms"]);
    table.row(["CPU time", &number::short(stats.cpu_seconds * 1e3), "ms"]);
    page.table(&table);
}
