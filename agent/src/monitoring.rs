//! From samples to alerts: the monitor in a thread of its own, and who hears of it.
//!
//! Samples come from the collectors and from timed operations, through a queue of [`QUEUE`] groups; one that does not fit
//! is dropped and counted, for the next one is on its way. What happens to alerts goes to the event stream, to the
//! channels (log, e-mail, webhooks) and to `GET /alerts`.

use crate::collect::Taken;
use crate::config::MonitorConfig;
use picket_monitor::channel::{self, Sender};
use picket_monitor::{Alert, ChannelStatus, Counts, Limits, Monitor, Notifier, NotifierOptions, Operations, Sample};
use picket_monitor::{Moment, Summary, Tags, Threshold};
use picket_protocol::event::{AlertEvent, EventBody, Sink};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How many groups of samples wait for the monitor.
const QUEUE: usize = 256;
/// How often silent series are looked for, and acknowledgements.
const TICK: Duration = Duration::from_secs(1);
/// How long channels may take to finish when the agent stops.
const DRAIN: Duration = Duration::from_secs(2);
/// The longest file of an acknowledgement, in bytes: a name, a note, and room for their line ends.
const ACK_MAX_BYTES: u64 = (picket_monitor::MAX_BY + picket_monitor::MAX_NOTE + 16) as u64;

enum Message {
    Taken(Arc<Taken>),
    Operation { name: String, duration: Duration, success: bool },
    Configure(Box<MonitorConfig>),
    Stop,
}

/// What the monitor knows: `GET /alerts`.
#[derive(Debug, Serialize)]
pub(crate) struct AlertReport {
    /// Alerts that are open.
    pub(crate) active: Vec<Alert>,
    /// Alerts that were closed lately.
    pub(crate) recent: Vec<Alert>,
    /// What the channels did.
    pub(crate) channels: Vec<ChannelStatus>,
    /// What the monitor did.
    pub(crate) counts: Counts,
}

/// One series in short: `GET /summaries`.
#[derive(Debug, Serialize)]
pub(crate) struct SeriesReport {
    name: String,
    #[serde(skip_serializing_if = "Tags::is_empty")]
    tags: Tags,
    unit: &'static str,
    #[serde(flatten)]
    summary: Summary,
}

/// The monitor: a handle and its thread.
pub(crate) struct Monitoring {
    messages: SyncSender<Message>,
    state: Arc<Mutex<State>>,
    dropped: Arc<AtomicU64>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct State {
    monitor: Monitor,
    notifier: Option<Notifier>,
}

impl Monitoring {
    /// Starts the thread; alerts go into `sink` as events.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub(crate) fn start(config: MonitorConfig, sink: Sink) -> std::io::Result<Self> {
        let (messages, inbox) = sync_channel(QUEUE);
        let (limits, thresholds) = plan(&config);
        let state = State { monitor: Monitor::new(limits, thresholds), notifier: notifier(&config)? };
        let state = Arc::new(Mutex::new(state));
        // People may acknowledge who may write here: the agent's user and root.
        if let Err(error) = picket_durable::create_dir(&config.acks, 0o700) {
            tracing::warn!(%error, "alerts cannot be acknowledged");
        }
        let worker = Worker {
            state: Arc::clone(&state),
            sink,
            operations: Operations::default(),
            acks: config.acks,
            began: Instant::now(),
        };
        let thread = std::thread::Builder::new().name("picket-monitor".to_owned()).spawn(move || worker.run(&inbox))?;
        let thread = Mutex::new(Some(thread));
        Ok(Self { messages, state, dropped: Arc::default(), thread })
    }

    /// Where samples are put. It never waits.
    pub(crate) fn feed(&self) -> impl Fn(&Arc<Taken>) + Send + Sync + use<> {
        let (messages, dropped) = (self.messages.clone(), Arc::clone(&self.dropped));
        move |taken| {
            if messages.try_send(Message::Taken(Arc::clone(taken))).is_err() {
                dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Where the times of operations are put. It never waits.
    pub(crate) fn feed_operations(&self) -> impl Fn(&str, Duration, bool) + Send + Sync + use<> {
        let (messages, dropped) = (self.messages.clone(), Arc::clone(&self.dropped));
        move |name, duration, success| {
            let message = Message::Operation { name: name.to_owned(), duration, success };
            if messages.try_send(message).is_err() {
                dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Works by `config` from now on.
    pub(crate) fn configure(&self, config: MonitorConfig) {
        let _ = self.messages.send(Message::Configure(Box::new(config)));
    }

    /// The alerts of this moment.
    pub(crate) fn alerts(&self) -> AlertReport {
        let state = lock(&self.state);
        AlertReport {
            active: state.monitor.active().to_vec(),
            recent: state.monitor.recent().cloned().collect(),
            channels: state.notifier.as_ref().map(Notifier::status).unwrap_or_default(),
            counts: state.monitor.counts(),
        }
    }

    /// Every series in short.
    pub(crate) fn summaries(&self) -> Vec<SeriesReport> {
        let state = lock(&self.state);
        let report = |series: picket_monitor::SeriesInfo| {
            let summary = state.monitor.summary(&series.name, &series.tags, None);
            SeriesReport { name: series.name, tags: series.tags, unit: series.unit, summary }
        };
        state.monitor.series().map(report).collect()
    }

    /// Ends the thread; what the channels have is delivered within a short limit.
    pub(crate) fn stop(&self) {
        let _ = self.messages.send(Message::Stop);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The limits and thresholds of a configuration. Thresholds that make no sense are told and left out.
fn plan(config: &MonitorConfig) -> (Limits, Vec<Threshold>) {
    let limits = Limits::of(&config.performance, config.alerting.no_data.get());
    let thresholds = if config.alerting.enabled { Threshold::all(&config.thresholds) } else { Ok(Vec::new()) };
    let thresholds = thresholds.unwrap_or_else(|errors| {
        for error in errors {
            tracing::error!(%error, "no threshold is in force");
        }
        Vec::new()
    });
    (limits, thresholds)
}

fn notifier(config: &MonitorConfig) -> std::io::Result<Option<Notifier>> {
    let sender = Sender {
        device_id: config.device_id.clone(),
        hostname: config.hostname.clone(),
        user_agent: config.user_agent.clone(),
    };
    let (channels, errors) = channel::plan(&config.alerting, &config.smtp, &sender);
    for error in errors {
        tracing::error!(%error, "a channel for alerts cannot be used");
    }
    if channels.is_empty() { Ok(None) } else { Notifier::spawn(channels, NotifierOptions::default()).map(Some) }
}

struct Worker {
    state: Arc<Mutex<State>>,
    sink: Sink,
    operations: Operations,
    acks: PathBuf,
    /// The beginning of the steady clock.
    began: Instant,
}

impl Worker {
    fn now(&self) -> Moment {
        Moment { wall: jiff::Timestamp::now(), steady: self.began.elapsed() }
    }

    fn run(mut self, inbox: &Receiver<Message>) {
        let mut ticked = Instant::now();
        loop {
            match inbox.recv_timeout(TICK.saturating_sub(ticked.elapsed())) {
                Ok(Message::Taken(taken)) => {
                    let at = self.now();
                    let samples = taken.flat().map(|reading| {
                        let sample = Sample::new(reading.name, reading.value, reading.unit, at);
                        reading.tags.into_iter().fold(sample, |sample, (key, value)| sample.tag(key, value))
                    });
                    self.record(&samples.collect::<Vec<_>>());
                }
                Ok(Message::Operation { name, duration, success }) => {
                    let samples = self.operations.record(&name, duration, success, self.now());
                    self.record(&samples);
                }
                Ok(Message::Configure(config)) => self.configure(&config),
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                self.tick();
            }
        }
        let notifier = lock(&self.state).notifier.take();
        if let Some(notifier) = notifier {
            notifier.stop(DRAIN);
        }
    }

    fn record(&self, samples: &[Sample]) {
        let mut events = Vec::new();
        {
            let mut state = lock(&self.state);
            for sample in samples {
                // What is refused is counted by the monitor.
                events.extend(state.monitor.record(sample).unwrap_or_default());
            }
        }
        self.tell(events);
    }

    fn tick(&mut self) {
        let now = self.now();
        if let Some(sample) = self.operations.error_rate(now) {
            self.record(&[sample]);
        }
        let mut events = lock(&self.state).monitor.sweep(now);
        for (id, ack) in self.acknowledgements() {
            match lock(&self.state).monitor.acknowledge(id, &ack.by, ack.note.as_deref(), now) {
                Ok(event) => events.push(event),
                Err(error) => tracing::warn!(alert = %id, %error, "cannot be acknowledged"),
            }
        }
        self.tell(events);
    }

    /// What people left in the folder of acknowledgements: a file each, its name the alert, its first line who, the
    /// rest a note. The folder is the agent's user's and root's, so that who may write there may acknowledge.
    fn acknowledgements(&self) -> Vec<(Uuid, Ack)> {
        let Ok(entries) = std::fs::read_dir(&self.acks) else { return Vec::new() };
        // A hidden name is a file that is still being written.
        let hidden = |entry: &std::fs::DirEntry| entry.file_name().as_encoded_bytes().starts_with(b".");
        let mut found = Vec::new();
        for entry in entries.flatten().filter(|entry| !hidden(entry)).take(64) {
            let path = entry.path();
            let id = entry.file_name().to_str().and_then(|name| Uuid::parse_str(name).ok());
            let text = picket_durable::read_untrusted(&path, ACK_MAX_BYTES).ok().flatten();
            if let Err(error) = picket_durable::remove_if_present(&path) {
                tracing::warn!(%error, "an acknowledgement cannot be taken away");
                continue;
            }
            if let Some(id) = id {
                found.push((id, Ack::parse(&String::from_utf8_lossy(&text.unwrap_or_default()))));
            }
        }
        found
    }

    fn tell(&self, events: Vec<AlertEvent>) {
        for event in events {
            if let Some(notifier) = &lock(&self.state).notifier {
                notifier.notify(&event);
            }
            (self.sink)(EventBody::Alert(event));
        }
    }

    fn configure(&mut self, config: &MonitorConfig) {
        let (limits, thresholds) = plan(config);
        let fresh = notifier(config).unwrap_or_else(|error| {
            tracing::error!(%error, "nobody hears of alerts: the system gives no thread");
            None
        });
        let (events, old) = {
            let mut state = lock(&self.state);
            let events = state.monitor.configure(limits, thresholds, self.now());
            (events, std::mem::replace(&mut state.notifier, fresh))
        };
        if let Some(old) = old {
            old.stop(DRAIN);
        }
        self.tell(events);
    }
}

/// Who has seen an alert, and what they had to say.
#[derive(Debug, PartialEq, Eq)]
struct Ack {
    by: String,
    note: Option<String>,
}

impl Ack {
    fn parse(text: &str) -> Self {
        let (by, note) = text.split_once('\n').unwrap_or((text, ""));
        let note = note.split_whitespace().collect::<Vec<_>>().join(" ");
        let by = by.trim();
        let by = if by.is_empty() { "somebody" } else { by };
        Self { by: by.to_owned(), note: Some(note).filter(|note| !note.is_empty()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_is_a_name_and_perhaps_a_note_in_one_line() {
        let ack = |by: &str, note: Option<&str>| Ack { by: by.into(), note: note.map(str::to_owned) };
        assert_eq!(Ack::parse("ada\n"), ack("ada", None));
        assert_eq!(Ack::parse(" ada \n on my\n way\n"), ack("ada", Some("on my way")));
        assert_eq!(Ack::parse(""), ack("somebody", None));
    }
}
