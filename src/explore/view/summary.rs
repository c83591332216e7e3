//! The configuration under the cursor in a few lines.

use super::super::grid::{Grid, number as numbers, words};
use super::super::state::State;
use super::super::theme::Theme;
use super::pane::Pane;
use crate::render::plan::NO_TPOT;
use crate::render::{number, ranking};
use parplan_planner::plan::Predicted;
use ratatui::text::Line;

/// Its words, its figures, what to know about it.
pub fn lines(state: &State, theme: Theme, width: usize) -> Vec<Line<'static>> {
    let mut pane = Pane::new(width, theme);
    let Some(plan) = state.selected() else {
        return pane.finish();
    };
    pane.styled(&ranking::choice_words(&plan.choice), theme.heading());
    if let (Some(Err(reason)), false) = (&state.row, state.is_current()) {
        pane.alert(reason);
        return pane.finish();
    }
    let p = &plan.predicted;
    let mut grid = Grid::new(&[
        words("", 0),
        numbers("value", 0),
        numbers("90 % interval", 1),
        words("unit", 2),
    ]);
    let mut add = |name: &str, value: &Predicted, unit: &str| {
        grid.row([
            name.to_owned(),
            number::short(value.value),
            number::range(value.low, value.high),
            unit.to_owned(),
        ]);
    };
    add(
        "throughput of a GPU",
        &p.output_tokens_per_s_per_gpu,
        "tokens/s",
    );
    if let Some(tpot) = &p.tpot_ms {
        add("TPOT", tpot, "ms");
    }
    add("TTFT", &p.ttft_ms, "ms");
    add("decode step", &p.decode_step_ms, "ms");
    add("prefill pass", &p.prefill_pass_ms, "ms");
    pane.grid(&grid);
    if p.tpot_ms.is_none() {
        pane.aside(NO_TPOT);
    }
    for warning in &plan.warnings {
        pane.alert(&format!("! {warning}"));
    }
    pane.text(&format!(
        "KV: {} of a rank, {} fit, {}",
        number::counted(plan.max_kv_tokens, "token"),
        number::counted(plan.kv_concurrency.round(), "request"),
        match plan.kv_redundancy {
            1.0 => "no copies".to_owned(),
            copies => format!("{} copies", number::plain(copies)),
        }
    ));
    pane.finish()
}
