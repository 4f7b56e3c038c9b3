//! The thread that watches: waits for notices, takes a dump at each interval, and reports what follows.

use super::netlink::{DumpSocket, NoticeSocket, Wanted};
use super::owners::Owners;
use super::proc_net::ProcNet;
use crate::socket::{Destroyed, Dump, Ports};
use crate::table::{Change, Rules, Table};
use crate::watcher::{Means, Shared, WatchError, WatchOptions, event};
use picket_protocol::event::{EventBody, GapEvent, GapReason, NetworkAction, NetworkMethod, Protocol, Sink};
use picket_protocol::{Sight, SightLevel};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::io::Read;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How many notices are taken before they are judged, so that a stop and a dump are never far.
const BATCH: usize = 4_096;
/// How many notices are held while one dump is taken; the kernel's queue holds the rest.
const HELD_MAX: usize = 65_536;
/// How long the owners of new sockets are looked for after a dump.
const OWNERS_BUDGET: Duration = Duration::from_millis(25);
/// How long the owners of the sockets that are there at the start are looked for.
const BASELINE_OWNERS_BUDGET: Duration = Duration::from_millis(500);
/// The least time between two dumps after lost notices.
const AGAIN: Duration = Duration::from_millis(100);
/// The least time between two looks at the listeners alone, of which one takes some 50 µs.
const LISTENERS_AGAIN: Duration = Duration::from_millis(20);
/// `ip_local_port_range` where it cannot be read: the kernel's default.
const EPHEMERAL: RangeInclusive<u16> = 32_768..=60_999;

/// The thread and what ends it.
pub struct Running {
    wake: OwnedFd,
    thread: JoinHandle<()>,
}

impl Running {
    /// Takes the baseline and starts watching.
    pub fn start(options: &WatchOptions, sink: Sink, shared: Arc<Shared>) -> Result<Self, WatchError> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| WatchError::Descriptors(e.into()))?;
        let woken = wake.try_clone().map_err(WatchError::Descriptors)?;
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let options = options.clone();
        // The sockets are opened by the thread itself: they belong to its network namespace, and `/proc/thread-self` to it.
        let thread = std::thread::Builder::new()
            .name("netwatch".to_owned())
            .spawn(move || match Watch::begin(&options, sink, shared) {
                Ok(watch) => {
                    let _ = ready.send(Ok(()));
                    watch.run(&woken);
                }
                Err(e) => {
                    let _ = ready.send(Err(e));
                }
            })
            .map_err(WatchError::Thread)?;
        match started.recv() {
            Ok(Ok(())) => Ok(Self { wake, thread }),
            Ok(Err(e)) => Err(e),
            Err(_) => Err(WatchError::Thread(std::io::Error::other("the thread ended before it began"))),
        }
    }

    /// Ends the thread and waits for it.
    pub fn stop(self) {
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        let _ = self.thread.join();
    }
}

/// Where dumps come from.
enum Source {
    Diag(DumpSocket),
    Proc(ProcNet),
}

struct Watch {
    source: Source,
    notices: Option<NoticeSocket>,
    /// The size of the queue of notices, where they were to be had at the start: one that fails is opened again.
    notice_buffer: Option<usize>,
    table: Table,
    owners: Owners,
    wanted: Wanted,
    interval: Duration,
    sink: Sink,
    shared: Arc<Shared>,
    /// Since when notices may be lost, until a gap was reported.
    overflow_since: Option<jiff::Timestamp>,
    /// When notices were read last: what is lost is lost after it.
    drained: jiff::Timestamp,
    listeners_asked: Option<Instant>,
    /// When all sockets were looked at last.
    resynced: Instant,
    /// Whether the last look failed.
    failing: bool,
    /// Whether the last look did not hold all.
    cut: bool,
    sees_all: bool,
}

impl Watch {
    fn begin(options: &WatchOptions, sink: Sink, shared: Arc<Shared>) -> Result<Self, WatchError> {
        let settings = &options.settings;
        let watched = |protocol| settings.protocols.iter().any(|p| Protocol::from(*p) == protocol);
        let (tcp, udp) = (watched(Protocol::Tcp), watched(Protocol::Udp));
        let interval = settings.interval.get().max(Duration::from_millis(100));
        // Joined before the first dump: what closes in between is told.
        let notices = match options.means {
            Means::Best => open_notices(tcp, udp, options.notice_buffer),
            Means::DumpsOnly | Means::ProcOnly => None,
        };
        let remains = notices.is_none();
        let wanted = Wanted { tcp, udp, remains, limit: options.limit };
        let (source, baseline) = open_source(options.means, wanted)?;
        let notices = notices.filter(|_| matches!(source, Source::Diag(_)));
        let rules = Rules {
            ports: settings.ports.iter().copied().collect::<Ports>(),
            tcp,
            udp,
            loopback: settings.loopback,
            method: source.method(),
            notices: notices.is_some(),
            ephemeral: ephemeral_ports(),
            limit: options.limit,
        };
        let mut watch = Self {
            source,
            notice_buffer: notices.is_some().then_some(options.notice_buffer),
            notices,
            table: Table::baseline(rules, &baseline),
            owners: Owners::new(Path::new("/proc")),
            wanted,
            interval,
            sink,
            shared,
            overflow_since: None,
            drained: jiff::Timestamp::now(),
            listeners_asked: None,
            resynced: Instant::now(),
            failing: false,
            cut: false,
            sees_all: Owners::sees_all(),
        };
        watch.find_owners(BASELINE_OWNERS_BUDGET);
        watch.tell_sight(None);
        Ok(watch)
    }

    fn run(mut self, wake: &OwnedFd) {
        self.tell_missing(
            GapReason::Unwatched,
            None,
            None,
            "nobody watched: connections that came and went since the last watcher are not known",
        );
        let mut next_dump = Instant::now() + self.interval;
        loop {
            let (woken, told) = self.wait(wake, next_dump);
            if woken {
                self.end();
                return;
            }
            if told {
                let mut destroyed = Vec::new();
                self.drain(&mut destroyed, BATCH);
                self.judge(None, &destroyed);
            }
            let now = Instant::now();
            if now >= next_dump || self.resync_due().is_some_and(|due| now >= due) {
                self.look();
                // Kept in step, but a dump that took too long is not made up for.
                next_dump = (next_dump + self.interval).max(Instant::now());
            }
        }
    }

    /// Tells what the kernel has said by now: nobody reads it afterwards.
    fn end(&mut self) {
        let mut destroyed = Vec::new();
        self.drain(&mut destroyed, HELD_MAX);
        self.judge(None, &destroyed);
        self.look();
        // A look that failed has not told it.
        self.tell_gap();
    }

    /// Waits until something is to be done: whether to stop, and whether there are notices.
    fn wait(&self, wake: &OwnedFd, until: Instant) -> (bool, bool) {
        let until = self.resync_due().map_or(until, |due| due.min(until));
        let left = until.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        let mut fds = vec![PollFd::new(wake, PollFlags::IN)];
        fds.extend(self.notices.as_ref().map(|notices| PollFd::from_borrowed_fd(notices.as_fd(), PollFlags::IN)));
        // An interrupted wait is a short one.
        let _ = poll(&mut fds, Some(&timeout));
        let ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
        (ready(0), ready(1))
    }

    /// When all sockets are to be looked at because notices were lost. A look that fails is not repeated before its time.
    fn resync_due(&self) -> Option<Instant> {
        (self.overflow_since.is_some() && !self.failing).then(|| self.resynced + AGAIN)
    }

    fn drain(&mut self, destroyed: &mut Vec<Destroyed>, limit: usize) {
        drain(&mut self.notices, destroyed, limit, &mut self.overflow_since, self.drained);
        if self.overflow_since.is_none() {
            self.drained = jiff::Timestamp::now();
        }
    }

    /// Opens the notices again if they failed. Before the dump, so that what closes in between is told; without them the
    /// dump shows what is left of connections.
    fn reopen_notices(&mut self) {
        let Some(capacity) = self.notice_buffer.filter(|_| self.notices.is_none()) else { return };
        self.table.set_notices(false);
        self.notices = NoticeSocket::open(self.wanted.tcp, self.wanted.udp, capacity).ok();
        self.wanted.remains = self.notices.is_none();
        if self.notices.is_some() {
            self.table.set_notices(true);
            tracing::info!("notices of destroyed sockets are read again");
        }
    }

    /// Takes a dump and judges it.
    fn look(&mut self) {
        let began = Instant::now();
        self.reopen_notices();
        let mut destroyed = Vec::new();
        let Self { source, notices, overflow_since, drained, wanted, .. } = self;
        let dump = source.dump(*wanted, &mut || drain(notices, &mut destroyed, HELD_MAX, overflow_since, *drained));
        self.shared.dump_micros.store(began.elapsed().as_micros().try_into().unwrap_or(u64::MAX), Relaxed);
        self.shared.dumps.fetch_add(1, Relaxed);
        match dump {
            Ok(dump) => {
                self.judge(Some(&dump), &destroyed);
                self.tell_gap();
                self.tell_missed(dump.complete);
                let cut = (!dump.complete).then(|| {
                    format!("there are more connections than the {} that are kept in mind", self.wanted.limit)
                });
                self.tell_sight(cut.as_deref());
                self.failing = false;
                self.resynced = Instant::now();
            }
            Err(e) => {
                self.judge(None, &destroyed);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(error = %e, "the sockets cannot be listed; trying again at each interval");
                }
                self.shared.failures.fetch_add(1, Relaxed);
                self.tell_sight(Some(&format!("the sockets could not be listed the last time: {e}")));
                // An answer cut short would be in the way of the next question.
                if let Source::Diag(socket) = &mut self.source
                    && let Ok(fresh) = DumpSocket::open()
                {
                    *socket = fresh;
                }
            }
        }
    }

    fn judge(&mut self, dump: Option<&Dump>, destroyed: &[Destroyed]) {
        self.shared.notices.fetch_add(destroyed.len() as u64, Relaxed);
        if dump.is_none() && destroyed.iter().any(|socket| self.table.is_puzzled_by(socket)) {
            self.ask_listeners();
        }
        let changes = self.table.step(dump, destroyed);
        self.find_owners(OWNERS_BUDGET);
        self.shared.tracked.store(self.table.len() as u64, Relaxed);
        self.shared.untracked.store(self.table.untracked(), Relaxed);
        let now = jiff::Timestamp::now();
        for change in changes {
            self.report(change, now);
        }
    }

    fn report(&self, mut change: Change, now: jiff::Timestamp) {
        let counter = match change.action {
            NetworkAction::Opened => &self.shared.opened,
            NetworkAction::Closed => &self.shared.closed,
        };
        counter.fetch_add(1, Relaxed);
        if change.actor.is_none() {
            change.actor = self.table.owner(change.cookie).cloned();
        }
        (self.sink)(EventBody::Network(event(&change, now)));
    }

    /// A listener may be younger than the last dump, and tells who began a connection.
    fn ask_listeners(&mut self) {
        if let Source::Diag(socket) = &mut self.source
            && self.listeners_asked.is_none_or(|asked| asked.elapsed() >= LISTENERS_AGAIN)
        {
            if let Ok(listening) = socket.listening() {
                self.table.listen(&listening);
            }
            self.listeners_asked = Some(Instant::now());
        }
    }

    fn find_owners(&mut self, budget: Duration) {
        for (cookie, inode) in self.table.take_unsearched() {
            self.owners.seek(cookie, inode);
        }
        if self.owners.is_seeking() {
            for (cookie, actor) in self.owners.search(budget) {
                self.table.own(cookie, actor);
            }
        }
    }

    fn tell_gap(&mut self) {
        let Some(since) = self.overflow_since.take() else { return };
        self.shared.overflows.fetch_add(1, Relaxed);
        self.drained = jiff::Timestamp::now();
        self.tell_missing(
            GapReason::KernelOverflow,
            None,
            Some(since),
            "the kernel's queue of destroyed sockets ran over; all sockets were listed at once, and only connections that \
             came and went in between are missing",
        );
    }

    /// Tells of connections that were counted only.
    fn tell_missed(&mut self, complete: bool) {
        let missed = self.table.take_missed();
        let limit = self.wanted.limit;
        if missed.untracked > 0 {
            let text = format!(
                "more connections were there than the {limit} that are kept in mind: their beginning is not told"
            );
            self.tell_missing(GapReason::Shed, Some(missed.untracked), None, &text);
        }
        if missed.portless > 0 {
            let text = "connections shorter than the interval were reset by this machine, and the kernel had forgotten \
                        their port: whether they are of network_monitor.ports is not known";
            self.tell_missing(GapReason::Unwatched, Some(missed.portless), None, text);
        }
        if !std::mem::replace(&mut self.cut, !complete) && !complete {
            let text = format!("the list of connections is cut off after {limit}: of the others nothing is known");
            self.tell_missing(GapReason::Shed, None, None, &text);
        }
    }

    fn tell_missing(&self, reason: GapReason, count: Option<u64>, since: Option<jiff::Timestamp>, detail: &str) {
        (self.sink)(EventBody::Gap(GapEvent {
            timestamp: jiff::Timestamp::now(),
            reason,
            source: "network".to_owned(),
            count,
            since,
            detail: detail.to_owned(),
        }));
    }

    fn tell_sight(&self, trouble: Option<&str>) {
        let mut missing: Vec<String> = Vec::new();
        match (&self.source, &self.notices) {
            (Source::Proc(_), _) => missing.push(
                "connections shorter than the interval, above all those that are reset, are missed: netlink sock_diag is \
                 refused here; allow the address family AF_NETLINK"
                    .to_owned(),
            ),
            (Source::Diag(_), None) => missing.push(
                "connections shorter than the interval that are reset are missed: the kernel's notices of destroyed sockets \
                 are refused here"
                    .to_owned(),
            ),
            (Source::Diag(_), Some(_)) => {}
        }
        if !self.sees_all {
            missing.push(
                "the processes of other users are not named: that takes CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE"
                    .to_owned(),
            );
        }
        missing.extend(trouble.map(str::to_owned));
        let level = if missing.is_empty() { SightLevel::Full } else { SightLevel::Reduced };
        let method = match self.source {
            Source::Diag(_) => "sock_diag",
            Source::Proc(_) => "proc",
        };
        self.shared.set_sight(Sight {
            source: "network".to_owned(),
            level,
            method: method.to_owned(),
            detail: missing.join("; "),
        });
    }
}

/// Reads notices, and notes since when some may be lost.
fn drain(
    notices: &mut Option<NoticeSocket>,
    destroyed: &mut Vec<Destroyed>,
    limit: usize,
    overflow_since: &mut Option<jiff::Timestamp>,
    drained: jiff::Timestamp,
) {
    let Some(socket) = notices else { return };
    match socket.drain(destroyed, limit) {
        Ok(result) => {
            if result.overflowed {
                overflow_since.get_or_insert(drained);
            }
        }
        Err(e) => {
            tracing::warn!(error = %e, "notices of destroyed sockets can no longer be read; opening them again");
            overflow_since.get_or_insert(drained);
            // A socket that fails would be ready for ever.
            *notices = None;
        }
    }
}

fn open_notices(tcp: bool, udp: bool, capacity: usize) -> Option<NoticeSocket> {
    match NoticeSocket::open(tcp, udp, capacity) {
        Ok(socket) => {
            tracing::debug!(bytes = socket.capacity(), "the kernel tells of each socket it destroys");
            Some(socket)
        }
        Err(e) => {
            tracing::warn!(error = %e, "the kernel does not tell of destroyed sockets; short connections are missed");
            None
        }
    }
}

/// The best source of those that work, and its first dump.
fn open_source(means: Means, wanted: Wanted) -> Result<(Source, Dump), WatchError> {
    if means != Means::ProcOnly {
        match DumpSocket::open().and_then(|mut socket| Ok((socket.dump(wanted, &mut || {})?, socket))) {
            Ok((dump, socket)) => return Ok((Source::Diag(socket), dump)),
            Err(e) => tracing::warn!(error = %e, "netlink sock_diag does not work; reading /proc/net instead"),
        }
    }
    let source = ProcNet::new(Path::new("/proc/thread-self/net"));
    let dump = source.dump(wanted.tcp, wanted.udp, wanted.limit).map_err(WatchError::Blind)?;
    Ok((Source::Proc(source), dump))
}

impl Source {
    fn dump(&mut self, wanted: Wanted, between: &mut dyn FnMut()) -> std::io::Result<Dump> {
        match self {
            Self::Diag(socket) => socket.dump(wanted, between),
            Self::Proc(proc) => proc.dump(wanted.tcp, wanted.udp, wanted.limit),
        }
    }

    fn method(&self) -> NetworkMethod {
        match self {
            Self::Diag(_) => NetworkMethod::SockDiag,
            Self::Proc(_) => NetworkMethod::ProcPoll,
        }
    }
}

/// The ports the kernel gives to sockets that did not ask for one, for both IPv4 and IPv6 (ip-sysctl).
fn ephemeral_ports() -> RangeInclusive<u16> {
    let mut text = String::new();
    let file = std::fs::File::open("/proc/sys/net/ipv4/ip_local_port_range");
    let read = file.and_then(|file| file.take(64).read_to_string(&mut text));
    let mut numbers = text.split_ascii_whitespace().map_while(|word| word.parse::<u16>().ok());
    match (read, numbers.next(), numbers.next()) {
        (Ok(_), Some(first), Some(last)) => first..=last,
        _ => EPHEMERAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::NetworkMonitorSettings;

    #[test]
    fn notices_that_failed_are_opened_again_at_the_next_look_and_dumps_show_remains_until_then() {
        let settings = NetworkMonitorSettings { enabled: true, ..NetworkMonitorSettings::default() };
        let shared = Arc::new(Shared::new(SightLevel::Off));
        let mut watch = Watch::begin(&settings.into(), Arc::new(|_| {}), shared).unwrap();
        if watch.notices.is_none() {
            return;
        }
        // More than the kernel takes: it cannot be opened.
        let capacity = watch.notice_buffer.replace(usize::MAX);
        watch.notices = None;
        watch.look();
        assert!(watch.notices.is_none() && watch.wanted.remains);
        watch.notice_buffer = capacity;
        watch.look();
        assert!(watch.notices.is_some() && !watch.wanted.remains);
    }
}
