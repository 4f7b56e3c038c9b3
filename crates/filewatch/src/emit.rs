//! The last step: hashes what is to be hashed, and gives events to the sink in their order.

use crate::counters::Counts;
use picket_protocol::event::{EventBody, Sink};
use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How many turns of events wait, and how many events are a turn: together some 256. Each may hold a folder open.
const TURNS: usize = 8;
const TURN: usize = 32;
const WAITING: usize = TURNS * TURN;
/// From how many waiting events on hashes are left out, so that telling keeps up with what happens.
const HASHING_STOPS: usize = WAITING / 2;
/// How much is read of a file at once.
const BLOCK: usize = 64 << 10;
/// How long the reading of one file may take, looked at between blocks.
const HASH_TIME: Duration = Duration::from_secs(2);

/// The file to hash for an event.
pub(crate) struct HashJob {
    pub(crate) folder: Arc<OwnedFd>,
    pub(crate) name: Box<[u8]>,
    /// The inode it must still be.
    pub(crate) ino: u64,
    /// The most bytes to read.
    pub(crate) limit: u64,
}

enum Item {
    Event(Box<EventBody>, Option<HashJob>),
    /// Answered when all before it is told.
    Told(SyncSender<()>),
}

/// The way to the sink. Sending waits when the queue is full: the kernel's queue is behind it, and says when it
/// runs over.
pub(crate) struct Emitter {
    queue: Option<SyncSender<Vec<Item>>>,
    /// What goes on with the next turn: waking the thread for each costs more than what it does.
    turn: RefCell<Vec<Item>>,
    waiting: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Emitter {
    pub(crate) fn start(sink: Sink, counts: Arc<Counts>) -> std::io::Result<Self> {
        let (queue, items) = sync_channel(TURNS);
        let waiting = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&waiting);
        let thread = std::thread::Builder::new()
            .name("files-tell".to_owned())
            .spawn(move || tell_all(&items, &count, &sink, &counts))?;
        Ok(Self { queue: Some(queue), turn: RefCell::default(), waiting, thread: Some(thread) })
    }

    pub(crate) fn tell(&self, event: EventBody, hash: Option<HashJob>) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.send(Item::Event(Box::new(event), hash));
    }

    /// Waits until all that was sent is told: only then may the baseline say that it is known.
    pub(crate) fn wait_until_told(&self) {
        let (answer, told) = sync_channel(1);
        self.send(Item::Told(answer));
        self.flush();
        let _ = told.recv();
    }

    fn send(&self, item: Item) {
        self.turn.borrow_mut().push(item);
        if self.turn.borrow().len() >= TURN {
            self.flush();
        }
    }

    /// Lets what was told go on; to be called before the thread that tells waits for anything.
    pub(crate) fn flush(&self) {
        let items = self.turn.take();
        if !items.is_empty()
            && let Some(queue) = &self.queue
        {
            // The thread ends only when the queue does.
            let _ = queue.send(items);
        }
    }
}

impl Drop for Emitter {
    fn drop(&mut self) {
        self.flush();
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn tell_all(turns: &Receiver<Vec<Item>>, waiting: &AtomicUsize, sink: &Sink, counts: &Counts) {
    let mut block = vec![0; BLOCK];
    for item in turns.iter().flatten() {
        match item {
            Item::Event(mut event, job) => {
                let behind = waiting.fetch_sub(1, Ordering::Relaxed);
                if let (EventBody::File(event), Some(job)) = (&mut *event, job) {
                    if behind > HASHING_STOPS {
                        counts.unhashed.add(1);
                    } else if let Some(hash) = hash(&job, &mut block) {
                        counts.hashed.add(1);
                        event.sha256 = Some(hash);
                    }
                }
                if matches!(*event, EventBody::Gap(_)) {
                    counts.gaps.add(1);
                } else {
                    counts.told.add(1);
                }
                sink(*event);
            }
            Item::Told(answer) => {
                let _ = answer.send(());
            }
        }
    }
}

/// The SHA-256 of a regular file's content in hexadecimal digits; `None` where it is gone, became something else, grew
/// over the limit, or takes too long.
fn hash(job: &HashJob, block: &mut [u8]) -> Option<String> {
    let started = Instant::now();
    // O_NONBLOCK: what was a file may be a FIFO by now, and opening one waits for its other end.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let fd = match openat(&job.folder, &*job.name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => openat(&job.folder, &*job.name, flags, Mode::empty()),
        other => other,
    };
    let fd = fd.ok()?;
    let stat = fstat(&fd).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_ino != job.ino {
        return None;
    }
    let mut file = File::from(fd).take(job.limit + 1);
    let mut digest = Sha256::new();
    let mut length: u64 = 0;
    loop {
        let read = file.read(block).ok()?;
        length += read as u64;
        if length > job.limit || started.elapsed() > HASH_TIME {
            return None;
        }
        if read == 0 {
            break;
        }
        digest.update(block.get(..read)?);
    }
    let mut text = String::with_capacity(64);
    for byte in digest.finalize() {
        let _ = write!(text, "{byte:02x}");
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn job(folder: &std::path::Path, name: &str, limit: u64) -> HashJob {
        let ino = std::fs::symlink_metadata(folder.join(name)).unwrap().ino();
        let folder = Arc::new(OwnedFd::from(File::open(folder).unwrap()));
        HashJob { folder, name: name.as_bytes().into(), ino, limit }
    }

    fn hash_of(job: &HashJob) -> Option<String> {
        hash(job, &mut [0; 16])
    }

    #[test]
    fn only_regular_files_within_the_limit_are_hashed_and_a_fifo_does_not_stop_us() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        picket_durable::write_atomic(&path("abc"), b"abc", 0o600).unwrap();
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash_of(&job(folder.path(), "abc", 3)).as_deref(), Some(expected));
        assert_eq!(hash_of(&job(folder.path(), "abc", 2)), None);
        rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert_eq!(hash_of(&job(folder.path(), "pipe", 100)), None);
        std::os::unix::fs::symlink("abc", path("link")).unwrap();
        assert_eq!(hash_of(&job(folder.path(), "link", 100)), None);
        let other = HashJob { ino: 1, ..job(folder.path(), "abc", 3) };
        assert_eq!(hash_of(&other), None);
    }
}
