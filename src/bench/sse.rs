//! Server-sent events, as OpenAI-compatible servers stream completions.

use serde::Deserialize;

/// A line longer than this is no event of a completion.
const MAX_LINE: usize = 1 << 20;

/// Collects bytes and gives the `data:` lines among them.
#[derive(Debug, Default)]
pub struct Events {
    line: Vec<u8>,
}

impl Events {
    /// Takes what came in, and calls `event` with the payload of every `data:` line that it ends.
    ///
    /// # Errors
    /// A line without end, or what `event` refuses.
    pub fn take<E>(
        &mut self,
        bytes: &[u8],
        mut event: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E>
    where
        E: From<TooLong>,
    {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let (head, tail) = rest.split_at(end);
            rest = &tail[1..];
            if self.line.is_empty() {
                payload(head).map_or(Ok(()), &mut event)?;
            } else {
                self.line.extend_from_slice(head);
                let line = std::mem::take(&mut self.line);
                payload(&line).map_or(Ok(()), &mut event)?;
            }
        }
        if self.line.len() + rest.len() > MAX_LINE {
            return Err(TooLong.into());
        }
        self.line.extend_from_slice(rest);
        Ok(())
    }
}

/// A line went on and on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

/// What follows `data:`; nothing in comments, other fields and empty lines.
fn payload(line: &[u8]) -> Option<&[u8]> {
    let text = line.strip_suffix(b"\r").unwrap_or(line);
    let data = text.strip_prefix(b"data:")?;
    Some(data.strip_prefix(b" ").unwrap_or(data))
}

/// One event of a completion.
#[derive(Debug, Default, Deserialize)]
pub struct Chunk {
    /// The text that came; empty in the event that carries only the usage.
    #[serde(default)]
    pub choices: Vec<Choice>,
    /// Tokens so far, where the server says so with every event, and in the end.
    #[serde(default)]
    pub usage: Option<Usage>,
    /// Why the server gave up.
    #[serde(default)]
    pub error: Option<serde_json::Value>,
}

/// A piece of text. Its presence is what is timed; the text itself is not kept.
#[derive(Debug, Deserialize)]
pub struct Choice {
    /// Why the text ends here.
    #[serde(default)]
    pub finish_reason: Option<String>,
}

/// Tokens as the server counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Usage {
    /// Of the prompt.
    #[serde(default)]
    pub prompt_tokens: u32,
    /// Generated.
    #[serde(default)]
    pub completion_tokens: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(pieces: &[&[u8]]) -> Vec<String> {
        let mut events = Events::default();
        let mut out = Vec::new();
        for piece in pieces {
            events
                .take(piece, |data| {
                    out.push(String::from_utf8_lossy(data).into_owned());
                    Ok::<(), TooLong>(())
                })
                .unwrap();
        }
        out
    }

    #[test]
    fn events_come_out_whole_however_they_are_cut() {
        let text = b": ping\ndata: {\"a\":1}\r\n\r\ndata:[DONE]\n\n";
        let expected = vec!["{\"a\":1}".to_owned(), "[DONE]".to_owned()];
        assert_eq!(all(&[text]), expected);
        for cut in 1..text.len() {
            assert_eq!(all(&[&text[..cut], &text[cut..]]), expected, "{cut}");
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        assert_eq!(all(&bytes), expected);
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut events = Events::default();
        let piece = vec![b'x'; MAX_LINE / 2 + 1];
        let ignore = |_: &[u8]| Ok::<(), TooLong>(());
        assert!(events.take(&piece, ignore).is_ok());
        assert_eq!(events.take(&piece, ignore), Err(TooLong));
    }

    #[test]
    fn chunks_of_both_engines_read() {
        let vllm: Chunk = serde_json::from_str(
            r#"{"id":"c","choices":[{"index":0,"text":" a","logprobs":null,"finish_reason":null}],
                "usage":{"prompt_tokens":4,"total_tokens":5,"completion_tokens":1}}"#,
        )
        .unwrap();
        assert_eq!(vllm.usage.unwrap().completion_tokens, 1);
        let last: Chunk = serde_json::from_str(
            r#"{"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":8}}"#,
        )
        .unwrap();
        assert!(last.choices.is_empty() && last.error.is_none());
    }
}
