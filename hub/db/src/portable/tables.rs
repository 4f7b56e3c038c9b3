//! Every table that is carried from one database to another, in an order in which a row never comes before one that it
//! refers to. A test compares the list with the schema of both databases.
//!
//! Left out: `leases` (of processes that end with the database), `sessions` (who signed out stays out) and `idempotency`
//! (answers of a day, which may hold secrets).

use Kind::{Bool, Bytes, Change, Event, Int, Json, Small, Text, Time, Uuid};

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `bigint`.
    Int,
    /// `integer`.
    Small,
    Bool,
    Text,
    Bytes,
    Uuid,
    Time,
    Json,
    /// A place in the order of events, whose transaction is in the column that is named.
    Event(&'static str),
    /// A place in the order of changes of findings, likewise.
    Change(&'static str),
}

impl Kind {
    /// The column beside it that holds the transaction of a place.
    pub(crate) fn transaction(self) -> Option<&'static str> {
        match self {
            Event(column) | Change(column) => Some(column),
            _ => None,
        }
    }
}

/// A table.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) columns: &'static [(&'static str, Kind)],
    /// What it is read in the order of.
    pub(crate) key: &'static [&'static str],
}

const fn table(name: &'static str, columns: &'static [(&'static str, Kind)], key: &'static [&'static str]) -> Table {
    Table { name, columns, key }
}

/// The table of that name.
pub(crate) fn find(name: &str) -> Option<&'static Table> {
    TABLES.iter().find(|table| table.name == name)
}

/// All of them. Events come first: what refers to a place among them comes when all places are known.
#[rustfmt::skip]
pub(crate) const TABLES: &[Table] = &[
    table("tenants", &[("tenant_id", Small), ("name", Text), ("created_at", Time)], &["tenant_id"]),
    table("events", &[("tenant_id", Small), ("id", Uuid), ("agent_id", Uuid), ("boot_id", Uuid), ("seq", Int), ("received_at", Time), ("timestamp", Time), ("type", Text), ("class", Text), ("shard", Text), ("data", Json), ("position", Event("xid"))], &["tenant_id", "xid", "position"]),
    table("counters", &[("tenant_id", Small), ("name", Text), ("value", Int)], &["tenant_id", "name"]),
    table("settings", &[("tenant_id", Small), ("key", Text), ("value", Bytes), ("revision", Int), ("updated_at", Time)], &["tenant_id", "key"]),
    table("agents", &[("tenant_id", Small), ("id", Uuid), ("name", Text), ("type", Text), ("status", Text), ("tags", Json), ("config", Json), ("revision", Int), ("created_at", Time), ("updated_at", Time), ("retired_at", Time), ("last_seen", Time), ("version", Text), ("config_hash", Text), ("address", Text), ("certificate_expires_at", Time), ("first_boot_id", Uuid), ("boot_id", Uuid), ("key_hash", Bytes), ("health", Json), ("ledger", Json), ("update_state", Json)], &["tenant_id", "id"]),
    table("agent_tags", &[("tenant_id", Small), ("tag", Text), ("agent_id", Uuid)], &["tenant_id", "tag", "agent_id"]),
    table("agent_boots", &[("tenant_id", Small), ("agent_id", Uuid), ("boot_id", Uuid), ("first_seen", Time), ("last_began", Time), ("times", Int), ("address", Text), ("key_hash", Bytes)], &["tenant_id", "agent_id", "boot_id"]),
    table("certificates", &[("tenant_id", Small), ("serial", Text), ("agent_id", Uuid), ("key_hash", Bytes), ("issuer", Text), ("pem", Text), ("not_before", Time), ("not_after", Time), ("issued_at", Time), ("superseded_at", Time), ("revoked_at", Time), ("revoked_reason", Text), ("revoked_by", Text)], &["tenant_id", "serial"]),
    table("enrol_tokens", &[("tenant_id", Small), ("id", Uuid), ("secret_hash", Bytes), ("label", Text), ("tags", Json), ("max_uses", Int), ("uses", Int), ("needs_approval", Bool), ("allowed", Json), ("created_at", Time), ("created_by", Text), ("expires_at", Time), ("revoked_at", Time)], &["tenant_id", "id"]),
    table("enrolments", &[("tenant_id", Small), ("id", Uuid), ("token_id", Uuid), ("state", Text), ("agent_id", Uuid), ("key_hash", Bytes), ("name", Text), ("type", Text), ("address", Text), ("csr", Text), ("serial", Text), ("asked_at", Time), ("answered_at", Time), ("decided_at", Time), ("decided_by", Text)], &["tenant_id", "id"]),
    table("users", &[("tenant_id", Small), ("id", Uuid), ("name", Text), ("display_name", Text), ("password", Text), ("must_change", Bool), ("status", Text), ("revision", Int), ("created_at", Time), ("updated_at", Time), ("last_login", Time)], &["tenant_id", "id"]),
    table("api_tokens", &[("tenant_id", Small), ("id", Uuid), ("hash", Bytes), ("name", Text), ("principal", Text), ("created_at", Time), ("created_by", Text), ("expires_at", Time), ("last_used", Time), ("revoked_at", Time)], &["tenant_id", "id"]),
    table("permissions", &[("tenant_id", Small), ("principal", Text), ("action", Text), ("tag", Text), ("granted_at", Time), ("granted_by", Text)], &["tenant_id", "principal", "action", "tag"]),
    table("signing_keys", &[("tenant_id", Small), ("kid", Text), ("purpose", Text), ("public", Bytes), ("sealed", Bytes), ("created_at", Time), ("retires_at", Time)], &["tenant_id", "kid"]),
    table("streams", &[("tenant_id", Small), ("agent_id", Uuid), ("boot_id", Uuid), ("stored", Int), ("gaps", Int), ("records", Int), ("duplicates", Int), ("rejected", Int), ("last_seq", Int), ("first_seen", Time), ("last_seen", Time), ("ledger", Json)], &["tenant_id", "agent_id", "boot_id"]),
    table("stream_ranges", &[("tenant_id", Small), ("agent_id", Uuid), ("boot_id", Uuid), ("first", Int), ("last", Int)], &["tenant_id", "agent_id", "boot_id", "first"]),
    table("progress", &[("tenant_id", Small), ("name", Text), ("position", Event("xid")), ("state", Bytes), ("updated_at", Time)], &["tenant_id", "name"]),
    table("rules", &[("tenant_id", Small), ("id", Text), ("version", Int), ("title", Text), ("level", Text), ("logsource", Text), ("source", Text), ("origin", Text), ("enabled", Bool), ("deleted", Bool), ("revision", Int), ("created_at", Time), ("updated_at", Time), ("updated_by", Text)], &["tenant_id", "id"]),
    table("rule_versions", &[("tenant_id", Small), ("rule_id", Text), ("version", Int), ("source", Text), ("created_at", Time), ("created_by", Text)], &["tenant_id", "rule_id", "version"]),
    table("findings", &[("tenant_id", Small), ("id", Uuid), ("event_id", Uuid), ("timestamp", Time), ("severity", Text), ("description", Text), ("details", Json), ("rule_id", Text), ("rule_version", Int), ("dedupe_key", Text), ("title", Text), ("entity_kind", Text), ("entity_value", Text), ("agent_id", Uuid), ("state", Text), ("suppressed_until", Time), ("assignee", Text), ("last_seen", Time), ("event_count", Int), ("kept", Int), ("counted_position", Event("counted_xid")), ("revision", Int), ("created_at", Time), ("updated_at", Time), ("changed_position", Change("changed_xid"))], &["tenant_id", "id"]),
    table("finding_events", &[("tenant_id", Small), ("finding_id", Uuid), ("event_id", Uuid), ("position", Event("xid"))], &["tenant_id", "finding_id", "event_id"]),
    table("finding_history", &[("tenant_id", Small), ("finding_id", Uuid), ("number", Int), ("at", Time), ("by", Text), ("action", Text), ("old", Text), ("new", Text)], &["tenant_id", "finding_id", "number"]),
    table("cases", &[("tenant_id", Small), ("id", Uuid), ("number", Int), ("title", Text), ("description", Text), ("state", Text), ("severity", Text), ("assignee", Text), ("revision", Int), ("created_at", Time), ("created_by", Text), ("updated_at", Time), ("closed_at", Time)], &["tenant_id", "id"]),
    table("case_findings", &[("tenant_id", Small), ("case_id", Uuid), ("finding_id", Uuid)], &["tenant_id", "case_id", "finding_id"]),
    table("case_history", &[("tenant_id", Small), ("case_id", Uuid), ("number", Int), ("at", Time), ("by", Text), ("action", Text), ("old", Text), ("new", Text)], &["tenant_id", "case_id", "number"]),
    table("deliveries", &[("tenant_id", Small), ("id", Uuid), ("target", Text), ("payload", Json), ("due", Time), ("state", Text), ("attempts", Int), ("holder", Text), ("held_until", Time), ("last_error", Text), ("created_at", Time)], &["tenant_id", "id"]),
    table("audit", &[("tenant_id", Small), ("seq", Int), ("at", Time), ("actor", Text), ("action", Text), ("object", Text), ("record", Text), ("previous", Bytes), ("hash", Bytes)], &["tenant_id", "seq"]),
    table("blocks", &[("tenant_id", Small), ("kind", Text), ("value", Text), ("until", Time), ("reason", Text), ("created_at", Time), ("created_by", Text)], &["tenant_id", "kind", "value"]),
    table("configs", &[("tenant_id", Small), ("version", Int), ("document", Json), ("sha256", Text), ("comment", Text), ("created_at", Time), ("created_by", Text)], &["tenant_id", "version"]),
    table("config_targets", &[("tenant_id", Small), ("kind", Text), ("value", Text), ("version", Int), ("priority", Int), ("updated_at", Time), ("updated_by", Text)], &["tenant_id", "kind", "value"]),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_table_and_column_of_the_schema_is_carried_or_left_out_on_purpose() {
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("../../migrations/sqlite/V1__what_the_hub_keeps.sql")).unwrap();
        let sql = "SELECT m.name, c.name FROM sqlite_schema m, pragma_table_info(m.name) c \
            WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite%'";
        let mut statement = connection.prepare(sql).unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        let mut schema: BTreeSet<(String, String)> = rows.map(Result::unwrap).collect();
        for left_out in ["leases", "sessions", "idempotency"] {
            let before = schema.len();
            schema.retain(|(table, _)| table != left_out);
            assert!(schema.len() < before, "{left_out}");
        }
        let mut carried = BTreeSet::new();
        for table in TABLES {
            for (name, kind) in table.columns {
                carried.insert((table.name.to_owned(), (*name).to_owned()));
                // SQLite makes an event's by itself, and pragma_table_info does not tell of it.
                let transaction = kind.transaction().filter(|_| table.name != "events");
                carried.extend(transaction.map(|column| (table.name.to_owned(), column.to_owned())));
            }
        }
        assert_eq!(carried, schema);
    }
}
