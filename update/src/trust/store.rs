//! The trusted metadata on disk: what was last verified, kept across power cuts.
//!
//! Files: `root.json`, `timestamp.json`, `snapshot.json`, `targets.json` and those of delegated roles, byte for byte as the
//! server sent them, and `channel.<name>`. Each is verified again when it is loaded, so a file that somebody changed here
//! is worth nothing; each is synced before the next step relies on it, so the floors that refuse an older release survive
//! whatever happens to the machine.
//!
//! `latest-time` is the floor under the clock, `last-look` what makes the next look cheap; both may be lost.

use picket_durable::Error;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The largest file kept, in bytes: the largest limit of any role.
const MAX_BYTES: u64 = 8 << 20;

/// The largest of the two small files, in bytes.
const MAX_NOTE: u64 = 4 << 10;

/// What the last complete look at a release server brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LastLook {
    /// Which server it was.
    pub(super) server: String,
    /// The ETag of its `timestamp.json`.
    pub(super) etag: String,
    /// When everything, the roots included, was last asked for.
    pub(super) complete: jiff::Timestamp,
}

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

    /// Copies everything to `dir`, for another user to read: none of it is a secret.
    pub(crate) fn show(&self, dir: &Path) -> Result<(), Error> {
        use picket_durable::Context;
        use std::os::unix::fs::PermissionsExt;
        for entry in std::fs::read_dir(&self.dir).doing("list", &self.dir)? {
            let entry = entry.doing("list", &self.dir)?;
            let to = dir.join(entry.file_name());
            // Copies are not synced: nothing relies on them after a power cut.
            std::fs::copy(entry.path(), &to).doing("copy", &to)?;
            std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o644)).doing("set the mode of", &to)?;
        }
        Ok(())
    }

    /// Forgets `role`'s metadata: its keys were replaced, so its floor means nothing any more (TUF §5.3.11).
    pub fn forget(&self, role: &str) -> Result<(), Error> {
        picket_durable::remove_if_present(&self.path(role)).map(drop)
    }

    /// The channel document as it was last fetched: only its signed hash says whether it still is the one.
    pub(crate) fn channel(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        picket_durable::read_if_present(&self.channel_path(name), MAX_BYTES)
    }

    /// Keeps the channel document, so that it is fetched once.
    pub(crate) fn keep_channel(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        picket_durable::write_atomic(&self.channel_path(name), bytes, 0o600)
    }

    fn channel_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("channel.{}", super::percent_encode(name, "")))
    }

    /// The latest time that is known to have been reached.
    pub(super) fn time_floor(&self) -> jiff::Timestamp {
        let text = self.note("latest-time").and_then(|bytes| String::from_utf8(bytes).ok());
        text.and_then(|text| text.trim().parse().ok()).unwrap_or(jiff::Timestamp::MIN)
    }

    /// Raises the latest time to `at`.
    pub(super) fn raise_time_floor(&self, at: jiff::Timestamp) -> Result<(), Error> {
        if at <= self.time_floor() {
            return Ok(());
        }
        picket_durable::create_dir(&self.dir, 0o700)?;
        picket_durable::write_atomic(&self.dir.join("latest-time"), format!("{at}\n").as_bytes(), 0o600)
    }

    /// What the last complete look brought.
    pub(super) fn last_look(&self) -> Option<LastLook> {
        serde_json::from_slice(&self.note("last-look")?).ok()
    }

    /// Notes a complete look, or, without one, forgets the one before.
    pub(super) fn note_look(&self, look: Option<&LastLook>) -> Result<(), Error> {
        match look {
            Some(look) => picket_durable::write_json(&self.dir.join("last-look"), look, 0o600),
            None => picket_durable::remove_if_present(&self.dir.join("last-look")).map(drop),
        }
    }

    /// A small file that may be lost: what cannot be read is not there.
    fn note(&self, name: &str) -> Option<Vec<u8>> {
        let read = picket_durable::read_if_present(&self.dir.join(name), MAX_NOTE);
        read.inspect_err(|error| tracing::warn!(%error, name, "damaged")).ok()?
    }

    fn path(&self, role: &str) -> PathBuf {
        self.dir.join(format!("{role}.json"))
    }
}
