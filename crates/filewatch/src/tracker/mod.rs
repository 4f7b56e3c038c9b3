//! The thread that knows the baseline: it applies what the kernel says, looks again, compares, and tells.
//!
//! What the kernel says is applied in its order to the baseline, and each event told is a step of the baseline; so
//! whoever applies the events to the first listing has the listing of now. Every name that the kernel spoke of is looked
//! at once more when it came to rest, and what is then found different is told as inferred. So a merged, reordered or
//! doubled notice costs a detail, never the truth.

mod apply;
mod compare;
mod pending;
mod scan;
mod sick;
mod tell;

use crate::baseline::{Baseline, BaselineError, Found, Id, TOP};
use crate::counters::{Counts, Status};
use crate::emit::Emitter;
use crate::filter::Filter;
use crate::folders::{Folders, OpenError};
use crate::mounts::Mounts;
use crate::notice::Notice;
use crate::reader::{Batch, Queues};
use crate::settings::FileMonitorSettings;
use crate::stat::Stat;
use crate::watches::Watches;
use jiff::Timestamp;
use pending::{Key, Pending, Seen, Why};
use picket_protocol::event::{Confidence, FileMethod, GapReason};
use rustix::io::Errno;
use scan::Scan;
use sick::Sick;
use std::collections::{HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

type Result<T, E = rusqlite::Error> = std::result::Result<T, E>;

/// How many notices are applied before anything else has its turn.
const TURN: usize = 256;
/// How many names may wait to be looked at again; beyond, the first of them are looked at early.
const PENDING_MAX: usize = 1 << 16;
/// For how long names that are due may wait while notices keep coming: what a notice says is better than a look.
const OVERDUE: Duration = Duration::from_secs(2);
/// The shortest wait for notices.
const HURRY: Duration = Duration::from_millis(2);
/// For how long folders are held open once there is nothing to do.
const HOLD: Duration = Duration::from_millis(100);
/// How often the configured paths are looked for.
const TICK: Duration = Duration::from_secs(2);
/// How long a change of the baseline waits for others before they are committed.
const COMMIT: Duration = Duration::from_millis(250);
/// How soon after an overflow the comparison begins, doubled while the queue keeps running over, and the most.
const RESCAN_AFTER: Duration = Duration::from_millis(500);
const RESCAN_AFTER_MOST: Duration = Duration::from_secs(60);
/// What the tracker is made of.
pub(crate) struct Parts {
    pub(crate) settings: FileMonitorSettings,
    pub(crate) state_dir: PathBuf,
    pub(crate) filter: Filter,
    pub(crate) queues: Arc<Queues>,
    pub(crate) emitter: Emitter,
    pub(crate) counts: Arc<Counts>,
    pub(crate) status: Arc<Status>,
    pub(crate) batches: Receiver<Batch>,
}

pub(crate) struct Tracker {
    parts: Parts,
    roots: Vec<Vec<u8>>,
    baseline: Baseline,
    folders: Folders,
    watches: Watches,
    pending: Pending,
    scan: Scan,
    buffer: VecDeque<Notice>,
    /// Configured paths whose first look is not done.
    incomplete: HashSet<Id>,
    unwatched: HashSet<Id>,
    unreadable: HashSet<Id>,
    /// When this began, in nanoseconds since 1970 by [`file_clock`]: what is younger was made while we watched.
    started: i64,
    last_notice: Timestamp,
    next_tick: Instant,
    next_unwatched: Instant,
    rescan_at: Option<Instant>,
    rescan_after: Duration,
    mounts: Mounts,
    last_commit: Instant,
    closing: bool,
    sick: Option<Sick>,
    /// When the baseline could be used again last, and after what pause.
    healed: Option<(Instant, Duration)>,
}

impl Tracker {
    /// Opens the baseline.
    pub(crate) fn new(parts: Parts) -> Result<Self, BaselineError> {
        let (baseline, found) = Baseline::open(&parts.state_dir)?;
        let now = Instant::now();
        let settings = &parts.settings;
        let tracker = Self {
            roots: roots(settings),
            folders: Folders::default(),
            watches: Watches::new(
                Arc::clone(&parts.queues.inotify),
                parts.queues.fanotify.clone(),
                settings.max_watches,
            ),
            pending: Pending::new(settings.debounce.get(), settings.write_pause.get()),
            scan: Scan::default(),
            buffer: VecDeque::new(),
            incomplete: HashSet::new(),
            unwatched: HashSet::new(),
            unreadable: HashSet::new(),
            started: file_clock(),
            last_notice: Timestamp::now(),
            next_tick: now + TICK,
            next_unwatched: now + settings.rescan_interval.get(),
            rescan_at: None,
            rescan_after: RESCAN_AFTER,
            mounts: Mounts::new(&roots(settings)),
            last_commit: now,
            closing: false,
            sick: None,
            healed: None,
            baseline,
            parts,
        };
        tracker.tell_found(found);
        let failed = |source: rusqlite::Error| BaselineError {
            operation: "read",
            path: tracker.parts.state_dir.clone(),
            source: source.into(),
        };
        if tracker.knew_before().map_err(failed)? {
            tracker.tell_gap(
                GapReason::Unwatched,
                None,
                None,
                "nobody watched: what is different since the last watcher is told, and what came and went is not known",
            );
        }
        Ok(tracker)
    }

    /// Whether a watcher before this one looked through a path that is watched now.
    fn knew_before(&self) -> Result<bool> {
        for root in &self.roots {
            if let Some(node) = self.baseline.child(TOP, root)?
                && self.baseline.is_complete(node.id)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Says so when what was known is lost.
    fn tell_found(&self, found: Found) {
        if found == Found::Damaged {
            self.tell_gap(
                GapReason::Corruption,
                None,
                None,
                "the baseline of watched files was damaged and is made anew: what changed before now is not known",
            );
        }
    }

    /// Works until the reader is gone and all it read is applied.
    pub(crate) fn run(mut self) {
        if let Err(error) = self.begin() {
            self.fall_sick(&error);
        }
        loop {
            self.take_batches();
            if self.sick.is_some() {
                self.be_sick();
                if self.closing {
                    break;
                }
                continue;
            }
            match self.turn() {
                Ok(true) => {}
                Ok(false) if self.closing => break,
                Ok(false) => self.wait(),
                Err(error) => self.fall_sick(&error),
            }
        }
        if let Some(sick) = self.sick.take() {
            self.tell_gap(sick.reason, Some(sick.dropped), Some(sick.since), "the baseline of watched files failed");
        } else if let Err(error) = self.finish() {
            self.fall_sick(&error);
        }
    }

    /// Takes what the reader has ready, without waiting.
    fn take_batches(&mut self) {
        while self.buffer.len() < TURN {
            match self.parts.batches.try_recv() {
                Ok(batch) => self.buffer.extend(batch),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    self.closing = true;
                    break;
                }
            }
        }
    }

    /// Waits for notices, at most until something is due or for `limit`.
    fn wait_until(&mut self, due: Instant) {
        self.parts.emitter.flush();
        let time = due.saturating_duration_since(Instant::now());
        match self.parts.batches.recv_timeout(time) {
            Ok(batch) => self.buffer.extend(batch),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => self.closing = true,
        }
    }

    fn wait(&mut self) {
        let dues =
            [Some(self.next_tick), self.pending.next_due(), self.rescan_at, self.scan.next_late(), self.commit_due()];
        if let Some(due) = dues.into_iter().flatten().min() {
            // What is due already waits for what the reader has in hand.
            let due = due.max(Instant::now() + HURRY);
            // An open folder keeps its file system from being unmounted: with nothing to do we hold none.
            let let_go = self.folders.holds_any().then(|| Instant::now() + HOLD);
            self.wait_until(let_go.map_or(due, |at| at.min(due)));
            if self.buffer.is_empty() && let_go.is_some_and(|at| at <= Instant::now()) {
                self.folders.forget();
            }
        }
    }

    /// One round of everything; whether anything was done.
    fn turn(&mut self) -> Result<bool> {
        let mut worked = false;
        for _ in 0..TURN {
            let Some(notice) = self.buffer.pop_front() else { break };
            self.apply(&notice)?;
            worked = true;
        }
        let now = Instant::now();
        let due = self.pending.next_due().filter(|due| *due <= now);
        let overdue = due.is_some_and(|due| due + OVERDUE <= now);
        if overdue || self.pending.len() > PENDING_MAX || (!worked && due.is_some() && self.heard_all()) {
            for _ in 0..TURN {
                let force = self.pending.len() > PENDING_MAX;
                let Some((key, entry)) = self.pending.next(now, force) else { break };
                self.verify(&key, &entry)?;
                worked = true;
            }
        }
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.tick(now)?;
        }
        if self.rescan_at.is_some_and(|at| at <= now) && self.scan.is_idle() {
            self.rescan_at = None;
            self.rescan_all()?;
        }
        if !self.closing {
            worked |= self.scan_some()?;
        }
        if self.commit_due().is_some_and(|due| due <= now) {
            self.commit()?;
        }
        Ok(worked)
    }

    fn commit_due(&self) -> Option<Instant> {
        self.baseline.is_dirty().then(|| self.last_commit + COMMIT)
    }

    /// Whether all that the kernel said was applied: what a look finds is then no news that is still on its way.
    fn heard_all(&mut self) -> bool {
        let read = self.parts.queues.are_read();
        self.take_batches();
        read && self.buffer.is_empty()
    }

    /// Commits what is told, and only that: what a crash takes from the queue is found again as a difference.
    fn commit(&mut self) -> Result<()> {
        self.parts.emitter.wait_until_told();
        self.baseline.commit()?;
        self.last_commit = Instant::now();
        Ok(())
    }

    /// Looks at all names that still wait, and commits.
    fn finish(&mut self) -> Result<()> {
        let now = Instant::now();
        while let Some((key, entry)) = self.pending.next(now, true) {
            self.verify(&key, &entry)?;
        }
        self.scan.missing.clear();
        self.commit()
    }

    /// What is done every other second: paths that came or went, numbers, folders without a watch.
    fn tick(&mut self, now: Instant) -> Result<()> {
        self.folders.forget();
        if self.mounts.changed(&self.roots, now) {
            tracing::info!("something was mounted or unmounted at a watched path; all are looked through");
            self.watches.remounted();
            self.rescan_at = self.rescan_at.or(Some(now));
        }
        let mut missing = Vec::new();
        for root in self.roots.clone() {
            let node = self.baseline.child(TOP, &root)?;
            let look = self.look(TOP, &root)?;
            if look == Look::Gone {
                missing.push(String::from_utf8_lossy(&root).into_owned());
            }
            let same = match (&node, &look) {
                (Some(node), Look::There(stat)) => {
                    // A single file has no folder that tells of it.
                    node.stat.same_file(stat)
                        && (stat.is_directory() || node.stat.same_content(stat))
                        && (self.watches.covers(node.id)
                            || self.unwatched.contains(&node.id)
                            || self.unreadable.contains(&node.id))
                }
                (None, Look::Gone) | (_, Look::Unknown) => true,
                _ => false,
            };
            if !same {
                self.folders.forget();
                let key: Key = (TOP, root.into());
                self.verify_now(&key)?;
            }
        }
        if !self.unwatched.is_empty() && now >= self.next_unwatched {
            self.next_unwatched = now + self.parts.settings.rescan_interval.get();
            for id in self.unwatched.clone() {
                self.scan.push(id);
            }
        }
        if self.rescan_after > RESCAN_AFTER && self.rescan_at.is_none() && self.scan.is_idle() {
            self.rescan_after = (self.rescan_after / 2).max(RESCAN_AFTER);
        }
        self.publish(missing);
        Ok(())
    }

    /// Writes down how much is seen.
    fn publish(&self, missing: Vec<String>) {
        let counts = &self.parts.counts;
        counts.watched_dirs.set(self.watches.len() as u64);
        counts.unwatched_dirs.set(self.unwatched.len() as u64);
        counts.unreadable_dirs.set(self.unreadable.len() as u64);
        let method = match self.watches.methods() {
            (true, true) => "fanotify+inotify",
            (false, true) => "fanotify",
            (false, false) if self.parts.queues.fanotify.is_some() => "fanotify",
            (_, false) => "inotify",
        };
        let refused = self.watches.refused_marks();
        self.parts.status.change(|facts| {
            method.clone_into(&mut facts.method);
            facts.missing = missing;
            facts.paths = self.roots.len();
            facts.looking = !self.incomplete.is_empty();
            facts.sick = None;
            facts.turned = Some(Instant::now());
            facts.uncovered = (refused > 0).then(|| {
                format!("{refused} file systems take no fanotify mark and are watched by inotify: who did it is not known there")
            });
        });
    }

    /// What is there under a name now.
    fn look(&mut self, parent: Id, name: &[u8]) -> Result<Look> {
        if parent == TOP {
            let flags = rustix::fs::StatxFlags::BASIC_STATS | rustix::fs::StatxFlags::BTIME;
            let stat = rustix::fs::statx(rustix::fs::CWD, name, rustix::fs::AtFlags::empty(), flags);
            return Ok(Look::from(stat.map(|stat| Stat::from(&stat))));
        }
        match self.folders.open(&self.baseline, parent) {
            Ok(folder) => Ok(Look::from(Stat::of(&folder, name))),
            Err(OpenError::Io(errno)) => Ok(Look::from(Err(errno))),
            Err(OpenError::Baseline(error)) => Err(error),
        }
    }

    fn note(&mut self, parent: Id, name: &[u8], why: Why, seen: &Seen) {
        self.pending.note(&(parent, name.into()), why, seen, Instant::now());
    }
}

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Look {
    There(Stat),
    Gone,
    /// The system did not say: no right to look, an error of the disk.
    Unknown,
}

impl From<rustix::io::Result<Stat>> for Look {
    fn from(result: rustix::io::Result<Stat>) -> Self {
        match result {
            Ok(stat) => Self::There(stat),
            // A folder on the way was replaced by something else: the name is gone as well.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Self::Gone,
            Err(_) => Self::Unknown,
        }
    }
}

/// A difference that was found now.
fn inferred() -> Seen {
    Seen { at: Timestamp::now(), method: FileMethod::Rescan, confidence: Confidence::Inferred, actor: None }
}

/// The time by the clock that stamps files: it moves in steps, and never is ahead of a file that is made later.
fn file_clock() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}

/// The configured paths, each once; one that lies in another is seen with it, when folders are entered.
fn roots(settings: &FileMonitorSettings) -> Vec<Vec<u8>> {
    use std::os::unix::ffi::OsStrExt;
    let mut paths: Vec<_> = settings.paths.iter().map(crate::settings::WatchPath::as_path).collect();
    paths.sort_unstable();
    paths.dedup();
    let all = paths.clone();
    paths.retain(|path| !settings.recursive || !all.iter().any(|other| path != other && path.starts_with(other)));
    paths.into_iter().map(|path| path.as_os_str().as_bytes().to_vec()).collect()
}
