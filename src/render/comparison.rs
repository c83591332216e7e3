//! Two configurations side by side, and where the winner changes.

use super::{Page, Table, number, ranking};
use crate::ask::Ask;
use parplan_planner::compare::{Axis, Comparison, Crossover, Metric, Winner};
use parplan_planner::plan::{Plan, Predicted};

/// Who wins, by how much, and how sure that is.
pub fn verdict(page: &mut Page, comparison: &Comparison) {
    page.heading("Verdict");
    page.text(&words(comparison, name));
}

/// The verdict, with the names of the sides.
pub fn words(comparison: &Comparison, name: impl Fn(Winner) -> &'static str) -> String {
    let metric = match comparison.metric {
        Metric::Throughput => "output tokens a second and GPU",
        Metric::Tpot => "time per output token",
        Metric::Ttft => "time to first token",
    };
    let Some(winner) = comparison.winner else {
        return format!(
            "neither is better: {} and {} are predicted to be alike in {metric}",
            name(Winner::A),
            name(Winner::B)
        );
    };
    let winner = name(winner);
    format!(
        "{winner} is better by {} % in {metric}, and {} likely to be the better one, given the \
         spread of the predictions",
        number::percent(comparison.by - 1.0),
        likelihood(comparison.confidence)
    )
}

/// A probability in whole percent; no prediction is certain.
fn likelihood(probability: f64) -> String {
    if probability > 0.99 {
        "more than 99 %".to_owned()
    } else {
        format!("{} %", number::fixed(probability * 100.0, 0))
    }
}

/// The two sides in columns.
pub fn table(page: &mut Page, asks: (&Ask, &Ask), comparison: &Comparison) {
    let (a, b) = (&comparison.a, &comparison.b);
    page.heading("Sides");
    let engine = |ask: &Ask| format!("{} {}", ask.rules.name, ask.rules.version);
    let mut words = Table::new(&["", ""]);
    for (side, ask, plan) in [("A", asks.0, a), ("B", asks.1, b)] {
        words.row([
            side.to_owned(),
            format!(
                "{}, {}, {}",
                ranking::choice_words(&plan.choice),
                number::counted(f64::from(plan.layout.gpus), "GPU"),
                engine(ask)
            ),
        ]);
    }
    page.table(&words);
    page.heading("Predicted");
    let mut table = Table::new(&["", ">A", ">90 % interval", ">B", ">90 % interval"]);
    let mut predicted = |name: &str, of: fn(&Plan) -> Option<Predicted>| {
        let (a, b) = (of(a), of(b));
        table.row([
            name.to_owned(),
            number::mean(a.as_ref()),
            number::interval(a.as_ref()),
            number::mean(b.as_ref()),
            number::interval(b.as_ref()),
        ]);
    };
    predicted("tokens/s/GPU", |p| {
        Some(p.predicted.output_tokens_per_s_per_gpu)
    });
    predicted("TPOT, ms", |p| p.predicted.tpot_ms);
    predicted("TTFT, ms", |p| Some(p.predicted.ttft_ms));
    predicted("decode step, ms", |p| Some(p.predicted.decode_step_ms));
    let mut plain = |name: &str, of: &dyn Fn(&Plan) -> String| {
        table.row([name.to_owned(), of(a), String::new(), of(b)]);
    };
    plain("KV tokens of a rank", &|p| number::whole(p.max_kv_tokens));
    plain("KV copies", &|p| number::plain(p.kv_redundancy));
    plain("requests that fit", &|p| number::whole(p.kv_concurrency));
    plain("weights of a rank, GiB", &|p| {
        number::gib(p.memory_bytes.weights)
    });
    plain("padding", &|p| p.padding_mode.to_owned());
    page.table(&table);
}

/// Where the winner changes.
pub fn crossovers(page: &mut Page, comparison: &Comparison) {
    page.heading("Where the winner changes");
    let mut table = Table::new(&["", ">at", "below", "above"]);
    for crossover in &comparison.crossovers {
        let at = place(crossover);
        table.row([
            axis(crossover.axis).to_owned(),
            at,
            format!("{} wins", name(crossover.below)),
            format!("{} wins", name(crossover.above)),
        ]);
    }
    page.table(&table);
    if !comparison.steady.is_empty() {
        let axes: Vec<&str> = comparison.steady.iter().map(|a| axis(*a)).collect();
        page.text(&format!("not along: {}", axes.join(", ")));
    }
}

/// Where the two sides are equal.
pub fn place(crossover: &Crossover) -> String {
    match crossover.axis {
        Axis::Balance => number::fixed(crossover.at, 2),
        Axis::Concurrency | Axis::PromptTokens => number::whole(crossover.at),
    }
}

/// What each side should be known for.
pub fn warnings(page: &mut Page, comparison: &Comparison) {
    page.alerts("Warnings about A", &comparison.a.warnings);
    page.alerts("Warnings about B", &comparison.b.warnings);
}

fn name(winner: Winner) -> &'static str {
    match winner {
        Winner::A => "A",
        Winner::B => "B",
    }
}

/// An axis in words.
pub fn axis(axis: Axis) -> &'static str {
    match axis {
        Axis::Concurrency => "clients",
        Axis::PromptTokens => "prompt tokens",
        Axis::Balance => "mean/max of the attention DP ranks",
    }
}

#[cfg(test)]
mod tests {
    use super::likelihood;

    #[test]
    fn nothing_is_certain() {
        assert_eq!(likelihood(0.5), "50 %");
        assert_eq!(likelihood(0.99), "99 %");
        assert_eq!(likelihood(1.0), "more than 99 %");
    }
}
