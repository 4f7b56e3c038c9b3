//! One large file, whole or not at all: resumable, capped, watched for stalls and for drips.
//!
//! The bytes go to `<hash>.unverified`; beside it `<hash>.etag` remembers which version of the file they are of, so
//! that a later attempt can ask for the rest. The name without `.unverified` is given only by the caller, after every
//! check. Nothing here trusts the server: the length is the signed one, and one byte more breaks off.

use crate::progress::Trouble;
use crate::trust::{Hasher, VerifiedTarget};
use picket_durable::Context;
use picket_transport::{Client, Request, Response, SafeUrl, TransportError, read_error};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A file that is to be downloaded.
pub struct Download<'a> {
    /// How to ask.
    pub client: &'a Client,
    /// Where it is.
    pub url: SafeUrl,
    /// What it must be.
    pub target: &'a VerifiedTarget,
    /// The folder for partial files.
    pub dir: &'a Path,
    /// Told the bytes that are there and the bytes in all.
    pub progress: &'a dyn Fn(u64, u64),
}

/// A download that did not finish.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The server or the network failed; what has arrived is kept for the next attempt.
    #[error("the download broke off; what has arrived is kept")]
    Transport(#[from] TransportError),
    /// The server sends more than was signed; it was thrown away.
    #[error(transparent)]
    TooLong(TransportError),
    /// It is not the file that was signed; it was thrown away.
    #[error(transparent)]
    Mismatch(#[from] crate::trust::TrustError),
    /// It could not be written.
    #[error("the download cannot be written")]
    File(#[from] picket_durable::Error),
}

impl DownloadError {
    /// Who may be behind it, what it may mean and what to do, for the person who reads it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::TooLong(_) => {
                "the server sends more than the vendor signed; if it happens again, it or a mirror may be compromised: \
                 tell the vendor"
            }
            Self::Transport(TransportError::TooSlow { .. }) => {
                "the network is too slow, or the server or a mirror keeps the line busy on purpose; it goes on from there \
                 with the next attempt: `picket update apply`, or the daily check"
            }
            Self::Transport(error @ (TransportError::Status { .. } | TransportError::Tls { .. })) => error.advice(),
            Self::Transport(_) => {
                "it goes on from there with the next attempt: `picket update apply`, or the daily check"
            }
            Self::Mismatch(error) => error.hint(),
            Self::File(error) if error.is_disk_full() => "free some space and try again",
            Self::File(_) => "check the disk and the owner of the updater's state folder; `picket doctor` shows both",
        }
    }

    /// Of which kind it is, for scripts: more than was signed speaks against the server, less may be the line's fault.
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::TooLong(_) | Self::Mismatch(_) => Trouble::Untrusted,
            Self::Transport(_) => Trouble::Network,
            Self::File(_) => Trouble::Machine,
        }
    }
}

impl Download<'_> {
    /// Downloads the file, going on where an earlier attempt stopped, and returns the path of the complete bytes: still
    /// named `.unverified`, of the signed length and hash, and synced.
    pub fn run(&self) -> Result<PathBuf, DownloadError> {
        picket_durable::create_dir(self.dir, 0o700)?;
        let name = self.target.hashes.name();
        let path = self.dir.join(format!("{name}.unverified"));
        let etag_path = self.dir.join(format!("{name}.etag"));
        let mut state = Partial::open(&path, self.target)?;
        if state.length < self.target.length {
            self.receive(&mut state, &path, &etag_path)?;
        }
        if let Err(error) = self.target.check_hashes(state.hasher) {
            // A file that was resumed from another version's bytes is as worthless as a forged one.
            picket_durable::remove_if_present(&path)?;
            picket_durable::remove_if_present(&etag_path)?;
            return Err(error.into());
        }
        state.file.sync_all().doing("sync", &path)?;
        picket_durable::sync_dir(self.dir)?;
        picket_durable::remove_if_present(&etag_path)?;
        Ok(path)
    }

    fn receive(&self, state: &mut Partial, path: &Path, etag_path: &Path) -> Result<(), DownloadError> {
        let known = picket_durable::read_if_present(etag_path, 512)?.and_then(|bytes| String::from_utf8(bytes).ok());
        // A weak ETag names a file that means the same, not one that has the same bytes (RFC 9110 §8.8.1).
        let validator = known.as_deref().filter(|etag| is_strong(etag) && state.length > 0);
        let resume = validator.map(|etag| (state.length, etag));
        let request = Request { resume, expects: Some(self.target.length), ..Request::default() };
        let response = self.client.get(&self.url, &request)?;
        if response.status != 206 {
            // The server sends the whole file: it changed, or ranges are not its business.
            state.restart(path, self.target)?;
        }
        match &response.etag {
            Some(etag) => picket_durable::write_atomic(etag_path, etag.as_bytes(), 0o600)?,
            // What was known is of bytes that are gone.
            None if response.status != 206 => drop(picket_durable::remove_if_present(etag_path)?),
            None => {}
        }
        self.copy(response, state, path)
    }

    fn copy(&self, response: Response, state: &mut Partial, path: &Path) -> Result<(), DownloadError> {
        let url = response.url().clone();
        let mut pace = response.pace(state.length);
        let mut body = response.reader();
        let mut buffer = vec![0; 64 << 10];
        (self.progress)(state.length, self.target.length);
        while state.length < self.target.length {
            let room = usize::try_from(self.target.length - state.length).unwrap_or(usize::MAX).min(buffer.len());
            let read = body.read(&mut buffer[..room]).map_err(|e| read_error(&url, e))?;
            if read == 0 {
                let reason = format!("it ended after {} of {} bytes", state.length, self.target.length);
                return Err(TransportError::Broken { url, reason }.into());
            }
            state.append(&buffer[..read], path)?;
            (self.progress)(state.length, self.target.length);
            pace.check(Instant::now(), state.length).map_err(|slow| TransportError::too_slow(&url, slow))?;
        }
        // One byte more than was signed is an endless-data attack, or another file.
        if body.read(&mut buffer[..1]).is_ok_and(|more| more > 0) {
            picket_durable::remove_if_present(path)?;
            return Err(DownloadError::TooLong(TransportError::TooLarge { url, limit: self.target.length }));
        }
        Ok(())
    }
}

/// The bytes that are there, with the hash of all of them.
struct Partial {
    file: File,
    length: u64,
    hasher: Hasher,
}

impl Partial {
    /// Opens what an earlier attempt left, or a new file; a file longer than it may be is begun anew.
    fn open(path: &Path, target: &VerifiedTarget) -> Result<Self, picket_durable::Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .doing("open", path)?;
        let mut partial = Self { file, length: 0, hasher: target.hashes.hasher() };
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = partial.file.read(&mut buffer).doing("read", path)?;
            if read == 0 {
                break;
            }
            partial.hasher.update(&buffer[..read]);
            partial.length += read as u64;
        }
        if partial.length > target.length {
            partial.restart(path, target)?;
        }
        Ok(partial)
    }

    fn restart(&mut self, path: &Path, target: &VerifiedTarget) -> Result<(), picket_durable::Error> {
        use std::io::Seek;
        self.file.set_len(0).doing("empty", path)?;
        self.file.rewind().doing("rewind", path)?;
        self.length = 0;
        self.hasher = target.hashes.hasher();
        Ok(())
    }

    fn append(&mut self, bytes: &[u8], path: &Path) -> Result<(), picket_durable::Error> {
        self.file.write_all(bytes).doing("write", path)?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }
}

/// Whether an ETag can name bytes, and be sent as it is: a damaged disk must not end in requests that cannot be made.
fn is_strong(etag: &str) -> bool {
    etag.len() > 2 && etag.starts_with('"') && etag.ends_with('"') && etag.bytes().all(|b| (0x21..0x7f).contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_strong_etag_names_bytes() {
        assert!(is_strong("\"0x8DC\""));
        for etag in ["W/\"1\"", "", "\"", "\"\"", "\"a", "\"a\r\nx: y\"", "\"\u{e9}\""] {
            assert!(!is_strong(etag), "{etag:?}");
        }
    }
}
