//! What the hub itself has to tell: events of its own, which go the way of all events and are judged by the same rules.
//!
//! The hub stands among the agents as one of kind `hub`. Its stream is this process' own, and its numbers count from 1.

use super::batch::Streams;
use crate::state::Hub;
use picket_hub_db::{NewAgent, NewEvent};
use picket_protocol::event::Priority;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use uuid::Uuid;

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

    /// Tells of something that the hub noticed. What cannot be stored is in the log all the same.
    pub async fn report(&self, kind: &str, mut details: Value) {
        let now = self.clock.now();
        details["timestamp"] = json!(now);
        let (boot, seq) = self.own_stream.next();
        let event = NewEvent {
            seq,
            kind: kind.to_owned(),
            class: Priority::High,
            timestamp: now,
            weight: 1,
            gap: 0,
            data: details.to_string().into(),
        };
        tracing::info!(kind, details = event.data.as_str(), "the hub reports");
        let streams = Streams::from([(boot, vec![event])]);
        let stored = match self.intake.reserve(4096) {
            Ok(room) => self.intake.store(HUB_AGENT, streams, now, room).await.map(|_| ()),
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = stored {
            tracing::error!(kind, %refusal, "an event of the hub's own is not stored");
        }
    }
}
