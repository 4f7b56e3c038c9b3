//! The sensor's side: a listening socket, one agent at a time, and the queue.
//!
//! Three threads at most: one accepts and greets (so a peer that does not say hello holds up only other greetings, and
//! for five seconds), one writes to the agent, one reads its acknowledgements. They end with [`SensorServer::drain`].

use crate::lock;
use crate::queue::{Limits, Queue};
use crate::spool::Spool;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use picket_durable::{Lock, LockError};
use picket_protocol::event::Sink;
use picket_protocol::sensor::{Ack, Bye, Counters, Frame, FrameError, Hello, Sights, VERSIONS, VersionRange};
use picket_protocol::{EventBody, Sight};
use std::collections::VecDeque;
use std::fs::Permissions;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long a peer may take to say hello.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// How many frames of events may wait for their acknowledgement. While the agent makes one durable, the next is there
/// already; what comes meanwhile is gathered into one that is larger.
const ON_THE_WAY: usize = 2;
/// How often counters are sent where nothing else is: a sign of life.
const COUNTERS_EVERY: Duration = Duration::from_secs(10);
/// How long to wait after the system refused a connection (no descriptors left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What the sensor's side needs to know.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Where the socket is. Its folder is there already.
    pub socket: PathBuf,
    /// The socket's permission bits.
    pub socket_mode: u32,
    /// A folder for the queue between two lives, and for the lock that keeps the sensor single.
    pub state_dir: PathBuf,
    /// The user ids that may connect, besides root and the sensor's own.
    pub allowed: Vec<u32>,
    /// How much is kept for an agent that does not take it.
    pub limits: Limits,
    /// The program's version.
    pub program: String,
}

/// Why the sensor's side cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another sensor of the same installation runs, or its folder cannot be used.
    #[error("the sensor's state folder cannot be used")]
    Lock(#[from] LockError),
    /// The state folder cannot be used.
    #[error("the sensor's state folder cannot be used")]
    State(#[from] picket_durable::Error),
    /// The socket cannot be made.
    #[error("cannot listen on {}", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// How a sensor ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// What was counted by then. What is still queued was written to the state folder.
    pub counters: Counters,
}

struct State {
    queue: Queue,
    sights: Vec<Sight>,
    /// Raised with each change of `sights`.
    sights_version: u64,
    /// Which connection is the agent's, if there is one. A thread that finds another number here ends.
    connection: Option<Connection>,
    next_connection: u64,
    stopping: bool,
}

struct Connection {
    id: u64,
    stream: UnixStream,
    /// The number of the last event that was sent on this connection.
    cursor: u64,
    /// The last number of each frame that is not acknowledged.
    on_the_way: VecDeque<u64>,
}

struct Shared {
    options: ServerOptions,
    incarnation: Uuid,
    state: Mutex<State>,
    changed: Condvar,
}

/// The sensor's side, running.
pub struct SensorServer {
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
    spool: Spool,
    _lock: Lock,
}

impl SensorServer {
    /// Takes up what the sensor before this one left, and listens.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub fn start(options: ServerOptions) -> Result<Self, ServerError> {
        let lock = Lock::acquire(&options.state_dir.join("sensor.lock"))?;
        let spool = Spool::new(&options.state_dir);
        let (incarnation, queue) = spool.take(options.limits, jiff::Timestamp::now())?;
        let listener =
            listen(&options).map_err(|source| ServerError::Socket { path: options.socket.clone(), source })?;
        let state = State {
            queue,
            sights: Vec::new(),
            sights_version: 0,
            connection: None,
            next_connection: 1,
            stopping: false,
        };
        let shared = Arc::new(Shared { options, incarnation, state: Mutex::new(state), changed: Condvar::new() });
        let accepting = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("sensor-accept".to_owned()).spawn(move || accept(&shared, &listener))
        };
        let accepting =
            accepting.map_err(|source| ServerError::Socket { path: shared.options.socket.clone(), source })?;
        Ok(Self { shared, accepting: Some(accepting), spool, _lock: lock })
    }

    /// Where watchers put what they see.
    pub fn sink(&self) -> Sink {
        let shared = Arc::clone(&self.shared);
        Arc::new(move |body: EventBody| {
            let mut state = lock(&shared.state);
            state.queue.push(body, jiff::Timestamp::now());
            // Whoever waits for an acknowledgement anyway is not woken for each event.
            let wake = state.connection.as_ref().is_some_and(|agent| agent.on_the_way.len() < ON_THE_WAY);
            drop(state);
            if wake {
                shared.changed.notify_all();
            }
        })
    }

    /// Says how much the watchers see; the agent is told when it changes.
    pub fn set_sights(&self, sights: Vec<Sight>) {
        let mut state = lock(&self.shared.state);
        if state.sights != sights {
            state.sights = sights;
            state.sights_version += 1;
            self.shared.changed.notify_all();
        }
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        lock(&self.shared.state).queue.counters()
    }

    /// Whether an agent is connected.
    pub fn is_connected(&self) -> bool {
        lock(&self.shared.state).connection.is_some()
    }

    /// The life that the numbers belong to.
    pub fn incarnation(&self) -> Uuid {
        self.shared.incarnation
    }

    /// Ends in good order: lets an agent that is connected take what is left, for at most `limit`, then writes the rest
    /// for the next life. The watchers have ended by then.
    ///
    /// # Errors
    /// When the rest cannot be written; it is then lost, and the next life says so.
    pub fn drain(mut self, limit: Duration) -> Result<Drained, picket_durable::Error> {
        let until = Instant::now() + limit;
        let mut state = lock(&self.shared.state);
        while !state.queue.is_empty() && state.connection.is_some() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.shared.wait(state, left);
        }
        drop(state);
        self.end();
        let state = lock(&self.shared.state);
        self.spool.put(self.shared.incarnation, &state.queue)?;
        Ok(Drained { counters: state.queue.counters() })
    }

    fn end(&mut self) {
        {
            let mut state = lock(&self.shared.state);
            state.stopping = true;
            self.shared.changed.notify_all();
        }
        // accept(2) has no other way to be told: a connection of our own.
        let _ = UnixStream::connect(&self.shared.options.socket);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        let _ = picket_durable::remove_if_present(&self.shared.options.socket);
    }
}

impl Drop for SensorServer {
    fn drop(&mut self) {
        if self.accepting.is_some() {
            self.end();
        }
    }
}

impl Shared {
    fn wait<'a>(&self, state: std::sync::MutexGuard<'a, State>, limit: Duration) -> std::sync::MutexGuard<'a, State> {
        self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0
    }
}

fn listen(options: &ServerOptions) -> io::Result<UnixListener> {
    // The lock is held: whatever is there was left by a sensor that was killed.
    picket_durable::remove_if_present(&options.socket).map_err(|error| error.source)?;
    let listener = UnixListener::bind(&options.socket)?;
    std::fs::set_permissions(&options.socket, Permissions::from_mode(options.socket_mode))?;
    Ok(listener)
}

/// Accepts and greets, one peer after the other; the newest agent takes the place of the one before.
fn accept(shared: &Arc<Shared>, listener: &UnixListener) {
    let mut serving: Option<JoinHandle<()>> = None;
    loop {
        let accepted = listener.accept();
        if lock(&shared.state).stopping {
            break;
        }
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the agent's connection was refused by the system");
                let state = lock(&shared.state);
                drop(shared.wait(state, ACCEPT_PAUSE));
                continue;
            }
        };
        let hello = match greet(shared, &stream) {
            Ok(hello) => hello,
            Err(error) => {
                tracing::warn!(%error, "a connection is refused");
                continue;
            }
        };
        if let Err(error) = take_over(shared, stream, &hello, &mut serving) {
            tracing::warn!(%error, "the agent's connection cannot be served");
        }
    }
    leave(shared, None);
    if let Some(thread) = serving {
        let _ = thread.join();
    }
}

/// Why a peer is not served.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("user {0} may not connect to the sensor")]
    User(u32),
    #[error("it speaks versions {oldest} to {newest} of the sensor's frames, and none of them is known here")]
    Version { oldest: u32, newest: u32 },
    #[error("it did not say hello: {0}")]
    NoHello(&'static str),
    #[error("it did not say hello")]
    Frame(#[from] FrameError),
    #[error("the system refused")]
    Io(#[from] io::Error),
}

/// Looks at the peer's credentials and exchanges hellos.
fn greet(shared: &Shared, stream: &UnixStream) -> Result<Hello, Refused> {
    // Not rustix's: a peer of another PID namespace has no number here, and its type cannot hold a 0.
    let user = getsockopt(stream, PeerCredentials).map_err(io::Error::from)?.uid();
    let own = rustix::process::geteuid().as_raw();
    if !(user == 0 || user == own || shared.options.allowed.contains(&user)) {
        return Err(Refused::User(user));
    }
    let mut reader = Deadline { stream, until: Instant::now() + HELLO_LIMIT };
    stream.set_write_timeout(Some(HELLO_LIMIT))?;
    let hello = match Frame::read(&mut reader)? {
        Some(Frame::Hello(hello)) => hello,
        Some(_) => return Err(Refused::NoHello("it began with something else")),
        None => return Err(Refused::NoHello("it hung up")),
    };
    let ours = Hello {
        versions: VERSIONS,
        program: shared.options.program.clone(),
        incarnation: Some(shared.incarnation),
        mark: None,
    };
    let mut writer = stream;
    Frame::Hello(ours).write(&mut writer)?;
    if hello.versions.common(VERSIONS).is_none() {
        let VersionRange { oldest, newest } = hello.versions;
        let refused = Refused::Version { oldest, newest };
        let _ = Frame::Bye(Bye { reason: refused.to_string() }).write(&mut writer);
        return Err(refused);
    }
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    Ok(hello)
}

/// A reader that ends at a point in time, however slowly bytes come.
struct Deadline<'a> {
    stream: &'a UnixStream,
    until: Instant,
}

impl Read for Deadline<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut stream = self.stream;
        stream.read(buffer)
    }
}

/// Ends the connection before, and serves this one.
fn take_over(
    shared: &Arc<Shared>,
    stream: UnixStream,
    hello: &Hello,
    serving: &mut Option<JoinHandle<()>>,
) -> io::Result<()> {
    leave(shared, None);
    if let Some(thread) = serving.take() {
        let _ = thread.join();
    }
    let reader = stream.try_clone()?;
    let writer = stream.try_clone()?;
    let id = {
        let mut state = lock(&shared.state);
        if let Some(mark) = hello.mark.filter(|mark| mark.incarnation == shared.incarnation)
            && let Err(error) = state.queue.acknowledge(mark.seq)
        {
            tracing::warn!(%error, "the agent's mark is ahead of the sensor; it is not believed");
        }
        let id = state.next_connection;
        state.next_connection += 1;
        let cursor = state.queue.position().acked;
        state.connection = Some(Connection { id, stream, cursor, on_the_way: VecDeque::new() });
        id
    };
    tracing::info!(agent = hello.program, "the agent is connected");
    shared.changed.notify_all();
    let inner = Arc::clone(shared);
    *serving = Some(std::thread::Builder::new().name("sensor-write".to_owned()).spawn(move || {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                if let Err(error) = read(&inner, id, reader) {
                    tracing::warn!(%error, "the agent's connection ends");
                }
                leave(&inner, Some(id));
            });
            if let Err(error) = write(&inner, id, writer) {
                tracing::debug!(%error, "the agent's connection ended");
            }
            leave(&inner, Some(id));
        });
    })?);
    Ok(())
}

/// Ends the connection `id`, or whichever there is; both its threads notice.
fn leave(shared: &Shared, id: Option<u64>) {
    let mut state = lock(&shared.state);
    if let Some(connection) = state.connection.take_if(|connection| id.is_none_or(|id| connection.id == id)) {
        let _ = connection.stream.shutdown(Shutdown::Both);
    }
    shared.changed.notify_all();
}

/// Takes acknowledgements until the connection ends.
fn read(shared: &Shared, id: u64, mut stream: UnixStream) -> Result<(), FrameError> {
    while let Some(frame) = Frame::read(&mut stream)? {
        let Frame::Ack(Ack { up_to }) = frame else { continue };
        let mut state = lock(&shared.state);
        let State { queue, connection, .. } = &mut *state;
        let Some(connection) = connection.as_mut().filter(|connection| connection.id == id) else { return Ok(()) };
        queue.acknowledge(up_to).map_err(|error| FrameError::Io(io::Error::other(error)))?;
        connection.cursor = connection.cursor.max(up_to);
        while connection.on_the_way.front().is_some_and(|last| *last <= up_to) {
            connection.on_the_way.pop_front();
        }
        shared.changed.notify_all();
    }
    Ok(())
}

/// Sends what there is until the connection ends.
fn write(shared: &Shared, id: u64, mut stream: UnixStream) -> Result<(), FrameError> {
    let mut told_sights = None;
    let mut told_counters: Option<Instant> = None;
    loop {
        let mut state = lock(&shared.state);
        let bytes = loop {
            let State { queue, sights, sights_version, connection, stopping, .. } = &mut *state;
            let Some(connection) = connection.as_mut().filter(|connection| connection.id == id) else {
                return Ok(());
            };
            if *stopping {
                break Frame::Bye(Bye { reason: "the sensor ends".to_owned() }).encode()?;
            }
            if told_sights != Some(*sights_version) {
                told_sights = Some(*sights_version);
                break Frame::Sight(Sights { sights: sights.clone() }).encode()?;
            }
            if told_counters.is_none_or(|at| at.elapsed() >= COUNTERS_EVERY) {
                told_counters = Some(Instant::now());
                break Frame::Counters(queue.counters()).encode()?;
            }
            if connection.on_the_way.len() < ON_THE_WAY
                && let Some(ready) = queue.frame_after(connection.cursor)?
            {
                connection.cursor = ready.last;
                connection.on_the_way.push_back(ready.last);
                break ready.bytes;
            }
            let due = told_counters.map_or(Duration::ZERO, |at| COUNTERS_EVERY.saturating_sub(at.elapsed()));
            state = shared.wait(state, due);
        };
        let stopping = state.stopping;
        drop(state);
        stream.write_all(&bytes)?;
        if stopping {
            return Ok(());
        }
    }
}
