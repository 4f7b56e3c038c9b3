//! The WebSocket of a simulated agent, as the agent speaks it: hello, heartbeats at the hub's interval, goodbye, and the waits
//! that a refusal, a goodbye or a silence ask for.
//!
//! The waits are those of `agent/src/hub/keeper.rs`: exponential with full jitter from 1 s to 2 min, a breaker that opens after
//! eight failures for a minute, never shorter than the hub asked, and a second of spread on what it asked.

use crate::delays::Delays;
use crate::machine::{Machine, USER_AGENT};
use jiff::Timestamp;
use picket_outbox::{Admission, Backoff, Breaker, Clock as _, SystemClock, random};
use picket_protocol::OverallStatus;
use picket_protocol::hub::{
    AgentHealth, CertificateState, FRAME_MAX_BYTES, Frame, Heartbeat, Hello, SOCKET_PATH, StreamLedger, WIRE, Welcome,
};
use picket_transport::ProxyChoice;
use picket_transport::hub::{Heard, HubSocket, Route, SocketLimits};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::{sleep_until, timeout};
use uuid::Uuid;

const CONNECT_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));
const BREAKER: (u32, Duration) = (8, Duration::from_secs(60));
const WELCOME_LIMIT: Duration = Duration::from_secs(15);
const LIMITS: SocketLimits =
    SocketLimits { connect: Duration::from_secs(15), write: Duration::from_secs(10), message: FRAME_MAX_BYTES };
/// After how many heartbeats without an answer the connection is given up.
const MISSED: u32 = 3;

/// What a fleet's heartbeats came to.
#[derive(Default)]
pub struct Tally {
    /// Connected and welcomed now.
    pub connected: AtomicUsize,
    /// Welcomes, the repeated ones included.
    pub welcomes: AtomicU64,
    /// Refusals with a time to come back (429, 503): what the hub shed.
    pub shed: AtomicU64,
    /// Attempts that failed otherwise.
    pub failed: AtomicU64,
    /// Goodbyes of the hub.
    pub byes: AtomicU64,
    /// Connections that broke without a word.
    pub broken: AtomicU64,
    /// Heartbeats sent.
    pub sent: AtomicU64,
    /// Heartbeats that the hub stored.
    pub heard: AtomicU64,
    /// From the sending of a heartbeat until it is stored.
    pub delays: Delays,
}

/// One machine's part.
pub struct Beating {
    /// Who.
    pub machine: Machine,
    /// Where everybody counts.
    pub tally: Arc<Tally>,
    /// Counts up with each heartbeat of this machine that was stored.
    pub heard: watch::Sender<u64>,
    /// The books to tell.
    pub books: Box<dyn Fn() -> Vec<StreamLedger> + Send + Sync>,
    /// Called when the hub says welcome.
    pub welcomed: Box<dyn Fn() + Send + Sync>,
    /// Whether the hub's word on when to send the first heartbeat is left aside, and it is sent at once.
    pub eager: bool,
}

/// How a connection ended, and for how long the hub asked not to be called.
struct End(Option<Duration>);

impl Beating {
    /// A machine without events.
    pub fn quiet(machine: Machine, tally: Arc<Tally>) -> Self {
        let (heard, _) = watch::channel(0);
        Self { machine, tally, heard, books: Box::new(Vec::new), welcomed: Box::new(|| {}), eager: false }
    }

    /// Beats until `stop` turns true.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let route = Route::new(&self.machine.hub, &ProxyChoice::none()).unwrap();
        let mut life = Life {
            backoff: Backoff::new(CONNECT_RETRY.0, CONNECT_RETRY.1),
            breaker: Breaker::new(BREAKER.0, BREAKER.1),
            incarnation: Uuid::now_v7(),
            sequence: 0,
            started: Timestamp::now(),
            of: self,
        };
        while !*stop.borrow() {
            let wait = match life.breaker.admit(SystemClock.since_boot()) {
                Admission::Wait(left) => left,
                Admission::Go => {
                    let end = tokio::select! {
                        end = life.talk(&route) => end,
                        _ = stop.wait_for(|stop| *stop) => return,
                    };
                    life.after(&end)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }
}

struct Life {
    of: Beating,
    backoff: Backoff,
    breaker: Breaker,
    incarnation: Uuid,
    sequence: u64,
    started: Timestamp,
}

/// Counts a connection while it is one.
struct Connected<'a>(&'a AtomicUsize);

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Life {
    fn after(&mut self, end: &End) -> Duration {
        self.breaker.fail(SystemClock.since_boot());
        let wait = self.backoff.fail(random());
        let asked = end.0.map(|asked| asked + wait.min(Duration::from_secs(1)));
        wait.max(asked.unwrap_or_default())
    }

    async fn talk(&mut self, route: &Route) -> End {
        let tally = Arc::clone(&self.of.tally);
        let connected = HubSocket::connect(route, SOCKET_PATH, &self.of.machine.trust, USER_AGENT, LIMITS).await;
        let mut socket = match connected {
            Ok(socket) => socket,
            Err(error) => {
                let asked = error.retry_after();
                (if asked.is_some() { &tally.shed } else { &tally.failed }).fetch_add(1, Ordering::Relaxed);
                return End(asked);
            }
        };
        let hello = Hello {
            wire: WIRE,
            version: semver::Version::new(1, 0, 0),
            incarnation: self.incarnation,
            boot_id: Some(self.of.machine.boot),
            machine_hint: format!("load-{}", self.of.machine.index),
            now: Timestamp::now(),
        };
        if socket.send(Frame::Hello(hello).write()).await.is_err() {
            tally.broken.fetch_add(1, Ordering::Relaxed);
            return End(None);
        }
        let welcome = match timeout(WELCOME_LIMIT, hear(&mut socket)).await {
            Ok(Some(Frame::Welcome(welcome))) => welcome,
            Ok(Some(Frame::Bye(bye))) => {
                tally.byes.fetch_add(1, Ordering::Relaxed);
                return End(bye.retry_after_ms.map(Duration::from_millis));
            }
            _ => {
                tally.broken.fetch_add(1, Ordering::Relaxed);
                return End(None);
            }
        };
        self.breaker.succeed();
        self.backoff.succeed();
        (self.of.welcomed)();
        tally.welcomes.fetch_add(1, Ordering::Relaxed);
        tally.connected.fetch_add(1, Ordering::Relaxed);
        let _connected = Connected(&tally.connected);
        self.converse(&mut socket, &welcome, &tally).await
    }

    async fn converse(&mut self, socket: &mut HubSocket, welcome: &Welcome, tally: &Tally) -> End {
        let every = Duration::from_millis(welcome.heartbeat_ms.max(1));
        let first = if self.of.eager { Duration::ZERO } else { Duration::from_millis(welcome.first_heartbeat_ms) };
        let mut due = tokio::time::Instant::now() + first;
        let mut waiting: Option<(u64, Instant)> = None;
        let mut unanswered = 0;
        loop {
            tokio::select! {
                frame = hear(socket) => match frame {
                    Some(Frame::Heard { seq, .. }) => {
                        let Some((_, since)) = waiting.take_if(|(waiting, _)| *waiting == seq) else { continue };
                        unanswered = 0;
                        tally.delays.note(since.elapsed());
                        tally.heard.fetch_add(1, Ordering::Relaxed);
                        self.of.heard.send_modify(|heard| *heard += 1);
                    }
                    Some(Frame::Bye(bye)) => {
                        tally.byes.fetch_add(1, Ordering::Relaxed);
                        return End(bye.retry_after_ms.map(Duration::from_millis));
                    }
                    Some(_) => {}
                    None => {
                        tally.broken.fetch_add(1, Ordering::Relaxed);
                        return End(None);
                    }
                },
                () = sleep_until(due) => {
                    if let Some((_, since)) = waiting {
                        // It counts with what it took so far: an answer that never comes must not look like none.
                        tally.delays.note(since.elapsed());
                        unanswered += 1;
                    }
                    if unanswered >= MISSED {
                        tally.broken.fetch_add(1, Ordering::Relaxed);
                        return End(None);
                    }
                    self.sequence += 1;
                    waiting = Some((self.sequence, Instant::now()));
                    tally.sent.fetch_add(1, Ordering::Relaxed);
                    if socket.send(Frame::Heartbeat(Box::new(self.heartbeat())).write()).await.is_err() {
                        tally.broken.fetch_add(1, Ordering::Relaxed);
                        return End(None);
                    }
                    due = (due + every).max(tokio::time::Instant::now());
                }
            }
        }
    }

    fn heartbeat(&self) -> Heartbeat {
        let leaf = self.of.machine.trust.identity.as_ref().unwrap().leaf();
        Heartbeat {
            seq: self.sequence,
            sent_at: Timestamp::now(),
            version: semver::Version::new(1, 0, 0),
            boot_id: Some(self.of.machine.boot),
            started_at: self.started,
            health: AgentHealth { status: OverallStatus::Healthy, not_passing: BTreeMap::new() },
            ledgers: (self.of.books)(),
            certificate: CertificateState {
                serial: leaf.serial.clone(),
                not_after: leaf.not_after,
                renewed: 0,
                last_error: None,
            },
            update: None,
            config: None,
            clock_ahead_ms: Some(0),
        }
    }
}

/// The next frame; nothing when the connection is over.
async fn hear(socket: &mut HubSocket) -> Option<Frame> {
    loop {
        match socket.hear().await {
            Heard::Sign => {}
            Heard::End(_) => return None,
            Heard::Text(text) => return Frame::read(&text).ok(),
        }
    }
}
