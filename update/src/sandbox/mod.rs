//! Processes with their hands tied: a new version's first steps, and the [fetcher](crate::fetcher).
//!
//! A new version's first steps have no network, no write outside one folder, no way back to root.
//!
//! The proven version starts itself as `picket sandbox …`, confines that process, and only then becomes (`execve`) the
//! new version. What confines it, where the kernel has it:
//!
//! - another user's identity, when the updater is root: it owns nothing of Picket's;
//! - Landlock (Linux 5.13): writing is possible in the scratch folder and to `/dev/null` only;
//! - seccomp: `socket(2)` makes Unix sockets only, and `io_uring`, which could make others, is refused;
//! - `no_new_privs`: no set-uid program helps.
//!
//! Which of these applied is reported in the evidence of the update, not assumed.

mod border;
#[cfg(target_os = "linux")]
mod linux;

pub use border::{Border, cut_off, missing_means, shut_in};

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The user that a confined process becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Identity {
    /// One of the users of a system installation, when this process is root and can become it.
    pub fn of_user(name: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let user = nix::unistd::User::from_name(name).ok()??;
        Some(Self { uid: user.uid.as_raw(), gid: user.gid.as_raw() })
    }
}

/// How a process is confined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confinement {
    /// The one folder it may write to.
    pub scratch: PathBuf,
    /// Whether it may use the network.
    pub network: bool,
}

/// What could be enforced, for the evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enforced {
    /// Whether writes are confined by the kernel.
    pub writes: bool,
    /// Whether the network is closed by the kernel; `false` also when it was meant to stay open.
    pub network: bool,
}

/// The command that starts `exe` with `arguments` confined: `judge sandbox … -- exe arguments`.
pub fn command(
    judge: &Path,
    confinement: &Confinement,
    identity: Option<Identity>,
    exe: &Path,
    arguments: &[OsString],
) -> Command {
    let mut command = Command::new(judge);
    command.arg("sandbox").arg("--scratch").arg(&confinement.scratch);
    if confinement.network {
        command.arg("--network");
    }
    command.arg("--").arg(exe).args(arguments).env_clear().current_dir(&confinement.scratch);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", &confinement.scratch);
    command.env("TMPDIR", &confinement.scratch);
    if let Some(identity) = identity {
        // The standard library drops the supplementary groups along with root.
        command.gid(identity.gid).uid(identity.uid);
    }
    command
}

/// Confines this process and becomes `exe`. Returns only when that failed.
pub fn become_confined(confinement: &Confinement, exe: &Path, arguments: &[OsString]) -> io::Error {
    let enforced = match confine(confinement) {
        Ok(enforced) => enforced,
        Err(error) => return error,
    };
    match become_program(exe, arguments, &enforced.describe()) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

/// `execve(2)` itself: the standard library's way hands a file that the kernel cannot execute to a shell.
fn become_program(exe: &Path, arguments: &[OsString], enforced: &str) -> io::Result<Infallible> {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(io::Error::from);
    let words = std::iter::once(exe.as_os_str()).chain(arguments.iter().map(|argument| argument as &OsStr));
    let words: Vec<CString> = words.map(|word| text(word.as_bytes())).collect::<io::Result<_>>()?;
    let inherited = std::env::vars_os().map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat());
    let environment = inherited.chain([format!("PICKET_SANDBOX={enforced}").into_bytes()]);
    let environment: Vec<CString> = environment.map(|line| text(&line)).collect::<io::Result<_>>()?;
    nix::unistd::execve(&text(exe.as_os_str().as_bytes())?, &words, &environment).map_err(io::Error::from)
}

impl Enforced {
    /// The words for the evidence.
    pub fn describe(&self) -> String {
        let yes_no = |yes: bool| if yes { "closed" } else { "open" };
        format!("writes {}, network {}", yes_no(self.writes), yes_no(self.network))
    }
}

#[cfg(target_os = "linux")]
fn confine(confinement: &Confinement) -> io::Result<Enforced> {
    rustix::thread::set_no_new_privs(true)?;
    let writes = linux::confine_writes(&confinement.scratch)?;
    let network = if confinement.network { false } else { linux::close_network()? };
    Ok(Enforced { writes, network })
}

#[cfg(not(target_os = "linux"))]
fn confine(_confinement: &Confinement) -> io::Result<Enforced> {
    Ok(Enforced { writes: false, network: false })
}
