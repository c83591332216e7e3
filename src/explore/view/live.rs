//! A running calibration: measured points land on predicted curves.

use super::super::grid::{Grid, number as numbers, words};
use super::super::journal::Series;
use super::super::state::State;
use super::pane::Pane;
use crate::render::number;
use ratatui::text::{Line, Span};

/// Lines of the plot.
const PLOT: std::ops::Range<usize> = 6..24;

/// The view.
pub fn show(state: &State, pane: &mut Pane, height: u16) {
    let Some(journal) = &state.journal else {
        pane.text("no calibration is watched");
        pane.aside("parplan explore … --watch JOURNAL follows one while it is measured");
        return;
    };
    if let Some(problem) = &journal.problem {
        pane.alert(&format!("{}: {problem}", journal.path.display()));
    }
    let Some(run) = &journal.run else {
        if journal.problem.is_none() {
            pane.aside(&format!("waiting for {}", journal.path.display()));
        }
        return;
    };
    pane.styled(
        &format!("{}: {} of {} measured", run.machine, run.done, run.total),
        pane.theme.heading(),
    );
    let share = run.done as f64 / (run.total as f64).max(1.0);
    let cells = (share * pane.width as f64).round() as usize;
    pane.spans(vec![
        Span::styled("█".repeat(cells.min(pane.width)), pane.theme.good()),
        Span::styled(
            "·".repeat(pane.width.saturating_sub(cells)),
            pane.theme.dim(),
        ),
    ]);
    let mut grid = Grid::new(&[
        words("", 0),
        words("measured", 0),
        numbers("points", 1),
        numbers("measured / predicted", 0),
    ]);
    for (i, series) in run.series.iter().enumerate() {
        let here = i == state.curve.min(run.series.len() - 1);
        let style = if here {
            pane.theme.accent()
        } else {
            ratatui::style::Style::new()
        };
        grid.styled(
            style,
            [
                if here { "›" } else { "" }.to_owned(),
                series.name.clone(),
                format!("{}/{}", series.done(), series.points.len()),
                series
                    .ratio()
                    .map_or_else(|| "-".to_owned(), |ratio| number::fixed(ratio, 2)),
            ],
        );
    }
    pane.grid(&grid);
    pane.aside("J and K choose the curve");
    if let Some(series) = run
        .series
        .get(state.curve.min(run.series.len().saturating_sub(1)))
    {
        let lines = usize::from(height).saturating_sub(run.series.len() + 10);
        curve(series, lines.clamp(PLOT.start, PLOT.end), pane);
    }
}

/// Predicted and measured times over sizes, both axes logarithmic.
fn curve(series: &Series, height: usize, pane: &mut Pane) {
    pane.heading(&format!("{}: µs over {}", series.name, series.size));
    let times = series.points.iter().flat_map(|point| {
        let measured = point.measured_us.map(|[value, ..]| value);
        [measured, point.predicted_us].into_iter().flatten()
    });
    let Some((low, high)) = ends(times) else {
        return pane.text("nothing is measured or predicted yet");
    };
    let Some((small, large)) = ends(series.points.iter().map(|point| point.size)) else {
        return pane.text("no size to draw it over");
    };
    let label = number::short(high).len().max(number::short(low).len());
    let width = pane.width.saturating_sub(label + 2).max(2);
    let mut cells = vec![vec![' '; width]; height];
    let mut dot = |size: f64, us: f64, letter: char| {
        let x = (logarithmic(size, small, large) * (width - 1) as f64).round() as usize;
        let y = (logarithmic(us, low, high) * (height - 1) as f64).round() as usize;
        cells[height - 1 - y][x] = letter;
    };
    for point in &series.points {
        if let Some(us) = point.predicted_us {
            dot(point.size, us, '·');
        }
    }
    for point in &series.points {
        if let Some([us, ..]) = point.measured_us {
            let near = point
                .predicted_us
                .is_some_and(|predicted| (us / predicted).ln().abs() < NEAR.ln());
            dot(point.size, us, if near { '●' } else { '×' });
        }
    }
    for (i, line) in cells.iter().enumerate() {
        let name = match i {
            0 => number::short(high),
            i if i + 1 == height => number::short(low),
            _ => String::new(),
        };
        let spans: Vec<Span<'static>> = line
            .iter()
            .map(|letter| {
                let style = match letter {
                    '●' => pane.theme.good(),
                    '×' => pane.theme.alert(),
                    _ => pane.theme.dim(),
                };
                Span::styled(letter.to_string(), style)
            })
            .collect();
        let mut all = vec![Span::styled(format!("{name:>label$} │"), pane.theme.dim())];
        all.extend(spans);
        pane.spans(all);
    }
    let (from, to) = (number::short(small), number::short(large));
    let gap = width.saturating_sub(from.len() + to.len());
    pane.line(Line::styled(
        format!("{}  {from}{}{to}", " ".repeat(label), " ".repeat(gap)),
        pane.theme.dim(),
    ));
    pane.aside("· predicted  ● measured within 10 % of it  × measured further off");
}

/// A ratio within which a measured time lies on its curve.
const NEAR: f64 = 1.1;

/// Smallest and largest of the values above zero, apart even where they are one.
fn ends(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (low, high) = values
        .filter(|value| value.is_finite() && *value > 0.0)
        .fold((f64::INFINITY, 0.0f64), |(low, high), value| {
            (low.min(value), high.max(value))
        });
    match low <= high {
        false => None,
        true if high / low < 1.0 + 1e-9 => Some((low / 2.0, high * 2.0)),
        true => Some((low, high)),
    }
}

/// Where a value lies between two others on a logarithmic axis, 0 to 1.
fn logarithmic(value: f64, low: f64, high: f64) -> f64 {
    let share = (value / low).ln() / (high / low).ln();
    if share.is_finite() {
        share.clamp(0.0, 1.0)
    } else {
        0.0
    }
}
