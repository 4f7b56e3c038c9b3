//! What a machine reports: file and network events, alerts and gaps, in one versioned form.
//!
//! The wire form is a JSON object with `device_id`, `type` and `details`, the details carrying a `timestamp` in RFC 3339
//! UTC. `schema`, `boot_id`, `seq` and `class` stand beside them: they identify the event ([`EventId`]) and say what is
//! given up first when there is no room. [`schema()`] is its JSON schema, published as
//! `docs/reference/event.schema.json`.
//!
//! ```json
//! {
//!   "schema": 1,
//!   "device_id": "agent-123",
//!   "boot_id": "01938b7e-0000-7000-8000-000000000000",
//!   "seq": 17,
//!   "class": "normal",
//!   "type": "network",
//!   "details": { "timestamp": "2026-11-21T12:34:56Z", "action": "opened", "src_ip": "1.1.1.1", "dst_port": 22 }
//! }
//! ```

mod gap;
mod schema;

pub use gap::{GapEvent, GapReason};
pub use schema::schema;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use uuid::Uuid;

/// The number of this form. A reader refuses a higher one and keeps the bytes for a later version.
pub const EVENT_SCHEMA: u32 = 1;

/// The longest event in bytes of JSON: two paths of `PATH_MAX` (4096 bytes) escaped six-fold, and room for the rest.
pub const EVENT_MAX_BYTES: usize = 64 << 10;

/// One event as it leaves the machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// [`EVENT_SCHEMA`] of the writer.
    pub schema: u32,
    /// Who reports: `device_id` of the configuration, or the agent's id.
    pub device_id: String,
    /// Which event of this device this is.
    #[serde(flatten)]
    pub id: EventId,
    /// What is given up first when there is no room.
    pub class: Priority,
    /// What happened.
    #[serde(flatten)]
    pub body: EventBody,
}

/// The identity of an event on its device: at least once on the wire, told apart by this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EventId {
    /// A new id for each boot of the machine and for each new outbox, so that (boot, sequence) is never given twice.
    pub boot_id: Uuid,
    /// Counts from 1 within the boot.
    pub seq: u64,
}

/// What is given up first when there is no room: `low` before `normal` before `high`. Gaps are never given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Routine telemetry: samples.
    Low,
    /// File and network events.
    Normal,
    /// Alerts, results of jobs, changes of the configuration.
    High,
}

impl Priority {
    /// All classes, the first to go first.
    pub const ALL: [Self; 3] = [Self::Low, Self::Normal, Self::High];

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

/// What happened, by type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "details", rename_all = "snake_case")]
pub enum EventBody {
    /// Something happened to a file.
    File(FileEvent),
    /// A connection came or went.
    Network(NetworkEvent),
    /// A metric crossed a threshold, or came back.
    Alert(AlertEvent),
    /// Events are missing here, and why.
    Gap(GapEvent),
    /// The configuration in force changed.
    Config(ConfigEvent),
}

impl EventBody {
    /// The word on the wire.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::File(_) => "file",
            Self::Network(_) => "network",
            Self::Alert(_) => "alert",
            Self::Gap(_) => "gap",
            Self::Config(_) => "config",
        }
    }

    /// When it happened.
    pub fn timestamp(&self) -> jiff::Timestamp {
        match self {
            Self::File(event) => event.timestamp,
            Self::Network(event) => event.timestamp,
            Self::Alert(event) => event.timestamp,
            Self::Gap(event) => event.timestamp,
            Self::Config(event) => event.timestamp,
        }
    }

    /// The class it travels in.
    pub fn class(&self) -> Priority {
        match self {
            Self::File(_) | Self::Network(_) => Priority::Normal,
            Self::Alert(_) | Self::Gap(_) | Self::Config(_) => Priority::High,
        }
    }
}

/// Where watchers put what they see. It never blocks and never fails: whoever stands behind it has a bounded queue and
/// accounts for what does not fit.
pub type Sink = std::sync::Arc<dyn Fn(EventBody) + Send + Sync>;

/// How many identical events one stands for, where it stands for more than itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fold {
    /// How many there were, this one included.
    pub count: u64,
    /// When the first was.
    pub first: jiff::Timestamp,
    /// When the last was.
    pub last: jiff::Timestamp,
}

/// How much an event can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confidence {
    /// The kernel said so, at that time.
    Observed,
    /// Concluded from a difference between two looks: it happened between them, and steps in between may be missing.
    Inferred,
}

/// Something happened to a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileEvent {
    /// When (RFC 3339, UTC).
    pub timestamp: jiff::Timestamp,
    /// What.
    pub action: FileAction,
    /// Which file. A name that is not UTF-8 is shown with U+FFFD here and kept whole in `path_base64`.
    pub path: String,
    /// The name's bytes in base64 (RFC 4648 §4), where it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_base64: Option<String>,
    /// What it was called before, for [`FileAction::Renamed`]; absent when it came from a place that is not watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_from: Option<String>,
    /// What kind of file.
    pub kind: FileKind,
    /// Size, owner, mode and inode after the event; absent when it is gone already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<FileMeta>,
    /// SHA-256 of the content in hexadecimal digits, for files within the size limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Who did it, where the kernel tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    /// How it was seen.
    pub method: FileMethod,
    /// How much that can be relied on.
    pub confidence: Confidence,
    /// What it stands for, where that is more than one event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fold: Option<Fold>,
}

/// What happened to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileAction {
    /// It is there and was not before.
    Created,
    /// Its content changed; told once the writer closed it or paused.
    Modified,
    /// It is gone.
    Deleted,
    /// It has another name.
    Renamed,
    /// Its mode, owner or times changed.
    Attributes,
}

/// What kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A socket, a pipe, a device.
    Other,
    /// It was gone before anybody could look.
    Unknown,
}

/// What the file system says of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMeta {
    /// Size in bytes.
    pub size: u64,
    /// Type and permission bits (`st_mode`).
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The inode.
    pub inode: u64,
    /// When its content changed last.
    pub modified: jiff::Timestamp,
}

/// How a file event was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileMethod {
    /// fanotify marks on the file system (Linux, privileged).
    Fanotify,
    /// inotify watches on each folder (Linux).
    Inotify,
    /// The platform's own notifications (macOS `FSEvents`, Windows).
    Native,
    /// The difference between the baseline and what is there.
    Rescan,
}

/// A process that did something.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Actor {
    /// Its process id.
    pub pid: u32,
    /// Its executable, while it could still be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// Its user id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its user's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// A connection came or went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkEvent {
    /// When (RFC 3339, UTC).
    pub timestamp: jiff::Timestamp,
    /// Opened or closed.
    pub action: NetworkAction,
    /// Who began it. `src_*` is the side that did; this machine where it is not known.
    pub direction: Direction,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The address it comes from.
    pub src_ip: IpAddr,
    /// The port it comes from.
    pub src_port: u16,
    /// The address it goes to.
    pub dst_ip: IpAddr,
    /// The port it goes to.
    pub dst_port: u16,
    /// The name of the other side's address, where it was asked for and known in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_name: Option<String>,
    /// Whose socket on this machine it is, where the kernel tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<Actor>,
    /// The user id that owns the socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Bytes that the other side acknowledged, where the kernel counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_sent: Option<u64>,
    /// Bytes received, where the kernel counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_received: Option<u64>,
    /// How it was seen.
    pub method: NetworkMethod,
    /// How much that can be relied on.
    pub confidence: Confidence,
    /// What it stands for, where that is more than one event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fold: Option<Fold>,
}

/// What happened to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkAction {
    /// It is there.
    Opened,
    /// It is gone.
    Closed,
}

/// Who began a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The other side.
    Inbound,
    /// This machine.
    Outbound,
    /// Not known.
    Unknown,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// How a network event was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMethod {
    /// The kernel told that a socket was destroyed (netlink `sock_diag`, multicast).
    SockDestroy,
    /// The difference between two dumps of netlink `sock_diag`.
    SockDiag,
    /// The difference between two readings of `/proc/net`.
    ProcPoll,
    /// The platform's table of connections.
    Table,
}

/// A metric crossed a threshold, or came back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AlertEvent {
    /// When (RFC 3339, UTC).
    pub timestamp: jiff::Timestamp,
    /// Which alert, for all of its life.
    pub alert_id: Uuid,
    /// Raised, raised further, acknowledged, cleared.
    pub action: AlertAction,
    /// How bad it is.
    pub level: AlertLevel,
    /// The metric's name, for example `cpu_usage`.
    pub metric: String,
    /// The sample's labels: which disk, which interface.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// The value that decided.
    pub value: f64,
    /// The threshold it crossed.
    pub threshold: f64,
    /// The whole in words.
    pub message: String,
    /// Who acknowledged it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// What they had to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// The life of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertAction {
    /// It began, or went from warning to critical.
    Raised,
    /// It went from critical back to warning.
    Lowered,
    /// Somebody has seen it.
    Acknowledged,
    /// It is over.
    Cleared,
}

/// How bad an alert is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertLevel {
    /// Somebody should look.
    Warning,
    /// Somebody should look now.
    Critical,
}

/// The configuration in force changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConfigEvent {
    /// When (RFC 3339, UTC).
    pub timestamp: jiff::Timestamp,
    /// The SHA-256 of the configuration in force, in hexadecimal digits.
    pub sha256: String,
    /// What made it take effect: `start`, `file`, `signal`, `restore`.
    pub cause: String,
    /// The keys whose values changed.
    pub changed: Vec<String>,
    /// Those of them that need a restart to take effect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs_restart: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_form_is_the_one_that_was_asked_for() {
        let event = Event {
            schema: EVENT_SCHEMA,
            device_id: "agent-123".into(),
            id: EventId { boot_id: Uuid::nil(), seq: 17 },
            class: Priority::Normal,
            body: EventBody::Network(NetworkEvent {
                timestamp: "2025-09-13T12:34:56Z".parse().unwrap(),
                action: NetworkAction::Opened,
                direction: Direction::Inbound,
                protocol: Protocol::Tcp,
                src_ip: "1.1.1.1".parse().unwrap(),
                src_port: 40_000,
                dst_ip: "10.0.0.1".parse().unwrap(),
                dst_port: 22,
                remote_name: None,
                actor: None,
                uid: None,
                bytes_sent: None,
                bytes_received: None,
                method: NetworkMethod::SockDiag,
                confidence: Confidence::Inferred,
                fold: None,
            }),
        };
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(json["device_id"], "agent-123");
        assert_eq!(json["type"], "network");
        assert_eq!(json["seq"], 17);
        assert_eq!(json["details"]["src_ip"], "1.1.1.1");
        assert_eq!(json["details"]["dst_port"], 22);
        assert_eq!(json["details"]["timestamp"], "2025-09-13T12:34:56Z");
        assert_eq!(serde_json::from_value::<Event>(json).unwrap(), event);
    }
}
