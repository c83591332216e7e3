//! Versions of engines, ordered as Python packages order them.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// A release of an engine: `0.5.6.post2`, `0.5.10.post1`, `1.2.0rc6.post2`.
///
/// The order is the one of PEP 440: development builds, then release candidates, then the release,
/// then its post releases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version {
    numbers: [u16; 4],
    stage: Stage,
    post: u32,
}

/// Where in the life of a release a build stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Stage {
    Dev(u32),
    Candidate(u32),
    Release,
}

/// Why a text is not a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// A nightly build carries no place in the order of releases.
    #[error(
        "engine version '{0}' is a nightly build, whose rules cannot be told from its name; \
         name the release that it was cut from, or allow the nearest one to be assumed"
    )]
    Nightly(String),
    /// Not of the form that Python packages use.
    #[error(
        "engine version '{0}' is not understood; expected numbers such as 0.5.23, 0.5.6.post2 or 1.2.0rc6"
    )]
    Malformed(String),
}

impl Version {
    /// A release with no suffix, for example `Version::release(0, 5, 23)`.
    pub const fn release(major: u16, minor: u16, patch: u16) -> Self {
        Self {
            numbers: [major, minor, patch, 0],
            stage: Stage::Release,
            post: 0,
        }
    }

    /// The major, minor and patch numbers.
    pub const fn triple(&self) -> (u16, u16, u16) {
        (self.numbers[0], self.numbers[1], self.numbers[2])
    }
}

impl FromStr for Version {
    type Err = VersionError;

    /// Reads a PEP 440 version. A leading `v` and the separators `-`, `_` and `+` are accepted;
    /// `pre` is read as a release candidate; a local part after `+` is ignored.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || VersionError::Malformed(text.chars().take(60).collect());
        let lower = text.trim().to_ascii_lowercase();
        if lower.contains("nightly") {
            return Err(VersionError::Nightly(text.chars().take(60).collect()));
        }
        let body = lower.strip_prefix('v').unwrap_or(&lower);
        let body = body.split('+').next().unwrap_or(body);
        if body.is_empty() || body.len() > 60 {
            return Err(malformed());
        }
        let mut version = Self {
            numbers: [0; 4],
            stage: Stage::Release,
            post: 0,
        };
        let mut filled = 0;
        for piece in pieces(body).ok_or_else(malformed)? {
            match piece {
                Piece::Number(n) => {
                    // Numbers after a suffix would be a second release part.
                    let slot = version.numbers.get_mut(filled).ok_or_else(malformed)?;
                    if version.stage != Stage::Release || version.post != 0 {
                        return Err(malformed());
                    }
                    *slot = u16::try_from(n).map_err(|_| malformed())?;
                    filled += 1;
                }
                Piece::Word("dev", n) => version.stage = Stage::Dev(n.unwrap_or(0)),
                Piece::Word("rc" | "c" | "a" | "b" | "alpha" | "beta", n) => {
                    version.stage = Stage::Candidate(n.unwrap_or(0));
                }
                // `0.5.1-rc0.pre1`, as some benchmark records spell it, is a build of rc0.
                Piece::Word("pre" | "preview", n) => {
                    if version.stage == Stage::Release {
                        version.stage = Stage::Candidate(n.unwrap_or(0));
                    }
                }
                Piece::Word("post", n) => version.post = n.unwrap_or(0).max(1),
                Piece::Word(..) => return Err(malformed()),
            }
        }
        if filled < 2 {
            return Err(malformed());
        }
        Ok(version)
    }
}

enum Piece<'a> {
    Number(u32),
    Word(&'a str, Option<u32>),
}

/// Splits `0.5.6.post2` into numbers and words with the number that follows them.
fn pieces(body: &str) -> Option<Vec<Piece<'_>>> {
    let mut out = Vec::new();
    for token in body.split(['.', '-', '_']) {
        let mut rest = token;
        if rest.is_empty() {
            return None;
        }
        while !rest.is_empty() {
            let digits = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            if digits > 0 {
                let (number, tail) = rest.split_at(digits);
                let number = number.parse().ok()?;
                match out.last_mut() {
                    // `dev.2` is `dev2`.
                    Some(Piece::Word(_, missing @ None)) => *missing = Some(number),
                    _ => out.push(Piece::Number(number)),
                }
                rest = tail;
                continue;
            }
            let letters = rest
                .find(|c: char| !c.is_ascii_alphabetic())
                .unwrap_or(rest.len());
            if letters == 0 {
                return None;
            }
            let (word, tail) = rest.split_at(letters);
            let digits = tail
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(tail.len());
            let (number, tail) = tail.split_at(digits);
            let number = match number {
                "" => None,
                digits => Some(digits.parse().ok()?),
            };
            out.push(Piece::Word(word, number));
            rest = tail;
        }
    }
    Some(out)
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch, fourth] = self.numbers;
        write!(f, "{major}.{minor}.{patch}")?;
        if fourth > 0 {
            write!(f, ".{fourth}")?;
        }
        match self.stage {
            Stage::Dev(n) => write!(f, ".dev{n}")?,
            Stage::Candidate(n) => write!(f, "rc{n}")?,
            Stage::Release => {}
        }
        if self.post > 0 {
            write!(f, ".post{}", self.post)?;
        }
        Ok(())
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn v(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn orders_as_python_does() {
        let ascending = [
            "0.4.9",
            "0.4.9.post6",
            "0.5.0.dev3",
            "0.5.1rc0",
            "0.5.1",
            "0.5.1.post1",
            "0.5.6",
            "0.5.6.post2",
            "0.5.10",
            "0.5.10.post1",
            "0.10.1",
            "0.10.1.1",
            "1.2.0rc2",
            "1.2.0rc6",
            "1.2.0rc6.post2",
            "1.2.0rc6.post3",
            "1.2.0",
        ];
        for pair in ascending.windows(2) {
            assert!(v(pair[0]) < v(pair[1]), "{} < {}", pair[0], pair[1]);
        }
    }

    #[test]
    fn prints_what_it_read() {
        for text in ["0.5.6.post2", "1.2.0rc6.post2", "0.10.1.1", "0.5.23"] {
            assert_eq!(v(text).to_string(), text);
        }
        assert_eq!(v("v0.33").to_string(), "0.33.0");
        assert_eq!(v("0.33.0+cu130"), v("0.33.0"));
        assert_eq!(v("0.5.1-rc0.pre1"), v("0.5.1rc0"));
        assert_eq!(v("1.1.0-dev.2").to_string(), "1.1.0.dev2");
    }

    #[test]
    fn refuses_what_is_no_version() {
        for text in [
            "",
            "five",
            "0",
            "0..5",
            "1.2.3.4.5",
            "0.5.6post2.7",
            "0.5/6",
            "99999999999.1",
        ] {
            assert!(
                matches!(text.parse::<Version>(), Err(VersionError::Malformed(_))),
                "{text}"
            );
        }
        let nightly = "nightly-dev-20260216-d3bae71e".parse::<Version>();
        assert!(matches!(nightly, Err(VersionError::Nightly(_))));
    }
}
