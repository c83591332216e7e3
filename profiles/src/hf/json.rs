//! JSON as Python writes it.

use crate::fault::Fault;
use serde_json::{Map, Value};

/// Parses a text that must be a JSON object.
pub(super) fn object(text: &str) -> Result<Map<String, Value>, Fault> {
    let fault = |message: String| Fault::field("", message);
    if text.trim().is_empty() {
        return Err(fault("is blank, not a JSON object".to_owned()));
    }
    match serde_json::from_str(&without_infinities(text)) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(fault(format!(
            "is {}, not a JSON object",
            super::fields::kind(&other)
        ))),
        Err(error) => Err(fault(format!("is not JSON: {error}"))),
    }
}

/// Replaces the `Infinity` and `NaN` that Python's `json` writes, and no standard allows, by null.
/// Strings stay as they are. Nemotron-H configurations have `"time_step_limit": [0.0, Infinity]`.
fn without_infinities(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if c == '"' {
            let end = string_end(rest);
            out.push_str(&rest[..end]);
            rest = &rest[end..];
            continue;
        }
        let word = ["-Infinity", "Infinity", "NaN"]
            .into_iter()
            .find(|word| rest.starts_with(word));
        match word {
            Some(word) => {
                out.push_str("null");
                rest = &rest[word.len()..];
            }
            None => {
                out.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    out
}

/// Bytes of the string literal that a text starts with; all of it when the literal never ends.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinities_become_null_outside_strings_only() {
        let map = object(r#"{"a": [0.0, Infinity, -Infinity], "b": "NaN \" Infinity", "c": NaN}"#);
        let map = map.expect("an object");
        assert_eq!(map["a"], serde_json::json!([0.0, null, null]));
        assert_eq!(map["b"], "NaN \" Infinity");
        assert_eq!(map["c"], Value::Null);
    }

    #[test]
    fn what_is_no_object_is_named() {
        let said = |text| object(text).expect_err("no object").to_string();
        assert_eq!(said("[1, 2]"), "is an array, not a JSON object");
        assert_eq!(said("7"), "is a number, not a JSON object");
        assert_eq!(said(" \n"), "is blank, not a JSON object");
        assert!(said("{\"a\": ").starts_with("is not JSON: EOF"));
        assert!(said("{\"a\": \"").starts_with("is not JSON: EOF"));
        assert!(said(&"[".repeat(100_000)).starts_with("is not JSON: recursion limit"));
    }
}
