//! The way of an event: watchers → folding → budgets → sinks, the first of which is the durable outbox.
//!
//! One thread does all of it, in the order things came. In front of it stands a queue of [`QUEUE`] events; what does not
//! fit is entered in the outbox's books as a gap, so that whoever watches never waits. Events that another process holds
//! until they are durable ([`Pipeline::deliverer`]) are not folded beyond their own run: what is acknowledged is on disk.

mod budget;
mod fold;
mod settings;
mod sinks;

pub use settings::{EventSettings, SinkKind};

use budget::Budgets;
use fold::{Folder, Weighted};
use picket_netwatch::names::{Resolver, ResolverOptions};
use picket_outbox::{Gap, Outbox, OutboxError};
use picket_protocol::Priority;
use picket_protocol::event::{EVENT_MAX_BYTES, EVENT_SCHEMA, EventBody, GapReason, Sink};
use serde::Serialize;
use sinks::{EventSink, FileSink, Outgoing, Queued, StdoutSink, SyslogSink, Tallies};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How many events wait for the thread: four seconds at the rate the agent is built for (2,000 a second).
const QUEUE: usize = 8192;
/// How often windows are closed and buffers flushed.
const TICK: Duration = Duration::from_secs(1);
/// How long the thread lets events gather once it handled all there were: to be woken for each costs more than what is
/// done with it. At the rate the agent is built for twenty come in that time, and the queue holds four hundred times that.
const GATHER: Duration = Duration::from_millis(10);
/// How long one look lasts whether a run is durable.
const DURABLE_TURN: Duration = Duration::from_secs(1);

/// What the pipeline needs to know.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PipelineConfig {
    /// Who reports.
    pub(crate) device_id: String,
    /// The folder of logs, for the sink `file`.
    pub(crate) log_dir: PathBuf,
    /// What the operator set.
    pub(crate) settings: EventSettings,
    /// Whether the other side's name is looked up for connections.
    pub(crate) resolve_names: bool,
}

/// How much the agent saves, as the watchdog says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Thrift {
    /// Not at all.
    #[default]
    None,
    /// Identical events are folded over a longer time.
    Fold,
    /// And of file and network events only a tenth of the rate goes on.
    Shed,
}

/// How much longer the folding window is under [`Thrift::Fold`].
const THRIFT_WINDOW: Duration = Duration::from_secs(60);

enum Message {
    Event(Box<EventBody>),
    Run(Vec<EventBody>, SyncSender<()>),
    Configure(Box<PipelineConfig>),
    Thrift(Thrift),
    Stop,
}

/// What the pipeline counted since it started.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Events taken from watchers.
    pub(crate) taken: AtomicU64,
    /// Events that became part of another by folding.
    pub(crate) folded: AtomicU64,
    /// Events over budget.
    pub(crate) limited: AtomicU64,
    /// Events given up by the watchdog's order.
    pub(crate) shed: AtomicU64,
    /// Events that could not be written in the wire's form.
    pub(crate) unformatted: AtomicU64,
    /// What became of the events for each sink other than the outbox.
    pub(crate) sinks: Tallies,
}

/// The way of events: a handle and its thread.
pub(crate) struct Pipeline {
    messages: SyncSender<Message>,
    outbox: Arc<Outbox>,
    counters: Arc<Counters>,
    thread: Mutex<Option<JoinHandle<()>>>,
    stopping: Arc<AtomicBool>,
}

impl Pipeline {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system refuses it.
    pub(crate) fn start(config: PipelineConfig, outbox: Arc<Outbox>) -> std::io::Result<Self> {
        let (messages, inbox) = sync_channel(QUEUE);
        let counters = Arc::new(Counters::default());
        let worker = Worker::new(config, Arc::clone(&outbox), Arc::clone(&counters));
        let thread = std::thread::Builder::new().name("picket-events".to_owned()).spawn(move || worker.run(&inbox))?;
        let stopping = Arc::new(AtomicBool::new(false));
        Ok(Self { messages, outbox, counters, thread: Mutex::new(Some(thread)), stopping })
    }

    /// Where watchers put what they see.
    pub(crate) fn sink(&self) -> Sink {
        let (messages, outbox) = (self.messages.clone(), Arc::clone(&self.outbox));
        Arc::new(move |event| {
            if let Err(TrySendError::Full(Message::Event(event)) | TrySendError::Disconnected(Message::Event(event))) =
                messages.try_send(Message::Event(Box::new(event)))
            {
                // An alert does not wait behind a flood of files.
                if event.class() == Priority::High {
                    outbox.emit_event(*event);
                    return;
                }
                give_up(&outbox, &event, GapReason::QueueFull, "events came faster than they could be handled");
            }
        })
    }

    /// Takes runs of events that another process holds, and returns once each is durable. While the disk takes nothing it
    /// waits, for a run that came again would be in the books twice; an error is returned only once the agent stops or
    /// the outbox is no more, and the events should come again then.
    pub(crate) fn deliverer(&self) -> impl Fn(Vec<EventBody>) -> Result<(), OutboxError> + Send + use<> {
        let (messages, outbox, stopping) =
            (self.messages.clone(), Arc::clone(&self.outbox), Arc::clone(&self.stopping));
        move |events| {
            deliver(&messages, events)?;
            loop {
                match outbox.flush(DURABLE_TURN) {
                    Err(OutboxError::NotYet(_)) if !stopping.load(Ordering::Relaxed) => {}
                    result => return result,
                }
            }
        }
    }

    /// Whoever waits for a run to become durable gives up: the agent stops.
    pub(crate) fn stop_waiting(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Works by `config` from the next event on.
    pub(crate) fn configure(&self, config: PipelineConfig) {
        let _ = self.messages.send(Message::Configure(Box::new(config)));
    }

    /// Saves as `thrift` says from now on.
    pub(crate) fn set_thrift(&self, thrift: Thrift) {
        let _ = self.messages.send(Message::Thrift(thrift));
    }

    /// What it counted.
    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Lets everything that was taken go on, and ends the thread.
    pub(crate) fn stop(&self) {
        let _ = self.messages.send(Message::Stop);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

/// Hands a run on, and returns once all of it is in the books.
fn deliver(messages: &SyncSender<Message>, events: Vec<EventBody>) -> Result<(), OutboxError> {
    let (reply, answer) = sync_channel(1);
    messages.send(Message::Run(events, reply)).map_err(|_| OutboxError::Closed)?;
    answer.recv().map_err(|_| OutboxError::Closed)
}

/// Enters an event that is given up in the books.
fn give_up(outbox: &Outbox, event: &EventBody, reason: GapReason, detail: &str) {
    let source = match event {
        EventBody::File(_) => "files",
        EventBody::Network(_) => "network",
        EventBody::Gap(gap) => return outbox.account_gap(Gap::of_event(gap.clone())),
        EventBody::Alert(_) | EventBody::Config(_) => "agent",
    };
    outbox.account_gap(Gap {
        reason,
        class: event.class(),
        source: source.to_owned(),
        count: Some(fold::weight_of(event)),
        since: None,
        detail: detail.to_owned(),
    });
}

/// The wire form without the identity, which the outbox gives.
#[derive(Serialize)]
struct Line<'a> {
    schema: u32,
    device_id: &'a str,
    class: Priority,
    #[serde(flatten)]
    body: &'a EventBody,
}

struct Worker {
    config: PipelineConfig,
    outbox: Arc<Outbox>,
    counters: Arc<Counters>,
    folder: Folder,
    budgets: Budgets,
    /// What is left of them under [`Thrift::Shed`].
    thrifty_budgets: Budgets,
    thrift: Thrift,
    to_outbox: bool,
    sinks: Vec<Queued>,
    resolver: Option<Resolver>,
}

impl Worker {
    fn new(config: PipelineConfig, outbox: Arc<Outbox>, counters: Arc<Counters>) -> Self {
        let settings = &config.settings;
        let (files, network) = (settings.file_budget(), settings.network_budget());
        let budgets = Budgets::new(files, network, Instant::now());
        let thrifty_budgets = Budgets::new(files.tenth(), network.tenth(), Instant::now());
        let folder = Folder::new(settings.fold.get());
        let to_outbox = settings.sinks.contains(&SinkKind::Outbox);
        let sinks = open_sinks(&config, &counters.sinks);
        let resolver = if config.resolve_names { resolver() } else { None };
        Self {
            config,
            outbox,
            counters,
            folder,
            budgets,
            thrifty_budgets,
            thrift: Thrift::None,
            to_outbox,
            sinks,
            resolver,
        }
    }

    fn run(mut self, inbox: &Receiver<Message>) {
        let mut ticked = Instant::now();
        let mut gathering = false;
        loop {
            let message = match inbox.try_recv() {
                Err(TryRecvError::Empty) => {
                    if std::mem::take(&mut gathering) {
                        std::thread::sleep(GATHER);
                    }
                    inbox.recv_timeout(TICK.saturating_sub(ticked.elapsed()))
                }
                Err(TryRecvError::Disconnected) => break,
                Ok(message) => Ok(message),
            };
            match message {
                Ok(Message::Event(event)) => {
                    gathering = true;
                    self.take(*event);
                }
                Ok(Message::Run(events, reply)) => {
                    self.run_of(events);
                    let _ = reply.send(());
                }
                Ok(Message::Configure(config)) => self.configure(*config),
                Ok(Message::Thrift(thrift)) => self.be_thrifty(thrift),
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                let closed = self.folder.tick(ticked);
                self.send_on(closed);
            }
        }
        let held = self.folder.drain();
        self.send_on(held);
    }

    fn take(&mut self, event: EventBody) {
        self.counters.taken.fetch_add(fold::weight_of(&event), Ordering::Relaxed);
        if let EventBody::Gap(gap) = event {
            // It is told of by the books, once for all gaps of its kind.
            return self.outbox.account_gap(Gap::of_event(gap));
        }
        let mut event = event;
        if let (Some(resolver), EventBody::Network(network)) = (&self.resolver, &mut event) {
            resolver.enrich(network);
        }
        let out = self.folder.take(event, Instant::now());
        self.send_on(out);
    }

    /// A run that somebody holds until it is durable: nothing of it may be held back for folding.
    fn run_of(&mut self, events: Vec<EventBody>) {
        for event in events {
            self.take(event);
        }
        let held = self.folder.drain();
        self.send_on(held);
    }

    fn send_on(&mut self, events: Vec<Weighted>) {
        let now = Instant::now();
        for Weighted { body, weight } in events {
            if weight > 1 {
                self.counters.folded.fetch_add(weight - 1, Ordering::Relaxed);
            }
            if self.thrift == Thrift::Shed && !self.thrifty_budgets.allow(&body, now) {
                self.counters.shed.fetch_add(weight, Ordering::Relaxed);
                give_up(&self.outbox, &body, GapReason::Shed, "the agent was over its own budget; see /health");
            } else if !self.budgets.allow(&body, now) {
                self.counters.limited.fetch_add(weight, Ordering::Relaxed);
                give_up(
                    &self.outbox,
                    &body,
                    GapReason::RateLimit,
                    "more came than events.file_rate or events.network_rate allow",
                );
            } else {
                self.hand_out(&body);
            }
        }
    }

    fn hand_out(&mut self, body: &EventBody) {
        if !self.sinks.is_empty() {
            let line = Line { schema: EVENT_SCHEMA, device_id: &self.config.device_id, class: body.class(), body };
            match serde_json::to_string(&line) {
                Ok(line) if line.len() <= EVENT_MAX_BYTES => {
                    let outgoing = Outgoing { class: body.class(), line: &line };
                    self.sinks.iter().for_each(|sink| sink.put(&outgoing));
                }
                // The outbox, where there is one, will not be able to write it either, and tells of it.
                Ok(line) if !self.to_outbox => {
                    self.leave_out(body, &format!("{} bytes; {EVENT_MAX_BYTES} are allowed", line.len()));
                }
                Err(error) if !self.to_outbox => self.leave_out(body, &error.to_string()),
                Ok(_) | Err(_) => {}
            }
        }
        if self.to_outbox {
            match picket_outbox::Draft::event(body) {
                Ok(draft) => drop(self.outbox.emit(draft)),
                Err(error) => self.leave_out(body, &error.to_string()),
            }
        }
    }

    /// An event that cannot be written in the wire's form.
    fn leave_out(&self, body: &EventBody, error: &str) {
        self.counters.unformatted.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(error, kind = body.type_name(), "an event is left out");
        give_up(&self.outbox, body, GapReason::Format, "the events could not be written in the wire's form");
    }

    fn configure(&mut self, config: PipelineConfig) {
        if config == self.config {
            return;
        }
        let held = self.folder.drain();
        self.send_on(held);
        let thrift = self.thrift;
        *self = Self::new(config, Arc::clone(&self.outbox), Arc::clone(&self.counters));
        self.be_thrifty(thrift);
    }

    fn be_thrifty(&mut self, thrift: Thrift) {
        self.thrift = thrift;
        let window = self.config.settings.fold.get();
        match thrift {
            Thrift::None => self.folder.fold_more(window, false),
            Thrift::Fold | Thrift::Shed => self.folder.fold_more(window.max(THRIFT_WINDOW), true),
        }
    }
}

/// Looks up names beside the events; an event never waits for it.
fn resolver() -> Option<Resolver> {
    let started = Resolver::start(ResolverOptions::default());
    started.inspect_err(|error| tracing::warn!(%error, "names of addresses are not looked up")).ok()
}

fn open_sinks(config: &PipelineConfig, tallies: &Tallies) -> Vec<Queued> {
    let settings = &config.settings;
    let mut sinks: Vec<Box<dyn EventSink>> = Vec::new();
    for kind in &settings.sinks {
        match kind {
            SinkKind::Outbox => {}
            SinkKind::Stdout => sinks.push(Box::new(StdoutSink::new())),
            SinkKind::Syslog => sinks.push(Box::new(SyslogSink::new())),
            SinkKind::File => {
                let path = if settings.file.is_empty() { "events.ndjson" } else { &settings.file };
                sinks.push(Box::new(FileSink::new(&config.log_dir.join(path), settings.file_max_size.0.max(1 << 16))));
            }
        }
    }
    let queued = |sink| {
        let started = Queued::start(sink, tallies);
        started.inspect_err(|error| tracing::error!(%error, "a sink is not used: the system gives no thread")).ok()
    };
    sinks.into_iter().filter_map(queued).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_outbox::{Options, OutboxSettings, SystemClock};
    use picket_protocol::event::{AlertAction, AlertEvent, AlertLevel};
    use picket_protocol::event::{Confidence, FileAction, FileEvent, FileKind, FileMethod};
    use picket_seal::{Keyring, Sealer};
    use std::path::Path;

    fn outbox(dir: &Path) -> Arc<Outbox> {
        let keyring = Keyring::open_or_create(&dir.join("key")).unwrap();
        let options = Options {
            folder: dir.join("outbox"),
            sealer: Arc::new(Sealer::new(Arc::new(keyring)).unwrap()),
            limits: OutboxSettings::default().limits(),
            kernel_boot: "boot".into(),
            clock: Arc::new(SystemClock),
        };
        Arc::new(Outbox::open(options).unwrap())
    }

    fn modified(path: &str) -> EventBody {
        EventBody::File(FileEvent {
            timestamp: jiff::Timestamp::now(),
            action: FileAction::Modified,
            path: path.to_owned(),
            path_base64: None,
            path_from: None,
            kind: FileKind::File,
            meta: None,
            sha256: None,
            actor: None,
            method: FileMethod::Inotify,
            confidence: Confidence::Observed,
            fold: None,
        })
    }

    fn alert() -> EventBody {
        EventBody::Alert(AlertEvent {
            timestamp: jiff::Timestamp::now(),
            alert_id: uuid::Uuid::nil(),
            action: AlertAction::Raised,
            level: AlertLevel::Critical,
            metric: "cpu_usage".into(),
            tags: std::collections::BTreeMap::new(),
            value: 99.0,
            threshold: 90.0,
            message: "too much".into(),
            by: None,
            note: None,
        })
    }

    fn config(dir: &Path, settings: EventSettings) -> PipelineConfig {
        PipelineConfig { device_id: "agent-123".into(), log_dir: dir.to_owned(), settings, resolve_names: false }
    }

    #[test]
    fn a_run_that_somebody_holds_is_durable_when_deliver_returns_and_nothing_of_it_waits_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = outbox(dir.path());
        let pipeline = Pipeline::start(config(dir.path(), EventSettings::default()), Arc::clone(&outbox)).unwrap();
        (pipeline.deliverer())((0..10).map(|_| modified("/same")).collect()).unwrap();
        let status = outbox.status();
        assert_eq!((status.in_memory, status.ledger.total().emitted), (0, 10), "{status:?}");
        assert_eq!(status.queued.normal, 2, "the first, and one that stands for nine");
        assert!(status.ledger_holds);
        pipeline.stop();
    }

    #[test]
    fn what_is_over_budget_is_a_counted_gap_and_the_books_add_up() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = outbox(dir.path());
        let settings = EventSettings { file_rate: 1, file_burst: 5, ..EventSettings::default() };
        let pipeline = Pipeline::start(config(dir.path(), settings), Arc::clone(&outbox)).unwrap();
        (pipeline.deliverer())((0..50).map(|n| modified(&format!("/file-{n}"))).collect()).unwrap();
        let total = outbox.status().ledger.total();
        assert_eq!(total.emitted, 50);
        assert_eq!(total.gaps.get(&GapReason::RateLimit).copied().unwrap_or(0), 45);
        assert_eq!(pipeline.counters().limited.load(Ordering::Relaxed), 45);
        pipeline.stop();
    }

    #[test]
    fn the_file_sink_gets_the_wire_form_and_a_new_configuration_holds_from_the_next_event_on() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = outbox(dir.path());
        let pipeline = Pipeline::start(config(dir.path(), EventSettings::default()), outbox).unwrap();
        (pipeline.deliverer())(vec![modified("/before")]).unwrap();
        let settings = EventSettings { sinks: vec![SinkKind::Outbox, SinkKind::File], ..EventSettings::default() };
        pipeline.configure(config(dir.path(), settings));
        (pipeline.deliverer())(vec![modified("/after")]).unwrap();
        pipeline.stop();
        let text = picket_durable::read_text(&dir.path().join("events.ndjson"), 10_000).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 1);
        assert_eq!((&lines[0]["device_id"], &lines[0]["type"]), (&"agent-123".into(), &"file".into()));
        assert_eq!(lines[0]["details"]["path"], "/after");
        assert!(lines[0]["details"]["timestamp"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn an_event_too_long_for_the_wire_is_a_gap_and_no_crash() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = outbox(dir.path());
        let pipeline = Pipeline::start(config(dir.path(), EventSettings::default()), Arc::clone(&outbox)).unwrap();
        (pipeline.deliverer())(vec![modified(&"x".repeat(EVENT_MAX_BYTES)), modified("/fine")]).unwrap();
        let total = outbox.status().ledger.total();
        assert_eq!((total.emitted, total.gaps.get(&GapReason::Format).copied()), (2, Some(1)));
        pipeline.stop();
    }

    #[test]
    fn a_pipeline_that_sheds_lets_a_tenth_and_all_alerts_pass_and_says_so_in_the_books() {
        let settings = EventSettings { file_rate: 1_000, file_burst: 1_000, ..EventSettings::default() };
        let dir = tempfile::tempdir().unwrap();
        let outbox = outbox(dir.path());
        let pipeline = Pipeline::start(config(dir.path(), settings), Arc::clone(&outbox)).unwrap();
        pipeline.set_thrift(Thrift::Shed);
        let flood = (0..1_000).map(|number| modified(&format!("/{number}")));
        (pipeline.deliverer())(flood.chain([alert()]).collect()).unwrap();
        pipeline.stop();
        let total = outbox.ledger().total();
        let shed = total.gaps.get(&GapReason::Shed).copied().unwrap_or_default();
        // At once a tenth of the burst goes on, and a tenth of the rate from then on.
        assert!((1..=900).contains(&shed), "{total:?}");
        assert_eq!((total.emitted, outbox.ledger().of(Priority::High).gap_total()), (1_001, 0), "{total:?}");
        assert!(total.holds());
    }
}
