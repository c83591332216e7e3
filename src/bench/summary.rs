//! What a run says in figures: the documented JSON, format 1 (docs/bench.md).

use super::drive::Run;
use super::request::Outcome;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Raised when a field is removed or changes its meaning.
pub const FORMAT: u32 = 1;

/// The loop may be this late, at the 99th percentile, before the figures are called its own.
const LAG_MS: f64 = 5.0;
/// Or late by this share of the median time between tokens.
const LAG_SHARE: f64 = 0.05;
/// Different messages of failed requests that are kept.
const MESSAGES: usize = 5;

/// Statistics of a time, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of these values; none of none. Percentiles interpolate between neighbours, as NumPy's do.
    pub fn of(mut values: Vec<f64>) -> Option<Spread> {
        values.retain(|value| value.is_finite());
        values.sort_by(f64::total_cmp);
        let (&max, count) = (values.last()?, values.len());
        let at = |share: f64| {
            let place = share * (count - 1) as f64;
            let below = place.floor() as usize;
            let above = (below + 1).min(count - 1);
            values[below] + (values[above] - values[below]) * (place - place.floor())
        };
        Some(Spread {
            mean: values.iter().sum::<f64>() / count as f64,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max,
        })
    }
}

/// What was sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sent {
    /// `closed` or `open` loop.
    pub kind: String,
    /// Clients of a closed loop.
    pub clients: Option<usize>,
    /// Requests a second of an open loop, on average.
    pub requests_per_s: Option<f64>,
    /// Requests of the run, those to warm up left out.
    pub requests: usize,
    /// Requests sent before, and not counted.
    pub warm_up: usize,
    /// Mean prompt tokens that were asked for.
    pub prompt_tokens: f64,
    /// Mean output tokens that were asked for.
    pub output_tokens: f64,
    /// Share of the prompts that all had in common.
    pub shared_prefix: f64,
    /// What all of it was drawn from.
    pub seed: u64,
}

/// How the requests ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ends {
    /// With a whole answer.
    pub completed: usize,
    /// Without.
    pub failed: usize,
    /// Why, with how many of each; the commonest messages only.
    pub failures: BTreeMap<String, usize>,
    /// Mean prompt tokens by the server's count; none where it says none.
    pub prompt_tokens: Option<f64>,
    /// Mean output tokens by the server's count.
    pub output_tokens: f64,
    /// Answers whose counts are exactly what was asked for.
    pub exact: usize,
}

/// The client itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Client {
    /// How late its event loop was, 99th percentile, ms.
    pub lag_p99_ms: f64,
    /// How late at most, ms.
    pub lag_max_ms: f64,
    /// It was never so late that the figures are its own rather than the server's.
    pub kept_up: bool,
}

/// One request, for those who want to look closer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Single {
    /// When it was sent, seconds from the start.
    pub at_s: f64,
    /// Prompt tokens sent.
    pub prompt_tokens: u32,
    /// Output tokens received.
    pub output_tokens: u32,
    /// Time to first token, ms.
    pub ttft_ms: f64,
    /// Mean time of a token after the first, ms; none of a single token.
    pub tpot_ms: Option<f64>,
    /// To the last token, ms.
    pub e2e_ms: f64,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// [`FORMAT`].
    pub format: u32,
    /// What wrote it.
    pub parplan: String,
    /// The server.
    pub url: String,
    /// The model that was asked for.
    pub model: String,
    /// When it began, seconds since 1970.
    pub began_unix_s: u64,
    /// The run was ended early.
    pub interrupted: bool,
    /// What was sent.
    pub sent: Sent,
    /// How it ended.
    pub ends: Ends,
    /// From the first request to the last answer, seconds.
    pub duration_s: f64,
    /// Whole answers a second.
    pub requests_per_s: f64,
    /// Output tokens a second.
    pub output_tokens_per_s: f64,
    /// Prompt and output tokens a second.
    pub total_tokens_per_s: f64,
    /// Time to first token.
    pub ttft_ms: Option<Spread>,
    /// Mean time of a request's tokens after the first.
    pub tpot_ms: Option<Spread>,
    /// Time between the events of an answer.
    pub itl_ms: Option<Spread>,
    /// Tokens that such an event carries on average.
    pub tokens_per_event: f64,
    /// Whole requests.
    pub e2e_ms: Option<Spread>,
    /// The client.
    pub client: Client,
    /// Every whole answer, in the order in which they ended.
    pub answers: Vec<Single>,
}

/// What is known before a run.
#[derive(Debug, Clone)]
pub struct Heading {
    /// The server.
    pub url: String,
    /// The model.
    pub model: String,
    /// When it began, seconds since 1970.
    pub began_unix_s: u64,
    /// What was sent.
    pub sent: Sent,
}

/// Draws the figures out of a run.
pub fn summarize(heading: Heading, run: &Run) -> Summary {
    let answers: Vec<(&Outcome, &super::request::Answer)> = run
        .outcomes
        .iter()
        .filter_map(|outcome| Some((outcome, outcome.result.as_ref().ok()?)))
        .collect();
    let ms = |values: &mut dyn Iterator<Item = f64>| Spread::of(values.map(|s| s * 1e3).collect());
    let output: f64 = answers
        .iter()
        .map(|(_, a)| f64::from(a.output_tokens))
        .sum();
    let prompt: f64 = answers
        .iter()
        .map(|(o, a)| f64::from(a.prompt_tokens.unwrap_or(o.asked_prompt)))
        .sum();
    let events: f64 = answers.iter().map(|(_, a)| a.gaps_s.len() as f64).sum();
    let later: f64 = answers
        .iter()
        .map(|(_, a)| f64::from(a.output_tokens.saturating_sub(1)))
        .sum();
    let itl_ms = ms(&mut answers.iter().flat_map(|(_, a)| a.gaps_s.iter().copied()));
    let duration = run.duration_s.max(1e-9);
    Summary {
        format: FORMAT,
        parplan: env!("CARGO_PKG_VERSION").to_owned(),
        url: heading.url,
        model: heading.model,
        began_unix_s: heading.began_unix_s,
        interrupted: run.interrupted,
        sent: heading.sent,
        ends: ends(run, &answers),
        duration_s: run.duration_s,
        requests_per_s: answers.len() as f64 / duration,
        output_tokens_per_s: output / duration,
        total_tokens_per_s: (output + prompt) / duration,
        ttft_ms: ms(&mut answers.iter().map(|(_, a)| a.ttft_s)),
        tpot_ms: ms(&mut answers.iter().filter_map(|(_, a)| a.tpot_s())),
        itl_ms,
        tokens_per_event: if events > 0.0 { later / events } else { 0.0 },
        e2e_ms: ms(&mut answers.iter().map(|(_, a)| a.e2e_s)),
        client: client(&run.lags_s, itl_ms.as_ref()),
        answers: answers
            .iter()
            .map(|(outcome, answer)| Single {
                at_s: outcome.at_s,
                prompt_tokens: outcome.asked_prompt,
                output_tokens: answer.output_tokens,
                ttft_ms: answer.ttft_s * 1e3,
                tpot_ms: answer.tpot_s().map(|s| s * 1e3),
                e2e_ms: answer.e2e_s * 1e3,
            })
            .collect(),
    }
}

fn ends(run: &Run, answers: &[(&Outcome, &super::request::Answer)]) -> Ends {
    let mut failures: BTreeMap<String, usize> = BTreeMap::new();
    for outcome in &run.outcomes {
        if let Err(message) = &outcome.result {
            *failures.entry(message.clone()).or_default() += 1;
        }
    }
    let failed = failures.values().sum();
    let mut commonest: Vec<(String, usize)> = failures.into_iter().collect();
    commonest.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    commonest.truncate(MESSAGES);
    let count = answers.len().max(1) as f64;
    let counted: Option<Vec<f64>> = answers
        .iter()
        .map(|(_, a)| a.prompt_tokens.map(f64::from))
        .collect();
    Ends {
        completed: answers.len(),
        failed,
        failures: commonest.into_iter().collect(),
        prompt_tokens: counted
            .filter(|all| !all.is_empty())
            .map(|all| all.iter().sum::<f64>() / count),
        output_tokens: answers
            .iter()
            .map(|(_, a)| f64::from(a.output_tokens))
            .sum::<f64>()
            / count,
        exact: answers
            .iter()
            .filter(|(o, a)| {
                a.output_tokens == o.asked_output
                    && a.prompt_tokens
                        .is_none_or(|tokens| tokens == o.asked_prompt)
            })
            .count(),
    }
}

fn client(lags_s: &[f64], itl: Option<&Spread>) -> Client {
    let lag = Spread::of(lags_s.iter().map(|s| s * 1e3).collect());
    let (p99, max) = lag.map_or((0.0, 0.0), |lag| (lag.p99, lag.max));
    let allowed = LAG_MS.max(itl.map_or(0.0, |itl| LAG_SHARE * itl.p50));
    Client {
        lag_p99_ms: p99,
        lag_max_ms: max,
        kept_up: p99 <= allowed,
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::Answer;
    use super::*;

    #[test]
    fn percentiles_are_those_of_numpy() {
        let spread = Spread::of((1..=11).map(f64::from).collect()).unwrap();
        assert_eq!(
            (spread.mean, spread.p50, spread.p90, spread.max),
            (6.0, 6.0, 10.0, 11.0)
        );
        // numpy.percentile(range(1, 12), 99) is 10.9.
        assert!((spread.p99 - 10.9).abs() < 1e-12);
        assert_eq!(Spread::of(vec![]), None);
        assert_eq!(Spread::of(vec![f64::NAN, 2.0]).unwrap().p99, 2.0);
    }

    fn run(outcomes: Vec<Outcome>, lags_s: Vec<f64>) -> Summary {
        let sent = Sent {
            kind: "closed".to_owned(),
            clients: Some(1),
            requests_per_s: None,
            requests: outcomes.len(),
            warm_up: 0,
            prompt_tokens: 10.0,
            output_tokens: 3.0,
            shared_prefix: 0.0,
            seed: 0,
        };
        let heading = Heading {
            url: "http://127.0.0.1:1".to_owned(),
            model: "m".to_owned(),
            began_unix_s: 0,
            sent,
        };
        let run = Run {
            outcomes,
            duration_s: 2.0,
            lags_s,
            interrupted: false,
        };
        summarize(heading, &run)
    }

    fn good(output_tokens: u32) -> Outcome {
        Outcome {
            at_s: 0.0,
            asked_prompt: 10,
            asked_output: 3,
            result: Ok(Answer {
                ttft_s: 0.2,
                e2e_s: 0.6,
                gaps_s: vec![0.2, 0.2],
                prompt_tokens: Some(10),
                output_tokens,
            }),
        }
    }

    #[test]
    fn failed_requests_are_told_apart_and_not_averaged() {
        let bad = Outcome {
            result: Err("HTTP 500: full".to_owned()),
            ..good(3)
        };
        let summary = run(vec![good(3), bad.clone(), good(2), bad], vec![0.0; 10]);
        assert_eq!((summary.ends.completed, summary.ends.failed), (2, 2));
        assert_eq!(summary.ends.failures["HTTP 500: full"], 2);
        assert_eq!(summary.ends.exact, 1);
        assert_eq!(summary.output_tokens_per_s, 2.5);
        assert_eq!(summary.total_tokens_per_s, 12.5);
        assert!((summary.ttft_ms.unwrap().p50 - 200.0).abs() < 1e-9);
        assert_eq!(summary.answers.len(), 2);
        let text = serde_json::to_string(&summary).unwrap();
        assert_eq!(serde_json::from_str::<Summary>(&text).unwrap(), summary);
    }

    #[test]
    fn a_client_that_lags_says_so() {
        // 200 ms between tokens: 10 ms late does not matter, 15 ms does.
        assert!(run(vec![good(3)], vec![0.010; 100]).client.kept_up);
        assert!(!run(vec![good(3)], vec![0.015; 100]).client.kept_up);
    }
}
