//! Rows out of the bytes of a database, whatever has become of its trees: page by page, without SQLite.
//!
//! Every row carries a SHA-256 over its table, id, time and payload, so a row that is found is known to be whole, and to
//! which table it belongs, wherever it is found. The form of pages is that of sqlite.org/fileformat2.html §1.6 "B-tree
//! Pages" and §2.1 "Record Format". Two readings of a page:
//!
//! 1. a leaf of a table is read by its array of cells: only live rows are in it;
//! 2. a page that should be one and does not read as one is searched at every offset. What was deleted may reappear then:
//!    retention will see to it again.

use crate::Table;
use crate::log::Log;
use crate::schema::PAGE_BYTES;
use crate::table::{SealedRow, digest};
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

const PAGE: usize = PAGE_BYTES as usize;
const MAGIC: &[u8] = b"SQLite format 3\0";
/// How long a payload may be: a record, its seal, and the header of the row.
const MAX_PAYLOAD: u64 = (picket_seal::MAX_RECORD_BYTES + picket_seal::OVERHEAD + 200) as u64;

/// The pages of a database with its log laid over them.
pub(crate) struct Pages {
    /// None where the log is all that is left.
    file: Option<File>,
    log: Option<(File, Log)>,
    count: u32,
}

/// What a page gave.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Rows that are whole.
    pub(crate) rows: Vec<SealedRow>,
    /// Whether something on the page should have been a row and is not.
    pub(crate) broken: bool,
    /// Whether there is nothing but zeroes on the page.
    pub(crate) zeroed: bool,
}

/// The pages that are free, from the list in the file.
#[derive(Debug, Default)]
pub(crate) struct Free {
    pages: HashSet<u32>,
    /// Whether the list has as many as the header says: only then is a page that is not on it known to be in use.
    pub(crate) whole: bool,
}

impl Free {
    pub(crate) fn has(&self, page: u32) -> bool {
        self.pages.contains(&page)
    }
}

/// The page of the lock bytes, at 1 GiB (fileformat2, §1.4): SQLite never writes it.
const LOCK_PAGE: u32 = (1 << 30) / PAGE_BYTES + 1;

impl Pages {
    pub(crate) fn new(file: Option<File>, log: Option<(File, Log)>) -> io::Result<Self> {
        let bytes = file.as_ref().map_or(Ok(0), |file| file.metadata().map(|meta| meta.len()))?;
        let own = u32::try_from(bytes.div_ceil(u64::from(PAGE_BYTES))).unwrap_or(u32::MAX);
        let count = log.as_ref().map_or(own, |(_, log)| own.max(log.database_pages));
        Ok(Self { file, log, count })
    }

    /// How many pages there are; they count from 1.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// The bytes of a page; what lies beyond the end of the file reads as zeroes.
    pub(crate) fn read(&self, page: u32, bytes: &mut [u8; PAGE]) -> io::Result<()> {
        bytes.fill(0);
        let (file, mut offset) = match (&self.log, &self.file) {
            (Some((file, log)), _) if log.pages.contains_key(&page) => (file, log.pages[&page]),
            (_, Some(file)) => (file, u64::from(page.saturating_sub(1)) * u64::from(PAGE_BYTES)),
            _ => return Ok(()),
        };
        let mut filled = 0;
        while filled < PAGE {
            match file.read_at(&mut bytes[filled..], offset) {
                Ok(0) => break,
                Ok(read) => {
                    filled += read;
                    offset += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// How many pages the header says there are beyond those that there are: they were cut off.
    pub(crate) fn cut(&self) -> io::Result<u32> {
        let mut page = [0; PAGE];
        self.read(1, &mut page)?;
        // The number counts only if it was written with the last change (fileformat2, §1.3.7).
        let counts = page.starts_with(MAGIC) && be32(&page, 24) == be32(&page, 92);
        Ok(if counts { be32(&page, 28).saturating_sub(self.count) } else { 0 })
    }

    /// The pages that are free, as far as the list of them can be followed.
    pub(crate) fn free(&self) -> io::Result<Free> {
        let mut page = [0; PAGE];
        self.read(1, &mut page)?;
        let mut free = HashSet::new();
        let (named, is_header) = (be32(&page, 36), page.starts_with(MAGIC));
        let mut trunk = be32(&page, 32);
        while trunk > 1 && trunk <= self.count && free.insert(trunk) {
            self.read(trunk, &mut page)?;
            let leaves = (be32(&page, 4) as usize).min(PAGE / 4 - 2);
            free.extend((0..leaves).map(|i| be32(&page, 8 + 4 * i)).filter(|leaf| (2..=self.count).contains(leaf)));
            trunk = be32(&page, 0);
        }
        let whole = is_header && u32::try_from(free.len()) == Ok(named);
        Ok(Free { pages: free, whole })
    }

    /// Times and ids of rows that a page of an index names: every row stands in the index of its table, too.
    pub(crate) fn index_entries(&self, page: u32) -> io::Result<Vec<(i64, i64)>> {
        let mut bytes = [0; PAGE];
        self.read(page, &mut bytes)?;
        let array = match bytes[0] {
            0x0a if page > 1 => 8,
            0x02 if page > 1 => 12,
            _ => return Ok(Vec::new()),
        };
        let cells = usize::from(be16(&bytes, 3)).min((PAGE - array) / 2);
        let entry = |cell: usize| {
            // An interior cell has the number of a page before it.
            let at = usize::from(be16(&bytes, array + 2 * cell)) + if array == 12 { 4 } else { 0 };
            index_entry(&bytes, at)
        };
        Ok((0..cells).filter_map(entry).collect())
    }

    /// All rows of a page.
    pub(crate) fn rows(&self, page: u32) -> io::Result<Found> {
        let mut bytes = [0; PAGE];
        self.read(page, &mut bytes)?;
        let head = if page == 1 { 100 } else { 0 };
        let mut found = Found { broken: page == 1 && !bytes.starts_with(MAGIC), ..Found::default() };
        if bytes[head] == 0x0d && self.by_cells(&bytes, head, &mut found)? {
            return Ok(found);
        }
        found.zeroed = page != LOCK_PAGE && bytes.iter().all(|byte| *byte == 0);
        if found.zeroed || is_other_tree_page(&bytes, head) {
            return Ok(found);
        }
        let before = found.rows.len();
        self.by_search(&bytes, &mut found)?;
        // A page of a long payload has no cells and gives nothing when it is searched.
        found.broken |= found.rows.len() > before || bytes[head] == 0x0d;
        Ok(found)
    }

    /// Reads the cells that the page's array names; `false` if a cell is not where it should be.
    fn by_cells(&self, bytes: &[u8; PAGE], head: usize, found: &mut Found) -> io::Result<bool> {
        let cells = usize::from(be16(bytes, head + 3));
        if head + 8 + 2 * cells > PAGE {
            return Ok(false);
        }
        for cell in 0..cells {
            let at = usize::from(be16(bytes, head + 8 + 2 * cell));
            match self.row_at(bytes, at)? {
                Some(row) => found.rows.push(row),
                // The schema and the page of `meta` have cells, too, which are no rows.
                None if head == 0 => found.broken = true,
                None => {}
            }
        }
        Ok(!found.broken || head > 0)
    }

    fn by_search(&self, bytes: &[u8; PAGE], found: &mut Found) -> io::Result<()> {
        let mut at = 0;
        while at < PAGE {
            match self.row_at(bytes, at)? {
                Some(row) if !found.rows.iter().any(|known| (known.table, known.id) == (row.table, row.id)) => {
                    found.rows.push(row);
                }
                _ => {}
            }
            at += 1;
        }
        Ok(())
    }

    /// The row whose cell begins at `at`, if one does and it is whole.
    fn row_at(&self, bytes: &[u8; PAGE], at: usize) -> io::Result<Option<SealedRow>> {
        let Some((length, at)) = varint(bytes, at) else { return Ok(None) };
        let Some((id, at)) = varint(bytes, at) else { return Ok(None) };
        if !(40..=MAX_PAYLOAD).contains(&length) {
            return Ok(None);
        }
        // The header of the record is looked at before a long payload is gathered: most offsets are no cell.
        let Some(columns) = columns(bytes, at, length) else { return Ok(None) };
        let Some(payload) = self.payload(bytes, at, length)? else { return Ok(None) };
        let Some(time) = columns.time(&payload) else { return Ok(None) };
        let (sealed, sha256) = payload[columns.sealed..].split_at(columns.sealed_length);
        let id = id.cast_signed();
        let table = Table::ALL.into_iter().find(|table| digest(*table, id, time, sealed) == sha256);
        Ok(table.map(|table| SealedRow { table, id, at: time, sealed: sealed.to_vec(), sha256: sha256.to_vec() }))
    }

    /// The payload that begins at `at`, with what of it lies on pages of overflow.
    fn payload(&self, bytes: &[u8; PAGE], at: usize, length: u64) -> io::Result<Option<Vec<u8>>> {
        let Ok(length) = usize::try_from(length) else { return Ok(None) };
        let local = local_bytes(length);
        if at + local > PAGE {
            return Ok(None);
        }
        let mut payload = Vec::with_capacity(length);
        payload.extend_from_slice(&bytes[at..at + local]);
        if local == length {
            return Ok(Some(payload));
        }
        if at + local + 4 > PAGE {
            return Ok(None);
        }
        let mut next = be32(bytes, at + local);
        let mut page = [0; PAGE];
        while payload.len() < length {
            if next < 2 || next > self.count {
                return Ok(None);
            }
            self.read(next, &mut page)?;
            let taken = (length - payload.len()).min(PAGE - 4);
            payload.extend_from_slice(&page[4..4 + taken]);
            next = be32(&page, 0);
        }
        Ok(Some(payload))
    }
}

/// Where the columns of a record lie that has the four of a row of ours: NULL (the id), a whole number, a blob, 32 bytes.
struct Columns {
    time: usize,
    time_type: u64,
    sealed: usize,
    sealed_length: usize,
}

fn columns(bytes: &[u8; PAGE], at: usize, length: u64) -> Option<Columns> {
    let (header, mut cursor) = varint(bytes, at)?;
    let mut types = [0; 4];
    for kind in &mut types {
        (*kind, cursor) = varint(bytes, cursor)?;
    }
    if (cursor - at) as u64 != header || types[0] != 0 || types[3] != 12 + 2 * 32 || types[2] < 12 || types[2] % 2 != 0
    {
        return None;
    }
    let time_length = integer_length(types[1])?;
    let sealed_length = (types[2] - 12) / 2;
    if header + time_length as u64 + sealed_length + 32 != length {
        return None;
    }
    let time = cursor - at;
    let sealed_length = usize::try_from(sealed_length).ok()?;
    Some(Columns { time, time_type: types[1], sealed: time + time_length, sealed_length })
}

/// The time and the id of an entry of an index whose cell begins at `at`: a record of two whole numbers.
fn index_entry(bytes: &[u8; PAGE], at: usize) -> Option<(i64, i64)> {
    let (length, at) = varint(bytes, at)?;
    let (header, cursor) = varint(bytes, at)?;
    let (time, cursor) = varint(bytes, cursor)?;
    let (id, cursor) = varint(bytes, cursor)?;
    let (time_length, id_length) = (integer_length(time)?, integer_length(id)?);
    if (cursor - at) as u64 != header || header + (time_length + id_length) as u64 != length {
        return None;
    }
    let time_value = integer(time, bytes.get(cursor..cursor + time_length)?);
    Some((time_value, integer(id, bytes.get(cursor + time_length..cursor + time_length + id_length)?)))
}

impl Columns {
    fn time(&self, payload: &[u8]) -> Option<i64> {
        Some(integer(self.time_type, payload.get(self.time..self.sealed)?))
    }
}

/// A whole number of the serial type `kind` (fileformat2, §2.1).
fn integer(kind: u64, bytes: &[u8]) -> i64 {
    match kind {
        8 => 0,
        9 => 1,
        _ => {
            let sign = if bytes.first().is_none_or(|first| first & 0x80 == 0) { 0 } else { -1 };
            bytes.iter().fold(sign, |value, byte| (value << 8) | i64::from(*byte))
        }
    }
}

fn integer_length(kind: u64) -> Option<usize> {
    Some(match kind {
        8 | 9 => 0,
        1..=4 => usize::try_from(kind).ok()?,
        5 => 6,
        6 => 8,
        _ => return None,
    })
}

/// How much of a payload lies on the leaf itself (fileformat2, §1.6: U is the page, X = U−35).
fn local_bytes(length: usize) -> usize {
    let most = PAGE - 35;
    if length <= most {
        return length;
    }
    let least = (PAGE - 12) * 32 / 255 - 23;
    let wanted = least + (length - least) % (PAGE - 4);
    if wanted <= most { wanted } else { least }
}

/// Whether the page reads as an interior page or as one of an index: those hold no rows.
fn is_other_tree_page(bytes: &[u8; PAGE], head: usize) -> bool {
    let (array, right) = match bytes[head] {
        0x05 | 0x02 => (12, true),
        0x0a => (8, false),
        _ => return false,
    };
    let cells = usize::from(be16(bytes, head + 3));
    let content = usize::from(be16(bytes, head + 5));
    let end = head + array + 2 * cells;
    cells > 0 && end <= PAGE && (content == 0 || content >= end) && (!right || be32(bytes, head + 8) > 1)
}

/// A variable-length integer (fileformat2, §1.6) and the offset after it.
fn varint(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for i in 0..9 {
        let byte = *bytes.get(at + i)?;
        if i == 8 {
            return Some(((value << 8) | u64::from(byte), at + 9));
        }
        value = (value << 7) | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, at + i + 1));
        }
    }
    None
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write as _;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn outside_bytes_never_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), PAGE * 3),
            kind in prop::sample::select(vec![0x0du8, 0x0a, 0x05, 0x02, 0]),
        ) {
            bytes[PAGE] = kind;
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            let pages = Pages::new(Some(file), None).unwrap();
            let _ = (pages.free().unwrap(), pages.cut().unwrap());
            for page in 1..=3 {
                let _ = pages.index_entries(page).unwrap();
                prop_assert!(pages.rows(page).unwrap().rows.is_empty());
            }
        }
    }
}
