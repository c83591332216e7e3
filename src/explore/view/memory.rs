//! The memory of each rank as a stacked bar, and its parts in figures.

use super::super::grid::{Grid, number as numbers, words};
use super::super::planning::Detail;
use super::super::state::State;
use super::super::theme::Theme;
use super::pane::Pane;
use crate::render::{memory, number};
use parplan_planner::kv_split::KvInUse;
use parplan_planner::plan::MemoryMap;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

/// Parts of a bar: name, character, style.
const PARTS: [(&str, &str); 5] = [
    ("weights", "█"),
    ("KV in use", "▓"),
    ("KV free", "░"),
    ("buffers, graphs, CUDA", "▒"),
    ("left free", "·"),
];

/// The view.
pub fn show(state: &State, pane: &mut Pane) {
    let Some(detail) = super::notes::laid_open(state, pane) else {
        return;
    };
    let map = &detail.plan.memory_bytes;
    pane.heading(&format!("Memory of a GPU, {} GiB", number::gib(map.total)));
    bars(detail, pane);
    legend(pane);
    pane.line(Line::default());
    pane.grid(&parts(detail, map));
    let layout = &detail.plan.layout;
    let copies = u64::from(layout.replicas) * u64::from(layout.pp);
    if copies > 1 {
        pane.aside(&format!(
            "the same on each of {} and {}",
            number::counted(f64::from(layout.replicas), "replica"),
            number::counted(f64::from(layout.pp), "stage"),
        ));
    }
}

/// A bar for each run of attention-DP ranks that are equally full.
fn bars(detail: &Detail, pane: &mut Pane) {
    let mut at = 0;
    while let Some(first) = detail.in_use.get(at) {
        let alike = detail.in_use[at..]
            .iter()
            .take_while(|rank| same(rank, first))
            .count();
        bar(detail, first, at, alike, pane);
        at += alike;
    }
}

/// Equal as far as a bar shows.
fn same(a: &KvInUse, b: &KvInUse) -> bool {
    (a.bytes - b.bytes).abs() <= 1e-3 * b.bytes.abs().max(1.0)
}

fn bar(detail: &Detail, rank: &KvInUse, first: usize, alike: usize, pane: &mut Pane) {
    let map = &detail.plan.memory_bytes;
    let ranks = detail.plan.layout.attention_tp as usize;
    let gpus = format!("GPU {}", range(first * ranks, (first + alike) * ranks - 1));
    let requests = number::counted((rank.requests * 10.0).round() / 10.0, "request");
    let shared = match ranks {
        1 => String::new(),
        ranks => format!(" by each group of {ranks}"),
    };
    pane.aside(&format!("{gpus}: {requests} being decoded{shared}"));
    let lengths = lengths(&shares(map, rank.bytes), pane.width);
    let spans = PARTS
        .iter()
        .zip(lengths)
        .enumerate()
        .map(|(i, ((_, letter), length))| Span::styled(letter.repeat(length), style(pane.theme, i)))
        .collect();
    pane.spans(spans);
}

fn style(theme: Theme, part: usize) -> Style {
    match part {
        4 => theme.dim(),
        part => theme.part(part),
    }
}

fn range(first: usize, last: usize) -> String {
    if first == last {
        first.to_string()
    } else {
        format!("{first}–{last}")
    }
}

/// Shares of the card, in the order of the parts.
fn shares(map: &MemoryMap, in_use: f64) -> [f64; 5] {
    let total = if map.total > 0.0 { map.total } else { 1.0 };
    let in_use = in_use.min(map.kv_cache);
    let other = map.used() - map.weights - map.kv_cache;
    [
        map.weights / total,
        in_use / total,
        (map.kv_cache - in_use) / total,
        other / total,
        map.headroom.max(0.0) / total,
    ]
}

/// Cells of each part: they fill the bar, and what exists has at least one.
fn lengths(shares: &[f64], width: usize) -> Vec<usize> {
    let mut lengths: Vec<usize> = shares
        .iter()
        .map(|share| {
            let cells = (share.clamp(0.0, 1.0) * width as f64).round() as usize;
            if *share > 0.0 { cells.max(1) } else { 0 }
        })
        .collect();
    while lengths.iter().sum::<usize>() > width {
        match lengths.iter_mut().max() {
            Some(longest) if *longest > 0 => *longest -= 1,
            _ => break,
        }
    }
    lengths
}

fn legend(pane: &mut Pane) {
    let mut spans: Vec<Span<'static>> = Vec::new();
    let mut wide = 0;
    for (i, (name, letter)) in PARTS.iter().enumerate() {
        let piece = name.len() + 4;
        if wide + piece > pane.width && !spans.is_empty() {
            pane.spans(std::mem::take(&mut spans));
            wide = 0;
        }
        spans.push(Span::styled(*letter, style(pane.theme, i)));
        spans.push(Span::raw(format!(" {name}  ")));
        wide += piece;
    }
    pane.spans(spans);
}

fn parts(detail: &Detail, map: &MemoryMap) -> Grid {
    let mut grid = Grid::new(&[
        words("part", 0),
        numbers("GiB", 0),
        numbers("% of the card", 1),
    ]);
    let share = |bytes: f64| {
        if map.total > 0.0 {
            number::percent(bytes / map.total)
        } else {
            "-".to_owned()
        }
    };
    let fullest = detail
        .in_use
        .iter()
        .map(|rank| rank.bytes)
        .fold(0.0, f64::max);
    for (name, bytes) in map.parts() {
        if bytes == 0.0 {
            continue;
        }
        grid.row([
            memory::words(name).to_owned(),
            number::gib(bytes),
            share(bytes),
        ]);
        if name == "kv_cache" {
            grid.row([
                "  in use where fullest".to_owned(),
                number::gib(fullest),
                share(fullest),
            ]);
        }
    }
    grid.row(["card".to_owned(), number::gib(map.total), share(map.total)]);
    grid
}

#[cfg(test)]
mod tests {
    use super::lengths;

    #[test]
    fn a_bar_is_full_and_small_parts_are_seen() {
        assert_eq!(lengths(&[0.5, 0.25, 0.25], 40), [20, 10, 10]);
        assert_eq!(lengths(&[0.999, 0.001, 0.0], 10), [9, 1, 0]);
        assert_eq!(lengths(&[0.4, 0.3, 0.3], 1), [1, 0, 0]);
        assert_eq!(lengths(&[0.4, 0.6], 0), [0, 0]);
    }
}
