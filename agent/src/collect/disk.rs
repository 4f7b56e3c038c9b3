//! Disks: the space and inodes of each file system, and what each device does.
//!
//! Measuring space is a question to the file system (`statvfs`), and one that may never be answered. Local file systems
//! are asked on this collector's own thread. Each remote one is asked on a thread of its own, given [`PATIENCE`], and
//! not asked again until that thread has come back: a dead server costs one waiting thread, and everything else is
//! measured as before.

use super::devices::{DeviceCollector, DeviceSample};
use super::mounts::{Kind, Mount, Wanted, select};
use super::text::{KeptFile, percent, printable};
use picket_durable::Error;
use picket_telemetry::Finding;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// At how many percent of a disk in use the check warns (operations guide, "Health Check Criteria").
const DISK_WARN_PERCENT: f64 = 90.0;
/// The mount table of a host of many containers has a few thousand lines of 200 bytes.
const TABLE_LIMIT: usize = 1 << 20;
/// How long a remote file system may take to answer before the others go on without it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Space and activity.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DiskSample {
    /// Each file system that holds data of this machine, and remote or virtual ones where they are wanted.
    pub file_systems: Vec<FileSystem>,
    /// Each disk.
    pub devices: Vec<DeviceSample>,
    /// Where file systems are mounted that did not answer in time.
    pub unanswered: Vec<String>,
}

/// One file system.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileSystem {
    /// Where it is mounted.
    pub mount: String,
    /// What is mounted there: a device, or a server's folder.
    pub source: String,
    /// Its type: `ext4`.
    pub fs_type: String,
    /// Whether nothing can be written to it.
    pub read_only: bool,
    /// Its size in bytes.
    pub total_bytes: u64,
    /// What unprivileged writers can still use.
    pub available_bytes: u64,
    /// The rest: total less available.
    pub used_bytes: u64,
    /// Files it can hold; 0 where there is no such limit.
    pub inodes: u64,
    /// Files it holds.
    pub inodes_used: u64,
}

impl FileSystem {
    /// Space in use, percent.
    pub fn used_percent(&self) -> f64 {
        percent(self.used_bytes, self.total_bytes)
    }

    /// Inodes in use, percent; 0 where they are not limited.
    pub fn inodes_used_percent(&self) -> f64 {
        percent(self.inodes_used, self.inodes)
    }
}

impl DiskSample {
    /// The fullest writable file system, percent.
    pub fn used_percent(&self) -> f64 {
        self.fullest().map_or(0.0, FileSystem::used_percent)
    }

    fn fullest(&self) -> Option<&FileSystem> {
        // A read-only one cannot become fuller, and images are full by nature.
        let writable = self.file_systems.iter().filter(|fs| !fs.read_only);
        writable.max_by(|a, b| a.used_percent().total_cmp(&b.used_percent()))
    }

    /// The finding of the disk check: it warns, and never fails, for a full disk is nobody's bug.
    pub(crate) fn finding(&self) -> Finding {
        let Some(fs) = self.fullest() else { return Finding::pass("no writable disk is mounted") };
        let used = fs.used_percent();
        let message = format!("disk space {used:.1}% used ({})", fs.mount);
        let mut finding = if used < DISK_WARN_PERCENT { Finding::pass(message) } else { Finding::warn(message) };
        if let Some(mount) = self.unanswered.first() {
            finding = Finding::warn(format!("{}; {mount} does not answer", finding.message));
        }
        finding.figure("used_percent", (used * 10.0).round() / 10.0)
    }
}

/// Measures disks.
#[derive(Debug)]
pub(super) struct DiskCollector {
    table: KeptFile,
    devices: DeviceCollector,
    wanted: Wanted,
    patience: Duration,
    /// Remote file systems that were asked and have not answered yet.
    waiting: BTreeMap<PathBuf, mpsc::Receiver<Option<FileSystem>>>,
    ask: fn(&Mount) -> Option<FileSystem>,
}

impl DiskCollector {
    pub(super) fn new(wanted: Wanted) -> Self {
        Self {
            table: KeptFile::new("/proc/self/mountinfo", TABLE_LIMIT),
            devices: DeviceCollector::new(),
            wanted,
            patience: PATIENCE,
            waiting: BTreeMap::new(),
            ask,
        }
    }

    pub(super) fn want(&mut self, wanted: Wanted) {
        self.wanted = wanted;
    }

    pub(super) fn sample(&mut self, now: Instant) -> Result<DiskSample, Error> {
        let mounts = select(self.table.read()?, self.wanted);
        let mut sample = DiskSample { devices: self.devices.sample(now)?, ..DiskSample::default() };
        let (remote, local): (Vec<Mount>, Vec<Mount>) =
            mounts.into_iter().partition(|mount| mount.kind == Kind::Remote);
        sample.file_systems.extend(local.iter().filter_map(self.ask));
        self.ask_remote(&remote, &mut sample);
        sample.file_systems.sort_by(|a, b| a.mount.cmp(&b.mount));
        // Two names that look alike once they are printable would make two series of one name, and spoil the scrape.
        sample.file_systems.dedup_by(|a, b| a.mount == b.mount);
        Ok(sample)
    }

    fn ask_remote(&mut self, remote: &[Mount], sample: &mut DiskSample) {
        // A mount that is gone lets its thread go; the receiver's end is all that is ours.
        self.waiting.retain(|point, _| remote.iter().any(|mount| mount.point == *point));
        for mount in remote {
            if !self.waiting.contains_key(&mount.point) {
                let (answer, receiver) = mpsc::sync_channel(1);
                let (ask, mount) = (self.ask, mount.clone());
                let point = mount.point.clone();
                let thread = std::thread::Builder::new().name("picket-statvfs".to_owned());
                // It ends with its answer. One that never comes ends with the process: nothing can end it sooner.
                if thread.spawn(move || answer.send(ask(&mount))).is_ok() {
                    self.waiting.insert(point, receiver);
                }
            }
        }
        let deadline = Instant::now() + self.patience;
        for mount in remote {
            let Some(receiver) = self.waiting.get(&mount.point) else { continue };
            match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(answer) => {
                    sample.file_systems.extend(answer);
                    self.waiting.remove(&mount.point);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => sample.unanswered.push(shown(mount)),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    self.waiting.remove(&mount.point);
                }
            }
        }
    }
}

/// A mount point as a label and for people.
fn shown(mount: &Mount) -> String {
    printable(mount.point.as_os_str().as_bytes(), 512)
}

/// Asks one file system for its space; `None` where it has none, or refuses.
fn ask(mount: &Mount) -> Option<FileSystem> {
    let space = rustix::fs::statvfs(Path::new(&mount.point)).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(space.f_frsize);
    let (total_bytes, available_bytes) = (bytes(space.f_blocks), bytes(space.f_bavail));
    (total_bytes > 0).then(|| FileSystem {
        mount: shown(mount),
        source: mount.source.clone(),
        fs_type: mount.fs_type.clone(),
        read_only: mount.read_only,
        total_bytes,
        available_bytes,
        used_bytes: total_bytes.saturating_sub(available_bytes),
        inodes: space.f_files,
        inodes_used: space.f_files.saturating_sub(space.f_ffree),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_protocol::CheckStatus;

    fn fs(mount: &str, used: u64, read_only: bool) -> FileSystem {
        FileSystem {
            mount: mount.to_owned(),
            source: "/dev/x".to_owned(),
            fs_type: "ext4".to_owned(),
            read_only,
            total_bytes: 1000,
            available_bytes: 1000 - used,
            used_bytes: used,
            inodes: 100,
            inodes_used: 25,
        }
    }

    #[test]
    fn a_disk_warns_from_ninety_percent_on_and_never_fails() {
        let finding = |used| {
            let file_systems = vec![fs("/", 100, false), fs("/srv", used, false), fs("/image", 1000, true)];
            DiskSample { file_systems, ..DiskSample::default() }.finding()
        };
        assert_eq!(finding(899).status, CheckStatus::Pass);
        assert_eq!(finding(900).status, CheckStatus::Warn);
        assert_eq!(finding(1000).status, CheckStatus::Warn);
        assert_eq!(finding(452).message, "disk space 45.2% used (/srv)");
    }

    #[test]
    fn this_machines_root_is_measured() {
        let sample = DiskCollector::new(Wanted::default()).sample(Instant::now()).unwrap();
        assert!(sample.file_systems.iter().any(|fs| fs.total_bytes > 0), "{sample:?}");
    }

    /// `/dead` answers when nobody listens any more, which the channel of the test decides.
    fn ask_dead_or_alive(mount: &Mount) -> Option<FileSystem> {
        if mount.point == Path::new("/dead") {
            let (_never, receiver) = mpsc::channel::<()>();
            let _ = receiver.recv_timeout(Duration::from_secs(20));
        }
        Some(fs(&mount.point.display().to_string(), 1, false))
    }

    #[test]
    fn a_dead_server_is_named_asked_once_and_holds_up_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let table = dir.path().join("mountinfo");
        let text = b"1 1 8:0 / / rw - ext4 /dev/a rw\n2 1 0:8 / /dead rw - nfs there:/a rw\n\
            3 1 0:9 / /alive rw - nfs4 here:/b rw\n";
        picket_durable::write_atomic(&table, text, 0o600).unwrap();
        let mut collector = DiskCollector::new(Wanted { remote: true, virtual_: false });
        collector.table = KeptFile::new(&table, TABLE_LIMIT);
        collector.ask = ask_dead_or_alive;
        collector.patience = Duration::from_millis(200);
        for _ in 0..3 {
            let sample = collector.sample(Instant::now()).unwrap();
            let mounts: Vec<&str> = sample.file_systems.iter().map(|fs| fs.mount.as_str()).collect();
            assert_eq!((mounts, sample.unanswered.as_slice()), (vec!["/", "/alive"], &["/dead".to_owned()][..]));
            assert_eq!(collector.waiting.len(), 1);
            assert_eq!(sample.finding().status, CheckStatus::Warn);
        }
    }
}
