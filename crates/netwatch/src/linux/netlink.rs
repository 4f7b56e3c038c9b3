//! The two netlink sockets: one to ask for all sockets, one on which the kernel tells of those it destroys.

use super::diag::{self, Piece, Request};
use crate::socket::{Destroyed, Dump, Listening};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use picket_protocol::event::Protocol;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv, sockopt};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// The largest datagram of a dump that the kernel makes (`netlink_dump` in `net/netlink/af_netlink.c`).
const DATAGRAM_MAX: usize = 32 << 10;
/// How long the kernel may take for the next piece of a dump. It makes each while it is asked for.
const PIECE_LIMIT: Duration = Duration::from_secs(5);
/// The multicast groups of `linux/sock_diag.h`.
const SKNLGRP_INET_TCP_DESTROY: u32 = 1;
const SKNLGRP_INET_UDP_DESTROY: u32 = 2;
const SKNLGRP_INET6_TCP_DESTROY: u32 = 3;
const SKNLGRP_INET6_UDP_DESTROY: u32 = 4;

/// What a dump is to hold.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// TCP sockets.
    pub tcp: bool,
    /// UDP sockets.
    pub udp: bool,
    /// Also what is left of closed connections.
    pub remains: bool,
    /// How many connections at most.
    pub limit: usize,
}

/// Asks the kernel for its sockets.
pub struct DumpSocket {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl DumpSocket {
    /// Opens the socket.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PIECE_LIMIT))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; DATAGRAM_MAX] })
    }

    /// All sockets of this network namespace. `between` is called after each piece, so that notices are read while a large
    /// dump goes on.
    ///
    /// # Errors
    /// The kernel's refusal for TCP over IPv4. What else it does not know (`ENOENT`: IPv6 is off, there is no `udp_diag`)
    /// it has no sockets of.
    pub fn dump(&mut self, wanted: Wanted, between: &mut dyn FnMut()) -> io::Result<Dump> {
        let mut dump = Dump { complete: true, ..Dump::default() };
        let protocols = [(wanted.tcp, Protocol::Tcp), (wanted.udp, Protocol::Udp)];
        for (_, protocol) in protocols.into_iter().filter(|(wanted, _)| *wanted) {
            for ipv6 in [false, true] {
                let request = Request { ipv6, protocol, listening_only: false, remains: wanted.remains };
                match self.ask(request, wanted.limit, &mut dump, between) {
                    Err(e) if is_unknown(&e) && (ipv6 || (protocol == Protocol::Udp && wanted.tcp)) => {}
                    answer => answer?,
                }
            }
        }
        Ok(dump)
    }

    /// The ports on which TCP connections are waited for: a small part of a dump.
    pub fn listening(&mut self) -> io::Result<Listening> {
        let mut dump = Dump::default();
        for ipv6 in [false, true] {
            let request = Request { ipv6, protocol: Protocol::Tcp, listening_only: true, remains: false };
            match self.ask(request, 0, &mut dump, &mut || {}) {
                Err(e) if ipv6 && is_unknown(&e) => {}
                answer => answer?,
            }
        }
        Ok(dump.listening)
    }

    fn ask(&mut self, request: Request, limit: usize, dump: &mut Dump, between: &mut dyn FnMut()) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(&request.encode(self.sequence), 0)?;
        loop {
            let (length, _) = match recv(&self.socket, self.buffer.as_mut_slice(), RecvFlags::empty()) {
                Err(Errno::INTR) => continue,
                received => received?,
            };
            let bytes = self.buffer.get(..length).unwrap_or_default();
            match diag::read_dump(bytes, self.sequence, request.protocol, limit, dump) {
                Piece::More => between(),
                Piece::Done => return Ok(()),
                Piece::Overrun => {
                    dump.complete = false;
                    return Ok(());
                }
                Piece::Error(errno) => return Err(io::Error::from_raw_os_error(errno)),
            }
        }
    }
}

/// The kernel has no such sockets: IPv6 is off, or a module is not there.
fn is_unknown(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOENT.raw_os_error())
}

/// What reading notices came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drained {
    /// The kernel's queue ran over since the last time: notices are lost, nobody knows how many.
    pub overflowed: bool,
    /// There may be more.
    pub more: bool,
}

/// Hears of every socket the kernel destroys.
pub struct NoticeSocket {
    socket: Socket,
    buffer: Vec<u8>,
    capacity: usize,
}

impl NoticeSocket {
    /// Joins the groups. Linux lets anybody (`NL_CFG_F_NONROOT_RECV`); a sandbox may not. `capacity` is the size in bytes
    /// that the kernel's queue should have; beyond `net.core.rmem_max` that takes `CAP_NET_ADMIN`.
    pub fn open(tcp: bool, udp: bool, capacity: usize) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        if sockopt::set_socket_recv_buffer_size_force(&socket, capacity).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, capacity)?;
        }
        socket.set_non_blocking(true)?;
        socket.bind_auto()?;
        let groups = [
            (tcp, [SKNLGRP_INET_TCP_DESTROY, SKNLGRP_INET6_TCP_DESTROY]),
            (udp, [SKNLGRP_INET_UDP_DESTROY, SKNLGRP_INET6_UDP_DESTROY]),
        ];
        for group in groups.into_iter().filter(|(wanted, _)| *wanted).flat_map(|(_, groups)| groups) {
            socket.add_membership(group)?;
        }
        let capacity = sockopt::socket_recv_buffer_size(&socket)?;
        Ok(Self { socket, buffer: vec![0; DATAGRAM_MAX], capacity })
    }

    /// The size of the kernel's queue in bytes, as it accounts for it.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Reads the notices that are there, until `into` holds `limit` of them.
    pub fn drain(&mut self, into: &mut Vec<Destroyed>, limit: usize) -> io::Result<Drained> {
        let mut drained = Drained::default();
        while into.len() < limit {
            match recv(&self.socket, self.buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((length, _)) => diag::read_notices(self.buffer.get(..length).unwrap_or_default(), into),
                Err(Errno::AGAIN) => return Ok(drained),
                Err(Errno::INTR) => {}
                // Told once; what is in the queue is still good.
                Err(Errno::NOBUFS) => drained.overflowed = true,
                Err(e) => return Err(e.into()),
            }
        }
        drained.more = true;
        Ok(drained)
    }
}

impl AsFd for NoticeSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
