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
        ">n",
        ">residual %",
        ">left out %",
        ">90th %",
        ">before %",
        "timed",
    ]);
    for term in &c.terms {
        table.row([
            term.class.to_string(),
            term.samples.to_string(),
            percent(term.residual),
            percent(term.leave_one_out.median),
            percent(term.leave_one_out.p90),
            term.before
                .as_ref()
                .map_or_else(String::new, |b| percent(b.errors.median)),
            term.implementation.clone(),
        ]);
    }
    page.table(&table);
    page.text(
        "n: samples; left out: median error on sizes that the fit had not seen, and the 90th percentile; before: \
         the median error of the figures that it replaces",
    );
    let decided: Vec<String> = c
        .terms
        .iter()
        .map(|term| (term, figures(term)))
        .filter(|(_, text)| !text.is_empty())
        .map(|(term, text)| format!("{}: {text}", term.class))
        .collect();
    page.list("Figures that the samples decided", &decided);
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
