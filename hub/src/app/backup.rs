//! What makes a backup this hub's, and what must outlive the restore of one.

use crate::authority::Keys;
use crate::state::Hub;
use ed25519_dalek::{Signature, VerifyingKey};
use picket_hub_db::{BackupHeader, RevocationRecord, Verified, taken_back};
use picket_protocol::hub::Signed;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What the signature under a backup is bound to.
const PURPOSE: &str = "backup";

/// What is signed.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Word {
    /// The SHA-256 of everything in the backup, in hexadecimal digits.
    sha256: String,
    /// When it was taken.
    created_at: jiff::Timestamp,
}

impl Word {
    fn of(digest: [u8; 32], header: &BackupHeader) -> Self {
        Self { sha256: picket_pki::SpkiPin::from_bytes(digest).to_hex(), created_at: header.created_at }
    }
}

/// The hub's word for a backup.
pub fn sign(keys: &Keys, digest: [u8; 32], header: &BackupHeader) -> String {
    // Strings: nothing of it can fail.
    let text = serde_json::to_string(&Word::of(digest, header)).unwrap_or_default();
    serde_json::to_string(&keys.sign(PURPOSE, text)).unwrap_or_default()
}

/// Whether the hub of these keys gave its word for a backup.
pub fn is_ours(keys: &Keys, verified: &Verified) -> bool {
    let Ok(signed) = serde_json::from_str::<Signed>(&verified.signature) else { return false };
    let Ok(word) = serde_json::from_str::<Word>(&signed.payload) else { return false };
    let key = crate::decode(&keys.command_key()).and_then(|key| <[u8; 32]>::try_from(key).ok());
    let key = key.and_then(|key| VerifyingKey::from_bytes(&key).ok());
    let signature = crate::decode(&signed.signature).and_then(|bytes| Signature::from_slice(&bytes).ok());
    let message = Signed::message(PURPOSE, &signed.payload);
    word == Word::of(verified.digest, &verified.header)
        && key.zip(signature).is_some_and(|(key, signature)| key.verify_strict(&message, &signature).is_ok())
}

impl Hub {
    /// Writes down beside the keys what is about to be taken back. Where that folder cannot be written to (replicas have it
    /// read-only), the database alone knows, and the log says so: what is to be revoked is revoked in any case.
    pub(crate) fn note_taken_back(&self, by: &str, action: &str, object: &str, details: &Value) {
        let Some(what) = taken_back(action, object, details) else { return };
        let record = RevocationRecord { tenant: self.tenant.0, at: self.clock.now(), by: by.to_owned(), what };
        if let Err(error) = self.keys().revocations.add(&record) {
            tracing::warn!(%error, action, object, "the record of revocations cannot be written: a restore cannot know of it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_hub_db::RevokedWhat;
    use serde_json::json;
    use uuid::Uuid;

    #[test]
    fn whatever_takes_something_back_is_written_down_and_nothing_else_is() {
        let id = Uuid::from_u128(7);
        let user = format!("user:{id}");
        let back = |action: &str, object: &str, details: Value| taken_back(action, object, &details);
        assert_eq!(back("agents.retire", &id.to_string(), json!({})), Some(RevokedWhat::Agent { id }));
        assert_eq!(back("api_tokens.revoke", &id.to_string(), json!({})), Some(RevokedWhat::ApiToken { id }));
        assert_eq!(back("users.status", &user, json!({"status": "disabled"})), Some(RevokedWhat::User { id }));
        assert_eq!(back("users.status", &user, json!({"status": "active"})), None);
        assert_eq!(back("users.delete", &user, json!({})), Some(RevokedWhat::User { id }));
        assert_eq!(back("users.password", &user, json!({})), Some(RevokedWhat::Password { user: id }));
        let grant = RevokedWhat::Grant { principal: user.clone(), action: "*".into(), tag: Some("web".into()) };
        assert_eq!(back("permissions.revoke", &user, json!({"action": "*", "tag": "web"})), Some(grant));
        for action in ["permissions.grant", "agents.create", "agents.purge", "auth.login"] {
            assert_eq!(back(action, &user, json!({"action": "*"})), None, "{action}");
        }
    }
}
