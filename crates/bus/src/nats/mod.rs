//! The bus over NATS: fan-out over subjects, work over JetStream.

mod connect;
mod poster;
mod queue;
mod settings;
mod sync;

pub use poster::{NatsPoster, Parcel};
pub use queue::{HEADER_ID, HEADER_REPLY};
pub use settings::{NatsAuth, NatsSettings, NatsTls, Secret};

use async_nats::connection::State;
use async_nats::{Client, Event, jetstream};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use tokio::sync::{mpsc, watch};

use crate::bus::{Bus, Feeder, Health, Heard, Losses, Queue, QueueSpec, Subscription};
use crate::error::{BusError, Result};
use crate::memory::check_length;
use crate::subject::{Pattern, Subject};

/// The bus over NATS. It connects again by itself, for ever; while it is not connected, what is asked of it fails with
/// [`BusError::Disconnected`] and nothing is kept for later.
pub struct NatsBus {
    client: Client,
    context: jetstream::Context,
    settings: NatsSettings,
    shared: Arc<Shared>,
    closed: AtomicBool,
}

/// What tasks of the connection count.
#[derive(Debug)]
struct Shared {
    connects: AtomicU64,
    lost: AtomicU64,
    published: AtomicU64,
    redeliveries: AtomicU64,
    /// Grows with every connection that was lost.
    interruptions: watch::Sender<u64>,
}

impl std::fmt::Debug for NatsBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsBus").field("servers", &self.settings.servers).finish_non_exhaustive()
    }
}

impl NatsBus {
    /// Connects, and looks whether the servers keep what they acknowledge.
    ///
    /// # Errors
    /// The settings cannot be used, no server can be reached or would have us, it has no JetStream, or it is weaker than it
    /// must be.
    pub async fn connect(settings: NatsSettings) -> Result<Self> {
        settings.check()?;
        let shared = Arc::new(Shared {
            connects: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            published: AtomicU64::new(0),
            redeliveries: AtomicU64::new(0),
            interruptions: watch::Sender::new(0),
        });
        let told = Arc::clone(&shared);
        let options = connect::options(&settings).await?.event_callback(move |event| {
            told.hear(&event);
            std::future::ready(())
        });
        let client = options
            .connect(settings.servers.clone())
            .await
            .map_err(|error| BusError::Connect { servers: settings.servers.join(", "), reason: reason(&error) })?;
        sync::require(&settings, &client.server_info().version).await?;
        let context = jetstream::context::ContextBuilder::new().timeout(settings.timeout).build(client.clone());
        has_jetstream(&client).await?;
        Ok(Self { client, context, settings, shared, closed: AtomicBool::new(false) })
    }

    fn is_connected(&self) -> Result<()> {
        if self.closed.load(Relaxed) {
            return Err(BusError::Closed);
        }
        if self.client.connection_state() == State::Connected { Ok(()) } else { Err(BusError::Disconnected) }
    }
}

/// Whether this user may use JetStream. Asked by hand: the client's own type for the answer does not fit 2.9.10's.
async fn has_jetstream(client: &Client) -> Result<()> {
    let answer = client.request("$JS.API.INFO", Bytes::new()).await;
    let said = match &answer {
        Ok(message) => match serde_json::from_slice::<Info>(&message.payload) {
            Ok(Info { error: None }) => return Ok(()),
            Ok(Info { error: Some(error) }) => error.description,
            Err(_) => "an answer that cannot be read".into(),
        },
        Err(error) => reason(error),
    };
    Err(BusError::Settings {
        what: format!("the servers have no JetStream for this user: {said}"),
        help: "add `jetstream {}` to nats-server's configuration, and enable it for the account".into(),
    })
}

/// An answer of JetStream's, as far as it says no.
#[derive(serde::Deserialize)]
struct Info {
    error: Option<InfoError>,
}

#[derive(serde::Deserialize)]
struct InfoError {
    #[serde(default)]
    description: String,
}

impl Shared {
    fn hear(&self, event: &Event) {
        match event {
            Event::Connected => {
                self.connects.fetch_add(1, Relaxed);
                tracing::info!("connected to NATS");
            }
            Event::Disconnected => {
                self.interruptions.send_modify(|count| *count += 1);
                tracing::warn!("the connection to NATS was lost; it is made again");
            }
            Event::SlowConsumer(_) => {
                self.lost.fetch_add(1, Relaxed);
            }
            Event::LameDuckMode | Event::Draining | Event::Closed => {}
            // The client's own words hold no secrets: they name the kind of error.
            Event::ServerError(error) => tracing::warn!("NATS says: {error}"),
            Event::ClientError(error) => tracing::warn!("the connection to NATS: {error}"),
        }
    }
}

/// The words of an error and of what is below it.
fn reason(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        let more = error.to_string();
        if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        below = error.source();
    }
    words
}

#[async_trait]
impl Bus for NatsBus {
    async fn publish(&self, subject: &Subject, body: Bytes) -> Result<()> {
        check_length(body.len())?;
        self.is_connected()?;
        let limit = self.settings.timeout;
        let sent = self.client.publish(subject.as_str().to_owned(), body);
        tokio::time::timeout(limit, sent)
            .await
            .map_err(|_| BusError::TimedOut(limit))?
            .map_err(|error| refused("publish", &error))?;
        self.shared.published.fetch_add(1, Relaxed);
        Ok(())
    }

    async fn subscribe(&self, pattern: &Pattern, capacity: usize) -> Result<Subscription> {
        self.is_connected()?;
        let limit = self.settings.timeout;
        // From now on, and not from when its task first runs: what is lost in between is told, too.
        let interruptions = self.shared.interruptions.subscribe();
        let subscriber =
            self.client.subscribe(pattern.as_str().to_owned()).await.map_err(|error| refused("subscribe", &error))?;
        // The server works in order: when it has told us something that was said after it was asked to listen, it listens.
        let inbox = self.client.new_inbox();
        let mut echo = self.client.subscribe(inbox.clone()).await.map_err(|error| refused("subscribe", &error))?;
        self.client.publish(inbox, Bytes::new()).await.map_err(|error| refused("subscribe", &error))?;
        tokio::time::timeout(limit, echo.next()).await.map_err(|_| BusError::TimedOut(limit))?;
        let (sender, receiver) = mpsc::channel(capacity.max(1));
        let losses = Arc::new(Losses::default());
        let feed = feed(subscriber, interruptions, sender, Arc::clone(&losses), Arc::clone(&self.shared));
        Ok(Subscription { receiver, losses, feeder: Some(Feeder(tokio::spawn(feed))) })
    }

    async fn queue(&self, spec: &QueueSpec) -> Result<Arc<dyn Queue>> {
        spec.check()?;
        self.is_connected()?;
        let queue =
            queue::NatsQueue::open(self.client.clone(), &self.context, spec, &self.settings, &self.shared).await?;
        Ok(Arc::new(queue))
    }

    fn health(&self) -> Health {
        Health {
            connected: self.is_connected().is_ok(),
            reconnects: self.shared.connects.load(Relaxed).saturating_sub(1),
            lost: self.shared.lost.load(Relaxed),
            redeliveries: self.shared.redeliveries.load(Relaxed),
            published: self.shared.published.load(Relaxed),
        }
    }

    async fn close(&self) {
        self.closed.store(true, Relaxed);
        if tokio::time::timeout(self.settings.timeout, self.client.drain()).await.is_err() {
            tracing::warn!("NATS did not take what was on its way within {:?}", self.settings.timeout);
        }
    }
}

/// Hands a subscription's messages on, and never waits for whoever takes them.
async fn feed(
    mut subscriber: async_nats::Subscriber,
    mut interruptions: watch::Receiver<u64>,
    sender: mpsc::Sender<Heard>,
    losses: Arc<Losses>,
    shared: Arc<Shared>,
) {
    loop {
        let heard = tokio::select! {
            message = subscriber.next() => match message {
                Some(message) => Heard::Message { subject: Subject::received(message.subject.to_string()), body: message.payload },
                None => return,
            },
            changed = interruptions.changed() => match changed {
                Ok(()) => Heard::Interrupted,
                Err(_) => return,
            },
        };
        match sender.try_send(heard) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                losses.add(1);
                shared.lost.fetch_add(1, Relaxed);
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return,
        }
    }
}

fn refused(operation: &str, error: &dyn std::error::Error) -> BusError {
    BusError::Refused { operation: operation.to_owned(), reason: reason(error) }
}
