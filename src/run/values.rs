//! Values of the options of `parplan run`, each read with a message that says what would be right.

/// Most ranks of a machine, and most machines: what is listed by rank stays a list that can be held.
const MOST_RANKS: usize = 1024;
/// Largest side of a tensor, and tokens of a page.
const MOST_WIDE: usize = 1 << 20;
/// Most tokens and requests.
const MOST_TOKENS: usize = 1 << 30;
/// Most repetitions of anything.
const MOST_TIMES: usize = 1_000_000;

fn count(text: &str, least: usize, most: usize) -> Result<usize, String> {
    match text.trim().parse::<usize>() {
        Ok(value) if (least..=most).contains(&value) => Ok(value),
        _ => Err(format!("must be a whole number from {least} to {most}")),
    }
}

/// Ranks, or machines.
pub fn ranks(text: &str) -> Result<usize, String> {
    count(text, 1, MOST_RANKS)
}

/// The number of a machine, from 0.
pub fn machine(text: &str) -> Result<usize, String> {
    count(text, 0, MOST_RANKS)
}

/// Heads, elements of a row, tokens of a page, layers.
pub fn wide(text: &str) -> Result<usize, String> {
    count(text, 1, MOST_WIDE)
}

/// Tokens or requests, of which there is at least one.
pub fn tokens(text: &str) -> Result<usize, String> {
    count(text, 1, MOST_TOKENS)
}

/// Tokens or requests, of which there may be none.
pub fn tokens_if_any(text: &str) -> Result<usize, String> {
    count(text, 0, MOST_TOKENS)
}

/// How often something is done.
pub fn times(text: &str) -> Result<usize, String> {
    count(text, 1, MOST_TIMES)
}

/// How often something is done, if at all.
pub fn times_if_any(text: &str) -> Result<usize, String> {
    count(text, 0, MOST_TIMES)
}

/// Seconds above 0.
pub fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if s > 0.0 && s <= 1e6 => Ok(s),
        _ => Err("it must be a number of seconds above 0 and up to 1000000".to_owned()),
    }
}

/// Seconds of at least 0.
pub fn seconds_if_any(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(s) if (0.0..=1e6).contains(&s) => Ok(s),
        _ => Err("must be a number of seconds from 0 to 1000000".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_to_be_multiplied_is_refused() {
        for read in [ranks, wide, tokens, tokens_if_any, times] {
            assert!(read("18446744073709551615").is_err());
            assert!(read("-1").is_err());
            assert_eq!(read(" 8 "), Ok(8));
        }
        assert!(ranks("0").is_err() && machine("0").is_ok());
        assert!(seconds_if_any("nan").is_err() && seconds_if_any("0").is_ok());
    }
}
