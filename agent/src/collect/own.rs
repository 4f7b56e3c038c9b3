//! What the agent itself uses: processor time, memory, files, threads and the space of its state.

use super::stat;
use super::text::{KeptFile, lines, number, words};
use picket_durable::Error;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often the state folder is walked: its size changes by what is written in minutes, not in seconds.
const STATE_DIR_INTERVAL: Duration = Duration::from_secs(60);
/// The most files of the state folder that are looked at.
const STATE_DIR_FILES: usize = 20_000;

/// What this process uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct OwnUsage {
    /// Processor time since it started, in seconds.
    pub cpu_seconds: f64,
    /// Memory in bytes.
    pub rss_bytes: u64,
    /// Address space in bytes.
    pub virtual_bytes: u64,
    /// Open file descriptors.
    pub fds: u64,
    /// How many it may have open.
    pub max_fds: Option<u64>,
    /// Threads.
    pub threads: u64,
    /// Space of its state on disk, in bytes.
    pub state_dir_bytes: u64,
}

/// Measures this process.
#[derive(Debug)]
pub(super) struct OwnCollector {
    stat: KeptFile,
    max_fds: Option<u64>,
    state_dir: PathBuf,
    state_dir_bytes: Option<(Instant, u64)>,
}

impl OwnCollector {
    pub(super) fn new(state_dir: impl Into<PathBuf>) -> Self {
        // Read, not asked for: a sandbox that forbids setting limits may forbid the call that can do both.
        let limits = picket_durable::read_bounded(Path::new("/proc/self/limits"), 16 << 10).unwrap_or_default();
        Self {
            stat: KeptFile::new("/proc/self/stat", 4 << 10),
            max_fds: max_files(&limits),
            state_dir: state_dir.into(),
            state_dir_bytes: None,
        }
    }

    pub(super) fn sample(&mut self, now: Instant) -> Result<OwnUsage, Error> {
        let state_dir_bytes = match self.state_dir_bytes {
            Some((at, bytes)) if now.saturating_duration_since(at) < STATE_DIR_INTERVAL => bytes,
            _ => {
                let bytes = size_of_tree(self.state_dir.clone());
                self.state_dir_bytes = Some((now, bytes));
                bytes
            }
        };
        let stat = stat::parse(self.stat.read()?);
        Ok(OwnUsage {
            cpu_seconds: stat.as_ref().map_or(0.0, |stat| stat.ticks as f64 / procfs::ticks_per_second().max(1) as f64),
            rss_bytes: stat.as_ref().map_or(0, |stat| stat.resident_pages.saturating_mul(procfs::page_size())),
            virtual_bytes: stat.as_ref().map_or(0, |stat| stat.virtual_bytes),
            threads: stat.as_ref().map_or(0, |stat| stat.threads),
            fds: open_files(),
            max_fds: self.max_fds,
            state_dir_bytes,
        })
    }
}

/// `Max open files            1024                 1048576              files`: the first, soft limit holds.
fn max_files(limits: &[u8]) -> Option<u64> {
    let line = lines(limits).find_map(|line| line.strip_prefix(b"Max open files"))?;
    number(words(line).next()?)
}

/// Open file descriptors, the one that reads the list left out.
fn open_files() -> u64 {
    let count = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    u64::try_from(count.saturating_sub(1)).unwrap_or(0)
}

/// The space of every file below `dir` on disk, links not followed.
fn size_of_tree(dir: PathBuf) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let (mut folders, mut bytes, mut files) = (vec![dir], 0_u64, 0);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            files += 1;
            if files > STATE_DIR_FILES {
                return bytes;
            }
            // What goes away while it is looked at has no size.
            let Ok(meta) = entry.metadata() else { continue };
            bytes = bytes.saturating_add(meta.blocks().saturating_mul(512));
            if meta.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_files_is_the_soft_one_and_none_is_none() {
        assert_eq!(max_files(b"Limit Soft\nMax open files            1024    4096   files\n"), Some(1024));
        assert_eq!(max_files(b"Max open files  unlimited unlimited files\n"), None);
        assert_eq!(max_files(b"Max open files"), None);
    }

    #[test]
    fn it_sees_its_own_files_threads_and_folder() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("store")).unwrap();
        picket_durable::write_atomic(&dir.path().join("store/db"), &vec![7; 100_000], 0o600).unwrap();
        let mut collector = OwnCollector::new(dir.path());
        let before = collector.sample(Instant::now()).unwrap();
        assert!(before.rss_bytes > 0 && before.virtual_bytes >= before.rss_bytes && before.threads >= 1, "{before:?}");
        assert!(before.state_dir_bytes >= 100_000 && before.max_fds.is_none_or(|max| max >= before.fds), "{before:?}");
    }

    #[test]
    fn the_state_folder_is_not_walked_at_every_sample() {
        let dir = tempfile::tempdir().unwrap();
        let mut collector = OwnCollector::new(dir.path());
        let start = Instant::now();
        let empty = collector.sample(start).unwrap().state_dir_bytes;
        picket_durable::write_atomic(&dir.path().join("db"), &vec![7; 100_000], 0o600).unwrap();
        assert_eq!(collector.sample(start + Duration::from_secs(1)).unwrap().state_dir_bytes, empty);
        assert!(collector.sample(start + STATE_DIR_INTERVAL).unwrap().state_dir_bytes >= 100_000);
    }
}
