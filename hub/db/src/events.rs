//! Events: what agents reported, which of it is here, and what is missing.

use crate::basics::words;
use crate::{DbError, EventData, Page, PageRequest, Position, Result, TenantId};
use async_trait::async_trait;
use jiff::Timestamp;
use picket_protocol::event::{Event, EventBody, Priority};
use serde_json::Value;
use std::collections::BTreeSet;
use uuid::Uuid;

/// How many events one call of [`Events::ingest`] takes.
pub const INGEST_MAX_EVENTS: usize = 50_000;
/// How many events one answer of [`Events::events_after`] holds at most.
pub const TAIL_MAX_EVENTS: u32 = 5000;
/// How many bytes of data one answer of [`Events::events_after`] holds, beyond its first event.
pub const TAIL_MAX_BYTES: usize = 8 << 20;
/// How deep the data of an event may be nested.
pub const DATA_MAX_DEPTH: u32 = 64;
/// The longest name of a type.
pub const TYPE_MAX_BYTES: usize = 50;
/// The earliest time that an event may carry: the first second of year 1. PostgreSQL keeps none before 4714 BC
/// ("Date/Time Types" of its manual), and what reads events may know no years before 1.
pub const EVENT_MIN_TIME: Timestamp = Timestamp::constant(-62_135_596_800, 0);
/// For how many events one may stand: far above what any machine counts, and so far below what a database counts to that
/// the sum over a stream stays within it.
pub const EVENT_MAX_WEIGHT: u64 = 1 << 40;

words! {
    /// Which judge an event is for: Sigma's log sources.
    Shard {
        /// Files.
        File = "file",
        /// Connections.
        Network = "network",
        /// Metrics that crossed a threshold.
        Alert = "alert",
        /// Changes of an agent's configuration.
        Config = "config",
        /// Gaps, and whatever a later agent knows.
        Other = "other",
    }
}

impl Shard {
    /// The one for events of this type.
    pub fn of(kind: &str) -> Self {
        Self::from_word(kind).unwrap_or(Self::Other)
    }
}

/// An event that an agent sends.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    /// Its number within the boot, from 1.
    pub seq: u64,
    /// Its type: `file`, `network`, `alert`, `gap`, `config`, or one that only the agent knows.
    pub kind: String,
    /// Its class.
    pub class: Priority,
    /// When it happened, by the agent's clock.
    pub timestamp: Timestamp,
    /// For how many events it stands: `details.fold.count` or 1, and 0 for a gap.
    pub weight: u64,
    /// For a gap: how many events it says are missing; 0 where nobody knows, and for everything else.
    pub gap: u64,
    /// Its `details`.
    pub data: EventData,
}

impl NewEvent {
    /// What is stored of an event of the wire.
    ///
    /// # Errors
    /// [`DbError::Invalid`] when its details are not JSON (a number that is not finite) or longer than an event may be.
    pub fn of(event: &Event) -> Result<Self> {
        let body = serde_json::to_value(&event.body)
            .map_err(|error| DbError::invalid("take an event", format!("its details are not JSON: {error}")))?;
        let data = body.get("details").map(Value::to_string).unwrap_or_default().into();
        let (weight, gap) = match &event.body {
            EventBody::File(file) => (file.fold.as_ref().map_or(1, |fold| fold.count), 0),
            EventBody::Network(network) => (network.fold.as_ref().map_or(1, |fold| fold.count), 0),
            EventBody::Gap(gap) => (0, gap.count.unwrap_or(0)),
            EventBody::Alert(_) | EventBody::Config(_) => (1, 0),
        };
        let new = Self {
            seq: event.id.seq,
            kind: event.body.type_name().to_owned(),
            class: event.class,
            timestamp: event.body.timestamp(),
            weight,
            gap,
            data,
        };
        new.check()?;
        Ok(new)
    }

    /// Whether it can be stored: numbers within what a database counts to, and lengths within their bounds.
    ///
    /// # Errors
    /// [`DbError::Invalid`].
    pub fn check(&self) -> Result<()> {
        let wrong = |why: &str| Err(DbError::invalid("take an event", why));
        let countable = |number: u64| i64::try_from(number).is_ok();
        if self.seq == 0 || !countable(self.seq) {
            return wrong("its sequence number is not between 1 and 2^63 - 1");
        }
        if self.weight > EVENT_MAX_WEIGHT || self.gap > EVENT_MAX_WEIGHT {
            return wrong("it stands for more events than can be counted");
        }
        if self.timestamp < EVENT_MIN_TIME {
            return wrong("it is from before the year 1");
        }
        if self.kind.is_empty() || self.kind.len() > TYPE_MAX_BYTES || self.kind.contains('\0') {
            return wrong("its type is empty or too long");
        }
        self.data.wrong().map_or(Ok(()), wrong)
    }
}

/// Events of one agent and one boot that came together.
#[derive(Debug, Clone, PartialEq)]
pub struct IngestBatch {
    /// Whose.
    pub agent: Uuid,
    /// Of which boot.
    pub boot_id: Uuid,
    /// When they came, by the hub's clock.
    pub received_at: Timestamp,
    /// The agent's books of this boot as it told them with the batch.
    pub ledger: Option<Value>,
    /// The events, in any order.
    pub events: Vec<NewEvent>,
}

/// What became of a batch. Unless it was refused, none of its events need be sent again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IngestOutcome {
    /// Rows that were stored.
    pub records: u64,
    /// For how many events they stand.
    pub stored: u64,
    /// How many missing events the gaps among them told of.
    pub gaps: u64,
    /// Events that were here already.
    pub duplicates: u64,
    /// Events that can never be stored ([`NewEvent::check`]): dropped and counted.
    pub rejected: u64,
    /// There is no such agent, or it is retired: nothing was stored, and its batch must not be acknowledged.
    pub refused: bool,
}

/// An event that is here.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredEvent {
    /// Its id: [`event_id`].
    pub id: Uuid,
    /// Where it is in the order of commits.
    pub position: Position,
    /// Whose it is.
    pub agent: Uuid,
    /// Of which boot.
    pub boot_id: Uuid,
    /// Its number there.
    pub seq: u64,
    /// When it came, by the hub's clock, to the microsecond.
    pub received_at: Timestamp,
    /// When it happened, by the agent's clock, to the microsecond.
    pub timestamp: Timestamp,
    /// Its type.
    pub kind: String,
    /// Its class.
    pub class: Priority,
    /// Its `details`: JSON text, to the byte as it came.
    pub data: String,
}

/// Which events; none of a field means any. Times are the hub's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EventFilter {
    /// Of this agent.
    pub agent: Option<Uuid>,
    /// Of this type.
    pub kind: Option<String>,
    /// Of this class.
    pub class: Option<Priority>,
    /// Received then or later.
    pub since: Option<Timestamp>,
    /// Received before.
    pub until: Option<Timestamp>,
    /// Only those of agents that have one of these tags, for who may see no others.
    pub within: Option<BTreeSet<String>>,
    /// The earliest first, instead of the latest.
    pub oldest_first: bool,
}

/// Events in the order of commits.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tail {
    /// The events.
    pub events: Vec<StoredEvent>,
    /// Where to go on: behind the last of them, and behind those that were passed over.
    pub next: Position,
    /// There was no more when it was read.
    pub at_end: bool,
}

/// The hub's books of one stream: an agent's boot.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamBook {
    /// Whose.
    pub agent: Uuid,
    /// Which boot.
    pub boot_id: Uuid,
    /// What was counted.
    pub totals: Totals,
    /// The highest number that came.
    pub last_seq: u64,
    /// When the first batch came.
    pub first_seen: Timestamp,
    /// When the last one came.
    pub last_seen: Timestamp,
    /// The agent's own books of this boot as it told them last.
    pub ledger: Option<Value>,
}

/// What the hub counted. `stored + gaps` is what the agent says it emitted, less what still waits there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// For how many events the stored rows stand.
    pub stored: u64,
    /// How many events are missing, as gaps told.
    pub gaps: u64,
    /// Rows stored.
    pub records: u64,
    /// Rows that came again.
    pub duplicates: u64,
    /// Rows that could not be stored.
    pub rejected: u64,
}

/// The hub's books of one agent: the sum over its streams.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentBook {
    /// Whose.
    pub agent: Uuid,
    /// How many streams it had.
    pub streams: u64,
    /// What was counted.
    pub totals: Totals,
    /// When the last batch came.
    pub last_seen: Timestamp,
    /// The agent's own books as its last heartbeat told them.
    pub ledger: Option<Value>,
}

/// Numbers from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqRange {
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
}

/// What is kept of events.
#[async_trait]
pub trait Events {
    /// Stores batches of many agents in one transaction; when it returns, they are on the disk. An outcome for each, in
    /// their order. What came before is dropped and counted, also within the call. A batch of an agent that is not known
    /// keeps none of the others from being stored.
    ///
    /// # Errors
    /// [`DbError::Invalid`] for more than [`INGEST_MAX_EVENTS`]; else nothing was stored, and all may be sent again.
    async fn ingest(&self, tenant: TenantId, batches: &[IngestBatch]) -> Result<Vec<IngestOutcome>>;

    /// The event with this id.
    async fn event(&self, tenant: TenantId, id: Uuid) -> Result<Option<StoredEvent>>;

    /// The events with these ids, in their order, without those that are gone; at most [`crate::PAGE_MAX`] ids.
    async fn events_by_id(&self, tenant: TenantId, ids: &[Uuid]) -> Result<Vec<StoredEvent>>;

    /// Events that match, in the order of their ids, which is that of their arrival to the millisecond.
    async fn events(&self, tenant: TenantId, filter: &EventFilter, page: &PageRequest) -> Result<Page<StoredEvent>>;

    /// Events after `position` in the order of commits, of these shards only (none means all): at most `limit` of up to
    /// [`TAIL_MAX_BYTES`]. What is read here will never have anything inserted before it. To that end PostgreSQL shows a row
    /// only when no transaction that writes and began before its own still runs: mostly at once, and never later than
    /// [`crate::Options::statement`] allows one of the hub's to last.
    async fn events_after(&self, tenant: TenantId, position: Position, shards: &[Shard], limit: u32) -> Result<Tail>;

    /// The position behind everything that [`Events::events_after`] could give now: where to begin for what comes from
    /// now on.
    async fn events_horizon(&self, tenant: TenantId) -> Result<Position>;

    /// The books of an agent's streams, the one heard last first.
    async fn stream_books(&self, tenant: TenantId, agent: Uuid, page: &PageRequest) -> Result<Page<StreamBook>>;

    /// The books of one agent; none if nothing ever came of it.
    async fn agent_book(&self, tenant: TenantId, agent: Uuid) -> Result<Option<AgentBook>>;

    /// The books of all agents that something came of, by id.
    async fn agent_books(&self, tenant: TenantId, page: &PageRequest) -> Result<Page<AgentBook>>;

    /// Which numbers of a stream did not come, from 1 up to the highest that did: at most `limit` ranges, the lowest
    /// first.
    async fn missing(&self, tenant: TenantId, agent: Uuid, boot_id: Uuid, limit: u32) -> Result<Vec<SeqRange>>;
}

/// The id of an event: the first 48 bits are when it was received, in milliseconds since 1970 as in version 7 (RFC 9562
/// §5.7); version 8 (§5.8); the rest is of the SHA-256 over tenant, agent, boot and sequence. Ordered by time, the same
/// for the same event at the same time, and it tells in which partition the event is.
pub fn event_id(tenant: TenantId, agent: Uuid, boot_id: Uuid, seq: u64, received_at: Timestamp) -> Uuid {
    use sha2::Digest as _;
    let mut hash = sha2::Sha256::new();
    hash.update(tenant.0.to_be_bytes());
    hash.update(agent.as_bytes());
    hash.update(boot_id.as_bytes());
    hash.update(seq.to_be_bytes());
    let digest = hash.finalize();
    let mut bytes = id_floor(received_at).into_bytes();
    bytes[6..].copy_from_slice(&digest[..10]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// The lowest id that an event received at `time` could have.
pub(crate) fn id_floor(time: Timestamp) -> Uuid {
    // Times before 1970 or after the year 10889 are no hub's.
    let ms = u64::try_from(time.as_millisecond()).unwrap_or(0).min((1 << 48) - 1);
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&ms.to_be_bytes()[2..]);
    Uuid::from_bytes(bytes)
}

/// When the event with this id was received, to the millisecond; none if the id is not of [`event_id`].
pub(crate) fn id_time(id: Uuid) -> Option<Timestamp> {
    let mut ms = [0; 8];
    ms[2..].copy_from_slice(&id.as_bytes()[..6]);
    Timestamp::from_millisecond(i64::from_be_bytes(ms)).ok()
}
