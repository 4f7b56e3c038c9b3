//! Room that is given back when the disk is full, so that acknowledgements and gaps can still be written.
//!
//! An acknowledgement only deletes rows, but SQLite writes the changed pages to its log first: on a disk with no byte left,
//! the queue could not even become shorter.

use picket_durable::{Context as _, Result};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The log and the pages of some thousand small transactions.
const RESERVE_BYTES: u64 = 4 << 20;
/// So much must be free before the room is taken again.
const TAKE_AGAIN_BYTES: u64 = 4 * RESERVE_BYTES;

/// The file that holds the room.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    held: bool,
}

impl Reserve {
    /// Finds the room, or takes it if there is plenty.
    pub(crate) fn open(path: &Path) -> Self {
        let held = path.metadata().is_ok_and(|meta| meta.len() == RESERVE_BYTES);
        let mut reserve = Self { path: path.to_owned(), held };
        reserve.take();
        reserve
    }

    /// Gives the room back. Says whether there was any to give.
    pub(crate) fn give(&mut self) -> bool {
        let had = self.held;
        self.held = false;
        // The error that matters is the full disk's, which the caller has.
        let _ = std::fs::remove_file(&self.path);
        had
    }

    /// Takes the room if there is plenty.
    pub(crate) fn take(&mut self) {
        if self.held || picket_durable::free_space(&self.path.with_file_name(".")).unwrap_or(0) < TAKE_AGAIN_BYTES {
            return;
        }
        self.held = self.fill().is_ok();
        if !self.held {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    fn fill(&self) -> Result<()> {
        let mut file = picket_durable::create_new(&self.path, 0o600)?;
        let block = vec![0; 256 << 10];
        for _ in 0..RESERVE_BYTES / block.len() as u64 {
            file.write_all(&block).doing("write", &self.path)?;
        }
        // Without this a file system that allocates late has not given the room yet.
        file.sync_all().doing("sync", &self.path)
    }
}
