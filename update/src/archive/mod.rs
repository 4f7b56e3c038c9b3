//! Unpacking `.tar.xz`, `.tar.zst` and `.zip`: regular files and folders, inside one folder, within limits that come from
//! signed metadata.
//!
//! An archive is walked twice. The first walk reads names, kinds and lengths and makes a [`plan`] of them, in which every
//! rule is applied; only what has a place in the plan is written by the second. Refused: absolute paths, `..`, links,
//! devices, sparse files, anything else that is not a file or a folder; two entries of one name, also where only case
//! differs; a file where a folder is; more entries or bytes than allowed; a dictionary or window that would not fit in
//! memory; what two readers of a zip would read differently. A single top-level folder, as cargo-dist makes it, is left out
//! of the names.

mod plan;
mod tar;
#[cfg(test)]
mod tests;
mod zip;

pub(crate) use plan::Kind;
pub(crate) use tar::walk as walk_tar;

use picket_durable::Context;
use plan::Plan;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::Path;

/// A release has the executable and a handful of texts.
const MAX_ENTRIES: usize = 1_000;
/// The most memory an xz stream may ask for, in KiB: preset 9, cargo-dist's, has a 64 MiB dictionary.
const MAX_XZ_MEMORY_KIB: u32 = 96 << 10;
/// The largest window of a zstd stream, as a power of two: 64 MiB, as for xz. Level 19 has 8 MiB, `--ultra -21` 64 MiB.
const MAX_ZSTD_WINDOW: u32 = 26;

/// An archive format, by the artifact's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// tar in xz: what cargo-dist makes for Unix.
    TarXz,
    /// tar in zstd: unpacked in a tenth of the time.
    TarZst,
    /// zip: what cargo-dist makes for Windows.
    Zip,
}

/// An archive that is not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Its name says no known format.
    #[error("{0:?} is no archive this version can unpack ({formats})", formats = Format::all())]
    UnknownFormat(String),
    /// It is damaged.
    #[error("the archive is damaged")]
    Damaged(#[source] io::Error),
    /// It holds something that has no place in a release.
    #[error("the archive holds {what}: {path:?}")]
    Forbidden {
        /// What it is.
        what: &'static str,
        /// Its name in the archive.
        path: String,
    },
    /// It is larger than the vendor said.
    #[error("the archive unpacks to more than the {limit} bytes the vendor declared")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// It has too many entries.
    #[error("the archive has more than {MAX_ENTRIES} entries")]
    TooMany,
    /// It has no executable.
    #[error("the archive holds no executable called {:?}", picket_layout::EXECUTABLE)]
    NoExecutable,
    /// A file could not be written.
    #[error("the archive cannot be unpacked")]
    File(#[from] picket_durable::Error),
}

impl ArchiveError {
    fn damaged(why: &'static str) -> Self {
        Self::Damaged(io::Error::new(io::ErrorKind::InvalidData, why))
    }

    pub(crate) fn forbidden(what: &'static str, path: &str) -> Self {
        Self::Forbidden { what, path: path.chars().take(200).collect() }
    }
}

impl Format {
    /// Every format, with the ending of its files' names.
    pub const ENDINGS: [(&'static str, Self); 3] =
        [(".tar.xz", Self::TarXz), (".tar.zst", Self::TarZst), (".zip", Self::Zip)];

    /// The format of the artifact called `name`.
    pub fn of(name: &str) -> Result<Self, ArchiveError> {
        let lower = name.to_ascii_lowercase();
        let found = Self::ENDINGS.into_iter().find(|(ending, _)| lower.ends_with(ending));
        found.map(|(_, format)| format).ok_or_else(|| ArchiveError::UnknownFormat(name.to_owned()))
    }

    fn all() -> String {
        Self::ENDINGS.map(|(ending, _)| ending).join(", ")
    }
}

/// What is done with each entry of an archive, in its order.
pub(crate) trait Visitor {
    /// A folder called `name`, or a file of `length` bytes, which are `content`.
    fn entry(&mut self, name: &str, kind: Kind, content: &mut dyn Read) -> Result<(), ArchiveError>;
}

/// Unpacks the archive at `path` into the empty folder `into`; at most `max_bytes` are written.
///
/// # Errors
/// See [`ArchiveError`]; what was written until then is left for the caller to remove.
pub fn unpack(path: &Path, format: Format, into: &Path, max_bytes: u64) -> Result<(), ArchiveError> {
    let mut file = File::open(path).doing("open", path)?;
    let mut listing = Listing { plan: Plan::new(max_bytes) };
    walk(&mut file, format, max_bytes, &mut listing)?;
    let places = listing.plan.places()?;
    file.rewind().doing("rewind", path)?;
    walk(&mut file, format, max_bytes, &mut Unpacking { into, places: places.into_iter() })
}

/// The names of the files in an archive as they would be unpacked, with their lengths: every rule is applied, and nothing
/// is written.
///
/// # Errors
/// See [`ArchiveError`].
pub fn list<R: Read + Seek>(
    mut archive: R,
    format: Format,
    max_bytes: u64,
) -> Result<Vec<(String, u64)>, ArchiveError> {
    let mut listing = Listing { plan: Plan::new(max_bytes) };
    walk(&mut archive, format, max_bytes, &mut listing)?;
    let places = listing.plan.places()?.into_iter();
    Ok(places.filter_map(|(place, kind)| Some((place?, kind.length()?))).collect())
}

fn walk<R: Read + Seek>(
    archive: &mut R,
    format: Format,
    max_bytes: u64,
    visitor: &mut dyn Visitor,
) -> Result<(), ArchiveError> {
    let mut archive = BufReader::new(archive);
    match format {
        Format::TarXz => {
            let xz = lzma_rust2::XzReader::new_mem_limit(archive, false, MAX_XZ_MEMORY_KIB);
            tar::walk(xz, max_bytes, visitor)
        }
        Format::TarZst => {
            let mut zstd = zstd::Decoder::with_buffer(archive).map_err(ArchiveError::Damaged)?;
            zstd.window_log_max(MAX_ZSTD_WINDOW).map_err(ArchiveError::Damaged)?;
            tar::walk(zstd, max_bytes, visitor)
        }
        Format::Zip => zip::walk(&mut archive, visitor),
    }
}

/// The first walk.
struct Listing {
    plan: Plan,
}

impl Visitor for Listing {
    fn entry(&mut self, name: &str, kind: Kind, _: &mut dyn Read) -> Result<(), ArchiveError> {
        self.plan.add(name, kind)
    }
}

/// The second walk.
struct Unpacking<'a> {
    into: &'a Path,
    places: std::vec::IntoIter<(Option<String>, Kind)>,
}

impl Visitor for Unpacking<'_> {
    fn entry(&mut self, _: &str, kind: Kind, content: &mut dyn Read) -> Result<(), ArchiveError> {
        let changed = || ArchiveError::damaged("it changed while it was unpacked");
        let (place, planned) = self.places.next().filter(|(_, planned)| *planned == kind).ok_or_else(changed)?;
        let Some(place) = place else { return Ok(()) };
        let target = self.into.join(&place);
        let Some(length) = planned.length() else {
            picket_durable::create_dir(&target, 0o755)?;
            return Ok(());
        };
        if let Some(parent) = target.parent() {
            picket_durable::create_dir(parent, 0o755)?;
        }
        // The archive's own modes mean nothing: what is executable is decided here.
        let mode = if place == picket_layout::EXECUTABLE { 0o755 } else { 0o644 };
        let mut file = picket_durable::create_new(&target, mode)?;
        copy(content, length, &mut file, &target)
    }
}

/// Writes `length` bytes, which is all that there may be.
fn copy(content: &mut dyn Read, length: u64, file: &mut File, target: &Path) -> Result<(), ArchiveError> {
    let mut buffer = vec![0; 64 << 10];
    let mut room = length;
    loop {
        let read = content.read(&mut buffer).map_err(ArchiveError::Damaged)?;
        if read == 0 {
            let whole = || ArchiveError::damaged("a file in it ends too early");
            return if room == 0 { Ok(()) } else { Err(whole()) };
        }
        room = room.checked_sub(read as u64).ok_or_else(|| ArchiveError::damaged("a file in it is too long"))?;
        file.write_all(&buffer[..read]).doing("write", target)?;
    }
}
