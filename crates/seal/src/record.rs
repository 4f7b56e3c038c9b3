//! One record: sealed for one row of one table, and opened only there.

use crate::keyring::{Key, KeyError, Keyring};
use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use hkdf::Hkdf;
use sha2::Sha256;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use zeroize::Zeroizing;

const FORM: u8 = 1;
const SALT: usize = 16;
const NONCE: usize = 12;
const TAG: usize = 16;
const HEADER: usize = 1 + 4 + SALT + NONCE;

/// How many bytes a sealed record is longer than its plaintext.
pub const OVERHEAD: usize = HEADER + TAG;
/// The longest plaintext of one record, in bytes.
pub const MAX_RECORD_BYTES: usize = 16 << 20;
/// How many derived keys of other sealers are kept ready for reading.
const CACHED_KEYS: usize = 256;

/// Where a record belongs. It opens nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// The table, or whatever names the collection.
    pub table: &'a str,
    /// The row.
    pub row: i64,
    /// Anything else that stands beside the record in clear and must not be changed: a time, a class.
    pub context: &'a [u8],
}

/// Why a record was not sealed or not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The bytes are too few or begin in another form.
    #[error("is not a sealed record of this version")]
    Form,
    /// The key it names is not among this device's.
    #[error("is sealed under key {0}, which the key file does not have")]
    UnknownKey(u32),
    /// It was changed, moved to another place, or sealed on another device.
    #[error("does not open: it was changed, moved, or sealed on another device")]
    Damaged,
    /// The plaintext is too long.
    #[error("is longer than {MAX_RECORD_BYTES} bytes")]
    TooLong,
    /// The system gave no random bytes.
    #[error("cannot be sealed: the system gives no random bytes")]
    Random,
}

/// Seals and opens records under the keys of one device. Cheap to share; see the crate's text on nonces.
pub struct Sealer {
    keyring: Arc<Keyring>,
    sealing: Mutex<Sealing>,
    opened: Mutex<Opened>,
}

/// The keys of other sealers, by device key and salt.
type Opened = HashMap<(u32, [u8; SALT]), Arc<Aes256Gcm>>;

#[derive(Clone)]
struct Sealing {
    key_id: u32,
    salt: [u8; SALT],
    cipher: Arc<Aes256Gcm>,
    counter: Arc<AtomicU64>,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealer")
    }
}

impl Sealer {
    /// A sealer with a salt, hence a key, of its own.
    ///
    /// # Errors
    /// [`KeyError::Random`].
    pub fn new(keyring: Arc<Keyring>) -> Result<Self, KeyError> {
        let sealing = Mutex::new(Sealing::new(&keyring)?);
        Ok(Self { keyring, sealing, opened: Mutex::new(HashMap::new()) })
    }

    /// The keys it works with.
    pub fn keyring(&self) -> &Arc<Keyring> {
        &self.keyring
    }

    /// The key that seals from now on; after [`Keyring::rotate`] the next record is under the new one.
    fn sealing(&self) -> Result<Sealing, SealError> {
        let mut sealing = self.sealing.lock().unwrap_or_else(PoisonError::into_inner);
        if sealing.key_id != self.keyring.active() {
            *sealing = Sealing::new(&self.keyring).map_err(|_| SealError::Random)?;
        }
        Ok(sealing.clone())
    }

    /// Seals `plain` for `place`.
    ///
    /// # Errors
    /// [`SealError::TooLong`] and [`SealError::Random`].
    pub fn seal(&self, place: Place<'_>, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        if plain.len() > MAX_RECORD_BYTES {
            return Err(SealError::TooLong);
        }
        let sealing = self.sealing()?;
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce[..4]).map_err(|_| SealError::Random)?;
        nonce[4..].copy_from_slice(&sealing.counter.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        let aad = associated_data(place, sealing.key_id);
        let sealed = sealing
            .cipher
            .encrypt(&Nonce::from(nonce), Payload { msg: plain, aad: &aad })
            .map_err(|_| SealError::TooLong)?;
        let mut record = Vec::with_capacity(HEADER + sealed.len());
        record.push(FORM);
        record.extend_from_slice(&sealing.key_id.to_be_bytes());
        record.extend_from_slice(&sealing.salt);
        record.extend_from_slice(&nonce);
        record.extend_from_slice(&sealed);
        Ok(record)
    }

    /// Opens what [`Sealer::seal`] made for the same place.
    ///
    /// # Errors
    /// [`SealError::Form`], [`SealError::UnknownKey`] and [`SealError::Damaged`].
    pub fn open(&self, place: Place<'_>, record: &[u8]) -> Result<Vec<u8>, SealError> {
        let (key_id, salt, nonce, sealed) = split(record)?;
        let cipher = self.cipher(key_id, salt)?;
        let aad = associated_data(place, key_id);
        let nonce = Nonce::from(nonce);
        cipher.decrypt(&nonce, Payload { msg: sealed, aad: &aad }).map_err(|_| SealError::Damaged)
    }

    /// The number of the key that `record` was sealed under.
    ///
    /// # Errors
    /// [`SealError::Form`].
    pub fn key_of(record: &[u8]) -> Result<u32, SealError> {
        split(record).map(|(key_id, ..)| key_id)
    }

    fn cipher(&self, key_id: u32, salt: [u8; SALT]) -> Result<Arc<Aes256Gcm>, SealError> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cipher) = opened.get(&(key_id, salt)) {
            return Ok(Arc::clone(cipher));
        }
        let known = self.keyring.key(key_id).or_else(|| {
            // Another process may have rotated; a key file that cannot be read now is told of by whoever writes.
            self.keyring.refresh().ok().filter(|changed| *changed).and_then(|_| self.keyring.key(key_id))
        });
        let key = known.ok_or(SealError::UnknownKey(key_id))?;
        let cipher = Arc::new(derive(&key, &salt));
        // A salt for each start of the agent: a bound for files that were made to hold very many.
        if opened.len() >= CACHED_KEYS {
            opened.clear();
        }
        opened.insert((key_id, salt), Arc::clone(&cipher));
        Ok(cipher)
    }
}

impl Sealing {
    fn new(keyring: &Keyring) -> Result<Self, KeyError> {
        let mut salt = [0; SALT];
        getrandom::fill(&mut salt).map_err(|_| KeyError::Random)?;
        let (key_id, key) = keyring.active_key();
        Ok(Self { key_id, salt, cipher: Arc::new(derive(&key, &salt)), counter: Arc::default() })
    }
}

/// The key of one sealer.
fn derive(key: &Key, salt: &[u8; SALT]) -> Aes256Gcm {
    let mut derived = Zeroizing::new([0; 32]);
    // Only lengths over 255 hashes are refused (RFC 5869 §2.3).
    let _ = Hkdf::<Sha256>::new(Some(salt), key.as_slice()).expand(b"picket seal 1", derived.as_mut_slice());
    Aes256Gcm::new(&(*derived).into())
}

/// Key id, salt, nonce, ciphertext with its tag.
type Parts<'a> = (u32, [u8; SALT], [u8; NONCE], &'a [u8]);

fn split(record: &[u8]) -> Result<Parts<'_>, SealError> {
    let form = |_| SealError::Form;
    if record.len() < OVERHEAD || record.len() > MAX_RECORD_BYTES + OVERHEAD || record[0] != FORM {
        return Err(SealError::Form);
    }
    let key_id = u32::from_be_bytes(record[1..5].try_into().map_err(form)?);
    let salt = record[5..5 + SALT].try_into().map_err(form)?;
    let nonce = record[5 + SALT..HEADER].try_into().map_err(form)?;
    Ok((key_id, salt, nonce, &record[HEADER..]))
}

/// Each part with its length before it, so that no two places give the same bytes.
fn associated_data(place: Place<'_>, key_id: u32) -> Vec<u8> {
    let mut data = Vec::with_capacity(place.table.len() + place.context.len() + 28);
    for part in [place.table.as_bytes(), place.context] {
        data.extend_from_slice(&(part.len() as u64).to_be_bytes());
        data.extend_from_slice(part);
    }
    data.extend_from_slice(&place.row.to_be_bytes());
    data.extend_from_slice(&key_id.to_be_bytes());
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sealer() -> (tempfile::TempDir, Sealer) {
        let dir = tempfile::tempdir().unwrap();
        let keyring = Keyring::create(&dir.path().join("key")).unwrap();
        (dir, Sealer::new(Arc::new(keyring)).unwrap())
    }

    const HERE: Place<'_> = Place { table: "events", row: 7, context: b"" };

    #[test]
    fn a_record_opens_in_its_own_place_and_in_no_other() {
        let (_dir, sealer) = sealer();
        let record = sealer.seal(HERE, b"planted plaintext").unwrap();
        assert_eq!(record.len(), 17 + OVERHEAD);
        assert_eq!(sealer.open(HERE, &record).unwrap(), b"planted plaintext");
        for elsewhere in [Place { row: 8, ..HERE }, Place { table: "logs", ..HERE }, Place { context: b"x", ..HERE }] {
            assert_eq!(sealer.open(elsewhere, &record), Err(SealError::Damaged));
        }
    }

    #[test]
    fn no_nonce_is_used_twice_and_every_sealer_has_a_key_of_its_own() {
        let (_dir, sealer) = sealer();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1000 {
            let record = sealer.seal(HERE, b"same").unwrap();
            assert!(seen.insert(record[5 + SALT..HEADER].to_vec()));
        }
        let again = Sealer::new(Arc::clone(sealer.keyring())).unwrap();
        let (one, two) = (sealer.seal(HERE, b"same").unwrap(), again.seal(HERE, b"same").unwrap());
        assert_ne!(one[5..5 + SALT], two[5..5 + SALT]);
        assert_eq!(again.open(HERE, &one).unwrap(), b"same");
    }

    #[test]
    fn after_a_rotation_the_next_record_is_under_the_new_key_and_old_ones_stay_readable() {
        let (_dir, sealer) = sealer();
        let old = sealer.seal(HERE, b"old").unwrap();
        sealer.keyring().rotate().unwrap();
        let new = sealer.seal(HERE, b"new").unwrap();
        assert_eq!((Sealer::key_of(&old), Sealer::key_of(&new)), (Ok(1), Ok(2)));
        assert_eq!(sealer.open(HERE, &old).unwrap(), b"old");
        let keyring = Arc::clone(sealer.keyring());
        keyring.retire(1).unwrap();
        let reader = Sealer::new(keyring).unwrap();
        assert_eq!(reader.open(HERE, &old), Err(SealError::UnknownKey(1)));
    }

    #[test]
    fn another_devices_record_does_not_open() {
        let (_a, ours) = sealer();
        let (_b, theirs) = sealer();
        assert_eq!(ours.open(HERE, &theirs.seal(HERE, b"x").unwrap()), Err(SealError::Damaged));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_found(plain in proptest::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let (_dir, sealer) = sealer();
            let mut record = sealer.seal(HERE, &plain).unwrap();
            let index = at.index(record.len());
            record[index] ^= 1 << bit;
            prop_assert!(sealer.open(HERE, &record).is_err());
        }

        #[test]
        fn outside_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (_dir, sealer) = sealer();
            prop_assert!(sealer.open(HERE, &bytes).is_err());
        }
    }
}
