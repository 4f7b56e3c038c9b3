//! What a rule can ask of an event: a pure function of the event's JSON.
//!
//! Sigma's taxonomy (<https://github.com/SigmaHQ/sigma-specification>, `appendix/sigma-taxonomy-appendix.md`) names log
//! sources and fields; this table says which of ours are which. All original fields can be asked for by their dotted path
//! as well (`details.meta.mode`, `device_id`).
//!
//! | event | log source | fields |
//! |---|---|---|
//! | file: created | `file_event` | `TargetFilename`, `Image`, `User`, `ProcessId`, `Hashes`, `sha256`, `FileMode`, `FileKind`, `FileSize`, `FileUid`, `Action` |
//! | file: modified | `file_event`, `file_change` | the same |
//! | file: renamed | `file_event`, `file_rename` | the same and `SourceFilename` |
//! | file: attributes | `file_change` | the same |
//! | file: deleted | `file_delete` | the same |
//! | network: opened | `network_connection` | `Initiated`, `Direction`, `Protocol`, `SourceIp`, `SourcePort`, `DestinationIp`, `DestinationPort`, `DestinationHostname`, `Image`, `User`, `ProcessId`, `Action` |
//! | network: closed | product `picket`, service `connection_closed` | the same and `BytesSent`, `BytesReceived` |
//! | alert | product `picket`, service `alert` | `Action`, `AlertLevel`, `Metric`, `Value`, `Threshold`, `Message`, `By` |
//! | config | product `picket`, service `config` | `Cause`, `Changed`, `NeedsRestart`, `sha256` |
//! | gap | product `picket`, service `gap` | `Reason`, `Source`, `Count`, `Detail` |
//! | anything else | product `picket`, service `other` | `Type` |
//!
//! Every event has `AgentId`, the agent's id in the hub, which the agent cannot choose; correlations group by it.
//! `FileMode` is the permission bits in four octal digits (`4755`), because Sigma has no arithmetic on bits. `Initiated` is
//! `true` where this machine began the connection, `false` where the other side did, and absent where nobody knows.

use jiff::Timestamp;
use picket_protocol::event::EVENT_MAX_BYTES;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::found::{Entity, EntityKind, HUB_AGENT, cut};
use crate::shard::Shard;

/// The deepest nesting of an event.
pub const MAX_EVENT_DEPTH: usize = 16;

/// The longest name of an entity in bytes.
const MAX_ENTITY: usize = 1024;

/// The operating system of an agent, as Sigma's `product` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Product {
    /// Linux.
    #[default]
    Linux,
    /// macOS.
    Macos,
    /// Windows.
    Windows,
}

impl Product {
    /// Sigma's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Macos => "macos",
            Self::Windows => "windows",
        }
    }
}

/// What the hub knows of an event besides its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// The event's id in the hub.
    pub id: Uuid,
    /// Whose it is.
    pub agent: Uuid,
    /// When the hub got it, by the hub's clock.
    pub at: Timestamp,
    /// What the agent runs on.
    pub product: Product,
}

/// Why an event cannot be looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// It is too long.
    #[error("the event has {bytes} bytes and may have {EVENT_MAX_BYTES}: it is stored and not judged")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// It is not JSON, or nested too deeply.
    #[error(
        "the event is not a JSON object of at most {MAX_EVENT_DEPTH} levels ({reason}): it is stored and not judged"
    )]
    NotAnObject {
        /// What the parser said.
        reason: String,
    },
}

/// Which log source an event is of; one event may be of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    FileEvent,
    FileChange,
    FileDelete,
    FileRename,
    NetworkConnection,
    ConnectionClosed,
    Alert,
    Config,
    Gap,
    Other,
}

impl Kind {
    pub(crate) const ALL: [Self; 10] = [
        Self::FileEvent,
        Self::FileChange,
        Self::FileDelete,
        Self::FileRename,
        Self::NetworkConnection,
        Self::ConnectionClosed,
        Self::Alert,
        Self::Config,
        Self::Gap,
        Self::Other,
    ];

    /// Sigma's category, for what is the operating system's.
    pub(crate) fn category(self) -> Option<&'static str> {
        match self {
            Self::FileEvent => Some("file_event"),
            Self::FileChange => Some("file_change"),
            Self::FileDelete => Some("file_delete"),
            Self::FileRename => Some("file_rename"),
            Self::NetworkConnection => Some("network_connection"),
            _ => None,
        }
    }

    /// Our own service, for what is of the product `picket`.
    pub(crate) fn service(self) -> Option<&'static str> {
        match self {
            Self::ConnectionClosed => Some("connection_closed"),
            Self::Alert => Some("alert"),
            Self::Config => Some("config"),
            Self::Gap => Some("gap"),
            Self::Other => Some("other"),
            _ => None,
        }
    }

    pub(crate) fn shard(self) -> Shard {
        match self {
            Self::FileEvent | Self::FileChange | Self::FileDelete | Self::FileRename => Shard::File,
            Self::NetworkConnection | Self::ConnectionClosed => Shard::Network,
            Self::Alert => Shard::Alert,
            Self::Config => Shard::Config,
            Self::Gap | Self::Other => Shard::Other,
        }
    }

    /// Sigma's names of the fields that events of this source may have.
    pub(crate) fn fields(self) -> &'static [&'static str] {
        match self {
            Self::FileEvent | Self::FileChange | Self::FileDelete | Self::FileRename => &[
                "TargetFilename",
                "SourceFilename",
                "Image",
                "User",
                "ProcessId",
                "Hashes",
                "sha256",
                "FileMode",
                "FileKind",
                "FileSize",
                "FileUid",
                "Action",
            ],
            Self::NetworkConnection | Self::ConnectionClosed => &[
                "Initiated",
                "Direction",
                "Protocol",
                "SourceIp",
                "SourcePort",
                "DestinationIp",
                "DestinationPort",
                "DestinationHostname",
                "Image",
                "User",
                "ProcessId",
                "Action",
                "BytesSent",
                "BytesReceived",
            ],
            Self::Alert => &["Action", "AlertLevel", "Metric", "Value", "Threshold", "Message", "By"],
            Self::Config => &["Cause", "Changed", "NeedsRestart", "sha256"],
            Self::Gap => &["Reason", "Source", "Count", "Detail"],
            Self::Other => &["Type"],
        }
    }
}

/// An event as rules see it.
#[derive(Debug, Clone, PartialEq)]
pub struct EventView {
    received: Received,
    at: Timestamp,
    weight: u64,
    shard: Shard,
    kinds: &'static [Kind],
    fields: Vec<(&'static str, Value)>,
    raw: Map<String, Value>,
    entity: Entity,
}

impl EventView {
    /// Reads an event's JSON.
    ///
    /// # Errors
    /// It is longer than the wire allows, nested too deeply, or not a JSON object.
    pub fn parse(received: Received, json: &[u8]) -> Result<Self, ViewError> {
        if json.len() > EVENT_MAX_BYTES {
            return Err(ViewError::TooLong { bytes: json.len() });
        }
        let value =
            serde_json::from_slice(json).map_err(|error| ViewError::NotAnObject { reason: error.to_string() })?;
        Self::of(received, value)
    }

    /// Looks at an event that was read already, and was bounded in bytes by whoever did.
    ///
    /// # Errors
    /// It is nested too deeply, or not an object.
    pub fn of(received: Received, event: Value) -> Result<Self, ViewError> {
        if !is_shallow(&event, MAX_EVENT_DEPTH) {
            return Err(ViewError::NotAnObject { reason: "nested too deeply".into() });
        }
        let Value::Object(raw) = event else {
            return Err(ViewError::NotAnObject { reason: "another kind of value".into() });
        };
        let event_type = raw.get("type").and_then(Value::as_str).unwrap_or_default();
        let details = Details(raw.get("details").and_then(Value::as_object));
        let (kinds, mut fields) = translate(event_type, details);
        fields.push(("AgentId", Value::from(received.agent.to_string())));
        let at = details
            .text("timestamp")
            .and_then(|text| text.parse::<Timestamp>().ok())
            .map_or(received.at, |at| at.min(received.at));
        let weight = details
            .object("fold")
            .and_then(|fold| fold.get("count"))
            .and_then(Value::as_u64)
            .map_or(1, |count| count.clamp(1, 1_000_000));
        let entity = entity(kinds, details, &received);
        Ok(Self { received, at, weight, shard: Shard::of_type(event_type), kinds, fields, raw, entity })
    }

    /// The event's id in the hub.
    pub fn id(&self) -> Uuid {
        self.received.id
    }

    /// Whose it is.
    pub fn agent(&self) -> Uuid {
        self.received.agent
    }

    /// When it happened: by the agent's clock, but never after the hub got it, so that a clock that runs ahead cannot push
    /// a correlation's window into the future. The receive time where the event has none.
    pub fn at(&self) -> Timestamp {
        self.at
    }

    /// When the hub got it.
    pub fn received_at(&self) -> Timestamp {
        self.received.at
    }

    /// What the agent runs on.
    pub fn product(&self) -> Product {
        self.received.product
    }

    /// How many identical events it stands for (`details.fold.count`), up to a million.
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// Which shard judges it.
    pub fn shard(&self) -> Shard {
        self.shard
    }

    /// What it is about.
    pub fn entity(&self) -> &Entity {
        &self.entity
    }

    /// A field by Sigma's name, or by its dotted path in the original.
    pub fn field(&self, name: &str) -> Option<&Value> {
        if let Some((_, value)) = self.fields.iter().find(|(known, _)| *known == name) {
            return Some(value);
        }
        if let Some(value) = self.raw.get(name) {
            return Some(value);
        }
        let mut parts = name.split('.');
        let mut value = self.raw.get(parts.next()?)?;
        for part in parts {
            value = value.as_object()?.get(part)?;
        }
        Some(value)
    }

    pub(crate) fn kinds(&self) -> &'static [Kind] {
        self.kinds
    }

    /// Sigma's fields of this event.
    pub(crate) fn sigma_fields(&self) -> &[(&'static str, Value)] {
        &self.fields
    }

    /// The original.
    pub(crate) fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }
}

/// Whether a value is nested no deeper than `levels`.
fn is_shallow(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels > 0 && items.iter().all(|item| is_shallow(item, levels - 1)),
        Value::Object(map) => levels > 0 && map.values().all(|item| is_shallow(item, levels - 1)),
        _ => true,
    }
}

/// The `details` of an event, which may be missing.
#[derive(Clone, Copy)]
struct Details<'a>(Option<&'a Map<String, Value>>);

impl<'a> Details<'a> {
    fn get(self, name: &str) -> Option<&'a Value> {
        self.0?.get(name)
    }

    fn text(self, name: &str) -> Option<&'a str> {
        self.get(name)?.as_str()
    }

    fn object(self, name: &str) -> Option<&'a Map<String, Value>> {
        self.get(name)?.as_object()
    }
}

/// The fields under construction.
struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    fn put(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.push((name, value.into()));
    }

    fn copy(&mut self, name: &'static str, value: Option<&Value>) {
        if let Some(value) = value.filter(|value| !value.is_null()) {
            self.0.push((name, value.clone()));
        }
    }
}

/// Log sources and Sigma fields of an event.
fn translate(event_type: &str, details: Details) -> (&'static [Kind], Vec<(&'static str, Value)>) {
    let mut fields = Fields(Vec::with_capacity(14));
    let kinds = match event_type {
        "file" => file(details, &mut fields),
        "network" => network(details, &mut fields),
        "alert" => {
            for (name, key) in [
                ("Action", "action"),
                ("AlertLevel", "level"),
                ("Metric", "metric"),
                ("Value", "value"),
                ("Threshold", "threshold"),
                ("Message", "message"),
                ("By", "by"),
            ] {
                fields.copy(name, details.get(key));
            }
            &[Kind::Alert][..]
        }
        "config" => {
            for (name, key) in
                [("Cause", "cause"), ("Changed", "changed"), ("NeedsRestart", "needs_restart"), ("sha256", "sha256")]
            {
                fields.copy(name, details.get(key));
            }
            &[Kind::Config]
        }
        "gap" => {
            for (name, key) in [("Reason", "reason"), ("Source", "source"), ("Count", "count"), ("Detail", "detail")] {
                fields.copy(name, details.get(key));
            }
            &[Kind::Gap]
        }
        other => {
            fields.put("Type", other);
            &[Kind::Other]
        }
    };
    (kinds, fields.0)
}

fn file(details: Details, fields: &mut Fields) -> &'static [Kind] {
    fields.copy("TargetFilename", details.get("path"));
    fields.copy("SourceFilename", details.get("path_from"));
    actor(details, None, fields);
    if let Some(digest) = details.text("sha256") {
        fields.put("Hashes", format!("SHA256={}", digest.to_ascii_uppercase()));
        fields.put("sha256", digest);
    }
    if let Some(meta) = details.object("meta") {
        if let Some(mode) = meta.get("mode").and_then(Value::as_u64) {
            fields.put("FileMode", format!("{:04o}", mode & 0o7777));
        }
        fields.copy("FileSize", meta.get("size"));
        fields.copy("FileUid", meta.get("uid"));
    }
    fields.copy("FileKind", details.get("kind"));
    fields.copy("Action", details.get("action"));
    match details.text("action") {
        Some("created") => &[Kind::FileEvent],
        Some("modified") => &[Kind::FileEvent, Kind::FileChange],
        Some("renamed") => &[Kind::FileEvent, Kind::FileRename],
        Some("attributes") => &[Kind::FileChange],
        Some("deleted") => &[Kind::FileDelete],
        _ => &[],
    }
}

fn network(details: Details, fields: &mut Fields) -> &'static [Kind] {
    match details.text("direction") {
        Some("outbound") => fields.put("Initiated", "true"),
        Some("inbound") => fields.put("Initiated", "false"),
        _ => {}
    }
    for (name, key) in [
        ("Direction", "direction"),
        ("Protocol", "protocol"),
        ("SourceIp", "src_ip"),
        ("SourcePort", "src_port"),
        ("DestinationIp", "dst_ip"),
        ("DestinationPort", "dst_port"),
        ("BytesSent", "bytes_sent"),
        ("BytesReceived", "bytes_received"),
        ("Action", "action"),
    ] {
        fields.copy(name, details.get(key));
    }
    // The name is that of the other side, which is the destination only where this machine did not answer.
    if details.text("direction") != Some("inbound") {
        fields.copy("DestinationHostname", details.get("remote_name"));
    }
    actor(details, details.get("uid"), fields);
    match details.text("action") {
        Some("opened") => &[Kind::NetworkConnection],
        Some("closed") => &[Kind::ConnectionClosed],
        _ => &[],
    }
}

/// Who did it. `User` is the name where it is known and the number where it is not.
fn actor(details: Details, owner: Option<&Value>, fields: &mut Fields) {
    let actor = details.object("actor");
    let of = |name: &str| actor.and_then(|actor| actor.get(name)).filter(|value| !value.is_null());
    fields.copy("Image", of("exe"));
    fields.copy("ProcessId", of("pid"));
    if let Some(name) = of("user") {
        fields.copy("User", Some(name));
    } else if let Some(uid) = of("uid").or(owner).and_then(Value::as_u64) {
        fields.put("User", uid.to_string());
    }
}

/// What an event is about.
fn entity(kinds: &[Kind], details: Details, received: &Received) -> Entity {
    let (kind, value) = match kinds.first() {
        Some(kind) if kind.shard() == Shard::File => (EntityKind::File, details.text("path")),
        Some(kind) if kind.shard() == Shard::Network => {
            let remote = if details.text("direction") == Some("inbound") { "src_ip" } else { "dst_ip" };
            (EntityKind::Address, details.text(remote))
        }
        Some(Kind::Alert) => (EntityKind::Metric, details.text("metric")),
        Some(Kind::Other) if received.agent == HUB_AGENT => match details.text("agent_id") {
            Some(agent) => (EntityKind::Agent, Some(agent)),
            None => (EntityKind::Address, details.text("address")),
        },
        _ => (EntityKind::Agent, None),
    };
    match value {
        Some(value) => Entity { kind, value: cut(value, MAX_ENTITY).to_owned() },
        None => Entity { kind: EntityKind::Agent, value: received.agent.to_string() },
    }
}
