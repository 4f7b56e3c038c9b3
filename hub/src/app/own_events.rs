//! What the hub itself has to tell: events of its own, which go the way of all events and are judged by the same rules.
//!
//! The hub stands among the agents as one of kind `hub`. Its stream is this process' own, and its numbers count from 1.
//!
//! What it tells waits in a bounded queue until the database has it. What does not fit there, and what is left when the
//! process ends, is in the log, is counted, and is a gap in the stream as soon as something can be stored again.

use super::batch::Streams;
use crate::refusal::Refusal;
use crate::server::told_to_stop;
use crate::state::Hub;
use jiff::Timestamp;
use picket_hub_db::{NewAgent, NewEvent};
use picket_protocol::event::{GapReason, Priority};
use picket_protocol::hub::ProblemCode;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

/// Events that may wait: what a hub that is attacked has to tell in several minutes, in about a megabyte.
const MAX_WAITING: usize = 1024;
/// How long the first wait before another try is, and the longest.
const TRY_AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// How long somebody who tells something waits for it to be stored; after that it is stored without them.
const WAIT_LIMIT: Duration = Duration::from_secs(2);

/// The hub among the agents: the same in every tenant, so that a replica finds it (version 8, RFC 9562 §5.8).
pub use picket_hub_rules::HUB_AGENT;
/// What kind of agent the hub is.
pub const HUB_KIND: &str = "hub";

/// The stream of this process' own events.
#[derive(Debug)]
pub struct OwnStream {
    boot: Uuid,
    last: AtomicU64,
}

impl Default for OwnStream {
    fn default() -> Self {
        Self { boot: Uuid::now_v7(), last: AtomicU64::new(0) }
    }
}

impl OwnStream {
    /// The place of the next event: stream and number.
    pub fn next(&self) -> (Uuid, u64) {
        (self.boot, self.last.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

impl Hub {
    /// Puts the hub among the agents, if it is not there.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn be_an_agent(&self) -> picket_hub_db::Result<()> {
        if self.db.agent(self.tenant, HUB_AGENT).await?.is_some() {
            return Ok(());
        }
        let hub = NewAgent {
            id: HUB_AGENT,
            name: "hub".to_owned(),
            kind: HUB_KIND.to_owned(),
            tags: BTreeSet::new(),
            config: json!({}),
        };
        match self.db.create_agent(self.tenant, &hub, self.clock.now()).await {
            Ok(_) => Ok(()),
            // A replica was faster.
            Err(error) if error.is_conflict() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Tells of something that the hub noticed. Returns once it is stored, or after a short while: then it is stored when the
    /// database takes it.
    pub async fn report(&self, kind: &str, mut details: Value) {
        let at = self.clock.now();
        details["timestamp"] = json!(at);
        let details = details.to_string();
        tracing::info!(kind, details, "the hub reports");
        let (done, stored) = oneshot::channel();
        if self.own_events.waiting.try_send(Waiting { kind: kind.to_owned(), at, details, done }).is_err() {
            self.own_events.give_up(1);
            tracing::error!(
                kind,
                "an event of the hub's own is given up: too many wait to be stored, or the hub is stopping"
            );
            return;
        }
        let _ = tokio::time::timeout(WAIT_LIMIT, stored).await;
    }

    /// Stores an event of the hub's own, however often that has to be tried. Says whether it did.
    async fn store_own(&self, event: NewEvent, boot: Uuid, at: Timestamp, stop: &mut watch::Receiver<bool>) -> bool {
        let mut wait = TRY_AGAIN.0;
        loop {
            let streams = Streams::from([(boot, vec![event.clone()])]);
            let stored = match self.intake.reserve(event.data.len()) {
                Ok(room) => self.intake.store(HUB_AGENT, streams, at, room).await.map(|_| ()),
                Err(refusal) => Err(refusal),
            };
            let Err(refusal) = stored else { return true };
            if *stop.borrow() || is_final(&refusal) {
                tracing::error!(kind = event.kind, %refusal, "an event of the hub's own is given up");
                return false;
            }
            tracing::warn!(kind = event.kind, %refusal, again = ?wait, "an event of the hub's own is not stored yet");
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = told_to_stop(stop) => {}
            }
            wait = (wait * 2).min(TRY_AGAIN.1);
        }
    }
}

/// Whether trying again helps nothing.
fn is_final(refusal: &Refusal) -> bool {
    matches!(refusal.code(), ProblemCode::Invalid | ProblemCode::TooLarge | ProblemCode::UnknownAgent)
}

/// An event of the hub's own that waits to be stored.
#[derive(Debug)]
struct Waiting {
    kind: String,
    at: Timestamp,
    details: String,
    done: oneshot::Sender<()>,
}

/// The way of the hub's own events into the database.
#[derive(Debug)]
pub struct OwnEvents {
    waiting: mpsc::Sender<Waiting>,
    /// Given up, and not told by a gap yet.
    untold: AtomicU64,
    given_up: AtomicU64,
}

/// What [`keep`] takes from.
#[derive(Debug)]
pub struct ToKeep(mpsc::Receiver<Waiting>);

impl OwnEvents {
    /// An empty queue, and its other end.
    pub fn new() -> (Self, ToKeep) {
        let (waiting, to_keep) = mpsc::channel(MAX_WAITING);
        (Self { waiting, untold: AtomicU64::new(0), given_up: AtomicU64::new(0) }, ToKeep(to_keep))
    }

    /// How many were given up since the process started.
    pub fn given_up(&self) -> u64 {
        self.given_up.load(Ordering::Relaxed)
    }

    fn give_up(&self, count: u64) {
        self.untold.fetch_add(count, Ordering::AcqRel);
        self.given_up.fetch_add(count, Ordering::Relaxed);
    }
}

/// Stores the hub's own events, one after the other, until the hub stops and none is left.
pub async fn keep(hub: Arc<Hub>, to_keep: ToKeep) {
    let (mut stop, mut waiting) = (hub.stop.clone(), to_keep.0);
    loop {
        let next = tokio::select! {
            next = waiting.recv() => next,
            () = told_to_stop(&mut stop) => waiting.try_recv().ok(),
        };
        let Some(Waiting { kind, at, details, done }) = next else { return };
        let (boot, seq) = hub.own_stream.next();
        let data = details.into();
        let event = NewEvent { seq, kind, class: Priority::High, timestamp: at, weight: 1, gap: 0, data };
        if hub.store_own(event, boot, at, &mut stop).await {
            let _ = done.send(());
        } else {
            hub.own_events.give_up(1);
        }
        let missing = hub.own_events.untold.load(Ordering::Acquire);
        if missing > 0 {
            let (boot, seq) = hub.own_stream.next();
            let now = hub.clock.now();
            if hub.store_own(gap(seq, missing, now), boot, now, &mut stop).await {
                hub.own_events.untold.fetch_sub(missing, Ordering::AcqRel);
            }
        }
    }
}

/// Tells that so many events of the hub's own are missing.
fn gap(seq: u64, count: u64, now: Timestamp) -> NewEvent {
    let details = json!({
        "timestamp": now, "reason": GapReason::QueueFull, "source": "hub", "count": count,
        "detail": "the hub could not store what it noticed itself; its log has it",
    });
    NewEvent {
        seq,
        kind: "gap".to_owned(),
        class: Priority::High,
        timestamp: now,
        weight: 0,
        gap: count,
        data: details.to_string().into(),
    }
}
