//! Tokens against forged requests (CSRF): for sessions, whose cookie a browser sends whoever made the page.
//!
//! The form is `seconds:hmac`, the HMAC-SHA256 (RFC 2104) of `session:seconds`; a token holds for an hour. The key is
//! derived from the session's own cookie, so a token is of no use with another session.

use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use sha2::Sha256;
use std::fmt::Write as _;

/// For how long a token holds unless it is configured otherwise, in seconds.
pub const MAX_AGE: i64 = 3600;
/// How far a token may be ahead, in seconds: replicas' clocks differ.
const AHEAD: i64 = 60;

/// A token for the session behind `cookie`.
pub fn token(cookie: &str, now: Timestamp) -> String {
    let seconds = now.as_second();
    let mut text = format!("{seconds}:");
    for byte in mac(cookie, seconds).finalize().into_bytes() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Whether `token` is one of the session behind `cookie` and not older than `max_age` seconds.
pub fn holds(token: &str, cookie: &str, now: Timestamp, max_age: i64) -> bool {
    let Some((seconds, signature)) = token.split_once(':') else { return false };
    let Ok(seconds) = seconds.parse::<i64>() else { return false };
    let age = now.as_second().saturating_sub(seconds);
    if age > max_age || age < -AHEAD {
        return false;
    }
    let Some(signature) = unhex(signature) else { return false };
    // Takes as long wherever the first difference is.
    mac(cookie, seconds).verify_slice(&signature).is_ok()
}

fn mac(cookie: &str, seconds: i64) -> Hmac<Sha256> {
    let key = super::hash(&format!("picket csrf\0{cookie}"));
    // 32 bytes are within one block of SHA-256, so the key is used as it is (RFC 2104 §2).
    let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
    block[..key.len()].copy_from_slice(&key);
    let mut mac = Hmac::<Sha256>::new(&block);
    mac.update(cookie.as_bytes());
    mac.update(format!(":{seconds}").as_bytes());
    mac
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    (0..32).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::SignedDuration;

    #[test]
    fn a_token_holds_for_its_session_for_an_hour() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let later = |seconds| now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
        let token = token("cookie", now);
        assert!(holds(&token, "cookie", later(3600), MAX_AGE));
        assert!(!holds(&token, "cookie", later(3601), MAX_AGE));
        assert!(!holds(&token, "cookie", later(-61), MAX_AGE));
        assert!(!holds(&token, "another", now, MAX_AGE));
        let mut forged = token.clone();
        forged.replace_range(token.len() - 1.., if token.ends_with('0') { "1" } else { "0" });
        let moved = token.replacen(&now.as_second().to_string(), &later(5).as_second().to_string(), 1);
        for wrong in [forged.as_str(), &moved, "", ":", "x:y", &token[..20]] {
            assert!(!holds(wrong, "cookie", later(10), MAX_AGE), "{wrong}");
        }
    }
}
