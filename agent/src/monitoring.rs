//! From samples to alerts: the monitor in a thread of its own, and who hears of it.
//!
//! Samples come from the collectors and from timed operations, through a queue of [`QUEUE`] groups; one that does not fit
//! is dropped and counted, for the next one is on its way. What happens to alerts goes to the event stream, to the
//! channels (log, e-mail, webhooks) and to `GET /alerts`.
//!
//! An alert outlives the agent: each change is written down before anybody is told of it ([`Memory`]), and the next agent
//! goes on from there. Reading a new configuration takes nothing from the channels that stay as they are: neither what
//! waits for them nor who heard of what.

use crate::collect::Taken;
use crate::config::MonitorConfig;
use crate::heard::{Heard, finding};
use crate::keep::told;
use picket_monitor::channel::ChannelError;
use picket_monitor::{Alert, ChannelStatus, Counts, Hear, Limits, Memory, Moment, Monitor, Notifier};
use picket_monitor::{Operations, Sample, Summary, Tags, Threshold};
use picket_protocol::event::{AlertEvent, EventBody, Sink};
use picket_telemetry::Finding;
use serde::Serialize;
use std::path::{Path, PathBuf};
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
/// How often it is looked whether the secrets of channels can be read.
const SECRETS: Duration = Duration::from_secs(5);
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
    /// Channels that are in the configuration and cannot be used, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) unusable: Vec<String>,
    /// What the monitor did.
    pub(crate) counts: Counts,
    /// Groups of samples that did not fit into the monitor's queue.
    pub(crate) dropped: u64,
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
    /// Channels that cannot be used, and why.
    unusable: Vec<ChannelError>,
}

impl Monitoring {
    /// Starts the thread; alerts go into `sink` as events.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub(crate) fn start(config: MonitorConfig, sink: Sink, hear: Hear) -> std::io::Result<Self> {
        let (messages, inbox) = sync_channel(QUEUE);
        let (limits, thresholds) = plan(&config);
        let began = Instant::now();
        let mut monitor = Monitor::new(limits, thresholds);
        let heard = Heard::of(&config);
        let (notifier, unusable) = heard.notifier(&hear)?;
        let Memory { open, mut untold } = remembered(&config.memory);
        if let Some(notifier) = &notifier {
            notifier.know(&open);
        }
        untold.extend(monitor.restore(open, Moment { wall: jiff::Timestamp::now(), steady: began.elapsed() }));
        let state = Arc::new(Mutex::new(State { monitor, notifier, unusable }));
        // People may acknowledge who may write here: the agent's user and root.
        if let Err(error) = picket_durable::create_dir(&config.acks, 0o700) {
            tracing::warn!(%error, "alerts cannot be acknowledged");
        }
        let worker = Worker {
            state: Arc::clone(&state),
            sink,
            operations: Operations::default(),
            acks: config.acks,
            memory: config.memory,
            forgetful: false,
            heard,
            hear,
            began,
            looked: began,
        };
        let thread =
            std::thread::Builder::new().name("picket-monitor".to_owned()).spawn(move || worker.run(untold, &inbox))?;
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
            unusable: state.unusable.iter().map(ToString::to_string).collect(),
            counts: state.monitor.counts(),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }

    /// Whether alerts reach people, as far as the channels can tell.
    pub(crate) fn channel_finding(&self) -> Finding {
        let state = lock(&self.state);
        let channels = state.notifier.as_ref().map(Notifier::status).unwrap_or_default();
        finding(&channels, &state.unusable)
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

/// What the agent before knew of its alerts. What cannot be read is told; its alerts begin anew then.
fn remembered(path: &Path) -> Memory {
    Memory::load(path).unwrap_or_else(|error| {
        tracing::error!(error = told(&error), "alerts that were open will be raised anew, and not be told as cleared");
        Memory::default()
    })
}

struct Worker {
    state: Arc<Mutex<State>>,
    sink: Sink,
    operations: Operations,
    acks: PathBuf,
    memory: PathBuf,
    /// Whether it is known that the memory cannot be written.
    forgetful: bool,
    heard: Heard,
    /// Hears of each attempt to deliver.
    hear: Hear,
    /// The beginning of the steady clock.
    began: Instant,
    /// When it was last looked whether the secrets of channels can be read.
    looked: Instant,
}

impl Worker {
    fn now(&self) -> Moment {
        Moment { wall: jiff::Timestamp::now(), steady: self.began.elapsed() }
    }

    fn run(mut self, untold: Vec<AlertEvent>, inbox: &Receiver<Message>) {
        self.tell(untold);
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

    fn record(&mut self, samples: &[Sample]) {
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
        if self.looked.elapsed() >= SECRETS {
            self.looked = Instant::now();
            let waiting: Vec<ChannelError> = self.heard.waiting().collect();
            let mut state = lock(&self.state);
            state.unusable.retain(|error| !error.waits);
            state.unusable.extend(waiting);
        }
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

    /// Tells everybody. What happened is on disk before, so that it is told after a crash, too.
    fn tell(&mut self, events: Vec<AlertEvent>) {
        if events.is_empty() {
            return;
        }
        self.remember(&events);
        for event in events {
            if let Some(notifier) = &lock(&self.state).notifier {
                notifier.notify(&event);
            }
            (self.sink)(EventBody::Alert(event));
        }
        self.remember(&[]);
    }

    fn remember(&mut self, untold: &[AlertEvent]) {
        let open = lock(&self.state).monitor.active().to_vec();
        let saved = Memory::save(&self.memory, &open, untold);
        let forgetful = saved.is_err();
        match saved {
            Err(error) if !self.forgetful => {
                tracing::warn!(error = told(&error), "should the agent end now, its open alerts are raised anew");
            }
            _ => {}
        }
        self.forgetful = forgetful;
    }

    fn configure(&mut self, config: &MonitorConfig) {
        let (limits, thresholds) = plan(config);
        let (open, events) = {
            let mut state = lock(&self.state);
            let open = state.monitor.active().to_vec();
            (open, state.monitor.configure(limits, thresholds, self.now()))
        };
        let heard = Heard::of(config);
        if heard == self.heard {
            return self.tell(events);
        }
        let before = std::mem::replace(&mut self.heard, heard);
        let (fresh, unusable) = self.heard.notifier(&self.hear).unwrap_or_else(|error| {
            tracing::error!(%error, "nobody hears of alerts: the system gives no thread");
            let reason = format!("the system gives no thread: {error}");
            (None, vec![ChannelError { key: "alerting.channels".to_owned(), reason, waits: false }])
        });
        if fresh.is_none() {
            // Who heard of the alerts hears of their end: nobody will tell them later.
            self.tell(events);
            let old = self.replace(None, unusable);
            return drop(old.map(|old| old.stop(DRAIN)));
        }
        let counted = lock(&self.state).notifier.as_ref().map(Notifier::status).unwrap_or_default();
        if let Some(fresh) = &fresh {
            fresh.know(&open);
        }
        let old = {
            let fresh = fresh.inspect(|fresh| before.count_on(&self.heard, fresh, &counted));
            self.replace(fresh, unusable)
        };
        // What the old ones still do counts, too.
        let ended = old.map(|old| old.stop(DRAIN)).unwrap_or_default();
        let more: Vec<ChannelStatus> = ended.iter().zip(&counted).map(|(end, start)| end.since(start)).collect();
        if let Some(fresh) = &lock(&self.state).notifier {
            before.count_on(&self.heard, fresh, &more);
        }
        self.tell(events);
    }

    fn replace(&self, notifier: Option<Notifier>, unusable: Vec<ChannelError>) -> Option<Notifier> {
        let mut state = lock(&self.state);
        state.unusable = unusable;
        std::mem::replace(&mut state.notifier, notifier)
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
    use crate::heard::LOST_TOLD;
    use picket_config::Interval;
    use picket_monitor::{
        AlertingSettings, ChannelKind, ChannelLevel, ChannelSettings, PerformanceSettings, SmtpSettings,
        ThresholdSettings, Thresholds,
    };
    use picket_protocol::CheckStatus;
    use picket_protocol::event::AlertAction;

    #[test]
    fn an_acknowledgement_is_a_name_and_perhaps_a_note_in_one_line() {
        let ack = |by: &str, note: Option<&str>| Ack { by: by.into(), note: note.map(str::to_owned) };
        assert_eq!(Ack::parse("ada\n"), ack("ada", None));
        assert_eq!(Ack::parse(" ada \n on my\n way\n"), ack("ada", Some("on my way")));
        assert_eq!(Ack::parse(""), ack("somebody", None));
    }

    const LONG: Duration = Duration::from_secs(30);

    type Events = std::sync::mpsc::Receiver<AlertEvent>;

    fn start(config: &MonitorConfig) -> (Monitoring, Events) {
        let (sender, events) = std::sync::mpsc::channel();
        let sink: Sink = Arc::new(move |body| {
            if let EventBody::Alert(event) = body {
                let _ = sender.send(event);
            }
        });
        (Monitoring::start(config.clone(), sink, Arc::new(|_| {})).unwrap(), events)
    }

    /// An agent that finds every `job` of two seconds worth a warning, and every one of five critical.
    fn config(dir: &Path) -> MonitorConfig {
        let threshold = ThresholdSettings {
            metric: Some("response_time".into()),
            warning: Some(2.0),
            critical: Some(5.0),
            r#for: Interval::seconds(0),
            ..ThresholdSettings::default()
        };
        let log = ChannelSettings { level: ChannelLevel::Critical, ..ChannelSettings::default() };
        MonitorConfig {
            device_id: "agent-123".into(),
            hostname: "web01".into(),
            user_agent: "picket/test".into(),
            network: picket_transport::Network::default(),
            acks: dir.join("acks"),
            memory: dir.join("alerts.json"),
            performance: PerformanceSettings::default(),
            thresholds: Thresholds([("slow".to_owned(), threshold)].into()),
            alerting: AlertingSettings { channels: vec![log], ..AlertingSettings::default() },
            smtp: SmtpSettings::default(),
        }
    }

    /// Lets a job take so long, and waits for what it does to the alert.
    fn job(monitoring: &Monitoring, seconds: u64, events: &Events) -> (AlertAction, Uuid) {
        monitoring.feed_operations()("job", Duration::from_secs(seconds), true);
        let event = events.recv_timeout(LONG).unwrap();
        (event.action, event.alert_id)
    }

    #[test]
    fn a_channel_that_keeps_failing_or_lost_something_warns_and_one_hiccup_does_not() {
        let works = ChannelStatus {
            kind: "email",
            index: 1,
            sent: 5,
            failed: 0,
            dropped: 0,
            failing: 2,
            lost_ago_seconds: Some(LOST_TOLD),
            last_error: Some("busy".into()),
        };
        let finding = |status: ChannelStatus| finding(&[status], &[]);
        assert_eq!(finding(works.clone()).status, CheckStatus::Pass);
        let failing = finding(ChannelStatus { failing: 3, ..works.clone() });
        assert_eq!(failing.status, CheckStatus::Warn);
        assert_eq!(failing.message, "alerting.channels[1] (email) failed 3 times in a row: busy");
        let lost = finding(ChannelStatus { dropped: 4, lost_ago_seconds: Some(60), last_error: None, ..works });
        assert_eq!(lost.status, CheckStatus::Warn);
        assert!(lost.message.contains("0 given up, 4 dropped"), "{}", lost.message);
    }

    #[test]
    fn a_channel_that_cannot_be_used_is_told_by_health_and_the_others_work() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        config.alerting.channels.push(ChannelSettings { r#type: ChannelKind::Webhook, ..ChannelSettings::default() });
        let (monitoring, events) = start(&config);
        job(&monitoring, 6, &events);
        let finding = monitoring.channel_finding();
        assert_eq!(finding.status, CheckStatus::Warn);
        assert!(finding.message.contains("alerting.channels[1].url"), "{}", finding.message);
        assert_eq!(monitoring.alerts().channels[0].sent, 1);
        config.alerting.channels.pop();
        monitoring.configure(config);
        let deadline = Instant::now() + LONG;
        while monitoring.channel_finding().status != CheckStatus::Pass && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(monitoring.channel_finding().message, "every channel works");
        monitoring.stop();
    }

    #[test]
    fn a_secret_that_is_missing_warns_until_it_is_there_and_again_when_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("token");
        let mut config = config(dir.path());
        config.alerting.channels.push(ChannelSettings {
            r#type: ChannelKind::Webhook,
            url: Some("http://127.0.0.1:9/".into()),
            token_file: Some(token.to_str().unwrap().to_owned()),
            ..ChannelSettings::default()
        });
        let (monitoring, _events) = start(&config);
        let becomes = |status: CheckStatus| {
            let deadline = Instant::now() + LONG;
            while monitoring.channel_finding().status != status && Instant::now() < deadline {
                std::thread::yield_now();
            }
            let finding = monitoring.channel_finding();
            assert_eq!(finding.status, status, "{}", finding.message);
        };
        becomes(CheckStatus::Warn);
        assert_eq!(monitoring.alerts().channels.len(), 2, "it is there all the same");
        picket_durable::write_atomic(&token, b"t0ken\n", 0o600).unwrap();
        becomes(CheckStatus::Pass);
        picket_durable::remove_if_present(&token).unwrap();
        becomes(CheckStatus::Warn);
        monitoring.stop();
    }

    #[test]
    fn an_alert_goes_on_in_the_next_agent_and_is_told_as_cleared_there() {
        let dir = tempfile::tempdir().unwrap();
        let (monitoring, events) = start(&config(dir.path()));
        let (action, id) = job(&monitoring, 6, &events);
        assert_eq!(action, AlertAction::Raised);
        picket_durable::write_atomic(&dir.path().join("acks").join(id.to_string()), b"ada\n", 0o600).unwrap();
        assert_eq!(events.recv_timeout(LONG).unwrap().action, AlertAction::Acknowledged);
        monitoring.stop();

        let (monitoring, events) = start(&config(dir.path()));
        let alert = monitoring.alerts().active.remove(0);
        assert_eq!((alert.id, alert.acknowledged.unwrap().by.as_str()), (id, "ada"));
        monitoring.feed_operations()("job", Duration::from_secs(7), true);
        // The next thing that anybody hears is not that it was raised again.
        assert_eq!(job(&monitoring, 3, &events), (AlertAction::Lowered, id));
        monitoring.stop();

        let (monitoring, events) = start(&config(dir.path()));
        assert_eq!(job(&monitoring, 1, &events), (AlertAction::Cleared, id));
        // The channel for critical alerts heard that it began, two agents ago.
        assert_eq!(monitoring.alerts().channels[0].sent, 1);
        monitoring.stop();
        assert_eq!(Memory::load(&dir.path().join("alerts.json")).unwrap(), Memory::default());
    }

    #[test]
    fn what_was_not_told_before_a_crash_is_told_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let (monitoring, events) = start(&config(dir.path()));
        monitoring.feed_operations()("job", Duration::from_secs(6), true);
        let event = events.recv_timeout(LONG).unwrap();
        let open = monitoring.alerts().active;
        monitoring.stop();
        Memory::save(&dir.path().join("alerts.json"), &open, std::slice::from_ref(&event)).unwrap();
        let (monitoring, events) = start(&config(dir.path()));
        assert_eq!(events.recv_timeout(LONG).unwrap(), event);
        monitoring.stop();
        assert!(Memory::load(&dir.path().join("alerts.json")).unwrap().untold.is_empty());
    }

    #[test]
    fn a_new_configuration_leaves_the_channels_what_they_know_and_have_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        let (monitoring, events) = start(&config);
        let id = job(&monitoring, 6, &events).1;
        // The same channels, other thresholds.
        config.thresholds.0.get_mut("slow").unwrap().critical = Some(5.5);
        config.alerting.no_data = Interval::seconds(600);
        monitoring.configure(config.clone());
        assert_eq!(job(&monitoring, 3, &events), (AlertAction::Lowered, id));
        // One channel more.
        config.alerting.channels.insert(0, ChannelSettings::default());
        monitoring.configure(config.clone());
        // The threshold goes.
        config.thresholds.0.clear();
        monitoring.configure(config);
        let cleared = events.recv_timeout(LONG).unwrap();
        assert_eq!((cleared.action, cleared.alert_id), (AlertAction::Cleared, id));
        assert!(cleared.message.contains("its threshold was removed"), "{}", cleared.message);
        let sent: Vec<u64> = monitoring.alerts().channels.iter().map(|channel| channel.sent).collect();
        assert_eq!(sent, [1, 3], "raised, lowered and cleared, of which the new one heard the last");
        monitoring.stop();
    }
}
