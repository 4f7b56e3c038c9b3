//! A sink behind a queue and a thread of its own, so that one that hangs holds up neither the events nor another sink.
//!
//! At most [`QUEUE_EVENTS`] events and [`QUEUE_BYTES`] bytes wait for a sink. What does not fit is counted as dropped; what
//! the sink did not take, or could not write out afterwards, as failed. Both are told once until the sink takes again, in
//! metrics and in `/health`. They are in no gap: a gap says that an event is in no place at all, and the outbox has it.

use super::{EventSink, Outgoing, SinkError};
use picket_protocol::Priority;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many events wait for a sink at most.
pub(crate) const QUEUE_EVENTS: usize = 8_192;
/// How many bytes of events wait for a sink at most.
pub(crate) const QUEUE_BYTES: u64 = 8 << 20;
/// How often what is buffered goes out.
const FLUSH: Duration = Duration::from_secs(1);
/// How long a sink may take for what waits when it is to end.
const END: Duration = Duration::from_secs(2);

/// What became of the events for one sink.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Events that were written out.
    pub(crate) written: AtomicU64,
    /// Events that the sink did not take, or lost before they were written out.
    pub(crate) failed: AtomicU64,
    /// Events that found the queue full.
    pub(crate) dropped: AtomicU64,
    /// Whether it takes nothing at present, and why.
    trouble: Mutex<Option<String>>,
}

impl Tally {
    fn trouble(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why it takes nothing at present.
    pub(crate) fn ails(&self) -> Option<String> {
        self.trouble().clone()
    }

    fn fell_ill(&self, name: &str, why: &str) {
        let mut trouble = self.trouble();
        if trouble.is_none() {
            tracing::warn!(sink = name, why, "takes no events; the outbox keeps them, where it is one of the sinks");
        }
        *trouble = Some(why.to_owned());
    }

    fn works(&self, name: &str) {
        if self.trouble().take().is_some() {
            tracing::info!(sink = name, "takes events again");
        }
    }
}

/// The tallies of all sinks by name; they go on when the configuration changes.
#[derive(Debug, Default)]
pub(crate) struct Tallies(Mutex<BTreeMap<&'static str, Arc<Tally>>>);

impl Tallies {
    fn of(&self, name: &'static str) -> Arc<Tally> {
        Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default())
    }

    /// Every sink there is or was.
    pub(crate) fn all(&self) -> Vec<(&'static str, Arc<Tally>)> {
        let tallies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tallies.iter().map(|(name, tally)| (*name, Arc::clone(tally))).collect()
    }
}

struct Waiting {
    class: Priority,
    line: String,
}

/// A sink behind its queue. Dropping it lets what waits go out, for two seconds at most.
pub(crate) struct Queued {
    name: &'static str,
    tally: Arc<Tally>,
    /// Bytes that wait.
    waiting: Arc<AtomicU64>,
    queue: Option<SyncSender<Waiting>>,
    done: Receiver<()>,
    /// Set when the thread is given up: what it still has is not written any more.
    late: Arc<AtomicBool>,
}

impl Queued {
    /// Starts the thread of `sink`.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub(crate) fn start(sink: Box<dyn EventSink>, tallies: &Tallies) -> std::io::Result<Self> {
        Self::with_queue(sink, tallies, QUEUE_EVENTS)
    }

    fn with_queue(sink: Box<dyn EventSink>, tallies: &Tallies, events: usize) -> std::io::Result<Self> {
        let name = sink.name();
        let tally = tallies.of(name);
        let waiting = Arc::new(AtomicU64::new(0));
        let (queue, inbox) = sync_channel(events);
        let (finished, done) = channel();
        let late = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            sink,
            name,
            tally: Arc::clone(&tally),
            waiting: Arc::clone(&waiting),
            late: Arc::clone(&late),
            unflushed: 0,
        };
        std::thread::Builder::new().name(format!("picket-sink-{name}")).spawn(move || {
            writer.run(&inbox);
            let _ = finished.send(());
        })?;
        Ok(Self { name, tally, waiting, queue: Some(queue), done, late })
    }

    /// Takes one event. It never waits and never fails: what becomes of the event is in the tally.
    pub(crate) fn put(&self, outgoing: &Outgoing<'_>) {
        let (length, tally) = (outgoing.line.len() as u64, &self.tally);
        let waiting = self.waiting.fetch_add(length, Ordering::Relaxed);
        let event = Waiting { class: outgoing.class, line: outgoing.line.to_owned() };
        let sent = match &self.queue {
            Some(queue) if waiting + length <= QUEUE_BYTES => queue.try_send(event),
            _ => Err(TrySendError::Full(event)),
        };
        if sent.is_err() {
            self.waiting.fetch_sub(length, Ordering::Relaxed);
            tally.fell_ill(self.name, "its queue is full");
            tally.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        drop(self.queue.take());
        if self.done.recv_timeout(END) == Err(RecvTimeoutError::Timeout) {
            self.late.store(true, Ordering::Relaxed);
            tracing::warn!(sink = self.name, "did not take what waited for it in time");
        }
        // Nobody asks any more how a sink is that is gone.
        self.tally.trouble().take();
    }
}

/// The thread's part.
struct Writer {
    sink: Box<dyn EventSink>,
    name: &'static str,
    tally: Arc<Tally>,
    waiting: Arc<AtomicU64>,
    late: Arc<AtomicBool>,
    /// Events that the sink took since it was flushed.
    unflushed: u64,
}

impl Writer {
    /// Writes until the queue is closed and empty.
    fn run(mut self, inbox: &Receiver<Waiting>) {
        let mut flushed = Instant::now();
        loop {
            match inbox.recv_timeout(FLUSH.saturating_sub(flushed.elapsed())) {
                Ok(event) => self.write(&event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if flushed.elapsed() >= FLUSH {
                self.flush();
                flushed = Instant::now();
            }
        }
        self.flush();
    }

    fn write(&mut self, event: &Waiting) {
        self.waiting.fetch_sub(event.line.len() as u64, Ordering::Relaxed);
        if self.late.load(Ordering::Relaxed) {
            self.tally.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        match self.sink.put(&Outgoing { class: event.class, line: &event.line }) {
            Ok(()) => self.unflushed += 1,
            // What was in its buffer is lost with it.
            Err(error) if self.sink.is_buffered() => self.lost(self.unflushed + 1, &error),
            Err(error) => {
                self.tally.written.fetch_add(self.unflushed, Ordering::Relaxed);
                self.lost(1, &error);
            }
        }
    }

    fn flush(&mut self) {
        if self.unflushed == 0 {
            return;
        }
        match self.sink.flush() {
            Ok(()) => {
                self.tally.written.fetch_add(self.unflushed, Ordering::Relaxed);
                self.unflushed = 0;
                self.tally.works(self.name);
            }
            Err(error) => self.lost(self.unflushed, &error),
        }
    }

    fn lost(&mut self, events: u64, error: &SinkError) {
        self.unflushed = 0;
        // First why, then how many: who sees the number finds the reason.
        self.tally.fell_ill(self.name, &crate::keep::told(error));
        self.tally.failed.fetch_add(events, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::Sender;

    const LONG: Duration = Duration::from_secs(30);

    /// Takes what it is allowed to; its flush fails if it is told so.
    struct Scripted {
        allowed: Receiver<()>,
        taken: Sender<String>,
        flushes: bool,
    }

    impl EventSink for Scripted {
        fn name(&self) -> &'static str {
            "scripted"
        }

        fn is_buffered(&self) -> bool {
            true
        }

        fn put(&mut self, outgoing: &Outgoing<'_>) -> Result<(), SinkError> {
            let _ = self.allowed.recv();
            let _ = self.taken.send(outgoing.line.to_owned());
            Ok(())
        }

        fn flush(&mut self) -> Result<(), SinkError> {
            let full = || SinkError::Write { place: "a full disk", source: std::io::ErrorKind::StorageFull.into() };
            if self.flushes { Ok(()) } else { Err(full()) }
        }
    }

    fn scripted(flushes: bool) -> (Queued, Arc<Tally>, Sender<()>, Receiver<String>) {
        let ((allow, allowed), (taken, seen)) = (channel(), channel());
        let tallies = Tallies::default();
        let sink = Queued::with_queue(Box::new(Scripted { allowed, taken, flushes }), &tallies, 4).unwrap();
        (sink, tallies.of("scripted"), allow, seen)
    }

    fn put(sink: &Queued, line: &str) {
        sink.put(&Outgoing { class: Priority::Normal, line });
    }

    fn read(count: &AtomicU64) -> u64 {
        count.load(Ordering::Relaxed)
    }

    #[test]
    fn a_sink_that_hangs_holds_nobody_up_and_what_does_not_fit_is_counted_and_told() {
        let (sink, tally, allow, seen) = scripted(true);
        put(&sink, "0");
        // The thread has the first, and hangs.
        let deadline = Instant::now() + LONG;
        while read(&sink.waiting) > 0 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        (1..=10).for_each(|n| put(&sink, &n.to_string()));
        assert_eq!((read(&tally.dropped), tally.ails().as_deref()), (6, Some("its queue is full")));
        drop(allow);
        drop(sink);
        assert_eq!(seen.try_iter().collect::<Vec<_>>(), ["0", "1", "2", "3", "4"]);
        assert_eq!((read(&tally.written), read(&tally.failed), tally.ails()), (5, 0, None));
    }

    #[test]
    fn lines_that_are_long_fill_the_queue_by_their_bytes() {
        let (sink, tally, allow, seen) = scripted(true);
        let line = "x".repeat(usize::try_from(QUEUE_BYTES).unwrap() / 2 + 1);
        put(&sink, "0");
        let deadline = Instant::now() + LONG;
        while read(&sink.waiting) > 0 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        put(&sink, &line);
        put(&sink, &line);
        assert_eq!(read(&tally.dropped), 1);
        drop(allow);
        drop(sink);
        assert_eq!(seen.try_iter().count(), 2);
    }

    #[test]
    fn a_flush_that_fails_counts_every_event_it_lost() {
        let (sink, tally, allow, seen) = scripted(false);
        (0..3).for_each(|n| put(&sink, &n.to_string()));
        drop(allow);
        let deadline = Instant::now() + LONG;
        while read(&tally.failed) < 3 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(seen.try_iter().count(), 3);
        assert_eq!((read(&tally.written), read(&tally.failed)), (0, 3));
        assert!(tally.ails().unwrap().contains("a full disk"), "{:?}", tally.ails());
        drop(sink);
        assert_eq!(tally.ails(), None, "nobody asks how a sink is that is gone");
    }

    #[test]
    fn a_full_disk_is_counted_event_by_event_and_told_with_its_reason() {
        let tallies = Tallies::default();
        let file = super::super::FileSink::new(std::path::Path::new("/dev/full"), u64::MAX);
        let sink = Queued::start(Box::new(file), &tallies).unwrap();
        (0..5).for_each(|n| put(&sink, &n.to_string()));
        let tally = tallies.of("file");
        let deadline = Instant::now() + LONG;
        while read(&tally.failed) < 5 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!((read(&tally.failed), read(&tally.written), read(&tally.dropped)), (5, 0, 0));
        assert!(tally.ails().unwrap().contains("No space left"), "{:?}", tally.ails());
    }

    #[test]
    fn the_end_does_not_wait_for_a_sink_that_hangs() {
        let (sink, tally, allow, _seen) = scripted(true);
        (0..3).for_each(|n| put(&sink, &n.to_string()));
        let began = Instant::now();
        drop(sink);
        assert!(began.elapsed() < LONG);
        drop(allow);
        let deadline = Instant::now() + LONG;
        while read(&tally.dropped) < 2 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(read(&tally.dropped), 2, "what it had not begun with is not written late");
    }
}
