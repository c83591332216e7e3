//! What a verification found: a page, JSON, HTML.

use super::judge::{Judged, Verdict};
use super::plots;
use crate::failure::Failure;
use crate::output::Style;
use crate::render::table::Table;
use crate::render::{Page, number};
use std::fmt::Write as _;

fn percent(x: f64) -> String {
    number::fixed(x * 100.0, 1)
}

/// The page.
pub fn page(v: &Verdict, style: Style) -> String {
    let mut page = Page::new(style);
    page.heading("Predicted against measured");
    page.text(&format!(
        "{} steps of held-out stacks on {} ({})",
        v.steps.len(),
        v.device,
        v.gpu
    ));
    let mut models: Vec<&str> = v.steps.iter().map(|s| s.model.as_str()).collect();
    models.dedup();
    models.sort_unstable();
    models.dedup();
    for model in models {
        page.text(model);
        let mut table = Table::new(&[
            "layout",
            ">req",
            ">context",
            "launch",
            ">predicted",
            ">±%",
            ">measured",
            ">error %",
        ]);
        for s in v.steps.iter().filter(|s| s.model == model) {
            table.row([
                s.layout.clone(),
                s.requests.to_string(),
                s.context.to_string(),
                s.launch.to_owned(),
                number::short(s.predicted_us),
                number::fixed((s.high_us / s.predicted_us - 1.0) * 100.0, 0),
                number::short(s.measured_us),
                percent(s.error),
            ]);
        }
        page.table(&table);
    }
    page.text(
        "times in us; req: requests of all ranks; ±%: the 90 % interval of the prediction; sym: what ranks \
         exchange lies in symmetric windows; shard: one rank runs the shapes of one of that layout",
    );
    page.heading("By operation");
    let mut table = Table::new(&["operation", ">steps", ">median error %", ">share of time %"]);
    for (op, steps, error, share) in &v.summary.operations {
        table.row([
            op.name().to_owned(),
            steps.to_string(),
            percent(*error),
            percent(*share),
        ]);
    }
    page.table(&table);
    if !v.summary.choices.is_empty() {
        page.heading("The best of each workload");
        let mut table = Table::new(&[
            "model",
            ">requests",
            ">context",
            ">ran",
            ">loss %",
            "best by prediction",
            "best by measurement",
        ]);
        for c in &v.summary.choices {
            table.row([
                c.model.clone(),
                c.requests.to_string(),
                c.context.to_string(),
                c.configurations.to_string(),
                percent(c.loss),
                c.chosen.clone(),
                if c.chosen == c.best {
                    "the same".to_owned()
                } else {
                    c.best.clone()
                },
            ]);
        }
        page.table(&table);
    }
    page.heading("In all");
    page.text(&summary(v));
    page.list("Prices", &v.prices);
    page.list("Notes", &v.notes);
    page.finish()
}

fn summary(v: &Verdict) -> String {
    let s = &v.summary;
    let choices = match s.choices.len() {
        0 => String::new(),
        n => format!(
            "; the predicted best of {} of {n} workloads is within 3 % of the measured best",
            s.right()
        ),
    };
    format!(
        "median error {} %, 90th percentile {} %; the 90 % intervals cover {} %; rank correlation {}{choices}",
        percent(s.median),
        percent(s.p90),
        percent(s.coverage),
        number::fixed(s.rank_correlation, 3)
    )
}

/// JSON.
///
/// # Errors
/// What does not serialise.
pub fn json(v: &Verdict) -> Result<String, Failure> {
    serde_json::to_string_pretty(v)
        .map(|text| text + "\n")
        .map_err(|e| Failure::failed(format!("the verdict does not serialise: {e}")))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn row(out: &mut String, s: &Judged) {
    // Writing to a string cannot fail.
    let _ = writeln!(
        out,
        "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.1}</td><td>{:.1} to {:.1}</td><td>{:.1}</td><td>{:+.1}</td></tr>",
        escaped(&format!("{} {}", s.model, s.layout)),
        s.batch,
        s.context,
        s.launch,
        s.predicted_us,
        s.low_us,
        s.high_us,
        s.measured_us,
        s.error * 100.0
    );
}

/// A page with both plots and every step.
///
/// # Errors
/// A plot that cannot be drawn.
pub fn html(v: &Verdict) -> Result<String, Failure> {
    let mut out = String::from(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>parplan verify</title>\n<style>body{font:15px/1.5 sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}td,th{padding:.15rem .7rem;text-align:right}td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}</style></head><body>\n<h1>Predicted against measured</h1>\n",
    );
    let _ = writeln!(
        out,
        "<p>{} steps on {} ({}). {}.</p>",
        v.steps.len(),
        escaped(&v.device),
        escaped(&v.gpu),
        summary(v)
    );
    out.push_str(&plots::svg(v)?);
    out.push_str("\n<table><tr><th>stack</th><th>batch</th><th>context</th><th>launch</th><th>predicted µs</th><th>90 % interval</th><th>measured µs</th><th>error %</th></tr>\n");
    for step in &v.steps {
        row(&mut out, step);
    }
    out.push_str("</table>\n");
    if !v.summary.choices.is_empty() {
        out.push_str("<h2>The best of each workload</h2>\n<table><tr><th>model</th><th>requests</th><th>context</th><th>configurations</th><th>loss %</th><th>best by prediction</th><th>best by measurement</th></tr>\n");
        for c in &v.summary.choices {
            let _ = writeln!(
                out,
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.1}</td><td>{}</td><td>{}</td></tr>",
                escaped(&c.model),
                c.requests,
                c.context,
                c.configurations,
                c.loss * 100.0,
                escaped(&c.chosen),
                escaped(&c.best)
            );
        }
        out.push_str("</table>\n");
    }
    out.push_str("<ul>\n");
    for text in v.prices.iter().chain(&v.notes) {
        let _ = writeln!(out, "<li>{}</li>", escaped(text));
    }
    out.push_str("</ul></body></html>\n");
    Ok(out)
}
