//! The other half's own look at what the fetcher brought: length, hash and signature of the archive, length and hash of
//! each file in it.
//!
//! The folders are the fetcher's, and it may still be alive: every file is opened once, without following links, and
//! what is checked are the bytes that are kept.

use crate::engine::Failure;
use crate::trust::minisign::{MAX_SIGNATURE_BYTES, trusted_comment};
use crate::trust::{Hasher, TrustError, VerifiedTarget};
use picket_durable::Context;
use picket_protocol::channel::ReleaseFile;
use picket_protocol::{Sha256Digest, TargetTriple};
use semver::Version;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use super::Places;
use crate::trust::MinisignKeys;

/// What to tell a person when the two halves see different things.
const DISAGREE: &str = "the fetcher may have been taken over, or the disk is failing: try again, and if it happens again, \
                        tell the vendor";

/// Checks that the downloaded archive is `artifact` and bears a signature of one of `keys` for this version and target;
/// where `copy` is given, the bytes that were checked are written there.
pub(crate) fn verified_archive(
    places: &Places,
    artifact: &VerifiedTarget,
    version: &Version,
    target: &TargetTriple,
    keys: &MinisignKeys,
    copy: Option<&Path>,
) -> Result<(), Failure> {
    let name = format!("{}.unverified", artifact.hashes.name());
    let file = picket_durable::open_beneath(&places.downloads(), Path::new(&name))?;
    let signature = picket_durable::read_untrusted(&places.signature(), MAX_SIGNATURE_BYTES)?;
    let signature = signature.ok_or_else(|| TrustError::Missing(format!("minisign signature of {}", artifact.path)))?;
    let copy = copy.map(|path| picket_durable::create_new(path, 0o600)).transpose()?;
    let mut reader = Checking { file, hasher: artifact.hashes.hasher(), length: 0, limit: artifact.length, copy };
    let comment = trusted_comment(version, target, &artifact.sha256()?);
    keys.verify(&artifact.path, &mut reader, &String::from_utf8_lossy(&signature), &comment)?;
    if reader.length != artifact.length {
        let detail = format!("{} bytes instead of {}", reader.length, artifact.length);
        return Err(TrustError::Mismatch { name: artifact.path.clone(), detail }.into());
    }
    Ok(artifact.check_hashes(reader.hasher)?)
}

/// Reads a file, hashing and copying what is read; never more than one byte past the limit.
struct Checking {
    file: File,
    hasher: Hasher,
    length: u64,
    limit: u64,
    copy: Option<File>,
}

impl Read for &mut Checking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from((self.limit + 1).saturating_sub(self.length)).unwrap_or(usize::MAX);
        let room = room.min(buffer.len());
        let read = self.file.read(&mut buffer[..room])?;
        self.hasher.update(&buffer[..read]);
        self.length += read as u64;
        if let Some(copy) = &mut self.copy {
            copy.write_all(&buffer[..read])?;
        }
        Ok(read)
    }
}

/// Copies each of `files` from what the fetcher unpacked into `staging`, and checks that it is the one that was signed.
pub(crate) fn take_files(
    places: &Places,
    files: &BTreeMap<String, ReleaseFile>,
    staging: &Path,
) -> Result<(), Failure> {
    for (name, signed) in files {
        let path = Path::new(name);
        let from = picket_durable::open_beneath(&places.unpacked(), path)?;
        let to = staging.join(path);
        if let Some(parent) = to.parent() {
            picket_durable::create_dir(parent, 0o755)?;
        }
        let mode = if path == Path::new(picket_layout::EXECUTABLE) { 0o755 } else { 0o644 };
        let mut file = picket_durable::create_new(&to, mode)?;
        let (length, sha256) = copy(from, &mut file, signed.length).doing("copy", &to)?;
        if (length, sha256) != (signed.length, signed.sha256) {
            let reason = format!("{name}: what was unpacked is not the file that the vendor signed");
            return Err(Failure::of_signature(reason, DISAGREE));
        }
    }
    Ok(())
}

fn copy(from: File, to: &mut File, limit: u64) -> io::Result<(u64, Sha256Digest)> {
    let mut hasher = Sha256::new();
    let mut length = 0;
    let mut buffer = vec![0; 64 << 10];
    let mut from = from.take(limit.saturating_add(1));
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok((length, Sha256Digest::new(hasher.finalize().into())));
        }
        hasher.update(&buffer[..read]);
        length += read as u64;
        to.write_all(&buffer[..read])?;
    }
}
