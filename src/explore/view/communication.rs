//! What a decode step sends, and how rows are padded for it.

use super::super::grid::{Grid, number as numbers, words};
use super::super::state::State;
use super::pane::Pane;
use crate::render::{gather, number, volume};
use parplan_planner::gather::GatherReport;
use parplan_planner::volume::Kind;

/// The view.
pub fn show(state: &State, pane: &mut Pane) {
    let Some(detail) = super::notes::laid_open(state, pane) else {
        return;
    };
    match &detail.gather {
        Some(report) => padding(report, pane),
        None => {
            pane.heading("Padding");
            pane.text("none: without attention DP all ranks work on the same rows");
        }
    }
    let calls = || {
        detail
            .volumes
            .iter()
            .flat_map(|v| v.calls.iter().map(move |c| (v.layers, c)))
    };
    if calls().next().is_none() {
        pane.heading("Collectives");
        pane.text("none: no group has more than one rank");
        return;
    }
    pane.heading("By collective, a rank and a step");
    let mut totals: Vec<(Kind, f64, f64)> = Vec::new();
    for (layers, call) in calls() {
        let bytes = layers * call.ring_bytes();
        match totals.iter_mut().find(|(kind, ..)| *kind == call.kind) {
            Some(total) => {
                total.1 += layers;
                total.2 += bytes;
            }
            None => totals.push((call.kind, layers, bytes)),
        }
    }
    let most = totals.iter().map(|total| total.2).fold(0.0, f64::max);
    let mut grid = Grid::new(&[
        words("collective", 0),
        numbers("calls", 1),
        numbers("received", 0),
        words("", 2),
    ]);
    for (kind, count, bytes) in totals {
        let share = if most > 0.0 { bytes / most } else { 0.0 };
        grid.row([
            volume::kind(kind).to_owned(),
            number::whole(count),
            number::bytes(bytes),
            "█".repeat((share * 16.0).round() as usize),
        ]);
    }
    pane.grid(&grid);
    pane.heading("In each layer");
    let mut grid = Grid::new(&[
        words("for", 0),
        words("collective", 1),
        words("group", 2),
        numbers("ranks", 3),
        numbers("buffer", 0),
        numbers("received", 2),
    ]);
    for volume in &detail.volumes {
        grid.styled(
            pane.theme.dim(),
            [format!(
                "{} × {}",
                number::plain(volume.layers),
                volume.layer
            )],
        );
        for call in &volume.calls {
            grid.row([
                format!(" {}", volume::purpose(call.purpose)),
                volume::kind(call.kind).to_owned(),
                volume::group(call.group).to_owned(),
                call.ranks.to_string(),
                number::bytes(call.bytes),
                number::bytes(call.ring_bytes()),
            ]);
        }
    }
    pane.grid(&grid);
    pane.aside(
        "buffer: the whole of it, as nccl-tests counts; received: by one rank where a ring runs it",
    );
}

/// The decision and what it rests on.
fn padding(report: &GatherReport, pane: &mut Pane) {
    pane.heading(&format!("Padding over {} attention-DP ranks", report.ranks));
    let mut grid = Grid::new(&[words("", 0), words("", 0)]).wrapping();
    for (name, text) in gather::facts(report) {
        grid.row([name, text]);
    }
    pane.grid(&grid);
}
