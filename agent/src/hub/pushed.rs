//! Configuration that the hub gives: whether it is to be believed, what of it may be set from there, and how it is kept.
//!
//! It is a layer of its own, over the file and under the environment and the command line: the fleet's word is over what a
//! package or an image brought along, and who stands at the machine has the last one. What decides whom the machine
//! believes and obeys (`uplink`, `update`, secrets of alerting, addresses of its listeners) is not set from there at all.

use super::record::HubRecord;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use jiff::Timestamp;
use picket_protocol::hub::{ConfigDocument, ConfigState, ConfigStatus, Signed, SignedError};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use uuid::Uuid;

/// The longest kept layer, in bytes: a frame with its document and what became of it.
const MAX_BYTES: u64 = 1 << 20;
/// The most lines of errors that are told.
pub(super) const MAX_ERRORS: usize = 32;

/// The keys that a hub may set; one that ends with a dot is a group. A list of what is allowed, not of what is forbidden: a
/// key that a later version adds is the machine's own until somebody puts it here.
pub const HUB_MAY_SET: [&str; 18] = [
    "collect.",
    "collection_interval",
    "data.retention.",
    "data_retention_days",
    "events.file_burst",
    "events.file_rate",
    "events.fold",
    "events.network_burst",
    "events.network_rate",
    "file_monitor.",
    "limits.",
    "log_level",
    "logging.components",
    "logging.level",
    "network_monitor.",
    "outbox.",
    "performance_monitoring.",
    "thresholds",
];

/// Whether a hub may set `key`.
pub fn hub_may_set(key: &str) -> bool {
    let is_of = |entry: &str| {
        let group = entry.trim_end_matches('.');
        let below = key.strip_prefix(group).is_some_and(|rest| rest.starts_with('.'));
        below || (!entry.ends_with('.') && key == group)
    };
    HUB_MAY_SET.iter().any(|entry| is_of(entry))
}

/// What is kept of a configuration of the hub's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// Of which hub's agent it is for: a machine that enrols elsewhere leaves it behind.
    pub agent_id: Uuid,
    /// The sequence of the newest document that was seen, taken or not: none older is ever taken.
    pub sequence: u64,
    /// What is in force of it: dotted keys that a hub may set.
    pub settings: BTreeMap<String, Value>,
    /// What became of the newest document.
    pub status: Option<ConfigStatus>,
}

impl Layer {
    /// Reads the layer at `path`. One that cannot be read is none: the machine's own configuration is then in force.
    pub fn read(path: &Path) -> picket_durable::Result<Option<Self>> {
        let Some(bytes) = picket_durable::read_untrusted(path, MAX_BYTES)? else { return Ok(None) };
        let layer = serde_json::from_slice::<Self>(&bytes).ok();
        Ok(layer.map(|mut layer| {
            layer.settings.retain(|key, _| hub_may_set(key));
            layer
        }))
    }

    /// Keeps the layer at `path` and, readable for the sensor, at `published`.
    ///
    /// # Errors
    /// What the disk says of the first.
    pub fn write(&self, path: &Path, published: &Path) -> picket_durable::Result<()> {
        picket_durable::write_json(path, self, 0o600)?;
        self.publish(published);
        Ok(())
    }

    /// Shows the layer to the sensor, which may not look into the agent's folder.
    pub fn publish(&self, published: &Path) {
        if let Err(error) = picket_durable::write_json(published, self, 0o640) {
            tracing::debug!(%error, "the sensor does not see the hub's configuration");
        }
    }
}

/// The public key in `text` (base64 of 32 bytes), if it is one.
pub(super) fn verifying_key(text: &str) -> Option<VerifyingKey> {
    let bytes: [u8; 32] = STANDARD.decode(text).ok()?.try_into().ok()?;
    VerifyingKey::from_bytes(&bytes).ok()
}

/// The payload of a document that the hub signed for this purpose.
///
/// # Errors
/// The signature is not the hub's, or it is another kind of document.
pub(super) fn believed<'a>(
    signed: &'a Signed,
    record: &HubRecord,
    purpose: &'static str,
) -> Result<&'a str, SignedError> {
    let key = verifying_key(&record.command_key).ok_or(SignedError::Signature)?;
    let signature = STANDARD.decode(&signed.signature).ok().and_then(|bytes| Signature::from_slice(&bytes).ok());
    let signature = signature.ok_or(SignedError::Signature)?;
    let message = Signed::message(&signed.purpose, &signed.payload);
    key.verify_strict(&message, &signature).map_err(|_| SignedError::Signature)?;
    if signed.purpose != purpose {
        let found = signed.purpose.chars().filter(|c| !c.is_control()).take(40).collect();
        return Err(SignedError::Purpose { expected: purpose, found });
    }
    Ok(&signed.payload)
}

/// Reads a configuration that the hub signed for this agent, unless it is another kind of document, another agent's, or
/// older than what was seen.
///
/// # Errors
/// Which of these it is.
pub fn open(signed: &Signed, record: &HubRecord, seen: u64) -> Result<ConfigDocument, SignedError> {
    let payload = believed(signed, record, ConfigDocument::PURPOSE)?;
    let document: ConfigDocument =
        serde_json::from_str(payload).map_err(|error| SignedError::Malformed(error.to_string()))?;
    if document.agent_id != record.agent_id {
        return Err(SignedError::Audience);
    }
    if document.sequence <= seen {
        return Err(SignedError::Older { in_force: seen });
    }
    Ok(document)
}

/// Parts what a hub may set from what it may not; a line for each key that is refused.
pub fn sift(settings: &BTreeMap<String, Value>) -> (BTreeMap<String, Value>, Vec<String>) {
    let (mut taken, mut refused) = (BTreeMap::new(), Vec::new());
    for (key, value) in settings {
        if hub_may_set(key) {
            taken.insert(key.clone(), value.clone());
        } else if refused.len() < MAX_ERRORS {
            let key: String = key.chars().filter(|c| !c.is_control()).take(100).collect();
            refused.push(format!("{key}: a hub may not set this"));
        }
    }
    (taken, refused)
}

/// What came of a document: from what the configuration said to it.
pub fn status(
    document: &ConfigDocument,
    state: ConfigState,
    errors: Vec<String>,
    effective: &Effective,
    at: Timestamp,
) -> ConfigStatus {
    let short = |line: String| line.chars().take(300).collect();
    ConfigStatus {
        version: document.version,
        sequence: document.sequence,
        state,
        effective_sha256: effective.sha256.clone(),
        errors: errors.into_iter().take(MAX_ERRORS).map(short).collect(),
        needs_restart: effective.needs_restart.iter().take(MAX_ERRORS).cloned().collect(),
        at,
    }
}

/// The configuration in force, from all sources.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effective {
    /// The digest of every key and value.
    pub sha256: String,
    /// Keys that take effect at the next start.
    pub needs_restart: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::{Signer as _, SigningKey};
    use proptest::prelude::*;
    use serde_json::json;

    fn hub() -> (SigningKey, HubRecord) {
        let key = SigningKey::from_bytes(&[9; 32]);
        let record = HubRecord {
            hub: "https://hub.example".into(),
            agent_id: Uuid::now_v7(),
            tenant_id: 1,
            name: "web-1".into(),
            pins: Vec::new(),
            command_key: STANDARD.encode(key.verifying_key().as_bytes()),
            enrolled_at: Timestamp::UNIX_EPOCH,
            obtained_at: Timestamp::UNIX_EPOCH,
        };
        (key, record)
    }

    fn document(agent_id: Uuid, sequence: u64) -> ConfigDocument {
        let settings = BTreeMap::from([("log_level".to_owned(), json!("debug"))]);
        ConfigDocument { agent_id, sequence, version: 3, issued_at: Timestamp::UNIX_EPOCH, settings }
    }

    fn sign(key: &SigningKey, purpose: &str, payload: String) -> Signed {
        let signature = STANDARD.encode(key.sign(&Signed::message(purpose, &payload)).to_bytes());
        Signed { purpose: purpose.to_owned(), payload, signature }
    }

    #[test]
    fn a_configuration_is_taken_with_the_hubs_signature_for_this_agent_once_and_never_an_older_one() {
        let (key, record) = hub();
        let text = |document: &ConfigDocument| serde_json::to_string(document).unwrap();
        let good = document(record.agent_id, 5);
        let signed = sign(&key, "config", text(&good));
        assert_eq!(open(&signed, &record, 4), Ok(good.clone()));
        assert_eq!(open(&signed, &record, 5), Err(SignedError::Older { in_force: 5 }), "a replay");
        let foreign = sign(&key, "config", text(&document(Uuid::now_v7(), 5)));
        assert_eq!(open(&foreign, &record, 0), Err(SignedError::Audience));
        let command = sign(&key, "command", text(&good));
        assert!(matches!(open(&command, &record, 0), Err(SignedError::Purpose { .. })));
        let passed_off = Signed { purpose: "config".into(), ..command };
        assert_eq!(open(&passed_off, &record, 0), Err(SignedError::Signature));
        let other = sign(&SigningKey::from_bytes(&[8; 32]), "config", text(&good));
        assert_eq!(open(&other, &record, 0), Err(SignedError::Signature));
        let changed = Signed { payload: signed.payload.replace("debug", "error"), ..signed };
        assert_eq!(open(&changed, &record, 0), Err(SignedError::Signature));
        assert!(matches!(open(&sign(&key, "config", "[]".into()), &record, 0), Err(SignedError::Malformed(_))));
    }

    #[test]
    fn a_hub_sets_what_is_watched_and_never_whom_the_machine_obeys() {
        for allowed in [
            "log_level",
            "file_monitor.paths",
            "thresholds",
            "thresholds.cpu.warning",
            "outbox.max_size",
            "data.retention.events",
        ] {
            assert!(hub_may_set(allowed), "{allowed}");
        }
        for own in [
            "update.auto",
            "update.releases",
            "uplink.via",
            "uplink.proxy",
            "health.listen",
            "metrics.listen",
            "smtp.host",
            "alerting.channels",
            "otlp.endpoint",
            "device_id",
            "log_levels",
            "outboxes.x",
            "thresholds_x",
            "events.sinks",
            "events.file",
            "",
            "file_monitor",
            "data",
            "logging.format",
        ] {
            assert!(!hub_may_set(own), "{own}");
        }
        let settings =
            BTreeMap::from([("log_level".to_owned(), json!("debug")), ("update.auto".to_owned(), json!("all"))]);
        let (taken, refused) = sift(&settings);
        assert_eq!(taken.keys().collect::<Vec<_>>(), ["log_level"]);
        assert_eq!(refused, ["update.auto: a hub may not set this"]);
    }

    #[test]
    fn a_layer_that_somebody_changed_on_disk_sets_nothing_that_a_hub_may_not() {
        let dir = tempfile::tempdir().unwrap();
        let (path, published) = (dir.path().join("layer.json"), dir.path().join("shown.json"));
        assert_eq!(Layer::read(&path).unwrap(), None);
        let settings =
            BTreeMap::from([("log_level".to_owned(), json!("debug")), ("update.auto".to_owned(), json!("all"))]);
        let layer = Layer { agent_id: Uuid::nil(), sequence: 1, settings, status: None };
        layer.write(&path, &published).unwrap();
        for place in [&path, &published] {
            assert_eq!(Layer::read(place).unwrap().unwrap().settings.len(), 1);
        }
        picket_durable::write_atomic(&path, b"{torn", 0o600).unwrap();
        assert_eq!(Layer::read(&path).unwrap(), None);
    }

    proptest! {
        #[test]
        fn no_document_makes_the_reader_panic(purpose in ".{0,20}", payload in ".{0,200}", signature in ".{0,100}") {
            let (key, record) = hub();
            let _ = open(&Signed { purpose: purpose.clone(), payload: payload.clone(), signature }, &record, 0);
            let _ = open(&sign(&key, &purpose, payload.clone()), &record, 0);
            let _ = open(&sign(&key, "config", payload), &record, 0);
        }
    }
}
