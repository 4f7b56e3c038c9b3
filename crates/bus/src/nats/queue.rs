//! A queue of work as a JetStream stream with one durable consumer.

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::{CreateStreamError, GetStreamErrorKind, PublishErrorKind};
use async_nats::jetstream::message::{AckKind, Acker, PublishMessage};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, ErrorCode};
use async_nats::{Client, HeaderMap, connection::State};
use async_trait::async_trait;
use futures_util::StreamExt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::settings::NatsSettings;
use super::{Shared, reason, refused};
use crate::bus::{Delivery, Depth, Enqueued, Item, MAX_MESSAGE, Queue, QueueSpec, Settle, check_item};
use crate::error::{BusError, Result};
use crate::memory::check_length;
use crate::subject::Subject;

/// The header of an item's id: JetStream drops messages by it.
pub const HEADER_ID: &str = "Nats-Msg-Id";
/// The header of the subject to answer at.
pub const HEADER_REPLY: &str = "Picket-Reply";
/// What the names of an item's own headers begin with.
pub(super) const OWN: &str = "Picket-H-";
/// The one consumer of each stream, shared by all replicas.
const CONSUMER: &str = "hub";
/// The most items in all hands together.
const MAX_IN_HAND: i64 = 20_000;

/// A queue of work in JetStream.
#[derive(Debug)]
pub(super) struct NatsQueue {
    client: Client,
    context: jetstream::Context,
    stream: String,
    consumer: PullConsumer,
    spec: QueueSpec,
    timeout: Duration,
    shared: Arc<Shared>,
}

impl NatsQueue {
    /// Makes the stream and its consumer, or brings those that are there up to date.
    pub async fn open(
        client: Client,
        context: &jetstream::Context,
        spec: &QueueSpec,
        settings: &NatsSettings,
        shared: &Arc<Shared>,
    ) -> Result<Self> {
        let name = format!("PICKET_V1_{}", spec.name.to_ascii_uppercase().replace('-', "_"));
        let wanted = stream_config(&name, spec, settings);
        let stream = match context.get_stream(&name).await {
            Ok(stream) => {
                let have = stream.cached_info().config.clone();
                if have.storage != wanted.storage || have.retention != wanted.retention {
                    return Err(BusError::Settings {
                        what: format!("the stream {name} is there and was made by something else"),
                        help: "see whose it is; when nobody's: `nats stream rm`".into(),
                    });
                }
                if differs(&have, &wanted) {
                    // What the server added of its own stays as it is.
                    let changed = Config {
                        subjects: wanted.subjects.clone(),
                        max_bytes: wanted.max_bytes,
                        max_messages: wanted.max_messages,
                        duplicate_window: wanted.duplicate_window,
                        num_replicas: wanted.num_replicas,
                        discard: wanted.discard,
                        max_message_size: wanted.max_message_size,
                        ..have
                    };
                    context
                        .update_stream(changed)
                        .await
                        .map_err(|error| refused(&format!("update the stream {name}"), &error))?;
                }
                stream
            }
            Err(error) if not_found(&error.kind()) => {
                context.create_stream(wanted).await.map_err(|error| cannot_create(&name, &error))?
            }
            Err(error) => return Err(refused(&format!("look at the stream {name}"), &error)),
        };
        let consumer = stream
            .create_consumer(consumer_config(spec))
            .await
            .map_err(|error| refused(&format!("make the consumer of the stream {name}"), &error))?;
        Ok(Self {
            client,
            context: context.clone(),
            stream: name,
            consumer,
            spec: spec.clone(),
            timeout: settings.timeout,
            shared: Arc::clone(shared),
        })
    }

    fn is_connected(&self) -> Result<()> {
        if self.client.connection_state() == State::Connected { Ok(()) } else { Err(BusError::Disconnected) }
    }

    fn deliver(&self, message: jetstream::Message) -> Option<Delivery> {
        let deliveries = message.info().ok().and_then(|info| u64::try_from(info.delivered).ok())?;
        self.shared.redeliveries.fetch_add(u64::from(deliveries > 1), Relaxed);
        let (message, acker) = message.split();
        let header =
            |name: &str| message.headers.as_ref().and_then(|headers| headers.get(name)).map(ToString::to_string);
        let headers = message.headers.as_ref().map(own_headers).unwrap_or_default();
        let item = Item {
            id: header(HEADER_ID).unwrap_or_default(),
            subject: Subject::received(message.subject.to_string()),
            reply: header(HEADER_REPLY),
            headers,
            body: message.payload,
        };
        Some(Delivery {
            item,
            deliveries,
            settle: Box::new(Hand { acker, client: self.client.clone(), timeout: self.timeout }),
        })
    }
}

fn stream_config(name: &str, spec: &QueueSpec, settings: &NatsSettings) -> Config {
    Config {
        name: name.to_owned(),
        subjects: spec.subjects.iter().map(ToString::to_string).collect(),
        retention: RetentionPolicy::WorkQueue,
        storage: StorageType::File,
        // A full queue refuses what is new: what was acknowledged is never given up.
        discard: DiscardPolicy::New,
        max_messages: i64::try_from(spec.max_items).unwrap_or(i64::MAX),
        max_bytes: i64::try_from(spec.max_bytes).unwrap_or(i64::MAX),
        max_message_size: i32::try_from(MAX_MESSAGE).unwrap_or(i32::MAX),
        duplicate_window: spec.dedupe_window,
        num_replicas: settings.replicas,
        description: Some("Work of Picket's hub. Made and kept up to date by it.".into()),
        ..Config::default()
    }
}

fn consumer_config(spec: &QueueSpec) -> pull::Config {
    pull::Config {
        durable_name: Some(CONSUMER.into()),
        ack_policy: AckPolicy::Explicit,
        ack_wait: spec.lease,
        deliver_policy: DeliverPolicy::All,
        // For ever: who pulls sees how often, and decides.
        max_deliver: -1,
        max_ack_pending: MAX_IN_HAND,
        ..pull::Config::default()
    }
}

fn differs(have: &Config, wanted: &Config) -> bool {
    (&have.subjects, have.max_bytes, have.max_messages, have.duplicate_window, have.num_replicas, have.discard)
        != (
            &wanted.subjects,
            wanted.max_bytes,
            wanted.max_messages,
            wanted.duplicate_window,
            wanted.num_replicas,
            wanted.discard,
        )
        || have.max_message_size != wanted.max_message_size
}

fn not_found(kind: &GetStreamErrorKind) -> bool {
    matches!(kind, GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

fn cannot_create(name: &str, error: &CreateStreamError) -> BusError {
    BusError::Settings {
        what: format!("the stream {name} cannot be made: {}", reason(error)),
        help: "see bus.copies, the servers' limits of JetStream, and what this user may do".into(),
    }
}

fn own_headers(headers: &HeaderMap) -> Vec<(String, String)> {
    let mut own: Vec<(String, String)> = headers
        .iter()
        .filter_map(|(name, values)| {
            let name = name.to_string();
            Some((name.strip_prefix(OWN)?.to_owned(), values.first()?.to_string()))
        })
        .collect();
    own.sort();
    own
}

fn bytes_of(item: &Item) -> usize {
    let headers: usize = item.headers.iter().map(|(name, value)| name.len() + value.len() + OWN.len() + 4).sum();
    item.body.len() + headers + item.id.len() + item.reply.as_ref().map_or(0, String::len) + 64
}

#[async_trait]
impl Queue for NatsQueue {
    async fn enqueue(&self, item: Item) -> Result<Enqueued> {
        check_item(&item, &self.spec)?;
        let bytes = bytes_of(&item);
        check_length(bytes)?;
        self.is_connected()?;
        let mut headers = HeaderMap::new();
        if let Some(reply) = &item.reply {
            headers.insert(HEADER_REPLY, reply.as_str());
        }
        for (name, value) in &item.headers {
            headers.insert(format!("{OWN}{name}").as_str(), value.as_str());
        }
        let message = PublishMessage::build().headers(headers).message_id(&item.id).payload(item.body);
        let work = async {
            let sent = self.context.send_publish(item.subject.as_str().to_owned(), message).await?;
            sent.await
        };
        let acknowledged =
            tokio::time::timeout(self.timeout, work).await.map_err(|_| BusError::TimedOut(self.timeout))?;
        match acknowledged {
            Ok(acknowledged) => {
                self.shared.published.fetch_add(1, Relaxed);
                Ok(if acknowledged.duplicate { Enqueued::Duplicate } else { Enqueued::New })
            }
            Err(error) => Err(match error.kind() {
                PublishErrorKind::TimedOut => BusError::TimedOut(self.timeout),
                PublishErrorKind::BrokenPipe => BusError::Disconnected,
                PublishErrorKind::MaxPayloadExceeded => BusError::TooLong { bytes, limit: self.client.max_payload() },
                _ if reason(&error).contains("maximum") => BusError::Full { queue: self.spec.name.clone() },
                _ => refused(&format!("enqueue into {}", self.spec.name), &error),
            }),
        }
    }

    async fn pull(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>> {
        self.is_connected()?;
        let mut taken = self.fetch(max).await?;
        if taken.is_empty() && !wait.is_zero() && max > 0 {
            let mut batch = self
                .consumer
                .batch()
                .max_messages(1)
                .expires(wait)
                .messages()
                .await
                .map_err(|error| refused("pull", &error))?;
            // The server ends the wait; the steady clock here ends it when the server is gone.
            while let Ok(Some(message)) = tokio::time::timeout(wait + self.timeout, batch.next()).await {
                match message {
                    Ok(message) => taken.extend(self.deliver(message)),
                    Err(error) => return self.pull_failed(&*error),
                }
            }
            if !taken.is_empty() && max > 1 {
                taken.extend(self.fetch(max - 1).await?);
            }
        }
        Ok(taken)
    }

    async fn depth(&self) -> Result<Depth> {
        self.is_connected()?;
        let stream =
            self.context.get_stream(&self.stream).await.map_err(|error| refused("look at a stream", &error))?;
        let consumer: PullConsumer =
            stream.get_consumer(CONSUMER).await.map_err(|error| refused("look at a consumer", &*error))?;
        let info = consumer.cached_info();
        Ok(Depth {
            waiting: info.num_pending,
            in_hand: info.num_ack_pending as u64,
            redelivered: info.num_redelivered as u64,
            bytes: stream.cached_info().state.bytes,
        })
    }
}

impl NatsQueue {
    /// What is there now.
    async fn fetch(&self, max: usize) -> Result<Vec<Delivery>> {
        if max == 0 {
            return Ok(Vec::new());
        }
        let mut messages =
            self.consumer.fetch().max_messages(max).messages().await.map_err(|error| refused("pull", &error))?;
        let mut taken = Vec::new();
        while let Ok(Some(message)) = tokio::time::timeout(self.timeout, messages.next()).await {
            match message {
                Ok(message) => taken.extend(self.deliver(message)),
                // What came before is in hand and must be handed on.
                Err(_) if !taken.is_empty() => break,
                Err(error) => return self.pull_failed(&*error),
            }
        }
        Ok(taken)
    }

    fn pull_failed(&self, error: &(dyn std::error::Error + Send + Sync)) -> Result<Vec<Delivery>> {
        self.is_connected()?;
        Err(refused("pull", error))
    }
}

/// A delivery in hand.
struct Hand {
    acker: Acker,
    client: Client,
    timeout: Duration,
}

impl std::fmt::Debug for Hand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hand")
    }
}

impl Hand {
    /// Says it, and waits until the server has confirmed it.
    async fn say(&self, kind: AckKind) -> Result<()> {
        if self.client.connection_state() != State::Connected {
            return Err(BusError::Disconnected);
        }
        match tokio::time::timeout(self.timeout, self.acker.double_ack_with(kind)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(BusError::TimedOut(self.timeout)),
        }
    }
}

#[async_trait]
impl Settle for Hand {
    async fn ack(&self) -> Result<()> {
        self.say(AckKind::Ack).await
    }

    async fn nak(&self, delay: Duration) -> Result<()> {
        self.say(AckKind::Nak(Some(delay))).await
    }

    async fn in_progress(&self) -> Result<()> {
        self.say(AckKind::Progress).await
    }
}
