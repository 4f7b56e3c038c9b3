//! How long a server asks to be left alone, from the headers of its refusal.

use crate::client::header;
use http::header::{HeaderMap, HeaderName, RETRY_AFTER};
use jiff::Timestamp;
use std::time::Duration;

/// The longest wait that is believed: a server that says more is wrong, or wants to freeze its clients.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// The wait where a server says that a limit is reached and not until when: GitHub's advice ("wait for at least one minute
/// before retrying", docs.github.com, "Rate limits for the REST API").
const UNSAID: Duration = Duration::from_secs(60);

const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// How long to wait before asking again, where an answer of `status` with these headers says so: `Retry-After` in seconds
/// or as a date (RFC 9110 §10.2.3), or the headers that GitHub sends with 403 and 429.
pub(crate) fn asked_to_wait(status: u16, headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let said = header(headers, &RETRY_AFTER).and_then(|text| retry_after(text.trim(), now));
    said.or_else(|| quota(status, headers, now)).map(|wait| wait.min(LONGEST))
}

fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit are a wait for ever.
        return Some(text.parse().map_or(LONGEST, Duration::from_secs));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(until(date, now))
}

/// A spent quota: so many requests an hour.
fn quota(status: u16, headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let spent = matches!(status, 403 | 429) && header(headers, &REMAINING)?.trim() == "0";
    let reset = || header(headers, &RESET)?.trim().parse().ok().and_then(|at| Timestamp::from_second(at).ok());
    spent.then(|| reset().map_or(UNSAID, |at| until(at, now)))
}

fn until(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-22T12:00:00Z";

    fn waits(status: u16, headers: &[(&str, &str)]) -> Option<u64> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        asked_to_wait(status, &map, NOW.parse().unwrap()).map(|wait| wait.as_secs())
    }

    #[test]
    fn a_wait_is_read_in_seconds_and_as_a_date_and_believed_for_a_day() {
        let after = |text: &str| waits(429, &[("retry-after", text)]);
        assert_eq!(after("17"), Some(17));
        assert_eq!(after("0"), Some(0));
        assert_eq!(after("Sun, 22 Nov 2026 12:05:00 GMT"), Some(300));
        assert_eq!(after("Sun, 22 Nov 2026 11:05:00 GMT"), Some(0), "a date that has passed is no wait");
        assert_eq!(after("Sun, 22 Nov 2099 12:05:00 GMT"), Some(86_400));
        assert_eq!(after("99999999999999999999999999"), Some(86_400));
        for nonsense in ["", "soon", "-5", "1.5", "Sun, 99 Nov 2026 12:05:00 GMT"] {
            assert_eq!(after(nonsense), None, "{nonsense:?}");
        }
    }

    #[test]
    fn a_spent_quota_says_when_it_is_full_again() {
        let reset = ("x-ratelimit-reset", "1795349700");
        assert_eq!(waits(403, &[("x-ratelimit-remaining", "0"), reset]), Some(900));
        assert_eq!(waits(403, &[("x-ratelimit-remaining", "0")]), Some(60));
        assert_eq!(waits(403, &[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "never")]), Some(60));
        assert_eq!(waits(403, &[("x-ratelimit-remaining", "59"), reset]), None, "another 403");
        assert_eq!(waits(500, &[("x-ratelimit-remaining", "0"), reset]), None, "another error");
        assert_eq!(waits(403, &[("retry-after", "5"), ("x-ratelimit-remaining", "0"), reset]), Some(5));
    }
}
