//! An agent's end of the bus: it puts a batch into the hub's queue, and waits for the word of the hub that handled it.
//!
//! It asks nothing of JetStream's API, so an agent needs no right but to publish on one subject and to listen to its own
//! inbox. What it is told there is only as good as who may write to NATS: the caller checks the signature.

use async_nats::{Client, Event, HeaderMap, StatusCode, connection::State};
use bytes::Bytes;
use futures_util::StreamExt;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use super::queue::{HEADER_ID, HEADER_REPLY, OWN};
use super::settings::NatsSettings;
use super::{connect, reason, refused};
use crate::bus::MAX_MESSAGE;
use crate::error::{BusError, Result};
use crate::subject::{Pattern, Subject};

/// What an agent sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parcel {
    /// The same for the same batch, so that NATS takes it once: letters and digits, at most 60.
    pub id: String,
    /// What is said about it: names of letters, digits and `-`, values of printable ASCII.
    pub headers: Vec<(String, String)>,
    /// The batch.
    pub body: Bytes,
}

/// An agent's connection with NATS. It connects again by itself.
pub struct NatsPoster {
    client: Client,
    inbox: async_nats::Subscriber,
    tenant: Uuid,
    agent: Uuid,
    timeout: Duration,
}

impl std::fmt::Debug for NatsPoster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsPoster").field("agent", &self.agent).finish_non_exhaustive()
    }
}

/// What JetStream answers to whoever publishes.
#[derive(serde::Deserialize)]
struct Taken {
    error: Option<Refused>,
    #[serde(default)]
    duplicate: bool,
}

#[derive(serde::Deserialize)]
struct Refused {
    #[serde(default)]
    description: String,
}

impl NatsPoster {
    /// Connects as an agent of a tenant.
    ///
    /// # Errors
    /// The settings cannot be used, or no server can be reached or would have us.
    pub async fn connect(settings: &NatsSettings, tenant: Uuid, agent: Uuid) -> Result<Self> {
        settings.check()?;
        let options = connect::options(settings).await?.event_callback(|event| {
            tell(&event);
            std::future::ready(())
        });
        let client = options
            .connect(settings.servers.clone())
            .await
            .map_err(|error| BusError::Connect { servers: settings.servers.join(", "), reason: reason(&error) })?;
        let inbox = Pattern::inbox(tenant, agent).as_str().to_owned();
        let inbox = client.subscribe(inbox).await.map_err(|error| refused("subscribe", &error))?;
        Ok(Self { client, inbox, tenant, agent, timeout: settings.timeout })
    }

    /// Where a batch is said, and where its answer will be.
    ///
    /// # Errors
    /// The id cannot be a token of a subject.
    pub fn subjects(tenant: Uuid, agent: Uuid, id: &str) -> Result<(Subject, Subject)> {
        Ok((Subject::events(tenant, agent), Subject::inbox(tenant, agent, id)?))
    }

    /// Puts a batch into the queue and waits at most `patience` for what becomes of it: the hub's own words, unchecked.
    ///
    /// # Errors
    /// It is too long, the queue is full or not there, there is no connection, or nobody answers in time. But for the first
    /// two the batch may be handled all the same: send it again, with the same id. One that the queue had before and that
    /// nobody answers for a quarter of `patience` is put there once more, for the answer may have gone to nobody.
    pub async fn post(&mut self, parcel: Parcel, patience: Duration) -> Result<Bytes> {
        if self.client.connection_state() != State::Connected {
            return Err(BusError::Disconnected);
        }
        let way = self.way(&parcel)?;
        let answer_by = Instant::now() + patience;
        self.put(&way, &parcel.id, &parcel.body).await?;
        let mut standing = Standing::Sent { by: Instant::now() + self.timeout };
        let mut is_first = true;
        loop {
            let by = match standing {
                Standing::Sent { by } | Standing::TakenBefore { by } => by.min(answer_by),
                Standing::Taken => answer_by,
            };
            let Ok(heard) = timeout_at(by, self.inbox.next()).await else {
                match standing {
                    Standing::Sent { .. } => return Err(BusError::TimedOut(self.timeout)),
                    Standing::TakenBefore { by } if by < answer_by => {
                        // It was answered, and nobody heard: by a name of its own it is taken, and answered, once more.
                        is_first = false;
                        self.put(&way, &format!("{}-again", parcel.id), &parcel.body).await?;
                        standing = Standing::Sent { by: Instant::now() + self.timeout };
                        continue;
                    }
                    Standing::Taken | Standing::TakenBefore { .. } => return Err(BusError::Unanswered(patience)),
                }
            };
            let heard = heard.ok_or(BusError::Closed)?;
            if heard.subject.as_str() == way.reply.as_str() {
                return Ok(heard.payload);
            }
            // Anything else is about a batch of before.
            if heard.subject.as_str() == way.receipt.as_str() {
                let is_known = is_known_to(heard.status, &heard.payload)?;
                standing = if is_known && is_first {
                    Standing::TakenBefore { by: Instant::now() + patience / 4 }
                } else {
                    Standing::Taken
                };
            }
        }
    }

    fn way(&self, parcel: &Parcel) -> Result<Way> {
        let (subject, reply) = Self::subjects(self.tenant, self.agent, &parcel.id)?;
        let receipt = Subject::inbox(self.tenant, self.agent, &format!("got-{}", parcel.id))?;
        let mut headers = HeaderMap::new();
        headers.insert(HEADER_REPLY, reply.as_str());
        for (name, value) in &parcel.headers {
            headers.insert(format!("{OWN}{name}").as_str(), value.as_str());
        }
        Ok(Way { subject, reply, receipt, headers })
    }

    /// Puts a batch into the queue, under `id`.
    async fn put(&self, way: &Way, id: &str, body: &Bytes) -> Result<()> {
        let mut headers = way.headers.clone();
        headers.insert(HEADER_ID, id);
        let limit = MAX_MESSAGE.min(self.client.max_payload());
        let bytes = body.len() + length_of(&headers);
        if bytes > limit {
            return Err(BusError::TooLong { bytes, limit });
        }
        let (subject, receipt) = (way.subject.as_str().to_owned(), way.receipt.as_str().to_owned());
        let sent = self.client.publish_with_reply_and_headers(subject, receipt, headers, body.clone());
        match timeout(self.timeout, sent).await {
            Ok(sent) => sent.map_err(|error| refused("publish", &error)),
            Err(_) => Err(BusError::TimedOut(self.timeout)),
        }
    }

    /// Ends the connection.
    pub async fn close(self) {
        let _ = tokio::time::timeout(self.timeout, self.client.drain()).await;
    }
}

/// Where a batch goes, and what goes with it.
struct Way {
    subject: Subject,
    reply: Subject,
    receipt: Subject,
    headers: HeaderMap,
}

/// How a batch stands that was sent.
#[derive(Clone, Copy)]
enum Standing {
    /// JetStream has not said that it has it.
    Sent { by: Instant },
    /// It has it now.
    Taken,
    /// It had it before, by the same name: it waits there still, or it was handled and the answer went to nobody, for this
    /// agent or the connection was away. Only time tells which.
    TakenBefore { by: Instant },
}

/// Whether JetStream, which has it now, had it before.
fn is_known_to(status: Option<StatusCode>, receipt: &[u8]) -> Result<bool> {
    let refused = |reason: &str| BusError::Refused { operation: "take a batch".into(), reason: reason.into() };
    if status == Some(StatusCode::NO_RESPONDERS) {
        return Err(refused("it has no queue for batches; start a hub with bus.events"));
    }
    match serde_json::from_slice::<Taken>(receipt) {
        Ok(Taken { error: None, duplicate }) => Ok(duplicate),
        Ok(Taken { error: Some(error), .. }) if error.description.contains("maximum") => {
            Err(BusError::Full { queue: "events".into() })
        }
        Ok(Taken { error: Some(error), .. }) => {
            Err(refused(&error.description.chars().filter(|c| !c.is_control()).take(200).collect::<String>()))
        }
        Err(_) => Err(refused("its answer cannot be read")),
    }
}

/// As they are on the wire: `NATS/1.0`, and a line each.
fn length_of(headers: &HeaderMap) -> usize {
    let lines = headers.iter().flat_map(|(name, values)| {
        let name = AsRef::<str>::as_ref(name).len();
        values.iter().map(move |value| name + value.as_str().len() + 4)
    });
    lines.sum::<usize>() + 12
}

fn tell(event: &Event) {
    match event {
        Event::Connected => tracing::info!("connected to NATS"),
        Event::Disconnected => tracing::warn!("the connection to NATS was lost; it is made again"),
        Event::SlowConsumer(_) | Event::LameDuckMode | Event::Draining | Event::Closed => {}
        // The client's own words hold no secrets: they name the kind of error.
        Event::ServerError(error) => tracing::warn!("NATS says: {error}"),
        Event::ClientError(error) => tracing::warn!("the connection to NATS: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_jetstream_says_it_has_is_taken() {
        assert!(matches!(is_known_to(None, br#"{"stream":"PICKET_V1_EVENTS","seq":1}"#), Ok(false)));
        assert!(matches!(is_known_to(None, br#"{"stream":"PICKET_V1_EVENTS","seq":1,"duplicate":true}"#), Ok(true)));
        let full = br#"{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"}}"#;
        assert!(matches!(is_known_to(None, full), Err(BusError::Full { .. })));
        let weak = br#"{"error":{"code":503,"description":"insufficient\nresources"}}"#;
        assert!(matches!(is_known_to(None, weak), Err(BusError::Refused { reason, .. }) if !reason.contains('\n')));
        let nobody = is_known_to(Some(StatusCode::NO_RESPONDERS), b"").unwrap_err().to_string();
        assert!(nobody.contains("bus.events"), "{nobody}");
        assert!(is_known_to(None, b"?").is_err());
    }
}
