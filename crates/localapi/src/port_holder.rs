//! Who holds a port that we wanted.

use procfs::process::FDTarget;
use std::fmt;
use std::net::SocketAddr;

/// The process that listens on a port, as far as this process may know: the kernel shows other users' file descriptors
/// only to root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortHolder {
    /// A process, by id and name.
    Process {
        /// Its id.
        pid: i32,
        /// Its name, at most 15 characters (`/proc/<pid>/comm`).
        name: String,
    },
    /// Somebody else's process, of which only the user is known.
    User {
        /// The user's id.
        uid: u32,
    },
    /// Nobody can be named.
    Unknown,
}

impl fmt::Display for PortHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, name } => write!(f, "{name} (process {pid})"),
            Self::User { uid } => write!(f, "a process of user {uid} (root can see which: ss -ltnp)"),
            Self::Unknown => f.write_str("another process (root can see which: ss -ltnp)"),
        }
    }
}

impl PortHolder {
    /// Looks for the listener on `address`'s port.
    pub fn of(address: SocketAddr) -> Self {
        let sockets = procfs::net::tcp().unwrap_or_default().into_iter().chain(procfs::net::tcp6().unwrap_or_default());
        let listener = sockets
            .filter(|socket| socket.state == procfs::net::TcpState::Listen)
            .find(|socket| socket.local_address.port() == address.port());
        let Some(listener) = listener else { return Self::Unknown };
        let owner = procfs::process::all_processes().into_iter().flatten().flatten().find(|process| {
            process.fd().is_ok_and(|mut fds| {
                fds.any(|fd| fd.is_ok_and(|fd| matches!(fd.target, FDTarget::Socket(inode) if inode == listener.inode)))
            })
        });
        match owner {
            Some(process) => Self::Process {
                pid: process.pid,
                name: process.stat().map_or_else(|_| "a process".to_owned(), |stat| stat.comm),
            },
            None => Self::User { uid: listener.uid },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn the_holder_of_a_port_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let holder = PortHolder::of(listener.local_addr().unwrap());
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(matches!(holder, PortHolder::Process { pid: found, .. } if found == pid), "{holder}");
    }
}
