//! Where the time of a step goes.

use super::{Page, Table, number};
use parplan_planner::plan::Breakdown;
use std::collections::BTreeMap;

/// Terms, longest first, with a numbered source each; the sources follow the table.
pub fn table(page: &mut Page, breakdown: &Breakdown) {
    page.heading(&breakdown.title);
    let mut terms: Vec<_> = breakdown.terms.iter().collect();
    terms.sort_by(|a, b| b.us.total_cmp(&a.us));
    let mut sources: Vec<(&str, &str)> = Vec::new();
    let mut numbered: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut table = Table::new(&[
        "term",
        ">us",
        ">90 % interval",
        ">% step",
        ">% roofline",
        ">source",
    ]);
    for term in terms {
        let key = (term.implementation.as_str(), term.source.as_str());
        let at = *numbered.entry(key).or_insert_with(|| {
            sources.push(key);
            sources.len()
        });
        table.row([
            term.name.clone(),
            number::short(term.us),
            number::range(term.low_us, term.high_us),
            number::percent(part(term.us, breakdown.total_us)),
            term.roofline_us.map_or_else(
                || "-".to_owned(),
                |best| number::percent(part(best, term.us)),
            ),
            format!("[{at}]"),
        ]);
    }
    table.rule();
    table.row([
        "sum".to_owned(),
        number::short(breakdown.total_us),
        String::new(),
        number::percent(part(breakdown.total_us, breakdown.total_us)),
    ]);
    page.table(&table);
    if above_the_roofline(breakdown) {
        page.aside(ABOVE);
    }
    let mut notes = Table::new(&["", ""]);
    for (i, (implementation, source)) in sources.iter().enumerate() {
        notes.row([
            format!("[{}]", i + 1),
            format!("{implementation}: {source}"),
        ]);
    }
    page.table(&notes);
}

/// What a share of the roofline above 100 % says.
pub const ABOVE: &str = "above 100 % of the roofline: measured steps of this engine take less than the \
     sum of its kernels timed one by one, and what they take less is taken off every term alike";

/// Whether any term has such a share.
pub fn above_the_roofline(breakdown: &Breakdown) -> bool {
    let mut terms = breakdown.terms.iter();
    terms.any(|term| term.roofline_us.is_some_and(|best| best > term.us * 1.0005))
}

/// A share; nothing of nothing is nothing.
fn part(of: f64, whole: f64) -> f64 {
    if whole > 0.0 { of / whole } else { 0.0 }
}
