//! What is mounted at, above and below the watched paths: a folder can become another one without any event.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

/// The longest `/proc/self/mountinfo` that is read: some ten thousand mounts.
const MOUNTINFO_MAX: u64 = 4 << 20;
const MOUNTINFO: &str = "/proc/self/mountinfo";

/// Asks `statx(2)` for the id of a mount that no other mount gets after it; `linux/stat.h`, since Linux 6.8.
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// How often a mount is taken for another one because nothing can tell that it is the same.
const DOUBT_EVERY: Duration = Duration::from_secs(60);

/// What is mounted where it matters to the watched paths, and whether it became something else.
pub(crate) struct Mounts {
    /// The kernel says on it that anything was mounted or unmounted since it was asked last; see `proc_pid_mounts(5)`.
    table: Option<File>,
    relevant: Vec<Mount>,
    /// Whether one of them may be another than before, and when we acted on that last.
    doubt: bool,
    doubted: Option<Instant>,
}

/// A mount: its line in the table, and its unique id where the kernel has one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    line: Vec<u8>,
    unique: Option<u64>,
}

impl Mounts {
    pub(crate) fn new(roots: &[Vec<u8>]) -> Self {
        // Opened before the table is read: what is mounted in between is noticed.
        Self { table: File::open(MOUNTINFO).ok(), relevant: mounts_of(roots), doubt: false, doubted: None }
    }

    /// Something was unmounted: the next look is not to take what it finds for that.
    pub(crate) fn suspect(&mut self) {
        self.doubt = true;
        self.doubted = None;
    }

    /// Whether what is mounted may be another thing since the last call.
    pub(crate) fn changed(&mut self, roots: &[Vec<u8>], now: Instant) -> bool {
        let touched = self.table.as_ref().map(touched);
        let mut changed = false;
        if touched != Some(false) {
            let mounts = mounts_of(roots);
            changed = mounts != self.relevant;
            // Numbers are given again: a mount with the same id, device and place can be another one, with other files.
            // Nothing takes the place of the root.
            self.doubt |= touched == Some(true)
                && mounts.iter().any(|mount| mount.unique.is_none() && place(&mount.line) != b"/");
            self.relevant = mounts;
        }
        if self.doubt && self.doubted.is_none_or(|last| now.duration_since(last) >= DOUBT_EVERY) {
            self.doubted = Some(now);
            changed = true;
        }
        if changed {
            self.doubt = false;
        }
        changed
    }
}

/// Whether the table changed since it was opened or asked last.
fn touched(table: &File) -> bool {
    let mut polled = [PollFd::new(table, PollFlags::PRI)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    // What cannot be asked may have changed.
    poll(&mut polled, Some(&at_once)).is_err()
        || polled.iter().any(|fd| fd.revents().intersects(PollFlags::PRI | PollFlags::ERR))
}

/// The mounts at, above and below the paths. None where they cannot be read.
fn mounts_of(roots: &[Vec<u8>]) -> Vec<Mount> {
    let text = picket_durable::read_bounded(Path::new(MOUNTINFO), MOUNTINFO_MAX).unwrap_or_default();
    lines_of(&text, roots).into_iter().map(|line| Mount { unique: unique_id(&place(&line)), line }).collect()
}

fn unique_id(place: &[u8]) -> Option<u64> {
    // Without asking a server that may not answer.
    let stat = statx(CWD, place, AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT, MNT_ID_UNIQUE).ok()?;
    (stat.stx_mask & MNT_ID_UNIQUE.bits() != 0).then_some(stat.stx_mnt_id)
}

/// Where a line says that the mount is.
fn place(line: &[u8]) -> Vec<u8> {
    line.split(|byte| *byte == b' ').nth(4).map(unescape).unwrap_or_default()
}

/// The mount's id, device and place are what makes it this mount and no other: `proc_pid_mountinfo(5)`, fields 1 to 5.
fn lines_of(text: &[u8], roots: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let matters = |line: &&[u8]| {
        let place = place(line);
        !place.is_empty() && roots.iter().any(|root| lies_in(&place, root) || lies_in(root, &place))
    };
    let fields = |line: &[u8]| line.splitn(6, |byte| *byte == b' ').take(5).collect::<Vec<_>>().join(&b' ');
    text.split(|byte| *byte == b'\n').filter(matters).map(fields).collect()
}

/// Whether a path is the folder, or below it.
fn lies_in(path: &[u8], folder: &[u8]) -> bool {
    folder == b"/" || path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// Blanks, tabs, line ends and backslashes are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.filter(|_| *first == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &[u8] = b"21 1 8:1 / / rw - ext4 /dev/sda rw\n\
        40 21 0:35 / /mnt/shared/in\\040here rw - tmpfs tmpfs rw\n\
        41 21 0:36 / /mnt/sharedother rw - tmpfs tmpfs rw\n";

    #[test]
    fn only_mounts_at_above_and_below_a_watched_path_count() {
        let root = b"21 1 8:1 / /".to_vec();
        let shared = b"40 21 0:35 / /mnt/shared/in\\040here".to_vec();
        assert_eq!(lines_of(TEXT, &[b"/mnt/shared".to_vec()]), [root.clone(), shared.clone()]);
        assert_eq!(lines_of(TEXT, &[b"/mnt/shared/in here".to_vec()]), [root.clone(), shared.clone()]);
        assert_eq!(lines_of(TEXT, &[b"/mnt/shared/in here/deep".to_vec()]), [root.clone(), shared]);
        assert_eq!(lines_of(TEXT, &[b"/mnt/shared/in".to_vec()]), [root]);
        assert_eq!(lines_of(TEXT, &[b"/".to_vec()]).len(), 3);
        assert_eq!(unescape(b"a\\040b\\134\\9"), b"a b\\\\9");
    }

    #[test]
    fn a_mount_that_nothing_tells_from_another_is_doubted_at_most_once_a_minute() {
        let now = Instant::now();
        let mount = |unique| Mount { line: b"40 21 0:35 / /mnt".to_vec(), unique };
        let doubtful = |doubted| Mounts { table: None, relevant: vec![mount(None)], doubt: true, doubted };
        let roots = [b"/no such place".to_vec()];
        let changed = |mut mounts: Mounts, at| {
            mounts.relevant = mounts_of(&roots);
            mounts.changed(&roots, at)
        };
        assert!(changed(doubtful(None), now));
        assert!(!changed(doubtful(Some(now)), now + Duration::from_secs(59)));
        assert!(changed(doubtful(Some(now)), now + Duration::from_secs(60)));
        assert_ne!(mount(Some(1)), mount(Some(2)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fail(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = lines_of(&text, &[b"/".to_vec()]);
        }
    }
}
