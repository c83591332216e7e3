//! Results as tables or JSON on standard output.

use parplan_executor::bench::{Collective, Launch};
use parplan_executor::gather::Mode;
use parplan_executor::jobs::{CollectivesResult, GatherResult, Job, SyncResult, Work};

use super::{attention, stack};
use parplan_executor::{Error, Result};
use serde_json::Value;

/// Prints the result of a job.
pub fn print(job: &Job, result: &Value, json: bool) -> Result<()> {
    if json {
        println!("{result:#}");
        return Ok(());
    }
    let bad = |e: serde_json::Error| Error::Wrong(format!("the result does not read: {e}"));
    match &job.work {
        Work::Collectives(_) => collectives(&serde_json::from_value(result.clone()).map_err(bad)?),
        Work::Gather(_) => gather(&serde_json::from_value(result.clone()).map_err(bad)?),
        Work::Sync(_) => sync(&serde_json::from_value(result.clone()).map_err(bad)?),
        // `parplan calibrate` reads its own results.
        Work::Probes(_) => println!("{result:#}"),
        Work::Attention(_) => {
            attention::print(&serde_json::from_value(result.clone()).map_err(bad)?);
        }
        Work::Stack(_) => stack::print(&serde_json::from_value(result.clone()).map_err(bad)?),
    }
    Ok(())
}

pub fn launch(l: Launch) -> &'static str {
    match l {
        Launch::Stream => "stream",
        Launch::Graph => "graph",
    }
}

fn mode(m: Mode) -> &'static str {
    match m {
        Mode::MaxLen => "max_len",
        Mode::SumLen => "sum_len",
        Mode::AllGatherV => "all_gather_v",
    }
}

fn collectives(r: &CollectivesResult) {
    println!(
        "{}, {}; times are medians, GB = 10^9 bytes, sizes and bandwidths as nccl-tests defines them",
        r.device, r.library
    );
    if r.conformance_cases > 0 {
        println!(
            "conformance: {} cases exact; every point below compared with the CPU reference",
            r.conformance_cases
        );
    }
    println!(
        "{:>14} {:>22} {:>9} {:>6} {:>6} {:>11} {:>10} {:>9} {:>9}",
        "collective",
        "implementation",
        "register",
        "launch",
        "place",
        "bytes",
        "us",
        "alg GB/s",
        "bus GB/s"
    );
    for s in &r.samples {
        println!(
            "{:>14} {:>22} {:>9} {:>6} {:>6} {:>11} {:>10.2} {:>9.2} {:>9.2}{}",
            s.collective.name(),
            s.implementation,
            s.registration.name(),
            launch(s.launch),
            if s.in_place { "in" } else { "out" },
            if s.collective == Collective::Barrier {
                "-".into()
            } else {
                s.bytes.to_string()
            },
            s.time.median_us,
            s.algorithm_gb_s,
            s.bus_gb_s,
            if s.silent_fallback {
                "  fell back: no symmetric kernel ran"
            } else {
                ""
            },
        );
    }
    if let Some(c) = &r.registration {
        println!(
            "registration: look-up {:.0} ns, allocating and registering the largest buffer {:.0} us",
            c.lookup_ns, c.register_symmetric_us
        );
        for (bytes, us) in &c.copy_in_us {
            println!("  copying {bytes} bytes into a registered buffer first: {us:.2} us");
        }
    }
    for note in &r.notes {
        println!("note: {note}");
    }
}

fn gather(r: &GatherResult) {
    println!(
        "{}, {}; {} ranks, attention DP {}, attention TP {}, rows of {} bytes; every row compared",
        r.device,
        r.implementation,
        r.layout.tp,
        r.layout.attn_dp,
        r.layout.attn_tp(),
        r.row_bytes
    );
    println!(
        "{:>24} {:>13} {:>9} {:>6} {:>7} {:>11} {:>18} {:>6}",
        "rows", "mode", "register", "launch", "global", "gather us", "gather+combine us", "rule"
    );
    for s in &r.samples {
        println!(
            "{:>24} {:>13} {:>9} {:>6} {:>7} {:>11.2} {:>18.2} {:>6}",
            list(&s.tokens),
            mode(s.mode),
            s.registration.name(),
            launch(s.launch),
            s.global_rows,
            s.gather.median_us,
            s.time.median_us,
            if s.picked { "picks" } else { "" }
        );
    }
    println!(
        "{:>24} {:>13} {:>14} {:>12} {:>12} {:>12}",
        "rows", "mode", "step", "gathered B", "peak B", "kept B"
    );
    for m in &r.memory {
        println!(
            "{:>24} {:>13} {:>14} {:>12} {:>12} {:>12}",
            list(&m.tokens),
            mode(m.mode),
            m.what,
            m.gathered_bytes,
            m.peak_bytes,
            m.kept_bytes
        );
    }
    if let Some(first) = r.replays.first() {
        println!(
            "{} steps through one sum_len step of {} rows a DP rank, twice around ({}): every row right",
            r.replays.len(),
            first.bucket,
            match first.launch {
                Launch::Graph => "one captured graph",
                Launch::Stream => "the same calls",
            }
        );
    }
    if r.skipped > 0 {
        println!("{} steps without work: entered by no rank", r.skipped);
    }
}

fn list(counts: &[usize]) -> String {
    counts
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

fn sync(r: &SyncResult) {
    println!(
        "{}; one round: pack, exchange, rows of all ranks on the host; every row compared",
        r.device
    );
    println!(
        "{:>18} {:>9} {:>6} {:>5} {:>9} {:>10} {:>10} {:>10}",
        "way", "register", "launch", "ranks", "row B", "median us", "min us", "max us"
    );
    for s in &r.samples {
        let way = s.way.words();
        println!(
            "{way:>18} {:>9} {:>6} {:>5} {:>9} {:>10.1} {:>10.1} {:>10.1}",
            s.registration.name(),
            launch(s.launch),
            s.ranks,
            s.row_bytes,
            s.time.median_us,
            s.time.min_us,
            s.time.max_us
        );
    }
    for note in &r.notes {
        println!("note: {note}");
    }
}
