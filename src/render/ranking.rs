//! A recommendation: the verdict, the ranked configurations, what was refused.

use super::table::KEEP;
use super::{Page, Table, number, plan};
use crate::ask::Ask;
use parplan_planner::plan::{Choice, Plan, Predicted};
use parplan_planner::question::{Goal, Objective, Space, Traffic};
use parplan_planner::search::{Recommendation, Rejected};

/// Refusals that are printed; JSON has all.
const SHOWN: usize = 5;

/// Whether the limits are kept, and by how much they are missed.
pub fn verdict(page: &mut Page, goal: &Goal, answer: &Recommendation) {
    let limits = limits(goal);
    if limits.is_empty() {
        return;
    }
    page.heading("Limits");
    let Some(miss) = answer.miss else {
        return page.text(&format!("{limits}: kept by the best configuration"));
    };
    let mut misses = Vec::new();
    for (name, over) in [("TTFT", miss.ttft_ms), ("TPOT", miss.tpot_ms)] {
        if over > 0.0 {
            misses.push(format!("{name} by {} ms", number::short(over)));
        }
    }
    let alert = page
        .style()
        .alert(&format!("{limits}: NOT met by any configuration"));
    page.verbatim(&format!("  {alert}"));
    page.text(&format!(
        "what follows are the nearest misses; the first misses {}",
        misses.join(" and ")
    ));
}

fn limits(goal: &Goal) -> String {
    let mut parts = Vec::new();
    for (name, limit) in [("TTFT", goal.ttft_ms), ("TPOT", goal.tpot_ms)] {
        if let Some(limit) = limit {
            parts.push(format!("{name} under {} ms", number::plain(limit)));
        }
    }
    parts.join(", ")
}

/// The ranked configurations, best first.
pub fn table(page: &mut Page, goal: &Goal, traffic: &Traffic, ranked: &[Plan]) {
    let over = |value: f64, limit: Option<f64>| limit.is_some_and(|limit| value > limit);
    let missed = ranked.first().is_some_and(|plan| {
        over(plan.predicted.ttft_ms.value, goal.ttft_ms)
            || plan
                .predicted
                .tpot_ms
                .is_some_and(|tpot| over(tpot.value, goal.tpot_ms))
    });
    page.heading(match goal.objective {
        // By how far the worse of the limits is missed, which is not the order of any column.
        _ if missed => "Nearest to the limits first",
        Objective::Throughput => "Ranked by output tokens a second and GPU",
        Objective::Latency => "Ranked by the mean time of a whole request",
        Objective::Pareto if ranked.iter().all(|plan| plan.predicted.tpot_ms.is_none()) => {
            "No other configuration beats these in throughput and TTFT"
        }
        Objective::Pareto => "No other configuration beats these in throughput and TPOT",
    });
    let limited = goal.ttft_ms.is_some() || goal.tpot_ms.is_some();
    let limits = if limited { "limits" } else { "" };
    let whole = match goal.objective {
        Objective::Latency if !missed => ">request s",
        _ => ">",
    };
    let mut table = Table::new(&[
        "",
        ">tokens/s/GPU",
        ">TPOT ms",
        ">TTFT ms",
        whole,
        ">fits",
        limits,
        "layout",
    ]);
    let one_format = ranked
        .windows(2)
        .all(|pair| pair[0].choice.kv_dtype == pair[1].choice.kv_dtype);
    for (i, plan) in ranked.iter().enumerate() {
        let p = &plan.predicted;
        let mut words = named(&plan.choice, SHORT);
        if !one_format {
            words.push_str(&format!(", kv {}", plan.choice.kv_dtype));
        }
        // A size stays with its name where the column breaks.
        let words = words
            .replace(", ", ",\0")
            .replace(' ', KEEP)
            .replace('\0', " ");
        let kept = keeps(goal, plan);
        table.row([
            (i + 1).to_string(),
            number::short(p.output_tokens_per_s_per_gpu.value),
            number::mean(p.tpot_ms.as_ref()),
            number::short(p.ttft_ms.value),
            match whole {
                ">" => String::new(),
                _ => number::short(
                    traffic.request_time(p.ttft_ms.value, p.tpot_ms.map(|tpot| tpot.value)) / 1e3,
                ),
            },
            number::whole(plan.kv_concurrency),
            match (limited, kept) {
                (false, _) => "",
                (true, true) => "kept",
                (true, false) => "missed",
            }
            .to_owned(),
            words,
        ]);
    }
    page.table(&table);
    if limited {
        page.aside("Layouts that miss a limit come after those that keep all, nearest miss first.");
    }
    let used = |on: fn(&Choice) -> bool| ranked.iter().any(|plan| on(&plan.choice));
    let legend: Vec<String> = [
        (used(|c| c.expert_all_to_all), 0),
        (used(|c| c.symmetric_memory), 1),
    ]
    .into_iter()
    .filter(|(used, _)| *used)
    .map(|(_, i)| format!("{}: {}", SHORT[i], LONG[i]))
    .collect();
    if !legend.is_empty() {
        page.aside(&format!("{}.", legend.join(". ")));
    }
    page.aside(
        "fits: requests that the KV cache holds. Differences well inside the intervals below do \
         not decide; `parplan compare` says how likely one layout beats another.",
    );
}

/// Whether a configuration keeps the limits. Where no token follows the first, no limit on the time
/// between tokens is missed.
pub fn keeps(goal: &Goal, plan: &Plan) -> bool {
    let kept = |limit: Option<f64>, value: Option<&Predicted>| match (limit, value) {
        (Some(limit), Some(value)) => value.value <= limit,
        _ => true,
    };
    let p = &plan.predicted;
    kept(goal.ttft_ms, Some(&p.ttft_ms)) && kept(goal.tpot_ms, p.tpot_ms.as_ref())
}

/// A warning where the best configuration leaves GPUs unused.
pub fn unused(space: &Space, best: &Plan) -> Option<String> {
    (best.layout.gpus < space.gpus).then(|| {
        format!(
            "this layout uses {} of the {} GPUs; fix --replicas or --pp too to use all",
            best.layout.gpus, space.gpus
        )
    })
}

/// A layout, its switches and the format of its KV cache in a few words.
pub fn choice_words(choice: &Choice) -> String {
    format!("{}, kv {}", switch_words(choice), choice.kv_dtype)
}

/// A layout and its switches.
pub fn switch_words(choice: &Choice) -> String {
    named(choice, LONG)
}

/// Names of the switches: all-to-all, symmetric memory, no graphs.
const LONG: [&str; 3] = ["expert all-to-all", "symmetric memory", "no CUDA graphs"];
/// The same as `compare` spells them.
const SHORT: [&str; 3] = ["a2a", "symm", "no graphs"];

fn named(choice: &Choice, names: [&str; 3]) -> String {
    let mut words = plan::layout_words(&choice.layout);
    let switches = [
        choice.expert_all_to_all,
        choice.symmetric_memory,
        !choice.cuda_graphs,
    ];
    for (on, name) in switches.into_iter().zip(names) {
        if on {
            words.push_str(", ");
            words.push_str(name);
        }
    }
    if choice.speculative_steps > 0 {
        words.push_str(&format!(", {} drafted", choice.speculative_steps));
    }
    words
}

/// A few layouts that cannot run, with their reasons.
pub fn rejected(page: &mut Page, rejected: &[Rejected]) {
    if rejected.is_empty() {
        return;
    }
    page.heading(&format!(
        "{} cannot run",
        number::counted(rejected.len() as f64, "layout")
    ));
    let mut table = Table::new(&["layout", "reason"]);
    for refused in distinct(rejected) {
        table.row([plan::layout_words(&refused.layout), refused.reason.clone()]);
    }
    page.table(&table);
    if rejected.len() > SHOWN {
        page.aside("one of each kind; --json lists all of them");
    }
}

/// One refusal of each kind; reasons that differ only in numbers are of one kind.
fn distinct(rejected: &[Rejected]) -> Vec<&Rejected> {
    let mut kinds: Vec<String> = Vec::new();
    let mut out = Vec::new();
    for refused in rejected {
        let kind: String = refused
            .reason
            .chars()
            .filter(|c| !c.is_ascii_digit() && *c != '.')
            .collect();
        if out.len() < SHOWN && !kinds.contains(&kind) {
            kinds.push(kind);
            out.push(refused);
        }
    }
    out
}

/// Why no layout can run at all.
pub fn nothing_runs(ask: &Ask, space: &Space, rejected: &[Rejected]) -> String {
    let head = format!(
        "no layout of {} runs on {} {}",
        ask.model.name, space.gpus, ask.gpu.name
    );
    // The first layout splits the model over the most GPUs.
    match rejected.first() {
        Some(refused) => format!(
            "{head}: with {}, {}",
            plan::layout_words(&refused.layout),
            refused.reason
        ),
        None => format!(
            "{head}: the sizes that were fixed make no layout of {} GPUs",
            space.gpus
        ),
    }
}
