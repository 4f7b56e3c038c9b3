//! The outbox as others use it: a handle, and the one thread that writes.

use crate::batch::Batch;
use crate::draft::{Draft, Gap};
use crate::engine::{Engine, Options};
use crate::error::OutboxError;
use crate::inspect;
use crate::intake::{Intake, Reply, Taken};
use crate::ledger::Ledger;
use crate::marks::AcceptedFile;
use crate::settings::BatchLimits;
use crate::status::{Durable, QueueStatus};
use crate::work::CleanRequest;
use picket_protocol::event::{EventBody, EventId, GapReason, Priority, Sink};
use std::collections::VecDeque;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How many records one commit takes at most, and starts it at once.
pub(crate) const GROUP_RECORDS: usize = 256;
/// How long a record waits for others to be committed with.
const GROUP_WAIT: Duration = Duration::from_millis(100);
/// How often the writer looks after quotas and wishes.
const TICK: Duration = Duration::from_secs(1);
/// The first and the longest wait after a failed commit.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long a command may wait for the writer.
const COMMAND_WAIT: Duration = Duration::from_secs(60);

/// Something for the writer to do; what it returns is called once the books that others see are up to date.
type Command = Box<dyn FnOnce(&mut Engine) -> Box<dyn FnOnce()> + Send>;

/// The durable queue. Dropping it writes what is in memory and ends the thread.
pub struct Outbox {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    max_bytes: u64,
}

struct Shared {
    inner: Mutex<Inner>,
    /// There is something to do for the writer.
    work: Condvar,
    /// The writer has done something.
    done: Condvar,
}

struct Inner {
    intake: Intake,
    commands: VecDeque<Command>,
    /// Somebody waits for durability: do not wait for others to join.
    hurry: bool,
    /// Since when something waits.
    since: Option<Instant>,
    closing: bool,
    abandoned: bool,
    /// The writer is gone.
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outbox {
    /// Opens the outbox and starts its writer.
    ///
    /// # Errors
    /// [`OutboxError::Lock`] while another process has it, [`OutboxError::OtherKeys`], [`OutboxError::Later`], and what the
    /// disk says. Damage is no error: it is counted.
    pub fn open(options: Options) -> Result<Self, OutboxError> {
        let (limits, max_bytes) = (options.limits, options.limits.max_bytes);
        let (engine, accepted) = open_engine(options)?;
        let inner = Inner {
            intake: Intake::new(limits, Durable::of(&engine), accepted),
            commands: VecDeque::new(),
            hurry: false,
            since: None,
            closing: false,
            abandoned: false,
            closed: false,
        };
        let shared = Arc::new(Shared { inner: Mutex::new(inner), work: Condvar::new(), done: Condvar::new() });
        let theirs = Arc::clone(&shared);
        let writer = std::thread::Builder::new().name("outbox".into()).spawn(move || {
            // Whoever waits must not wait for a writer that is gone, however it went.
            let _gone = Gone(&theirs);
            Writer { engine, shared: &theirs, retry: RETRY.0, not_before: None, ticked: Instant::now() }.run();
        });
        let writer = writer.map_err(|error| picket_durable::Error::new("start the writer of", "outbox", error))?;
        Ok(Self { shared, writer: Some(writer), max_bytes })
    }

    /// Accepts `draft` and returns at once; it is durable within about 100 ms. Says whether it was accepted: if not,
    /// it is counted as a gap already.
    pub fn emit(&self, draft: Draft) -> bool {
        self.offer(draft, None)
    }

    fn offer(&self, draft: Draft, reply: Option<Reply>) -> bool {
        let mut inner = self.shared.lock();
        inner.hurry |= reply.is_some();
        let accepted = inner.intake.offer(draft, reply);
        self.wake(&mut inner);
        accepted
    }

    fn wake(&self, inner: &mut Inner) {
        // The writer sleeps until there is something, then until the group is full or its time is over.
        let first = inner.since.is_none();
        inner.since.get_or_insert_with(Instant::now);
        if first || inner.hurry || inner.intake.waiting().is_some_and(|records| records >= GROUP_RECORDS) {
            self.shared.work.notify_one();
        }
    }

    /// [`Outbox::emit`] of an event. A gap event is entered in the books instead, and told of from there; an event that
    /// cannot be written in the wire's form is counted as one.
    pub fn emit_event(&self, event: EventBody) -> bool {
        if let EventBody::Gap(gap) = event {
            self.account_gap(Gap::of_event(gap));
            return true;
        }
        match Draft::event(&event) {
            Ok(draft) => self.emit(draft),
            Err(error) => {
                tracing::warn!(%error, kind = event.type_name(), "an event is left out");
                self.account_gap(Gap::own(GapReason::Format, event.class(), Some(crate::draft::weight(&event))));
                false
            }
        }
    }

    /// Where watchers put what they see.
    pub fn sink(self: &Arc<Self>) -> Sink {
        let outbox = Arc::clone(self);
        Arc::new(move |event| {
            outbox.emit_event(event);
        })
    }

    /// Accepts `draft` and waits until it is durable.
    ///
    /// # Errors
    /// [`OutboxError::GivenUp`] if there was no room and it was counted as a gap, [`OutboxError::NotYet`] if `limit` was
    /// over first (it stays in memory and is tried again).
    pub fn emit_durable(&self, draft: Draft, limit: Duration) -> Result<EventId, OutboxError> {
        let (reply, answer) = sync_channel(1);
        if !self.offer(draft, Some(reply)) {
            return Err(OutboxError::GivenUp);
        }
        answer.recv_timeout(limit).unwrap_or_else(|_| Err(self.not_yet()))
    }

    fn not_yet(&self) -> OutboxError {
        let inner = self.shared.lock();
        if inner.closed {
            return OutboxError::Closed;
        }
        OutboxError::NotYet(inner.intake.trouble.clone().unwrap_or_else(|| "the writer is busy".into()))
    }

    /// Enters events that were given up before they became records, and tells the receiver of them.
    pub fn account_gap(&self, gap: Gap) {
        let mut inner = self.shared.lock();
        inner.intake.miss(gap);
        self.wake(&mut inner);
    }

    /// Waits until everything that was accepted before is durable (or given up, and that durable).
    ///
    /// # Errors
    /// [`OutboxError::NotYet`] with the reason.
    pub fn flush(&self, limit: Duration) -> Result<(), OutboxError> {
        let deadline = Instant::now() + limit;
        let mut inner = self.shared.lock();
        let ticket = inner.intake.ticket();
        while !inner.intake.is_settled(ticket) {
            let left = deadline.saturating_duration_since(Instant::now());
            if inner.closed || left.is_zero() {
                drop(inner);
                return Err(self.not_yet());
            }
            inner.hurry = true;
            self.shared.work.notify_one();
            inner = self.shared.done.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// The books of everything that was accepted, durable or not. They add up at every instant.
    pub fn ledger(&self) -> Ledger {
        self.shared.lock().intake.ledger()
    }

    /// The queue as it stands.
    pub fn status(&self) -> QueueStatus {
        let inner = self.shared.lock();
        let intake = &inner.intake;
        let status = intake.durable().status(intake.ledger(), intake.size().0, self.max_bytes, intake.trouble.clone());
        QueueStatus { delays: intake.delays, ..status }
    }

    /// Waits until a record is durable and can be handed out, or until `limit` is over. Says whether there is one.
    pub fn wait_for_records(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut inner = self.shared.lock();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if inner.intake.durable().stats.iter().any(|stat| stat.records > 0) {
                return true;
            }
            if inner.closed || left.is_zero() {
                return false;
            }
            inner = self.shared.done.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Hands out records: the most urgent first, with a share for each class. The same ones are handed out until they
    /// are acknowledged, released or given up, also after a restart; meanwhile no quota touches them.
    pub fn next_batch(&self, limits: BatchLimits) -> Result<Option<Batch>, OutboxError> {
        self.ask(move |engine| engine.next_batch(limits))
    }

    /// The receiver has stored `batch`. Says whether it was the one handed out last. Durable when this returns.
    pub fn acknowledge(&self, batch: &Batch) -> Result<bool, OutboxError> {
        let batch = batch.clone();
        self.ask(move |engine| engine.acknowledge(&batch))
    }

    /// `batch` certainly did not reach the receiver: the next one is made up anew.
    pub fn release(&self, batch: &Batch) -> Result<bool, OutboxError> {
        let batch = batch.clone();
        self.ask(move |engine| engine.release(&batch))
    }

    /// The receiver will never take `batch`: its events become a gap.
    pub fn give_up(&self, batch: &Batch, reason: GapReason) -> Result<bool, OutboxError> {
        let batch = batch.clone();
        self.ask(move |engine| engine.give_up(&batch, reason))
    }

    /// Drops queued records and counts them as shed. Says how many events those were.
    pub fn clean(&self, request: CleanRequest) -> Result<u64, OutboxError> {
        self.ask(move |engine| engine.clean(request))
    }

    /// Ends the present stream and begins another, with a boot id and books of its own: for a receiver that is to have all
    /// of a stream, when the one before it has had a part. Events that wait keep their ids. Says which it is, and from which
    /// it was durable on.
    pub fn begin_stream(&self) -> Result<uuid::Uuid, OutboxError> {
        self.ask(Engine::begin_stream)
    }

    /// Makes the database refuse to grow, as a full disk does. For tests.
    #[doc(hidden)]
    pub fn limit_growth(&self, full: bool) -> Result<(), OutboxError> {
        self.ask(move |engine| engine.limit_growth(full))
    }

    /// Ends without writing what is in memory, as a process that is killed does. For tests.
    #[doc(hidden)]
    pub fn abandon(self) {
        self.shared.lock().abandoned = true;
    }

    /// Has the writer do something and waits for what it says.
    fn ask<T: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Engine) -> Result<T, OutboxError> + Send + 'static,
    ) -> Result<T, OutboxError> {
        let (reply, answer) = sync_channel(1);
        {
            let mut inner = self.shared.lock();
            if inner.closing || inner.closed {
                return Err(OutboxError::Closed);
            }
            inner.commands.push_back(Box::new(move |engine| {
                let done = act(engine);
                Box::new(move || {
                    let _ = reply.try_send(done);
                })
            }));
            self.shared.work.notify_one();
        }
        answer.recv_timeout(COMMAND_WAIT).unwrap_or_else(|_| Err(self.not_yet()))
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_one();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// Opens the engine, and enters what a killed process took with it.
pub(crate) fn open_engine(options: Options) -> Result<(Engine, AcceptedFile), OutboxError> {
    let mut engine = Engine::open(options)?;
    let (mut file, accepted) = AcceptedFile::open(&engine.files.accepted(), engine.memory.state.books)?;
    let emitted = engine.memory.state.emitted();
    let mut gaps = Vec::new();
    for (class, (accepted, emitted)) in
        Priority::ALL.into_iter().zip(accepted.unwrap_or(emitted).into_iter().zip(emitted))
    {
        if accepted > emitted {
            gaps.push(Gap::own(GapReason::Corruption, class, Some(accepted - emitted)));
        }
    }
    if !gaps.is_empty() {
        engine.commit(&[], &gaps)?;
    }
    file.write(engine.memory.state.emitted());
    Ok((engine, file))
}

/// What is done to the intake while it is locked.
type Change<'a> = &'a mut dyn FnMut(&mut Intake);

/// One round of the writer: what was taken becomes durable, or goes back. Returns why it did not.
pub(crate) fn write(engine: &mut Engine, mut taken: Taken, with_intake: &dyn Fn(Change<'_>)) -> Option<OutboxError> {
    let bytes = taken.bytes();
    let drafts = taken.take_drafts();
    match engine.commit(&drafts, &taken.gaps) {
        Ok(ids) => {
            let (durable, now_ms) = (Durable::of(engine), engine.wall_ms());
            with_intake(&mut |intake| {
                intake.delays.note(&drafts, now_ms);
                intake.committed(&taken, bytes, durable.clone());
            });
            taken.answer(&ids);
            None
        }
        Err(error) => {
            taken.put_drafts(drafts);
            // Records may wait in memory; that others were given up must not.
            let gaps = taken.split_gaps();
            let told = !gaps.gaps.is_empty() && engine.commit(&[], &gaps.gaps).is_ok();
            let durable = Durable::of(engine);
            let (mut gaps, mut taken) = (Some(gaps), Some(taken));
            with_intake(&mut |intake| {
                let (Some(mut gaps), Some(mut taken)) = (gaps.take(), taken.take()) else { return };
                if told {
                    intake.committed(&gaps, 0, durable.clone());
                } else {
                    taken.gaps.append(&mut gaps.gaps);
                }
                intake.put_back(taken);
            });
            Some(error)
        }
    }
}

struct Gone<'a>(&'a Shared);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.closed = true;
        if std::thread::panicking() {
            inner.intake.trouble = Some("the outbox's writer ended by a fault; restart the agent".to_owned());
        }
        drop(inner);
        self.0.done.notify_all();
    }
}

struct Writer<'a> {
    engine: Engine,
    shared: &'a Shared,
    /// How long to wait after the next failure.
    retry: Duration,
    not_before: Option<Instant>,
    ticked: Instant,
}

impl Writer<'_> {
    fn run(mut self) {
        loop {
            let (command, taken, closing) = self.wait();
            if let Some(command) = command {
                let answer = command(&mut self.engine);
                let durable = Durable::of(&self.engine);
                self.shared.lock().intake.update(durable);
                answer();
                self.shared.done.notify_all();
            }
            let wrote = if taken.is_empty() { true } else { self.write(taken) };
            if self.ticked.elapsed() >= TICK {
                self.tick();
            }
            // What cannot be written now is lost with the process, and counted by the next.
            if !closing {
                continue;
            }
            let inner = self.shared.lock();
            let (abandoned, nothing_left) = (inner.abandoned, inner.intake.waiting().is_none());
            drop(inner);
            if abandoned {
                return;
            }
            if !wrote || nothing_left {
                self.engine.settle();
                return;
            }
        }
    }

    /// Waits for something to do.
    fn wait(&mut self) -> (Option<Command>, Taken, bool) {
        let mut inner = self.shared.lock();
        loop {
            if inner.abandoned {
                return (None, Taken::default(), true);
            }
            if let Some(command) = inner.commands.pop_front() {
                return (Some(command), Taken::default(), false);
            }
            let now = Instant::now();
            let mut left = TICK.saturating_sub(now.duration_since(self.ticked));
            if let Some(records) = inner.intake.waiting() {
                let since = *inner.since.get_or_insert(now);
                let due = if inner.hurry || records >= GROUP_RECORDS { now } else { since + GROUP_WAIT };
                let due = self.not_before.map_or(due, |not_before| due.max(not_before));
                if inner.closing || due <= now {
                    let taken = inner.intake.take(GROUP_RECORDS);
                    if inner.intake.waiting().is_none() {
                        (inner.since, inner.hurry) = (None, false);
                    }
                    return (None, taken, inner.closing);
                }
                left = left.min(due - now);
            }
            if inner.closing || left.is_zero() {
                return (None, Taken::default(), inner.closing);
            }
            inner = self.shared.work.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn write(&mut self, taken: Taken) -> bool {
        let shared = self.shared;
        let error = write(&mut self.engine, taken, &|act| act(&mut shared.lock().intake));
        let mut inner = shared.lock();
        match &error {
            None => {
                (self.retry, self.not_before) = (RETRY.0, None);
                if inner.intake.trouble.take().is_some() {
                    tracing::info!("the outbox can be written again");
                }
            }
            Some(error) => {
                self.not_before = Some(Instant::now() + self.retry);
                self.retry = (self.retry * 2).min(RETRY.1);
                if inner.intake.trouble.is_none() {
                    tracing::error!(%error, "the outbox cannot be written; events wait in memory");
                }
                inner.intake.trouble = Some(error.to_string());
            }
        }
        drop(inner);
        shared.done.notify_all();
        error.is_none()
    }

    fn tick(&mut self) {
        self.ticked = Instant::now();
        if let Err(error) = self.engine.tick() {
            tracing::warn!(%error, "the outbox could not be looked after");
        }
        let answer = inspect::fulfil_wish(&mut self.engine);
        let durable = Durable::of(&self.engine);
        self.shared.lock().intake.update(durable);
        if let Some(answer) = answer {
            inspect::answer_wish(&self.engine.files, &answer);
        }
    }
}
