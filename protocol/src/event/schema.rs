//! The JSON schema (draft 2020-12) of an event, for whoever takes events and is not Picket.
//!
//! The words of each choice are written by the very code that writes events, and a choice that misses one does not
//! compile. That fields and their presence agree with the types, `protocol/tests/event_schema.rs` tests. Objects are
//! open: a later version may add fields, and who reads ignores those it does not know.

use super::{
    AlertAction, AlertLevel, Confidence, Direction, EVENT_SCHEMA, FileAction, FileKind, FileMethod, GapReason,
    NetworkAction, NetworkMethod, Priority, Protocol,
};
use serde_json::{Map, Value, json};

/// The words of a choice. The match lets the compiler refuse a list that misses one.
macro_rules! words {
    ($type:ident: $($variant:ident),+ $(,)?) => {{
        let _all = |value: $type| match value { $( $type::$variant => (), )+ };
        json!({ "enum": [$( $type::$variant ),+] })
    }};
}

/// The schema of [`super::Event`].
pub fn schema() -> Value {
    let bodies = ["file", "network", "alert", "gap", "config"].map(
        |name| json!({ "properties": { "type": { "const": name }, "details": { "$ref": format!("#/$defs/{name}") } } }),
    );
    let mut event = object(
        "One event as it leaves the machine. It comes at least once; boot_id and seq tell one from another.",
        &[
            ("schema", json!({ "const": EVENT_SCHEMA }), "The number of this form."),
            ("device_id", text(), "Who reports."),
            ("boot_id", uuid(), "New for each boot of the machine and each new queue."),
            ("seq", at_least(1), "Counts from 1 within the boot."),
            ("class", words!(Priority: Low, Normal, High), "What is given up first when there is no room."),
            ("type", json!({ "type": "string" }), "What kind of event this is."),
            ("details", json!({ "type": "object" }), "What happened."),
        ],
        &[],
    );
    event["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    event["title"] = "Picket event".into();
    event["oneOf"] = bodies.as_slice().into();
    event["$defs"] = json!({
        "timestamp": timestamp(),
        "actor": actor(),
        "fold": fold(),
        "file_meta": file_meta(),
        "file": file(),
        "network": network(),
        "alert": alert(),
        "gap": gap(),
        "config": config(),
    });
    event
}

type Field = (&'static str, Value, &'static str);

/// An object with fields that are always there and fields that may be absent.
fn object(about: &str, always: &[Field], at_times: &[Field]) -> Value {
    let described = |(name, schema, about): &Field| {
        let mut schema = schema.clone();
        schema["description"] = (*about).into();
        ((*name).to_owned(), schema)
    };
    let properties: Map<String, Value> = always.iter().chain(at_times).map(described).collect();
    let required: Vec<&str> = always.iter().map(|(name, ..)| *name).collect();
    json!({ "description": about, "type": "object", "properties": properties, "required": required })
}

fn text() -> Value {
    json!({ "type": "string" })
}

fn at_least(least: u64) -> Value {
    json!({ "type": "integer", "minimum": least })
}

fn between(least: u64, most: u64) -> Value {
    json!({ "type": "integer", "minimum": least, "maximum": most })
}

/// A `u32`.
fn number() -> Value {
    between(0, u64::from(u32::MAX))
}

fn texts() -> Value {
    json!({ "type": "array", "items": { "type": "string" } })
}

fn uuid() -> Value {
    json!({ "type": "string", "format": "uuid" })
}

fn sha256() -> Value {
    json!({ "type": "string", "pattern": "^[0-9a-f]{64}$" })
}

fn address() -> Value {
    json!({ "type": "string", "anyOf": [{ "format": "ipv4" }, { "format": "ipv6" }] })
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/$defs/{name}") })
}

/// RFC 3339 in UTC, to the nanosecond at most.
fn timestamp() -> Value {
    let pattern = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?Z$";
    json!({ "description": "A time (RFC 3339, UTC).", "type": "string", "format": "date-time", "pattern": pattern })
}

fn confidence() -> Value {
    words!(Confidence: Observed, Inferred)
}

const OBSERVED: &str = "observed: the kernel said so at that time; inferred: concluded from two looks.";

fn actor() -> Value {
    object(
        "A process that did something.",
        &[("pid", number(), "Its process id.")],
        &[
            ("exe", text(), "Its executable, while it could still be asked."),
            ("uid", number(), "Its user id."),
            ("user", text(), "Its user's name."),
        ],
    )
}

fn fold() -> Value {
    object(
        "How many identical events one stands for.",
        &[
            ("count", at_least(0), "How many there were, this one included."),
            ("first", reference("timestamp"), "When the first was."),
            ("last", reference("timestamp"), "When the last was."),
        ],
        &[],
    )
}

fn file_meta() -> Value {
    object(
        "What the file system says of a file.",
        &[
            ("size", at_least(0), "Size in bytes."),
            ("mode", number(), "Type and permission bits (st_mode)."),
            ("uid", number(), "The owner."),
            ("gid", number(), "The group."),
            ("inode", at_least(0), "The inode."),
            ("modified", reference("timestamp"), "When its content changed last."),
        ],
        &[],
    )
}

fn file() -> Value {
    object(
        "Something happened to a file.",
        &[
            ("timestamp", reference("timestamp"), "When."),
            ("action", words!(FileAction: Created, Modified, Deleted, Renamed, Attributes), "What."),
            ("path", text(), "Which file; bytes that are not UTF-8 are shown as U+FFFD."),
            ("kind", words!(FileKind: File, Directory, Symlink, Other, Unknown), "What kind of file."),
            ("method", words!(FileMethod: Fanotify, Inotify, Native, Rescan), "How it was seen."),
            ("confidence", confidence(), OBSERVED),
        ],
        &[
            (
                "path_base64",
                json!({ "type": "string", "contentEncoding": "base64" }),
                "The name's bytes, if not UTF-8.",
            ),
            ("path_from", text(), "What it was called before, if renamed."),
            ("meta", reference("file_meta"), "The file after the event."),
            ("sha256", sha256(), "SHA-256 of the content."),
            ("actor", reference("actor"), "Who did it, where the kernel tells."),
            ("fold", reference("fold"), "What it stands for, where that is more than one event."),
        ],
    )
}

fn network() -> Value {
    let port = || between(0, u64::from(u16::MAX));
    object(
        "A connection came or went.",
        &[
            ("timestamp", reference("timestamp"), "When."),
            ("action", words!(NetworkAction: Opened, Closed), "What."),
            ("direction", words!(Direction: Inbound, Outbound, Unknown), "Who began it."),
            ("protocol", words!(Protocol: Tcp, Udp), "The transport protocol."),
            ("src_ip", address(), "The address it comes from."),
            ("src_port", port(), "The port it comes from."),
            ("dst_ip", address(), "The address it goes to."),
            ("dst_port", port(), "The port it goes to."),
            ("method", words!(NetworkMethod: SockDestroy, SockDiag, ProcPoll, Table), "How it was seen."),
            ("confidence", confidence(), OBSERVED),
        ],
        &[
            ("remote_name", text(), "The name of the other side's address."),
            ("actor", reference("actor"), "Whose socket on this machine it is."),
            ("uid", number(), "The user id that owns the socket."),
            ("bytes_sent", at_least(0), "Bytes that the other side acknowledged."),
            ("bytes_received", at_least(0), "Bytes received."),
            ("fold", reference("fold"), "What it stands for, where that is more than one event."),
        ],
    )
}

fn alert() -> Value {
    let tags = json!({ "type": "object", "additionalProperties": { "type": "string" } });
    object(
        "A metric crossed a threshold, or came back.",
        &[
            ("timestamp", reference("timestamp"), "When."),
            ("alert_id", uuid(), "Which alert, for all of its life."),
            ("action", words!(AlertAction: Raised, Lowered, Acknowledged, Cleared), "What."),
            ("level", words!(AlertLevel: Warning, Critical), "How bad it is."),
            ("metric", text(), "The metric's name."),
            ("value", json!({ "type": "number" }), "The value that decided."),
            ("threshold", json!({ "type": "number" }), "The threshold it crossed."),
            ("message", text(), "The whole in words."),
        ],
        &[
            ("tags", tags, "Which of several: which disk, which interface."),
            ("by", text(), "Who acknowledged it."),
            ("note", text(), "What they had to say."),
        ],
    )
}

fn gap() -> Value {
    let reasons = words!(
        GapReason: KernelOverflow, QueueFull, RateLimit, QuotaBytes, QuotaAge, DiskFull, Corruption, Format, Shed,
        ProcessLost, Unwatched, Unknown
    );
    object(
        "Events are missing here, and why.",
        &[
            ("timestamp", reference("timestamp"), "When it was noticed."),
            ("reason", reasons, "Why they are missing."),
            ("source", text(), "Where: files, network, outbox, sensor."),
            ("detail", text(), "The whole in words, and what was done about it."),
        ],
        &[
            ("count", at_least(0), "How many are missing; absent where nobody can know."),
            ("since", reference("timestamp"), "From when on, where that is known."),
        ],
    )
}

fn config() -> Value {
    object(
        "The configuration in force changed.",
        &[
            ("timestamp", reference("timestamp"), "When."),
            ("sha256", sha256(), "SHA-256 of the configuration in force."),
            ("cause", text(), "What made it take effect: start, file, signal or restore."),
            ("changed", texts(), "The keys whose values changed."),
        ],
        &[("needs_restart", texts(), "Those of them that take effect at the next start only.")],
    )
}
