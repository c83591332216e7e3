//! The ranked table.

use super::super::grid::{Grid, number as numbers, words};
use super::super::planning::Table;
use super::super::state::{Focus, Seen, State};
use super::super::theme::Theme;
use super::pane::Pane;
use super::{notes, text};
use crate::render::{number, ranking};
use parplan_planner::plan::{Choice, Plan};
use parplan_planner::question::Objective;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

/// Columns from which layouts are written out.
const WORDS: u16 = 110;

/// Draws the table, the row under the cursor in sight.
pub fn draw(state: &State, theme: Theme, area: Rect, buffer: &mut Buffer, seen: &mut Seen) {
    seen.page = usize::from(area.height.saturating_sub(2)).max(1);
    let Some(table) = state.table().filter(|table| table.nothing.is_none()) else {
        let mut pane = Pane::new(usize::from(area.width), theme);
        notes::empty(state, &mut pane);
        super::paged(state, pane.finish(), theme, area, buffer, None);
        return;
    };
    heading(state, table, theme, area, buffer);
    let lines = grid(state, table, area.width, theme).lines(usize::from(area.width), theme);
    let (Some(head), rows) = (lines.first(), lines.get(1..).unwrap_or_default()) else {
        return;
    };
    let body = Rect {
        y: area.y + 2,
        height: area.height.saturating_sub(2),
        ..area
    };
    if area.height > 1 {
        buffer.set_line(area.x, area.y + 1, head, area.width);
    }
    let height = usize::from(body.height);
    let last = rows.len().saturating_sub(height);
    let first = state.cursor.saturating_sub(height / 2).min(last);
    for (row, (y, line)) in (body.y..body.bottom()).zip(&rows[first..]).enumerate() {
        let place = Rect {
            y,
            height: 1,
            ..body
        };
        let row = first + row;
        seen.rows.push((place, row));
        buffer.set_line(place.x, y, line, place.width);
        if row == state.cursor {
            let style = theme.cursor(state.focus == Focus::Answer && state.view.moves_rows());
            buffer.set_style(place, style);
        }
    }
}

fn heading(state: &State, table: &Table, theme: Theme, area: Rect, buffer: &mut Buffer) {
    let goal = &table.resolved.goal;
    let best = table.answer.ranked.first();
    let missed = best.is_some_and(|plan| !keeps(table, plan));
    let order = match goal.objective {
        _ if missed => "no layout keeps the limits; nearest first",
        Objective::Throughput => "by output tokens a second and GPU",
        Objective::Latency => "by the time of a whole request",
        Objective::Pareto => "those that no other beats in both",
    };
    let at = format!(
        "{} of {}, {order}",
        state.cursor + 1,
        table.answer.ranked.len()
    );
    let style = if missed { theme.alert() } else { theme.dim() };
    let room = usize::from(area.width);
    text(buffer, area, area.y, &super::cut(&at, room), style);
}

/// Whether a configuration keeps the limits.
pub fn keeps(table: &Table, plan: &Plan) -> bool {
    ranking::keeps(&table.resolved.goal, plan)
}

fn grid(state: &State, table: &Table, wide: u16, theme: Theme) -> Grid {
    let mut grid = Grid::new(&[
        numbers("", 0),
        words("", 0),
        numbers("tok/s/GPU", 0),
        numbers("TPOT ms", 0),
        numbers("TTFT ms", 3),
        numbers("fits", 4),
        numbers("KV GiB", 5),
        words("layout", 0),
    ]);
    let one_format = table
        .answer
        .ranked
        .windows(2)
        .all(|pair| pair[0].choice.kv_dtype == pair[1].choice.kv_dtype);
    let stale = !state.is_current();
    for (row, plan) in table.answer.ranked.iter().enumerate() {
        // The selected row is shown again before the whole table is there.
        let fresh = row == state.cursor && stale && state.row.is_some();
        let plan = match &state.row {
            Some(Ok(again)) if fresh => again,
            _ => plan,
        };
        let p = &plan.predicted;
        let mut mark = String::new();
        if !keeps(table, plan) {
            mark.push('×');
        }
        if state.sweep().is_some_and(|sweep| sweep.leads(row)) {
            mark.push('◆');
        }
        for (pin, name) in state.pins.iter().zip(["A", "B"]) {
            if pin
                .as_ref()
                .is_some_and(|pin| pin.plan.choice == plan.choice)
            {
                mark.push_str(name);
            }
        }
        let style = match (stale && !fresh, keeps(table, plan)) {
            (true, _) => theme.dim(),
            (false, false) => theme.dim(),
            (false, true) => ratatui::style::Style::new(),
        };
        let cells = match &state.row {
            Some(Err(reason)) if fresh => [
                (row + 1).to_string(),
                mark,
                "-".to_owned(),
                "-".to_owned(),
                "-".to_owned(),
                "-".to_owned(),
                "-".to_owned(),
                reason.clone(),
            ],
            _ => [
                (row + 1).to_string(),
                mark,
                number::short(p.output_tokens_per_s_per_gpu.value),
                number::mean(p.tpot_ms.as_ref()),
                number::short(p.ttft_ms.value),
                number::whole(plan.kv_concurrency),
                number::gib(plan.memory_bytes.kv_cache),
                match (wide >= WORDS, one_format) {
                    (true, true) => ranking::switch_words(&plan.choice),
                    (true, false) => ranking::choice_words(&plan.choice),
                    (false, _) => short(&plan.choice, one_format),
                },
            ],
        };
        grid.styled(style, cells);
    }
    grid
}

/// A layout in as few letters as can be told apart.
pub fn short(choice: &Choice, one_format: bool) -> String {
    let layout = &choice.layout;
    let mut words = Vec::new();
    for (name, size) in [
        ("tp", layout.tp),
        ("dp", layout.attention_dp),
        ("dcp", layout.dcp),
        ("ep", layout.ep),
        ("pp", layout.pp),
        ("x", layout.replicas),
    ] {
        if size > 1 || name == "tp" {
            words.push(format!("{name}{size}"));
        }
    }
    for (on, name) in [
        (choice.expert_all_to_all, "a2a"),
        (choice.symmetric_memory, "symm"),
        (!choice.cuda_graphs, "eager"),
        (choice.speculative_steps > 0, "spec"),
    ] {
        if on {
            words.push(name.to_owned());
        }
    }
    if !one_format {
        words.push(choice.kv_dtype.to_string());
    }
    words.join(" ")
}
