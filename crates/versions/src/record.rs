//! The record of a version: what belongs in its folder, byte for byte.
//!
//! `version.json` is written last into a folder that is still called something else, so a folder that has it and lies
//! in `versions/` is complete.

use picket_durable::Context;
use picket_protocol::{Sha256Digest, TargetTriple};
use semver::Version;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The record's file name.
pub(crate) const NAME: &str = "version.json";
/// The largest record, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// What a version folder must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRecord {
    /// The record's own format: 1.
    pub schema: u32,
    /// The version.
    pub version: Version,
    /// What it was built for.
    pub target: TargetTriple,
    /// Where it came from.
    pub source: VersionSource,
    /// Every file but the record itself.
    pub files: Vec<FileRecord>,
    /// When it was put here.
    pub staged: jiff::Timestamp,
}

/// Where a version came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VersionSource {
    /// A signed release: the hash of its artifact.
    Release {
        /// The artifact's SHA-256.
        sha256: Sha256Digest,
    },
    /// The executable that ran `picket install`, trusted by whoever ran it.
    Installed {
        /// The executable's SHA-256.
        sha256: Sha256Digest,
    },
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its path in the folder.
    pub path: String,
    /// Its length in bytes.
    pub length: u64,
    /// Its hash.
    pub sha256: Sha256Digest,
}

/// A version folder that is not what its record says.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It has no record: it was never complete.
    #[error("{0} has no record; it was never complete")]
    Missing(String),
    /// The record cannot be read.
    #[error("the record of {folder} cannot be read")]
    Unreadable {
        /// The folder.
        folder: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A file is missing or differs.
    #[error("{path} is not what was put there ({detail})")]
    Damaged {
        /// The file.
        path: String,
        /// What differs.
        detail: String,
    },
    /// The folder could not be read now. That says nothing about what is in it.
    #[error("a version folder cannot be read")]
    File(#[from] picket_durable::Error),
}

impl VersionSource {
    /// The hash that a failed trial is remembered by.
    pub fn sha256(&self) -> Sha256Digest {
        match self {
            Self::Release { sha256 } | Self::Installed { sha256 } => *sha256,
        }
    }
}

impl VersionRecord {
    /// Reads the record in `dir`.
    pub fn load(dir: &Path) -> Result<Self, RecordError> {
        let folder = || dir.display().to_string();
        let bytes = picket_durable::read_if_present(&dir.join(NAME), MAX_BYTES)?;
        let bytes = bytes.ok_or_else(|| RecordError::Missing(folder()))?;
        serde_json::from_slice(&bytes).map_err(|source| RecordError::Unreadable { folder: folder(), source })
    }

    /// Writes the record into `dir`.
    pub(crate) fn save(&self, dir: &Path) -> Result<(), picket_durable::Error> {
        picket_durable::write_json(&dir.join(NAME), self, 0o644)
    }

    /// Compares every recorded file in `dir` with its length and hash.
    ///
    /// # Errors
    /// [`RecordError::Damaged`] also where the disk itself cannot bring a file; [`RecordError::File`] where nobody can say
    /// what is in it.
    pub fn check(&self, dir: &Path) -> Result<(), RecordError> {
        for file in &self.files {
            let path = dir.join(&file.path);
            let damaged = |detail: String| RecordError::Damaged { path: path.display().to_string(), detail };
            let found = match record_file(dir, Path::new(&file.path)) {
                Ok(found) => found,
                Err(error) if error.is_not_found() || error.is_disk_failure() => {
                    return Err(damaged(error.source.to_string()));
                }
                Err(error) => return Err(error.into()),
            };
            if found != *file {
                return Err(damaged(format!("{} bytes, SHA-256 {}", found.length, found.sha256)));
            }
        }
        Ok(())
    }
}

/// Records every file below `dir`, sorted by path; folders are walked, anything else is not there by construction.
pub fn record_files(dir: &Path) -> Result<Vec<FileRecord>, picket_durable::Error> {
    let mut records = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).doing("list", &folder)? {
            let entry = entry.doing("list", &folder)?;
            let path = entry.path();
            if entry.file_type().doing("inspect", &path)?.is_dir() {
                folders.push(path);
            } else if path != dir.join(NAME) {
                records.push(record_file(dir, path.strip_prefix(dir).unwrap_or(&path))?);
            }
        }
    }
    records.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(records)
}

fn record_file(dir: &Path, path: &Path) -> Result<FileRecord, picket_durable::Error> {
    let full = dir.join(path);
    let mut file = File::open(&full).doing("read", &full)?;
    let (sha256, length) = hash(&mut file).doing("read", &full)?;
    Ok(FileRecord { path: path.display().to_string(), length, sha256 })
}

/// The SHA-256 and the length of everything `reader` has.
pub(crate) fn hash(reader: &mut impl Read) -> std::io::Result<(Sha256Digest, u64)> {
    let mut hasher = Sha256::new();
    let mut length = 0;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = reader.read(&mut buffer)?;
        if read == 0 {
            return Ok((Sha256Digest::new(hasher.finalize().into()), length));
        }
        hasher.update(&buffer[..read]);
        length += read as u64;
    }
}
