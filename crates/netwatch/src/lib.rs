//! Which connections come and go: netlink `sock_diag`, or `/proc` where there is nothing better.
//!
//! | means | needs | sees |
//! |---|---|---|
//! | `sock_diag` dumps and notices of destroyed sockets | the address family `AF_NETLINK` | every connection: its close as it happens, with bytes; its opening at the next dump, or with its close if that came first |
//! | `sock_diag` dumps alone | the same | what is there at a dump, and of shorter ones what is left in TIME-WAIT; not those that were reset |
//! | `/proc/net` | `/proc` | the same, dearer |
//!
//! None of the three needs a privilege. Two things do: naming the processes of other users (`CAP_DAC_READ_SEARCH` and
//! `CAP_SYS_PTRACE`), and a queue of notices larger than `net.core.rmem_max` (`CAP_NET_ADMIN`); what the queue cannot hold
//! is reported as a gap, and all sockets are listed at once.
//!
//! What is not seen, whatever the privilege: connections of other network namespaces (containers have their own); UDP
//! without `connect`, which has no connections; attempts that were never answered, which are none. Of a connection that
//! was opened and reset by a program of this machine between two dumps, the kernel has forgotten the other side's port: it
//! is reported with port 0, and by a filter on ports only if the local one matches. Whose a connection was that no dump saw
//! is not known either.
//!
//! A connection of the machine with itself is two sockets and is reported from both ends: `outbound` from the one that
//! began it, `inbound` from the other, with the same `src_*` and `dst_*`.

// What only a watcher's thread uses.
#![cfg_attr(not(target_os = "linux"), allow(dead_code))]

#[cfg(target_os = "linux")]
mod linux;
pub mod names;
mod settings;
pub mod socket;
pub mod table;
mod watcher;

pub use settings::{NetworkMonitorSettings, WatchedProtocol};
pub use watcher::{Counters, Means, NetWatcher, WatchError, WatchOptions};
