//! Reads what the kernel says, off its queues and into one bounded queue of ours.

use crate::fanotify::Group;
use crate::notice::{Notice, Place, What};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{ReadFlags, Reader};
use rustix::io::Errno;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

/// What was read in a moment: at most [`GATHERED`] notices and one buffer's worth.
pub(crate) type Batch = Vec<Notice>;

/// How many batches wait. With [`BUFFER`] that is at most some 80 000 notices, a few megabytes; when they are full,
/// events wait in the kernel's queue, which says when it runs over.
pub(crate) const BATCHES: usize = 64;

/// For how long notices are gathered at most, and how many. They are read at once, while who did it is still there to be
/// asked; but to wake the next thread for each costs more than all that is done with it.
pub(crate) const GATHER: Duration = Duration::from_millis(20);
const GATHERED: usize = 256;
/// After how many reads within that time (some 400 a second) each waits a little for more to come: waking for each is then
/// most of the cost. Who ended within that time goes without a name, in such a flood only.
const FLOOD: u32 = 8;
const FLOOD_PAUSE: Duration = Duration::from_millis(2);

/// How many bytes one read takes: about a thousand inotify events with short names.
pub(crate) const BUFFER: usize = 32 << 10;

/// The kernel's queues, and whether the reader has something of them in hand.
pub(crate) struct Queues {
    pub(crate) inotify: Arc<OwnedFd>,
    pub(crate) fanotify: Option<Arc<Group>>,
    /// Set before anything is read, and let go of when it was handed on.
    in_hand: AtomicBool,
}

impl Queues {
    pub(crate) fn new(inotify: Arc<OwnedFd>, fanotify: Option<Arc<Group>>) -> Self {
        Self { inotify, fanotify, in_hand: AtomicBool::new(false) }
    }

    /// Whether all that the kernel said before this call was handed on.
    pub(crate) fn are_read(&self) -> bool {
        let mut sources = vec![PollFd::new(&*self.inotify, PollFlags::IN)];
        if let Some(group) = &self.fanotify {
            sources.push(PollFd::from_borrowed_fd(group.fd(), PollFlags::IN));
        }
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        // In this order: what is in the queue no more is in hand, or was handed on.
        poll(&mut sources, Some(&at_once)) == Ok(0) && !self.in_hand.load(Ordering::SeqCst)
    }
}

/// Reads until `stop` is readable or nobody listens.
pub(crate) fn read_all(queues: &Queues, stop: &OwnedFd, out: &SyncSender<Batch>) {
    let (inotify, fanotify) = (&*queues.inotify, queues.fanotify.as_ref());
    let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
    let mut group_reader = fanotify.map(Group::reader);
    let mut gathered = Gathered::default();
    let mut flood = Flood { since: Instant::now(), reads: 0 };
    loop {
        let mut sources = vec![PollFd::new(stop, PollFlags::IN), PollFd::new(inotify, PollFlags::IN)];
        if let Some(group) = fanotify {
            sources.push(PollFd::from_borrowed_fd(group.fd(), PollFlags::IN));
        }
        match poll(&mut sources, gathered.time_left(Instant::now()).as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "cannot wait for file events");
                return;
            }
        }
        queues.in_hand.store(true, Ordering::SeqCst);
        let ready: Vec<bool> = sources.iter().map(|source| !source.revents().is_empty()).collect();
        let stopping = ready.first() == Some(&true);
        if ready.get(1) == Some(&true) && !stopping {
            gathered.add(read_inotify(inotify, &mut buffer), Instant::now());
        }
        if ready.get(2) == Some(&true)
            && !stopping
            && let Some(reader) = &mut group_reader
        {
            gathered.add(reader.read(), Instant::now());
        }
        if let Some(batch) = gathered.take(Instant::now(), stopping)
            && out.send(batch).is_err()
        {
            return;
        }
        if gathered.since.is_none() {
            queues.in_hand.store(false, Ordering::SeqCst);
        }
        if stopping {
            return;
        }
        if flood.is_one(Instant::now()) {
            std::thread::sleep(FLOOD_PAUSE);
        }
    }
}

/// Notices on their way to the tracker.
#[derive(Default)]
struct Gathered {
    batch: Batch,
    /// When the first of them was read.
    since: Option<Instant>,
}

/// How fast reads follow each other, whatever they bring.
struct Flood {
    since: Instant,
    reads: u32,
}

impl Flood {
    /// Counts a read; whether there were many lately.
    fn is_one(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= GATHER {
            (self.since, self.reads) = (now, 0);
        }
        self.reads += 1;
        self.reads > FLOOD
    }
}

impl Gathered {
    fn add(&mut self, batch: Batch, now: Instant) {
        if !batch.is_empty() {
            self.since.get_or_insert(now);
            self.batch.extend(batch);
        }
    }

    /// How long they may still wait for others; none if there are none.
    fn time_left(&self, now: Instant) -> Option<Timespec> {
        let left = GATHER.saturating_sub(now.duration_since(self.since?));
        Some(Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() })
    }

    /// What goes on now.
    fn take(&mut self, now: Instant, all: bool) -> Option<Batch> {
        let waited = now.duration_since(self.since?);
        if waited < GATHER && self.batch.len() < GATHERED && !all {
            return None;
        }
        self.since = None;
        Some(std::mem::take(&mut self.batch))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_go_on_together_when_there_are_many_when_the_time_is_over_and_at_the_end() {
        let start = Instant::now();
        let notices = |count| vec![Notice::bare(jiff::Timestamp::UNIX_EPOCH, What::CREATED); count];
        let mut gathered = Gathered::default();
        assert!(gathered.time_left(start).is_none() && gathered.take(start, true).is_none());
        gathered.add(notices(1), start);
        gathered.add(notices(2), start + GATHER / 2);
        assert!(gathered.take(start + GATHER / 2, false).is_none());
        assert_eq!(gathered.time_left(start + GATHER / 2).unwrap().tv_nsec, 10_000_000);
        assert_eq!(gathered.take(start + GATHER, false).unwrap().len(), 3);
        gathered.add(notices(GATHERED), start);
        assert_eq!(gathered.take(start, false).unwrap().len(), GATHERED);
        gathered.add(notices(1), start);
        assert_eq!(gathered.take(start, true).unwrap().len(), 1);
    }

    #[test]
    fn reads_that_follow_each_other_closely_are_a_flood_until_the_time_is_over() {
        let start = Instant::now();
        let mut flood = Flood { since: start, reads: 0 };
        assert!((0..FLOOD).all(|_| !flood.is_one(start)) && flood.is_one(start + GATHER / 2));
        assert!(!flood.is_one(start + GATHER));
    }
}
