//! The wish file: how the unprivileged agent asks for an update, with no privilege but to write one line.
//!
//! The updater runs as root and reads a file that the agent's user can write, so the grammar is as small as can be:
//! a version, or the word `latest`, and at most one newline.

use semver::Version;
use std::str::FromStr;

/// The largest wish that is read, in bytes.
pub const WISH_MAX_BYTES: u64 = 80;

/// What is wished for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// The channel's head.
    Latest,
    /// One version of the channel.
    Version(Version),
}

/// A wish that does not follow the grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a wish is one version (1.2.3) or the word 'latest'; found {0:?}")]
pub struct WishError(String);

impl FromStr for Wish {
    type Err = WishError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let line = text.strip_suffix('\n').unwrap_or(text);
        match line {
            "latest" => Ok(Self::Latest),
            _ if line.len() as u64 <= WISH_MAX_BYTES => {
                Version::parse(line).map(Self::Version).map_err(|_| WishError(line.to_owned()))
            }
            _ => Err(WishError(line.chars().take(80).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_wish_is_a_version_or_latest_and_nothing_more() {
        assert_eq!("latest\n".parse(), Ok(Wish::Latest));
        assert_eq!("1.2.3".parse(), Ok(Wish::Version(Version::new(1, 2, 3))));
        for text in ["", "1.2", "latest\n\n", "1.2.3; rm -rf /", "https://x/1.2.3", "1.2.3\n1.2.4"] {
            assert!(text.parse::<Wish>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,200}") {
            let _ = text.parse::<Wish>();
        }
    }
}
