//! Open folders: every look goes through a descriptor of the folder, opened name by name from a configured path.
//!
//! So no depth is too deep (`PATH_MAX` bounds a path in one call, not a tree), and nobody can lead a look elsewhere by
//! putting a symbolic link in place of a folder: each step is opened with `O_NOFOLLOW`.

use crate::baseline::{Baseline, Id, TOP};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{self, Errno};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// How many folders are held open: a small part of the 1024 descriptors a process has by default.
const HELD: usize = 64;

/// Why a folder could not be opened.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// The file system said no.
    Io(Errno),
    /// The baseline could not be asked.
    Baseline(rusqlite::Error),
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Baseline(error)
    }
}

impl From<Errno> for OpenError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno)
    }
}

/// Folders that were opened lately.
#[derive(Default)]
pub(crate) struct Folders {
    held: HashMap<Id, Arc<OwnedFd>>,
}

impl Folders {
    /// Opens a folder of the baseline, to look at and not to read (`O_PATH`).
    pub(crate) fn open(&mut self, baseline: &Baseline, id: Id) -> Result<Arc<OwnedFd>, OpenError> {
        let mut way = Vec::new();
        let mut at = id;
        let mut folder = loop {
            if let Some(held) = self.held.get(&at) {
                break Some(Arc::clone(held));
            }
            if at == TOP {
                break None;
            }
            let node = baseline.node(at)?.ok_or(Errno::NOENT)?;
            at = node.parent;
            way.push(node);
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        while let Some(node) = way.pop() {
            // The configured path itself may be a link: the operator wrote it.
            let opened = match &folder {
                None => openat(CWD, &*node.name, flags, Mode::empty())?,
                Some(folder) => openat(folder, &*node.name, flags | OFlags::NOFOLLOW, Mode::empty())?,
            };
            let opened = Arc::new(opened);
            if self.held.len() >= HELD {
                self.held.clear();
            }
            self.held.insert(node.id, Arc::clone(&opened));
            folder = Some(opened);
        }
        folder.ok_or(OpenError::Io(Errno::NOENT))
    }

    pub(crate) fn holds_any(&self) -> bool {
        !self.held.is_empty()
    }

    /// Lets go of all: a name may stand for another folder now.
    pub(crate) fn forget(&mut self) {
        self.held.clear();
    }
}

/// Opens an `O_PATH` folder for reading its entries, without leaving a mark on its time of access where that is allowed.
pub(crate) fn readable(folder: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(folder, c".", flags | OFlags::NOATIME, Mode::empty()) {
        // Only the owner and CAP_FOWNER may use O_NOATIME, open(2).
        Err(Errno::PERM) => openat(folder, c".", flags, Mode::empty()),
        other => other,
    }
}

/// Whether the folder is on a file system that the kernel makes up: processes, devices, control groups. They have no
/// files that stay, and looking at some of them (autofs) does things. Numbers from `linux/magic.h`.
pub(crate) fn is_pseudo(folder: &OwnedFd) -> bool {
    const PSEUDO: [u64; 18] = [
        0x9fa0,      // proc
        0x6265_6572, // sysfs
        0x0027_e0eb, // cgroup
        0x6367_7270, // cgroup2
        0x1cd1,      // devpts
        0x6462_6720, // debugfs
        0x7472_6163, // tracefs
        0x7363_6673, // securityfs
        0xcafe_4a11, // bpf
        0x6165_676c, // pstore
        0xde5e_81e4, // efivarfs
        0x6573_5543, // fusectl
        0x6265_6570, // configfs
        0x4249_4e4d, // binfmt_misc
        0x1980_0202, // mqueue
        0x6e73_6673, // nsfs
        0xf97c_ff8c, // selinuxfs
        0x0187,      // autofs
    ];
    // The type is a signed word on some architectures; the numbers are of 32 bits.
    rustix::fs::fstatfs(folder)
        .is_ok_and(|stat| PSEUDO.iter().any(|magic| stat.f_type.cast_unsigned() & 0xffff_ffff == *magic))
}
