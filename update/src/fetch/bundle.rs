//! A release bundle: one file that stands in for a release server where there is no network.
//!
//! It is a tar archive of a release tree as every TUF client knows it, cut down to what is to be carried: `metadata/` with
//! every root, `targets/channel/<sha256>.<channel>.json`, `targets/<version>/<sha256>.<file>` with its `.minisig`. Unpacked
//! into the folder of a web server, it is a mirror. Nothing in it is believed for being in it: what is read from here is
//! verified like what comes from a server.

use crate::archive::{ArchiveError, Kind, Visitor, walk_tar};
use crate::trust::source::MetadataSource;
use crate::trust::{TrustError, VerifiedTarget};
use picket_durable::Context;
use picket_transport::TransportError;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The largest bundle, in bytes: a hundred builds of 40 MB.
pub const MAX_BUNDLE: u64 = 4 << 30;

/// The file in which the tree of a plain release server has the target: below `targets/`.
pub fn target_place(target: &VerifiedTarget) -> String {
    let (folder, file) = target.path.rsplit_once('/').unwrap_or(("", &target.path));
    let name = if target.hash_in_name { format!("{}.{file}", target.hashes.name()) } else { file.to_owned() };
    let parts = ["targets", folder, &name];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
}

/// A bundle that can be read.
#[derive(Debug)]
pub struct Bundle<R = File> {
    path: PathBuf,
    file: std::cell::RefCell<R>,
    /// Where each file's content begins, and how long it is.
    files: BTreeMap<String, (u64, u64)>,
}

/// A target of the bundle that was not put where it was wanted.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// The bundle cannot be read, or has another file in its place.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// It could not be written.
    #[error("what the bundle holds cannot be written")]
    File(#[from] picket_durable::Error),
}

impl Bundle {
    /// Opens the bundle at `path` and lists what it holds.
    ///
    /// # Errors
    /// [`TransportError::Bundle`] when it cannot be read or is none.
    pub fn open(path: &Path) -> Result<Self, TransportError> {
        let file = File::open(path).map_err(|error| unreadable(path, &error))?;
        Self::read(path, file).map_err(|error| unreadable(path, &error))
    }
}

impl<R: Read + Seek> Bundle<R> {
    /// Lists what the bundle in `file`, which is called `path`, holds.
    ///
    /// # Errors
    /// When it is no tar archive, or holds what is no part of a release tree.
    pub fn read(path: &Path, mut file: R) -> Result<Self, ArchiveError> {
        let at = Cell::new(0);
        let mut listing = Listing { at: &at, files: BTreeMap::new() };
        let counted = Counted { stream: &mut file, at: &at };
        walk_tar(counted, MAX_BUNDLE, &mut listing)?;
        let files = listing.files;
        Ok(Self { path: path.to_owned(), file: std::cell::RefCell::new(file), files })
    }

    /// The names of its files, with their lengths in bytes.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.files.iter().map(|(name, (_, length))| (name.as_str(), *length))
    }

    /// The bytes of the small file called `name`.
    ///
    /// # Errors
    /// When it is longer than `max_bytes`, or cannot be read.
    pub fn small(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, TransportError> {
        let Some(&(begin, length)) = self.files.get(name) else { return Ok(None) };
        if length > max_bytes {
            let reason = format!("{name} is longer than the {max_bytes} bytes allowed");
            return Err(TransportError::Bundle { path: self.path.clone(), reason });
        }
        let mut bytes = Vec::new();
        let mut file = self.file.borrow_mut();
        let read = file.seek(SeekFrom::Start(begin)).and_then(|_| (&mut *file).take(length).read_to_end(&mut bytes));
        read.map_err(|error| unreadable(&self.path, &error))?;
        Ok(Some(bytes))
    }

    /// Copies `target` into the folder `dir`, under the name that a download has there, and checks that it is what was
    /// signed; returns its path.
    ///
    /// # Errors
    /// [`TrustError::Missing`] when it is not in the bundle.
    pub fn extract(
        &self,
        target: &VerifiedTarget,
        dir: &Path,
        progress: &dyn Fn(u64, u64),
    ) -> Result<PathBuf, ExtractError> {
        let found = self.files.get(&target_place(target));
        let &(begin, length) = found.ok_or_else(|| TrustError::Missing(target.path.clone()))?;
        if length != target.length {
            let detail = format!("{length} bytes instead of {}", target.length);
            return Err(TrustError::Mismatch { name: target.path.clone(), detail }.into());
        }
        picket_durable::create_dir(dir, 0o700)?;
        let path = dir.join(format!("{}.unverified", target.hashes.name()));
        picket_durable::remove_if_present(&path)?;
        let mut to = picket_durable::create_new(&path, 0o600)?;
        let mut file = self.file.borrow_mut();
        let torn = |error: io::Error| ExtractError::Trust(unreadable(&self.path, &error).into());
        file.seek(SeekFrom::Start(begin)).map_err(&torn)?;
        let (mut hasher, mut done, mut buffer) = (target.hashes.hasher(), 0, vec![0; 64 << 10]);
        while done < length {
            let room = usize::try_from(length - done).unwrap_or(usize::MAX).min(buffer.len());
            let read = file.read(&mut buffer[..room]).map_err(&torn)?;
            if read == 0 {
                return Err(torn(io::ErrorKind::UnexpectedEof.into()));
            }
            hasher.update(&buffer[..read]);
            to.write_all(&buffer[..read]).doing("write", &path)?;
            done += read as u64;
            progress(done, length);
        }
        if let Err(error) = target.check_hashes(hasher) {
            picket_durable::remove_if_present(&path)?;
            return Err(error.into());
        }
        to.sync_all().doing("sync", &path)?;
        Ok(path)
    }
}

impl<R: Read + Seek> MetadataSource for Bundle<R> {
    fn fetch(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, TransportError> {
        self.small(&format!("metadata/{name}"), max_bytes)
    }

    fn fetch_target(&self, target: &VerifiedTarget, max_bytes: u64) -> Result<Option<Vec<u8>>, TransportError> {
        self.small(&target_place(target), max_bytes)
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

fn unreadable(path: &Path, error: &dyn std::error::Error) -> TransportError {
    TransportError::Bundle { path: path.to_owned(), reason: crate::engine::chain(error) }
}

/// What the bundle holds, and where.
struct Listing<'a> {
    at: &'a Cell<u64>,
    files: BTreeMap<String, (u64, u64)>,
}

impl Visitor for Listing<'_> {
    fn entry(&mut self, name: &str, kind: Kind, _: &mut dyn Read) -> Result<(), ArchiveError> {
        let Some(length) = kind.length() else { return Ok(()) };
        if !["metadata/", "targets/"].iter().any(|folder| name.starts_with(folder)) {
            return Err(ArchiveError::forbidden("something that is no part of a bundle", name));
        }
        if self.files.insert(name.to_owned(), (self.at.get(), length)).is_some() {
            return Err(ArchiveError::forbidden("two files of one name", name));
        }
        Ok(())
    }
}

/// A stream that knows how much of it was read.
struct Counted<'a, R> {
    stream: R,
    at: &'a Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer)?;
        self.at.set(self.at.get() + read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_protocol::Sha256Digest;
    use sha2::{Digest, Sha256};
    use std::io::Cursor;

    fn bundle(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_entry_type(tar::EntryType::Regular);
            tar.append_data(&mut header, name, *bytes).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn read(bytes: Vec<u8>) -> Result<Bundle<Cursor<Vec<u8>>>, ArchiveError> {
        Bundle::read(Path::new("b.tar"), Cursor::new(bytes))
    }

    fn target(path: &str, bytes: &[u8]) -> VerifiedTarget {
        let sha256 = Sha256Digest::new(Sha256::digest(bytes).into());
        VerifiedTarget { path: path.into(), length: bytes.len() as u64, hashes: sha256.into(), hash_in_name: true }
    }

    #[test]
    fn every_file_is_found_where_it_lies_whatever_the_length_of_its_name() {
        let big = vec![7; 70_000];
        let artifact = target("1.0.0/picket-1.0.0-x86_64-unknown-linux-musl.tar.xz", &big);
        let place = target_place(&artifact);
        assert!(place.len() > 100, "{place} needs no long name");
        let files: [(&str, &[u8]); 3] = [("metadata/1.root.json", b"{}"), (&place, &big), ("targets/last", b"end")];
        let bundle = read(bundle(&files)).unwrap();
        assert_eq!(bundle.fetch("1.root.json", 2).unwrap().unwrap(), b"{}");
        assert_eq!(bundle.fetch("2.root.json", 2).unwrap(), None);
        assert_eq!(bundle.small("targets/last", 3).unwrap().unwrap(), b"end");
        assert!(bundle.small("targets/last", 2).unwrap_err().to_string().contains("longer than the 2 bytes"));
        let dir = tempfile::tempdir().unwrap();
        let path = bundle.extract(&artifact, dir.path(), &|_, _| {}).unwrap();
        assert_eq!(picket_durable::read_bounded(&path, 1 << 20).unwrap(), big);
    }

    #[test]
    fn another_file_in_its_place_is_not_left_behind() {
        let artifact = target("1.0.0/a.tar.xz", b"good");
        let dir = tempfile::tempdir().unwrap();
        let extract = |bytes: &[u8]| {
            let bundle = read(bundle(&[(&target_place(&artifact), bytes)])).unwrap();
            bundle.extract(&artifact, dir.path(), &|_, _| {}).unwrap_err().to_string()
        };
        assert!(extract(b"evil").contains("not the ones that the vendor signed"));
        assert!(extract(b"longer").contains("6 bytes instead of 4"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let empty = read(bundle(&[])).unwrap().extract(&artifact, dir.path(), &|_, _| {}).unwrap_err();
        assert!(matches!(empty, ExtractError::Trust(TrustError::Missing(_))), "{empty}");
    }

    #[test]
    fn what_is_no_bundle_is_refused() {
        let refused = |bytes: Vec<u8>| read(bytes).unwrap_err().to_string();
        assert!(refused(bundle(&[("picket", b"x")])).contains("no part of a bundle"));
        assert!(refused(bundle(&[("targets/a", b"x"), ("targets/a", b"y")])).contains("two files of one name"));
        assert!(refused(b"PK\x03\x04 this is a zip, or anything".repeat(40)).contains("damaged"));
        let mut half = bundle(&[("targets/a", &[1; 5000])]);
        half.truncate(3000);
        assert!(refused(half).contains("damaged"));
    }
}
