//! The agent's side: connects, hands events on, acknowledges what is durable.

use crate::backoff::Backoff;
use crate::{lock, mark};
use picket_protocol::sensor::{Ack, Counters, Events, Frame, FrameError, Hello, Mark, Sights, VERSIONS, VersionRange};
use picket_protocol::{EventBody, Sight};
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use uuid::Uuid;

/// After how long a silence the connection is given up: the sensor says something every ten seconds.
const SILENCE: Duration = Duration::from_secs(60);

/// What a callback says that could not make events durable.
pub type DeliverError = Box<dyn std::error::Error + Send + Sync>;

/// What the agent's side needs to know.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The sensor's socket.
    pub socket: PathBuf,
    /// Where it is noted how far this agent got. Written after each run of events that was made durable.
    pub mark: PathBuf,
    /// The program's version.
    pub program: String,
    /// The waits between attempts to connect.
    pub backoff: Backoff,
}

/// How the connection stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// There is none, and the next attempt is on its way.
    Waiting {
        /// Since when.
        since: jiff::Timestamp,
        /// Why the last attempt or connection ended; empty before the first.
        reason: String,
    },
    /// The sensor is there.
    Connected {
        /// Since when.
        since: jiff::Timestamp,
        /// The sensor's own version.
        program: String,
        /// The life of the sensor.
        incarnation: Uuid,
    },
}

/// What the agent's side knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientStatus {
    /// How the connection stands.
    pub link: Link,
    /// How much the sensor's watchers see, as it last said; empty before it said anything and while there is no
    /// connection.
    pub sights: Vec<Sight>,
    /// What the sensor counted, as it last said (every ten seconds).
    pub counters: Option<Counters>,
    /// Events and gaps that were made durable here.
    pub delivered: u64,
    /// Events that came again and were dropped.
    pub duplicates: u64,
    /// How often another life of the sensor was met.
    pub restarts: u64,
}

struct Inner {
    status: ClientStatus,
    /// What ends a read that waits.
    stream: Option<UnixStream>,
    stopping: bool,
}

struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
}

/// The agent's side, running in a thread of its own that ends with it.
pub struct SensorClient {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl SensorClient {
    /// Begins to connect, and never gives up.
    ///
    /// `deliver` gets each run of events in order (gaps among them) and returns when they are durable; only then are
    /// they acknowledged. It may block: the sensor keeps what comes meanwhile. After an error the connection ends, and
    /// the same events come again.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn start(
        options: ClientOptions,
        deliver: impl FnMut(Vec<EventBody>) -> Result<(), DeliverError> + Send + 'static,
    ) -> io::Result<Self> {
        Self::start_with(options, VERSIONS, deliver)
    }

    pub(crate) fn start_with(
        options: ClientOptions,
        versions: VersionRange,
        deliver: impl FnMut(Vec<EventBody>) -> Result<(), DeliverError> + Send + 'static,
    ) -> io::Result<Self> {
        let link = Link::Waiting { since: jiff::Timestamp::now(), reason: String::new() };
        let status =
            ClientStatus { link, sights: Vec::new(), counters: None, delivered: 0, duplicates: 0, restarts: 0 };
        let inner = Mutex::new(Inner { status, stream: None, stopping: false });
        let shared = Arc::new(Shared { inner, changed: Condvar::new() });
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("picket-sensor".to_owned()).spawn(move || {
                let mark = mark::load(&options.mark);
                Session { options, versions, shared, deliver, mark }.run();
            })?
        };
        Ok(Self { shared, thread: Some(thread) })
    }

    /// What is known now.
    pub fn status(&self) -> ClientStatus {
        lock(&self.shared.inner).status.clone()
    }

    /// Ends: what is being made durable is finished and acknowledged first.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        {
            let mut inner = lock(&self.shared.inner);
            inner.stopping = true;
            if let Some(stream) = &inner.stream {
                // Only reading ends: an acknowledgement that is due still goes out.
                let _ = stream.shutdown(Shutdown::Read);
            }
            self.shared.changed.notify_all();
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for SensorClient {
    fn drop(&mut self) {
        self.end();
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the sensor cannot be reached: {0}")]
    Connect(#[source] io::Error),
    #[error("the sensor hung up")]
    HungUp,
    #[error("the sensor ended the connection: {0}")]
    Bye(String),
    #[error("the sensor did not say hello")]
    NoHello,
    #[error("the sensor speaks versions {oldest} to {newest} of its frames, and none of them is known here")]
    Version { oldest: u32, newest: u32 },
    #[error("the connection failed: {0}")]
    Frame(#[from] FrameError),
    #[error("events could not be made durable: {0}")]
    Deliver(#[source] DeliverError),
    #[error("the agent stops")]
    Stopping,
}

struct Session<D> {
    options: ClientOptions,
    versions: VersionRange,
    shared: Arc<Shared>,
    deliver: D,
    mark: Option<Mark>,
}

impl<D: FnMut(Vec<EventBody>) -> Result<(), DeliverError>> Session<D> {
    fn run(mut self) {
        let mut failures = 0;
        loop {
            let (greeted, ended) = self.connect();
            failures = if greeted { 0 } else { failures + 1 };
            let reason = ended.to_string();
            let mut inner = lock(&self.shared.inner);
            inner.stream = None;
            if inner.stopping {
                return;
            }
            // Told once for each outage, not once for each attempt.
            match &inner.status.link {
                Link::Waiting { reason: known, .. } if *known == reason => tracing::debug!(reason, "no sensor"),
                _ => tracing::warn!(reason, "no sensor; it is tried again"),
            }
            let since = match inner.status.link {
                Link::Waiting { since, .. } => since,
                Link::Connected { .. } => jiff::Timestamp::now(),
            };
            inner.status.link = Link::Waiting { since, reason };
            inner.status.sights.clear();
            let wait = self.options.backoff.wait(failures, getrandom::u64().unwrap_or_default());
            let waited = self.shared.changed.wait_timeout_while(inner, wait, |inner| !inner.stopping);
            if waited.unwrap_or_else(PoisonError::into_inner).0.stopping {
                return;
            }
        }
    }

    /// One connection, to its end. Says whether it got as far as an exchange of hellos.
    fn connect(&mut self) -> (bool, Ended) {
        let stream = match UnixStream::connect(&self.options.socket) {
            Ok(stream) => stream,
            Err(error) => return (false, Ended::Connect(error)),
        };
        match self.greet(&stream) {
            Ok(()) => (true, self.receive(stream).err().unwrap_or(Ended::HungUp)),
            Err(ended) => (false, ended),
        }
    }

    fn greet(&mut self, mut stream: &UnixStream) -> Result<(), Ended> {
        let io = |error: io::Error| Ended::Frame(error.into());
        {
            let mut inner = lock(&self.shared.inner);
            if inner.stopping {
                return Err(Ended::Stopping);
            }
            inner.stream = Some(stream.try_clone().map_err(io)?);
        }
        stream.set_read_timeout(Some(SILENCE)).map_err(io)?;
        stream.set_write_timeout(Some(SILENCE)).map_err(io)?;
        let program = self.options.program.clone();
        Frame::Hello(Hello { versions: self.versions, program, incarnation: None, mark: self.mark })
            .write(&mut stream)?;
        let hello = match Frame::read(&mut stream)? {
            Some(Frame::Hello(hello)) => hello,
            Some(Frame::Bye(bye)) => return Err(Ended::Bye(bye.reason)),
            Some(_) => return Err(Ended::NoHello),
            None => return Err(Ended::HungUp),
        };
        if self.versions.common(hello.versions).is_none() {
            let VersionRange { oldest, newest } = hello.versions;
            return Err(Ended::Version { oldest, newest });
        }
        let incarnation = hello.incarnation.ok_or(Ended::NoHello)?;
        let known = self.mark.map(|mark| mark.incarnation);
        let mut inner = lock(&self.shared.inner);
        if known != Some(incarnation) {
            self.mark = Some(Mark { incarnation, seq: 0 });
            inner.status.restarts += u64::from(known.is_some());
            inner.status.counters = None;
        }
        tracing::info!(sensor = hello.program, %incarnation, "the sensor is connected");
        let since = jiff::Timestamp::now();
        inner.status.link = Link::Connected { since, program: hello.program, incarnation };
        Ok(())
    }

    fn receive(&mut self, mut stream: UnixStream) -> Result<(), Ended> {
        loop {
            match Frame::read(&mut stream)?.ok_or(Ended::HungUp)? {
                Frame::Events(events) => self.take(events, &mut stream)?,
                Frame::Sight(Sights { sights }) => lock(&self.shared.inner).status.sights = sights,
                Frame::Counters(counters) => lock(&self.shared.inner).status.counters = Some(counters),
                Frame::Bye(bye) => return Err(Ended::Bye(bye.reason)),
                Frame::Hello(_) | Frame::Ack(_) | Frame::Unknown => {}
            }
        }
    }

    /// Hands on what is new, notes the mark, acknowledges.
    fn take(&mut self, events: Events, stream: &mut UnixStream) -> Result<(), Ended> {
        let Some(mark) = &mut self.mark else { return Err(Ended::NoHello) };
        let all = events.events.len() as u64;
        let mut new = Vec::with_capacity(events.events.len());
        let mut last = mark.seq;
        for numbered in events.events {
            if numbered.seq > last {
                last = numbered.seq;
                new.push(numbered.event);
            }
        }
        let count = new.len() as u64;
        if !new.is_empty() {
            (self.deliver)(new).map_err(Ended::Deliver)?;
            mark.seq = last;
            // Without it, the worst is that these events come again after a crash of this process.
            if let Err(error) = mark::save(&self.options.mark, *mark) {
                tracing::warn!(%error, "how far the sensor's events were taken cannot be noted");
            }
        }
        {
            let mut inner = lock(&self.shared.inner);
            inner.status.delivered += count;
            inner.status.duplicates += all - count;
        }
        Ok(Frame::Ack(Ack { up_to: mark.seq }).write(stream)?)
    }
}
