//! The trusted metadata on disk: what was last verified, kept across power cuts.
//!
//! Files: `root.json`, `timestamp.json`, `snapshot.json`, `targets.json`, byte for byte as the server sent them. Each is
//! verified again when it is loaded, so a file that somebody changed here is worth nothing; each is synced before the
//! next step relies on it, so the floors that refuse an older release survive whatever happens to the machine.

use picket_durable::Error;
use std::path::{Path, PathBuf};

/// The largest file kept, in bytes: the largest limit of any role.
const MAX_BYTES: u64 = 8 << 20;

/// The folder of trusted metadata.
#[derive(Debug, Clone)]
pub struct TrustStore {
    dir: PathBuf,
}

impl TrustStore {
    /// The store in `dir`, which is created when something is first kept.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Loads `role`'s metadata, if any was ever trusted.
    pub fn load(&self, role: &str) -> Result<Option<Vec<u8>>, Error> {
        picket_durable::read_if_present(&self.path(role), MAX_BYTES)
    }

    /// Keeps `role`'s metadata; it is on disk when this returns.
    pub fn keep(&self, role: &str, bytes: &[u8]) -> Result<(), Error> {
        picket_durable::create_dir(&self.dir, 0o700)?;
        picket_durable::write_atomic(&self.path(role), bytes, 0o600)
    }

    /// Forgets `role`'s metadata: its keys were replaced, so its floor means nothing any more (TUF §5.3.11).
    pub fn forget(&self, role: &str) -> Result<(), Error> {
        picket_durable::remove_if_present(&self.path(role)).map(drop)
    }

    fn path(&self, role: &str) -> PathBuf {
        self.dir.join(format!("{role}.json"))
    }
}
