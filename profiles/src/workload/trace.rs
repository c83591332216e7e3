//! Traces of served requests: lengths, arrival times and, where a trace has them, the hashes of
//! prompt blocks that tell what a prefix cache would have found.

use super::Lengths;
use crate::fault::Fault;
use crate::library::read_limited;
use serde::Deserialize;
use std::collections::HashSet;
use std::path::Path;

/// Largest trace file that is read, bytes.
pub const MAX_TRACE_BYTES: u64 = 256 << 20;

/// Most requests that are read of a trace.
const MAX_REQUESTS: usize = 2_000_000;

/// Longest prompt or answer that is believed, tokens.
const MAX_TOKENS: u64 = 1 << 24;

/// Tokens in a block of the Mooncake traces (github.com/kvcache-ai/Mooncake, `FAST25-release`).
const MOONCAKE_BLOCK: u32 = 512;

/// One request of a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceRequest {
    /// When it came, seconds from the first one of the trace.
    pub at_s: f64,
    /// Prompt tokens.
    pub input: u32,
    /// Generated tokens.
    pub output: u32,
    /// Hashes of the prompt's blocks, each over all tokens up to the block's end; empty in traces
    /// that have none.
    pub blocks: Vec<u64>,
}

/// A trace, in the order of its file.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// Its requests; never empty.
    pub requests: Vec<TraceRequest>,
    /// Tokens in a hashed block; 0 in traces without hashes.
    pub block_tokens: u32,
}

impl Trace {
    /// Reads a trace: Azure's CSV (`TIMESTAMP,ContextTokens,GeneratedTokens`, as in
    /// github.com/Azure/AzurePublicDataset) or Mooncake's JSON lines (`timestamp` in ms,
    /// `input_length`, `output_length`, `hash_ids`), told apart by the first character.
    ///
    /// # Errors
    /// A file that cannot be read, or the first line that is no request, in one line.
    pub fn read(path: &Path) -> Result<Trace, Fault> {
        let text = read_limited(path, MAX_TRACE_BYTES)?;
        Trace::parse(&text).map_err(|fault| fault.in_file(&path.display().to_string()))
    }

    /// Reads the text of a trace, as [`Trace::read`] does.
    ///
    /// # Errors
    /// The first line that is no request.
    pub fn parse(text: &str) -> Result<Trace, Fault> {
        let trace = if text.trim_start().starts_with('{') {
            mooncake(text)?
        } else {
            azure(text)?
        };
        if trace.requests.is_empty() {
            return Err(Fault::field("", "holds no request"));
        }
        Ok(trace)
    }

    /// Distribution of prompt lengths.
    pub fn input(&self) -> Option<Lengths> {
        Lengths::measured(self.requests.iter().map(|request| request.input).collect())
    }

    /// Distribution of answer lengths.
    pub fn output(&self) -> Option<Lengths> {
        Lengths::measured(self.requests.iter().map(|request| request.output).collect())
    }

    /// Mean arrivals, requests per second; none when all came at one moment.
    pub fn requests_per_s(&self) -> Option<f64> {
        let last = self.requests.iter().map(|r| r.at_s).fold(0.0, f64::max);
        (last > 0.0).then(|| (self.requests.len() - 1) as f64 / last)
    }

    /// Share of prompt tokens that a prefix cache without limit would have found: the leading
    /// blocks of each prompt that an earlier one had. None in traces without hashes.
    pub fn prefix_hit(&self) -> Option<f64> {
        if self.block_tokens == 0 {
            return None;
        }
        let mut cached: HashSet<u64> = HashSet::new();
        let (mut hit, mut all) = (0u64, 0u64);
        for request in &self.requests {
            let found = request
                .blocks
                .iter()
                .take_while(|block| cached.contains(block))
                .count() as u64;
            // The last block of a prompt is not full.
            hit += (found * u64::from(self.block_tokens)).min(u64::from(request.input));
            all += u64::from(request.input);
            cached.extend(&request.blocks);
        }
        (all > 0).then(|| hit as f64 / all as f64)
    }
}

fn at_line(line: u64, message: impl Into<String>) -> Fault {
    Fault {
        position: Some((line as usize, 1)),
        ..Fault::field("", message)
    }
}

fn tokens(line: u64, field: &str, value: u64) -> Result<u32, Fault> {
    u32::try_from(value)
        .ok()
        .filter(|tokens| u64::from(*tokens) <= MAX_TOKENS)
        .ok_or_else(|| {
            at_line(
                line,
                format!("{field} is {value}; at most {MAX_TOKENS} tokens are believed"),
            )
        })
}

/// A trace is in the order of its times: a rate cannot be told from one that is not.
fn forwards(
    line: u64,
    field: &str,
    value: &dyn std::fmt::Display,
    at_s: f64,
    before: &[TraceRequest],
) -> Result<(), Fault> {
    match before.last() {
        Some(last) if at_s < last.at_s => Err(at_line(
            line,
            format!(
                "{field} is {value}, {} s before that of the request above; sort the trace by time",
                round(last.at_s - at_s)
            ),
        )),
        _ => Ok(()),
    }
}

/// Seconds to the microsecond.
fn round(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

fn room(line: u64, requests: &[TraceRequest]) -> Result<(), Fault> {
    if requests.len() >= MAX_REQUESTS {
        return Err(at_line(
            line,
            format!("is past the {MAX_REQUESTS} requests that are read of a trace"),
        ));
    }
    Ok(())
}

#[derive(Deserialize)]
struct AzureRow {
    #[serde(rename = "TIMESTAMP")]
    timestamp: String,
    #[serde(rename = "ContextTokens")]
    context: u64,
    #[serde(rename = "GeneratedTokens")]
    generated: u64,
}

fn azure(text: &str) -> Result<Trace, Fault> {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let mut requests = Vec::new();
    let mut first: Option<jiff::civil::DateTime> = None;
    for row in reader.deserialize::<AzureRow>() {
        let line = requests.len() as u64 + 2;
        let row = row.map_err(|error| {
            let line = error.position().map_or(line, csv::Position::line);
            at_line(line, format!("is no request of a trace: {error}"))
        })?;
        room(line, &requests)?;
        // The 2024 traces name the time zone, always UTC.
        let stamp = row.timestamp.trim_end_matches("+00:00");
        let at: jiff::civil::DateTime = stamp.parse().map_err(|_| {
            at_line(
                line,
                format!("TIMESTAMP is {stamp:?}; it must be like 2023-11-16 18:17:03.98"),
            )
        })?;
        let start = *first.get_or_insert(at);
        let at_s = at.duration_since(start).as_secs_f64();
        forwards(line, "TIMESTAMP", &stamp, at_s, &requests)?;
        requests.push(TraceRequest {
            at_s,
            input: tokens(line, "ContextTokens", row.context)?,
            output: tokens(line, "GeneratedTokens", row.generated)?,
            blocks: Vec::new(),
        });
    }
    Ok(Trace {
        requests,
        block_tokens: 0,
    })
}

#[derive(Deserialize)]
struct MooncakeRow {
    /// Milliseconds from the start of the trace.
    timestamp: f64,
    input_length: u64,
    output_length: u64,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

fn mooncake(text: &str) -> Result<Trace, Fault> {
    let mut requests: Vec<TraceRequest> = Vec::new();
    let mut hashed = false;
    for (at, line) in text.lines().enumerate() {
        let number = at as u64 + 1;
        if line.trim().is_empty() {
            continue;
        }
        let row: MooncakeRow = serde_json::from_str(line)
            .map_err(|error| at_line(number, format!("is no request of a trace: {error}")))?;
        room(number, &requests)?;
        hashed |= !row.hash_ids.is_empty();
        let at_s = row.timestamp / 1000.0;
        if !(at_s.is_finite() && at_s >= 0.0) {
            return Err(at_line(
                number,
                format!(
                    "timestamp is {}; it must be milliseconds from 0, the start of the trace",
                    row.timestamp
                ),
            ));
        }
        forwards(number, "timestamp", &row.timestamp, at_s, &requests)?;
        requests.push(TraceRequest {
            at_s,
            input: tokens(number, "input_length", row.input_length)?,
            output: tokens(number, "output_length", row.output_length)?,
            blocks: row.hash_ids,
        });
    }
    Ok(Trace {
        requests,
        block_tokens: if hashed { MOONCAKE_BLOCK } else { 0 },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AZURE: &str = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n\
        2023-11-16 18:17:03.9799600,4808,10\r\n\
        2023-11-16 18:17:04.0319600,3180,8\r\n\
        2023-11-16 18:17:05.9799600,110,27\r\n";

    const MOONCAKE: &str = r#"{"timestamp": 0, "input_length": 1200, "output_length": 5, "hash_ids": [0, 1, 2]}
{"timestamp": 2000, "input_length": 1030, "output_length": 7, "hash_ids": [0, 1, 9]}
{"timestamp": 4000, "input_length": 600, "output_length": 9, "hash_ids": [8, 1]}
"#;

    #[test]
    fn azure_traces_give_lengths_and_a_rate() {
        let trace = Trace::parse(AZURE).expect("a trace");
        assert_eq!(trace.requests.len(), 3);
        assert_eq!(trace.requests[0].input, 4808);
        assert_eq!(trace.input().and_then(|l| l.mean()), Some(8098.0 / 3.0));
        assert_eq!(trace.output().and_then(|l| l.max()), Some(27));
        assert_eq!(trace.requests_per_s(), Some(1.0));
        assert_eq!(trace.prefix_hit(), None);
    }

    #[test]
    fn mooncake_traces_give_prefix_hits_of_leading_blocks_only() {
        let trace = Trace::parse(MOONCAKE).expect("a trace");
        // Two leading blocks of the second prompt; block 1 of the third does not lead.
        let hit = trace.prefix_hit().expect("hashes");
        assert!((hit - 1024.0 / 2830.0).abs() < 1e-12, "{hit}");
        assert_eq!(trace.requests_per_s(), Some(0.5));
    }

    #[test]
    fn what_is_no_trace_is_refused_by_line() {
        let said = |text: &str| {
            Trace::parse(text)
                .expect_err("refused")
                .in_file("t")
                .to_string()
        };
        assert_eq!(
            said("TIMESTAMP,ContextTokens,GeneratedTokens\n"),
            "t: holds no request"
        );
        assert!(
            said("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,12,x\n")
                .starts_with("t:2:1: is no request of a trace")
        );
        assert_eq!(
            said("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,12,3\n"),
            "t:2:1: TIMESTAMP is \"yesterday\"; it must be like 2023-11-16 18:17:03.98"
        );
        assert!(
            said("{\"timestamp\": 0}\n").starts_with("t:1:1: is no request of a trace: missing")
        );
        assert!(said("").contains("holds no request"));
        let long = r#"{"timestamp": 0, "input_length": 99999999999, "output_length": 5}"#;
        assert!(said(long).starts_with("t:1:1: input_length is 99999999999; at most"));
    }

    #[test]
    fn times_that_go_backwards_are_refused_by_line() {
        let said = |text: &str| Trace::parse(text).map_err(|fault| fault.in_file("t").to_string());
        let azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n\
            2023-11-16 18:17:05,12,3\n2023-11-16 18:17:03.5,12,3\n";
        assert_eq!(
            said(azure).expect_err("refused"),
            "t:3:1: TIMESTAMP is 2023-11-16 18:17:03.5, 1.5 s before that of the request above; \
             sort the trace by time"
        );
        let row = |at: &str| {
            format!("{{\"timestamp\": {at}, \"input_length\": 9, \"output_length\": 5}}\n")
        };
        let back = said(&(row("0") + &row("4000") + &row("3000"))).expect_err("refused");
        assert!(
            back.starts_with("t:3:1: timestamp is 3000, 1 s before"),
            "{back}"
        );
        let negative = said(&row("-5")).expect_err("refused");
        assert!(
            negative.starts_with("t:1:1: timestamp is -5; it must be"),
            "{negative}"
        );
        // Requests of one moment are in order.
        assert!(said(&(row("0") + &row("0") + &row("9"))).is_ok());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in ".{0,300}", braced in any::<bool>()) {
            let text = if braced { format!("{{{text}") } else { format!("TIMESTAMP,ContextTokens,GeneratedTokens\n{text}") };
            if let Ok(trace) = Trace::parse(&text) {
                prop_assert!(trace.input().is_some());
            }
        }
    }
}
