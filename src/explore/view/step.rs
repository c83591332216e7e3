//! Where the time of a decode step and of a prefill pass goes.

use super::super::grid::{Grid, number as numbers, words};
use super::super::state::State;
use super::pane::Pane;
use crate::render::breakdown::{ABOVE, above_the_roofline};
use crate::render::number;
use parplan_planner::plan::Breakdown;

/// Cells of the longest bar.
const BAR: f64 = 16.0;

/// The view.
pub fn show(state: &State, pane: &mut Pane) {
    let Some(detail) = super::notes::laid_open(state, pane) else {
        return;
    };
    let mut sources: Vec<String> = Vec::new();
    for step in &detail.steps {
        breakdown(step, &mut sources, pane);
    }
    pane.heading("Sources");
    let numbered: Vec<String> = sources
        .iter()
        .enumerate()
        .map(|(i, source)| format!("[{}] {source}", i + 1))
        .collect();
    pane.list(&numbered);
}

fn breakdown(step: &Breakdown, sources: &mut Vec<String>, pane: &mut Pane) {
    pane.heading(&step.title);
    let mut grid = Grid::new(&[
        words("term", 0),
        numbers("µs", 0),
        numbers("%", 0),
        words("", 2),
        numbers("90 % interval", 3),
        numbers("% roofline", 1),
        numbers("times", 4),
        numbers("source", 5),
    ]);
    let mut terms: Vec<_> = step.terms.iter().collect();
    terms.sort_by(|a, b| b.us.total_cmp(&a.us));
    let share = |us: f64| {
        if step.total_us > 0.0 {
            us / step.total_us
        } else {
            0.0
        }
    };
    for term in terms {
        let source = format!("{}: {}", term.implementation, term.source);
        let at = sources.iter().position(|known| *known == source);
        let at = at.unwrap_or_else(|| {
            sources.push(source);
            sources.len() - 1
        });
        let cells = (share(term.us) * BAR).round() as usize;
        grid.row([
            term.name.clone(),
            number::short(term.us),
            number::percent(share(term.us)),
            "█".repeat(cells),
            number::range(term.low_us, term.high_us),
            match term.roofline_us {
                Some(best) if term.us > 0.0 => number::percent(best / term.us),
                _ => "-".to_owned(),
            },
            number::whole(term.count),
            format!("[{}]", at + 1),
        ]);
    }
    grid.styled(
        pane.theme.heading(),
        [
            "sum".to_owned(),
            number::short(step.total_us),
            "100.0".to_owned(),
        ],
    );
    pane.grid(&grid);
    if above_the_roofline(step) {
        pane.aside(ABOVE);
    }
}
