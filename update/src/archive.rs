//! Unpacking `.tar.xz` and `.zip`: regular files and folders, inside one folder, within limits that come from signed
//! metadata.
//!
//! Refused: absolute paths, `..`, links, devices, anything else that is not a file or a folder, two entries of one
//! name, more entries or bytes than allowed, an xz dictionary that would not fit in memory. A single top-level folder,
//! as cargo-dist makes it, is left out of the names.

use picket_durable::Context;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Component, Path, PathBuf};

/// A release has the executable and a handful of texts.
const MAX_ENTRIES: usize = 1_000;
/// The most memory an xz stream may ask for, in KiB: preset 9, cargo-dist's, has a 64 MiB dictionary.
const MAX_XZ_MEMORY_KIB: u32 = 96 << 10;

/// The most bytes that may follow a tar archive's end mark: tar pads to blocks of 10 KiB, some tools to more.
const MAX_PADDING: u64 = 1 << 20;

/// An archive format, by the artifact's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// tar in xz: what cargo-dist makes for Unix.
    TarXz,
    /// zip: what cargo-dist makes for Windows.
    Zip,
}

/// An archive that is not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Its name says no known format.
    #[error("{0:?} is no archive this version can unpack (.tar.xz or .zip)")]
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

impl Format {
    /// The format of the artifact called `name`.
    pub fn of(name: &str) -> Result<Self, ArchiveError> {
        if name.ends_with(".tar.xz") {
            Ok(Self::TarXz)
        } else if name.to_ascii_lowercase().ends_with(".zip") {
            Ok(Self::Zip)
        } else {
            Err(ArchiveError::UnknownFormat(name.to_owned()))
        }
    }
}

/// Unpacks the archive at `path` into the empty folder `into`; at most `max_bytes` are written.
///
/// # Errors
/// See [`ArchiveError`]; what was written until then is left for the caller to remove.
pub fn unpack(path: &Path, format: Format, into: &Path, max_bytes: u64) -> Result<(), ArchiveError> {
    let file = File::open(path).doing("open", path)?;
    let mut unpacker = Unpacker { into, room: max_bytes, limit: max_bytes, seen: BTreeSet::new() };
    let prefix = match format {
        Format::TarXz => common_folder(&tar_names(path)?),
        Format::Zip => common_folder(&zip_names(path)?),
    };
    match format {
        Format::TarXz => unpack_tar(file, &mut unpacker, prefix.as_deref())?,
        Format::Zip => unpack_zip(file, &mut unpacker, prefix.as_deref())?,
    }
    let executable = into.join(picket_layout::EXECUTABLE);
    if executable.is_file() { Ok(()) } else { Err(ArchiveError::NoExecutable) }
}

fn tar(file: File) -> tar::Archive<impl Read> {
    let xz = lzma_rust2::XzReader::new_mem_limit(BufReader::new(file), false, MAX_XZ_MEMORY_KIB);
    tar::Archive::new(xz)
}

fn tar_names(path: &Path) -> Result<Vec<PathBuf>, ArchiveError> {
    let mut archive = tar(File::open(path).doing("open", path)?);
    let mut names = Vec::new();
    for entry in archive.entries().map_err(ArchiveError::Damaged)? {
        if names.len() >= MAX_ENTRIES {
            return Err(ArchiveError::TooMany);
        }
        let entry = entry.map_err(ArchiveError::Damaged)?;
        names.push(entry.path().map_err(ArchiveError::Damaged)?.into_owned());
    }
    Ok(names)
}

fn unpack_tar(file: File, unpacker: &mut Unpacker<'_>, prefix: Option<&Path>) -> Result<(), ArchiveError> {
    let mut archive = tar(file);
    for entry in archive.entries().map_err(ArchiveError::Damaged)? {
        let entry = entry.map_err(ArchiveError::Damaged)?;
        let path = entry.path().map_err(ArchiveError::Damaged)?.into_owned();
        match entry.header().entry_type() {
            tar::EntryType::Regular => unpacker.file(&path, prefix, entry)?,
            tar::EntryType::Directory => unpacker.folder(&path, prefix)?,
            tar::EntryType::Symlink | tar::EntryType::Link => return Err(forbidden("a link", &path)),
            _ => return Err(forbidden("something that is neither a file nor a folder", &path)),
        }
    }
    // tar ends at its end mark; xz's own checksums and index come after it, and padding before them.
    let rest = io::copy(&mut archive.into_inner().take(MAX_PADDING), &mut io::sink()).map_err(ArchiveError::Damaged)?;
    if rest < MAX_PADDING { Ok(()) } else { Err(ArchiveError::TooLarge { limit: unpacker.limit }) }
}

fn zip(file: File) -> Result<zip::ZipArchive<BufReader<File>>, ArchiveError> {
    let archive = zip::ZipArchive::new(BufReader::new(file)).map_err(damaged_zip)?;
    if archive.len() > MAX_ENTRIES { Err(ArchiveError::TooMany) } else { Ok(archive) }
}

fn damaged_zip(error: zip::result::ZipError) -> ArchiveError {
    ArchiveError::Damaged(io::Error::new(io::ErrorKind::InvalidData, error))
}

fn zip_names(path: &Path) -> Result<Vec<PathBuf>, ArchiveError> {
    let archive = zip(File::open(path).doing("open", path)?)?;
    (0..archive.len())
        .map(|index| {
            let name = archive.name_for_index(index).transpose().map_err(damaged_zip)?;
            Ok(PathBuf::from(name.unwrap_or_default().into_owned()))
        })
        .collect()
}

fn unpack_zip(file: File, unpacker: &mut Unpacker<'_>, prefix: Option<&Path>) -> Result<(), ArchiveError> {
    let mut archive = zip(file)?;
    for index in 0..archive.len() {
        let entry = archive.by_index(index).map_err(damaged_zip)?;
        let path = PathBuf::from(entry.name().map_err(damaged_zip)?.into_owned());
        if entry.is_symlink() {
            return Err(forbidden("a link", &path));
        } else if entry.is_dir() {
            unpacker.folder(&path, prefix)?;
        } else {
            unpacker.file(&path, prefix, entry)?;
        }
    }
    Ok(())
}

fn forbidden(what: &'static str, path: &Path) -> ArchiveError {
    ArchiveError::Forbidden { what, path: path.to_string_lossy().chars().take(200).collect() }
}

/// The one folder that holds everything, if there is one.
fn common_folder(names: &[PathBuf]) -> Option<PathBuf> {
    let mut folders = names.iter().map(|name| name.components().next().map(|first| first.as_os_str().to_owned()));
    let first = folders.next()??;
    let shared = folders.all(|folder| folder.as_ref() == Some(&first));
    let nested = names.iter().any(|name| name.components().count() > 1);
    (shared && nested).then(|| first.into())
}

struct Unpacker<'a> {
    into: &'a Path,
    room: u64,
    limit: u64,
    seen: BTreeSet<PathBuf>,
}

/// Where an entry goes; `None` for the folder that is left out of the names.
fn place(path: &Path, prefix: Option<&Path>) -> Result<Option<PathBuf>, ArchiveError> {
    if path.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(forbidden("a path that leaves its folder", path));
    }
    let path: PathBuf = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    let path = prefix.and_then(|prefix| path.strip_prefix(prefix).ok()).unwrap_or(&path).to_owned();
    Ok(if path.as_os_str().is_empty() { None } else { Some(path) })
}

impl Unpacker<'_> {
    fn folder(&mut self, path: &Path, prefix: Option<&Path>) -> Result<(), ArchiveError> {
        if let Some(place) = place(path, prefix)? {
            picket_durable::create_dir(&self.into.join(place), 0o755)?;
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, prefix: Option<&Path>, content: impl Read) -> Result<(), ArchiveError> {
        let Some(place) = place(path, prefix)? else { return Err(forbidden("a file without a name", path)) };
        if !self.seen.insert(place.clone()) {
            return Err(forbidden("two files of one name", path));
        }
        let target = self.into.join(&place);
        if let Some(parent) = target.parent() {
            picket_durable::create_dir(parent, 0o755)?;
        }
        // The archive's own modes mean nothing: what is executable is decided here.
        let mode = if place == Path::new(picket_layout::EXECUTABLE) { 0o755 } else { 0o644 };
        let mut file = picket_durable::create_new(&target, mode)?;
        self.copy(content, &mut file, &target)
    }

    fn copy(&mut self, mut content: impl Read, file: &mut File, target: &Path) -> Result<(), ArchiveError> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = content.read(&mut buffer).map_err(ArchiveError::Damaged)?;
            if read == 0 {
                return Ok(());
            }
            self.room = self.room.checked_sub(read as u64).ok_or(ArchiveError::TooLarge { limit: self.limit })?;
            file.write_all(&buffer[..read]).doing("write", target)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Entry<'a> = (&'a str, &'a [u8], tar::EntryType);
    const FILE: tar::EntryType = tar::EntryType::Regular;

    fn tar_xz(dir: &Path, entries: &[Entry<'_>]) -> PathBuf {
        let path = dir.join("a.tar.xz");
        let xz =
            lzma_rust2::XzWriter::new(File::create(&path).unwrap(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
        let mut builder = tar::Builder::new(xz);
        for (name, content, kind) in entries {
            let mut header = tar::Header::new_gnu();
            // `set_path` refuses what an attacker would write, so the bytes are set by hand.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(content.len() as u64);
            header.set_mode(0o6777);
            header.set_entry_type(*kind);
            if kind.is_symlink() || kind.is_hard_link() {
                header.set_link_name("/etc/passwd").unwrap();
            }
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.into_inner().unwrap().finish().unwrap();
        path
    }

    fn unpacked(entries: &[Entry<'_>], max_bytes: u64) -> Result<Vec<String>, ArchiveError> {
        let dir = tempfile::tempdir().unwrap();
        let archive = tar_xz(dir.path(), entries);
        let into = dir.path().join("into");
        std::fs::create_dir(&into).unwrap();
        unpack(&archive, Format::TarXz, &into, max_bytes)?;
        let mut names: Vec<String> =
            std::fs::read_dir(&into).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        Ok(names)
    }

    #[test]
    fn an_archive_of_cargo_dist_is_unpacked_without_its_folder() {
        let entries: [Entry<'_>; 3] = [
            ("picket-x/", b"", tar::EntryType::Directory),
            ("picket-x/picket", b"#!", FILE),
            ("picket-x/README.md", b"read", FILE),
        ];
        assert_eq!(unpacked(&entries, 100).unwrap(), ["README.md", "picket"]);
        assert_eq!(unpacked(&[("picket", b"#!", FILE)], 100).unwrap(), ["picket"]);
    }

    #[test]
    fn only_the_executable_is_executable_whatever_the_archive_says() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let archive = tar_xz(dir.path(), &[("picket", b"#!", FILE), ("README.md", b"read", FILE)]);
        unpack(&archive, Format::TarXz, dir.path(), 100).unwrap();
        let mode = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("picket"), mode("README.md")), (0o755, 0o644));
    }

    #[test]
    fn whatever_could_leave_the_folder_or_is_no_file_is_refused() {
        let cases: [(Entry<'_>, &str); 6] = [
            (("../evil", b"x", FILE), "leaves its folder"),
            (("/etc/evil", b"x", FILE), "leaves its folder"),
            (("a/../../evil", b"x", FILE), "leaves its folder"),
            (("picket", b"", tar::EntryType::Symlink), "a link"),
            (("picket", b"", tar::EntryType::Link), "a link"),
            (("picket", b"", tar::EntryType::Char), "neither a file nor a folder"),
        ];
        for (entry, expected) in cases {
            let error = unpacked(&[("ok/picket", b"#!", FILE), entry], 100).unwrap_err().to_string();
            assert!(error.contains(expected), "{}: {error}", entry.0);
        }
        let twice = unpacked(&[("picket", b"1", FILE), ("picket", b"2", FILE)], 100).unwrap_err().to_string();
        assert!(twice.contains("two files of one name"), "{twice}");
    }

    #[test]
    fn a_bomb_is_broken_off_at_the_declared_size() {
        let zeros = vec![0; 10 << 20];
        assert!(matches!(unpacked(&[("picket", &zeros, FILE)], 1 << 20), Err(ArchiveError::TooLarge { .. })));
        let many: Vec<String> = (0..=MAX_ENTRIES).map(|i| format!("f{i}")).collect();
        let many: Vec<Entry<'_>> = many.iter().map(|name| (name.as_str(), &b""[..], FILE)).collect();
        assert!(matches!(unpacked(&many, 100), Err(ArchiveError::TooMany)));
    }

    #[test]
    fn a_damaged_or_cut_archive_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let archive = tar_xz(dir.path(), &[("picket", &[7; 5000], FILE)]);
        let bytes = picket_durable::read_bounded(&archive, 1 << 20).unwrap();
        for cut in [0, 1, 20, bytes.len() / 2, bytes.len() - 1] {
            picket_durable::write_atomic(&archive, &bytes[..cut], 0o600).unwrap();
            assert!(unpack(&archive, Format::TarXz, dir.path(), 10_000).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_zip_is_unpacked_under_the_same_rules() {
        let dir = tempfile::tempdir().unwrap();
        let make = |names: &[&str]| {
            let path = dir.path().join("a.zip");
            let mut writer = zip::ZipWriter::new(File::create(&path).unwrap());
            for name in names {
                writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
                writer.write_all(b"content").unwrap();
            }
            writer.finish().unwrap();
            path
        };
        unpack(&make(&["x/picket", "x/LICENSE"]), Format::Zip, dir.path(), 100).unwrap();
        assert!(dir.path().join("picket").is_file());
        let error = unpack(&make(&["x/picket", "../evil"]), Format::Zip, dir.path(), 100).unwrap_err();
        assert!(error.to_string().contains("leaves its folder"), "{error}");
        assert!(matches!(
            unpack(&make(&["picket"]), Format::Zip, dir.path(), 3),
            Err(ArchiveError::TooLarge { limit: 3 })
        ));
    }
}
