//! What it costs to compile a regular expression.

use crate::rule::MAX_REGEX_COMPILED;
use regex::{Error, RegexBuilder};

/// What a regular expression may take, compiled: it counts for the first that it fits.
const SIZES: [usize; 4] = [64 << 10, 256 << 10, 1 << 20, MAX_REGEX_COMPILED];

/// Compiles a regular expression: what it takes at most, in bytes, and whether it can be used.
///
/// Matching is linear in the value's length (finite automata); what is left to bound is the automaton's size. It is built up
/// to a limit that grows, as what it takes is not told.
pub(crate) fn compiled(text: &str) -> (usize, Result<(), Error>) {
    let mut outcome = (0, Ok(()));
    for size in SIZES {
        outcome = (size, RegexBuilder::new(text).size_limit(size).build().map(drop));
        if !matches!(outcome.1, Err(Error::CompiledTooBig(_))) {
            break;
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_larger_counts_for_more() {
        assert_eq!(compiled("/etc/.*").0, 64 << 10);
        let (size, built) = compiled(r"\w{30}");
        assert!(size >= 256 << 10 && built.is_ok(), "{size}");
        let (size, built) = compiled(r"(\w{90}){90}");
        assert!(size == MAX_REGEX_COMPILED && built.is_err());
    }
}
