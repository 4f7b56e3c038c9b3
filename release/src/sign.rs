//! Signing what waits for signatures: in the repository, or on another machine that has only the document and a key.

use crate::error::ReleaseError;
use crate::key::SecretKey;
use crate::metadata::{Envelope, Role, RoleKeys, Signature};
use crate::repository::Repository;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A document that can be signed, as a person should see it before signing.
#[derive(Debug, Clone)]
pub struct Document {
    envelope: Envelope,
}

/// A signature apart from its document, to be carried between machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detached {
    /// The role of the document it is for.
    pub role: Role,
    /// The document's version.
    pub version: u64,
    /// The key's id.
    pub keyid: String,
    /// In hex.
    pub sig: String,
}

/// How far a document is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Signed {
    /// The document's role.
    pub role: Role,
    /// Its version.
    pub version: u64,
    /// How many of the signatures it needs are there.
    pub have: usize,
    /// How many it needs.
    pub need: usize,
}

impl Signed {
    /// Whether it can be published.
    pub fn is_complete(&self) -> bool {
        self.have >= self.need
    }
}

impl Document {
    /// Reads the document at `path`.
    pub fn load(path: &Path) -> Result<Self, ReleaseError> {
        let envelope = Envelope::load(path)?;
        match envelope.role() {
            Some(Role::Root | Role::Targets) => Ok(Self { envelope }),
            _ => Err(ReleaseError::bad_file(path, "only root and targets documents are signed by hand")),
        }
    }

    /// What it says, line by line, for the person who is about to sign it.
    pub fn describe(&self) -> Vec<String> {
        let signed = &self.envelope.signed;
        let role = self.role().as_str();
        let expires = self.envelope.expires().map_or_else(|| "never".to_owned(), |at| at.to_string());
        let mut lines = vec![format!("{role} version {}, valid until {expires}", self.envelope.version())];
        if self.role() == Role::Root {
            for role in [Role::Root, Role::Targets, Role::Snapshot, Role::Timestamp] {
                let keys = self.envelope.role_keys(role);
                let ids: Vec<&str> = keys.ids.iter().map(|id| short(id)).collect();
                lines.push(format!(
                    "{}: {} of {} keys: {}",
                    role.as_str(),
                    keys.threshold,
                    keys.ids.len(),
                    ids.join(", ")
                ));
            }
            lines.push(format!("minisign: {}", self.envelope.minisign_keys().join(", ")));
        } else {
            let targets = signed["targets"].as_object().into_iter().flatten();
            lines.extend(targets.map(|(path, target)| {
                format!(
                    "{path}: {} bytes, SHA-256 {}",
                    target["length"],
                    target["hashes"]["sha256"].as_str().unwrap_or("?")
                )
            }));
        }
        lines
    }

    /// Its role: root or targets.
    pub fn role(&self) -> Role {
        self.envelope.role().unwrap_or(Role::Root)
    }

    /// Signs it, apart.
    pub fn sign(&self, key: &SecretKey) -> Result<Detached, ReleaseError> {
        let sig = key.sign(&self.envelope.canonical()?);
        Ok(Detached { role: self.role(), version: self.envelope.version(), keyid: key.public().id(), sig })
    }
}

impl Repository {
    /// Signs every staged document that `key` may sign, and says how far each is.
    ///
    /// # Errors
    /// When there is none.
    pub fn sign_staged(&self, key: &SecretKey) -> Result<Vec<Signed>, ReleaseError> {
        let id = key.public().id();
        let mut signed = Vec::new();
        for role in [Role::Root, Role::Targets] {
            let path = self.staged(role);
            if !path.exists() {
                continue;
            }
            let mut envelope = Envelope::load(&path)?;
            if !self.authorities(&envelope)?.iter().any(|keys| keys.ids.contains(&id)) {
                continue;
            }
            envelope.sign(key)?;
            picket_durable::write_atomic(&path, &envelope.to_bytes(), 0o644)?;
            signed.push(self.progress(&envelope)?);
            self.promote_root()?;
        }
        if signed.is_empty() {
            let role = "root or targets";
            return Err(ReleaseError::KeyNotAuthorised { key: short(&id).to_owned(), role });
        }
        Ok(signed)
    }

    /// Adds signatures that were made elsewhere to the staged document they are for.
    pub fn attach(&self, detached: &Detached) -> Result<Signed, ReleaseError> {
        let path = self.staged(detached.role);
        let mut envelope = Envelope::load(&path)?;
        if envelope.version() != detached.version {
            return Err(ReleaseError::Release(format!(
                "the signature is for version {} of the {}, version {} is waiting",
                detached.version,
                detached.role.as_str(),
                envelope.version()
            )));
        }
        if !self.authorities(&envelope)?.iter().any(|keys| keys.ids.contains(&detached.keyid)) {
            let key = short(&detached.keyid).to_owned();
            return Err(ReleaseError::KeyNotAuthorised { key, role: detached.role.as_str() });
        }
        envelope.add(Signature { keyid: detached.keyid.clone(), sig: detached.sig.clone() });
        let holds = |keys: &RoleKeys| envelope.signed_by(keys).contains(&detached.keyid);
        if !self.authorities(&envelope)?.iter().any(holds) {
            return Err(ReleaseError::Release(format!(
                "the signature of key {} is not over the {} that waits here: it was made for another draft, or damaged",
                short(&detached.keyid),
                detached.role.as_str()
            )));
        }
        picket_durable::write_atomic(&path, &envelope.to_bytes(), 0o644)?;
        let signed = self.progress(&envelope)?;
        self.promote_root()?;
        Ok(signed)
    }

    /// A staged root that has all its signatures is in force: what is signed next is signed under it. Says whether the
    /// staged root, if there is one, still waits.
    pub(crate) fn promote_root(&self) -> Result<Option<Signed>, ReleaseError> {
        let staged = self.staged(Role::Root);
        if !staged.exists() {
            return Ok(None);
        }
        let root = Envelope::load(&staged)?;
        let signed = self.progress(&root)?;
        if !signed.is_complete() {
            return Ok(Some(signed));
        }
        picket_durable::rename(&staged, &self.published(Role::Root, root.version()))?;
        Ok(None)
    }

    /// How far a document is.
    pub(crate) fn progress(&self, envelope: &Envelope) -> Result<Signed, ReleaseError> {
        let authorities = self.authorities(envelope)?;
        // A new root needs the old keys' threshold and its own: the one further away is told.
        let missing = |keys: &RoleKeys| keys.threshold.saturating_sub(envelope.signed_by(keys).len());
        let furthest = authorities.iter().max_by_key(|keys| missing(keys));
        let (have, need) = furthest.map_or((0, 1), |keys| (envelope.signed_by(keys).len(), keys.threshold));
        Ok(Signed { role: envelope.role().unwrap_or(Role::Root), version: envelope.version(), have, need })
    }

    /// The sets of keys that must each sign a document to their threshold.
    fn authorities(&self, envelope: &Envelope) -> Result<Vec<RoleKeys>, ReleaseError> {
        match envelope.role() {
            Some(Role::Root) => {
                let own = envelope.role_keys(Role::Root);
                let old = match self.newest(Role::Root)? {
                    Some(path) => Some(Envelope::load(&path)?.role_keys(Role::Root)),
                    None => None,
                };
                Ok(old.into_iter().chain([own]).collect())
            }
            Some(Role::Targets) => Ok(vec![self.root()?.role_keys(Role::Targets)]),
            _ => Ok(Vec::new()),
        }
    }
}

/// The beginning of a key id, as people compare them.
pub(crate) fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
