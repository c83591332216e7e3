//! Values that options take, each read with a message that says what would be right.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use parplan_planner::question::GraphSizes;
use parplan_profiles::{Dtype, Lengths as Drawn};
use std::str::FromStr;

/// Largest count of GPUs, ranks or replicas that is planned.
pub const MAX_GPUS: u32 = 16_384;
/// Largest count of tokens in a sequence, a chunk or a list of sizes.
pub const MAX_TOKENS: u32 = 16_777_216;
/// Largest count of clients.
pub const MAX_CLIENTS: f64 = 1e6;

/// A whole number from 1 to `most`.
fn count(text: &str, most: u32) -> Result<u32, String> {
    match text.trim().parse::<u32>() {
        Ok(value) if (1..=most).contains(&value) => Ok(value),
        _ => Err(format!(
            "must be a whole number from 1 to {most}{}",
            written_out(text)
        )),
    }
}

/// What a share in percent is, where it looks like one; nothing for other texts.
fn share_of(text: &str) -> String {
    let text = text.trim();
    let (percent, least) = match text.strip_suffix('%') {
        Some(percent) => (percent.trim_end(), 0.0),
        None => (text, 2.0),
    };
    match percent.parse::<f64>() {
        Ok(value) if value >= least && value <= 100.0 => {
            format!("; {percent} % is {}", value / 100.0)
        }
        _ => String::new(),
    }
}

/// What a number with a letter for thousands or millions may mean; nothing for other texts.
fn written_out(text: &str) -> String {
    let text = text.trim();
    let units = [("k", 1000.0, 1024.0), ("m", 1e6, 1_048_576.0)];
    let meant = units.iter().find_map(|(letter, decimal, binary)| {
        let lower = text.to_ascii_lowercase();
        let value: f64 = lower.strip_suffix(letter)?.trim().parse().ok()?;
        let sane = value.is_finite() && value > 0.0 && value < 1e6;
        sane.then(|| (value * decimal, value * binary))
    });
    match meant {
        Some((decimal, binary)) => {
            format!("; {text} is written out, as {decimal:.0} or {binary:.0}")
        }
        None => String::new(),
    }
}

/// A finite number in `low..=high`.
fn number(text: &str, low: f64, high: f64) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(value) if value.is_finite() && (low..=high).contains(&value) => Ok(value),
        _ if (low, high) == (0.0, 1.0) => {
            Err(format!("must be a number from 0 to 1{}", share_of(text)))
        }
        _ => Err(format!(
            "must be a number from {low} to {high}{}",
            written_out(text)
        )),
    }
}

/// What a name stands for, of these and no others.
pub fn named<T>(
    all: impl IntoIterator<Item = (&'static str, T)>,
) -> impl TypedValueParser<Value = T>
where
    T: Copy + Send + Sync + 'static,
{
    let all: Vec<(&'static str, T)> = all.into_iter().collect();
    PossibleValuesParser::new(all.iter().map(|(name, _)| *name).collect::<Vec<_>>()).try_map(
        move |name: String| {
            let found = all.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| *value).ok_or("is none of the names")
        },
    )
}

/// GPUs, ranks, replicas, nodes.
pub fn gpus(text: &str) -> Result<u32, String> {
    count(text, MAX_GPUS)
}

/// Tokens.
pub fn tokens(text: &str) -> Result<u32, String> {
    count(text, MAX_TOKENS)
}

/// Requests.
pub fn requests(text: &str) -> Result<u32, String> {
    count(text, 1_000_000)
}

/// How many ranked configurations to show.
pub fn top(text: &str) -> Result<usize, String> {
    count(text, 10_000).map(|n| n as usize)
}

/// Mean tokens; halves are fine.
pub fn mean_tokens(text: &str) -> Result<f64, String> {
    number(text, 1.0, f64::from(MAX_TOKENS))
}

/// Clients.
pub fn clients(text: &str) -> Result<f64, String> {
    number(text, 1.0, MAX_CLIENTS)
}

/// A share of something.
pub fn share(text: &str) -> Result<f64, String> {
    number(text, 0.0, 1.0)
}

/// A share that cannot be nothing.
pub fn positive_share(text: &str) -> Result<f64, String> {
    match number(text, 0.0, 1.0) {
        Ok(value) if value > 0.0 => Ok(value),
        _ => Err(format!(
            "must be a number above 0, at most 1{}",
            share_of(text)
        )),
    }
}

/// Milliseconds.
pub fn milliseconds(text: &str) -> Result<f64, String> {
    match number(text, 0.0, 1e9) {
        Ok(value) if value > 0.0 => Ok(value),
        _ => Err("must be a number of milliseconds above 0, at most 1e9".to_owned()),
    }
}

/// Seconds.
pub fn seconds(text: &str) -> Result<f64, String> {
    match number(text, 0.0, 1e7) {
        Ok(value) if value > 0.0 => Ok(value),
        _ => Err("must be a number of seconds above 0, at most 1e7".to_owned()),
    }
}

/// Something a second, or a factor.
pub fn rate(text: &str) -> Result<f64, String> {
    match number(text, 0.0, 1e6) {
        Ok(value) if value > 0.0 => Ok(value),
        _ => Err("must be a number above 0, at most 1e6".to_owned()),
    }
}

/// A list of sizes, ascending and distinct whatever order they were typed in.
pub fn sizes(text: &str) -> Result<GraphSizes, String> {
    if text == "engine" {
        return Ok(GraphSizes::Engine);
    }
    let mut list = text
        .split(',')
        .map(|item| count(item, MAX_TOKENS))
        .collect::<Result<Vec<u32>, String>>()
        .map_err(|_| {
            format!(
                "must be sizes such as 1,2,4,8, each a whole number from 1 to {MAX_TOKENS}, or the \
                 word engine for its own list"
            )
        })?;
    list.sort_unstable();
    list.dedup();
    if list.len() > 4096 {
        return Err(format!(
            "lists {} sizes; at most 4096 are planned",
            list.len()
        ));
    }
    Ok(GraphSizes::Listed(list))
}

/// A switch that may be left to the engine, or to the search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Switch {
    /// On
    On,
    /// Off
    Off,
    /// What the engine does by itself; `recommend` tries both
    #[default]
    Auto,
}

impl Switch {
    /// The typed value; none for auto.
    pub fn fixed(self) -> Option<bool> {
        match self {
            Switch::On => Some(true),
            Switch::Off => Some(false),
            Switch::Auto => None,
        }
    }
}

/// Tokens of requests, as typed.
#[derive(Debug, Clone, PartialEq)]
pub enum Lengths {
    /// The longest; how far below it others lie is said elsewhere.
    Longest(f64),
    /// A distribution.
    Drawn(Drawn),
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((kind, rest)) = text.split_once(':') else {
            return mean_tokens(text).map(Lengths::Longest).map_err(|error| {
                format!(
                    "{error}, or a distribution: fixed:TOKENS, uniform:MAX,RATIO or \
                     log-normal:MEDIAN,SIGMA,MAX"
                )
            });
        };
        let parts: Vec<&str> = rest.split(',').collect();
        let longest = |text: &str| count(text, MAX_TOKENS);
        // Which of the figures it is.
        let named = |what: &str, error: String| format!("{what} {error}");
        let drawn = match (kind.trim(), parts.as_slice()) {
            ("fixed", [tokens]) => Drawn::Fixed {
                tokens: longest(tokens).map_err(|e| named("TOKENS", e))?,
            },
            ("uniform", [max, ratio]) => Drawn::Uniform {
                max: longest(max).map_err(|e| named("MAX", e))?,
                range_ratio: number(ratio, 0.0, 1.0).map_err(|e| named("RATIO", e))?,
            },
            ("log-normal" | "lognormal", [median, sigma, max]) => Drawn::LogNormal {
                median: mean_tokens(median).map_err(|e| named("MEDIAN", e))?,
                sigma: number(sigma, 0.0, 5.0).map_err(|e| named("SIGMA", e))?,
                max: longest(max).map_err(|e| named("MAX", e))?,
            },
            _ => {
                return Err(
                    "must be a number of tokens, fixed:TOKENS, uniform:MAX,RATIO such as \
                     uniform:8192,0.8, or log-normal:MEDIAN,SIGMA,MAX such as \
                     log-normal:900,1.1,32768"
                        .to_owned(),
                );
            }
        };
        Ok(Lengths::Drawn(drawn))
    }
}

/// How attention-DP ranks are loaded.
#[derive(Debug, Clone, PartialEq)]
pub enum Imbalance {
    /// Mean batch over the largest one.
    MeanOverMax(f64),
    /// Relative batch of each rank.
    Ranks(Vec<f64>),
    /// Requests dealt at random.
    Seed(u64),
}

impl FromStr for Imbalance {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const RIGHT: &str = "must be a mean/max ratio such as 0.75 (above 0, at most 1), \
                             one batch a rank such as 8,8,2,0, or seed:42";
        if let Some(seed) = text.strip_prefix("seed:") {
            return seed
                .parse()
                .map(Imbalance::Seed)
                .map_err(|_| RIGHT.to_owned());
        }
        if !text.contains(',') {
            return positive_share(text)
                .map(Imbalance::MeanOverMax)
                .map_err(|_| RIGHT.to_owned());
        }
        let list = text
            .split(',')
            .map(|item| number(item, 0.0, MAX_CLIENTS))
            .collect::<Result<Vec<f64>, String>>()
            .map_err(|_| RIGHT.to_owned())?;
        if list.iter().all(|&batch| batch == 0.0) {
            return Err("lists only empty ranks; at least one batch must be above 0".to_owned());
        }
        if list.len() > MAX_GPUS as usize {
            return Err(format!(
                "lists {} ranks; at most {MAX_GPUS} are planned",
                list.len()
            ));
        }
        Ok(Imbalance::Ranks(list))
    }
}

/// Speculative decoding as typed: drafted tokens and the rate at which they are accepted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speculative {
    /// Drafted tokens a step.
    pub steps: u32,
    /// Probability that a drafted token is accepted, given the ones before it.
    pub acceptance: f64,
}

impl FromStr for Speculative {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (steps, acceptance) = text.split_once(',')?;
            Some(Speculative {
                steps: count(steps, 64).ok()?,
                acceptance: share(acceptance).ok()?,
            })
        };
        read().ok_or_else(|| {
            "must be STEPS,ACCEPTANCE such as 3,0.7: 1 to 64 drafted tokens a step, and the \
             probability from 0 to 1 that one is accepted"
                .to_owned()
        })
    }
}

/// A KV cache format as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvFormat {
    /// The format that the model's profile names.
    Auto,
    /// This one.
    Fixed(Dtype),
}

/// Formats that engines store a KV cache in.
const KV_FORMATS: [Dtype; 5] = [
    Dtype::Bf16,
    Dtype::Fp8,
    Dtype::Mxfp8,
    Dtype::Nvfp4,
    Dtype::Mxfp4,
];

impl FromStr for KvFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(KvFormat::Auto);
        }
        match text.parse::<Dtype>() {
            Ok(dtype) if KV_FORMATS.contains(&dtype) => Ok(KvFormat::Fixed(dtype)),
            _ => Err(format!(
                "must be a format of the KV cache: auto, {}",
                KV_FORMATS.map(Dtype::name).join(", ")
            )),
        }
    }
}

/// A format of weights.
pub fn weight_format(text: &str) -> Result<Dtype, String> {
    text.parse::<Dtype>().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_cannot_be_are_refused_with_the_range() {
        for text in ["0", "-1", "1.5", "", "nan", "99999999999999999999", "16385"] {
            let message = gpus(text).unwrap_err();
            assert!(message.contains("1 to 16384"), "{text}: {message}");
        }
        for text in ["nan", "inf", "-1", "0", "1e300", ""] {
            assert!(mean_tokens(text).is_err(), "{text}");
            assert!(milliseconds(text).is_err(), "{text}");
            assert!(positive_share(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shares_in_percent_are_told_as_shares() {
        for (text, said) in [("90%", "90 % is 0.9"), ("50", "50 % is 0.5")] {
            let message = positive_share(text).unwrap_err();
            assert!(message.ends_with(said), "{message}");
            assert!(share(text).unwrap_err().ends_with(said), "{text}");
        }
        assert_eq!(share("1.5").unwrap_err(), "must be a number from 0 to 1");
        assert_eq!(share("-1").unwrap_err(), "must be a number from 0 to 1");
    }

    #[test]
    fn imbalance_has_three_forms() {
        assert_eq!("0.75".parse(), Ok(Imbalance::MeanOverMax(0.75)));
        assert_eq!(
            "8,8,2,0".parse(),
            Ok(Imbalance::Ranks(vec![8.0, 8.0, 2.0, 0.0]))
        );
        assert_eq!("seed:42".parse(), Ok(Imbalance::Seed(42)));
        for text in ["0", "1.01", "seed:", "seed:-1", "0,0", "1,nan", "1,,2", ""] {
            assert!(text.parse::<Imbalance>().is_err(), "{text}");
        }
    }

    #[test]
    fn lengths_are_a_number_or_a_distribution() {
        assert_eq!("1024".parse(), Ok(Lengths::Longest(1024.0)));
        let drawn = Drawn::LogNormal {
            median: 900.0,
            sigma: 1.1,
            max: 32768,
        };
        assert_eq!(
            "log-normal:900,1.1,32768".parse(),
            Ok(Lengths::Drawn(drawn))
        );
        for (text, named) in [
            ("fixed:0", "TOKENS must be"),
            ("uniform:8,1.5", "RATIO must be"),
            ("log-normal:0,1,8", "MEDIAN must be"),
            ("log-normal:1,9,8", "SIGMA must be"),
            ("log-normal:1,1,x", "MAX must be"),
        ] {
            let message = text.parse::<Lengths>().unwrap_err();
            assert!(message.starts_with(named), "{text}: {message}");
        }
        let unit = "4k".parse::<Lengths>().unwrap_err();
        assert!(unit.contains("4000 or 4096"), "{unit}");
        for text in [
            "",
            "fixed:",
            "fixed:0",
            "fixed:1,2",
            "uniform:8",
            "uniform:8,1.5",
            "uniform:8,nan",
            "log-normal:1,9,8",
            "normal:1,2,3",
            "trace:x",
        ] {
            assert!(text.parse::<Lengths>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_sorted_and_distinct() {
        assert_eq!(sizes("8,1,4,4"), Ok(GraphSizes::Listed(vec![1, 4, 8])));
        assert_eq!(sizes("engine"), Ok(GraphSizes::Engine));
        assert!(sizes("1,,2").is_err());
        assert!(sizes("0").is_err());
    }

    #[test]
    fn speculation_is_a_pair() {
        let three = Speculative {
            steps: 3,
            acceptance: 0.7,
        };
        assert_eq!("3,0.7".parse(), Ok(three));
        for text in ["3", "0,0.5", "3,1.5", "3,nan", "65,0.5", ","] {
            assert!(text.parse::<Speculative>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_kv_cache_is_not_stored_in_formats_of_weights_only() {
        assert_eq!("fp8".parse(), Ok(KvFormat::Fixed(Dtype::Fp8)));
        assert_eq!("auto".parse(), Ok(KvFormat::Auto));
        for text in ["int4", "fp32", "FP8", ""] {
            assert!(text.parse::<KvFormat>().is_err(), "{text}");
        }
    }
}
