//! TUF metadata as the vendor writes it (specification v1.0.33, §4).

use crate::error::ReleaseError;
use crate::key::{PublicKey, SecretKey};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sigstore_tuf::canonical_json::to_canonical_bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The specification version that the metadata is written for.
const SPEC_VERSION: &str = "1.0.33";
/// The largest metadata file that is read back, in bytes.
const MAX_BYTES: u64 = 8 << 20;
/// The root's field for minisign public keys.
pub(crate) const MINISIGN_FIELD: &str = "x-picket-minisign";

/// A TUF role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Which keys count.
    Root,
    /// Which files exist.
    Targets,
    /// Which metadata belongs together.
    Snapshot,
    /// What is newest.
    Timestamp,
}

impl Role {
    /// The role's name in metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Targets => "targets",
            Self::Snapshot => "snapshot",
            Self::Timestamp => "timestamp",
        }
    }
}

/// A signed document: the envelope of every TUF role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Envelope {
    /// The payload.
    pub(crate) signed: Value,
    /// Signatures over its canonical form.
    pub(crate) signatures: Vec<Signature>,
}

/// One signature.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Signature {
    /// The key's id.
    pub(crate) keyid: String,
    /// In hex.
    pub(crate) sig: String,
}

/// The keys and threshold of a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RoleKeys {
    pub(crate) ids: BTreeSet<String>,
    pub(crate) keys: BTreeMap<String, PublicKey>,
    pub(crate) threshold: usize,
}

impl Envelope {
    /// An unsigned document.
    pub(crate) fn new(signed: Value) -> Self {
        Self { signed, signatures: Vec::new() }
    }

    /// Reads a document.
    pub(crate) fn load(path: &Path) -> Result<Self, ReleaseError> {
        let bytes = picket_durable::read_bounded(path, MAX_BYTES)?;
        serde_json::from_slice(&bytes).map_err(|e| ReleaseError::bad_file(path, format!("it is no TUF metadata ({e})")))
    }

    /// The document's bytes: the same document always gives the same ones.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// The bytes that signatures cover.
    pub(crate) fn canonical(&self) -> Result<Vec<u8>, ReleaseError> {
        to_canonical_bytes(&self.signed)
            .map_err(|e| ReleaseError::Release(format!("the metadata cannot be signed: {e}")))
    }

    /// Adds `key`'s signature, replacing an older one of the same key.
    pub(crate) fn sign(&mut self, key: &SecretKey) -> Result<(), ReleaseError> {
        let signature = Signature { keyid: key.public().id(), sig: key.sign(&self.canonical()?) };
        self.add(signature);
        Ok(())
    }

    /// Adds a signature, replacing an older one of the same key.
    pub(crate) fn add(&mut self, signature: Signature) {
        self.signatures.retain(|existing| existing.keyid != signature.keyid);
        self.signatures.push(signature);
        self.signatures.sort();
    }

    /// The ids of `keys` that have signed just this document: a signature that does not hold counts for nothing.
    pub(crate) fn signed_by(&self, keys: &RoleKeys) -> BTreeSet<String> {
        let Ok(message) = self.canonical() else { return BTreeSet::new() };
        let holds = |signature: &&Signature| {
            keys.keys.get(&signature.keyid).is_some_and(|key| key.verifies(&message, &signature.sig))
        };
        self.signatures.iter().filter(holds).map(|signature| signature.keyid.clone()).collect()
    }

    pub(crate) fn version(&self) -> u64 {
        self.signed["version"].as_u64().unwrap_or(0)
    }

    pub(crate) fn role(&self) -> Option<Role> {
        match self.signed["_type"].as_str()? {
            "root" => Some(Role::Root),
            "targets" => Some(Role::Targets),
            "snapshot" => Some(Role::Snapshot),
            "timestamp" => Some(Role::Timestamp),
            _ => None,
        }
    }

    pub(crate) fn expires(&self) -> Option<jiff::Timestamp> {
        self.signed["expires"].as_str()?.parse().ok()
    }

    /// For a root: the keys of a role.
    pub(crate) fn role_keys(&self, role: Role) -> RoleKeys {
        let entry = &self.signed["roles"][role.as_str()];
        let ids = entry["keyids"].as_array().into_iter().flatten().filter_map(|id| id.as_str().map(str::to_owned));
        let ids: BTreeSet<String> = ids.collect();
        let key = |id: &String| Some((id.clone(), PublicKey::from_tuf(&self.signed["keys"][id])?));
        let keys = ids.iter().filter_map(key).collect();
        let threshold = entry["threshold"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
        RoleKeys { ids, keys, threshold }
    }

    /// For a root: the minisign public keys.
    pub(crate) fn minisign_keys(&self) -> Vec<String> {
        let keys = self.signed[MINISIGN_FIELD].as_array().into_iter().flatten();
        keys.filter_map(|key| key.as_str().map(str::to_owned)).collect()
    }
}

fn common(role: Role, version: u64, expires: jiff::Timestamp) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("_type".into(), role.as_str().into());
    map.insert("spec_version".into(), SPEC_VERSION.into());
    map.insert("version".into(), version.into());
    map.insert("expires".into(), to_the_second(expires).to_string().into());
    map
}

/// TUF times have no fractions (§4.2.1).
pub(crate) fn to_the_second(at: jiff::Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// A root's payload.
pub(crate) fn root(
    version: u64,
    expires: jiff::Timestamp,
    keys: &BTreeMap<Role, (Vec<PublicKey>, usize)>,
    minisign: &[String],
) -> Value {
    let mut map = common(Role::Root, version, expires);
    let all: BTreeMap<String, Value> =
        keys.values().flat_map(|(keys, _)| keys).map(|key| (key.id(), key.to_tuf())).collect();
    let roles: BTreeMap<&str, Value> = keys
        .iter()
        .map(|(role, (keys, threshold))| {
            let ids: BTreeSet<String> = keys.iter().map(PublicKey::id).collect();
            (role.as_str(), json!({ "keyids": ids, "threshold": threshold }))
        })
        .collect();
    map.insert("consistent_snapshot".into(), true.into());
    map.insert("keys".into(), json!(all));
    map.insert("roles".into(), json!(roles));
    map.insert(MINISIGN_FIELD.into(), json!(minisign));
    Value::Object(map)
}

/// The targets' payload.
pub(crate) fn targets(version: u64, expires: jiff::Timestamp, targets: &BTreeMap<String, Value>) -> Value {
    let mut map = common(Role::Targets, version, expires);
    map.insert("targets".into(), json!(targets));
    Value::Object(map)
}

/// The snapshot's payload.
pub(crate) fn snapshot(version: u64, expires: jiff::Timestamp, targets_version: u64) -> Value {
    let mut map = common(Role::Snapshot, version, expires);
    map.insert("meta".into(), json!({ "targets.json": { "version": targets_version } }));
    Value::Object(map)
}

/// The timestamp's payload: pins the snapshot by length and hash as well.
pub(crate) fn timestamp(version: u64, expires: jiff::Timestamp, snapshot: &Envelope) -> Value {
    let bytes = snapshot.to_bytes();
    let mut map = common(Role::Timestamp, version, expires);
    let pin = json!({ "version": snapshot.version(), "length": bytes.len(), "hashes": { "sha256": sha256(&bytes) } });
    map.insert("meta".into(), json!({ "snapshot.json": pin }));
    Value::Object(map)
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    crate::key::hex(&Sha256::digest(bytes))
}
