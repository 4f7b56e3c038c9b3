//! What each disk does: reads, writes, and how long it was busy, from `/proc/diskstats`.
//!
//! The format is the kernel's `Documentation/admin-guide/iostats.rst`; its sector is 512 bytes whatever the disk's is.

use super::text::{KeptFile, lines, number, per_second, printable, words};
use picket_durable::Error;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

/// A line has about 100 bytes; a machine with 5,000 disks has others to measure it.
const LIMIT: usize = 512 << 10;
/// The most disks that are told apart: each is a label value in the metrics.
pub const MAX_DEVICES: usize = 64;
/// Sectors in `/proc/diskstats`.
const SECTOR_BYTES: u64 = 512;

/// One disk; counters since the machine started, rates since the sample before.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceSample {
    /// Its name: `sda`.
    pub device: String,
    /// Reads completed.
    pub reads: u64,
    /// Writes completed.
    pub writes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Time with at least one request under way, in seconds.
    pub busy_seconds: f64,
    /// Bytes read a second.
    pub read_bytes_per_second: f64,
    /// Bytes written a second.
    pub written_bytes_per_second: f64,
    /// Share of the time with at least one request under way, percent.
    pub busy_percent: f64,
}

/// Measures disks.
#[derive(Debug)]
pub(super) struct DeviceCollector {
    diskstats: KeptFile,
    /// Where the kernel says what is a partition.
    class_block: PathBuf,
    /// Whether a name is a partition; asked once, for names are few and keep their kind.
    partitions: BTreeMap<String, bool>,
    before: Option<(Instant, Vec<DeviceSample>)>,
}

impl DeviceCollector {
    pub(super) fn new() -> Self {
        Self {
            diskstats: KeptFile::new("/proc/diskstats", LIMIT),
            class_block: PathBuf::from("/sys/class/block"),
            partitions: BTreeMap::new(),
            before: None,
        }
    }

    pub(super) fn sample(&mut self, now: Instant) -> Result<Vec<DeviceSample>, Error> {
        let mut devices = parse(self.diskstats.read()?);
        if self.partitions.len() > 4 * MAX_DEVICES {
            self.partitions.clear();
        }
        let (partitions, class_block) = (&mut self.partitions, &self.class_block);
        devices.retain(|device| {
            if let Some(known) = partitions.get(&device.device) {
                return !known;
            }
            let is_partition = class_block.join(&device.device).join("partition").exists();
            partitions.insert(device.device.clone(), is_partition);
            !is_partition
        });
        devices.truncate(MAX_DEVICES);
        if let Some((at, before)) = &self.before {
            let seconds = now.saturating_duration_since(*at).as_secs_f64();
            for device in &mut devices {
                if let Some(before) = before.iter().find(|before| before.device == device.device) {
                    device.compare(before, seconds);
                }
            }
        }
        self.before = Some((now, devices.clone()));
        Ok(devices)
    }
}

impl DeviceSample {
    fn compare(&mut self, before: &Self, seconds: f64) {
        self.read_bytes_per_second = per_second(before.read_bytes, self.read_bytes, seconds);
        self.written_bytes_per_second = per_second(before.written_bytes, self.written_bytes, seconds);
        if seconds > 0.0 {
            let busy = (self.busy_seconds - before.busy_seconds).max(0.0);
            // The kernel's clock and ours tick apart: a disk that was always busy must not be more than that.
            self.busy_percent = (busy * 100.0 / seconds).min(100.0);
        }
    }
}

/// The disks that did anything yet; loop devices and RAM disks are no disks.
fn parse(text: &[u8]) -> Vec<DeviceSample> {
    lines(text).filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<DeviceSample> {
    let mut columns = words(line);
    let name = columns.nth(2)?;
    if [&b"loop"[..], b"ram", b"zram"].iter().any(|prefix| name.starts_with(prefix)) {
        return None;
    }
    let mut columns = columns.map_while(number);
    // reads, merged, sectors, ms, writes, merged, sectors, ms, under way, busy ms
    let (reads, sectors_read) = (columns.next()?, columns.nth(1)?);
    let (writes, sectors_written) = (columns.nth(1)?, columns.nth(1)?);
    let busy_milliseconds = columns.nth(2)?;
    (reads > 0 || writes > 0).then(|| DeviceSample {
        device: printable(name, 64),
        reads,
        writes,
        read_bytes: sectors_read.saturating_mul(SECTOR_BYTES),
        written_bytes: sectors_written.saturating_mul(SECTOR_BYTES),
        busy_seconds: busy_milliseconds as f64 / 1000.0,
        ..DeviceSample::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &[u8] = b"   7       0 loop0 119 0 4468 17 581 1123 246376 3998 0 968 4538\n\
        254       0 vda 10 1 20 560 30 2 40 131 0 5000 700 38599 132 20872248 10100 48084 5280\n\
        254       1 vda1 10 1 20 560 30 2 40 131 0 5000 700\n\
        8       0 sda 0 0 0 0 0 0 0 0 0 0 0\n";

    #[test]
    fn columns_are_what_the_kernels_document_says() {
        let devices = parse(TEXT);
        let names: Vec<&str> = devices.iter().map(|device| device.device.as_str()).collect();
        assert_eq!(names, ["vda", "vda1"]);
        let vda = &devices[0];
        assert_eq!((vda.reads, vda.writes, vda.read_bytes, vda.written_bytes), (10, 30, 20 * 512, 40 * 512));
        assert!((vda.busy_seconds - 5.0).abs() < 1e-9);
    }

    #[test]
    fn partitions_are_left_to_their_disk_and_rates_are_of_the_time_between() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("vda1/partition")).unwrap();
        let stats = dir.path().join("diskstats");
        picket_durable::write_atomic(&stats, TEXT, 0o600).unwrap();
        let mut collector = DeviceCollector::new();
        collector.class_block = dir.path().to_owned();
        collector.diskstats = KeptFile::new(&stats, LIMIT);
        let start = Instant::now();
        assert_eq!(collector.sample(start).unwrap().len(), 1);
        let later = "254 0 vda 10 1 40 560 30 2 240 131 0 6000 700\n";
        picket_durable::write_atomic(&stats, later.as_bytes(), 0o600).unwrap();
        collector.diskstats = KeptFile::new(&stats, LIMIT);
        let vda = &collector.sample(start + std::time::Duration::from_secs(2)).unwrap()[0];
        assert!((vda.read_bytes_per_second - 5120.0).abs() < 1e-6, "{vda:?}");
        assert!((vda.written_bytes_per_second - 51200.0).abs() < 1e-6 && (vda.busy_percent - 50.0).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(noise in any::<Vec<u8>>(), text in "([0-9]{1,21} ){2}sd[a-z]( [0-9]{1,21}){0,20}\n") {
            parse(&noise);
            parse(text.as_bytes());
        }
    }
}
