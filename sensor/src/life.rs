//! The sensor's life: listen, watch, read the configuration again when it changes, drain when told to stop.

use crate::notify;
use crate::watcher::{Plan, Reading, Start, Watcher};
use picket_protocol::Sight;
use picket_protocol::event::Sink;
use picket_sensorlink::{Limits, SensorServer, ServerError, ServerOptions};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// How often the watchers are asked how much they see, and whether the configuration changed.
const TURN: Duration = Duration::from_secs(2);

/// How soon a watcher that could not begin is begun again, doubled each time, and the most.
const AGAIN: Duration = Duration::from_secs(2);
const AGAIN_MOST: Duration = Duration::from_secs(60);

/// Everything resolved: what `sensor run` starts with.
pub struct Config {
    /// The program's version.
    pub program: String,
    /// Where the agent connects.
    pub socket: PathBuf,
    /// The socket's permission bits.
    pub socket_mode: u32,
    /// The sensor's own state.
    pub state_dir: PathBuf,
    /// The user id of the agent, where it is neither root nor the sensor's own.
    pub agent: Option<u32>,
    /// How much is kept for an agent that does not take it.
    pub limits: Limits,
    /// How long the agent may take what is left once the sensor was told to stop.
    pub drain_limit: Duration,
    /// Where watchers come from.
    pub plan: Box<dyn Plan>,
}

/// Why the sensor cannot start, or did not end in good order.
#[derive(Debug, thiserror::Error)]
pub enum SensorError {
    /// The socket or the state folder cannot be used.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The configuration cannot be used.
    #[error("the configuration cannot be used: {0}")]
    Config(String),
    /// The system refused a thread or a signal handler.
    #[error("cannot start the event loop")]
    Runtime(#[source] std::io::Error),
    /// What the agent had not taken is lost.
    #[error("what the agent has not taken yet cannot be written for the next sensor")]
    Drain(#[source] picket_durable::Error),
}

/// A sensor that watches.
pub struct Sensor {
    server: SensorServer,
    plan: Box<dyn Plan>,
    fingerprint: u64,
    settings: String,
    posts: Vec<Post>,
    drain_limit: Duration,
    told: String,
}

/// A watcher, and how it begins.
struct Post {
    start: Start,
    watcher: Box<dyn Watcher>,
    /// When it is begun again, if it failed.
    retry: Instant,
    pause: Duration,
}

impl Post {
    fn begin(start: Start, sink: &Sink, now: Instant) -> Self {
        Self { watcher: start(sink), start, retry: now + AGAIN, pause: AGAIN }
    }

    /// Begins it again if it failed and it is time to.
    fn try_again(&mut self, sink: &Sink, now: Instant) {
        if self.watcher.failed() && now >= self.retry {
            self.watcher = (self.start)(sink);
            self.pause = (self.pause * 2).min(AGAIN_MOST);
            self.retry = now + self.pause;
            if !self.watcher.failed() {
                tracing::info!(source = self.watcher.sight().source, "watching, after all");
            }
        }
    }
}

/// What the loop woke up for.
enum Event {
    Turn,
    Reload,
    Stop(&'static str),
}

impl Sensor {
    /// Reads the configuration, listens, and begins to watch.
    ///
    /// # Errors
    /// See [`SensorError`].
    pub fn start(config: Config) -> Result<Self, SensorError> {
        let fingerprint = config.plan.fingerprint();
        let Reading { settings, start, .. } = config.plan.read().map_err(SensorError::Config)?;
        let server = SensorServer::start(ServerOptions {
            socket: config.socket,
            socket_mode: config.socket_mode,
            state_dir: config.state_dir,
            allowed: config.agent.into_iter().collect(),
            limits: config.limits,
            program: config.program,
        })?;
        tracing::info!(incarnation = %server.incarnation(), "the sensor listens");
        // Before the watchers: a large tree takes time, and the agent's own start does not wait for it.
        notify::ready("beginning to watch");
        let (plan, drain_limit) = (config.plan, config.drain_limit);
        let posts = Vec::new();
        let mut sensor = Self { server, plan, fingerprint, settings, posts, drain_limit, told: String::new() };
        sensor.start_watchers(start);
        sensor.tell();
        Ok(sensor)
    }

    /// Runs until SIGTERM or SIGINT, then drains.
    ///
    /// # Errors
    /// [`SensorError::Runtime`] and [`SensorError::Drain`].
    pub fn run_until_signal(mut self) -> Result<(), SensorError> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(SensorError::Runtime)?;
        let turn = notify::alive_interval().map_or(TURN, |interval| interval.min(TURN));
        let reason = runtime.block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut hangup = signal(SignalKind::hangup())?;
            loop {
                let event = tokio::select! {
                    _ = terminate.recv() => Event::Stop("SIGTERM"),
                    _ = interrupt.recv() => Event::Stop("SIGINT"),
                    _ = hangup.recv() => Event::Reload,
                    () = tokio::time::sleep(turn) => Event::Turn,
                };
                match event {
                    Event::Stop(reason) => return Ok(reason),
                    Event::Reload => self.reload(),
                    Event::Turn => self.turn(Instant::now()),
                }
            }
        });
        let reason = reason.map_err(SensorError::Runtime)?;
        self.drain(reason)
    }

    fn turn(&mut self, now: Instant) {
        notify::alive();
        let fingerprint = self.plan.fingerprint();
        if fingerprint != self.fingerprint {
            self.fingerprint = fingerprint;
            self.reload();
        }
        let sink = self.server.sink();
        for post in &mut self.posts {
            post.try_again(&sink, now);
        }
        self.tell();
    }

    /// Reads the configuration again. One that cannot be used changes nothing.
    fn reload(&mut self) {
        match self.plan.read() {
            Err(reason) => {
                tracing::error!(reason, "the new configuration cannot be used; the old one stays in force");
            }
            Ok(Reading { settings, follow, .. }) if settings == self.settings => {
                follow();
                tracing::info!("the configuration was read again; nothing that is watched changed");
            }
            Ok(Reading { settings, start, follow }) => {
                follow();
                // The old ones first: both would report the same events.
                self.stop_watchers();
                self.start_watchers(start);
                self.settings = settings;
                tracing::info!("the new configuration is in force");
            }
        }
        self.tell();
    }

    fn start_watchers(&mut self, start: Vec<Start>) {
        let (sink, now) = (self.server.sink(), Instant::now());
        self.posts = start.into_iter().map(|start| Post::begin(start, &sink, now)).collect();
    }

    fn stop_watchers(&mut self) {
        for post in self.posts.drain(..) {
            post.watcher.stop();
        }
    }

    /// Tells the agent and the service manager how much is seen.
    fn tell(&mut self) {
        let sights: Vec<Sight> = self.posts.iter().map(|post| post.watcher.sight()).collect();
        let agent = if self.server.is_connected() { "an agent is connected" } else { "no agent is connected" };
        let seen: Vec<String> = sights
            .iter()
            .map(|sight| format!("; {}: {} ({})", sight.source, sight.level.as_str(), sight.method))
            .collect();
        let text = format!("{agent}{}", seen.concat());
        self.server.set_sights(sights);
        if text != self.told {
            notify::status(&text);
            self.told = text;
        }
    }

    fn drain(mut self, reason: &'static str) -> Result<(), SensorError> {
        tracing::info!(reason, limit = ?self.drain_limit, "draining");
        notify::stopping();
        self.stop_watchers();
        let drained = self.server.drain(self.drain_limit).map_err(SensorError::Drain)?;
        tracing::info!(queued = drained.counters.queued, "stopped; what is queued is kept for the next sensor");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watcher::Blind;
    use picket_protocol::EventBody;
    use picket_protocol::event::{GapEvent, GapReason, Sink};
    use picket_sensorlink::{Backoff, ClientOptions, SensorClient};
    use std::path::Path;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::sync::{Arc, Mutex};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A watcher that reports its name when it begins and when it ends.
    struct Loud(String, Sink);

    fn report(sink: &Sink, text: String) {
        sink(EventBody::Gap(GapEvent {
            timestamp: jiff::Timestamp::now(),
            reason: GapReason::Shed,
            // A source of its own each time, so that none takes up another.
            source: text.clone(),
            count: None,
            since: None,
            detail: text,
        }));
    }

    impl Watcher for Loud {
        fn sight(&self) -> Sight {
            Blind::new("files", "test", self.0.clone()).sight()
        }

        fn stop(self: Box<Self>) {
            report(&self.1, format!("{} ends", self.0));
        }
    }

    #[derive(Clone)]
    struct Configured {
        text: Arc<Mutex<Result<String, String>>>,
        version: Arc<AtomicU64>,
        /// How often something followed the configuration.
        followed: Arc<AtomicU64>,
        /// How often the watcher begins in vain.
        failures: Arc<AtomicU64>,
    }

    impl Configured {
        fn new(text: Result<&str, &str>) -> Self {
            let configured = Self {
                text: Arc::new(Mutex::new(Err(String::new()))),
                version: Arc::default(),
                followed: Arc::default(),
                failures: Arc::default(),
            };
            configured.set(text);
            configured
        }

        fn set(&self, text: Result<&str, &str>) {
            *self.text.lock().unwrap() = text.map(str::to_owned).map_err(str::to_owned);
            self.version.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Plan for Configured {
        fn fingerprint(&self) -> u64 {
            self.version.load(Ordering::Relaxed)
        }

        fn read(&self) -> Result<Reading, String> {
            let settings = self.text.lock().unwrap().clone()?;
            let (name, failures) = (settings.clone(), Arc::clone(&self.failures));
            let start: Start = Box::new(move |sink| {
                if failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                    return Box::new(Blind::new("files", "test", "no descriptors are left".to_owned()));
                }
                report(sink, format!("{name} begins"));
                Box::new(Loud(name.clone(), Arc::clone(sink)))
            });
            let followed = Arc::clone(&self.followed);
            let follow = Box::new(move || {
                followed.fetch_add(1, Ordering::Relaxed);
            });
            Ok(Reading { settings, start: vec![start], follow })
        }
    }

    fn config(dir: &Path, plan: &Configured) -> Config {
        Config {
            program: "1.0.0".into(),
            socket: dir.join("sensor.sock"),
            socket_mode: 0o660,
            state_dir: dir.to_owned(),
            agent: None,
            limits: Limits::default(),
            drain_limit: Duration::from_millis(50),
            plan: Box::new(plan.clone()),
        }
    }

    fn agent(dir: &Path) -> (SensorClient, Receiver<String>) {
        let (send, received): (Sender<String>, _) = channel();
        let options = ClientOptions {
            socket: dir.join("sensor.sock"),
            mark: dir.join("mark"),
            program: "1.0.0".into(),
            backoff: Backoff { first: Duration::from_millis(5), longest: Duration::from_millis(20) },
        };
        let client = SensorClient::start(options, move |events| {
            for event in events {
                let EventBody::Gap(gap) = event else { continue };
                send.send(gap.source).unwrap();
            }
            Ok(())
        });
        (client.unwrap(), received)
    }

    fn assert_told(received: &Receiver<String>, words: &[&str]) {
        for word in words {
            assert_eq!(received.recv_timeout(PATIENCE).unwrap(), *word);
        }
    }

    #[test]
    fn a_changed_configuration_is_taken_up_and_a_useless_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Configured::new(Ok("one"));
        let mut sensor = Sensor::start(config(dir.path(), &plan)).unwrap();
        let (client, received) = agent(dir.path());
        assert_told(&received, &["one begins"]);
        // Touched, but the same: nothing begins anew.
        plan.set(Ok("one"));
        sensor.turn(Instant::now());
        plan.set(Err("a comma is missing"));
        sensor.turn(Instant::now());
        plan.set(Ok("two"));
        sensor.turn(Instant::now());
        assert_told(&received, &["one ends", "two begins"]);
        let began = std::time::Instant::now();
        while client.status().sights.first().is_none_or(|sight| sight.detail != "two") {
            assert!(began.elapsed() < PATIENCE, "{:?}", client.status());
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_the_watchers_say_at_the_very_end_reaches_the_next_agent() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Configured::new(Ok("one"));
        Sensor::start(config(dir.path(), &plan)).unwrap().drain("test").unwrap();
        plan.set(Ok("two"));
        let _sensor = Sensor::start(config(dir.path(), &plan)).unwrap();
        let (_client, received) = agent(dir.path());
        assert_told(&received, &["one begins", "one ends", "two begins"]);
    }

    #[test]
    fn a_configuration_that_cannot_be_used_keeps_it_from_starting() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Configured::new(Err("a comma is missing"));
        let error = Sensor::start(config(dir.path(), &plan)).err().unwrap();
        assert!(matches!(&error, SensorError::Config(reason) if reason.contains("comma")), "{error}");
    }

    #[test]
    fn a_watcher_that_could_not_begin_is_tried_again_after_growing_pauses() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Configured::new(Ok("one"));
        plan.failures.store(8, Ordering::Relaxed);
        let mut sensor = Sensor::start(config(dir.path(), &plan)).unwrap();
        let (_client, received) = agent(dir.path());
        assert!(sensor.posts[0].watcher.failed());
        sensor.turn(Instant::now());
        assert_eq!(plan.failures.load(Ordering::Relaxed), 7, "not at once");
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        while sensor.posts[0].watcher.failed() && pauses.len() < 20 {
            let due = sensor.posts[0].retry;
            pauses.push(due.duration_since(now).as_secs_f64().round());
            now = due;
            sensor.turn(now);
        }
        assert_eq!(pauses, [2., 4., 8., 16., 32., 60., 60., 60.]);
        assert_told(&received, &["one begins"]);
        // It watches: nothing begins again.
        sensor.turn(now + AGAIN_MOST);
        sensor.drain("test").unwrap();
        assert_told(&received, &["one ends"]);
    }

    #[test]
    fn the_log_follows_a_configuration_that_changes_nothing_watched_and_none_that_is_useless() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Configured::new(Ok("one"));
        let mut sensor = Sensor::start(config(dir.path(), &plan)).unwrap();
        for (text, followed) in [(Ok("one"), 1), (Err("a comma is missing"), 1), (Ok("two"), 2)] {
            plan.set(text);
            sensor.turn(Instant::now());
            assert_eq!(plan.followed.load(Ordering::Relaxed), followed, "{text:?}");
        }
    }
}
