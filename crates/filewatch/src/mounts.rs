//! What is mounted below the watched paths: a folder can become another one without any event.

use std::path::Path;

/// The longest `/proc/self/mountinfo` that is read: some ten thousand mounts.
const MOUNTINFO_MAX: u64 = 4 << 20;

/// The lines of `/proc/self/mountinfo` whose mount point lies below one of the paths. None where it cannot be read.
pub(crate) fn mounts_below(roots: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let text = picket_durable::read_bounded(Path::new("/proc/self/mountinfo"), MOUNTINFO_MAX).unwrap_or_default();
    below(&text, roots)
}

/// The mount's id, device and place are what makes it this mount and no other: `proc_pid_mountinfo(5)`, fields 1 to 5.
fn below(text: &[u8], roots: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let is_below = |line: &&[u8]| {
        let place = line.split(|byte| *byte == b' ').nth(4).map(unescape).unwrap_or_default();
        roots.iter().any(|root| place.strip_prefix(&**root).is_some_and(|rest| root == b"/" || rest.starts_with(b"/")))
    };
    let fields = |line: &[u8]| line.splitn(6, |byte| *byte == b' ').take(5).collect::<Vec<_>>().join(&b' ');
    text.split(|byte| *byte == b'\n').filter(is_below).map(fields).collect()
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
    fn only_mounts_below_a_watched_path_count() {
        assert_eq!(below(TEXT, &[b"/mnt/shared".to_vec()]), [b"40 21 0:35 / /mnt/shared/in\\040here".to_vec()]);
        assert_eq!(below(TEXT, &[b"/mnt/shared/in here".to_vec()]), Vec::<Vec<u8>>::new());
        assert_eq!(below(TEXT, &[b"/".to_vec()]).len(), 3);
        assert_eq!(unescape(b"a\\040b\\134\\9"), b"a b\\\\9");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fail(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = below(&text, &[b"/".to_vec()]);
        }
    }
}
