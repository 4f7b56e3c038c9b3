//! Which file systems are worth measuring: the mount table, read and decided on.
//!
//! Three kinds are told apart by their type. *Local* ones hold data of this machine. *Virtual* ones hold none of it
//! (memory, the kernel's own views, layers of containers over a file system that is measured anyway). *Remote* ones are
//! somebody else's, and may stop answering: `statvfs` on a dead NFS mount waits for ever.

use super::text::{lines, number, printable, words};
use std::collections::BTreeSet;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// The most file systems that are measured: each is a label value in the metrics.
pub const MAX_FILE_SYSTEMS: usize = 64;

/// What kind of file system a type is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Local,
    Remote,
    Virtual,
}

/// One file system that is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) point: PathBuf,
    pub(super) source: String,
    pub(super) fs_type: String,
    /// Whether the file system itself takes no writes. That it cannot be written *through this mount* is nothing: to a
    /// service under `ProtectSystem=strict` every disk looks so.
    pub(super) read_only: bool,
    pub(super) kind: Kind,
    /// The device number: mounts with the same one show the same space.
    pub(super) device: (u64, u64),
}

/// Types without data of this machine's. Images (squashfs, ISO 9660) are full by nature: no news.
const VIRTUAL: [&[u8]; 35] = [
    b"aufs",
    b"autofs",
    b"binder",
    b"binfmt_misc",
    b"bpf",
    b"cgroup",
    b"cgroup2",
    b"configfs",
    b"cramfs",
    b"debugfs",
    b"devpts",
    b"devtmpfs",
    b"efivarfs",
    b"erofs",
    b"fuse.lxcfs",
    b"fuse.portal",
    b"fusectl",
    b"hugetlbfs",
    b"iso9660",
    b"mqueue",
    b"nsfs",
    b"overlay",
    b"proc",
    b"pstore",
    b"ramfs",
    b"rootfs",
    b"rpc_pipefs",
    b"securityfs",
    b"selinuxfs",
    b"smackfs",
    b"squashfs",
    b"sysfs",
    b"tmpfs",
    b"tracefs",
    b"udf",
];

/// Types behind a network, a hypervisor, or a program (FUSE) that may stop answering.
const REMOTE: [&[u8]; 18] = [
    b"9p",
    b"afs",
    b"beegfs",
    b"ceph",
    b"cifs",
    b"coda",
    b"davfs",
    b"fuse",
    b"gfs2",
    b"glusterfs",
    b"gpfs",
    b"lustre",
    b"ncpfs",
    b"nfs",
    b"nfs4",
    b"ocfs2",
    b"smb3",
    b"virtiofs",
];

impl Kind {
    /// The kind of `fs_type`; what nobody knows is taken for local.
    pub(super) fn of(fs_type: &[u8]) -> Self {
        if VIRTUAL.contains(&fs_type) {
            Self::Virtual
        } else if REMOTE.contains(&fs_type) || fs_type.starts_with(b"fuse.") {
            Self::Remote
        } else {
            Self::Local
        }
    }
}

/// Which kinds are measured besides the local ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) remote: bool,
    pub(super) virtual_: bool,
}

/// The file systems of a mount table (`/proc/self/mountinfo`) that are measured, each once, local ones first.
pub(super) fn select(table: &[u8], wanted: Wanted) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = lines(table).filter_map(parse).filter(|mount| is_wanted(mount, wanted)).collect();
    // Of several mounts of one file system the shortest path is the one people mean.
    mounts.sort_by(|a, b| {
        let key = |mount: &Mount| (mount.kind, mount.point.as_os_str().len());
        key(a).cmp(&key(b)).then_with(|| a.point.cmp(&b.point))
    });
    let mut seen = BTreeSet::new();
    mounts.retain(|mount| seen.insert(mount.device));
    mounts.truncate(MAX_FILE_SYSTEMS);
    mounts
}

fn is_wanted(mount: &Mount, wanted: Wanted) -> bool {
    match mount.kind {
        Kind::Local => true,
        Kind::Remote => wanted.remote,
        // In a container the root is a layer, and the only file system there is to measure.
        Kind::Virtual => wanted.virtual_ || (mount.fs_type == "overlay" && mount.point.as_os_str() == "/"),
    }
}

/// One line: `36 35 98:0 /root /mount/point rw,noatime shared:1 - ext4 /dev/root rw` (proc(5)).
fn parse(line: &[u8]) -> Option<Mount> {
    let mut columns = words(line);
    let device = columns.nth(2)?;
    let colon = device.iter().position(|byte| *byte == b':')?;
    let device = (number(&device[..colon])?, number(&device[colon + 1..])?);
    let point = unescape(columns.nth(1)?);
    // Any number of optional fields stand before the hyphen.
    columns.find(|word| *word == b"-")?;
    let (fs_type, source, super_options) = (columns.next()?, columns.next()?, columns.next().unwrap_or_default());
    Some(Mount {
        point: PathBuf::from(std::ffi::OsString::from_vec(point)),
        source: printable(&unescape(source), 256),
        fs_type: printable(fs_type, 64),
        read_only: super_options.split(|byte| *byte == b',').any(|option| option == b"ro"),
        kind: Kind::of(fs_type),
        device,
    })
}

/// Turns the kernel's `\040` (octal) for space, tab, newline and backslash back into the byte.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, behind)) = rest.split_first() {
        let octal = (*first == b'\\')
            .then(|| behind.get(..3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = &behind[3..];
            }
            None => {
                out.push(*first);
                rest = behind;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLE: &[u8] = b"22 27 0:21 / /proc rw,relatime - proc proc rw\n\
        27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw\n\
        40 27 254:0 /var/lib/x /var/lib/docker/volumes/x rw - ext4 /dev/vda rw\n\
        41 27 8:1 / /srv/with\\040space rw,relatime - xfs /dev/sda1 ro\n\
        42 27 0:40 / /home rw - nfs4 server:/home rw,vers=4.2\n\
        43 27 0:41 / /run rw,nosuid - tmpfs tmpfs rw,size=1k\n\
        44 27 0:42 / /var/lib/docker/overlay2/abc/merged rw - overlay overlay rw\n\
        45 27 0:43 / /mnt/sftp rw - fuse.sshfs me@there: rw\n";

    fn points(wanted: Wanted) -> Vec<String> {
        select(TABLE, wanted).into_iter().map(|mount| mount.point.display().to_string()).collect()
    }

    #[test]
    fn local_file_systems_are_measured_once_each_and_others_only_when_asked_for() {
        assert_eq!(points(Wanted::default()), ["/", "/srv/with space"]);
        let remote = Wanted { remote: true, virtual_: false };
        assert_eq!(points(remote), ["/", "/srv/with space", "/home", "/mnt/sftp"]);
        let all = points(Wanted { remote: true, virtual_: true });
        assert!(all.contains(&"/run".to_owned()) && all.contains(&"/proc".to_owned()), "{all:?}");
        assert!(select(TABLE, Wanted::default())[1].read_only);
    }

    #[test]
    fn a_disk_that_only_our_sandbox_shows_read_only_is_not() {
        let table =
            b"1 0 8:1 / / ro,relatime - ext4 /dev/sda1 rw\n2 1 8:1 /var/lib/x /var/lib/x rw - ext4 /dev/sda1 rw\n";
        let mounts = select(table, Wanted::default());
        assert_eq!((mounts.len(), mounts[0].read_only), (1, false));
    }

    #[test]
    fn a_containers_root_is_measured_though_it_is_a_layer() {
        let table = b"1 0 0:9 / / rw - overlay overlay rw,lowerdir=/a\n";
        assert_eq!(select(table, Wanted::default()).len(), 1);
    }

    #[test]
    fn a_machine_with_a_thousand_mounts_has_a_bounded_number_measured() {
        let lines: Vec<String> = (0..1_000).map(|n| format!("1 1 8:{n} / /disk{n} rw - ext4 /dev/x rw\n")).collect();
        assert_eq!(select(lines.concat().as_bytes(), Wanted::default()).len(), MAX_FILE_SYSTEMS);
    }

    proptest! {
        #[test]
        fn any_table_is_read_without_a_panic(noise in any::<Vec<u8>>(), text in "([0-9:/ \\\\a-z-]{0,60}\n){0,5}") {
            let all = Wanted { remote: true, virtual_: true };
            select(&noise, all);
            select(text.as_bytes(), all);
            unescape(&noise);
        }
    }
}
