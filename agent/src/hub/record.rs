//! Who this machine is to its hub: the set of files of one generation, read and checked as a whole.

use jiff::Timestamp;
use picket_pki::{
    AgentIdentity, Certificate, PkiError, PrivateKey, SpkiPin, certificates_from_pem, certificates_to_pem,
};
use picket_transport::hub::{ClientIdentity, HubTrust};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;
use zeroize::Zeroizing;

/// The certificate with those behind it.
pub const CHAIN_FILE: &str = "client.crt";
/// Its key.
pub const KEY_FILE: &str = "client.key";
/// The roots in force.
pub const ROOTS_FILE: &str = "ca-bundle.crt";
/// Everything else.
pub const RECORD_FILE: &str = "hub.json";
/// The longest of these files, in bytes.
const MAX_BYTES: u64 = 256 << 10;

/// What stands in `hub.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubRecord {
    /// Where the hub hears agents.
    pub hub: String,
    /// Who the machine is there.
    pub agent_id: Uuid,
    /// To which tenant it belongs.
    pub tenant_id: i32,
    /// Under which name it is shown there.
    pub name: String,
    /// By which keys the hub is known: of its roots in force.
    pub pins: Vec<SpkiPin>,
    /// The key with which the hub signs what it tells an agent to do (Ed25519, 32 bytes in base64).
    pub command_key: String,
    /// When the machine enrolled.
    pub enrolled_at: Timestamp,
    /// When this certificate came.
    pub obtained_at: Timestamp,
}

/// A set that is to be installed.
#[derive(Debug)]
pub struct NewSet {
    /// What is noted of the hub.
    pub record: HubRecord,
    /// The certificate and those behind it.
    pub chain: Vec<Certificate>,
    /// Its key.
    pub key: PrivateKey,
    /// The roots in force.
    pub roots: Vec<Certificate>,
}

/// A file of a set: its name, its bytes, its mode.
pub(super) type SetFile = (&'static str, Zeroizing<Vec<u8>>, u32);

/// An identity that was read and fits together.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Which generation of files it is.
    pub generation: u64,
    /// What is noted of the hub.
    pub record: HubRecord,
    /// Certificate and key.
    pub client: Arc<ClientIdentity>,
    /// The roots in force.
    pub roots: Vec<Certificate>,
}

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] picket_durable::Error),
    /// A file is not what it should be.
    #[error("{}: {reason}; `picket cert rollback` brings back the one before, or enrol anew with `picket enroll --force`", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Another process changes it at this moment.
    #[error("another process of Picket changes the identity at this moment; try again")]
    Busy,
    /// There is none.
    #[error("this machine is not enrolled")]
    NotEnrolled,
    /// There is nothing to go back to.
    #[error("there is no earlier certificate to go back to: {0}")]
    NoPrevious(String),
}

impl NewSet {
    /// The files of the set with their modes, the key's before its certificate.
    ///
    /// # Errors
    /// When the record cannot be written as JSON.
    pub(super) fn files(&self) -> Result<Vec<SetFile>, serde_json::Error> {
        let mut record = serde_json::to_vec_pretty(&self.record)?;
        record.push(b'\n');
        Ok(vec![
            (ROOTS_FILE, Zeroizing::new(certificates_to_pem(&self.roots).into_bytes()), 0o644),
            (KEY_FILE, Zeroizing::new(self.key.to_pem().as_bytes().to_vec()), 0o600),
            (CHAIN_FILE, Zeroizing::new(certificates_to_pem(&self.chain).into_bytes()), 0o644),
            (RECORD_FILE, Zeroizing::new(record), 0o600),
        ])
    }
}

impl Identity {
    /// Reads the set in `folder`.
    ///
    /// # Errors
    /// [`IdentityError::Damaged`] names the file that does not fit.
    pub(super) fn read(folder: &Path, generation: u64) -> Result<Self, IdentityError> {
        let at = |name: &str| folder.join(name);
        let damaged = |name: &str, reason: String| IdentityError::Damaged { path: at(name), reason };
        let pki = |name: &'static str| move |error: PkiError| damaged(name, error.to_string());
        let text = |name: &str| picket_durable::read_text(&at(name), MAX_BYTES).map_err(IdentityError::from);
        let record: HubRecord =
            serde_json::from_str(&text(RECORD_FILE)?).map_err(|error| damaged(RECORD_FILE, error.to_string()))?;
        let roots = certificates_from_pem(&text(ROOTS_FILE)?).map_err(pki(ROOTS_FILE))?;
        let chain = certificates_from_pem(&text(CHAIN_FILE)?).map_err(pki(CHAIN_FILE))?;
        let key = Zeroizing::new(text(KEY_FILE)?);
        let key = PrivateKey::from_pem(&key).map_err(pki(KEY_FILE))?;
        let client = ClientIdentity::new(chain, key).map_err(pki(KEY_FILE))?;
        let identity = Self { generation, record, client: Arc::new(client), roots };
        if identity.leaf().agent != Some(identity.name()) {
            let reason = format!("it is for another agent than {}", identity.record.agent_id);
            return Err(damaged(CHAIN_FILE, reason));
        }
        Ok(identity)
    }

    /// The machine's own certificate.
    pub fn leaf(&self) -> &Certificate {
        self.client.leaf()
    }

    /// Who the machine is.
    pub fn name(&self) -> AgentIdentity {
        AgentIdentity { tenant: self.record.tenant_id, agent: self.record.agent_id }
    }

    /// Whom it believes and what it shows.
    pub fn trust(&self) -> HubTrust {
        HubTrust { roots: self.roots.clone(), identity: Some(Arc::clone(&self.client)) }
    }
}
