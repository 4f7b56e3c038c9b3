//! Files that survive a power cut.
//!
//! Every change to a file or a link that Picket must find again after a crash goes through here. The rules, from the
//! POSIX text and from what ext4, xfs and btrfs do (`rename(2)`, `fsync(2)`, LWN 457667 "Ensuring data reaches disk"):
//!
//! 1. new bytes go to a temporary name in the *same folder*, never over the old ones;
//! 2. the file is synced before it gets its final name, or a power cut can leave the name with no bytes;
//! 3. the rename is atomic, so a reader sees the old or the new, never a part;
//! 4. the folder is synced after it, or a power cut can take the rename back.
//!
//! Temporary names are fixed (`.<name>.picket-new`), not random: what a crash leaves behind is overwritten by the next
//! attempt instead of piling up. Two writers of one file are excluded by the locks of their callers ([`Lock`]).

mod lock;

pub use lock::{Lock, LockError};

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// A file operation that failed: what was tried, on which path; the system's words are the source.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct Error {
    /// What was tried, as a verb: `write`, `rename`, `sync`.
    pub operation: &'static str,
    /// The path it was tried on.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// Shorthand for the results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Wraps what the system said about `operation` on `path`.
    pub fn new(operation: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self { operation, path: path.into(), source }
    }

    /// Whether the disk (or the quota) is full.
    pub fn is_disk_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }

    /// Whether the disk could not bring or take the bytes (`EIO`).
    pub fn is_disk_failure(&self) -> bool {
        self.source.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
    }

    /// Whether the path does not exist.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// Attaches operation and path to an I/O result.
pub trait Context<T> {
    /// Names what was tried, as a verb, and on which path.
    fn doing(self, operation: &'static str, path: &Path) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn doing(self, operation: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::new(operation, path, source))
    }
}

/// Replaces the file at `path` with `bytes` and permission bits `mode`, durably and atomically.
///
/// # Errors
/// The folder must exist and be writable. On any error the old file is untouched.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let temporary = temporary_name(path);
    let result = (|| {
        write_new(&temporary, bytes, mode)?;
        fs_rename(&temporary, path)
    })();
    if result.is_err() {
        // A full disk must not stay full because of us; the error that matters is the first one.
        let _ = fs::remove_file(&temporary);
    }
    result?;
    sync_parent(path)
}

/// [`write_atomic`] of a value as pretty JSON with a final newline.
pub fn write_json<T: serde::Serialize>(path: &Path, value: &T, mode: u32) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|e| Error::new("serialise", path, io::Error::other(e)))?;
    bytes.push(b'\n');
    write_atomic(path, &bytes, mode)
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let mut file = create_new(path, mode)?;
    file.write_all(bytes).doing("write", path)?;
    file.sync_all().doing("sync", path)?;
    check_length(&file, bytes.len() as u64).doing("write", path)
}

/// Whether a file has all that was written to it, as a disk or a file system that loses bytes does not say by itself. What
/// takes the place of another file, a key for one, must not be less than it.
fn check_length(file: &File, written: u64) -> io::Result<()> {
    let length = file.metadata()?.len();
    if length == written {
        return Ok(());
    }
    Err(io::Error::other(format!("{length} bytes arrived of {written} that the disk took")))
}

/// Creates `path` as a new, empty file with exactly `mode`; what an interrupted attempt left under the name is removed.
pub fn create_new(path: &Path, mode: u32) -> Result<File> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::new("replace", path, e)),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).doing("create", path)?;
    // The umask took bits away at creation; the caller's mode is meant as it is.
    file.set_permissions(fs::Permissions::from_mode(mode)).doing("set the mode of", path)?;
    Ok(file)
}

/// Copies the bytes of `from` into a new file `to` with exactly `mode`, synced under its final name.
pub fn copy_file(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let temporary = temporary_name(to);
    let mut source = File::open(from).doing("open", from)?;
    let result = (|| {
        let mut target = create_new(&temporary, mode)?;
        let copied = io::copy(&mut source, &mut target).doing("write", to)?;
        target.sync_all().doing("sync", to)?;
        check_length(&target, copied).doing("write", to)?;
        drop(target);
        fs_rename(&temporary, to)
    })();
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result?;
    sync_parent(to)
}

/// Points the symbolic link `link` at `target` with one atomic rename, then syncs the folder.
///
/// # Errors
/// Refuses to replace anything that is not a symbolic link: a folder or file there is somebody's, not ours.
pub fn replace_symlink(link: &Path, target: &Path) -> Result<()> {
    match fs::symlink_metadata(link) {
        Ok(meta) if !meta.file_type().is_symlink() => {
            return Err(Error::new("replace", link, io::Error::other("it is not a symbolic link")));
        }
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::new("inspect", link, e)),
        _ => {}
    }
    let temporary = temporary_name(link);
    remove_if_present(&temporary)?;
    symlink(target, &temporary).doing("create the link", &temporary)?;
    fs_rename(&temporary, link)?;
    sync_parent(link)
}

/// Renames `from` to `to` (same file system) and syncs both folders.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    fs_rename(from, to)?;
    sync_parent(to)?;
    if from.parent() == to.parent() { Ok(()) } else { sync_parent(from) }
}

#[expect(clippy::disallowed_methods, reason = "this is the durable wrapper the lint points to")]
fn fs_rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).doing("rename", to)
}

/// Exchanges the names of two files or folders (same file system) in one step and syncs their folders.
///
/// # Errors
/// Where the system or the file system cannot; nothing was changed then.
pub fn exchange(a: &Path, b: &Path) -> Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).map_err(io::Error::from).doing("exchange", b)?;
    }
    #[cfg(not(target_os = "linux"))]
    return Err(Error::new("exchange", b, io::Error::from(io::ErrorKind::Unsupported)));
    for path in [a, b] {
        if let Some(folder) = path.parent() {
            sync_dir(folder)?;
        }
    }
    Ok(())
}

/// Removes the file or link at `path` if it is there, and syncs the folder; says whether it was there.
pub fn remove_if_present(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path).map(|()| true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::new("remove", path, e)),
    }
}

/// Removes the folder at `path` with all it holds if it is there; says whether it was there. Never follows links.
pub fn remove_tree(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.is_dir() => return remove_if_present(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        _ => {}
    }
    fs::remove_dir_all(path).doing("remove", path)?;
    sync_parent(path).map(|()| true)
}

/// Creates the folder `path`, and the missing ones above it, with exactly `mode`; says whether `path` was new.
pub fn create_dir(path: &Path, mode: u32) -> Result<bool> {
    if path.is_dir() {
        return Ok(false);
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.is_dir()) {
        create_dir(parent, 0o755)?;
    }
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => return Ok(false),
        result => result.doing("create the folder", path)?,
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).doing("set the mode of", path)?;
    sync_parent(path).map(|()| true)
}

/// Syncs the folder `path`: the names in it survive a power cut.
pub fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).doing("sync", path)
}

/// Syncs every file and folder below `path`, then `path` itself: all of it survives a power cut.
pub fn sync_tree(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).doing("list", path)? {
        let entry = entry.doing("list", path)?;
        let kind = entry.file_type().doing("inspect", &entry.path())?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path()).and_then(|file| file.sync_all()).doing("sync", &entry.path())?;
        }
    }
    sync_dir(path)
}

fn sync_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
    }
}

/// Reads the whole file at `path`, refusing one larger than `max_bytes` before it is in memory.
pub fn read_bounded(path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let file = File::open(path).doing("read", path)?;
    read_open(file, path, max_bytes)
}

/// [`read_bounded`] of a UTF-8 file.
pub fn read_text(path: &Path, max_bytes: u64) -> Result<String> {
    let bytes = read_bounded(path, max_bytes)?;
    String::from_utf8(bytes).map_err(|e| Error::new("read", path, io::Error::new(io::ErrorKind::InvalidData, e)))
}

/// [`read_bounded`] that says `None` when there is no such file.
pub fn read_if_present(path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>> {
    match read_bounded(path, max_bytes) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(e),
    }
}

/// Reads a regular file in a folder that a less privileged user may write: follows no link, waits on no pipe.
pub fn read_untrusted(path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>> {
    use rustix::fs::OFlags;
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY).bits();
    #[expect(clippy::cast_possible_wrap, reason = "open flags are small positive numbers")]
    let file = match OpenOptions::new().read(true).custom_flags(flags as i32).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::new("read", path, e)),
    };
    if !file.metadata().doing("inspect", path)?.is_file() {
        return Err(Error::new("read", path, io::Error::other("it is not a regular file")));
    }
    read_open(file, path, max_bytes).map(Some)
}

/// Opens a regular file at `relative` below `dir`, where a less privileged user may write: follows no link on the way,
/// leaves `dir` by no name, waits on no pipe.
pub fn open_beneath(dir: &Path, relative: &Path) -> Result<File> {
    use rustix::fs::{Mode, OFlags, openat};
    let path = dir.join(relative);
    let folder = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    let regular = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::RDONLY;
    let step = |at: &std::os::fd::OwnedFd, name: &std::ffi::OsStr, flags: OFlags| {
        openat(at, name, flags, Mode::empty()).map_err(io::Error::from).doing("open", &path)
    };
    let names: Vec<_> = relative.components().collect();
    let is_plain = names.iter().all(|part| matches!(part, std::path::Component::Normal(_)));
    let Some((last, above)) = names.split_last().filter(|_| is_plain) else {
        return Err(Error::new("open", &path, io::Error::from(io::ErrorKind::InvalidFilename)));
    };
    let mut at = openat(rustix::fs::CWD, dir, folder, Mode::empty()).map_err(io::Error::from).doing("open", dir)?;
    for part in above {
        at = step(&at, part.as_os_str(), folder)?;
    }
    let file = File::from(step(&at, last.as_os_str(), regular)?);
    if !file.metadata().doing("inspect", &path)?.is_file() {
        return Err(Error::new("open", &path, io::Error::other("it is not a regular file")));
    }
    Ok(file)
}

fn read_open(file: File, path: &Path, max_bytes: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes).doing("read", path)?;
    if bytes.len() as u64 > max_bytes {
        let message = format!("it is larger than the {max_bytes} bytes allowed");
        return Err(Error::new("read", path, io::Error::new(io::ErrorKind::FileTooLarge, message)));
    }
    Ok(bytes)
}

/// Bytes that an unprivileged writer may still use on the file system that holds `path`.
pub fn free_space(path: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(path).map_err(io::Error::from).doing("measure the free space of", path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The name under which new content of `path` is prepared.
pub fn temporary_name(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".picket-new");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_file_that_lost_bytes_on_the_way_is_not_taken_for_a_whole_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_atomic(&path, &[7; 9], 0o600).unwrap();
        let file = File::open(&path).unwrap();
        check_length(&file, 9).unwrap();
        let error = check_length(&file, 10).unwrap_err();
        assert_eq!(error.to_string(), "9 bytes arrived of 10 that the disk took");
    }

    #[test]
    fn a_write_replaces_the_whole_file_and_leaves_no_temporary_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        write_atomic(&path, b"first", 0o600).unwrap();
        write_atomic(&path, b"2nd", 0o640).unwrap();
        assert_eq!(read_bounded(&path, 100).unwrap(), b"2nd");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_an_interrupted_write_left_behind_does_not_stop_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        create_new(&temporary_name(&path), 0o600).unwrap();
        write_atomic(&path, b"whole", 0o600).unwrap();
        assert_eq!(read_bounded(&path, 100).unwrap(), b"whole");
    }

    #[test]
    fn a_link_is_swapped_and_a_folder_in_its_place_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("current");
        replace_symlink(&link, Path::new("versions/1")).unwrap();
        replace_symlink(&link, Path::new("versions/2")).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("versions/2"));

        let folder = dir.path().join("folder");
        fs::create_dir(&folder).unwrap();
        let error = replace_symlink(&folder, Path::new("x")).unwrap_err();
        assert_eq!(error.source.to_string(), "it is not a symbolic link");
        assert!(folder.is_dir());
    }

    #[test]
    fn a_file_over_its_limit_is_refused_and_one_at_its_limit_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_atomic(&path, b"12345", 0o600).unwrap();
        assert_eq!(read_bounded(&path, 5).unwrap(), b"12345");
        assert_eq!(read_bounded(&path, 4).unwrap_err().source.kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn an_untrusted_link_or_pipe_is_not_followed_and_not_waited_on() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("wish");
        symlink("/etc/passwd", &link).unwrap();
        assert!(read_untrusted(&link, 100).is_err());
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(read_untrusted(&pipe, 100).is_err());
        assert!(read_untrusted(&dir.path().join("absent"), 100).unwrap().is_none());
    }
}
