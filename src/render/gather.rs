//! The gather of attention-DP ranks: padding mode, what each mode costs, idle and prefilling ranks.

use super::{Page, Table, number};
use parplan_planner::gather::GatherReport;
use parplan_planner::padding::Padding;
use parplan_planner::sync::SyncPath;

/// The decision and what it rests on.
pub fn table(page: &mut Page, report: &GatherReport) {
    page.heading("Gather of attention-DP ranks");
    let mut table = Table::new(&["", ""]);
    table.row(["decode".to_owned(), mode(report.decode.as_ref())]);
    table.row(["prefill".to_owned(), mode(report.prefill.as_ref())]);
    table.row([
        "gathered buffer".to_owned(),
        number::bytes(report.buffer_bytes),
    ]);
    table.row([
        "a layer, max_len".to_owned(),
        format!("{} us", number::short(report.max_len_us)),
    ]);
    table.row([
        "a layer, sum_len".to_owned(),
        format!("{} us", number::short(report.sum_len_us)),
    ]);
    table.row([
        "break-even".to_owned(),
        format!(
            "max_len x dp = {} x sum_len: above mean/max {} max_len is cheaper",
            number::short(report.c),
            number::short(report.break_even_balance.min(1.0))
        ),
    ]);
    table.row([
        "decode step".to_owned(),
        format!(
            "{} us; {} us with one rank idle, {} us with one rank in prefill",
            number::short(report.step_us),
            number::short(report.one_rank_idle_us),
            number::short(report.one_rank_in_prefill_us)
        ),
    ]);
    if let Some(sync) = &report.sync {
        let path = match sync.path {
            SyncPath::Device => "device",
            SyncPath::Host => "host",
        };
        table.row([
            "batch shapes".to_owned(),
            format!(
                "{} B a rank over {} ranks, on the {path}: {} us a step",
                sync.bytes_per_rank,
                sync.ranks,
                number::short(report.sync_us)
            ),
        ]);
    }
    page.table(&table);
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
