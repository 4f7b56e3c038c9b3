//! Two small files beside the database that know what it may have forgotten.
//!
//! - `outbox.ledger`: the state after the last commit, sealed. A flipped bit in the write-ahead log makes SQLite forget
//!   that commit and all later ones without a word, and a damaged database forgets everything; this file tells how much
//!   is missing, and keeps the sequence from being given twice.
//! - `outbox.accepted`: how many events were accepted, durable or not. A process that is killed takes with it what waits
//!   in memory, at most one group commit; this file tells how many those were.
//!
//! Both have two slots that are overwritten in turn, in place: a torn write spoils one, and a full disk refuses none.
//! Their bytes are in the page cache once written, which outlives the process (a kill loses nothing); they are synced
//! with each checkpoint only, so a power cut can make them older than the database. Older is harmless: the database is
//! believed then.

use crate::state::State;
use picket_durable::{Context as _, Result};
use picket_seal::{OVERHEAD, Place, Sealer};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Bytes of one slot of the ledger file: a state has at most nine sets of books of about 1 KiB.
const SLOT: usize = 32 << 10;
/// The place its content is sealed for.
const LEDGER_TABLE: &str = "outbox.ledger";

/// `outbox.ledger`.
#[derive(Debug)]
pub(crate) struct LedgerFile {
    file: File,
    path: PathBuf,
    next: u64,
}

/// Opens `path` for reading and writing in place, makes it `len` bytes long, owner's alone.
fn open_fixed(path: &Path, len: usize) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
        .doing("open", path)?;
    if file.metadata().doing("inspect", path)?.len() < len as u64 {
        // Real bytes, not a hole: a hole would need room later, when there may be none.
        file.write_all_at(&vec![0; len], 0).doing("write", path)?;
        file.sync_all().doing("sync", path)?;
    }
    Ok(file)
}

impl LedgerFile {
    /// Opens it and reads the newer of its two states that is whole.
    pub(crate) fn open(path: &Path, sealer: &Sealer) -> Result<(Self, Option<State>)> {
        let file = open_fixed(path, 2 * SLOT)?;
        let newest = Self::newest(&file, sealer);
        let next = newest.as_ref().map_or(0, |(slot, _)| slot + 1);
        Ok((Self { file, path: path.to_owned(), next }, newest.map(|(_, state)| state)))
    }

    /// Reads without changing anything.
    pub(crate) fn read(path: &Path, sealer: &Sealer) -> Option<State> {
        let file = File::open(path).ok()?;
        Self::newest(&file, sealer).map(|(_, state)| state)
    }

    fn newest(file: &File, sealer: &Sealer) -> Option<(u64, State)> {
        let slots = (0..2u64).filter_map(|slot| Some((slot, Self::slot(file, sealer, slot)?)));
        slots.max_by_key(|(_, state)| state.commit)
    }

    fn slot(file: &File, sealer: &Sealer, slot: u64) -> Option<State> {
        let mut bytes = vec![0; SLOT];
        file.read_exact_at(&mut bytes, slot * SLOT as u64).ok()?;
        let (head, rest) = bytes.split_first_chunk::<4>()?;
        let len = usize::try_from(u32::from_be_bytes(*head)).ok()?;
        let sealed = rest.get(..len)?;
        let place = Place { table: LEDGER_TABLE, row: slot.cast_signed(), context: b"" };
        serde_json::from_slice(&sealer.open(place, sealed).ok()?).ok()
    }

    /// Writes the state after a commit over the older of the two; not synced.
    pub(crate) fn write(&mut self, sealer: &Sealer, json: &[u8]) -> Result<()> {
        let slot = self.next % 2;
        let place = Place { table: LEDGER_TABLE, row: slot.cast_signed(), context: b"" };
        let too_long = || std::io::Error::from(std::io::ErrorKind::FileTooLarge);
        let sealed = sealer.seal(place, json).map_err(std::io::Error::other).doing("seal", &self.path)?;
        let len = u32::try_from(sealed.len()).ok().filter(|_| sealed.len() <= SLOT - 4);
        let mut bytes = len.ok_or_else(too_long).doing("write", &self.path)?.to_be_bytes().to_vec();
        bytes.extend_from_slice(&sealed);
        self.file.write_all_at(&bytes, slot * SLOT as u64).doing("write", &self.path)?;
        self.next = slot + 1;
        Ok(())
    }

    /// Syncs it.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_data().doing("sync", &self.path)
    }
}

// A state that fills a slot would still have to fit under the seal's own limit.
const _: () = assert!(SLOT > OVERHEAD + 16 * 1024);

/// Bytes of one slot of the accepted file.
const ACCEPTED_SLOT: usize = 64;

/// `outbox.accepted`.
#[derive(Debug)]
pub(crate) struct AcceptedFile {
    file: File,
    books: Uuid,
    next: u64,
}

impl AcceptedFile {
    /// Opens it and reads what was accepted in each class by whoever keeps the books `books`.
    pub(crate) fn open(path: &Path, books: Uuid) -> Result<(Self, Option<[u64; 3]>)> {
        let file = open_fixed(path, 2 * ACCEPTED_SLOT)?;
        let newest = (0..2u64)
            .filter_map(|slot| {
                let mut bytes = [0; ACCEPTED_SLOT];
                file.read_exact_at(&mut bytes, slot * ACCEPTED_SLOT as u64).ok()?;
                read_accepted(&bytes)
            })
            .filter(|(of, ..)| *of == books)
            .max_by_key(|(_, turn, _)| *turn);
        let next = newest.map_or(0, |(_, turn, _)| turn.wrapping_add(1));
        Ok((Self { file, books, next }, newest.map(|(.., accepted)| accepted)))
    }

    /// Notes what was accepted; one `pwrite(2)` of 64 bytes. A failure is not reported: it would only make a kill
    /// less well accounted for.
    pub(crate) fn write(&mut self, accepted: [u64; 3]) {
        let mut bytes = [0; ACCEPTED_SLOT];
        bytes[..16].copy_from_slice(self.books.as_bytes());
        bytes[16..24].copy_from_slice(&self.next.to_be_bytes());
        for (class, count) in accepted.iter().enumerate() {
            bytes[24 + 8 * class..32 + 8 * class].copy_from_slice(&count.to_be_bytes());
        }
        let sum = checksum(&bytes[..48]);
        bytes[48..56].copy_from_slice(&sum.to_be_bytes());
        let _ = self.file.write_all_at(&bytes, (self.next % 2) * ACCEPTED_SLOT as u64);
        self.next = self.next.wrapping_add(1);
    }
}

fn read_accepted(bytes: &[u8; ACCEPTED_SLOT]) -> Option<(Uuid, u64, [u64; 3])> {
    let number = |at: usize| bytes[at..at + 8].try_into().ok().map(u64::from_be_bytes);
    if number(48)? != checksum(&bytes[..48]) {
        return None;
    }
    let books = Uuid::from_slice(&bytes[..16]).ok()?;
    Some((books, number(16)?, [number(24)?, number(32)?, number(40)?]))
}

/// FNV-1a, 64 bits (RFC 9923): finds torn and flipped bytes, which is all that threatens a count.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_seal::Keyring;
    use std::sync::Arc;

    fn sealer(dir: &Path) -> Sealer {
        Sealer::new(Arc::new(Keyring::open_or_create(&dir.join("key")).unwrap())).unwrap()
    }

    #[test]
    fn a_spoiled_slot_leaves_the_state_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, sealer) = (dir.path().join("ledger"), sealer(dir.path()));
        let (mut file, none) = LedgerFile::open(&path, &sealer).unwrap();
        assert!(none.is_none());
        let mut state = State::new("k");
        for commit in 1..=3 {
            state.commit = commit;
            file.write(&sealer, &serde_json::to_vec(&state).unwrap()).unwrap();
        }
        assert_eq!(LedgerFile::open(&path, &sealer).unwrap().1.unwrap().commit, 3);
        // Commits 1 and 3 went to slot 0.
        file.file.write_all_at(b"spoiled", 40).unwrap();
        let (mut file, state) = LedgerFile::open(&path, &sealer).unwrap();
        assert_eq!(state.unwrap().commit, 2);
        let mut state = State::new("k");
        state.commit = 9;
        file.write(&sealer, &serde_json::to_vec(&state).unwrap()).unwrap();
        assert_eq!(LedgerFile::read(&path, &sealer).unwrap().commit, 9);
    }

    proptest::proptest! {
        #[test]
        fn no_content_of_the_files_makes_reading_them_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300), at in 0..70_000u64) {
            let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
            let (path, sealer) = (dir.path().join("x"), sealer(dir.path()));
            let file = open_fixed(&path, 2 * SLOT).unwrap();
            file.write_all_at(&bytes, at).unwrap();
            assert!(LedgerFile::read(&path, &sealer).is_none());
            file.write_all_at(&bytes, 0).unwrap();
            assert!(AcceptedFile::open(&path, Uuid::nil()).is_ok());
            assert!(State::read(&bytes).is_err());
        }
    }

    #[test]
    fn what_was_accepted_is_read_back_and_other_books_are_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("accepted");
        let books = Uuid::now_v7();
        let (mut file, none) = AcceptedFile::open(&path, books).unwrap();
        assert_eq!(none, None);
        for count in 1..=5 {
            file.write([count, 2 * count, 3]);
        }
        assert_eq!(AcceptedFile::open(&path, books).unwrap().1, Some([5, 10, 3]));
        assert_eq!(AcceptedFile::open(&path, Uuid::now_v7()).unwrap().1, None);
        file.file.write_all_at(&[0xff], 30).unwrap();
        assert_eq!(AcceptedFile::open(&path, books).unwrap().1, Some([4, 8, 3]));
    }
}
