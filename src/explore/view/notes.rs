//! What is to be known: warnings, assumptions, refusals; the launch command; why there is nothing.

use super::super::export::with_assumptions;
use super::super::planning::Detail;
use super::super::state::State;
use super::pane::Pane;
use crate::launching;
use crate::render::{launch, number, plan as words};
use ratatui::text::Line;

/// Refusals of one reason that are named.
const NAMED: usize = 4;

/// The view of warnings, assumptions and refusals.
pub fn show(state: &State, pane: &mut Pane) {
    let (Some(table), Some(plan)) = (state.table(), state.selected()) else {
        return empty(state, pane);
    };
    let ask = with_assumptions(table, plan);
    let mut warnings = plan.warnings.clone();
    warnings.extend(ask.assumptions.warnings().iter().cloned());
    if warnings.is_empty() {
        pane.aside("no warnings");
    } else {
        pane.styled("Warnings", pane.theme.alert());
        pane.list(&warnings);
    }
    pane.heading("Assumed");
    pane.list(ask.assumptions.notes());
    refusals(state, pane);
}

/// Layouts that cannot run, those of one reason together.
fn refusals(state: &State, pane: &mut Pane) {
    let Some(table) = state.table() else {
        return;
    };
    let rejected = &table.answer.rejected;
    if rejected.is_empty() {
        return;
    }
    pane.heading(&format!(
        "{} cannot run",
        number::counted(rejected.len() as f64, "layout")
    ));
    let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
    for refused in rejected {
        let layout = words::layout_words(&refused.layout);
        match reasons.iter_mut().find(|(why, _)| *why == refused.reason) {
            Some((_, layouts)) => layouts.push(layout),
            None => reasons.push((&refused.reason, vec![layout])),
        }
    }
    let items: Vec<String> = reasons
        .into_iter()
        .map(|(why, layouts)| {
            let named = layouts.iter().take(NAMED).cloned().collect::<Vec<_>>();
            let more = match layouts.len() - named.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("{}{more}: {why}", named.join("; "))
        })
        .collect();
    pane.list(&items);
}

/// The view of the launch command.
pub fn command(state: &State, pane: &mut Pane) {
    let (Some(table), Some(plan)) = (state.table(), state.selected()) else {
        return empty(state, pane);
    };
    let commands = match launching::commands(&table.resolved.ask, plan) {
        Ok(commands) => commands,
        Err(error) => return pane.alert(&format!("no command: {error}")),
    };
    pane.aside("w writes all of it to a script: launch.sh");
    for node in &commands.nodes {
        pane.heading(&format!(
            "replica {} node {}, on {}",
            node.replica, node.node, node.machine
        ));
        for line in launch::shell(node, pane.width) {
            pane.line(Line::raw(line.trim_start().to_owned()));
        }
        for (name, _) in &node.files {
            pane.aside(&format!("with a file {name} beside it"));
        }
    }
    if !commands.notes.is_empty() {
        pane.heading("To know");
        pane.list(&commands.notes);
    }
}

/// The selected row laid open, or words in its place.
pub fn laid_open<'a>(state: &'a State, pane: &mut Pane) -> Option<&'a Detail> {
    let nothing = state.table().is_some_and(|table| table.nothing.is_some());
    match state.open() {
        Some(detail) if !nothing => {
            let choice = &detail.plan.choice;
            let style = if state.is_current() && state.choice == Some(*choice) {
                pane.theme.accent()
            } else {
                pane.theme.dim()
            };
            pane.styled(&crate::render::ranking::choice_words(choice), style);
            Some(detail)
        }
        _ => {
            empty(state, pane);
            None
        }
    }
}

/// Why there is nothing to see.
pub fn empty(state: &State, pane: &mut Pane) {
    if let Some(problem) = &state.problem {
        pane.alert("This question has no answer yet");
        pane.text(problem);
        if state.table().is_none() {
            pane.text("");
            pane.aside(
                "Fill in the model, the GPU and the number of GPUs on the left: Enter begins to \
                 edit a value, Tab completes a name, Enter keeps it. ? shows every key.",
            );
        }
        return;
    }
    match state.table() {
        Some(table) if table.nothing.is_some() => {
            pane.alert(table.nothing.as_deref().unwrap_or_default());
            refusals(state, pane);
        }
        _ => pane.aside("planning …"),
    }
}
