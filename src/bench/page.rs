//! A run for people.

use super::compare::Comparison;
use super::summary::{Spread, Summary};
use crate::output::Style;
use crate::render::number::{fixed, percent, range, short, whole};
use crate::render::{Page, Table};

/// The whole answer.
pub fn answer(
    summary: &Summary,
    plan: Option<&[Comparison]>,
    notes: &[String],
    style: Style,
) -> String {
    let mut page = Page::new(style);
    sent(&mut page, summary);
    measured(&mut page, summary);
    if let Some(rows) = plan {
        compared(&mut page, rows);
    }
    let mut alerts = warnings(summary);
    alerts.extend(notes.iter().cloned());
    page.alerts("Warnings", &alerts);
    page.finish()
}

fn sent(page: &mut Page, summary: &Summary) {
    let sent = &summary.sent;
    page.heading(&format!("{} on {}", summary.model, summary.url));
    let how = match (sent.clients, sent.requests_per_s) {
        (Some(clients), _) => format!("{} clients, closed loop", whole_of(clients)),
        (None, Some(rate)) => format!("{} requests a second, open loop", short(rate)),
        (None, None) => "all at once".to_owned(),
    };
    page.text(&format!(
        "{} requests of {} tokens in, {} out on average; {how}; {} to warm up",
        whole_of(sent.requests),
        whole(sent.prompt_tokens),
        whole(sent.output_tokens),
        whole_of(sent.warm_up),
    ));
}

fn whole_of(count: usize) -> String {
    whole(count as f64)
}

fn measured(page: &mut Page, summary: &Summary) {
    page.heading("Measured");
    let mut table = Table::new(&["ms", ">mean", ">p50", ">p90", ">p99", ">max"]);
    for (name, spread) in [
        ("time to first token (TTFT)", &summary.ttft_ms),
        ("time per output token (TPOT)", &summary.tpot_ms),
        ("between events (ITL)", &summary.itl_ms),
        ("whole requests", &summary.e2e_ms),
    ] {
        if let Some(Spread {
            mean,
            p50,
            p90,
            p99,
            max,
        }) = spread
        {
            let cells = [mean, p50, p90, p99, max].map(|value| short(*value));
            table.row(std::iter::once(name.to_owned()).chain(cells));
        }
    }
    page.table(&table);
    page.text(&format!(
        "{} output tokens/s, {} requests/s, over {} s",
        short(summary.output_tokens_per_s),
        short(summary.requests_per_s),
        short(summary.duration_s)
    ));
}

fn compared(page: &mut Page, rows: &[Comparison]) {
    page.heading("Against the plan");
    let mut table = Table::new(&[
        "",
        ">planned",
        "90 % interval",
        ">measured",
        ">ratio",
        "",
        "unit",
    ]);
    for row in rows {
        let name = match row.what {
            "tpot_ms" => "TPOT",
            "ttft_ms" => "TTFT",
            "output_tokens_per_s" => "output throughput",
            _ => "finished requests",
        };
        let planned = &row.planned;
        let verdict = if row.within { "within" } else { "OUTSIDE" };
        table.row([
            name.to_owned(),
            short(planned.value),
            range(planned.low, planned.high),
            short(row.measured),
            fixed(row.ratio, 2),
            verdict.to_owned(),
            row.unit.to_owned(),
        ]);
    }
    page.table(&table);
}

fn warnings(summary: &Summary) -> Vec<String> {
    let mut out = Vec::new();
    let (ends, client) = (&summary.ends, &summary.client);
    for (message, count) in &ends.failures {
        out.push(format!("{count} requests failed: {message}"));
    }
    let inexact = ends.completed - ends.exact;
    if inexact > 0 {
        out.push(format!(
            "{inexact} of {} answers have other token counts than were asked for ({} in, {} out on \
             average by the server's count)",
            ends.completed,
            ends.prompt_tokens
                .map_or_else(|| "unknown".to_owned(), |tokens| fixed(tokens, 1)),
            fixed(ends.output_tokens, 1),
        ));
    }
    if !client.kept_up {
        out.push(format!(
            "this client did not keep up: its event loop was {} ms late at the 99th percentile, {} \
             ms at most; the times above are partly its own",
            short(client.lag_p99_ms),
            short(client.lag_max_ms)
        ));
    }
    if summary.tokens_per_event > 1.05 {
        out.push(format!(
            "an event carried {} tokens on average, so ITL is not the time of one token (TPOT is)",
            fixed(summary.tokens_per_event, 2)
        ));
    }
    if ends.failed > 0 && ends.completed > 0 {
        let all = (ends.failed + ends.completed) as f64;
        out.push(format!(
            "{} % of the requests failed; the figures are of the others",
            percent(ends.failed as f64 / all)
        ));
    }
    out
}
