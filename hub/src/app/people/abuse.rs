//! Who fails to say who they are again and again: first a rate, then a block.
//!
//! Failures are counted for each address, and for each name the addresses that failed with it, within a window that slides.
//! An address of IPv6 counts by its /64, which is one customer's. Addresses on the list of exceptions are never blocked, nor
//! are agents: theirs is another listener, and a valid certificate.
//!
//! One address alone blocks itself and no name: else everybody could keep everybody out. Many addresses that try one name
//! block new sign-ins with its password, except from where it has signed in before.

use jiff::{SignedDuration, Timestamp};
use picket_hub_db::Network;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Within which time failures are counted together.
const WINDOW: SignedDuration = SignedDuration::from_mins(15);
/// How many failures of an address within it, or addresses that failed with a name, are one too many.
const MAX_FAILURES: usize = 10;
/// How many addresses and names are remembered; beyond, the ones that failed longest ago are forgotten.
const MAX_REMEMBERED: usize = 10_000;

/// Counts failures.
#[derive(Debug, Default)]
pub struct Failures {
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    /// When an address failed, and with which name; empty for a name that nobody has, and for what is no password.
    by_address: HashMap<String, VecDeque<(Timestamp, String)>>,
    /// When a name failed, and from which address.
    by_name: HashMap<String, VecDeque<(Timestamp, String)>>,
    /// From where a name signed in with its password, and when last.
    signed_in: HashMap<(String, String), Timestamp>,
}

/// What a failure came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TooMany {
    /// The address has failed too often.
    pub address: bool,
    /// Too many addresses have failed with the name.
    pub name: bool,
}

impl Failures {
    /// Notes a failure at `address`, with the password of `name` where somebody has that name. What is one too many is
    /// counted anew from then on.
    pub fn note(&self, address: &str, name: Option<&str>, now: Timestamp) -> TooMany {
        let mut books = self.books();
        let by_address = count(&mut books.by_address, address, name.unwrap_or_default(), now, false);
        let by_name = name.is_some_and(|name| count(&mut books.by_name, name, address, now, true));
        TooMany { address: by_address, name: by_name }
    }

    /// Forgets what failed with the password of `name` at `address`, and nothing else, and remembers that both belong
    /// together: it has signed in there.
    pub fn signed_in(&self, address: &str, name: &str, now: Timestamp) {
        let mut books = self.books();
        if let Some(failures) = books.by_address.get_mut(address) {
            failures.retain(|(_, with)| with != name);
        }
        if let Some(failures) = books.by_name.get_mut(name) {
            failures.retain(|(_, at)| at != address);
        }
        let place = (address.to_owned(), name.to_owned());
        make_room(&mut books.signed_in, &place, |last| Some(*last));
        books.signed_in.insert(place, now);
    }

    /// Whether `name` has signed in at `address` since this process started, as far as that is remembered.
    pub fn is_known(&self, address: &str, name: &str) -> bool {
        self.books().signed_in.contains_key(&(address.to_owned(), name.to_owned()))
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes a failure of `subject` with `other`, each of which counts once where `each_once`. Says whether it is one too many:
/// then the count begins anew.
fn count(
    book: &mut HashMap<String, VecDeque<(Timestamp, String)>>,
    subject: &str,
    other: &str,
    now: Timestamp,
    each_once: bool,
) -> bool {
    let subject = subject.to_owned();
    make_room(book, &subject, |failures| failures.back().map(|(last, _)| *last));
    let failures = book.entry(subject.clone()).or_default();
    failures.retain(|(at, with)| now.duration_since(*at) < WINDOW && !(each_once && with == other));
    failures.push_back((now, other.to_owned()));
    let too_many = failures.len() >= MAX_FAILURES;
    if too_many {
        book.remove(&subject);
    }
    too_many
}

/// Makes room for `new` in a full book: what is oldest goes.
fn make_room<K: Clone + Eq + Hash, V>(book: &mut HashMap<K, V>, new: &K, last: impl Fn(&V) -> Option<Timestamp>) {
    if book.len() < MAX_REMEMBERED || book.contains_key(new) {
        return;
    }
    if let Some(oldest) = book.iter().min_by_key(|(_, kept)| last(kept)).map(|(key, _)| key.clone()) {
        book.remove(&oldest);
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
        let fails = |address: &str, minute| failures.note(address, None, at(minute)).address;
        for minute in 0..9 {
            assert!(!fails("192.0.2.1", minute));
        }
        assert!(!fails("192.0.2.2", 9), "another one's");
        assert!(fails("192.0.2.1", 9));
        assert!(!fails("192.0.2.1", 9), "the count begins anew");
        for minute in 0..100 {
            assert!(!fails("slow", 2 * minute), "two minutes apart there are never ten");
        }
    }

    #[test]
    fn who_signs_in_is_forgiven_for_that_name_at_that_address_and_for_no_other() {
        let failures = Failures::default();
        for other in 0..9 {
            failures.note("192.0.2.1", Some(&format!("user:{other}")), at(0));
        }
        for _ in 0..5 {
            failures.signed_in("192.0.2.1", "user:mine", at(0));
        }
        assert!(failures.note("192.0.2.1", Some("user:9"), at(0)).address, "nine names were tried before");
        for _ in 0..9 {
            failures.note("192.0.2.2", Some("user:mine"), at(0));
        }
        failures.signed_in("192.0.2.2", "user:mine", at(0));
        assert!(!failures.note("192.0.2.2", Some("user:mine"), at(0)).address, "mistyped, and then not");
    }

    #[test]
    fn one_address_blocks_no_name_and_ten_do() {
        let failures = Failures::default();
        for _ in 0..100 {
            assert!(!failures.note("192.0.2.1", Some("user:ada"), at(0)).name);
        }
        for address in 2..10 {
            assert!(!failures.note(&format!("192.0.2.{address}"), Some("user:ada"), at(1)).name);
        }
        assert!(failures.note("192.0.2.10", Some("user:ada"), at(1)).name);
        failures.signed_in("192.0.2.20", "user:ada", at(1));
        assert!(failures.is_known("192.0.2.20", "user:ada"));
        assert!(!failures.is_known("192.0.2.20", "user:eve") && !failures.is_known("192.0.2.1", "user:ada"));
    }

    #[test]
    fn memory_of_failures_is_bounded() {
        let failures = Failures::default();
        // Finding the oldest reads the whole book: a few more than fit are enough.
        for number in 0..MAX_REMEMBERED + 50 {
            let number = number.to_string();
            failures.note(&number, Some(&number), at(0));
            failures.signed_in(&number, "user:ada", at(0));
        }
        let books = failures.books();
        let kept = [books.by_address.len(), books.by_name.len(), books.signed_in.len()];
        assert_eq!(kept, [MAX_REMEMBERED; 3]);
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
