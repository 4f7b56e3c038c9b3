//! A key and its certificate, put in place together: a power cut leaves the pair before or the pair after.

use super::{KeysError, KeysFolder};
use picket_durable::{Lock, LockError};
use picket_pki::{Certificate, PrivateKey};

/// What a pair is called while it is made.
const NEW: &str = "new-";

impl KeysFolder {
    /// Keeps every other process from making keys here, for as long as the lock is held.
    ///
    /// # Errors
    /// When another one does, or the folder cannot be written.
    pub(super) fn lock(&self) -> Result<Lock, KeysError> {
        Lock::acquire(&self.path(".lock")).map_err(|error| match error {
            LockError::Held { .. } => KeysError::Busy(self.dir().to_owned()),
            LockError::Io { path, source } => KeysError::File(picket_durable::Error::new("lock", path, source)),
        })
    }

    /// Replaces `name.key` and `name.crt`. To be done again after a crash by [`KeysFolder::settle`].
    pub(super) fn write_pair(&self, name: &str, key: &PrivateKey, certificate: &Certificate) -> Result<(), KeysError> {
        self.write_key(&format!("{NEW}{name}.key"), key)?;
        // From here on the pair is made, and only has to take its place.
        self.write_certificate(&format!("{NEW}{name}.crt"), certificate)?;
        self.settle(name)
    }

    /// Whether a pair was made that has not taken its place.
    pub(super) fn is_unsettled(&self, name: &str) -> bool {
        self.path(&format!("{NEW}{name}.crt")).exists()
    }

    /// Puts a pair in its place that was made and not put there.
    pub(super) fn settle(&self, name: &str) -> Result<(), KeysError> {
        let made = |extension: &str| self.path(&format!("{NEW}{name}.{extension}"));
        if !made("crt").exists() {
            // A key whose certificate was not written yet has signed nothing.
            picket_durable::remove_if_present(&made("key"))?;
            return Ok(());
        }
        for extension in ["key", "crt"] {
            if made(extension).exists() {
                picket_durable::rename(&made(extension), &self.path(&format!("{name}.{extension}")))?;
            }
        }
        Ok(())
    }
}
