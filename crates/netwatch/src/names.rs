//! Names of addresses (reverse DNS), asked for on the side: an event never waits for one.
//!
//! [`Resolver::name`] answers from a cache, at once. What is not in it is put into a bounded queue, and a few threads ask
//! the system's resolver (`getnameinfo`, so `/etc/hosts` counts, too); the next event of that address has the name. That an
//! address has no name is remembered as well, for less long. In the design of two processes the sensor has no network, so
//! this runs in the agent.
//!
//! A name in a PTR record is whatever the owner of the address wrote there. It is passed on only if it looks like a host's
//! name (letters, digits, `-`, `_` and `.`, at most 253 bytes: RFC 1035 §2.3.4, RFC 8553), and proves nothing.

use picket_protocol::event::{Direction, NetworkEvent};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long [`Resolver::stop`] waits for a question that the system's resolver is still busy with.
const STOP_LIMIT: Duration = Duration::from_secs(2);
/// The longest name of a host in bytes.
const NAME_MAX: usize = 253;

/// The bounds of a resolver.
#[derive(Debug, Clone)]
pub struct ResolverOptions {
    /// How many questions are asked at a time.
    pub threads: usize,
    /// How many wait to be asked; more are not asked.
    pub queue: usize,
    /// How many answers are kept; beyond it those go that were not used for the longest time.
    pub entries: usize,
    /// How long a name is kept.
    pub found_for: Duration,
    /// How long it is kept that there is none, or that nobody answered.
    pub missing_for: Duration,
}

impl Default for ResolverOptions {
    fn default() -> Self {
        Self {
            threads: 2,
            queue: 256,
            entries: 4_096,
            found_for: Duration::from_secs(3_600),
            missing_for: Duration::from_secs(600),
        }
    }
}

/// What a resolver did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NameCounters {
    /// Answered from the cache, that there is no name included.
    pub hits: u64,
    /// Not in the cache.
    pub misses: u64,
    /// Asked, and a name came.
    pub found: u64,
    /// Asked, and no usable name came.
    pub missing: u64,
    /// Not asked, because too many were waiting.
    pub refused: u64,
}

/// How an address is asked for: the name, or `None`.
pub type Lookup = Arc<dyn Fn(IpAddr) -> Option<String> + Send + Sync>;

struct Answer {
    name: Option<Arc<str>>,
    expires: Instant,
    used: u64,
}

#[derive(Default)]
struct Cache {
    answers: HashMap<IpAddr, Answer>,
    /// What is in the queue or being asked.
    asked: HashSet<IpAddr>,
    uses: u64,
    counters: NameCounters,
}

impl Cache {
    /// The answer that is known and still holds.
    fn get(&mut self, address: IpAddr, now: Instant) -> Option<&Answer> {
        self.uses += 1;
        let uses = self.uses;
        let answer = self.answers.get_mut(&address).filter(|answer| now < answer.expires)?;
        answer.used = uses;
        Some(answer)
    }

    fn put(&mut self, address: IpAddr, name: Option<Arc<str>>, expires: Instant, entries: usize) {
        self.asked.remove(&address);
        match name {
            Some(_) => self.counters.found += 1,
            None => self.counters.missing += 1,
        }
        if self.answers.len() >= entries && !self.answers.contains_key(&address) {
            self.make_room(entries);
        }
        self.uses += 1;
        self.answers.insert(address, Answer { name, expires, used: self.uses });
    }

    /// Lets go of the eighth that was not used for the longest time, so that it is not sorted for each.
    fn make_room(&mut self, entries: usize) {
        let mut uses: Vec<u64> = self.answers.values().map(|answer| answer.used).collect();
        let drop = (entries / 8).max(1).min(uses.len());
        let (_, last, _) = uses.select_nth_unstable(drop - 1);
        let last = *last;
        self.answers.retain(|_, answer| answer.used > last);
    }
}

struct Inner {
    options: ResolverOptions,
    stopping: AtomicBool,
    cache: Mutex<Cache>,
}

impl Inner {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, address: IpAddr, lookup: &Lookup) {
        let name = lookup(address).filter(|name| is_host_name(name)).map(Arc::from);
        let keep = if name.is_some() { self.options.found_for } else { self.options.missing_for };
        self.cache().put(address, name, Instant::now() + keep, self.options.entries);
    }
}

/// Answers with names that are known, and finds out the others for the next time.
pub struct Resolver {
    inner: Arc<Inner>,
    /// `None` once it was stopped.
    queue: Option<SyncSender<IpAddr>>,
    /// Ends when the last thread has.
    ended: Receiver<()>,
}

impl Resolver {
    /// Starts a resolver that asks the system.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(options: ResolverOptions) -> std::io::Result<Self> {
        let lookup: Lookup = Arc::new(|address| dns_lookup::lookup_addr(&address).ok());
        Self::with_lookup(options, &lookup)
    }

    /// Starts a resolver that asks `lookup`.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn with_lookup(options: ResolverOptions, lookup: &Lookup) -> std::io::Result<Self> {
        let (queue, questions) = sync_channel::<IpAddr>(options.queue);
        let questions = Arc::new(Mutex::new(questions));
        let (alive, ended) = sync_channel::<()>(1);
        let threads = options.threads.max(1);
        let inner = Arc::new(Inner { options, stopping: AtomicBool::new(false), cache: Mutex::new(Cache::default()) });
        for number in 0..threads {
            let (inner, lookup) = (Arc::clone(&inner), Arc::clone(lookup));
            let (questions, alive) = (Arc::clone(&questions), alive.clone());
            std::thread::Builder::new().name(format!("names-{number}")).spawn(move || {
                // Its end is the end of this sender.
                let _alive = alive;
                loop {
                    let question = questions.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(address) = question else { return };
                    if inner.stopping.load(Relaxed) {
                        return;
                    }
                    inner.ask(address, &lookup);
                }
            })?;
        }
        Ok(Self { inner, queue: Some(queue), ended })
    }

    /// The name of `address` if it is known now. If not, it is asked for on the side.
    pub fn name(&self, address: IpAddr) -> Option<String> {
        let mut cache = self.inner.cache();
        if let Some(answer) = cache.get(address, Instant::now()) {
            let name = answer.name.as_deref().map(str::to_owned);
            cache.counters.hits += 1;
            return name;
        }
        cache.counters.misses += 1;
        if cache.asked.insert(address) {
            let taken = self.queue.as_ref().is_some_and(|queue| queue.try_send(address).is_ok());
            if !taken {
                cache.asked.remove(&address);
                cache.counters.refused += 1;
            }
        }
        None
    }

    /// Gives an event the name of its other side, if it is known now.
    pub fn enrich(&self, event: &mut NetworkEvent) {
        let remote = match event.direction {
            Direction::Inbound => event.src_ip,
            Direction::Outbound | Direction::Unknown => event.dst_ip,
        };
        event.remote_name = self.name(remote);
    }

    /// What was done so far.
    pub fn counters(&self) -> NameCounters {
        self.inner.cache().counters
    }

    /// Ends the threads. A question that the system's resolver is busy with cannot be called back; it is waited for 2 s,
    /// then its thread is left to end by itself when the resolver gives up. Returns whether all have ended.
    pub fn stop(mut self) -> bool {
        self.end()
    }

    fn end(&mut self) -> bool {
        if self.queue.take().is_none() {
            return true;
        }
        self.inner.stopping.store(true, Relaxed);
        let ended = self.ended.recv_timeout(STOP_LIMIT);
        matches!(ended, Err(std::sync::mpsc::RecvTimeoutError::Disconnected))
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether it looks like a host's name, and not like an attempt at whoever shows it.
fn is_host_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        && name.parse::<IpAddr>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::sync::atomic::AtomicUsize;

    const LONG: Duration = Duration::from_secs(30);

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from(number).into()
    }

    /// A resolver whose answers come one at a time, when the test allows it.
    fn by_hand(options: ResolverOptions) -> (Resolver, SyncSender<Option<String>>, Receiver<IpAddr>) {
        let (answer, answers) = sync_channel::<Option<String>>(1_000);
        let (asked, questions) = sync_channel(1_000);
        let answers = Mutex::new(answers);
        let lookup: Lookup = Arc::new(move |address| {
            asked.send(address).ok()?;
            answers.lock().unwrap().recv().ok().flatten()
        });
        (Resolver::with_lookup(options, &lookup).unwrap(), answer, questions)
    }

    /// Waits until `number` answers have come, asking nothing.
    fn wait_for(resolver: &Resolver, number: u64) {
        let deadline = Instant::now() + LONG;
        while resolver.counters().found + resolver.counters().missing < number {
            assert!(Instant::now() < deadline, "{:?}", resolver.counters());
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_name_is_never_waited_for_and_is_there_the_next_time() {
        let (resolver, answer, questions) = by_hand(ResolverOptions::default());
        assert_eq!(resolver.name(address(1)), None);
        // Asked again while nobody has answered: one question all the same.
        assert_eq!(resolver.name(address(1)), None);
        assert_eq!(questions.recv_timeout(LONG).unwrap(), address(1));
        answer.send(Some("one.example".into())).unwrap();
        wait_for(&resolver, 1);
        assert_eq!(resolver.name(address(1)).as_deref(), Some("one.example"));
        assert!(questions.try_recv().is_err());
        assert!(resolver.stop());
    }

    #[test]
    fn that_there_is_no_name_is_remembered_until_its_time_is_over() {
        let options = ResolverOptions { missing_for: Duration::ZERO, ..ResolverOptions::default() };
        for (options, asked_again) in [(ResolverOptions::default(), false), (options, true)] {
            let (resolver, answer, questions) = by_hand(options);
            assert_eq!(resolver.name(address(1)), None);
            questions.recv_timeout(LONG).unwrap();
            answer.send(None).unwrap();
            wait_for(&resolver, 1);
            assert_eq!(resolver.name(address(1)), None);
            answer.send(None).unwrap();
            assert_eq!(questions.recv_timeout(if asked_again { LONG } else { Duration::ZERO }).is_ok(), asked_again);
        }
    }

    #[test]
    fn what_does_not_fit_into_the_queue_is_not_asked_and_counted() {
        let (resolver, answer, questions) =
            by_hand(ResolverOptions { threads: 1, queue: 2, ..ResolverOptions::default() });
        resolver.name(address(0));
        questions.recv_timeout(LONG).unwrap();
        (1..10).for_each(|number| drop(resolver.name(address(number))));
        assert_eq!(resolver.counters().refused, 7);
        (0..3).for_each(|_| answer.send(None).unwrap());
        wait_for(&resolver, 3);
        // What was refused may be asked for later.
        resolver.name(address(9));
        assert_eq!(questions.iter().take(3).last(), Some(address(9)));
        answer.send(None).unwrap();
    }

    #[test]
    fn the_cache_keeps_what_is_used_and_never_more_than_its_bound() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let lookup: Lookup = Arc::new(move |address| {
            count.fetch_add(1, Relaxed);
            Some(format!("host-{}", address.to_string().replace('.', "-")))
        });
        let options = ResolverOptions { entries: 64, queue: 1_000, threads: 1, ..ResolverOptions::default() };
        let resolver = Resolver::with_lookup(options, &lookup).unwrap();
        resolver.name(address(0));
        wait_for(&resolver, 1);
        for number in 1..500 {
            resolver.name(address(number));
            wait_for(&resolver, number.into());
            // Used all the time, so it stays.
            assert!(resolver.name(address(0)).is_some(), "gone after {number}");
            assert!(resolver.inner.cache().answers.len() <= 64);
        }
    }

    #[test]
    fn a_name_that_is_no_hosts_name_is_no_name() {
        assert!(is_host_name("mail-1.example.com"));
        let long = "a".repeat(254);
        for wrong in ["", "<script>", "a b", "na\u{ef}ve.example", "a\n", "10.0.0.1", &long] {
            assert!(!is_host_name(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn a_resolver_stops_though_a_question_hangs() {
        let (resolver, answer, questions) = by_hand(ResolverOptions::default());
        resolver.name(address(1));
        questions.recv_timeout(LONG).unwrap();
        assert!(!resolver.stop());
        drop(answer);
    }

    #[test]
    fn the_machines_own_resolver_knows_the_machine() {
        let resolver = Resolver::start(ResolverOptions::default()).unwrap();
        let loopback = IpAddr::from([127, 0, 0, 1]);
        resolver.name(loopback);
        wait_for(&resolver, 1);
        assert!(resolver.name(loopback).is_some_and(|name| name.starts_with("localhost")));
    }
}
