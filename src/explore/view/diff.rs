//! Two pinned configurations side by side.

use super::super::grid::{Grid, number as numbers, words};
use super::super::planning::{Diff, Pin};
use super::super::state::State;
use super::flip;
use super::pane::Pane;
use crate::render::{number, ranking};
use parplan_planner::plan::Plan;

/// The view.
pub fn show(state: &State, pane: &mut Pane) {
    for (name, pin) in ["A", "B"].iter().zip(&state.pins) {
        match pin {
            Some(pin) => pane.text(&format!("{name}: {}", about(pin))),
            None => pane.aside(&format!(
                "{name}: nothing yet; {} pins the configuration under the cursor",
                name.to_lowercase()
            )),
        }
    }
    let Some(diff) = &state.diff else {
        if state.pins.iter().all(Option::is_some) {
            pane.aside("comparing …");
        }
        return;
    };
    if !diff.options.is_empty() {
        pane.heading("Asked differently");
        let mut grid = Grid::new(&[words("option", 0), words("A", 0), words("B", 0)]);
        for (flag, a, b) in &diff.options {
            let shown = |text: &str| match text {
                "" => "(default)".to_owned(),
                text => text.to_owned(),
            };
            grid.row([format!("--{flag}"), shown(a), shown(b)]);
        }
        pane.grid(&grid);
    }
    figures(diff, pane);
    match &diff.verdict {
        Ok(comparison) => flip::verdict(comparison, "A", "B", pane),
        Err(why) => {
            pane.heading("Verdict");
            pane.text(why);
        }
    }
}

fn about(pin: &Pin) -> String {
    let ask = &pin.resolved.ask;
    format!(
        "{}, on {} {}, {} {}",
        ranking::choice_words(&pin.plan.choice),
        pin.plan.layout.gpus,
        ask.gpu.name,
        ask.rules.name,
        ask.rules.version
    )
}

/// Every figure of both, and how they compare.
fn figures(diff: &Diff, pane: &mut Pane) {
    pane.heading("Figures");
    let mut grid = Grid::new(&[
        words("", 0),
        numbers("A", 0),
        numbers("B", 0),
        numbers("B / A", 1),
    ]);
    let (a, b) = (&diff.a.plan, &diff.b.plan);
    let mut row = |name: &str, of: &dyn Fn(&Plan) -> f64, print: &dyn Fn(f64) -> String| {
        let (a, b) = (of(a), of(b));
        let ratio = b / a;
        grid.row([
            name.to_owned(),
            print(a),
            print(b),
            if ratio.is_finite() {
                number::fixed(ratio, 2)
            } else {
                "-".to_owned()
            },
        ]);
    };
    let short = &number::short;
    let whole = &number::whole;
    let gib = &number::gib;
    row(
        "tokens/s/GPU",
        &|p| p.predicted.output_tokens_per_s_per_gpu.value,
        short,
    );
    row(
        "tokens/s, all",
        &|p| p.predicted.output_tokens_per_s.value,
        short,
    );
    // A dash where there is none.
    row(
        "TPOT, ms",
        &|p| p.predicted.tpot_ms.map_or(f64::NAN, |tpot| tpot.value),
        short,
    );
    row("TTFT, ms", &|p| p.predicted.ttft_ms.value, short);
    row(
        "decode step, ms",
        &|p| p.predicted.decode_step_ms.value,
        short,
    );
    row(
        "prefill pass, ms",
        &|p| p.predicted.prefill_pass_ms.value,
        short,
    );
    row("weights, GiB", &|p| p.memory_bytes.weights, gib);
    row("KV cache, GiB", &|p| p.memory_bytes.kv_cache, gib);
    row("KV tokens", &|p| p.max_kv_tokens, whole);
    row("KV copies", &|p| p.kv_redundancy, short);
    row("requests that fit", &|p| p.kv_concurrency, whole);
    row("GPUs", &|p| f64::from(p.layout.gpus), whole);
    pane.grid(&grid);
}
