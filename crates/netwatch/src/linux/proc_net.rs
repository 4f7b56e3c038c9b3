//! The last resort: `/proc/net/{tcp,tcp6,udp,udp6}` (proc(5)), where netlink is not to be had.

use crate::socket::{Dump, Ends, Socket};
use picket_protocol::event::Protocol;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// The longest line that is read; the kernel's have 150 or 180 bytes.
const LINE_MAX: u64 = 512;
/// States of `net/tcp_states.h`, as the files show them.
const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const SYN_RECV: u8 = 3;
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;
const NEW_SYN_RECV: u8 = 12;

/// Reads the tables of sockets.
pub struct ProcNet {
    folder: PathBuf,
    /// The files give no cookie; a keyed hash of the ends stands for it.
    hasher: RandomState,
}

impl ProcNet {
    /// Reads below `folder`: `/proc/thread-self/net`.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), hasher: RandomState::new() }
    }

    /// All sockets of this network namespace, at most `limit` connections.
    ///
    /// # Errors
    /// The table of TCP over IPv4 cannot be read. Another that is not there has no sockets in it.
    pub fn dump(&self, tcp: bool, udp: bool, limit: usize) -> io::Result<Dump> {
        let mut dump = Dump { complete: true, ..Dump::default() };
        let tables = [
            (tcp, Protocol::Tcp, "tcp"),
            (tcp, Protocol::Tcp, "tcp6"),
            (udp, Protocol::Udp, "udp"),
            (udp, Protocol::Udp, "udp6"),
        ];
        for (_, protocol, name) in tables.into_iter().filter(|(wanted, ..)| *wanted) {
            match File::open(self.folder.join(name)) {
                Ok(file) => self.read(BufReader::new(file), protocol, limit, &mut dump)?,
                Err(e) if e.kind() == io::ErrorKind::NotFound && name != "tcp" => {}
                Err(e) => return Err(e),
            }
        }
        Ok(dump)
    }

    fn read(&self, mut table: impl BufRead, protocol: Protocol, limit: usize, dump: &mut Dump) -> io::Result<()> {
        let mut line = Vec::new();
        loop {
            line.clear();
            if table.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            let Some(row) = std::str::from_utf8(&line).ok().and_then(row) else { continue };
            let waiting = match protocol {
                Protocol::Tcp => LISTEN,
                Protocol::Udp => CLOSE,
            };
            if row.state == waiting {
                dump.listening.insert(protocol, row.local.1);
                continue;
            }
            let connected = match protocol {
                Protocol::Tcp => !matches!(row.state, SYN_SENT | SYN_RECV | NEW_SYN_RECV | CLOSE),
                Protocol::Udp => row.state == ESTABLISHED,
            };
            if !connected || row.remote.1 == 0 {
                continue;
            }
            if dump.sockets.len() >= limit {
                dump.complete = false;
                return Ok(());
            }
            let ends = Ends::new(protocol, row.local, row.remote);
            dump.sockets.push(Socket {
                cookie: self.hasher.hash_one(ends),
                ends,
                live: row.state != TIME_WAIT,
                uid: row.uid,
                inode: row.inode,
            });
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Row {
    local: (IpAddr, u16),
    remote: (IpAddr, u16),
    state: u8,
    uid: u32,
    inode: u32,
}

/// One line: number, local, remote, state, queues, timer, retransmits, uid, timeout, inode. `None` for the heading and
/// for anything else.
fn row(line: &str) -> Option<Row> {
    let mut words = line.split_ascii_whitespace();
    words.next()?.strip_suffix(':')?;
    let local = address(words.next()?)?;
    let remote = address(words.next()?)?;
    let state = u8::from_str_radix(words.next()?, 16).ok()?;
    let uid = words.nth(3)?.parse().ok()?;
    let inode = words.nth(1)?.parse().ok()?;
    Some(Row { local, remote, state, uid, inode })
}

/// `0100007F:0016`: the address in 32-bit words of the machine's byte order, the port as a number.
fn address(word: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = word.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let part = |at: usize| Some(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let address = match address.len() {
        8 => Ipv4Addr::from(part(0)?).into(),
        32 => {
            let mut octets = [0; 16];
            for (at, octets) in octets.chunks_exact_mut(4).enumerate() {
                octets.copy_from_slice(&part(at * 8)?);
            }
            Ipv6Addr::from(octets).into()
        }
        _ => return None,
    };
    Some((address, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:A691 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 173818 1 0000000000000000 100 0
   1: 0100007F:D12E 0100007F:A691 01 00000000:00000000 00:00000000 00000000  1000        0 173843 1 0000000000000000 20 4
   2: 0100007F:E164 0100007F:AC91 06 00000000:00000000 03:00001388 00000000     0        0 0 3 0000000000000000
   3: 0100007F:E165 0100007F:AC91 02 00000000:00000000 01:00001388 00000000     0        0 9 3 0000000000000000
";

    fn read(text: &str, limit: usize) -> Dump {
        let mut dump = Dump { complete: true, ..Dump::default() };
        ProcNet::new(Path::new("/")).read(text.as_bytes(), Protocol::Tcp, limit, &mut dump).unwrap();
        dump
    }

    #[test]
    fn a_table_tells_listeners_connections_and_remains_apart() {
        let dump = read(TABLE, 100);
        assert!(dump.listening.tcp.contains(0xA691));
        let seen: Vec<_> = dump.sockets.iter().map(|s| (s.ends.local_port, s.live, s.uid, s.inode)).collect();
        assert_eq!(seen, [(0xD12E, true, 1_000, 173_843), (0xE164, false, 0, 0)]);
        assert_eq!(dump.sockets[0].ends.local_ip, IpAddr::from([127, 0, 0, 1]));
        assert!(dump.complete && !read(TABLE, 1).complete);
    }

    #[test]
    fn an_address_of_ipv6_is_read_in_words() {
        let (address, port) = address("00000000000000000000000001000000:0016").unwrap();
        assert_eq!((address, port), (IpAddr::V6(Ipv6Addr::LOCALHOST), 22));
    }

    #[test]
    fn the_machines_own_table_is_read() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let dump = ProcNet::new(Path::new("/proc/thread-self/net")).dump(true, true, 100_000).unwrap();
        assert!(dump.listening.tcp.contains(listener.local_addr().unwrap().port()));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[ -~\\n]{0,600}") {
            read(&text, 10);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
            let mut dump = Dump::default();
            ProcNet::new(Path::new("/")).read(&bytes[..], Protocol::Udp, 10, &mut dump).unwrap();
        }

        #[test]
        fn no_row_makes_the_reader_panic(words in proptest::collection::vec("[0-9A-Fé:]{0,40}", 0..14)) {
            let _ = row(&words.join(" "));
        }
    }
}
