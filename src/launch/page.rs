//! What `launch` prints for people.

use super::compare::Comparison;
use super::preflight::{Finding, Verdict};
use super::source::Start;
use crate::output::Style;
use crate::render::number::short;
use crate::render::{Page, Table, launch};

/// Before anything runs: the commands and the checks.
pub fn before(start: &Start, findings: &[Finding], style: Style) -> String {
    let mut page = Page::new(style);
    page.heading(&format!(
        "{} on {} {}, {} {}",
        start.plan.model,
        start.spec.layout.gpus(),
        start.gpu.name,
        start.rules.name,
        start.rules.version
    ));
    launch::commands(&mut page, &Ok(start.commands.clone()));
    if let Some(venv) = start
        .commands
        .nodes
        .iter()
        .find_map(|n| n.env.get("VIRTUAL_ENV"))
    {
        page.text(&format!("note: {venv}/bin comes first in PATH"));
    }
    page.heading("Before the start");
    let mut table = Table::new(&["", "", "found"]);
    for finding in findings {
        let (word, text) = match &finding.verdict {
            Verdict::Passed(text) => ("ok", text),
            Verdict::Skipped(text) => ("-", text),
            Verdict::Failed(text) => ("FAILED", text),
        };
        table.row([finding.check, word, text.as_str()]);
    }
    page.table(&table);
    page.finish()
}

/// The checks that failed, in one line.
pub fn failures(findings: &[Finding]) -> String {
    let failed: Vec<String> = findings
        .iter()
        .filter_map(|finding| match &finding.verdict {
            Verdict::Failed(text) => Some(format!("{}: {text}", finding.check)),
            Verdict::Passed(_) | Verdict::Skipped(_) => None,
        })
        .collect();
    failed.join("; ")
}

/// Once a server is ready: its own report against the plan.
pub fn ready(url: &str, after_s: f64, comparison: &Comparison, style: Style) -> String {
    let mut page = Page::new(style);
    page.heading(&format!("Ready after {} s: {url}", short(after_s)));
    if comparison.lines.is_empty() {
        page.text("The server said nothing of itself that could be compared with the plan.");
    }
    let mut table = Table::new(&["", ">planned", ">reported", ""]);
    for line in &comparison.lines {
        table.row([
            line.what.to_owned(),
            line.planned.clone(),
            line.reported.clone(),
            line.verdict(),
        ]);
    }
    page.table(&table);
    page.alerts("Not as planned", &comparison.corrections);
    page.finish()
}
