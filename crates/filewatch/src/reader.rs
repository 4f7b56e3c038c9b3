//! Reads what the kernel says, off its queues and into one bounded queue of ours.

use crate::fanotify::Group;
use crate::notice::{Notice, Place, What};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{ReadFlags, Reader};
use rustix::io::Errno;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

/// What one read brought: at most one buffer's worth.
pub(crate) type Batch = Vec<Notice>;

/// How many batches wait. With [`BUFFER`] that is at most some 64 000 notices, a few megabytes; when they are full,
/// events wait in the kernel's queue, which says when it runs over.
pub(crate) const BATCHES: usize = 64;

/// How many bytes one read takes: about a thousand inotify events with short names.
pub(crate) const BUFFER: usize = 32 << 10;

/// Reads until `stop` is readable or nobody listens.
pub(crate) fn read_all(inotify: &OwnedFd, fanotify: Option<&Arc<Group>>, stop: &OwnedFd, out: &SyncSender<Batch>) {
    let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
    let mut group_reader = fanotify.map(Group::reader);
    loop {
        let mut sources = vec![PollFd::new(stop, PollFlags::IN), PollFd::new(inotify, PollFlags::IN)];
        if let Some(group) = fanotify {
            sources.push(PollFd::from_borrowed_fd(group.fd(), PollFlags::IN));
        }
        match poll(&mut sources, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "cannot wait for file events");
                return;
            }
        }
        let ready: Vec<bool> = sources.iter().map(|source| !source.revents().is_empty()).collect();
        if ready.first() == Some(&true) {
            return;
        }
        if ready.get(1) == Some(&true) {
            let batch = read_inotify(inotify, &mut buffer);
            if !batch.is_empty() && out.send(batch).is_err() {
                return;
            }
        }
        if ready.get(2) == Some(&true)
            && let Some(reader) = &mut group_reader
        {
            let batch = reader.read();
            if !batch.is_empty() && out.send(batch).is_err() {
                return;
            }
        }
    }
}

/// What one read of inotify's queue brings.
fn read_inotify(inotify: &OwnedFd, buffer: &mut [MaybeUninit<u8>]) -> Batch {
    let at = jiff::Timestamp::now();
    let mut batch = Vec::new();
    let mut reader = Reader::new(inotify, buffer);
    loop {
        match reader.next() {
            Ok(event) => {
                let flags = event.events();
                let mut notice = Notice::bare(at, what(flags));
                if !flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                    notice.place = Some(Place::Watch(event.wd()));
                    notice.name = event.file_name().map(|name| name.to_bytes().into());
                    notice.cookie = event.cookie();
                }
                batch.push(notice);
            }
            Err(Errno::INTR) => continue,
            // Nothing there after all: the descriptor does not block.
            Err(_) => return batch,
        }
        if reader.is_buffer_empty() {
            return batch;
        }
    }
}

fn what(flags: ReadFlags) -> What {
    let table = [
        (ReadFlags::CREATE, What::CREATED),
        (ReadFlags::DELETE, What::DELETED),
        (ReadFlags::MOVED_FROM, What::MOVED_FROM),
        (ReadFlags::MOVED_TO, What::MOVED_TO),
        (ReadFlags::MODIFY, What::WROTE),
        (ReadFlags::CLOSE_WRITE, What::CLOSED),
        (ReadFlags::ATTRIB, What::ATTRIBUTES),
        (ReadFlags::DELETE_SELF, What::SELF_GONE),
        (ReadFlags::MOVE_SELF, What::SELF_GONE),
        (ReadFlags::IGNORED, What::UNWATCHED),
        (ReadFlags::UNMOUNT, What::SELF_GONE.with(What::UNMOUNTED)),
        (ReadFlags::ISDIR, What::DIRECTORY),
        (ReadFlags::QUEUE_OVERFLOW, What::OVERFLOW),
    ];
    table.iter().filter(|(flag, _)| flags.contains(*flag)).fold(What::default(), |all, (_, what)| all.with(*what))
}
