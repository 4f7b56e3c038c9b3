//! The key file: which keys this device has, and which one seals.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use picket_durable::Context as _;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock};
use uuid::Uuid;
use zeroize::{Zeroize, Zeroizing};

/// The mode of the key file: its owner's alone.
const KEY_FILE_MODE: u32 = 0o600;
/// The longest key file that is read, in bytes: some hundred keys.
const KEY_FILE_MAX_BYTES: usize = 64 << 10;
/// The form of the key file.
const KEY_FILE_SCHEMA: u32 = 1;

/// A 256-bit key, wiped when dropped.
pub(crate) type Key = Zeroizing<[u8; 32]>;

/// Why there are no keys to work with.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is no key file.
    #[error(
        "the key file {} is missing; without it nothing that was sealed can be read. Put it back from a backup, or move \
         the sealed files away to begin anew", .0.display()
    )]
    Missing(PathBuf),
    /// A key file is there already; keys are never overwritten.
    #[error("{} exists; a key file is never overwritten", .0.display())]
    Exists(PathBuf),
    /// The key file cannot be read or written.
    #[error("the key file cannot be used")]
    Io(#[from] picket_durable::Error),
    /// The key file is readable or writable by others.
    #[error("{} has mode {mode:04o}, and others may have read the keys; `chmod 600` it, then rotate them", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key file is not one.
    #[error("{} is not a key file of this version: {why}; put it back from a backup", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; never its content.
        why: &'static str,
    },
    /// The system gave no random bytes.
    #[error("the system gives no random bytes")]
    Random,
    /// The file is another device's now.
    #[error("{} holds another device's keys now; put the right key file back", .0.display())]
    OtherDevice(PathBuf),
    /// The file is from before the last rotation.
    #[error("{} is an older copy: key {file} seals in it, and key {known} is in use. Put the newest key file back", path.display())]
    Older {
        /// The file.
        path: PathBuf,
        /// The number of its active key.
        file: u32,
        /// The number of the active key in memory.
        known: u32,
    },
    /// The active key cannot be retired.
    #[error("key {0} seals at present; rotate first")]
    Active(u32),
}

/// What may be told of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyInfo {
    /// Its number.
    pub id: u32,
    /// When it was made.
    pub created: jiff::Timestamp,
    /// Whether new records are sealed under it.
    pub active: bool,
}

/// The keys of one device.
pub struct Keyring {
    path: PathBuf,
    device: Uuid,
    keys: RwLock<Keys>,
    /// Which state of the file is in memory.
    seen: Mutex<Option<Stamp>>,
}

/// What tells one state of the file from another: every change is a new file under the name (`rename(2)`).
type Stamp = (u64, u64, i64, i64, u64);

struct Keys {
    active: u32,
    all: BTreeMap<u32, (jiff::Timestamp, Key)>,
}

#[derive(Serialize, Deserialize)]
struct KeyFile {
    schema: u32,
    device: Uuid,
    active: u32,
    keys: Vec<KeyEntry>,
}

#[derive(Serialize, Deserialize)]
struct KeyEntry {
    id: u32,
    created: jiff::Timestamp,
    key: String,
}

impl Drop for KeyEntry {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring").field("path", &self.path).field("device", &self.device).finish_non_exhaustive()
    }
}

impl Keyring {
    /// Makes a key file with one key.
    ///
    /// # Errors
    /// [`KeyError::Exists`] if there is one; nothing is overwritten.
    pub fn create(path: &Path) -> Result<Self, KeyError> {
        if path.symlink_metadata().is_ok() {
            return Err(KeyError::Exists(path.to_owned()));
        }
        let keys = Keys { active: 1, all: BTreeMap::from([(1, (jiff::Timestamp::now(), random_key()?))]) };
        let keys = RwLock::new(keys);
        let keyring = Self { path: path.to_owned(), device: Uuid::now_v7(), keys, seen: Mutex::new(None) };
        keyring.write()?;
        keyring.see(stamp(path));
        Ok(keyring)
    }

    /// Reads the key file.
    ///
    /// # Errors
    /// [`KeyError::Missing`], [`KeyError::Exposed`] and [`KeyError::Malformed`] say what to do.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let stamp = stamp(path);
        let (device, keys) = read_file(path)?;
        Ok(Self { path: path.to_owned(), device, keys: RwLock::new(keys), seen: Mutex::new(stamp) })
    }

    /// Reads the file again if another process changed it since; says whether it did.
    ///
    /// The store's writer asks before each batch, within the transaction: that is how `data rekey` in another process
    /// rotates the keys of a running agent.
    ///
    /// # Errors
    /// Those of [`Keyring::open`], [`KeyError::OtherDevice`] and [`KeyError::Older`]; what is in memory stays in use then.
    pub fn refresh(&self) -> Result<bool, KeyError> {
        let stamp = stamp(&self.path);
        if stamp.is_some() && *self.seen.lock().unwrap_or_else(PoisonError::into_inner) == stamp {
            return Ok(false);
        }
        let (device, keys) = read_file(&self.path)?;
        if device != self.device {
            return Err(KeyError::OtherDevice(self.path.clone()));
        }
        let mut known = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if keys.active < known.active {
            return Err(KeyError::Older { path: self.path.clone(), file: keys.active, known: known.active });
        }
        *known = keys;
        drop(known);
        self.see(stamp);
        Ok(true)
    }

    /// [`Keyring::open`], or [`Keyring::create`] where there is no file.
    ///
    /// # Errors
    /// Those of the two.
    pub fn open_or_create(path: &Path) -> Result<Self, KeyError> {
        match Self::open(path) {
            Err(KeyError::Missing(_)) => Self::create(path),
            other => other,
        }
    }

    /// The id of this set of keys; what is sealed names it, so that another device's file is told from a damaged one.
    pub fn device(&self) -> Uuid {
        self.device
    }

    /// The key file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of the key that seals.
    pub fn active(&self) -> u32 {
        self.read().active
    }

    /// All keys, without the keys.
    pub fn list(&self) -> Vec<KeyInfo> {
        let keys = self.read();
        keys.all
            .iter()
            .map(|(id, (created, _))| KeyInfo { id: *id, created: *created, active: *id == keys.active })
            .collect()
    }

    /// Adds a key and makes it the active one; it is on disk before anything is sealed under it.
    ///
    /// # Errors
    /// When the file cannot be written; the old key stays active then.
    pub fn rotate(&self) -> Result<u32, KeyError> {
        let key = random_key()?;
        self.change(|keys| {
            let id = keys.all.keys().next_back().map_or(1, |last| last + 1);
            keys.all.insert(id, (jiff::Timestamp::now(), key));
            keys.active = id;
            Ok(id)
        })
    }

    /// Forgets a key for good: to be called once nothing sealed under it is left.
    ///
    /// # Errors
    /// [`KeyError::Active`], or that the file cannot be written.
    pub fn retire(&self, id: u32) -> Result<(), KeyError> {
        self.change(|keys| {
            if keys.active == id {
                return Err(KeyError::Active(id));
            }
            keys.all.remove(&id);
            Ok(())
        })
    }

    pub(crate) fn key(&self, id: u32) -> Option<Key> {
        self.read().all.get(&id).map(|(_, key)| key.clone())
    }

    pub(crate) fn active_key(&self) -> (u32, Key) {
        let keys = self.read();
        // The constructors and `retire` keep the active key among the keys; an all-zero key must never be used instead.
        match keys.all.get(&keys.active) {
            Some((_, key)) => (keys.active, key.clone()),
            None => unreachable!("the active key is always among the keys"),
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Keys) -> Result<T, KeyError>) -> Result<T, KeyError> {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let before = Keys { active: keys.active, all: keys.all.clone() };
        let result = change(&mut keys).and_then(|value| self.write_keys(&keys).map(|()| value));
        match &result {
            Ok(_) => self.see(stamp(&self.path)),
            Err(_) => *keys = before,
        }
        result
    }

    fn see(&self, stamp: Option<Stamp>) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = stamp;
    }

    fn write(&self) -> Result<(), KeyError> {
        self.write_keys(&self.read())
    }

    fn write_keys(&self, keys: &Keys) -> Result<(), KeyError> {
        let entries = keys.all.iter().map(|(id, (created, key))| KeyEntry {
            id: *id,
            created: *created,
            key: STANDARD.encode(key.as_slice()),
        });
        let file =
            KeyFile { schema: KEY_FILE_SCHEMA, device: self.device, active: keys.active, keys: entries.collect() };
        let text = serde_json::to_vec_pretty(&file)
            .map_err(|_| KeyError::Malformed { path: self.path.clone(), why: "it cannot be written as JSON" })?;
        let text = Zeroizing::new(text);
        Ok(picket_durable::write_atomic(&self.path, &text, KEY_FILE_MODE)?)
    }
}

/// The open file and its permission bits; `None` if there is none. The folder is the service user's: a pipe in its place
/// is not waited on (`open(2)`: `O_NONBLOCK`).
fn open_file(path: &Path) -> Result<Option<(File, u32)>, KeyError> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.doing("read", path)?,
    };
    let meta = file.metadata().doing("inspect", path)?;
    if !meta.is_file() {
        return Err(KeyError::Malformed { path: path.to_owned(), why: "it is not a regular file" });
    }
    Ok(Some((file, meta.permissions().mode() & 0o7777)))
}

/// What the key file holds.
fn read_file(path: &Path) -> Result<(Uuid, Keys), KeyError> {
    let malformed = |why| KeyError::Malformed { path: path.to_owned(), why };
    let Some((file, mode)) = open_file(path)? else {
        return Err(KeyError::Missing(path.to_owned()));
    };
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed { path: path.to_owned(), mode });
    }
    // All at once: a vector that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_FILE_MAX_BYTES + 1));
    let read = file.take(KEY_FILE_MAX_BYTES as u64 + 1).read_to_end(&mut bytes);
    if read.doing("read", path)? > KEY_FILE_MAX_BYTES {
        return Err(malformed("it is too long"));
    }
    let file: KeyFile = serde_json::from_slice(&bytes).map_err(|_| malformed("it is not the JSON it should be"))?;
    if file.schema != KEY_FILE_SCHEMA {
        return Err(malformed("its schema is another version's"));
    }
    let mut all = BTreeMap::new();
    for entry in &file.keys {
        let mut key: Key = Zeroizing::new([0; 32]);
        let decoded = STANDARD.decode_slice(&entry.key, key.as_mut_slice());
        if decoded != Ok(32) || all.insert(entry.id, (entry.created, key)).is_some() {
            return Err(malformed("a key is not 256 bits, or is there twice"));
        }
    }
    if !all.contains_key(&file.active) {
        return Err(malformed("the active key is not among its keys"));
    }
    Ok((file.device, Keys { active: file.active, all }))
}

fn stamp(path: &Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = path.metadata().ok()?;
    Some((meta.dev(), meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.len()))
}

fn random_key() -> Result<Key, KeyError> {
    let mut key: Key = Zeroizing::new([0; 32]);
    getrandom::fill(key.as_mut_slice()).map_err(|_| KeyError::Random)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_is_its_owners_alone_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.key");
        let keyring = Keyring::create(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Keyring::create(&path), Err(KeyError::Exists(_))));
        assert_eq!(Keyring::open(&path).unwrap().device(), keyring.device());
        assert!(matches!(Keyring::open(&dir.path().join("other")), Err(KeyError::Missing(_))));
    }

    #[test]
    fn a_key_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.key");
        Keyring::create(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Keyring::open(&path), Err(KeyError::Exposed { mode: 0o640, .. })));
    }

    #[test]
    fn rotation_outlives_the_process_and_the_active_key_cannot_be_retired() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.key");
        let keyring = Keyring::create(&path).unwrap();
        assert_eq!(keyring.rotate().unwrap(), 2);
        let again = Keyring::open(&path).unwrap();
        assert_eq!((again.active(), again.list().len()), (2, 2));
        assert!(matches!(again.retire(2), Err(KeyError::Active(2))));
        again.retire(1).unwrap();
        assert_eq!(Keyring::open(&path).unwrap().list().len(), 1);
    }

    #[test]
    fn a_rotation_by_another_process_is_seen_on_refresh_and_a_file_of_another_device_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.key");
        let ours = Keyring::create(&path).unwrap();
        assert!(!ours.refresh().unwrap());
        let elsewhere = Keyring::open(&path).unwrap();
        elsewhere.rotate().unwrap();
        assert_eq!(ours.active(), 1);
        assert!(ours.refresh().unwrap() && !ours.refresh().unwrap());
        assert_eq!(ours.active(), 2);
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(ours.refresh(), Err(KeyError::Missing(_))));
        Keyring::create(&path).unwrap();
        assert!(matches!(ours.refresh(), Err(KeyError::OtherDevice(_))));
        assert_eq!(ours.list().len(), 2);
    }

    #[test]
    fn a_pipe_in_the_place_of_a_key_file_is_refused_and_not_waited_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.key");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let (done, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(matches!(Keyring::open(&path), Err(KeyError::Malformed { .. }))));
        assert!(ended.recv_timeout(std::time::Duration::from_secs(10)).expect("nobody hangs"));
    }

    #[test]
    fn an_older_copy_of_the_key_file_never_replaces_the_newest_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.key");
        let keyring = Keyring::create(&path).unwrap();
        let old = picket_durable::read_bounded(&path, 4096).unwrap();
        keyring.rotate().unwrap();
        let new = picket_durable::read_bounded(&path, 4096).unwrap();
        picket_durable::write_atomic(&path, &old, 0o600).unwrap();
        for _ in 0..2 {
            assert!(matches!(keyring.refresh(), Err(KeyError::Older { file: 1, known: 2, .. })));
            assert_eq!((keyring.active(), keyring.list().len()), (2, 2));
        }
        picket_durable::write_atomic(&path, &new, 0o600).unwrap();
        assert!(keyring.refresh().unwrap());
        assert_eq!(keyring.active(), 2);
    }

    #[test]
    fn an_error_about_a_damaged_key_file_does_not_show_a_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.key");
        Keyring::create(&path).unwrap();
        let text = picket_durable::read_text(&path, 4096).unwrap();
        let secret = text.split("\"key\": \"").nth(1).unwrap()[..20].to_owned();
        picket_durable::write_atomic(&path, text.replace("\"active\": 1", "\"active\": 9").as_bytes(), 0o600).unwrap();
        let error = format!("{:?}", Keyring::open(&path).unwrap_err());
        assert!(error.contains("active key") && !error.contains(&secret), "{error}");
    }
}
