//! Walking a zip archive (PKWARE's APPNOTE.TXT 6.3.10), as strictly as it can be read.
//!
//! A zip says most things twice: in each file's own header, and in the directory at its end. Programs that believe one or
//! the other unpack different files from the same bytes, so here both must agree, and every byte of the archive must belong
//! to exactly one entry or to the directory. Stored and deflated files are read; encryption, parts, comments and zip64, which
//! no release below 4 GiB needs, are refused.

use super::plan::Kind;
use super::{ArchiveError, MAX_ENTRIES, Visitor};
use std::io::{self, BufReader, Read, Seek, SeekFrom};

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const LOCAL_BYTES: u64 = 30;
const CENTRAL_BYTES: usize = 46;
const END_BYTES: u64 = 22;
/// The largest directory, in bytes: 1,000 entries with names, times and owners.
const MAX_DIRECTORY: u64 = 1 << 20;
/// A length or offset of 32 bits that is to be found elsewhere (zip64).
const ELSEWHERE: u32 = u32::MAX;
/// After a file's content, its checksum and lengths once more, with or without a signature (§4.3.9).
const MAX_DESCRIPTOR: u64 = 16;

/// Bit 0: encrypted. Bits 1 and 2: how hard the compressor tried. Bit 3: a descriptor follows. Bit 11: names are UTF-8.
const FLAG_DESCRIPTOR: u16 = 1 << 3;
const FLAG_ENCRYPTED: u16 = 1;
const KNOWN_FLAGS: u16 = 0b1000_0000_1110;

const STORED: u16 = 0;
const DEFLATED: u16 = 8;

/// The type of a file in the upper half of the external attributes, as Unix has it (`S_IFMT` and its values).
const TYPE: u32 = 0o170_000;
const TYPE_LINK: u32 = 0o120_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_FOLDER: u32 = 0o040_000;

/// An entry of the directory.
struct Entry {
    name: String,
    flags: u16,
    method: u16,
    crc: u32,
    compressed: u32,
    length: u32,
    attributes: u32,
    offset: u32,
}

/// Shows `visitor` every entry of `archive`, in the order of the directory.
pub(super) fn walk<R: Read + Seek>(archive: &mut R, visitor: &mut dyn Visitor) -> Result<(), ArchiveError> {
    let (entries, directory) = directory(archive)?;
    let mut spans = Vec::with_capacity(entries.len());
    for entry in &entries {
        let begin = local(archive, entry)?;
        spans.push((u64::from(entry.offset), begin + u64::from(entry.compressed), entry.flags));
    }
    check_spans(spans, directory)?;
    for entry in &entries {
        let kind = kind(entry)?;
        let begin = local(archive, entry)?;
        archive.seek(SeekFrom::Start(begin)).map_err(ArchiveError::Damaged)?;
        let content = archive.by_ref().take(entry.compressed.into());
        match entry.method {
            STORED => visitor.entry(&entry.name, kind, &mut Checked::new(content, entry))?,
            _ => {
                let content = flate2::bufread::DeflateDecoder::new(BufReader::new(content));
                visitor.entry(&entry.name, kind, &mut Checked::new(content, entry))?;
            }
        }
    }
    Ok(())
}

/// Reads the directory; returns it and where it begins.
fn directory<R: Read + Seek>(archive: &mut R) -> Result<(Vec<Entry>, u64), ArchiveError> {
    let length = archive.seek(SeekFrom::End(0)).map_err(ArchiveError::Damaged)?;
    let end = length.checked_sub(END_BYTES).ok_or_else(|| ArchiveError::damaged("it is too short for a zip"))?;
    let bytes = read(archive, end, END_BYTES)?;
    let mut fields = Fields(&bytes);
    if fields.u32()? != END {
        return Err(ArchiveError::damaged("a zip's directory does not end where it ends, or has a comment"));
    }
    let (disk, of_directory, here, count) = (fields.u16()?, fields.u16()?, fields.u16()?, fields.u16()?);
    let (size, offset, comment) = (fields.u32()?, fields.u32()?, fields.u16()?);
    if count == u16::MAX || size == ELSEWHERE || offset == ELSEWHERE {
        return Err(ArchiveError::damaged("it is in zip64, which no release needs"));
    }
    if (disk, of_directory, comment) != (0, 0, 0) || here != count {
        return Err(ArchiveError::damaged("it is a part of an archive, or has a comment"));
    }
    if usize::from(count) > MAX_ENTRIES {
        return Err(ArchiveError::TooMany);
    }
    if u64::from(size) > MAX_DIRECTORY || u64::from(offset) + u64::from(size) != end {
        return Err(ArchiveError::damaged("a zip's directory is not where it says"));
    }
    let bytes = read(archive, offset.into(), size.into())?;
    let mut fields = Fields(&bytes);
    let entries = (0..count).map(|_| central(&mut fields)).collect::<Result<Vec<Entry>, ArchiveError>>()?;
    match fields.0 {
        [] => Ok((entries, offset.into())),
        _ => Err(ArchiveError::damaged("a zip's directory holds more than it says")),
    }
}

fn central(fields: &mut Fields<'_>) -> Result<Entry, ArchiveError> {
    if fields.0.len() < CENTRAL_BYTES || fields.u32()? != CENTRAL {
        return Err(ArchiveError::damaged("a zip's directory holds less than it says"));
    }
    let (_made_by, _needs) = (fields.u16()?, fields.u16()?);
    let (flags, method, _time) = (fields.u16()?, fields.u16()?, fields.u32()?);
    let (crc, compressed, length) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let (name, extra, comment) = (fields.u16()?, fields.u16()?, fields.u16()?);
    let (disk, _internal, attributes, offset) = (fields.u16()?, fields.u16()?, fields.u32()?, fields.u32()?);
    let name = text(fields.take(name.into())?)?;
    fields.take(extra.into())?;
    fields.take(comment.into())?;
    let forbidden = |what| Err(ArchiveError::forbidden(what, &name));
    if flags & FLAG_ENCRYPTED != 0 {
        return forbidden("an encrypted file");
    }
    if disk != 0 || [compressed, length, offset].contains(&ELSEWHERE) || flags & !KNOWN_FLAGS != 0 {
        return forbidden("a file in parts, in zip64 or with unknown flags");
    }
    if ![STORED, DEFLATED].contains(&method) {
        return forbidden("a file that is neither stored nor deflated");
    }
    if method == STORED && compressed != length {
        return forbidden("a file with two lengths");
    }
    Ok(Entry { name, flags, method, crc, compressed, length, attributes, offset })
}

/// Checks an entry's own header against the directory; returns where its content begins.
fn local<R: Read + Seek>(archive: &mut R, entry: &Entry) -> Result<u64, ArchiveError> {
    let differs = || ArchiveError::forbidden("a file whose header is not what the directory says", &entry.name);
    let offset = u64::from(entry.offset);
    let bytes = read(archive, offset, LOCAL_BYTES)?;
    let mut fields = Fields(&bytes);
    let (signature, _needs, flags, method) = (fields.u32()?, fields.u16()?, fields.u16()?, fields.u16()?);
    let _time = fields.u32()?;
    let lengths = (fields.u32()?, fields.u32()?, fields.u32()?);
    let (name, extra) = (fields.u16()?, fields.u16()?);
    // Whoever writes a descriptor may not know the lengths beforehand.
    let unsaid = entry.flags & FLAG_DESCRIPTOR != 0 && lengths == (0, 0, 0);
    let agrees = lengths == (entry.crc, entry.compressed, entry.length) || unsaid;
    if signature != LOCAL || (flags, method) != (entry.flags, entry.method) || !agrees {
        return Err(differs());
    }
    if usize::from(name) != entry.name.len()
        || read(archive, offset + LOCAL_BYTES, name.into())? != entry.name.as_bytes()
    {
        return Err(differs());
    }
    Ok(offset + LOCAL_BYTES + u64::from(name) + u64::from(extra))
}

/// Whether the entries, each from its header to the end of its content, fill the archive up to the directory.
fn check_spans(mut spans: Vec<(u64, u64, u16)>, directory: u64) -> Result<(), ArchiveError> {
    spans.sort_unstable();
    let mut at = 0;
    let mut gap = 0;
    for (begin, end, flags) in spans {
        check_gap(at, begin, gap)?;
        at = end;
        gap = if flags & FLAG_DESCRIPTOR == 0 { 0 } else { MAX_DESCRIPTOR };
    }
    check_gap(at, directory, gap)
}

fn check_gap(end: u64, next: u64, allowed: u64) -> Result<(), ArchiveError> {
    match next.checked_sub(end) {
        None => Err(ArchiveError::damaged("files in it overlap")),
        Some(gap) if gap > allowed => Err(ArchiveError::damaged("it holds bytes that belong to no file")),
        Some(_) => Ok(()),
    }
}

fn kind(entry: &Entry) -> Result<Kind, ArchiveError> {
    let forbidden = |what| Err(ArchiveError::forbidden(what, &entry.name));
    let is_folder = entry.name.ends_with('/');
    match (entry.attributes >> 16) & TYPE {
        TYPE_LINK => return forbidden("a link"),
        TYPE_FILE if !is_folder => {}
        TYPE_FOLDER if is_folder => {}
        0 => {}
        _ => return forbidden("something that is neither a file nor a folder"),
    }
    match (is_folder, entry.length) {
        (true, 0) => Ok(Kind::Folder),
        (true, _) => forbidden("a folder with content"),
        (false, length) => Ok(Kind::File(length.into())),
    }
}

fn text(bytes: &[u8]) -> Result<String, ArchiveError> {
    String::from_utf8(bytes.to_vec())
        .map_err(|_| ArchiveError::forbidden("a name that is not UTF-8", &String::from_utf8_lossy(bytes)))
}

fn read<R: Read + Seek>(archive: &mut R, at: u64, length: u64) -> Result<Vec<u8>, ArchiveError> {
    archive.seek(SeekFrom::Start(at)).map_err(ArchiveError::Damaged)?;
    let mut bytes = Vec::new();
    archive.by_ref().take(length).read_to_end(&mut bytes).map_err(ArchiveError::Damaged)?;
    if bytes.len() as u64 == length { Ok(bytes) } else { Err(ArchiveError::damaged("it ends too early")) }
}

/// Numbers in little-endian order, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], ArchiveError> {
        let (taken, rest) =
            self.0.split_at_checked(length).ok_or_else(|| ArchiveError::damaged("a header in it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, ArchiveError> {
        Ok(self.take(2)?.iter().rev().fold(0, |value, byte| (value << 8) | u16::from(*byte)))
    }

    fn u32(&mut self) -> Result<u32, ArchiveError> {
        Ok(self.take(4)?.iter().rev().fold(0, |value, byte| (value << 8) | u32::from(*byte)))
    }
}

/// The content of a file, which must have the length and the checksum that were said.
struct Checked<R> {
    content: R,
    crc: crc32fast::Hasher,
    expected: u32,
    room: u64,
}

impl<R: Read> Checked<R> {
    fn new(content: R, entry: &Entry) -> Self {
        Self { content, crc: crc32fast::Hasher::new(), expected: entry.crc, room: entry.length.into() }
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let damaged = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        let read = self.content.read(buffer)?;
        self.room = self.room.checked_sub(read as u64).ok_or_else(|| damaged("a file in it is longer than it says"))?;
        self.crc.update(&buffer[..read]);
        if read > 0 || buffer.is_empty() {
            return Ok(read);
        }
        match (self.room, self.crc.clone().finalize() == self.expected) {
            (0, true) => Ok(0),
            (0, false) => Err(damaged("a file in it has another checksum than it says")),
            _ => Err(damaged("a file in it is shorter than it says")),
        }
    }
}
