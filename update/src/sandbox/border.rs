//! The border around the fetcher: what it may read and write, and that it may do nothing else.

use super::Enforced;
use crate::fetcher::Places;
use std::io;
use std::path::{Path, PathBuf};

/// What a process may touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Border {
    /// Folders that it may write, and read.
    pub writable: Vec<PathBuf>,
    /// Files and folders that it may read.
    pub readable: Vec<PathBuf>,
}

/// What looking up a name and checking a certificate read: the resolver's files (resolver(5), nsswitch.conf(5)), the
/// authorities in the places of Debian, Red Hat, SUSE, Alpine and Arch, the time zone, and, where the program is not
/// linked statically, the name service's libraries.
const TLS_CLIENT_READS: [&str; 23] = [
    "/etc/ca-certificates",
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/pki",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl",
    "/lib",
    "/lib64",
    "/run/systemd/resolve",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/share/ca-certificates",
    "/usr/share/ca-certificates",
    "/usr/share/pki",
    "/usr/share/zoneinfo",
    "/var/lib/ca-certificates",
    "/dev/null",
    "/dev/urandom",
];

impl Border {
    /// The fetcher's: its two folders, what is trusted so far, a bundle, and what a TLS client reads.
    pub fn of_fetcher(places: &Places, trusted_files: &[&Path], releases: &Path) -> Self {
        let usual = TLS_CLIENT_READS.iter().map(PathBuf::from);
        let given = trusted_files.iter().copied().chain([releases]).filter(|path| path.is_absolute());
        let readable = usual.chain(given.map(Path::to_owned)).chain([places.trust(), places.bundle()]);
        Self {
            writable: vec![places.out(), places.downloads()],
            readable: readable.filter(|path| path.exists()).collect(),
        }
    }
}

/// The most memory a confined process may have, in bytes: an xz dictionary of 64 MiB, a targets file of 5 MB in several
/// forms, TLS, and as much again; twice over. What bursts this is a bomb.
#[cfg(target_os = "linux")]
const MAX_MEMORY: u64 = 512 << 20;

/// Confines this process, for good, before it meets a stranger's bytes. To be called before any thread is started.
///
/// # Errors
/// When the kernel knows the means and they fail. A kernel that does not know them is reported, not an error.
#[cfg(target_os = "linux")]
pub fn shut_in(border: &Border) -> io::Result<Enforced> {
    use super::linux;
    use rustix::process::{Resource, Rlimit, Signal, setrlimit};
    rustix::thread::set_no_new_privs(true)?;
    // Nobody is left who would hear it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    let limit = |value| Rlimit { current: Some(value), maximum: Some(value) };
    setrlimit(Resource::Data, limit(MAX_MEMORY))?;
    setrlimit(Resource::Core, limit(0))?;
    let writes = linux::confine_files(border)?;
    linux::refuse_calls()?;
    Ok(Enforced { writes, network: false })
}

/// Gives up the network, for good; says whether the kernel enforces it.
#[cfg(target_os = "linux")]
pub fn cut_off() -> io::Result<bool> {
    super::linux::refuse_sockets()
}

/// What this kernel cannot enforce, in words; `None` when it has all the means.
pub fn missing_means() -> Option<String> {
    #[cfg(target_os = "linux")]
    let (landlock, seccomp) = super::linux::means();
    #[cfg(not(target_os = "linux"))]
    let (landlock, seccomp) = (false, false);
    match (landlock, seccomp) {
        (true, true) => None,
        (false, true) => {
            Some("this kernel has no Landlock (Linux 5.13; `lsm=landlock,…` on its command line)".to_owned())
        }
        (true, false) => Some("this kernel has no seccomp filters".to_owned()),
        (false, false) => Some("this system has neither Landlock nor seccomp filters".to_owned()),
    }
}

/// No means are known here: that is reported.
#[cfg(not(target_os = "linux"))]
pub fn shut_in(_border: &Border) -> io::Result<Enforced> {
    Ok(Enforced { writes: false, network: false })
}

/// No means are known here: that is reported.
#[cfg(not(target_os = "linux"))]
pub fn cut_off() -> io::Result<bool> {
    Ok(false)
}
