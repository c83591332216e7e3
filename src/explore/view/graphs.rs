//! Which CUDA graphs are captured, which one decode replays, and what is padding.

use super::super::grid::{Grid, number as numbers, words};
use super::super::state::State;
use super::pane::Pane;
use crate::render::number;
use parplan_planner::graphs::Landing;

/// The view.
pub fn show(state: &State, pane: &mut Pane) {
    let Some(detail) = super::notes::laid_open(state, pane) else {
        return;
    };
    let graphs = &detail.plan.graphs;
    pane.heading("The planned decode batch");
    match (&graphs.eager_reason, graphs.bucket) {
        (None, Some(bucket)) => pane.text(&format!(
            "{} a rank replay the graph of {bucket}; {} % of it is padding",
            number::counted(rounded(detail.plan.predicted.decoding_per_rank), "request"),
            number::percent(graphs.waste)
        )),
        (Some(reason), _) => pane.alert(&format!("runs eagerly: {reason}")),
        (None, None) => pane.alert("runs eagerly"),
    }
    pane.heading(&format!(
        "Sizes to capture, in {}",
        graphs.unit.replace('_', " ")
    ));
    pane.text(&list(&graphs.batch_sizes));
    pane.heading("Where decode batches land");
    let mut grid = Grid::new(&[
        numbers("requests a rank", 0),
        numbers("graph", 0),
        numbers("rows", 1),
        numbers("padding", 0),
        numbers("%", 2),
        words("", 3),
    ]);
    for landed in &detail.landings {
        let batch = landed.requests_per_rank.to_string();
        match landed.landing {
            Landing::Graph {
                size,
                rank_rows,
                waste_rows,
            } => {
                let share = waste_rows as f64 / (rank_rows as f64).max(1.0);
                grid.row([
                    batch,
                    size.to_string(),
                    rank_rows.to_string(),
                    waste_rows.to_string(),
                    number::percent(share),
                    "█".repeat((share * 16.0).round() as usize),
                ]);
            }
            Landing::Eager { .. } => {
                let cells = [batch, "eager".to_owned(), "-".to_owned(), "-".to_owned()];
                grid.styled(pane.theme.alert(), cells);
            }
        }
    }
    pane.grid(&grid);
    let eager = detail
        .landings
        .iter()
        .find_map(|landed| match landed.landing {
            Landing::Eager { reason } => Some(reason),
            Landing::Graph { .. } => None,
        });
    if let Some(reason) = eager {
        pane.aside(&format!("eager: {reason}"));
    }
    pane.heading("The engine's own sizes");
    pane.aside(&list(&graphs.engine_default));
}

/// Sizes one after the other.
fn list(sizes: &[u32]) -> String {
    if sizes.is_empty() {
        return "none".to_owned();
    }
    let words: Vec<String> = sizes.iter().map(u32::to_string).collect();
    words.join(" ")
}

/// Requests with one decimal.
fn rounded(requests: f64) -> f64 {
    (requests * 10.0).round() / 10.0
}
