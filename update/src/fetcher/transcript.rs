//! What a release server answered, on disk: written by the fetcher as it asks, read by the other half as if it asked.
//!
//! The same code verifies both times, and it asks the same questions, because it starts from the same trusted files. A
//! question that is not in the transcript has no answer: there is no such file.

use crate::trust::source::{Changed, Fetched, MetadataSource};
use crate::trust::{VerifiedTarget, percent_encode};
use picket_durable::Context;
use picket_transport::TransportError;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The longest ETag, in bytes.
const MAX_ETAG: u64 = 512;
/// What stands for an answer that a file has not changed.
const UNCHANGED: &str = "unchanged";

/// Where the answer about the file called `name` is kept.
fn place(dir: &Path, name: &str, kind: &str) -> PathBuf {
    dir.join(format!("{}.{kind}", percent_encode(name, "")))
}

/// Asks a server, and writes down what it answers.
pub(super) struct Recorder<'a> {
    /// Whom it asks.
    pub(super) source: &'a dyn MetadataSource,
    /// Where it writes.
    pub(super) dir: &'a Path,
}

impl Recorder<'_> {
    fn write(&self, name: &str, kind: &str, bytes: &[u8]) -> Result<(), TransportError> {
        let path = place(self.dir, name, kind);
        // Read back a moment later and never after a power cut: nothing is synced.
        let written = File::create(&path).and_then(|mut file| file.write_all(bytes)).doing("write", &path);
        written.map_err(|error| TransportError::NotKept { reason: error.to_string() })
    }
}

impl MetadataSource for Recorder<'_> {
    fn fetch(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, TransportError> {
        let answer = self.source.fetch(name, max_bytes)?;
        if let Some(bytes) = &answer {
            self.write(name, "bytes", bytes)?;
        }
        Ok(answer)
    }

    fn fetch_changed(
        &self,
        name: &str,
        max_bytes: u64,
        known: Option<&str>,
    ) -> Result<Option<Changed>, TransportError> {
        let answer = self.source.fetch_changed(name, max_bytes, known)?;
        match &answer {
            Some(Changed::No) => self.write(name, UNCHANGED, b"")?,
            Some(Changed::Bytes(file)) => {
                self.write(name, "bytes", &file.bytes)?;
                if let Some(etag) = &file.etag {
                    self.write(name, "etag", etag.as_bytes())?;
                }
            }
            None => {}
        }
        Ok(answer)
    }

    fn fetch_target(&self, target: &VerifiedTarget, max_bytes: u64) -> Result<Option<Vec<u8>>, TransportError> {
        let answer = self.source.fetch_target(target, max_bytes)?;
        if let Some(bytes) = &answer {
            self.write(&target.path, "target", bytes)?;
        }
        Ok(answer)
    }

    fn name(&self) -> String {
        self.source.name()
    }
}

/// Answers from a transcript. The folder is the fetcher's: no link is followed, and everything is bounded.
pub(super) struct Replay<'a> {
    /// Where the transcript is.
    pub(super) dir: &'a Path,
    /// Which server it is of.
    pub(super) server: String,
}

impl Replay<'_> {
    fn read(&self, name: &str, kind: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, TransportError> {
        let read = picket_durable::read_untrusted(&place(self.dir, name, kind), max_bytes);
        read.map_err(|error| TransportError::NotKept { reason: error.to_string() })
    }
}

impl MetadataSource for Replay<'_> {
    fn fetch(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, TransportError> {
        self.read(name, "bytes", max_bytes)
    }

    fn fetch_changed(
        &self,
        name: &str,
        max_bytes: u64,
        known: Option<&str>,
    ) -> Result<Option<Changed>, TransportError> {
        if known.is_some() && self.read(name, UNCHANGED, 0)?.is_some() {
            return Ok(Some(Changed::No));
        }
        let Some(bytes) = self.read(name, "bytes", max_bytes)? else { return Ok(None) };
        let etag = self.read(name, "etag", MAX_ETAG)?.and_then(|etag| String::from_utf8(etag).ok());
        Ok(Some(Changed::Bytes(Fetched { bytes, etag })))
    }

    fn fetch_target(&self, target: &VerifiedTarget, max_bytes: u64) -> Result<Option<Vec<u8>>, TransportError> {
        self.read(&target.path, "target", max_bytes)
    }

    fn name(&self) -> String {
        self.server.clone()
    }
}
