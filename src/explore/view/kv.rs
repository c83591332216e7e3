//! Copies of the KV cache, and what another DCP width would do to them.

use super::super::grid::{Grid, number as numbers, words};
use super::super::state::State;
use super::pane::Pane;
use crate::render::number;

/// The view.
pub fn show(state: &State, pane: &mut Pane) {
    let Some(detail) = super::notes::laid_open(state, pane) else {
        return;
    };
    let layout = &detail.plan.layout;
    pane.heading("The same layout at every DCP width");
    if detail.widths.len() == 1 {
        pane.text(
            "attention TP is 1: one GPU keeps the whole of a request, and nothing can be shared",
        );
    }
    let mut grid = Grid::new(&[
        words("", 0),
        numbers("dcp", 0),
        numbers("copies", 0),
        numbers("B/token/GPU", 2),
        numbers("KV tokens", 1),
        numbers("longest", 3),
        numbers("fit", 2),
        numbers("TPOT ms", 1),
        numbers("tok/s/GPU", 0),
        words("", 0),
    ]);
    for width in &detail.widths {
        let here = width.dcp == layout.dcp;
        let mark = if here { "›" } else { "" }.to_owned();
        match &width.outcome {
            Ok(plan) => {
                let style = if here {
                    pane.theme.accent()
                } else {
                    ratatui::style::Style::new()
                };
                grid.styled(
                    style,
                    [
                        mark,
                        width.dcp.to_string(),
                        number::plain(plan.kv_redundancy),
                        number::whole(plan.kv_bytes_per_token_per_rank),
                        number::whole(plan.max_kv_tokens),
                        number::whole(plan.max_request_tokens),
                        number::whole(plan.kv_concurrency),
                        number::mean(plan.predicted.tpot_ms.as_ref()),
                        number::short(plan.predicted.output_tokens_per_s_per_gpu.value),
                    ],
                );
            }
            Err(_) => grid.styled(
                pane.theme.dim(),
                [mark, width.dcp.to_string(), "cannot run".to_owned()],
            ),
        }
    }
    pane.grid(&grid);
    pane.aside(
        "copies: how often a token's KV is kept among the GPUs that share a request; KV tokens: of \
         one attention-DP rank; longest: tokens of one request; fit: requests in all",
    );
    let reasons: Vec<String> = detail
        .widths
        .iter()
        .filter_map(|width| {
            Some(format!(
                "dcp {}: {}",
                width.dcp,
                width.outcome.as_ref().err()?
            ))
        })
        .collect();
    if !reasons.is_empty() {
        pane.heading("Why some cannot run");
        pane.list(&reasons);
    }
}
