//! Network interfaces, from `/proc/net/dev` (proc(5)).
//!
//! The ends of containers' links (`veth…`) come and go with every container: as labels they would be without number.
//! They are left out, and what they carry is counted at the bridge they hang on.

use super::text::{KeptFile, lines, numbers, per_second, printable};
use picket_durable::Error;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// A line has about 130 bytes.
const LIMIT: usize = 512 << 10;
/// The most interfaces that are told apart: each is a label value in the metrics.
pub const MAX_INTERFACES: usize = 64;
/// What container runtimes name their ends of links.
const CONTAINER_LINKS: [&[u8]; 5] = [b"veth", b"cali", b"lxc", b"vnet", b"tap"];

/// Each interface.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NetworkSample {
    /// By name.
    pub interfaces: Vec<InterfaceSample>,
}

/// One interface; counters since it came, rates since the sample before.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct InterfaceSample {
    /// Its name.
    pub interface: String,
    /// Bytes received.
    pub received_bytes: u64,
    /// Packets received.
    pub received_packets: u64,
    /// Packets that came damaged.
    pub received_errors: u64,
    /// Packets that came and found no room.
    pub received_drops: u64,
    /// Bytes sent.
    pub transmitted_bytes: u64,
    /// Packets sent.
    pub transmitted_packets: u64,
    /// Packets that could not be sent.
    pub transmitted_errors: u64,
    /// Packets to be sent that found no room.
    pub transmitted_drops: u64,
    /// Bytes received a second.
    pub received_bytes_per_second: f64,
    /// Bytes sent a second.
    pub transmitted_bytes_per_second: f64,
    /// Errors and drops, both ways, a second.
    pub faults_per_second: f64,
}

impl InterfaceSample {
    fn faults(&self) -> u64 {
        [self.received_errors, self.received_drops, self.transmitted_errors, self.transmitted_drops]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    fn compare(&mut self, before: &Self, seconds: f64) {
        self.received_bytes_per_second = per_second(before.received_bytes, self.received_bytes, seconds);
        self.transmitted_bytes_per_second = per_second(before.transmitted_bytes, self.transmitted_bytes, seconds);
        self.faults_per_second = per_second(before.faults(), self.faults(), seconds);
    }
}

/// Measures interfaces.
#[derive(Debug)]
pub(super) struct NetworkCollector {
    dev: KeptFile,
    before: Option<(Instant, Vec<InterfaceSample>)>,
}

impl NetworkCollector {
    pub(super) fn new() -> Self {
        Self { dev: KeptFile::new("/proc/net/dev", LIMIT), before: None }
    }

    pub(super) fn sample(&mut self, now: Instant) -> Result<NetworkSample, Error> {
        let mut interfaces = parse(self.dev.read()?);
        if let Some((at, before)) = &self.before {
            let seconds = now.saturating_duration_since(*at).as_secs_f64();
            for interface in &mut interfaces {
                if let Some(before) = before.iter().find(|before| before.interface == interface.interface) {
                    interface.compare(before, seconds);
                }
            }
        }
        self.before = Some((now, interfaces.clone()));
        Ok(NetworkSample { interfaces })
    }
}

/// Two lines of headings, then `  eth0: 273561013 11839 0 0 0 0 0 0 896222 8555 0 0 0 0 0 0`.
fn parse(text: &[u8]) -> Vec<InterfaceSample> {
    let mut interfaces: Vec<InterfaceSample> = lines(text).filter_map(parse_line).collect();
    interfaces.sort_by(|a, b| a.interface.cmp(&b.interface));
    interfaces.dedup_by(|a, b| a.interface == b.interface);
    interfaces.truncate(MAX_INTERFACES);
    interfaces
}

fn parse_line(line: &[u8]) -> Option<InterfaceSample> {
    // The last colon: an alias such as `eth0:1` has one in its name.
    let colon = line.iter().rposition(|byte| *byte == b':')?;
    let name = line[..colon].trim_ascii();
    if name.is_empty() || CONTAINER_LINKS.iter().any(|prefix| name.starts_with(prefix)) {
        return None;
    }
    let mut columns = numbers(&line[colon + 1..]);
    let mut next = || columns.next();
    let (received_bytes, received_packets) = (next()?, next()?);
    let (received_errors, received_drops) = (next()?, next()?);
    // fifo, frame, compressed, multicast
    let _ = (next()?, next()?, next()?, next()?);
    let (transmitted_bytes, transmitted_packets) = (next()?, next()?);
    let (transmitted_errors, transmitted_drops) = (next()?, next()?);
    Some(InterfaceSample {
        interface: printable(name, 64),
        received_bytes,
        received_packets,
        received_errors,
        received_drops,
        transmitted_bytes,
        transmitted_packets,
        transmitted_errors,
        transmitted_drops,
        ..InterfaceSample::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &[u8] = b"Inter-|   Receive                            |  Transmit\n \
        face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n\
        \x20   lo: 71 7 0 0 0 0 0 0 71 7 0 0 0 0 0 0\n\
        veth12ab: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1\n\
        \x20 eth0:27 11 1 2 0 0 0 0 89 85 3 4 0 0 0 0\n";

    #[test]
    fn columns_are_told_apart_and_containers_links_are_left_out() {
        let interfaces = parse(TEXT);
        let names: Vec<&str> = interfaces.iter().map(|interface| interface.interface.as_str()).collect();
        assert_eq!(names, ["eth0", "lo"]);
        let eth0 = &interfaces[0];
        assert_eq!((eth0.received_bytes, eth0.received_errors, eth0.received_drops), (27, 1, 2));
        assert_eq!((eth0.transmitted_bytes, eth0.transmitted_packets, eth0.transmitted_drops), (89, 85, 4));
        assert_eq!(eth0.faults(), 10);
    }

    #[test]
    fn a_host_of_many_interfaces_has_a_bounded_number() {
        let lines: Vec<String> = (0..500).map(|n| format!("br{n:04}: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1\n")).collect();
        assert_eq!(parse(lines.concat().as_bytes()).len(), MAX_INTERFACES);
    }

    #[test]
    fn this_machine_has_a_loopback() {
        let sample = NetworkCollector::new().sample(Instant::now()).unwrap();
        assert!(sample.interfaces.iter().any(|interface| interface.interface == "lo"), "{sample:?}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(noise in any::<Vec<u8>>(), text in "[a-z:]{0,9}( [0-9]{1,21}){0,20}\n") {
            parse(&noise);
            parse(text.as_bytes());
        }
    }
}
