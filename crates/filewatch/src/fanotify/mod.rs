//! fanotify: the kernel tells of whole file systems, without a race, and says who did it.
//!
//! A group is made with `FAN_REPORT_DFID_NAME_TARGET` (Linux 5.17, else `FAN_REPORT_DFID_NAME`, 5.9) and marks file
//! systems (`FAN_MARK_FILESYSTEM`). Events name a folder by its file handle and the entry by its name; handles of the
//! watched folders are known from [`handle_of`], so no handle is ever opened. See `fanotify(7)`, `fanotify_init(2)`,
//! `fanotify_mark(2)`.

mod actor;
mod record;

use crate::notice::{Handle, Notice, What};
use crate::reader::{BUFFER, Batch};
use actor::Actors;
use nix::errno::Errno;
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use record::Event;
use rustix::fs::CWD;
use rustix::thread::CapabilitySet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

/// Flags of `fanotify_init` that nix has no names for, from `linux/fanotify.h`.
const REPORT_FID: u32 = 0x200;
const REPORT_DIR_FID: u32 = 0x400;
const REPORT_NAME: u32 = 0x800;
const REPORT_TARGET_FID: u32 = 0x1000;

/// How many folders in a folder of ours are left out.
const OWN_FOLDERS: usize = 64;

/// A fanotify group.
#[derive(Debug)]
pub(crate) struct Group {
    fanotify: Fanotify,
    /// The process whose doings are left out: this one.
    ignored: Option<u32>,
}

impl Group {
    /// Makes a group.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_ADMIN`, `EINVAL` before Linux 5.9, `ENOSYS` where the kernel has none.
    pub(crate) fn new(ignored: Option<u32>) -> Result<Self, Errno> {
        // Since Linux 5.13 anybody may have a group, but only who may administer the system can mark a file system.
        let may = rustix::thread::capabilities(None).map(|sets| sets.effective);
        if !may.is_ok_and(|may| may.contains(CapabilitySet::SYS_ADMIN)) {
            return Err(Errno::EPERM);
        }
        let basic = InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK | InitFlags::FAN_CLASS_NOTIF;
        let with = |more: u32| {
            let flags = InitFlags::from_bits_retain(basic.bits() | REPORT_DIR_FID | REPORT_NAME | more);
            Fanotify::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC)
        };
        let fanotify = match with(REPORT_FID | REPORT_TARGET_FID) {
            Err(Errno::EINVAL) => with(0)?,
            other => other?,
        };
        Ok(Self { fanotify, ignored })
    }

    /// Asks for the events of the file system that the folder (`O_PATH`) is on.
    pub(crate) fn mark(&self, folder: &OwnedFd) -> Result<(), Errno> {
        // fanotify_mark takes no O_PATH descriptor.
        let folder = crate::folders::readable(folder).map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
        let names = MaskFlags::FAN_CREATE | MaskFlags::FAN_DELETE;
        let content = MaskFlags::FAN_MODIFY | MaskFlags::FAN_CLOSE_WRITE | MaskFlags::FAN_ATTRIB;
        let scope = MaskFlags::FAN_ONDIR | MaskFlags::FAN_EVENT_ON_CHILD;
        let add = |moves: MaskFlags| {
            let flags = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM;
            self.fanotify.mark(flags, names | content | scope | moves, &folder, None::<&Path>)
        };
        match add(MaskFlags::FAN_RENAME) {
            // Before Linux 5.17.
            Err(Errno::EINVAL) => add(MaskFlags::FAN_MOVED_FROM | MaskFlags::FAN_MOVED_TO),
            other => other,
        }
    }

    /// Asks not to be told what is written in the folder, nor in the folders in it: it is never told of, and what we write
    /// ourselves would wake us each time. Before Linux 6.0 the kernel cannot; then it is only left out later.
    pub(crate) fn leave_out(&self, folder: &Path) {
        let folders = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let inner = folders.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).take(OWN_FOLDERS);
        for path in std::iter::once(folder.to_owned()).chain(inner.map(|entry| entry.path())) {
            let flags = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_IGNORE_SURV | MarkFlags::FAN_MARK_ONLYDIR;
            let content = MaskFlags::FAN_MODIFY | MaskFlags::FAN_CLOSE_WRITE | MaskFlags::FAN_ATTRIB;
            let flags = flags | MarkFlags::FAN_MARK_DONT_FOLLOW;
            if let Err(error) = self.fanotify.mark(flags, content | MaskFlags::FAN_EVENT_ON_CHILD, CWD, Some(&path)) {
                tracing::debug!(%error, path = %path.display(), "what is written in a folder of ours cannot be left out");
            }
        }
    }

    /// What to wait on.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fanotify.as_fd()
    }

    pub(crate) fn reader(self: &Arc<Self>) -> GroupReader {
        GroupReader { group: Arc::clone(self), buffer: vec![0; BUFFER], actors: Actors::default() }
    }
}

/// The one reader of a group.
pub(crate) struct GroupReader {
    group: Arc<Group>,
    buffer: Vec<u8>,
    actors: Actors,
}

impl GroupReader {
    /// What one read of the queue brings; nothing if there is nothing.
    pub(crate) fn read(&mut self) -> Batch {
        let at = jiff::Timestamp::now();
        let Ok(length) = rustix::io::read(self.group.fd(), &mut self.buffer) else { return Vec::new() };
        let bytes = self.buffer.get(..length).unwrap_or_default();
        let mut batch = Vec::new();
        for event in record::events(bytes) {
            match event {
                Ok(event) => {
                    if self.group.ignored.is_none() || self.group.ignored != event.pid {
                        batch.extend(notice(event, at, &mut self.actors));
                    }
                }
                Err(error) => {
                    // Nothing after it can be read: as good as an overflow, and told as one.
                    tracing::error!(%error, "the kernel's fanotify events cannot be read");
                    batch.push(Notice::bare(at, What::OVERFLOW));
                    break;
                }
            }
        }
        batch
    }
}

/// An event in our words; `None` where it names no folder (events of an inode alone).
fn notice(event: Event, at: jiff::Timestamp, actors: &mut Actors) -> Option<Notice> {
    if event.what.has(What::OVERFLOW) {
        return Some(Notice::bare(at, What::OVERFLOW));
    }
    let (place, name) = event.place?;
    Some(Notice {
        at,
        place: Some(place),
        name,
        what: event.what,
        // Before FAN_RENAME the two halves of a rename have nothing in common but who did it.
        cookie: event.pid.unwrap_or(0),
        to: event.to,
        child: event.child,
        actor: event.pid.and_then(|pid| actors.of(pid)),
    })
}

/// The handle of a folder, as events report it.
pub(crate) fn handle_of(folder: &OwnedFd) -> std::io::Result<Handle> {
    let handle = fanotify_fid::handle::handle_from_fd(folder)?;
    let fsid = rustix::fs::fstatvfs(folder)?.f_fsid;
    // `struct file_handle` begins with the length of its bytes, which an event's record has too and we leave out.
    let rest = handle.get(4..).unwrap_or_default();
    Ok(fsid.to_ne_bytes().iter().chain(rest).copied().collect())
}
