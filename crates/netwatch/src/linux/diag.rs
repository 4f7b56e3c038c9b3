//! The messages of netlink `sock_diag` (`sock_diag(7)`, `linux/inet_diag.h`): requests out, sockets in.
//!
//! A dump answers with one message a socket. A notice of a destroyed socket is a message of the same form (sent from
//! `net/core/sock_diag.c`, filled by `inet_diag_handler_get_info`) with these differences, found in the source and by
//! experiment on Linux 6.18:
//!
//! - `idiag_uid` and `idiag_inode` are not filled (0): whose it was is only known if a dump saw it.
//! - The state is CLOSE for TCP and what it was for UDP. `INET_DIAG_PROTOCOL` says which protocol it is.
//! - `INET_DIAG_INFO` carries TCP's counters. A socket whose own program reset the connection (`SO_LINGER` 0) went through
//!   `tcp_disconnect`: the remote port is 0, the counters are 0, the local address may be; the local port, the remote
//!   address, `tcpi_min_rtt` and `tcpi_snd_wnd` remain.
//! - Listeners and sockets that were never connected are told of, too: they have neither a remote port nor a round-trip
//!   time. An attempt that was refused or timed out has no round-trip time. A connection always has one.
//! - Going to TIME-WAIT destroys the socket; half-open requests (SYN-RECV) are no sockets and are not told of.

use crate::socket::{Destroyed, Dump, Ends, Socket, Traffic};
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_OVERRUN, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NlasIterator, Parseable,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{
    AF_INET, AF_INET6, INET_DIAG_INFO, INET_DIAG_PROTOCOL, IPPROTO_TCP, IPPROTO_UDP, SOCK_DIAG_BY_FAMILY, TCP_CLOSE,
    TCP_ESTABLISHED, TCP_LISTEN, TCP_SYN_RECV, TCP_SYN_SENT, TCP_TIME_WAIT,
};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags, Timer};
use picket_protocol::event::Protocol;

/// `NLMSG_HDRLEN`: the bytes before the payload.
const NETLINK_HEADER_LEN: usize = 16;
/// `sizeof(struct inet_diag_msg)`.
const INET_DIAG_MSG_LEN: usize = 72;
/// `TCP_NEW_SYN_RECV` of `net/tcp_states.h`: a half-open request.
const TCP_NEW_SYN_RECV: u8 = 12;

/// Where a field lies in `struct tcp_info` (`linux/tcp.h`); fields are only ever added at its end.
mod tcp_info {
    pub const RTT: usize = 68;
    pub const BYTES_ACKED: usize = 120;
    pub const BYTES_RECEIVED: usize = 128;
    pub const MIN_RTT: usize = 148;
    pub const BYTES_SENT: usize = 200;
    pub const BYTES_RETRANS: usize = 208;
    pub const SND_WND: usize = 228;
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// `AF_INET6`, else `AF_INET`.
    pub ipv6: bool,
    /// Of which protocol.
    pub protocol: Protocol,
    /// Only those that wait to be spoken to.
    pub listening_only: bool,
    /// Also what is left of closed connections.
    pub remains: bool,
}

impl Request {
    /// The request in the kernel's form.
    pub fn encode(self, sequence: u32) -> Vec<u8> {
        let waiting = match self.protocol {
            Protocol::Tcp => StateFlags::LISTEN,
            Protocol::Udp => StateFlags::CLOSE,
        };
        let mut states = waiting.clone();
        if !self.listening_only {
            states = match self.protocol {
                Protocol::Udp => waiting | StateFlags::ESTABLISHED,
                Protocol::Tcp => StateFlags::all() - StateFlags::SYN_SENT - StateFlags::SYN_RECV - StateFlags::CLOSE,
            };
        }
        if !self.remains {
            states -= StateFlags::TIME_WAIT;
        }
        let request = InetRequest {
            family: if self.ipv6 { AF_INET6 } else { AF_INET },
            protocol: match self.protocol {
                Protocol::Tcp => IPPROTO_TCP,
                Protocol::Udp => IPPROTO_UDP,
            },
            extensions: ExtensionFlags::empty(),
            states,
            socket_id: if self.ipv6 { SocketId::new_v6() } else { SocketId::new_v4() },
        };
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        header.sequence_number = sequence;
        let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }
}

/// How a piece of an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// More is to come.
    More,
    /// That was all.
    Done,
    /// The kernel refused: an `errno`.
    Error(i32),
    /// The kernel lost a part.
    Overrun,
}

/// Reads one datagram of the answer `sequence` to a dump of `protocol`, and adds what it tells to `dump`, up to `limit`
/// sockets. Anything that is no answer to it is passed over.
pub fn read_dump(bytes: &[u8], sequence: u32, protocol: Protocol, limit: usize, dump: &mut Dump) -> Piece {
    for (header, payload) in Messages(bytes) {
        if header.sequence_number() != sequence {
            continue;
        }
        match header.message_type() {
            // A dump that fails half-way ends with an errno in its DONE.
            NLMSG_DONE => return errno(payload).map_or(Piece::Done, Piece::Error),
            NLMSG_ERROR => return Piece::Error(errno(payload).unwrap_or(0)),
            NLMSG_OVERRUN => return Piece::Overrun,
            SOCK_DIAG_BY_FAMILY => {
                let Some(header) = InetResponseHeader::parse(payload).ok() else { continue };
                let ends = ends(protocol, &header.socket_id);
                if is_waiting(protocol, header.state) {
                    dump.listening.insert(protocol, ends.local_port);
                } else if is_connection(header.state) && ends.remote_port != 0 {
                    if dump.sockets.len() >= limit {
                        dump.complete = false;
                        continue;
                    }
                    dump.sockets.push(Socket {
                        cookie: u64::from_ne_bytes(header.socket_id.cookie),
                        ends,
                        // The timer says it for FIN-WAIT-2, too, which the kernel keeps as TIME-WAIT under that name.
                        live: header.state != TCP_TIME_WAIT && header.timer != Some(Timer::TimeWait),
                        uid: header.uid,
                        inode: header.inode,
                    });
                }
            }
            _ => {}
        }
    }
    Piece::More
}

/// Reads one datagram of notices, and adds what it tells to `destroyed`.
pub fn read_notices(bytes: &[u8], destroyed: &mut Vec<Destroyed>) {
    for (header, payload) in Messages(bytes) {
        if header.message_type() == SOCK_DIAG_BY_FAMILY {
            destroyed.extend(notice(payload));
        }
    }
}

fn notice(payload: &[u8]) -> Option<Destroyed> {
    let header = InetResponseHeader::parse(payload).ok()?;
    let mut protocol = None;
    let mut info: Option<Info> = None;
    for attribute in NlasIterator::new(payload.get(INET_DIAG_MSG_LEN..)?).map_while(Result::ok) {
        match attribute.kind() {
            INET_DIAG_PROTOCOL => protocol = attribute.value().first().copied(),
            INET_DIAG_INFO => info = Some(Info(attribute.value().to_vec())),
            _ => {}
        }
    }
    let protocol = match protocol? {
        IPPROTO_TCP => Protocol::Tcp,
        IPPROTO_UDP => Protocol::Udp,
        _ => return None,
    };
    let ends = ends(protocol, &header.socket_id);
    let cookie = u64::from_ne_bytes(header.socket_id.cookie);
    let Some(info) = info.filter(|_| protocol == Protocol::Tcp) else {
        let established = header.state == TCP_ESTABLISHED && ends.remote_port != 0;
        return Some(Destroyed { cookie, ends, established, passive: false, traffic: None });
    };
    let reset_by_us = ends.remote_port == 0;
    let established = ends.local_port != 0 && !ends.remote_ip.is_unspecified() && info.was_answered();
    Some(Destroyed {
        cookie,
        ends,
        established,
        // Who begins a connection has its SYN acknowledged, which counts as a byte; `tcp_disconnect` clears the count.
        passive: established && !reset_by_us && info.u64(tcp_info::BYTES_ACKED) == Some(0),
        traffic: if established && !reset_by_us { info.traffic() } else { None },
    })
}

/// The bytes of a `struct tcp_info`, of whatever length the kernel's has.
struct Info(Vec<u8>);

impl Info {
    fn u32(&self, at: usize) -> Option<u32> {
        self.0.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
    }

    fn u64(&self, at: usize) -> Option<u64> {
        self.0.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes)
    }

    /// Whether the other side ever answered. `tcpi_min_rtt` is all ones until there was a round trip.
    fn was_answered(&self) -> bool {
        self.u32(tcp_info::MIN_RTT).is_some_and(|rtt| rtt != u32::MAX)
            || self.u32(tcp_info::RTT).is_some_and(|rtt| rtt != 0)
            || self.u32(tcp_info::SND_WND).is_some_and(|window| window != 0)
            || self.u64(tcp_info::BYTES_ACKED).is_some_and(|bytes| bytes != 0)
            || self.u64(tcp_info::BYTES_RECEIVED).is_some_and(|bytes| bytes != 0)
    }

    /// `tcpi_bytes_acked` counts SYN and FIN as TCP numbers them; what was sent and not sent again does not (since 4.19).
    fn traffic(&self) -> Option<Traffic> {
        let acknowledged = self.u64(tcp_info::BYTES_ACKED)?;
        let sent = self
            .u64(tcp_info::BYTES_SENT)
            .and_then(|sent| sent.checked_sub(self.u64(tcp_info::BYTES_RETRANS)?))
            .map_or(acknowledged, |sent| sent.min(acknowledged));
        Some(Traffic { sent, received: self.u64(tcp_info::BYTES_RECEIVED)? })
    }
}

fn ends(protocol: Protocol, id: &SocketId) -> Ends {
    Ends::new(protocol, (id.source_address, id.source_port), (id.destination_address, id.destination_port))
}

fn is_waiting(protocol: Protocol, state: u8) -> bool {
    match protocol {
        Protocol::Tcp => state == TCP_LISTEN,
        Protocol::Udp => state == TCP_CLOSE,
    }
}

fn is_connection(state: u8) -> bool {
    !matches!(state, TCP_SYN_SENT | TCP_SYN_RECV | TCP_NEW_SYN_RECV | TCP_LISTEN | TCP_CLOSE)
}

/// The negated `errno` at the head of an error or of a DONE; `None` for 0.
fn errno(payload: &[u8]) -> Option<i32> {
    let code = i32::from_ne_bytes(payload.get(..4)?.try_into().ok()?);
    (code != 0).then(|| code.saturating_neg())
}

/// The messages of a datagram: header and payload, until the bytes end or make no sense.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (NetlinkBuffer<&'a [u8]>, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = NetlinkBuffer::new_checked(self.0).ok()?;
        let length = usize::try_from(header.length()).ok()?;
        let payload = self.0.get(NETLINK_HEADER_LEN..length)?;
        // Messages begin at multiples of four bytes.
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((header, payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A message as the kernel lays it out.
    fn message(kind: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(NETLINK_HEADER_LEN + payload.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0, 0]);
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn socket(state: u8, timer: u8, local: u16, remote: u16) -> Vec<u8> {
        let mut bytes = vec![AF_INET, state, timer, 0];
        bytes.extend(local.to_be_bytes());
        bytes.extend(remote.to_be_bytes());
        for address in [[10, 0, 0, 1], [10, 0, 0, 2]] {
            bytes.extend(address);
            bytes.extend([0; 12]);
        }
        bytes.extend([0; 4]);
        bytes.extend(7_u64.to_ne_bytes());
        for word in [0_u32, 0, 0, 1_000, 4_711] {
            bytes.extend(word.to_ne_bytes());
        }
        assert_eq!(bytes.len(), INET_DIAG_MSG_LEN);
        bytes
    }

    fn with_info(mut bytes: Vec<u8>, fields: &[(usize, u64, usize)]) -> Vec<u8> {
        bytes.extend([5, 0, 10, 0, IPPROTO_TCP, 0, 0, 0]);
        let mut info = vec![0_u8; 280];
        info[tcp_info::MIN_RTT..tcp_info::MIN_RTT + 4].copy_from_slice(&u32::MAX.to_ne_bytes());
        for (at, value, width) in fields {
            info[*at..at + width].copy_from_slice(&value.to_ne_bytes()[..*width]);
        }
        bytes.extend(284_u16.to_ne_bytes());
        bytes.extend(INET_DIAG_INFO.to_ne_bytes());
        bytes.extend(info);
        bytes
    }

    fn read(payload: &[u8]) -> Destroyed {
        let mut destroyed = Vec::new();
        read_notices(&message(SOCK_DIAG_BY_FAMILY, 0, payload), &mut destroyed);
        assert_eq!(destroyed.len(), 1);
        destroyed[0]
    }

    #[test]
    fn a_dump_tells_listeners_connections_and_remains_apart() {
        let mut bytes = Vec::new();
        for payload in [
            socket(TCP_LISTEN, 0, 22, 0),
            socket(TCP_ESTABLISHED, 0, 22, 40_000),
            socket(TCP_TIME_WAIT, 3, 22, 40_001),
            // FIN-WAIT-2 that is kept as TIME-WAIT.
            socket(5, 3, 22, 40_002),
            socket(TCP_SYN_RECV, 0, 22, 40_003),
        ] {
            bytes.extend(message(SOCK_DIAG_BY_FAMILY, 9, &payload));
        }
        let mut dump = Dump::default();
        assert_eq!(read_dump(&bytes, 9, Protocol::Tcp, 100, &mut dump), Piece::More);
        assert!(dump.listening.tcp.contains(22));
        let seen: Vec<_> = dump.sockets.iter().map(|s| (s.ends.remote_port, s.live, s.uid, s.inode)).collect();
        let owned = |port, live| (port, live, 1_000, 4_711);
        assert_eq!(seen, [owned(40_000, true), owned(40_001, false), owned(40_002, false)]);
        assert_eq!(read_dump(&message(NLMSG_DONE, 9, &[0; 4]), 9, Protocol::Tcp, 100, &mut dump), Piece::Done);
    }

    #[test]
    fn an_answer_to_another_question_is_passed_over_and_a_refusal_names_its_errno() {
        let mut dump = Dump::default();
        let stale = message(SOCK_DIAG_BY_FAMILY, 8, &socket(TCP_ESTABLISHED, 0, 1, 2));
        assert_eq!(read_dump(&stale, 9, Protocol::Tcp, 100, &mut dump), Piece::More);
        assert!(dump.sockets.is_empty());
        let refused = message(NLMSG_ERROR, 9, &(-2_i32).to_ne_bytes());
        assert_eq!(read_dump(&refused, 9, Protocol::Tcp, 100, &mut dump), Piece::Error(2));
    }

    #[test]
    fn a_dump_holds_no_more_than_its_limit_and_says_that_it_is_not_all() {
        let one = message(SOCK_DIAG_BY_FAMILY, 1, &socket(TCP_ESTABLISHED, 0, 1, 2));
        let mut dump = Dump { complete: true, ..Dump::default() };
        read_dump(&one.repeat(5), 1, Protocol::Tcp, 3, &mut dump);
        assert!(dump.sockets.len() == 3 && !dump.complete);
    }

    #[test]
    fn a_notice_of_a_connection_carries_what_was_counted() {
        let counted = [
            (tcp_info::MIN_RTT, 15, 4),
            // Five bytes, SYN and FIN.
            (tcp_info::BYTES_ACKED, 7, 8),
            (tcp_info::BYTES_RECEIVED, 3, 8),
            (tcp_info::BYTES_SENT, 9, 8),
            (tcp_info::BYTES_RETRANS, 4, 8),
        ];
        let closed = read(&with_info(socket(TCP_CLOSE, 0, 40_000, 22), &counted));
        assert!(closed.established && !closed.passive && closed.cookie == 7);
        assert_eq!(closed.traffic, Some(Traffic { sent: 5, received: 3 }));
    }

    #[test]
    fn who_was_never_acknowledged_did_not_begin_it() {
        let closed = read(&with_info(socket(TCP_CLOSE, 0, 22, 40_000), &[(tcp_info::MIN_RTT, 15, 4)]));
        assert!(closed.established && closed.passive);
    }

    #[test]
    fn a_listener_and_an_attempt_that_nobody_answered_were_no_connections() {
        let mut listener = socket(TCP_CLOSE, 0, 22, 0);
        listener[24..28].fill(0);
        assert!(!read(&with_info(listener, &[])).established);
        assert!(!read(&with_info(socket(TCP_CLOSE, 0, 40_000, 1), &[])).established);
    }

    #[test]
    fn a_connection_that_its_own_program_reset_is_one_though_its_port_is_forgotten() {
        let reset = read(&with_info(socket(TCP_CLOSE, 0, 40_000, 0), &[(tcp_info::SND_WND, 65_483, 4)]));
        assert!(reset.established && !reset.passive && reset.traffic.is_none());
    }

    #[test]
    fn a_request_asks_for_what_it_says() {
        let request = Request { ipv6: true, protocol: Protocol::Udp, listening_only: false, remains: false };
        let bytes = request.encode(5);
        assert_eq!(bytes.len(), NETLINK_HEADER_LEN + 56);
        assert_eq!(&bytes[16..18], [AF_INET6, IPPROTO_UDP]);
        assert_eq!(bytes[20..24], ((1_u32 << 1) | (1 << 7)).to_ne_bytes());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
            let mut dump = Dump::default();
            read_dump(&bytes, 0, Protocol::Tcp, 10, &mut dump);
            read_notices(&bytes, &mut Vec::new());
        }

        #[test]
        fn no_damage_to_a_message_makes_the_readers_panic(
            at in 0_usize..380, to in any::<u8>(), length in 0_usize..400
        ) {
            let mut bytes = message(SOCK_DIAG_BY_FAMILY, 0, &with_info(socket(TCP_CLOSE, 0, 1, 2), &[]));
            bytes[at] = to;
            bytes.truncate(length);
            let mut dump = Dump::default();
            read_dump(&bytes, 0, Protocol::Tcp, 10, &mut dump);
            read_notices(&bytes, &mut Vec::new());
        }
    }
}
