//! What the file system says of a file, as it is compared and kept.

use picket_protocol::event::{FileKind, FileMeta};
use rustix::fs::{AtFlags, Statx, StatxFlags, StatxTimestamp, statx};
use rustix::io;
use std::os::fd::AsFd;

/// What `statx(2)` says, as far as it is compared. Times are nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Stat {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    /// When the inode was made; 0 where the file system does not tell. With the inode's number it says whether this
    /// is the same file under another name, or another file on a number that was used again.
    pub(crate) btime: i64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) mtime: i64,
    pub(crate) ctime: i64,
}

/// The bits of `st_mode` that say what kind of file it is, `inode(7)`.
const KIND_BITS: u32 = 0o170_000;
/// A directory.
pub(crate) const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// The kind that the mode bits name; a mode of 0 is that of a file that was gone before anybody could look.
pub(crate) fn kind(mode: u32) -> FileKind {
    match mode & KIND_BITS {
        0 => FileKind::Unknown,
        DIRECTORY => FileKind::Directory,
        REGULAR => FileKind::File,
        SYMLINK => FileKind::Symlink,
        _ => FileKind::Other,
    }
}

impl Stat {
    /// Asks for `name` in the folder, not following a link.
    pub(crate) fn of<Fd: AsFd>(folder: Fd, name: &[u8]) -> io::Result<Self> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        statx(folder, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME).map(|stat| Self::from(&stat))
    }

    /// Asks for the open file itself.
    pub(crate) fn of_fd<Fd: AsFd>(fd: Fd) -> io::Result<Self> {
        let flags = AtFlags::EMPTY_PATH;
        statx(fd, c"", flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME).map(|stat| Self::from(&stat))
    }

    /// Whether it was there to be asked.
    pub(crate) fn is_known(&self) -> bool {
        self.ino != 0
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.mode & KIND_BITS == DIRECTORY
    }

    pub(crate) fn is_regular(&self) -> bool {
        self.mode & KIND_BITS == REGULAR
    }

    pub(crate) fn same_kind(&self, other: &Self) -> bool {
        self.mode & KIND_BITS == other.mode & KIND_BITS
    }

    /// Whether it is the same file, whatever happened to it. The device is left out: its number can change at a reboot.
    pub(crate) fn same_file(&self, other: &Self) -> bool {
        self.ino == other.ino && self.btime == other.btime && self.same_kind(other)
    }

    /// Whether a file found under a new name is this one. Without a time of birth the number alone proves little.
    pub(crate) fn moved_to(&self, other: &Self) -> bool {
        let unchanged = self.size == other.size && self.mtime == other.mtime;
        self.same_file(other) && self.dev == other.dev && (self.btime != 0 || unchanged)
    }

    pub(crate) fn same_content(&self, other: &Self) -> bool {
        self.size == other.size && self.mtime == other.mtime
    }

    pub(crate) fn same_attributes(&self, other: &Self) -> bool {
        self.mode == other.mode && self.uid == other.uid && self.gid == other.gid
    }

    /// The form on the wire.
    pub(crate) fn meta(&self) -> FileMeta {
        FileMeta {
            size: self.size,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            inode: self.ino,
            modified: jiff::Timestamp::from_nanosecond(i128::from(self.mtime)).unwrap_or_default(),
        }
    }
}

impl From<&Statx> for Stat {
    fn from(stat: &Statx) -> Self {
        Self {
            dev: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            ino: stat.stx_ino,
            btime: if stat.stx_mask & StatxFlags::BTIME.bits() == 0 { 0 } else { nanoseconds(stat.stx_btime) },
            mode: u32::from(stat.stx_mode),
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            size: stat.stx_size,
            mtime: nanoseconds(stat.stx_mtime),
            ctime: nanoseconds(stat.stx_ctime),
        }
    }
}

/// A file system may hold any time at all; beyond the years 1677 to 2262 the nearest one stands.
fn nanoseconds(time: StatxTimestamp) -> i64 {
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(i64::from(time.tv_nsec))
}
