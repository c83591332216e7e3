//! One request: what is asked, and when each piece of the answer came.

use super::sse::{Chunk, Events, TooLong, Usage};
use crate::http::{Connection, HttpError, Server};
use http_body_util::BodyExt;
use hyper::body::Bytes;
use serde_json::json;
use std::time::{Duration, Instant};

/// What is asked of a server.
#[derive(Debug, Clone)]
pub struct Order {
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// Tokens to generate, exactly.
    pub output: u32,
}

/// How requests are made.
#[derive(Debug, Clone)]
pub struct Manner {
    /// The server.
    pub server: Server,
    /// Name of the model.
    pub model: String,
    /// Bearer key.
    pub key: Option<String>,
    /// Longest that a request may take.
    pub limit: Duration,
}

/// What became of a request. Times are in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// From the start of the run to the moment it was sent.
    pub at_s: f64,
    /// Prompt tokens that were sent.
    pub asked_prompt: u32,
    /// Output tokens that were asked for.
    pub asked_output: u32,
    /// What came back.
    pub result: Result<Answer, String>,
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// From sending to the first token.
    pub ttft_s: f64,
    /// From sending to the last token.
    pub e2e_s: f64,
    /// Between the events that carried tokens.
    pub gaps_s: Vec<f64>,
    /// Prompt tokens by the server's count; none where it says none.
    pub prompt_tokens: Option<u32>,
    /// Generated tokens by the server's count, or the events where it says none.
    pub output_tokens: u32,
}

impl Answer {
    /// Mean time of an output token after the first; none for a single one.
    pub fn tpot_s(&self) -> Option<f64> {
        (self.output_tokens > 1)
            .then(|| (self.e2e_s - self.ttft_s) / f64::from(self.output_tokens - 1))
    }
}

/// Sends an order, over `connection` where it is still open, and reads the answer to its end.
pub async fn ask(
    manner: &Manner,
    order: &Order,
    connection: &mut Option<Connection>,
    run: Instant,
) -> Outcome {
    let start = Instant::now();
    let timed = tokio::time::timeout(manner.limit, answer(manner, order, connection, start)).await;
    let result = timed.unwrap_or(Err(HttpError::Timeout(manner.limit)));
    if result.is_err() {
        // What is still under way on it belongs to a request that is given up.
        *connection = None;
    }
    Outcome {
        at_s: start.duration_since(run).as_secs_f64(),
        asked_prompt: u32::try_from(order.prompt.len()).unwrap_or(u32::MAX),
        asked_output: order.output,
        result: result.map_err(|error| error.to_string()),
    }
}

async fn answer(
    manner: &Manner,
    order: &Order,
    slot: &mut Option<Connection>,
    start: Instant,
) -> Result<Answer, HttpError> {
    if !slot.as_ref().is_some_and(Connection::is_open) {
        *slot = Some(Connection::open(&manner.server).await?);
    }
    let Some(connection) = slot else {
        return Err(HttpError::Broken("no connection".to_owned()));
    };
    let body = json!({
        "model": manner.model,
        "prompt": order.prompt,
        "max_tokens": order.output,
        "temperature": 0,
        "ignore_eos": true,
        "stream": true,
        "stream_options": { "include_usage": true, "continuous_usage_stats": true },
    });
    let response = connection
        .send(
            "POST",
            "/v1/completions",
            manner.key.as_deref(),
            Some(Bytes::from(body.to_string())),
        )
        .await?;
    let mut body = response.into_body();
    let mut events = Events::default();
    let mut times = Times::default();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(HttpError::broken)?;
        let Some(bytes) = frame.data_ref() else {
            continue;
        };
        let now = start.elapsed().as_secs_f64();
        events.take(bytes, |data| times.event(data, now))?;
    }
    times.finish()
}

impl From<TooLong> for HttpError {
    fn from(_: TooLong) -> HttpError {
        HttpError::Broken("an event of the stream is longer than 1 MiB".to_owned())
    }
}

/// When the events of an answer came.
#[derive(Debug, Default)]
struct Times {
    first: Option<f64>,
    last: f64,
    gaps: Vec<f64>,
    events: u32,
    usage: Option<Usage>,
    done: bool,
}

impl Times {
    fn event(&mut self, data: &[u8], now: f64) -> Result<(), HttpError> {
        if data == b"[DONE]" {
            self.done = true;
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_slice(data).map_err(|error| {
            let text: String = String::from_utf8_lossy(data).chars().take(120).collect();
            HttpError::Broken(format!("an event is no completion ({error}): {text}"))
        })?;
        if let Some(error) = chunk.error {
            return Err(HttpError::Broken(format!("the server gave up: {error}")));
        }
        // Events that only end the text, without a token, are not timed.
        let counted = chunk.usage.map(|usage| usage.completion_tokens);
        let before = self.usage.map_or(0, |usage| usage.completion_tokens);
        if let Some(usage) = chunk.usage {
            self.usage = Some(usage);
        }
        let carries = match counted {
            Some(tokens) => tokens > before,
            None => chunk.choices.iter().any(|c| c.finish_reason.is_none()) || self.first.is_none(),
        };
        if chunk.choices.is_empty() || !carries {
            return Ok(());
        }
        match self.first {
            None => self.first = Some(now),
            Some(_) => self.gaps.push(now - self.last),
        }
        self.last = now;
        self.events += 1;
        Ok(())
    }

    fn finish(self) -> Result<Answer, HttpError> {
        let Some(first) = self.first else {
            return Err(HttpError::Broken(
                "the answer ended without a token".to_owned(),
            ));
        };
        if !self.done {
            return Err(HttpError::Broken(format!(
                "the answer was cut off after {} events",
                self.events
            )));
        }
        Ok(Answer {
            ttft_s: first,
            e2e_s: self.last,
            gaps_s: self.gaps,
            prompt_tokens: self
                .usage
                .map(|usage| usage.prompt_tokens)
                .filter(|&tokens| tokens > 0),
            output_tokens: self
                .usage
                .map_or(self.events, |usage| usage.completion_tokens.max(1)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(events: &[(&str, f64)]) -> Result<Answer, HttpError> {
        let mut times = Times::default();
        for (data, at) in events {
            times.event(data.as_bytes(), *at)?;
        }
        times.finish()
    }

    #[test]
    fn tpot_leaves_the_first_token_out() {
        let token = |n: u32| {
            format!(
                r#"{{"choices":[{{"finish_reason":null}}],
                    "usage":{{"prompt_tokens":9,"completion_tokens":{n}}}}}"#
            )
        };
        let answer = feed(&[
            (&token(1), 0.5),
            (&token(2), 0.6),
            // Two tokens in one event.
            (&token(4), 0.8),
            (
                r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4}}"#,
                0.9,
            ),
            ("[DONE]", 0.9),
        ])
        .unwrap();
        assert_eq!((answer.output_tokens, answer.prompt_tokens), (4, Some(9)));
        assert_eq!((answer.ttft_s, answer.e2e_s), (0.5, 0.8));
        assert!((answer.tpot_s().unwrap() - 0.1).abs() < 1e-12);
        assert_eq!(answer.gaps_s.len(), 2);
    }

    #[test]
    fn a_server_without_usage_is_counted_by_events() {
        let token = r#"{"choices":[{"text":"a","finish_reason":null}]}"#;
        let end = r#"{"choices":[{"text":"","finish_reason":"length"}]}"#;
        let answer = feed(&[(token, 0.1), (token, 0.2), (end, 0.2), ("[DONE]", 0.2)]).unwrap();
        assert_eq!((answer.output_tokens, answer.prompt_tokens), (2, None));
    }

    #[test]
    fn answers_that_are_none_say_why() {
        let token = r#"{"choices":[{"finish_reason":null}]}"#;
        for (events, why) in [
            (vec![("[DONE]", 0.1)], "without a token"),
            (vec![(token, 0.1)], "cut off after 1"),
            (vec![("<html>", 0.1)], "no completion"),
            (vec![(r#"{"error":{"message":"full"}}"#, 0.1)], "full"),
        ] {
            let error = feed(&events).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
