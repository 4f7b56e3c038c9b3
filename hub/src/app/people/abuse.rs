//! Who fails to say who they are again and again: first a rate, then a block.
//!
//! Failures are counted for each address and each name within a window that slides. An address of IPv6 counts by its /64,
//! which is one customer's. Addresses on the list of exceptions are never blocked, nor are agents: theirs is another
//! listener, and a valid certificate.

use jiff::{SignedDuration, Timestamp};
use picket_hub_db::Network;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

/// Within which time failures are counted together.
const WINDOW: SignedDuration = SignedDuration::from_mins(15);
/// How many failures within it are one too many.
const MAX_FAILURES: usize = 10;
/// How many addresses and names are remembered; beyond, the ones that failed longest ago are forgotten.
const MAX_REMEMBERED: usize = 10_000;

/// Counts failures.
#[derive(Debug, Default)]
pub struct Failures {
    by_subject: Mutex<HashMap<String, VecDeque<Timestamp>>>,
}

impl Failures {
    /// Notes a failure of `subject`. Says whether it is one too many: then the count begins anew.
    pub fn note(&self, subject: &str, now: Timestamp) -> bool {
        let mut failures = self.by_subject.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() >= MAX_REMEMBERED && !failures.contains_key(subject) {
            failures.retain(|_, times| times.back().is_some_and(|last| now.duration_since(*last) < WINDOW));
            if failures.len() >= MAX_REMEMBERED {
                let oldest = failures.iter().min_by_key(|(_, times)| times.back().copied());
                if let Some(oldest) = oldest.map(|(subject, _)| subject.clone()) {
                    failures.remove(&oldest);
                }
            }
        }
        let times = failures.entry(subject.to_owned()).or_default();
        while times.front().is_some_and(|first| now.duration_since(*first) >= WINDOW) {
            times.pop_front();
        }
        times.push_back(now);
        if times.len() < MAX_FAILURES {
            return false;
        }
        failures.remove(subject);
        true
    }

    /// Forgets the failures of `subject`: it has said who it is.
    pub fn forgive(&self, subject: &str) {
        self.by_subject.lock().unwrap_or_else(PoisonError::into_inner).remove(subject);
    }
}

/// What an address is counted and blocked by.
pub fn counted_as(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let prefix = address.to_bits() & !u128::from(u64::MAX);
            format!("{}/64", Ipv6Addr::from_bits(prefix))
        }
    }
}

/// Who is behind a request: the peer, or whom a proxy that is trusted says it speaks for.
///
/// Of `X-Forwarded-For` the last address that is no trusted proxy's counts: whatever stands before it was written by
/// whoever asked.
pub fn client(peer: IpAddr, forwarded_for: Option<&str>, trusted: &[Network]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.holds(address));
    if !is_trusted(peer) {
        return peer;
    }
    let mut client = peer;
    for hop in forwarded_for.unwrap_or_default().rsplit(',').take(32) {
        let Ok(address) = hop.trim().parse::<IpAddr>() else { break };
        client = address.to_canonical();
        if !is_trusted(client) {
            break;
        }
    }
    client
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH.checked_add(SignedDuration::from_mins(minutes)).unwrap()
    }

    #[test]
    fn ten_failures_within_a_quarter_of_an_hour_are_too_many() {
        let failures = Failures::default();
        for minute in 0..9 {
            assert!(!failures.note("192.0.2.1", at(minute)));
        }
        assert!(!failures.note("192.0.2.2", at(9)), "another one's");
        assert!(failures.note("192.0.2.1", at(9)));
        assert!(!failures.note("192.0.2.1", at(9)), "the count begins anew");
        for minute in 0..100 {
            assert!(!failures.note("slow", at(2 * minute)), "two minutes apart there are never ten");
        }
        for _ in 0..9 {
            failures.note("ada", at(300));
        }
        failures.forgive("ada");
        assert!(!failures.note("ada", at(300)));
    }

    #[test]
    fn memory_of_failures_is_bounded() {
        let failures = Failures::default();
        for number in 0..2 * MAX_REMEMBERED {
            failures.note(&number.to_string(), at(0));
        }
        assert!(failures.by_subject.lock().unwrap().len() <= MAX_REMEMBERED);
    }

    #[test]
    fn behind_a_trusted_proxy_the_client_counts_and_nobody_can_pretend() {
        let proxies: Vec<Network> = vec!["10.0.0.0/8".parse().unwrap()];
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(client(ip("192.0.2.9"), Some("198.51.100.1"), &proxies), ip("192.0.2.9"), "no proxy of ours");
        assert_eq!(client(ip("10.0.0.1"), Some("198.51.100.1"), &proxies), ip("198.51.100.1"));
        let pretended = Some("203.0.113.7, 198.51.100.1, 10.0.0.2");
        assert_eq!(client(ip("10.0.0.1"), pretended, &proxies), ip("198.51.100.1"));
        assert_eq!(client(ip("10.0.0.1"), Some("nonsense"), &proxies), ip("10.0.0.1"));
        assert_eq!(client(ip("10.0.0.1"), None, &proxies), ip("10.0.0.1"));
    }

    #[test]
    fn a_customer_of_ipv6_is_one() {
        let count = |text: &str| counted_as(text.parse().unwrap());
        assert_eq!(count("2001:db8:1:2:3:4:5:6"), count("2001:db8:1:2::1"));
        assert_ne!(count("2001:db8:1:2::1"), count("2001:db8:1:3::1"));
        assert_eq!(count("::ffff:192.0.2.1"), "192.0.2.1");
    }
}
