//! SQLite's write-ahead log as bytes: which of its frames count. Without SQLite, which would change the files.
//!
//! The form is that of sqlite.org/fileformat2.html §4 "The Write-Ahead Log": a header of 32 bytes, then frames of 24 bytes
//! and a page. A frame counts if its salts are the header's and the running checksum holds, up to the last that commits.

use std::collections::HashMap;
use std::io::{self, Read};

const HEADER: usize = 32;
const FRAME: usize = 24;
const MAGIC: u32 = 0x377f_0682;

/// The frames that count.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Log {
    /// For each page its latest committed bytes: where they begin in the file.
    pub(crate) pages: HashMap<u32, u64>,
    /// How many pages the database has by the last commit.
    pub(crate) database_pages: u32,
    /// Frames of this log that are written, but do not count: a crash's, or damage.
    pub(crate) beyond: u64,
}

/// Reads a log of pages of `page_bytes`. Anything that is no such log has no frames that count.
///
/// # Errors
/// What the system says.
pub(crate) fn scan(file: &mut impl Read, page_bytes: u32) -> io::Result<Log> {
    let mut log = Log::default();
    let mut header = [0; HEADER];
    if !fill(file, &mut header)? {
        return Ok(log);
    }
    let magic = word(&header, 0, true);
    if magic & !1 != MAGIC || word(&header, 8, true) != page_bytes {
        return Ok(log);
    }
    let big = magic & 1 == 1;
    let mut sum = checksum(&header[..24], (0, 0), big);
    if sum != (word(&header, 24, true), word(&header, 28, true)) {
        return Ok(log);
    }
    let mut frame = vec![0; FRAME + page_bytes as usize];
    let mut offset = HEADER as u64;
    let mut pending = HashMap::new();
    let mut valid = true;
    while fill(file, &mut frame)? {
        let ours = frame[8..16] == header[16..24];
        if valid {
            let next = checksum(&frame[FRAME..], checksum(&frame[..8], sum, big), big);
            valid = ours && next == (word(&frame, 16, true), word(&frame, 20, true)) && word(&frame, 0, true) > 0;
            sum = next;
        }
        if valid {
            pending.insert(word(&frame, 0, true), offset + FRAME as u64);
            let commit = word(&frame, 4, true);
            if commit > 0 {
                log.database_pages = commit;
                log.pages.extend(pending.drain());
            }
        } else if ours {
            log.beyond += 1;
        }
        offset += frame.len() as u64;
    }
    Ok(log)
}

/// Reads until `bytes` is full; `false` at an end before that.
fn fill(file: &mut impl Read, bytes: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn word(bytes: &[u8], at: usize, big: bool) -> u32 {
    let bytes = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    if big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
}

/// The running checksum over words of 32 bits, two at a time.
fn checksum(bytes: &[u8], (mut a, mut b): (u32, u32), big: bool) -> (u32, u32) {
    for pair in bytes.chunks_exact(8) {
        a = a.wrapping_add(word(pair, 0, big)).wrapping_add(b);
        b = b.wrapping_add(word(pair, 4, big)).wrapping_add(a);
    }
    (a, b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A log as SQLite itself writes it.
    fn real_log() -> (tempfile::TempDir, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection
            .execute_batch(
                "PRAGMA page_size=4096; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; CREATE TABLE t(x);",
            )
            .unwrap();
        for i in 0..20 {
            connection.execute("INSERT INTO t VALUES(?1)", [vec![i; 1000]]).unwrap();
        }
        let bytes = picket_durable::read_bounded(&dir.path().join("db-wal"), 1 << 20).unwrap();
        (dir, bytes)
    }

    #[test]
    fn sqlites_own_log_counts_whole_and_a_flipped_bit_ends_it() {
        let (_dir, mut bytes) = real_log();
        let whole = scan(&mut &*bytes, 4096).unwrap();
        assert!(whole.database_pages > 5 && whole.beyond == 0 && whole.pages.len() > 5);
        assert_eq!(scan(&mut &*bytes, 512).unwrap(), Log::default());
        let middle = HEADER + 10 * (FRAME + 4096) + 2000;
        bytes[middle] ^= 1;
        let cut = scan(&mut &*bytes, 4096).unwrap();
        assert!(cut.beyond > 5 && cut.database_pages < whole.database_pages);
    }

    proptest! {
        #[test]
        fn outside_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let _ = scan(&mut &*bytes, 512);
            let mut headed = MAGIC.to_be_bytes().to_vec();
            headed.extend(bytes);
            let _ = scan(&mut &*headed, 512);
        }
    }
}
