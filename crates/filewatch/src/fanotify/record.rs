//! The records that a read of a fanotify group brings, taken apart. The layout is that of `fanotify(7)`:
//!
//! ```text
//! struct fanotify_event_metadata { u32 event_len; u8 vers; u8 reserved; u16 metadata_len; u64 mask; i32 fd; i32 pid; }
//! then, until event_len:  struct { u8 info_type; u8 pad; u16 len; ... }
//! of a handle:            fsid (8 bytes), u32 handle_bytes, i32 handle_type, handle, and a name that ends with NUL
//! ```

use crate::notice::{Handle, Place, What};

/// `FANOTIFY_METADATA_VERSION`.
const VERSION: u8 = 3;
const METADATA: usize = 24;
/// Record types (`FAN_EVENT_INFO_TYPE_*`).
const FID: u8 = 1;
const DFID_NAME: u8 = 2;
const DFID: u8 = 3;
const OLD_DFID_NAME: u8 = 10;
const NEW_DFID_NAME: u8 = 12;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) what: What,
    /// Who did it; `None` where the kernel does not say (another pid namespace).
    pub(super) pid: Option<u32>,
    /// The folder, and the name in it; the old one of a rename.
    pub(super) place: Option<(Place, Option<Box<[u8]>>)>,
    /// The new folder and name.
    pub(super) to: Option<(Place, Box<[u8]>)>,
    /// The file itself.
    pub(super) child: Option<Handle>,
}

/// What the kernel wrote makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("a record is cut short")]
    Short,
    #[error("events have version {0}, and this program knows version 3")]
    Version(u8),
}

/// The events in `bytes`, up to the first that makes no sense.
pub(super) fn events(mut bytes: &[u8]) -> impl Iterator<Item = Result<Event, Malformed>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        match event(bytes) {
            Ok((event, rest)) => {
                bytes = rest;
                Some(Ok(event))
            }
            Err(error) => {
                bytes = &[];
                Some(Err(error))
            }
        }
    })
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Malformed> {
    let part = bytes.get(at..).and_then(|rest| rest.first_chunk()).ok_or(Malformed::Short)?;
    Ok(*part)
}

fn event(bytes: &[u8]) -> Result<(Event, &[u8]), Malformed> {
    let length = usize::try_from(u32::from_ne_bytes(array(bytes, 0)?)).map_err(|_| Malformed::Short)?;
    let [version] = array(bytes, 4)?;
    if version != VERSION {
        return Err(Malformed::Version(version));
    }
    let metadata = usize::from(u16::from_ne_bytes(array(bytes, 6)?));
    let mask = u64::from_ne_bytes(array(bytes, 8)?);
    let pid = i32::from_ne_bytes(array(bytes, 20)?);
    if metadata < METADATA || length < metadata {
        return Err(Malformed::Short);
    }
    let (whole, rest) = bytes.split_at_checked(length).ok_or(Malformed::Short)?;
    let mut event = Event {
        what: what(mask),
        pid: u32::try_from(pid).ok().filter(|pid| *pid != 0),
        place: None,
        to: None,
        child: None,
    };
    let mut records = whole.get(metadata..).ok_or(Malformed::Short)?;
    while !records.is_empty() {
        let [kind, _] = array(records, 0)?;
        let length = usize::from(u16::from_ne_bytes(array(records, 2)?));
        if length < 4 {
            return Err(Malformed::Short);
        }
        let (record, after) = records.split_at_checked(length).ok_or(Malformed::Short)?;
        records = after;
        match kind {
            FID => event.child = Some(handle(record)?.0),
            DFID | DFID_NAME | OLD_DFID_NAME => {
                let (handle, name) = handle(record)?;
                // A name of "." says that the folder itself is meant.
                let name = name.filter(|name| *name != b".").map(Into::into);
                event.place = Some((Place::Handle(handle), name));
            }
            NEW_DFID_NAME => {
                let (handle, name) = handle(record)?;
                event.to = name.map(|name| (Place::Handle(handle), name.into()));
            }
            // What a newer kernel adds is not for us.
            _ => {}
        }
    }
    // Of a rename whose old place lies outside of the marked file systems only the new one is told.
    Ok((event, rest))
}

/// The handle of a record, and the name after it.
fn handle(record: &[u8]) -> Result<(Handle, Option<&[u8]>), Malformed> {
    let fsid: [u8; 8] = array(record, 4)?;
    let length = usize::try_from(u32::from_ne_bytes(array(record, 12)?)).map_err(|_| Malformed::Short)?;
    let end = 20_usize.checked_add(length).ok_or(Malformed::Short)?;
    let handle = record.get(16..end).ok_or(Malformed::Short)?;
    let name = record.get(end..).and_then(|name| name.split(|byte| *byte == 0).next()).filter(|name| !name.is_empty());
    Ok((fsid.iter().chain(handle).copied().collect(), name))
}

/// Bits of `linux/fanotify.h`.
fn what(mask: u64) -> What {
    let table = [
        (0x2, What::WROTE),
        (0x4, What::ATTRIBUTES),
        (0x8, What::CLOSED),
        (0x40, What::MOVED_FROM),
        (0x80, What::MOVED_TO),
        (0x100, What::CREATED),
        (0x200, What::DELETED),
        (0x4000, What::OVERFLOW),
        (0x1000_0000, What::RENAMED),
        (0x4000_0000, What::DIRECTORY),
    ];
    table.iter().filter(|(bit, _)| mask & bit != 0).fold(What::default(), |all, (_, what)| all.with(*what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(kind: u8, handle: &[u8], name: &[u8]) -> Vec<u8> {
        let mut body = vec![9; 8];
        body.extend(u32::try_from(handle.len()).unwrap().to_ne_bytes());
        body.extend(1_i32.to_ne_bytes());
        body.extend(handle);
        body.extend(name);
        body.push(0);
        body.resize(body.len().next_multiple_of(4), 0);
        let mut record = vec![kind, 0];
        record.extend(u16::try_from(body.len() + 4).unwrap().to_ne_bytes());
        record.extend(body);
        record
    }

    fn whole(mask: u64, pid: i32, records: &[Vec<u8>]) -> Vec<u8> {
        let records = records.concat();
        let mut bytes = u32::try_from(METADATA + records.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend([VERSION, 0]);
        bytes.extend(u16::try_from(METADATA).unwrap().to_ne_bytes());
        bytes.extend(mask.to_ne_bytes());
        bytes.extend((-1_i32).to_ne_bytes());
        bytes.extend(pid.to_ne_bytes());
        bytes.extend(records);
        bytes
    }

    #[test]
    fn a_rename_has_both_names_and_a_name_of_one_dot_is_the_folder_itself() {
        let mut bytes =
            whole(0x1000_0000, 42, &[record(OLD_DFID_NAME, b"AAAA", b"old"), record(NEW_DFID_NAME, b"BBBB", b"new")]);
        bytes.extend(whole(0x4000_0004, 42, &[record(DFID_NAME, b"AAAA", b".")]));
        bytes.extend(whole(0x4000, 0, &[]));
        let all: Vec<Event> = events(&bytes).map(Result::unwrap).collect();
        let handle = |bytes: &[u8]| Place::Handle([&[9; 8][..], &1_i32.to_ne_bytes(), bytes].concat().into());
        assert_eq!(all[0].place, Some((handle(b"AAAA"), Some(b"old"[..].into()))));
        assert_eq!(all[0].to, Some((handle(b"BBBB"), b"new"[..].into())));
        assert_eq!(all[0].pid, Some(42));
        assert_eq!(all[1].place, Some((handle(b"AAAA"), None)));
        assert!(all[1].what.has(What::DIRECTORY) && all[1].what.has(What::ATTRIBUTES));
        assert!(all[2].what.has(What::OVERFLOW) && all[2].pid.is_none());
    }

    #[test]
    fn a_record_of_another_version_or_cut_short_is_told() {
        let mut bytes = whole(0x100, 1, &[record(DFID_NAME, b"AAAA", b"x")]);
        assert_eq!(events(&bytes[..bytes.len() - 1]).last(), Some(Err(Malformed::Short)));
        bytes[4] = 4;
        assert_eq!(events(&bytes).last(), Some(Err(Malformed::Version(4))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_fail_or_run_on(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(events(&bytes).count() <= bytes.len());
        }

        #[test]
        fn no_damage_to_an_event_makes_the_parser_fail(at in 0_usize..120, byte: u8) {
            let mut bytes = whole(0x100, 1, &[record(DFID_NAME, b"AAAAAAAA", b"a name"), record(FID, b"BB", b"")]);
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            prop_assert!(events(&bytes).count() <= 3);
        }
    }
}
