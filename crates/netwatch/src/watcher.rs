//! The watcher: what it is started with, what it tells of itself, and the event it makes of a change.

#[cfg(target_os = "linux")]
use crate::linux::Running;
use crate::settings::NetworkMonitorSettings;
use crate::table::Change;
use picket_protocol::event::{Direction, NetworkEvent, Sink};
use picket_protocol::{Sight, SightLevel};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// How many connections are kept in mind: the most that one address has ports for, four times over, in some 25 MB.
const LIMIT: usize = 262_144;
/// The kernel's queue of notices in bytes: some thousands of them, or a tenth of a second of a busy server's.
const NOTICE_BUFFER: usize = 8 << 20;

/// What a watcher is started with.
#[derive(Debug, Clone)]
pub struct WatchOptions {
    /// What the operator says.
    pub settings: NetworkMonitorSettings,
    /// By which means.
    pub means: Means,
    /// The size in bytes that the kernel's queue of notices should have. The kernel doubles it for its own bookkeeping.
    pub notice_buffer: usize,
    /// How many connections are kept in mind.
    pub limit: usize,
}

impl From<NetworkMonitorSettings> for WatchOptions {
    fn from(settings: NetworkMonitorSettings) -> Self {
        Self { settings, means: Means::Best, notice_buffer: NOTICE_BUFFER, limit: LIMIT }
    }
}

/// By which means connections are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// The best that work here.
    Best,
    /// Dumps of netlink `sock_diag`, no notices.
    DumpsOnly,
    /// `/proc/net` alone.
    ProcOnly,
}

/// Why connections are not watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// Neither netlink nor `/proc/net` can be read.
    #[error(
        "connections cannot be watched: neither netlink sock_diag nor /proc/net can be read; mount /proc, or allow AF_NETLINK"
    )]
    Blind(#[source] std::io::Error),
    /// The kernel gave no descriptor.
    #[error("connections cannot be watched: the kernel gives no event descriptor; raise the limit of open files")]
    Descriptors(#[source] std::io::Error),
    /// No thread could be started.
    #[error("connections cannot be watched: no thread can be started; raise the limit of processes")]
    Thread(#[source] std::io::Error),
    /// Not built for this platform.
    #[error("connections cannot be watched on this platform; set network_monitor.enabled to false")]
    Unsupported,
}

/// What a watcher did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections reported as opened.
    pub opened: u64,
    /// Connections reported as closed.
    pub closed: u64,
    /// Notices of destroyed sockets, of any kind.
    pub notices: u64,
    /// How often notices were lost.
    pub overflows: u64,
    /// Looks at all sockets.
    pub dumps: u64,
    /// Looks that failed.
    pub failures: u64,
    /// How long the last look took, in microseconds.
    pub dump_micros: u64,
    /// Connections kept in mind.
    pub tracked: u64,
    /// How often a connection was not kept in mind because there were too many.
    pub untracked: u64,
}

/// What the thread and its owner share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) opened: AtomicU64,
    pub(crate) closed: AtomicU64,
    pub(crate) notices: AtomicU64,
    pub(crate) overflows: AtomicU64,
    pub(crate) dumps: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) dump_micros: AtomicU64,
    pub(crate) tracked: AtomicU64,
    pub(crate) untracked: AtomicU64,
    sight: Mutex<Sight>,
}

impl Shared {
    pub(crate) fn new(level: SightLevel) -> Self {
        let sight = Sight { source: "network".to_owned(), level, method: String::new(), detail: String::new() };
        Self {
            opened: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            notices: AtomicU64::new(0),
            overflows: AtomicU64::new(0),
            dumps: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            dump_micros: AtomicU64::new(0),
            tracked: AtomicU64::new(0),
            untracked: AtomicU64::new(0),
            sight: Mutex::new(sight),
        }
    }

    pub(crate) fn set_sight(&self, sight: Sight) {
        *self.sight.lock().unwrap_or_else(PoisonError::into_inner) = sight;
    }
}

/// Watches which connections come and go, in a thread of its own.
///
/// What is there at the start is the baseline: it is not reported until it closes.
pub struct NetWatcher {
    shared: Arc<Shared>,
    #[cfg(target_os = "linux")]
    running: Option<Running>,
}

impl NetWatcher {
    /// Takes the baseline and starts watching; with `enabled: false` nothing is started and the sight is off.
    ///
    /// # Errors
    /// Nothing works here: [`WatchError`]. Less than the best is no error but told by [`NetWatcher::sight`].
    pub fn start(options: &WatchOptions, sink: Sink) -> Result<Self, WatchError> {
        let shared = Arc::new(Shared::new(SightLevel::Off));
        #[cfg(target_os = "linux")]
        {
            let running =
                if options.settings.enabled { Some(Running::start(options, sink, Arc::clone(&shared))?) } else { None };
            Ok(Self { shared, running })
        }
        #[cfg(not(target_os = "linux"))]
        {
            drop(sink);
            if options.settings.enabled { Err(WatchError::Unsupported) } else { Ok(Self { shared }) }
        }
    }

    /// How much is seen, and by which means.
    pub fn sight(&self) -> Sight {
        self.shared.sight.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        let shared = &self.shared;
        Counters {
            opened: shared.opened.load(Relaxed),
            closed: shared.closed.load(Relaxed),
            notices: shared.notices.load(Relaxed),
            overflows: shared.overflows.load(Relaxed),
            dumps: shared.dumps.load(Relaxed),
            failures: shared.failures.load(Relaxed),
            dump_micros: shared.dump_micros.load(Relaxed),
            tracked: shared.tracked.load(Relaxed),
            untracked: shared.untracked.load(Relaxed),
        }
    }

    /// Ends the thread and waits for it. No event comes afterwards.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        #[cfg(target_os = "linux")]
        if let Some(running) = self.running.take() {
            running.stop();
        }
    }
}

impl Drop for NetWatcher {
    fn drop(&mut self) {
        self.end();
    }
}

/// The event that a change is reported as. `src_*` is who began it; this machine where that is not known.
pub(crate) fn event(change: &Change, timestamp: jiff::Timestamp) -> NetworkEvent {
    let local = (change.ends.local_ip, change.ends.local_port);
    let remote = (change.ends.remote_ip, change.ends.remote_port);
    let (src, dst) = match change.direction {
        Direction::Inbound => (remote, local),
        Direction::Outbound | Direction::Unknown => (local, remote),
    };
    NetworkEvent {
        timestamp,
        action: change.action,
        direction: change.direction,
        protocol: change.ends.protocol,
        src_ip: src.0,
        src_port: src.1,
        dst_ip: dst.0,
        dst_port: dst.1,
        remote_name: None,
        actor: change.actor.as_deref().cloned(),
        uid: change.uid,
        bytes_sent: change.traffic.map(|traffic| traffic.sent),
        bytes_received: change.traffic.map(|traffic| traffic.received),
        method: change.method,
        confidence: change.confidence,
        fold: None,
    }
}
