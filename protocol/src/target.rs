//! Rust target triples, checked, because they become parts of paths and URLs.

use serde::{Deserialize, Deserializer, Serialize};
use std::{fmt, str::FromStr};

/// A Rust target triple such as `x86_64-unknown-linux-musl`: 3 to 64 characters of `a-z 0-9 _ - .`, at least one `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct TargetTriple(String);

/// A text that cannot be a target triple.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a target triple (for example x86_64-unknown-linux-musl)")]
pub struct TargetError(String);

impl TargetTriple {
    /// The triple's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TargetTriple {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (3..=64).contains(&text.len())
            && text.contains('-')
            && !text.starts_with(['.', '-'])
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-.".contains(&b));
        if fits { Ok(Self(text.to_owned())) } else { Err(TargetError(text.chars().take(80).collect())) }
    }
}

impl fmt::Display for TargetTriple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TargetTriple {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn triples_that_would_walk_out_of_a_folder_are_refused() {
        for text in ["../../etc-x", "a/b-c", "", "linux", "-x-y", "x86_64-Linux", "a-\u{0}"] {
            assert!(text.parse::<TargetTriple>().is_err(), "{text:?}");
        }
        assert!("aarch64-apple-darwin".parse::<TargetTriple>().is_ok());
        assert!("thumbv7em-none-eabihf".parse::<TargetTriple>().is_ok());
    }
}
