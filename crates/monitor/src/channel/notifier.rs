//! The threads that carry events to channels.
//!
//! Each channel but the log has a thread and a queue of [`NotifierOptions::queue`] events. [`Notifier::notify`] never
//! blocks: an event that finds a queue full is counted as dropped, and told in the log once per such time. A delivery that
//! fails is tried again after growing waits, up to [`NotifierOptions::attempts`] times; then it is counted as failed and
//! logged. [`Notifier::stop`] lets each thread try what is queued once more, without waits, until its limit.

use super::route::Route;
use super::{Channel, ChannelStatus, Deliver, Failure, backoff};
use crate::alert::Alert;
use crate::settings::ChannelKind;
use picket_protocol::event::{AlertAction, AlertEvent, AlertLevel};
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How hard channels try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotifierOptions {
    /// Events that may wait for one channel.
    pub queue: usize,
    /// How often a delivery is tried.
    pub attempts: u32,
    /// The wait after the first failure; doubled after each further one.
    pub first_wait: Duration,
    /// The longest wait, also where a server asks for more.
    pub longest_wait: Duration,
}

impl Default for NotifierOptions {
    /// 256 events; six attempts, with waits of 2, 4, 8, 16 and 32 s between them, each up to half shorter.
    fn default() -> Self {
        let (first_wait, longest_wait) = (Duration::from_secs(2), Duration::from_secs(60));
        Self { queue: 256, attempts: 6, first_wait, longest_wait }
    }
}

/// One attempt to deliver alerts through a channel, when it is over.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// The channel's place in the configuration.
    pub index: usize,
    /// Its kind.
    pub channel: ChannelKind,
    /// What was to be told.
    pub events: &'a [AlertEvent],
    /// Which attempt it was, from 1 on.
    pub number: u32,
    /// How long it took.
    pub took: Duration,
    /// Why it failed, without secrets; `None` where the other side accepted it.
    pub error: Option<&'a str>,
    /// Whether it is tried again.
    pub again: bool,
}

/// Hears of each attempt, in the channel's thread.
pub type Hear = Arc<dyn Fn(&Attempt<'_>) + Send + Sync>;

/// Carries events of alerts to the channels. Dropping it ends the threads as soon as they are done with what they do.
pub struct Notifier {
    lanes: Vec<Lane>,
    stop: Arc<Stop>,
}

struct Lane {
    index: usize,
    kind: ChannelKind,
    route: Mutex<Route>,
    tally: Arc<Mutex<Tally>>,
    courier: Option<Courier>,
}

struct Courier {
    queue: SyncSender<AlertEvent>,
    done: Receiver<()>,
}

#[derive(Debug, Default)]
struct Tally {
    sent: u64,
    failed: u64,
    dropped: u64,
    failing: u64,
    lost: Option<Instant>,
    last_error: Option<String>,
    /// Whether the log has been told that the queue is full.
    full: bool,
}

impl Tally {
    fn lose(&mut self, count: u64) {
        self.dropped += count;
        self.lost = Some(Instant::now());
    }
}

/// Tells every thread to come to an end, and until when.
#[derive(Default)]
struct Stop {
    deadline: Mutex<Option<Instant>>,
    changed: Condvar,
}

// No thread leaves these half changed, so that one which panicked is no reason for others to go mute.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stop {
    fn order(&self, deadline: Instant) {
        lock(&self.deadline).get_or_insert(deadline);
        self.changed.notify_all();
    }

    fn deadline(&self) -> Option<Instant> {
        *lock(&self.deadline)
    }

    /// Waits, or until the end is ordered.
    fn wait(&self, duration: Duration) {
        let waiting = self.changed.wait_timeout_while(lock(&self.deadline), duration, |deadline| deadline.is_none());
        drop(waiting);
    }
}

impl Notifier {
    /// Starts a thread for each channel that needs one; `hear` is told of each attempt to deliver.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn spawn(channels: Vec<Channel>, options: NotifierOptions, hear: &Hear) -> io::Result<Self> {
        let stop = Arc::new(Stop::default());
        let lane = |channel: Channel| {
            let tally = Arc::new(Mutex::new(Tally::default()));
            let courier = channel.deliver.map(|deliver| {
                let (queue, events) = sync_channel(options.queue.max(1));
                let (finished, done) = self::channel();
                let name = format!("alerts-{}-{}", channel.kind.as_str(), channel.index);
                let carry = Carry {
                    index: channel.index,
                    kind: channel.kind,
                    hear: Arc::clone(hear),
                    deliver,
                    tally: Arc::clone(&tally),
                    stop: Arc::clone(&stop),
                    options,
                };
                let run = move || {
                    carry.run(&events);
                    // Nobody may be waiting for it any more.
                    let _ = finished.send(());
                };
                thread::Builder::new().name(name).spawn(run).map(|_| Courier { queue, done })
            });
            let route = Mutex::new(Route::new(channel.level));
            Ok(Lane { index: channel.index, kind: channel.kind, route, tally, courier: courier.transpose()? })
        };
        Ok(Self { lanes: channels.into_iter().map(lane).collect::<io::Result<_>>()?, stop })
    }

    /// Takes note of alerts that are open already and were told of, before a restart or through other channels: who heard
    /// of their beginning will hear of their end.
    pub fn know(&self, open: &[Alert]) {
        for lane in &self.lanes {
            let mut route = lock(&lane.route);
            open.iter().for_each(|alert| route.know(alert.id, alert.worst));
        }
    }

    /// Counts on where the channel before, which was the same, came to.
    pub fn count_on(&self, index: usize, before: &ChannelStatus) {
        if let Some(lane) = self.lanes.iter().find(|lane| lane.index == index) {
            let mut tally = lock(&lane.tally);
            tally.sent += before.sent;
            tally.failed += before.failed;
            tally.dropped += before.dropped;
            tally.failing += before.failing;
            if let Some(ago) = before.lost_ago_seconds {
                tally.lost = Instant::now().checked_sub(Duration::from_secs(ago));
            }
            if before.last_error.is_some() {
                tally.last_error.clone_from(&before.last_error);
            }
        }
    }

    /// Gives an event to every channel that wants it, and returns at once.
    pub fn notify(&self, event: &AlertEvent) {
        for lane in &self.lanes {
            if !lock(&lane.route).wants(event) {
                continue;
            }
            match &lane.courier {
                None => {
                    log(event);
                    lock(&lane.tally).sent += 1;
                }
                Some(courier) => lane.queue(courier, event),
            }
        }
    }

    /// What each channel has done.
    pub fn status(&self) -> Vec<ChannelStatus> {
        let status = |lane: &Lane| {
            let tally = lock(&lane.tally);
            ChannelStatus {
                kind: lane.kind.as_str(),
                index: lane.index,
                sent: tally.sent,
                failed: tally.failed,
                dropped: tally.dropped,
                failing: tally.failing,
                lost_ago_seconds: tally.lost.map(|at| at.elapsed().as_secs()),
                last_error: tally.last_error.clone(),
            }
        };
        self.lanes.iter().map(status).collect()
    }

    /// Delivers what is queued, for at most `limit`, and ends the threads; returns what each channel did in all. A thread
    /// that hangs in the network then is left to its own time limits, and what it holds is in no count.
    pub fn stop(mut self, limit: Duration) -> Vec<ChannelStatus> {
        let deadline = Instant::now() + limit;
        self.stop.order(deadline);
        for lane in &mut self.lanes {
            if let Some(Courier { queue, done }) = lane.courier.take() {
                drop(queue);
                let left = deadline.saturating_duration_since(Instant::now());
                if done.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
                    tracing::warn!(channel = lane.kind.as_str(), "did not finish its deliveries in time");
                }
            }
        }
        self.status()
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.stop.order(Instant::now());
    }
}

impl Lane {
    fn queue(&self, courier: &Courier, event: &AlertEvent) {
        let sent = courier.queue.try_send(event.clone());
        let mut tally = lock(&self.tally);
        match sent {
            Ok(()) => tally.full = false,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                tally.lose(1);
                if !std::mem::replace(&mut tally.full, true) {
                    tracing::warn!(channel = self.kind.as_str(), "its queue is full; alerts for it are only counted");
                }
            }
        }
    }
}

/// The channel `log`.
fn log(event: &AlertEvent) {
    let (alert, metric, value) = (event.alert_id, event.metric.as_str(), event.value);
    match (event.action, event.level) {
        (AlertAction::Raised, AlertLevel::Critical) => tracing::error!(%alert, metric, value, "{}", event.message),
        (AlertAction::Raised | AlertAction::Lowered, _) => tracing::warn!(%alert, metric, value, "{}", event.message),
        (AlertAction::Acknowledged, _) => {
            let by = event.by.as_deref().unwrap_or_default();
            tracing::info!(%alert, metric, by, "acknowledged: {}", event.message);
        }
        (AlertAction::Cleared, _) => tracing::info!(%alert, metric, value, "{}", event.message),
    }
}

/// One thread's work.
struct Carry {
    index: usize,
    kind: ChannelKind,
    hear: Hear,
    deliver: Box<dyn Deliver>,
    tally: Arc<Mutex<Tally>>,
    stop: Arc<Stop>,
    options: NotifierOptions,
}

impl Carry {
    /// Delivers until the queue is closed and empty.
    fn run(mut self, events: &Receiver<AlertEvent>) {
        while let Ok(first) = events.recv() {
            let more = events.try_iter().take(self.deliver.batch().saturating_sub(1));
            let batch: Vec<AlertEvent> = std::iter::once(first).chain(more).collect();
            self.carry(&batch);
        }
    }

    fn carry(&mut self, batch: &[AlertEvent]) {
        let count = batch.len() as u64;
        for attempt in 1.. {
            let ordered = self.stop.deadline();
            if ordered.is_some_and(|deadline| Instant::now() >= deadline) {
                lock(&self.tally).lose(count);
                return;
            }
            let span = tracing::info_span!("notification", operation = "notification", error = tracing::field::Empty);
            let began = Instant::now();
            let delivered = span.in_scope(|| self.deliver.deliver(batch));
            let took = began.elapsed();
            if let Err(failure) = &delivered {
                span.record("error", failure.reason.as_str());
            }
            drop(span);
            let failure = match delivered {
                Ok(()) => {
                    {
                        let mut tally = lock(&self.tally);
                        tally.sent += count;
                        tally.failing = 0;
                        tally.last_error = None;
                    }
                    return self.hear(batch, attempt, took, None, false);
                }
                Err(failure) => failure,
            };
            // An attempt that began before the end was ordered is not the last one.
            let last = !failure.retry || attempt >= self.options.attempts || ordered.is_some();
            self.note(&failure, if last { count } else { 0 });
            self.hear(batch, attempt, took, Some(&failure.reason), !last);
            if last {
                return;
            }
            // Without randomness all wait equally long, which still works.
            let random = getrandom::u64().unwrap_or_default();
            let wait = backoff::wait(attempt, self.options.first_wait, self.options.longest_wait, random);
            self.stop.wait(failure.wait.unwrap_or_default().max(wait).min(self.options.longest_wait.max(wait)));
        }
    }

    fn hear(&self, events: &[AlertEvent], number: u32, took: Duration, error: Option<&str>, again: bool) {
        (self.hear)(&Attempt { index: self.index, channel: self.kind, events, number, took, error, again });
    }

    fn note(&self, failure: &Failure, given_up: u64) {
        let mut tally = lock(&self.tally);
        tally.failed += given_up;
        tally.failing += 1;
        if given_up > 0 {
            tally.lost = Some(Instant::now());
        }
        tally.last_error = Some(failure.reason.clone());
        drop(tally);
        let (channel, reason) = (self.kind.as_str(), failure.reason.as_str());
        if given_up > 0 {
            tracing::warn!(channel, alerts = given_up, reason, "alerts could not be delivered");
        } else {
            tracing::debug!(channel, reason, "an attempt to deliver alerts failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};
    use uuid::Uuid;

    /// Answers as it is told, and tells what it was given.
    struct Scripted {
        batch: usize,
        answers: Receiver<Result<(), Failure>>,
        seen: Sender<usize>,
    }

    impl Deliver for Scripted {
        fn batch(&self) -> usize {
            self.batch
        }
        fn deliver(&mut self, events: &[AlertEvent]) -> Result<(), Failure> {
            self.seen.send(events.len()).unwrap();
            self.answers.recv_timeout(LONG).unwrap()
        }
    }

    const LONG: Duration = Duration::from_secs(20);

    fn event() -> AlertEvent {
        AlertEvent {
            timestamp: jiff::Timestamp::UNIX_EPOCH,
            alert_id: Uuid::from_u128(1),
            action: AlertAction::Raised,
            level: AlertLevel::Critical,
            metric: "m".into(),
            tags: crate::Tags::default(),
            value: 1.0,
            threshold: 1.0,
            message: "m is 1".into(),
            by: None,
            note: None,
        }
    }

    fn busy() -> Failure {
        Failure { reason: "busy".into(), retry: true, wait: None }
    }

    fn notifier(batch: usize, options: NotifierOptions) -> (Notifier, Sender<Result<(), Failure>>, Receiver<usize>) {
        notifier_heard(batch, options, &(Arc::new(|_: &Attempt<'_>| {}) as Hear))
    }

    fn notifier_heard(
        batch: usize,
        options: NotifierOptions,
        hear: &Hear,
    ) -> (Notifier, Sender<Result<(), Failure>>, Receiver<usize>) {
        let ((answer, answers), (seen, told)) = (channel(), channel());
        let deliver: Box<dyn Deliver> = Box::new(Scripted { batch, answers, seen });
        let channel =
            Channel { index: 0, kind: ChannelKind::Webhook, level: AlertLevel::Warning, deliver: Some(deliver) };
        (Notifier::spawn(vec![channel], options, hear).unwrap(), answer, told)
    }

    const FAST: NotifierOptions = NotifierOptions {
        queue: 4,
        attempts: 3,
        first_wait: Duration::from_millis(1),
        longest_wait: Duration::from_millis(2),
    };

    #[test]
    fn every_attempt_is_heard_of_with_its_end() {
        let (said, heard) = channel();
        let hear: Hear = Arc::new(move |attempt: &Attempt<'_>| {
            let error = attempt.error.map(str::to_owned);
            said.send((attempt.number, attempt.events.len(), error, attempt.again)).unwrap();
        });
        let options = NotifierOptions { first_wait: Duration::ZERO, ..NotifierOptions::default() };
        let (notifier, answer, _told) = notifier_heard(1, options, &hear);
        answer.send(Err(busy())).unwrap();
        answer.send(Ok(())).unwrap();
        notifier.notify(&event());
        assert_eq!(heard.recv_timeout(LONG).unwrap(), (1, 1, Some("busy".to_owned()), true));
        assert_eq!(heard.recv_timeout(LONG).unwrap(), (2, 1, None, false));
        notifier.stop(LONG);
    }

    #[test]
    fn a_delivery_is_tried_again_and_given_up_after_the_last_attempt() {
        let (notifier, answer, told) = notifier(1, FAST);
        notifier.notify(&event());
        (0..2).for_each(|_| answer.send(Err(busy())).unwrap());
        answer.send(Ok(())).unwrap();
        (0..3).for_each(|_| assert_eq!(told.recv_timeout(LONG), Ok(1)));
        notifier.notify(&event());
        (0..3).for_each(|_| answer.send(Err(busy())).unwrap());
        (0..3).for_each(|_| assert_eq!(told.recv_timeout(LONG), Ok(1)));
        let status = notifier.stop(LONG).remove(0);
        assert_eq!((status.sent, status.failed, status.dropped, status.failing), (1, 1, 0, 3));
        assert!(status.lost_ago_seconds.is_some());
        assert_eq!(status.last_error.as_deref(), Some("busy"));
    }

    #[test]
    fn what_will_never_work_is_not_tried_again() {
        let (notifier, answer, told) = notifier(1, FAST);
        notifier.notify(&event());
        answer.send(Err(Failure { retry: false, ..busy() })).unwrap();
        told.recv_timeout(LONG).unwrap();
        let status = notifier.stop(LONG).remove(0);
        assert_eq!((status.sent, status.failed), (0, 1));
        assert!(told.try_recv().is_err());
    }

    #[test]
    fn a_channel_that_hangs_blocks_nobody_and_what_does_not_fit_is_counted() {
        let (notifier, answer, told) = notifier(10, FAST);
        notifier.notify(&event());
        assert_eq!(told.recv_timeout(LONG), Ok(1));
        // It hangs now. Four fit, six do not.
        (0..10).for_each(|_| notifier.notify(&event()));
        assert_eq!(notifier.status()[0].dropped, 6);
        (0..2).for_each(|_| answer.send(Ok(())).unwrap());
        assert_eq!(told.recv_timeout(LONG), Ok(4), "what waited goes in one batch");
        let status = notifier.stop(LONG).remove(0);
        assert_eq!((status.sent, status.dropped), (5, 6));
    }

    #[test]
    fn stopping_ends_a_wait_tries_once_more_and_keeps_to_its_limit() {
        let patient = NotifierOptions {
            first_wait: Duration::from_secs(3_600),
            longest_wait: Duration::from_secs(3_600),
            ..FAST
        };
        let (notifier, answer, told) = notifier(1, patient);
        notifier.notify(&event());
        answer.send(Err(busy())).unwrap();
        told.recv_timeout(LONG).unwrap();
        answer.send(Ok(())).unwrap();
        let began = Instant::now();
        let status = notifier.stop(LONG).remove(0);
        assert_eq!(status.sent, 1);
        assert!(began.elapsed() < LONG);
    }

    #[test]
    fn stopping_does_not_wait_for_a_channel_that_hangs() {
        let (notifier, answer, told) = notifier(1, FAST);
        notifier.notify(&event());
        told.recv_timeout(LONG).unwrap();
        let status = notifier.stop(Duration::from_millis(10)).remove(0);
        assert_eq!(status.sent, 0);
        answer.send(Ok(())).unwrap();
    }
}
