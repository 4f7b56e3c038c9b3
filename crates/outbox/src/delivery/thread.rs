//! The thread that delivers, and its owner.

use super::Uplink;
use super::courier::{Courier, DeliverySettings, DeliveryStatus, Step};
use crate::clock::Clock;
use crate::error::OutboxError;
use crate::outbox::Outbox;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an idle thread sleeps before it looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(500);
/// How long the last send may go on after the time given to drain is over.
const LAST_SEND: Duration = Duration::from_secs(5);

struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
}

struct Inner {
    status: DeliveryStatus,
    /// When to be done, once somebody asked.
    stop_by: Option<Instant>,
    ended: bool,
    /// Somebody asked for an attempt at once.
    hurry: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits so long, or until somebody asks to stop.
    fn pause(&self, wait: Duration) {
        let inner = self.lock();
        let waiting = |inner: &mut Inner| inner.stop_by.is_none() && !inner.hurry;
        let _ = self.changed.wait_timeout_while(inner, wait, waiting);
    }
}

/// Delivers what an outbox holds, on a thread of its own.
pub struct Delivery {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Delivery {
    /// Begins to deliver.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        outbox: Arc<Outbox>,
        uplink: Box<dyn Uplink>,
        settings: DeliverySettings,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, OutboxError> {
        let batch_wait = settings.batch_wait;
        let batch_bytes = settings.batch.bytes as u64;
        let courier = Courier::new(uplink, settings);
        let inner = Inner { status: courier.status(clock.as_ref()), stop_by: None, ended: false, hurry: false };
        let shared = Arc::new(Shared { inner: Mutex::new(inner), changed: Condvar::new() });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("delivery".into()).spawn(move || {
            let _ended = Ended(&theirs);
            Loop { courier, outbox: &outbox, clock: clock.as_ref(), shared: &theirs, batch_wait, batch_bytes }.run();
        });
        let thread = thread.map_err(|error| picket_durable::Error::new("start the delivery of", "outbox", error))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The delivery as it stood after the last attempt.
    pub fn status(&self) -> DeliveryStatus {
        self.shared.lock().status.clone()
    }

    /// Lets the next attempt be made at once, whatever failed before: the way to the receiver changed.
    pub fn hurry(&self) {
        self.shared.lock().hurry = true;
        self.shared.changed.notify_all();
    }

    /// Delivers what waits, for at most `limit`, and ends the thread. Says whether it ended: an uplink without a time
    /// limit of its own can keep it. What was not delivered stays in the outbox.
    pub fn stop(mut self, limit: Duration) -> bool {
        self.end(limit)
    }

    fn end(&mut self, limit: Duration) -> bool {
        let mut inner = self.shared.lock();
        inner.stop_by = Some(Instant::now() + limit);
        self.shared.changed.notify_all();
        let running = |inner: &mut Inner| !inner.ended;
        inner = self
            .shared
            .changed
            .wait_timeout_while(inner, limit + LAST_SEND, running)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        let ended = inner.ended;
        drop(inner);
        if let Some(thread) = self.thread.take().filter(|_| ended) {
            let _ = thread.join();
        }
        ended
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end(Duration::ZERO);
        }
    }
}

struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

struct Loop<'a> {
    courier: Courier,
    outbox: &'a Outbox,
    clock: &'a dyn Clock,
    shared: &'a Shared,
    batch_wait: Duration,
    batch_bytes: u64,
}

impl Loop<'_> {
    fn run(&mut self) {
        loop {
            let stop_by = self.shared.lock().stop_by;
            if let Some(stop_by) = stop_by {
                return self.drain(stop_by);
            }
            let step = self.step();
            match step {
                Step::Delivered(_) | Step::Again => self.fill(),
                Step::Wait(wait) => self.shared.pause(wait),
                Step::Idle => {
                    if self.outbox.wait_for_records(LOOK) {
                        self.fill();
                    }
                }
            }
        }
    }

    fn step(&mut self) -> Step {
        if std::mem::take(&mut self.shared.lock().hurry) {
            self.courier.hurry();
        }
        let step = self.courier.step(self.outbox, self.clock);
        let status = self.courier.status(self.clock);
        self.shared.lock().status = status;
        step
    }

    /// Waits for a batch to be worth sending.
    fn fill(&self) {
        if self.outbox.status().bytes < self.batch_bytes {
            self.shared.pause(self.batch_wait);
        }
    }

    /// Delivers what there is as long as that works and there is time.
    fn drain(&mut self, stop_by: Instant) {
        let left = || stop_by.saturating_duration_since(Instant::now());
        let _ = self.outbox.flush(left());
        while !left().is_zero() {
            match self.step() {
                Step::Delivered(_) | Step::Again => {}
                // There is nothing left; or the receiver is away, and somebody waits for us to end.
                Step::Idle | Step::Wait(_) => return,
            }
        }
    }
}
