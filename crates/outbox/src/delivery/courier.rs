//! The courier: one attempt after the other, told what time it is.

use super::{Uplink, UplinkError, UplinkErrorKind};
use crate::backoff::{Backoff, random};
use crate::batch::Batch;
use crate::breaker::{Admission, Breaker, BreakerState};
use crate::clock::Clock;
use crate::error::OutboxError;
use crate::outbox::Outbox;
use crate::settings::{BatchLimits, OutboxSettings};
use picket_protocol::event::GapReason;
use picket_protocol::trace::TraceContext;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The longest wait that a receiver may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// How long to wait when the queue itself cannot be read.
const QUEUE_WAIT: Duration = Duration::from_secs(5);
/// The longest text of an error that is shown.
const ERROR_CHARS_MAX: usize = 300;

/// What the courier takes batches from; see [`Outbox`] for what each means.
pub trait Queue {
    /// The batch that is handed out, or a new one.
    fn next_batch(&self, limits: BatchLimits) -> Result<Option<Batch>, OutboxError>;
    /// The receiver has stored it.
    fn acknowledge(&self, batch: &Batch) -> Result<bool, OutboxError>;
    /// It certainly is not stored.
    fn release(&self, batch: &Batch) -> Result<bool, OutboxError>;
    /// The receiver will never take it.
    fn give_up(&self, batch: &Batch, reason: GapReason) -> Result<bool, OutboxError>;
}

impl Queue for Outbox {
    fn next_batch(&self, limits: BatchLimits) -> Result<Option<Batch>, OutboxError> {
        Self::next_batch(self, limits)
    }
    fn acknowledge(&self, batch: &Batch) -> Result<bool, OutboxError> {
        Self::acknowledge(self, batch)
    }
    fn release(&self, batch: &Batch) -> Result<bool, OutboxError> {
        Self::release(self, batch)
    }
    fn give_up(&self, batch: &Batch, reason: GapReason) -> Result<bool, OutboxError> {
        Self::give_up(self, batch, reason)
    }
}

/// How to deliver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliverySettings {
    /// Who reports.
    pub device_id: String,
    /// How much a batch holds.
    pub batch: BatchLimits,
    /// How long a batch waits to be filled.
    pub batch_wait: Duration,
    /// The first wait after a failure, and the longest.
    pub retry: (Duration, Duration),
    /// After how many failures the breaker opens, and for how long.
    pub breaker: (u32, Duration),
}

impl DeliverySettings {
    /// As an operator set it.
    pub fn new(settings: &OutboxSettings, device_id: &str) -> Self {
        Self {
            device_id: device_id.to_owned(),
            batch: settings.batch(),
            batch_wait: settings.batch_wait.get(),
            retry: (settings.retry_base.get(), settings.retry_cap.get()),
            breaker: (settings.breaker_failures, settings.breaker_open.get()),
        }
    }
}

/// The delivery as it stands: for metrics, health and `cache status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryStatus {
    /// The circuit breaker.
    pub breaker: BreakerState,
    /// How often it opened since the process began.
    pub breaker_opened: u64,
    /// Failures in a row.
    pub consecutive_failures: u32,
    /// What the last failure was, if nothing worked since.
    pub last_error: Option<String>,
    /// Of which kind it was; absent where the queue itself failed.
    pub last_error_kind: Option<UplinkErrorKind>,
    /// In how many milliseconds the next attempt is made, where it must wait.
    pub next_attempt_ms: Option<u64>,
    /// When something was delivered last.
    pub last_delivery: Option<jiff::Timestamp>,
    /// Batches delivered since the process began.
    pub batches: u64,
    /// Records delivered since the process began.
    pub records: u64,
    /// Bytes sent in delivered batches, after compression.
    pub bytes: u64,
    /// The same before compression.
    pub uncompressed_bytes: u64,
    /// Events that the receiver will never take.
    pub rejected: u64,
}

/// What came of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A batch of so many records was delivered.
    Delivered(usize),
    /// The receiver did not take a batch; there is something else to try at once.
    Again,
    /// There is nothing to deliver.
    Idle,
    /// Nothing is to be tried for so long.
    Wait(Duration),
}

/// Takes batches from a queue to an uplink. Each [`Courier::step`] makes at most one attempt.
pub struct Courier {
    uplink: Box<dyn Uplink>,
    settings: DeliverySettings,
    backoff: Backoff,
    breaker: Breaker,
    /// Less than the settings say after the receiver rejected a batch.
    limits: BatchLimits,
    /// Time since boot before which nothing is tried.
    not_before: Duration,
    /// Stored at the receiver's, but the queue could not be told.
    to_acknowledge: Option<Batch>,
    status: DeliveryStatus,
}

impl Courier {
    /// A courier that has not tried anything.
    pub fn new(uplink: Box<dyn Uplink>, settings: DeliverySettings) -> Self {
        let (base, cap) = settings.retry;
        let (threshold, cool_down) = settings.breaker;
        let status = DeliveryStatus {
            breaker: BreakerState::Closed,
            breaker_opened: 0,
            consecutive_failures: 0,
            last_error: None,
            last_error_kind: None,
            next_attempt_ms: None,
            last_delivery: None,
            batches: 0,
            records: 0,
            bytes: 0,
            uncompressed_bytes: 0,
            rejected: 0,
        };
        Self {
            uplink,
            backoff: Backoff::new(base, cap),
            breaker: Breaker::new(threshold, cool_down),
            limits: settings.batch,
            not_before: Duration::ZERO,
            to_acknowledge: None,
            settings,
            status,
        }
    }

    /// Makes one attempt if it is time for one.
    pub fn step(&mut self, queue: &dyn Queue, clock: &dyn Clock) -> Step {
        let now = clock.since_boot();
        if let Some(left) = self.not_before.checked_sub(now).filter(|left| !left.is_zero()) {
            return Step::Wait(left);
        }
        match self.attempt(queue, clock) {
            Ok(step) => step,
            Err(error) => {
                self.note_error(&error.to_string(), None);
                self.wait(now, QUEUE_WAIT)
            }
        }
    }

    /// Something changed that may let the next attempt work: what failed before is no reason to wait.
    pub fn hurry(&mut self) {
        let (base, cap) = self.settings.retry;
        let (threshold, cool_down) = self.settings.breaker;
        self.backoff = Backoff::new(base, cap);
        self.breaker = self.breaker.renewed(threshold, cool_down);
        self.not_before = Duration::ZERO;
    }

    /// The delivery as it stands.
    pub fn status(&self, clock: &dyn Clock) -> DeliveryStatus {
        let now = clock.since_boot();
        let wait = self.not_before.checked_sub(now).filter(|wait| !wait.is_zero());
        DeliveryStatus {
            breaker: self.breaker.state(now),
            breaker_opened: self.breaker.times_opened(),
            consecutive_failures: self.breaker.failures(),
            next_attempt_ms: wait.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
            ..self.status.clone()
        }
    }

    fn attempt(&mut self, queue: &dyn Queue, clock: &dyn Clock) -> Result<Step, OutboxError> {
        if let Some(batch) = &self.to_acknowledge {
            queue.acknowledge(batch)?;
            self.to_acknowledge = None;
        }
        let now = clock.since_boot();
        if let Admission::Wait(left) = self.breaker.admit(now) {
            return Ok(self.wait(now, left));
        }
        let batch = queue.next_batch(self.limits).inspect_err(|_| self.breaker.abstain())?;
        let Some(batch) = batch else {
            self.breaker.abstain();
            return Ok(Step::Idle);
        };
        let encoded = match batch.encode(&self.settings.device_id) {
            Ok(encoded) => encoded,
            Err(error) => {
                self.breaker.abstain();
                self.note_error(&format!("a batch cannot be compressed: {error}"), None);
                return Ok(self.wait(now, QUEUE_WAIT));
            }
        };
        let cause = TraceContext::start();
        let span = tracing::info_span!(
            "delivery",
            operation = "delivery",
            correlation_id = cause.correlation_id.as_str(),
            error = tracing::field::Empty
        );
        let sent = span.in_scope(|| {
            self.uplink.send(&encoded, &cause).inspect(|_| {
                if tracing::enabled!(tracing::Level::DEBUG) {
                    for (boot_id, (first_seq, last_seq)) in batch.places() {
                        tracing::debug!(%boot_id, first_seq, last_seq, "events are delivered");
                    }
                }
            })
        });
        if let Err(error) = &sent {
            span.record("error", error.detail.as_str());
        }
        drop(span);
        match sent {
            Ok(_) => {
                self.breaker.succeed();
                self.backoff.succeed();
                (self.status.last_error, self.status.last_error_kind) = (None, None);
                self.status.last_delivery = Some(clock.wall());
                self.status.batches += 1;
                self.status.records += batch.records.len() as u64;
                self.status.bytes += encoded.bytes.len() as u64;
                self.status.uncompressed_bytes += encoded.uncompressed_bytes as u64;
                let full = self.settings.batch;
                self.limits.bytes = self.limits.bytes.saturating_mul(2).min(full.bytes);
                self.limits.records = self.limits.records.saturating_mul(2).min(full.records);
                let records = batch.records.len();
                self.to_acknowledge = Some(batch);
                if let Some(batch) = &self.to_acknowledge {
                    queue.acknowledge(batch)?;
                }
                self.to_acknowledge = None;
                Ok(Step::Delivered(records))
            }
            Err(error) => self.failed(queue, &batch, &error, clock.since_boot()),
        }
    }

    fn failed(
        &mut self,
        queue: &dyn Queue,
        batch: &Batch,
        error: &UplinkError,
        now: Duration,
    ) -> Result<Step, OutboxError> {
        self.note_error(&error.detail, Some(error.kind));
        if error.kind == UplinkErrorKind::Rejected {
            // It answered: the way is open.
            self.breaker.succeed();
            if batch.records.len() > 1 {
                queue.release(batch)?;
                let half = BatchLimits { bytes: self.limits.bytes, records: batch.records.len() };
                self.limits = half.halved();
                return Ok(Step::Again);
            }
            for (boot_id, (seq, _)) in batch.places() {
                let error = &error.detail;
                tracing::warn!(%boot_id, seq, error, "the receiver does not take an event; it is counted as a gap");
            }
            self.status.rejected += batch.weight();
            queue.give_up(batch, GapReason::Format)?;
        } else {
            self.breaker.fail(now);
        }
        let jittered = self.backoff.fail(random());
        let asked = error.retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
        Ok(self.wait(now, jittered.max(asked)))
    }

    fn wait(&mut self, now: Duration, wait: Duration) -> Step {
        self.not_before = now + wait;
        Step::Wait(wait)
    }

    fn note_error(&mut self, text: &str, kind: Option<UplinkErrorKind>) {
        // What a receiver says goes to a terminal and to JSON: no control characters, not too much of it.
        let shown = text.chars().take(ERROR_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
        (self.status.last_error, self.status.last_error_kind) = (Some(shown), kind);
    }
}
