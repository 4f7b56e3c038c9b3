//! Walking a tar archive: POSIX ustar and pax (IEEE Std 1003.1, "pax interchange format"), and GNU's long names.
//!
//! Headers are read as they stand: what extends the next one (pax records, long names) is read here, within limits, and
//! never by the library, which would take it into memory whatever its length.

use super::plan::Kind;
use super::{ArchiveError, MAX_ENTRIES, Visitor};
use std::cell::Cell;
use std::io::{self, Read};
use tar::EntryType;

/// The longest pax header or long name, in bytes: macOS' extended attributes are in such headers.
const MAX_EXTENSION: u64 = 64 << 10;
/// How many of them there may be, and global ones.
const MAX_HEADERS: usize = 3 * MAX_ENTRIES;
/// What an archive may have beside the content of its files, in bytes: headers, padding (tar pads to blocks of 10 KiB, some
/// tools to more), extensions.
const OVERHEAD: u64 = 8 << 20;

/// Shows `visitor` every entry of the tar archive that `stream` is, uncompressed.
pub(crate) fn walk(stream: impl Read, max_bytes: u64, visitor: &mut dyn Visitor) -> Result<(), ArchiveError> {
    let spent = Cell::new(false);
    let room = max_bytes.saturating_add(OVERHEAD);
    let mut archive = tar::Archive::new(Bounded { stream, room, spent: &spent });
    let result = entries(&mut archive, visitor).and_then(|()| padding(archive.into_inner()));
    match result {
        Err(_) if spent.get() => Err(ArchiveError::TooLarge { limit: max_bytes }),
        result => result,
    }
}

fn entries(archive: &mut tar::Archive<impl Read>, visitor: &mut dyn Visitor) -> Result<(), ArchiveError> {
    let mut long_name: Option<String> = None;
    let name_once = |known: &Option<String>, header: &str| match known {
        Some(_) => Err(ArchiveError::forbidden("a file with two long names", header)),
        None => Ok(()),
    };
    for (number, entry) in archive.entries().map_err(ArchiveError::Damaged)?.raw(true).enumerate() {
        if number >= MAX_HEADERS {
            return Err(ArchiveError::TooMany);
        }
        let mut entry = entry.map_err(ArchiveError::Damaged)?;
        let length = entry.header().entry_size().map_err(ArchiveError::Damaged)?;
        let short_name = text(entry.path_bytes().as_ref())?;
        match entry.header().entry_type() {
            EntryType::GNULongName => {
                let bytes = extension(&mut entry, &short_name)?;
                let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
                name_once(&long_name, &short_name)?;
                long_name = Some(text(name)?);
            }
            EntryType::XHeader => {
                if let Some(name) = pax(&extension(&mut entry, &short_name)?, &short_name)? {
                    name_once(&long_name, &short_name)?;
                    long_name = Some(name);
                }
            }
            // For all entries after it: there is nothing that could be said of all of them but times and owners.
            EntryType::XGlobalHeader => {
                if pax(&extension(&mut entry, &short_name)?, &short_name)?.is_some() {
                    return Err(ArchiveError::forbidden("one name for all files", &short_name));
                }
            }
            kind => {
                let name = long_name.take().unwrap_or(short_name);
                let kind = match kind {
                    EntryType::Regular => Kind::File(length),
                    EntryType::Directory if length == 0 => Kind::Folder,
                    EntryType::Directory => return Err(ArchiveError::forbidden("a folder with content", &name)),
                    EntryType::Symlink | EntryType::Link | EntryType::GNULongLink => {
                        return Err(ArchiveError::forbidden("a link", &name));
                    }
                    EntryType::GNUSparse => return Err(ArchiveError::forbidden("a sparse file", &name)),
                    _ => return Err(ArchiveError::forbidden("something that is neither a file nor a folder", &name)),
                };
                visitor.entry(&name, kind, &mut entry)?;
            }
        }
    }
    match long_name {
        Some(name) => Err(ArchiveError::forbidden("a name without a file", &name)),
        None => Ok(()),
    }
}

fn text(bytes: &[u8]) -> Result<String, ArchiveError> {
    String::from_utf8(bytes.to_vec())
        .map_err(|_| ArchiveError::forbidden("a name that is not UTF-8", &String::from_utf8_lossy(bytes)))
}

fn extension(entry: &mut impl Read, name: &str) -> Result<Vec<u8>, ArchiveError> {
    let mut bytes = Vec::new();
    entry.take(MAX_EXTENSION + 1).read_to_end(&mut bytes).map_err(ArchiveError::Damaged)?;
    if bytes.len() as u64 > MAX_EXTENSION {
        return Err(ArchiveError::forbidden("a header that is too long", name));
    }
    Ok(bytes)
}

/// The name in pax records, if there is one. Records that would change what a file is are refused; all others are of times,
/// owners and attributes, which mean nothing here.
fn pax(records: &[u8], header: &str) -> Result<Option<String>, ArchiveError> {
    let mut name = None;
    for record in tar::PaxExtensions::new(records) {
        let record = record.map_err(ArchiveError::Damaged)?;
        match record.key_bytes() {
            b"path" => name = Some(text(record.value_bytes())?),
            // Needed above 8 GiB only.
            b"size" => return Err(ArchiveError::forbidden("a file with two lengths", header)),
            b"linkpath" => return Err(ArchiveError::forbidden("a link", header)),
            key if key.starts_with(b"GNU.sparse") => return Err(ArchiveError::forbidden("a sparse file", header)),
            _ => {}
        }
    }
    Ok(name)
}

/// tar ends at its end mark; zeros may come after it, and then the checksums and the index of xz.
fn padding(mut rest: impl Read) -> Result<(), ArchiveError> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = rest.read(&mut buffer).map_err(ArchiveError::Damaged)?;
        if read == 0 {
            return Ok(());
        }
        if buffer[..read].iter().any(|byte| *byte != 0) {
            return Err(ArchiveError::damaged("something comes after its end"));
        }
    }
}

/// A stream that ends with an error after so many bytes: whatever is skipped was unpacked, too.
struct Bounded<'a, R> {
    stream: R,
    room: u64,
    spent: &'a Cell<bool>,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer)?;
        match self.room.checked_sub(read as u64) {
            Some(room) => self.room = room,
            None => {
                self.spent.set(true);
                return Err(io::Error::other("it unpacks to more than it may"));
            }
        }
        Ok(read)
    }
}
