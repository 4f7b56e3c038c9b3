//! Processes: how many in which state, and which use most.
//!
//! `/proc/[pid]/stat` of each is read into one buffer on the stack; kept between two samples are sixteen bytes a
//! process. Command lines, environments and working folders are not read at all: they hold secrets, and what is not
//! read cannot leak. A process is named as the kernel names it, with at most 15 characters.
//!
//! Under `ProtectProc=invisible` or `hidepid` (proc(5)) the kernel shows only our own user's processes. The sample says
//! so ([`ProcessSample::sees_all`]), and its counts are not exported as the machine's.

use super::accounts::Accounts;
use super::stat::{self, Stat};
use super::text::{lines, number, numbers};
use picket_durable::{Context as _, Error};
use rustix::fs::{Mode, OFlags, RawDir, SeekFrom};
use serde::{Deserialize, Serialize};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

/// The most processes that are read in one sample; Linux allows four million.
pub const MAX_PROCESSES: usize = 65_536;
/// The most processes a list of the busiest may have.
pub const MAX_TOP: u32 = 50;
/// Room for a line of `/proc/[pid]/stat`: 52 columns of at most 21 bytes.
const STAT_BYTES: usize = 1_200;
/// `Uid:` stands within the first lines of `/proc/[pid]/status`.
const STATUS_BYTES: usize = 1_024;

/// Processes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessSample {
    /// How many there are.
    pub total: u64,
    /// The threads of all of them.
    pub threads: u64,
    /// How many are in which state.
    pub states: ProcessStates,
    /// Those that used most processor time since the sample before, the busiest first.
    pub top_cpu: Vec<ProcessUse>,
    /// Those that hold most memory, the largest first.
    pub top_memory: Vec<ProcessUse>,
    /// Whether the kernel shows us the processes of other users.
    pub sees_all: bool,
    /// Whether there are more than [`MAX_PROCESSES`], and the rest was not read.
    pub truncated: bool,
}

/// How many processes are in which state (proc(5)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStates {
    /// Running or ready to (`R`).
    pub running: u64,
    /// Waiting for something (`S`).
    pub sleeping: u64,
    /// Waiting for a disk, mostly, and not to be woken by signals (`D`).
    pub uninterruptible: u64,
    /// Ended, but not asked for its result by its parent (`Z`).
    pub zombie: u64,
    /// Stopped by a signal or a debugger (`T`, `t`).
    pub stopped: u64,
    /// Threads of the kernel that have nothing to do (`I`).
    pub idle: u64,
    /// Any other.
    pub other: u64,
}

impl ProcessStates {
    /// The counts under the names that metrics give them.
    pub fn each(&self) -> [(&'static str, u64); 7] {
        [
            ("running", self.running),
            ("sleeping", self.sleeping),
            ("uninterruptible", self.uninterruptible),
            ("zombie", self.zombie),
            ("stopped", self.stopped),
            ("idle", self.idle),
            ("other", self.other),
        ]
    }

    fn count(&mut self, state: u8) {
        let counter = match state {
            b'R' => &mut self.running,
            b'S' => &mut self.sleeping,
            b'D' => &mut self.uninterruptible,
            b'Z' => &mut self.zombie,
            b'T' | b't' => &mut self.stopped,
            b'I' => &mut self.idle,
            _ => &mut self.other,
        };
        *counter += 1;
    }
}

/// What one process uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessUse {
    /// Its number.
    pub pid: u32,
    /// Its name, at most 15 characters; never its command line.
    pub name: String,
    /// Whose it is: a name, or a number where `/etc/passwd` has none.
    pub user: String,
    /// Processor time since the sample before, percent of one core; 0 in the sample it is first seen in.
    pub cpu_percent: f64,
    /// Memory in bytes, pages it shares with others included.
    pub memory_bytes: u64,
}

/// What is remembered of a process: number, start and ticks used.
type Seen = (u32, u32, u64);

/// A process that may be among the busiest or the largest.
#[derive(Debug, Clone)]
struct Candidate {
    pid: u32,
    name: String,
    ticks: u64,
    pages: u64,
}

/// Measures processes.
#[derive(Debug)]
pub(super) struct ProcessCollector {
    proc: Option<OwnedFd>,
    accounts: Accounts,
    before: Vec<Seen>,
    now: Vec<Seen>,
    before_at: Option<Instant>,
    top: usize,
}

impl ProcessCollector {
    /// A collector that lists the `top` busiest; its first sample knows no processor time yet.
    pub(super) fn new(top: u32) -> Self {
        let accounts = Accounts::new("/etc/passwd");
        Self { proc: None, accounts, before: Vec::new(), now: Vec::new(), before_at: None, top: clamp_top(top) }
    }

    pub(super) fn want(&mut self, top: u32) {
        self.top = clamp_top(top);
    }

    pub(super) fn sample(&mut self, at: Instant) -> Result<ProcessSample, Error> {
        let path = Path::new("/proc");
        let proc = match self.proc.take() {
            Some(proc) => proc,
            None => open_dir(path).map_err(std::io::Error::from).doing("open", path)?,
        };
        let sample = self.walk(proc.as_fd(), at).map_err(std::io::Error::from).doing("read", path)?;
        self.proc = Some(proc);
        Ok(sample)
    }

    fn walk(&mut self, proc: BorrowedFd<'_>, at: Instant) -> rustix::io::Result<ProcessSample> {
        let mut sample = ProcessSample::default();
        let mut busiest = Top::new(self.top);
        let mut largest = Top::new(self.top);
        self.now.clear();
        rustix::fs::seek(proc, SeekFrom::Start(0))?;
        let mut entries = [MaybeUninit::<u8>::uninit(); 8 << 10];
        let mut dir = RawDir::new(proc, &mut entries);
        while let Some(entry) = dir.next() {
            let entry = entry?;
            let pid = number(entry.file_name().to_bytes()).and_then(|pid| u32::try_from(pid).ok());
            let Some(pid) = pid else { continue };
            sample.sees_all |= pid == 1;
            if self.now.len() >= MAX_PROCESSES {
                sample.truncated = true;
                break;
            }
            let mut buffer = [0; STAT_BYTES];
            // A process that ended meanwhile is none.
            let Some(stat) = read_front(proc, pid, "stat", &mut buffer).and_then(stat::parse) else { continue };
            sample.total += 1;
            sample.threads = sample.threads.saturating_add(stat.threads);
            sample.states.count(stat.state);
            let start = low_bits(stat.started);
            let used = self.ticks_before(pid, start).map_or(0, |before| stat.ticks.saturating_sub(before));
            self.now.push((pid, start, stat.ticks));
            let candidate =
                |stat: &Stat<'_>| Candidate { pid, name: stat.name(), ticks: used, pages: stat.resident_pages };
            busiest.offer(used, || candidate(&stat));
            largest.offer(stat.resident_pages, || candidate(&stat));
        }
        // The kernel lists them by number; nothing says that it always will.
        self.now.sort_unstable();
        std::mem::swap(&mut self.before, &mut self.now);
        let seconds = self.before_at.map_or(0.0, |before| at.saturating_duration_since(before).as_secs_f64());
        self.before_at = Some(at);
        sample.top_cpu = self.describe(proc, busiest, seconds);
        sample.top_memory = self.describe(proc, largest, seconds);
        Ok(sample)
    }

    fn ticks_before(&self, pid: u32, start: u32) -> Option<u64> {
        let found = self.before.binary_search_by(|(known, _, _)| known.cmp(&pid)).ok()?;
        let (_, known_start, ticks) = self.before[found];
        (known_start == start).then_some(ticks)
    }

    fn describe(&mut self, proc: BorrowedFd<'_>, top: Top, seconds: f64) -> Vec<ProcessUse> {
        let ticks_per_second = procfs::ticks_per_second().max(1) as f64;
        let page = procfs::page_size();
        let mut uses = Vec::with_capacity(top.entries.len());
        for (_, candidate) in top.entries {
            let mut buffer = [0; STATUS_BYTES];
            let uid = read_front(proc, candidate.pid, "status", &mut buffer).and_then(real_uid);
            let spent = candidate.ticks as f64 / ticks_per_second;
            uses.push(ProcessUse {
                pid: candidate.pid,
                name: candidate.name,
                user: uid.map_or_else(|| "unknown".to_owned(), |uid| self.accounts.name(uid)),
                cpu_percent: if seconds > 0.0 { spent * 100.0 / seconds } else { 0.0 },
                memory_bytes: candidate.pages.saturating_mul(page),
            });
        }
        uses
    }
}

/// The first few by some measure, the greatest first; what measures nothing is not among them.
struct Top {
    limit: usize,
    entries: Vec<(u64, Candidate)>,
}

impl Top {
    fn new(limit: usize) -> Self {
        Self { limit, entries: Vec::with_capacity(limit + 1) }
    }

    fn offer(&mut self, measure: u64, candidate: impl FnOnce() -> Candidate) {
        let full = self.entries.len() >= self.limit;
        if measure == 0 || self.limit == 0 || (full && self.entries.last().is_some_and(|(least, _)| *least >= measure))
        {
            return;
        }
        let place = self.entries.partition_point(|(known, _)| *known >= measure);
        self.entries.insert(place, (measure, candidate()));
        self.entries.truncate(self.limit);
    }
}

fn clamp_top(top: u32) -> usize {
    usize::try_from(top.min(MAX_TOP)).unwrap_or(0)
}

/// The low half of a start time: it only tells apart two processes that had one number.
fn low_bits(started: u64) -> u32 {
    u32::try_from(started & u64::from(u32::MAX)).unwrap_or(0)
}

fn open_dir(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// What one read gives of `/proc/[pid]/[file]`; `None` when it is gone or not ours to read.
fn read_front<'b>(proc: BorrowedFd<'_>, pid: u32, file: &str, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
    let path = format!("{pid}/{file}");
    let file = rustix::fs::openat(proc, path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let length = rustix::io::read(file, &mut *buffer).ok()?;
    buffer.get(..length)
}

/// `Uid: 1000 1000 1000 1000`, between tabs: real, effective, saved, of the file system.
fn real_uid(status: &[u8]) -> Option<u32> {
    let line = lines(status).find_map(|line| line.strip_prefix(b"Uid:"))?;
    u32::try_from(numbers(line).next()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_busiest_come_first_and_those_that_did_nothing_not_at_all() {
        let mut top = Top::new(3);
        for (pid, measure) in [(1, 5), (2, 0), (3, 9), (4, 7), (5, 6), (6, 9)] {
            top.offer(measure, || Candidate { pid, name: String::new(), ticks: measure, pages: 0 });
        }
        let pids: Vec<u32> = top.entries.iter().map(|(_, candidate)| candidate.pid).collect();
        assert_eq!(pids, [3, 6, 4]);
    }

    #[test]
    fn this_process_is_seen_at_work_and_its_command_line_is_not_told() {
        let mut collector = ProcessCollector::new(MAX_TOP);
        let start = Instant::now();
        assert!(collector.sample(start).unwrap().top_cpu.is_empty());
        let mut spins = 0_u64;
        while start.elapsed().as_millis() < 150 {
            spins = std::hint::black_box(spins + 1);
        }
        let sample = collector.sample(Instant::now()).unwrap();
        let own = sample.top_cpu.iter().find(|process| process.pid == std::process::id());
        let own = own.unwrap_or_else(|| panic!("{sample:?}"));
        assert!(own.cpu_percent > 10.0 && own.memory_bytes > 0 && own.name.len() <= 15, "{own:?}");
        assert!(sample.total > 0 && sample.threads >= sample.total);
        assert_eq!(sample.states.each().iter().map(|(_, count)| count).sum::<u64>(), sample.total);
    }

    #[test]
    fn a_new_process_of_an_old_number_does_not_inherit_its_time() {
        let mut collector = ProcessCollector::new(1);
        collector.before = vec![(7, 100, 5_000), (9, 100, 6_000)];
        assert_eq!(collector.ticks_before(9, 100), Some(6_000));
        assert_eq!(collector.ticks_before(9, 101), None);
        assert_eq!(collector.ticks_before(8, 100), None);
    }

    proptest! {
        #[test]
        fn any_status_is_read_without_a_panic(noise in any::<Vec<u8>>()) {
            real_uid(&noise);
        }
    }
}
