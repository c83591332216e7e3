//! What a calibration found, as a page.

use crate::render::table::Table;
use crate::render::{Page, number};
use parplan_profiles::Calibration;
use parplan_profiles::calibration::{Experiment, Term, Unit};

/// The fitted classes with their errors, what was left out and why.
pub fn page(page: &mut Page, c: &Calibration, left_out: &[(Experiment, String)]) {
    let p = &c.provenance;
    page.heading("Calibration");
    page.text(&format!(
        "{}: {} samples on {} x {} ({}), {}",
        c.name,
        c.samples.len(),
        p.count,
        p.device,
        p.topology,
        p.date
    ));
    let mut table = Table::new(&[
        "class",
        "timed",
        ">samples",
        ">residual %",
        ">left out %",
        ">before %",
        "figures",
    ]);
    for term in &c.terms {
        table.row([
            term.class.to_string(),
            term.implementation.clone(),
            term.samples.to_string(),
            percent(term.residual),
            percent(term.leave_one_out.median),
            term.before
                .as_ref()
                .map_or_else(String::new, |b| percent(b.errors.median)),
            figures(term),
        ]);
    }
    page.table(&table);
    page.text(
        "left out: median error on samples that the fit had not seen; before: that of the figures it \
         replaces",
    );
    let recorded: Vec<String> = c
        .samples
        .iter()
        .filter(|s| s.unit == Unit::Bytes)
        .map(|s| format!("{}: {}", s.experiment, number::bytes(s.value)))
        .collect();
    if !recorded.is_empty() {
        page.list("Memory", &recorded);
    }
    let reasons: Vec<String> = grouped(left_out);
    if !reasons.is_empty() {
        page.list("Not measured", &reasons);
    }
    page.alerts("Warnings", &c.warnings);
}

fn percent(share: f64) -> String {
    number::fixed(share * 100.0, 1)
}

/// The figures that the samples decided.
fn figures(term: &Term) -> String {
    term.parameters
        .iter()
        .filter(|p| !p.assumed)
        .map(|p| format!("{} {}", p.name, number::short(p.value)))
        .collect::<Vec<_>>()
        .join(", ")
}

/// One line a reason.
fn grouped(left_out: &[(Experiment, String)]) -> Vec<String> {
    let mut reasons: Vec<(&str, Vec<String>)> = Vec::new();
    for (experiment, why) in left_out {
        match reasons.iter_mut().find(|(known, _)| known == why) {
            Some((_, list)) => list.push(experiment.to_string()),
            None => reasons.push((why, vec![experiment.to_string()])),
        }
    }
    reasons
        .into_iter()
        .map(|(why, list)| match list.as_slice() {
            [one] => format!("{one}: {why}"),
            [first, rest @ ..] => format!("{first} and {} more: {why}", rest.len()),
            [] => why.to_owned(),
        })
        .collect()
}
