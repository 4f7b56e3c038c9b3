//! The fetcher: the half of the updater that meets the outside, with no right to change anything.
//!
//! ```text
//!            the updater (root)                    │            the fetcher (a user of its own)
//!                                                  │
//!  seeds  trust/      root's, read only            │   reads trust/, speaks HTTP and TLS, follows the metadata,
//!  asks   Job         one line on standard input ──┼─▶ downloads, checks hash and both signatures, gives up the
//!                                                  │   network, unpacks
//!  hears  Said        lines on standard output ◀───┼── progress; accepted, or refused and why
//!                                                  │
//!  does the same checks once more, itself, on      │   writes out/ and downloads/, and nothing else
//!  what lies in out/ and downloads/, and takes it  │
//! ```
//!
//! What parses bytes of strangers — HTTP, TLS, archives, and metadata first of all — runs confined (see
//! [`crate::sandbox::Border`]): it can write two folders, read what a TLS client needs, start no program, and open no
//! connection once it has the bytes. The other half believes none of its words. It verifies the same metadata again from
//! the same files, reads the archive again (length, SHA-256, minisign), and compares each unpacked file with the length
//! and hash that the vendor signed for it. So a fetcher that somebody took over can do what a mirror can: delay and
//! withhold.
//!
//! Metadata that the fetcher refuses never reaches the other half; there is one exception, a timestamp that it calls
//! expired, because that must be remembered (see [`crate::trust`]).

#[cfg(feature = "failpoints")]
pub mod exploit;
mod job;
mod launch;
mod take;
mod transcript;
mod work;

pub use job::{Job, Refusal, Said, Task};
pub use launch::{Fetcher, FetcherError};
pub(crate) use take::{take_files, verified_archive};
pub use work::work;

use std::path::{Path, PathBuf};

/// The places that both halves know, below one folder.
#[derive(Debug, Clone)]
pub struct Places {
    dir: PathBuf,
}

impl Places {
    /// The places below `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Their common folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What is trusted so far: the updater's, readable.
    pub fn trust(&self) -> PathBuf {
        self.dir.join("trust")
    }

    /// What the fetcher brings this time.
    pub fn out(&self) -> PathBuf {
        self.dir.join("out")
    }

    /// The fetcher's own copy of what is trusted.
    pub(crate) fn own_trust(&self) -> PathBuf {
        self.out().join("trust")
    }

    /// What it got from the server.
    pub(crate) fn transcript(&self) -> PathBuf {
        self.out().join("transcript")
    }

    /// The unpacked archive.
    pub(crate) fn unpacked(&self) -> PathBuf {
        self.out().join("unpacked")
    }

    /// The artifact's signature.
    pub(crate) fn signature(&self) -> PathBuf {
        self.out().join("signature")
    }

    /// A release bundle that a person brought: root's, readable.
    pub fn bundle(&self) -> PathBuf {
        self.dir.join("bundle.tar")
    }

    /// Archives, whole and in part; what is here is gone on with the next time.
    pub fn downloads(&self) -> PathBuf {
        self.dir.join("downloads")
    }
}
