//! An enrolment that is under way: the key that was made for it, without the token.
//!
//! An answer may be lost, a person may have to say yes first, and somebody may press Ctrl-C. Whoever comes again with the
//! same token goes on with the same key, so that the hub gives the same answer and makes no second agent.

use super::record::{IdentityError, KEY_FILE};
use super::store::CertStore;
use jiff::Timestamp;
use picket_durable::Lock;
use picket_pki::{EnrolmentToken, PrivateKey};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use uuid::Uuid;
use zeroize::Zeroizing;

/// For which token the key is. The token's secret is not kept.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    token_id: Uuid,
    hub: String,
    since: Timestamp,
}

impl CertStore {
    fn pending_dir(&self) -> PathBuf {
        self.dir().join("pending")
    }

    /// The key for an enrolment with `token`: the one that was made for it before, or a new one that is kept now. Says
    /// whether it is an earlier one.
    ///
    /// # Errors
    /// When no key can be made or kept.
    pub fn pending_key(
        &self,
        _lock: &Lock,
        token: &EnrolmentToken,
        now: Timestamp,
    ) -> Result<(PrivateKey, bool), IdentityError> {
        let dir = self.pending_dir();
        let (key_file, request_file) = (dir.join(KEY_FILE), dir.join("request.json"));
        let earlier = || {
            let request = picket_durable::read_untrusted(&request_file, 16 << 10).ok()??;
            let request: Request = serde_json::from_slice(&request).ok()?;
            let key = picket_durable::read_untrusted(&key_file, 16 << 10).ok()??;
            let key = Zeroizing::new(String::from_utf8(key).ok()?);
            let key = PrivateKey::from_pem(&key).ok()?;
            (request.token_id == token.id && request.hub == token.hub).then_some(key)
        };
        if let Some(key) = earlier() {
            return Ok((key, true));
        }
        let damaged =
            |error: picket_pki::PkiError| IdentityError::Damaged { path: key_file.clone(), reason: error.to_string() };
        let key = PrivateKey::generate().map_err(damaged)?;
        picket_durable::create_dir(&dir, 0o700)?;
        // The request last: without it, a key is nobody's.
        picket_durable::remove_if_present(&request_file)?;
        picket_durable::write_atomic(&key_file, key.to_pem().as_bytes(), 0o600)?;
        let request = Request { token_id: token.id, hub: token.hub.clone(), since: now };
        picket_durable::write_json(&request_file, &request, 0o600)?;
        Ok((key, false))
    }

    /// The enrolment is done.
    ///
    /// # Errors
    /// What the disk says.
    pub fn end_pending(&self, _lock: &Lock) -> Result<(), IdentityError> {
        picket_durable::remove_tree(&self.pending_dir())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_pki::SpkiPin;

    #[test]
    fn a_second_run_with_the_same_token_goes_on_with_the_same_key_and_another_token_gets_another() {
        let dir = tempfile::tempdir().unwrap();
        let store = CertStore::new(dir.path().join("certs"));
        let lock = store.lock().unwrap();
        let token = |id| EnrolmentToken::generate("https://hub.example", id, &[SpkiPin::of_spki(b"x")]).unwrap();
        let (one, two) = (token(Uuid::now_v7()), token(Uuid::now_v7()));
        let now = Timestamp::now();
        let (first, earlier) = store.pending_key(&lock, &one, now).unwrap();
        assert!(!earlier);
        let (again, earlier) = store.pending_key(&lock, &one, now).unwrap();
        assert_eq!((again.pin(), earlier), (first.pin(), true));
        let (other, earlier) = store.pending_key(&lock, &two, now).unwrap();
        assert!(other.pin() != first.pin() && !earlier);
        let request = picket_durable::read_text(&store.pending_dir().join("request.json"), 1 << 20).unwrap();
        assert!(!request.contains(two.secret().as_str()));
        store.end_pending(&lock).unwrap();
        assert!(!store.pending_dir().exists());
    }
}
