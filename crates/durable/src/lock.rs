//! Locks between processes: one updater, one agent, one supervisor for an installation.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long those who only look whether a lock is held are waited for.
const LOOKING_LIMIT: Duration = Duration::from_secs(1);
/// How long between two attempts.
const LOOKING_PAUSE: Duration = Duration::from_millis(10);

/// A held lock. The kernel gives it back when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error("{} is held by {}", path.display(), holder_text(*.holder))]
    Held {
        /// The lock's file.
        path: PathBuf,
        /// The process id the holder wrote, where it could be read.
        holder: Option<u32>,
    },
    /// The lock's file could not be opened or locked.
    #[error("cannot lock {}", path.display())]
    Io {
        /// The lock's file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn holder_text(holder: Option<u32>) -> String {
    holder.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

impl Lock {
    /// Takes the exclusive lock on the file at `path` (created with mode 0600 if absent) and writes this process's id
    /// into it for others to read.
    ///
    /// # Errors
    /// [`LockError::Held`] at once when another process holds it. Only while others merely look ([`Lock::holder`]), which
    /// takes them an instant, it waits for them, a second at most.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        let io_error = |source| LockError::Io { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = open(&mut options, path).map_err(io_error)?;
        let deadline = Instant::now() + LOOKING_LIMIT;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                // A shared lock beside those of lookers is to be had, one beside the holder's is not.
                Err(TryLockError::WouldBlock) if Instant::now() < deadline && file.try_lock_shared().is_ok() => {
                    file.unlock().map_err(io_error)?;
                    std::thread::sleep(LOOKING_PAUSE);
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(LockError::Held { path: path.to_owned(), holder: read_holder(&file) });
                }
                Err(TryLockError::Error(source)) => return Err(io_error(source)),
            }
        }
        // Who holds it is a courtesy: a full disk must not keep anybody from going back to a version that works.
        let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }

    /// Whether some process holds the lock at `path`, and which; `None` when nobody does or the file is not there.
    pub fn holder(path: &Path) -> Option<Option<u32>> {
        let file = open(OpenOptions::new().read(true), path).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => Some(read_holder(&file)),
            _ => None,
        }
    }
}

/// Opens a lock's file. Some lie in a folder of the service user's: root must neither follow a link out of it nor wait on
/// a pipe (`open(2)`: `O_NOFOLLOW`, `O_NONBLOCK`).
fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    use rustix::fs::OFlags;
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = options.custom_flags(flags.bits().cast_signed()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
}

/// The process id that the holder wrote.
fn read_holder(file: &File) -> Option<u32> {
    let mut text = String::new();
    let _ = file.take(16).read_to_string(&mut text);
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_who_has_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert_eq!(Lock::holder(&path), None);
        let held = Lock::acquire(&path).unwrap();
        let error = Lock::acquire(&path).unwrap_err();
        assert!(matches!(error, LockError::Held { holder: Some(pid), .. } if pid == std::process::id()));
        assert_eq!(Lock::holder(&path), Some(Some(std::process::id())));
        drop(held);
        Lock::acquire(&path).unwrap();
    }

    #[test]
    fn who_only_looks_does_not_keep_anybody_from_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        drop(Lock::acquire(&path).unwrap());
        let looker = File::open(&path).unwrap();
        looker.lock_shared().unwrap();
        let (begin, begun) = std::sync::mpsc::channel::<()>();
        let looking = std::thread::spawn(move || {
            begun.recv().unwrap();
            // Nobody sends any more: for the time that a look may take.
            let _ = begun.recv_timeout(Duration::from_millis(100));
            looker.unlock().unwrap();
        });
        begin.send(()).unwrap();
        let acquired = Lock::acquire(&path);
        looking.join().unwrap();
        assert!(acquired.is_ok(), "{acquired:?}");
    }

    #[test]
    fn a_pipe_or_a_link_in_the_place_of_a_lock_is_not_waited_on_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, link, real) = (dir.path().join("pipe"), dir.path().join("link"), dir.path().join("real"));
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let held = Lock::acquire(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let (done, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let looked = (Lock::holder(&pipe), Lock::holder(&link));
            let _ = done.send((looked, Lock::acquire(&pipe).is_err(), Lock::acquire(&link).is_err()));
        });
        let outcome = ended.recv_timeout(Duration::from_secs(20)).expect("nobody hangs");
        assert_eq!(outcome, ((None, None), true, true));
        drop(held);
    }
}
