//! What was taken back, written down beside the keys: a record outside the database, so that a backup that is restored,
//! even onto an empty machine, brings nothing back to life.
//!
//! `revoked.jsonl` grows a line for each thing, before the thing is done, and is never written anew. Each line begins and
//! ends with a line feed: a line that a crash tore does not spoil the next one.

use super::{KeysError, KeysFolder};
use picket_hub_db::RevocationRecord;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

/// The record's name in the folder of keys.
pub const REVOKED: &str = "revoked.jsonl";
/// The longest line that is read, in bytes.
const LINE_MAX: u64 = 16 << 10;

/// The record, to add to.
#[derive(Debug, Clone)]
pub struct RevocationLog {
    path: PathBuf,
}

/// What the record says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recorded {
    /// What was taken back, the oldest first.
    pub records: Vec<RevocationRecord>,
    /// How many lines cannot be read.
    pub unreadable: u64,
}

impl RevocationLog {
    /// Adds to the record. When it returns, it is on the disk.
    ///
    /// # Errors
    /// When the folder cannot be written to, as where it is mounted read-only.
    pub fn add(&self, record: &RevocationRecord) -> Result<(), KeysError> {
        let write = || {
            let line = serde_json::to_string(record)?;
            let mut file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?;
            file.write_all(format!("\n{line}\n").as_bytes())?;
            file.sync_data()
        };
        write().map_err(|error| picket_durable::Error::new("write", &self.path, error).into())
    }

    /// Reads the record; nothing is in one that is not there.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self) -> Result<Recorded, KeysError> {
        let wrong = |error| KeysError::File(picket_durable::Error::new("read", &self.path, error));
        let file = match std::fs::File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Recorded::default()),
            Err(error) => return Err(wrong(error)),
        };
        let (mut reader, mut recorded, mut line) = (BufReader::new(file), Recorded::default(), Vec::new());
        loop {
            line.clear();
            let read = std::io::Read::take(&mut reader, LINE_MAX).read_until(b'\n', &mut line).map_err(wrong)?;
            if read == 0 {
                return Ok(recorded);
            }
            let text = line.trim_ascii();
            match serde_json::from_slice(text) {
                Ok(record) => recorded.records.push(record),
                Err(_) if text.is_empty() => {}
                Err(_) => recorded.unreadable += 1,
            }
        }
    }
}

impl KeysFolder {
    /// The record of what was taken back.
    pub fn revocations(&self) -> RevocationLog {
        RevocationLog { path: self.path(REVOKED) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_hub_db::RevokedWhat;

    fn record(serial: &str) -> RevocationRecord {
        let what = RevokedWhat::Certificate { serial: serial.into(), reason: "keyCompromise".into() };
        RevocationRecord { tenant: 1, at: jiff::Timestamp::UNIX_EPOCH, by: "ada".into(), what }
    }

    #[test]
    fn what_is_added_is_read_and_a_line_that_a_crash_tore_costs_itself_alone() {
        let folder = tempfile::tempdir().unwrap();
        let log = KeysFolder::new(folder.path()).revocations();
        assert_eq!(log.read().unwrap(), Recorded::default());
        log.add(&record("01")).unwrap();
        let mut file = std::fs::OpenOptions::new().append(true).open(folder.path().join(REVOKED)).unwrap();
        file.write_all(b"\n{\"tenant\":1,\"at\":\"19").unwrap();
        log.add(&record("02")).unwrap();
        let recorded = log.read().unwrap();
        assert_eq!(recorded.records, [record("01"), record("02")]);
        assert_eq!(recorded.unreadable, 1);
    }

    #[test]
    fn a_record_of_anything_is_read_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let log = KeysFolder::new(folder.path()).revocations();
        let mut text = vec![b'x'; 100_000];
        text.extend([0, 255, 10, b'{', 10]);
        picket_durable::write_atomic(&folder.path().join(REVOKED), &text, 0o600).unwrap();
        assert!(log.read().unwrap().unreadable >= 2);
    }
}
