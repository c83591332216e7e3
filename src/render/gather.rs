//! The gather of attention-DP ranks: padding mode, what each mode costs, idle and prefilling ranks.

use super::{Page, Table, number};
use parplan_planner::gather::GatherReport;
use parplan_planner::padding::Padding;
use parplan_planner::sync::SyncPath;

/// The decision and what it rests on.
pub fn table(page: &mut Page, report: &GatherReport) {
    page.heading("Gather of attention-DP ranks");
    let mut table = Table::new(&["", ""]);
    for (name, text) in facts(report) {
        table.row([name, text]);
    }
    page.table(&table);
}

/// What the decision is and what it rests on, each with its name.
pub fn facts(report: &GatherReport) -> Vec<(String, String)> {
    let mut facts = vec![
        ("decode", mode(report.decode.as_ref())),
        ("prefill", mode(report.prefill.as_ref())),
        ("gathered buffer", number::bytes(report.buffer_bytes)),
        (
            "a layer, max_len",
            format!("{} us", number::short(report.max_len_us)),
        ),
        (
            "a layer, sum_len",
            format!("{} us", number::short(report.sum_len_us)),
        ),
        (
            "break-even",
            format!(
                "max_len x dp = {} x sum_len: above mean/max {} max_len is cheaper",
                number::short(report.c),
                number::short(report.break_even_balance.min(1.0))
            ),
        ),
        (
            "decode step",
            format!(
                "{} us; {} us with one rank idle, {} us with one rank in prefill",
                number::short(report.step_us),
                number::short(report.one_rank_idle_us),
                number::short(report.one_rank_in_prefill_us)
            ),
        ),
    ];
    if let Some(sync) = &report.sync {
        let path = match sync.path {
            SyncPath::Device => "device",
            SyncPath::Host => "host",
        };
        facts.push((
            "batch shapes",
            format!(
                "{} B a rank over {} ranks, on the {path}: {} us a step",
                sync.bytes_per_rank,
                sync.ranks,
                number::short(report.sync_us)
            ),
        ));
    }
    facts
        .into_iter()
        .map(|(name, text)| (name.to_owned(), text))
        .collect()
}

fn mode(padding: Option<&Padding>) -> String {
    match padding {
        None => "experts are reached by all-to-all, nothing is gathered".to_owned(),
        Some(padding) => format!(
            "{} ({}): {} rows, {} of them padding",
            padding.mode, padding.reason, padding.buffer_rows, padding.padded_rows
        ),
    }
}
