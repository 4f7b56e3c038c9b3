//! The folder of keys, as files.

use super::Keys;
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, spki::der::pem::LineEnding};
use picket_pki::{Authority, Certificate, MAX_PEM_BYTES, PkiError, PrivateKey, certificates_from_pem};
use picket_seal::{KeyError, Keyring};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The longest file that is read, in bytes.
const MAX_BYTES: u64 = MAX_PEM_BYTES as u64;
/// Private keys are for their owner alone.
const SECRET: u32 = 0o600;
/// Certificates are for everybody who may look into the folder.
const PUBLIC: u32 = 0o644;

/// What to do without the key for commands, and without the one for sealing.
pub(super) const COMMAND_WAY_OUT: &str = "agents take configurations from no other. Put it back from the copy of the keys; if that \
    is lost: picket hub init --replace-lost-keys";
pub(super) const SEAL_WAY_OUT: &str = "secrets in the database are sealed with it. Put it back from the copy of the keys; if that is \
    lost: picket hub init --replace-lost-keys";

/// Where the keys lie.
#[derive(Debug, Clone)]
pub struct KeysFolder {
    dir: PathBuf,
}

/// What is wrong with the keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// There are none.
    #[error("there are no keys of a hub in {}; make them with `picket hub init`, or put those of your hub back", .0.display())]
    None(PathBuf),
    /// One is missing that cannot be made anew without harm.
    #[error("{} is missing: {way_out}", path.display())]
    Missing {
        /// Which file.
        path: PathBuf,
        /// What to do.
        way_out: &'static str,
    },
    /// Another process makes keys there now.
    #[error("another process makes keys in {}; try again", .0.display())]
    Busy(PathBuf),
    /// One cannot be used.
    #[error("{} cannot be used; put it back from the copy of the keys", path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: PkiError,
    },
    /// The key for signing commands cannot be used.
    #[error("{} is no Ed25519 key in PKCS #8; put it back from the copy of the keys", .0.display())]
    Command(PathBuf),
    /// The key for sealing is another one than that which secrets in the database were sealed with.
    #[error(
        "the secrets in the database were not sealed with {}; put the right one back from the copy of the keys. If that is \
         lost: move this one away, and run `picket hub init --replace-lost-keys`", .0.display()
    )]
    OtherSeal(PathBuf),
    /// The key for sealing cannot be used.
    #[error(transparent)]
    Seal(#[from] KeyError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] picket_durable::Error),
    /// Something could not be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// Anybody can read a private key.
    #[error("{} can be read by others (mode {mode:03o}); close it with: chmod 600 {}", path.display(), path.display())]
    Open {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
}

impl KeysFolder {
    /// The keys below `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// One of its files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Reads all keys but the root's, which may lie elsewhere.
    ///
    /// # Errors
    /// What is missing or cannot be used, and what to do.
    pub fn load(&self) -> Result<Keys, KeysError> {
        let Some(root) = self.certificate("root.crt")? else { return Err(KeysError::None(self.dir.clone())) };
        let mut roots = vec![root];
        roots.extend(self.certificate("previous-root.crt")?);
        let intermediate = self.authority("intermediate")?.ok_or_else(|| KeysError::Missing {
            path: self.path("intermediate.crt"),
            way_out: "put the root's key back as root.key and run: picket hub init",
        })?;
        let previous = self.authority("previous-intermediate")?;
        let hub = match (self.certificate("hub.crt")?, self.key("hub.key")?) {
            (Some(certificate), Some(key)) if certificate.pin == key.pin() => (certificate, key),
            _ => return Err(KeysError::Missing { path: self.path("hub.key"), way_out: "run: picket hub init" }),
        };
        let command = self
            .command()?
            .ok_or_else(|| KeysError::Missing { path: self.path("command.key"), way_out: COMMAND_WAY_OUT })?;
        Ok(Keys { roots, intermediate, previous, hub, revocations: self.revocations(), command })
    }

    /// The key that seals secrets in the database.
    ///
    /// # Errors
    /// When it is missing or cannot be used.
    pub fn seal(&self) -> Result<Keyring, KeysError> {
        let path = self.path("seal.key");
        match Keyring::open(&path) {
            Err(KeyError::Missing(_)) => Err(KeysError::Missing { path, way_out: SEAL_WAY_OUT }),
            opened => Ok(opened?),
        }
    }

    pub(super) fn certificate(&self, name: &str) -> Result<Option<Certificate>, KeysError> {
        let path = self.path(name);
        let Some(bytes) = picket_durable::read_if_present(&path, MAX_BYTES)? else { return Ok(None) };
        let read = certificates_from_pem(&String::from_utf8_lossy(&bytes));
        let mut list = read.map_err(|source| KeysError::Unusable { path, source })?;
        list.truncate(1);
        Ok(list.pop())
    }

    pub(super) fn key(&self, name: &str) -> Result<Option<PrivateKey>, KeysError> {
        let Some(text) = self.secret(name)? else { return Ok(None) };
        let path = self.path(name);
        PrivateKey::from_pem(&text).map(Some).map_err(|source| KeysError::Unusable { path, source })
    }

    pub(super) fn authority(&self, name: &str) -> Result<Option<Authority>, KeysError> {
        let (certificate, key) = (self.certificate(&format!("{name}.crt"))?, self.key(&format!("{name}.key"))?);
        let (Some(certificate), Some(key)) = (certificate, key) else { return Ok(None) };
        let path = self.path(&format!("{name}.key"));
        Authority::new(certificate, key).map(Some).map_err(|source| KeysError::Unusable { path, source })
    }

    pub(super) fn command(&self) -> Result<Option<SigningKey>, KeysError> {
        let Some(text) = self.secret("command.key")? else { return Ok(None) };
        SigningKey::from_pkcs8_pem(&text).map(Some).map_err(|_| KeysError::Command(self.path("command.key")))
    }

    /// A private key's text. One that others can read is refused: it may be known already.
    fn secret(&self, name: &str) -> Result<Option<Zeroizing<String>>, KeysError> {
        let path = self.path(name);
        let Some(bytes) = picket_durable::read_if_present(&path, MAX_BYTES)? else { return Ok(None) };
        let text = Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned());
        drop(Zeroizing::new(bytes));
        let mode = mode_of(&path)?;
        if mode & 0o077 != 0 {
            return Err(KeysError::Open { path, mode });
        }
        Ok(Some(text))
    }

    pub(super) fn write_certificate(&self, name: &str, certificate: &Certificate) -> Result<(), KeysError> {
        Ok(picket_durable::write_atomic(&self.path(name), certificate.to_pem().as_bytes(), PUBLIC)?)
    }

    pub(super) fn write_key(&self, name: &str, key: &PrivateKey) -> Result<(), KeysError> {
        Ok(picket_durable::write_atomic(&self.path(name), key.to_pem().as_bytes(), SECRET)?)
    }

    pub(super) fn write_command(&self, key: &SigningKey) -> Result<(), KeysError> {
        let path = self.path("command.key");
        let text = key.to_pkcs8_pem(LineEnding::LF).map_err(|_| KeysError::Command(path.clone()))?;
        Ok(picket_durable::write_atomic(&path, text.as_bytes(), SECRET)?)
    }
}

#[cfg(unix)]
fn mode_of(path: &Path) -> Result<u32, KeysError> {
    use std::os::unix::fs::PermissionsExt as _;
    let metadata = std::fs::metadata(path);
    let metadata = metadata.map_err(|error| picket_durable::Error::new("look at", path, error))?;
    Ok(metadata.permissions().mode() & 0o777)
}

#[cfg(not(unix))]
fn mode_of(_: &Path) -> Result<u32, KeysError> {
    Ok(SECRET)
}
