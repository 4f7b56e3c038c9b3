//! A socket as the kernel tells of it, in a form small enough to keep a hundred thousand of them.

use picket_protocol::event::Protocol;
use std::net::IpAddr;

/// The two ends of a connection, seen from the socket on this machine. IPv4 addresses mapped into IPv6 are IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ends {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The address on this machine.
    pub local_ip: IpAddr,
    /// The port on this machine.
    pub local_port: u16,
    /// The other side's address.
    pub remote_ip: IpAddr,
    /// The other side's port; 0 where the kernel has forgotten it, which it does when a program of this machine resets a
    /// connection.
    pub remote_port: u16,
}

impl Ends {
    /// The ends with `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2) told as `a.b.c.d`: a socket of an IPv6 listener that serves
    /// IPv4 clients is the same connection as its client's.
    pub fn new(protocol: Protocol, local: (IpAddr, u16), remote: (IpAddr, u16)) -> Self {
        Self {
            protocol,
            local_ip: local.0.to_canonical(),
            local_port: local.1,
            remote_ip: remote.0.to_canonical(),
            remote_port: remote.1,
        }
    }

    /// Whether the machine talks with itself over a loopback address.
    pub fn is_loopback(&self) -> bool {
        self.local_ip.is_loopback() || self.remote_ip.is_loopback()
    }

    /// The ends with what is known of `fuller` where the kernel has forgotten a part: address and port of a socket that
    /// its own program reset.
    pub(crate) fn completed_by(self, fuller: &Self) -> Self {
        if self.remote_port == 0 { *fuller } else { self }
    }
}

/// One socket of a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Socket {
    /// The kernel's number for the socket, never given twice in a boot; by it a port that is used again is told apart.
    /// Where the kernel gives none (`/proc`), a hash of the ends.
    pub cookie: u64,
    /// Its two ends.
    pub ends: Ends,
    /// Whether the connection is there; `false` for what is left of one for a minute (TIME-WAIT).
    pub live: bool,
    /// Who owns it.
    pub uid: u32,
    /// The inode by which a process' descriptor names it; 0 while nobody accepted it, or when its process closed it.
    pub inode: u32,
}

/// A socket that the kernel has just destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destroyed {
    /// The kernel's number for it.
    pub cookie: u64,
    /// Its two ends, as far as the kernel still knew them.
    pub ends: Ends,
    /// Whether it was a connection at any time: not a listener, not an attempt that nobody answered.
    pub established: bool,
    /// Whether the other side must have begun it, by what was counted.
    pub passive: bool,
    /// What was carried, where the kernel counts it.
    pub traffic: Option<Traffic>,
}

/// The bytes a connection carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that the other side acknowledged.
    pub sent: u64,
    /// Bytes received. The other side's FIN is counted as one, as TCP numbers it.
    pub received: u64,
}

/// A set of port numbers, 8 KiB.
#[derive(Clone, PartialEq, Eq)]
pub struct Ports(Box<[u64; 1024]>);

impl Ports {
    /// Adds a port.
    pub fn insert(&mut self, port: u16) {
        self.0[usize::from(port) >> 6] |= 1 << (port & 63);
    }

    /// Whether a port is in the set.
    pub fn contains(&self, port: u16) -> bool {
        self.0[usize::from(port) >> 6] & (1 << (port & 63)) != 0
    }

    /// Adds all of another set.
    pub fn extend(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(mine, theirs)| *mine |= theirs);
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }
}

impl Default for Ports {
    fn default() -> Self {
        Self(Box::new([0; 1024]))
    }
}

impl FromIterator<u16> for Ports {
    fn from_iter<I: IntoIterator<Item = u16>>(ports: I) -> Self {
        let mut set = Self::default();
        ports.into_iter().for_each(|port| set.insert(port));
        set
    }
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries((0..=u16::MAX).filter(|port| self.contains(*port))).finish()
    }
}

/// The ports on which this machine waits to be spoken to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listening {
    /// Of TCP: listening sockets.
    pub tcp: Ports,
    /// Of UDP: sockets that are connected to nobody.
    pub udp: Ports,
}

impl Listening {
    /// Whether this machine waits on the local port of `ends`.
    pub fn contains(&self, ends: &Ends) -> bool {
        self.of(ends.protocol).contains(ends.local_port)
    }

    /// Adds all of another.
    pub fn extend(&mut self, other: &Self) {
        self.tcp.extend(&other.tcp);
        self.udp.extend(&other.udp);
    }

    fn of(&self, protocol: Protocol) -> &Ports {
        match protocol {
            Protocol::Tcp => &self.tcp,
            Protocol::Udp => &self.udp,
        }
    }

    /// Adds a port.
    pub fn insert(&mut self, protocol: Protocol, port: u16) {
        match protocol {
            Protocol::Tcp => self.tcp.insert(port),
            Protocol::Udp => self.udp.insert(port),
        }
    }
}

/// All sockets at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dump {
    /// Every connection, and what is left of closed ones.
    pub sockets: Vec<Socket>,
    /// The ports that are listened on.
    pub listening: Listening,
    /// Whether it is all of them; a socket that is missing from a dump cut short says nothing.
    pub complete: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_client_of_an_ipv6_listener_is_an_ipv4_connection() {
        let mapped = Ends::new(
            Protocol::Tcp,
            ("::ffff:10.0.0.1".parse().unwrap(), 22),
            ("::ffff:10.0.0.2".parse().unwrap(), 40_000),
        );
        assert_eq!(mapped.local_ip, "10.0.0.1".parse::<IpAddr>().unwrap());
        assert_eq!(mapped.remote_ip, "10.0.0.2".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn a_set_of_ports_holds_what_was_put_in_and_nothing_else() {
        let set: Ports = [0, 22, 63, 64, 65_535].into_iter().collect();
        assert_eq!((0..=u16::MAX).filter(|p| set.contains(*p)).collect::<Vec<_>>(), [0, 22, 63, 64, 65_535]);
        assert!(Ports::default().is_empty() && !set.is_empty());
    }

    #[test]
    fn a_hundred_thousand_sockets_fit_into_a_few_megabytes() {
        assert!(size_of::<Socket>() <= 64, "{}", size_of::<Socket>());
    }
}
