//! The result of a stack as tables.

use crate::output::say;
use parplan_executor::bench::Launch;
use parplan_executor::jobs::{StackResult, StackStep};
use parplan_executor::stack::Phase;

/// Prints the result.
pub fn print(r: &StackResult) {
    say!(
        "{}, {}, products by {}: {}, {} layers, {}",
        r.device,
        r.implementation,
        r.products,
        r.spec.model,
        r.spec.layers.len(),
        r.spec.here
    );
    if r.spec.is_shard() {
        say!("shapes of one rank of {}", r.spec.shard_of);
        for n in &r.narrowed {
            say!(
                "  collectives over {}: {} ranks here, {} in that layout",
                n.group,
                n.ranks,
                n.real_ranks
            );
        }
    }
    for step in &r.steps {
        one(step);
    }
    if r.skipped > 0 {
        say!("{} steps without work: entered by no rank", r.skipped);
    }
    say!("memory of rank 0:");
    for m in &r.memory {
        say!("  {:<26} {:>12}", m.what, megabytes(m.bytes));
    }
    for g in &r.graphs {
        say!(
            "  graph of {:>4} requests      {:>12}  and {} of batch",
            g.bucket,
            megabytes(g.graph_bytes),
            megabytes(g.batch_bytes)
        );
    }
    if let Some(us) = r.graph_mark_us {
        say!("a mark in a graph takes {us:.2} us, taken off every part");
    }
    for note in &r.notes {
        say!("note: {note}");
    }
}

fn one(s: &StackStep) {
    let phase = match s.step.phase {
        Phase::Decode => "decode",
        Phase::Prefill => "prefill",
    };
    let launch = match (s.launch, s.bucket) {
        (Launch::Graph, Some(bucket)) => format!("graph of {bucket}"),
        (Launch::Graph, None) => "graph".into(),
        (Launch::Stream, _) => "eager".into(),
    };
    say!(
        "\n{phase}, requests {:?}, {} new tokens each, context {}, {launch}: {:.1} us (MAD {:.1}, p95 {:.1}); {} rows, {} in gathered blocks",
        s.step.requests,
        s.step.q_tokens,
        s.step.context,
        s.time.median_us,
        s.time.mad_us,
        s.time.p95_us,
        s.rows,
        s.gathered_rows
    );
    say!(
        "  {:<22} {:>6} {:>10} {:>8} {:>10} {:>6}",
        "operation",
        "calls",
        "median us",
        "MAD",
        "p95",
        "share"
    );
    for p in &s.parts {
        say!(
            "  {:<22} {:>6} {:>10.1} {:>8.1} {:>10.1} {:>5.1}%",
            p.op.name(),
            p.calls,
            p.time.median_us,
            p.time.mad_us,
            p.time.p95_us,
            p.time.median_us / s.sum_of_parts_us * 100.0
        );
    }
    say!(
        "  {:<22} {:>6} {:>10.1} {:>27.1}% of the step",
        "sum of the parts",
        "",
        s.sum_of_parts_us,
        s.sum_of_parts_us / s.time.median_us * 100.0
    );
    if let Some(d) = s.distance {
        say!(
            "  against float64: {} rows, relative error {:.1e} ({:.1e} of what the layers added; worst row {:.1e})",
            d.rows,
            d.relative_error,
            d.of_added,
            d.worst_row
        );
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
