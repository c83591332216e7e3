//! What would flip the choice: the configuration against the best other one.

use super::super::grid::{Grid, number as numbers, words};
use super::super::state::State;
use super::pane::Pane;
use crate::render::{comparison, ranking};
use parplan_planner::compare::{Axis, Comparison, Winner};

/// The view.
pub fn show(state: &State, pane: &mut Pane) {
    let Some(detail) = super::notes::laid_open(state, pane) else {
        return;
    };
    let Some(flip) = &detail.flip else {
        return pane.text("there is no other configuration to choose");
    };
    pane.heading("Against the best other one");
    let (this, other) = match state.cursor {
        0 => ("this", "the second"),
        _ => ("this", "the first"),
    };
    pane.text(&format!(
        "{other}: {}",
        ranking::choice_words(&flip.b.choice)
    ));
    verdict(flip, this, other, pane);
}

/// The verdict and the crossovers, under the names of the sides.
pub fn verdict(flip: &Comparison, a: &'static str, b: &'static str, pane: &mut Pane) {
    let name = |winner: Winner| match winner {
        Winner::A => a,
        Winner::B => b,
    };
    pane.heading("Verdict");
    pane.text(&comparison::words(flip, name));
    pane.heading("Where the winner changes");
    if flip.crossovers.is_empty() {
        pane.text("nowhere within what was tried");
    }
    let mut grid = Grid::new(&[
        words("axis", 0),
        numbers("at", 0),
        words("below", 0),
        words("above", 0),
    ]);
    for crossover in &flip.crossovers {
        grid.row([
            comparison::axis(crossover.axis).to_owned(),
            comparison::place(crossover),
            name(crossover.below).to_owned(),
            name(crossover.above).to_owned(),
        ]);
    }
    pane.grid(&grid);
    let steady: Vec<&str> = flip
        .steady
        .iter()
        .map(|a: &Axis| comparison::axis(*a))
        .collect();
    if !steady.is_empty() && !flip.crossovers.is_empty() {
        pane.aside(&format!("not along: {}", steady.join(", ")));
    }
}
