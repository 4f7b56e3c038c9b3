//! Locks between processes: one updater, one agent, one supervisor for an installation.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

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
    /// [`LockError::Held`] at once when another process holds it; this never waits.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        let io_error = |source| LockError::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            // The agent's lock lies in a folder of the service user's: root must not follow a link out of it.
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)
            .map_err(io_error)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = (&file).take(16).read_to_string(&mut text);
                return Err(LockError::Held { path: path.to_owned(), holder: text.trim().parse().ok() });
            }
            Err(TryLockError::Error(source)) => return Err(io_error(source)),
        }
        // Who holds it is a courtesy: a full disk must not keep anybody from going back to a version that works.
        let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }

    /// Whether some process holds the lock at `path`, and which; `None` when nobody does or the file is not there.
    pub fn holder(path: &Path) -> Option<Option<u32>> {
        let mut file = File::open(path).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = Read::by_ref(&mut file).take(16).read_to_string(&mut text);
                Some(text.trim().parse().ok())
            }
            _ => None,
        }
    }
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
}
