//! System metrics: CPU, memory, disks and network of this machine, through sysinfo.
//!
//! The collector has a thread of its own and no other thread waits for it: measuring a disk whose server went away
//! (`statvfs` on a dead NFS mount) blocks for ever, and then the collector's check fails while all else goes on.

use picket_config::Interval;
use picket_telemetry::Finding;
use serde::Serialize;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use sysinfo::{Disks, MemoryRefreshKind, Networks, System};

/// At how many percent of a disk in use the check warns (operations guide, "Health Check Criteria").
const DISK_WARN_PERCENT: f64 = 90.0;
/// CPU use is a difference between two readings; the first pair is taken this far apart so that the first sample is
/// there at once. sysinfo's own minimum is 200 ms.
const FIRST_CPU_GAP: Duration = Duration::from_millis(250);

/// One measurement of the machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Sample {
    /// CPU time not idle, percent of all cores.
    pub(crate) cpu_percent: f64,
    /// Load averages over 1, 5 and 15 minutes.
    pub(crate) load: [f64; 3],
    /// Memory in bytes.
    pub(crate) memory_total: u64,
    /// Memory not available to new programs, in bytes.
    pub(crate) memory_used: u64,
    /// Swap in bytes.
    pub(crate) swap_total: u64,
    /// Swap in use, in bytes.
    pub(crate) swap_used: u64,
    /// Each writable file system.
    pub(crate) disks: Vec<DiskSample>,
    /// Each network interface.
    pub(crate) networks: Vec<NetworkSample>,
}

/// One file system.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct DiskSample {
    /// Where it is mounted.
    pub(crate) mount: String,
    /// Its size in bytes.
    pub(crate) total: u64,
    /// What is not available to unprivileged writers, in bytes.
    pub(crate) used: u64,
}

/// One network interface; bytes since it came up.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct NetworkSample {
    /// Its name.
    pub(crate) interface: String,
    /// Bytes received.
    pub(crate) received: u64,
    /// Bytes sent.
    pub(crate) transmitted: u64,
}

impl DiskSample {
    fn percent(&self) -> f64 {
        percent(self.used, self.total)
    }
}

impl Sample {
    /// Memory in use, percent.
    pub(crate) fn memory_percent(&self) -> f64 {
        percent(self.memory_used, self.memory_total)
    }

    /// The fullest file system, percent.
    pub(crate) fn disk_percent(&self) -> f64 {
        self.fullest().map_or(0.0, DiskSample::percent)
    }

    fn fullest(&self) -> Option<&DiskSample> {
        self.disks.iter().max_by(|a, b| a.percent().total_cmp(&b.percent()))
    }

    /// The finding of the disk check.
    pub(crate) fn disk_finding(&self) -> Finding {
        let Some(disk) = self.fullest() else { return Finding::pass("no writable disk is mounted") };
        let used = disk.percent();
        let message = format!("disk space {used:.1}% used ({})", disk.mount);
        let finding = if used < DISK_WARN_PERCENT { Finding::pass(message) } else { Finding::warn(message) };
        finding.figure("used_percent", (used * 10.0).round() / 10.0)
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

/// The latest sample, shared with those who show it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Latest(Arc<RwLock<Option<(Instant, Sample)>>>);

impl Latest {
    /// A copy of the latest sample; `None` before the first.
    pub(crate) fn get(&self) -> Option<Sample> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(_, sample)| sample.clone())
    }

    fn set(&self, sample: Sample) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), sample));
    }

    /// The finding of the collector's own check: the last sample may be at most three intervals old.
    pub(crate) fn finding(&self, interval: Interval, started: Instant) -> Finding {
        let last = self.0.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(at, _)| *at);
        let age = last.unwrap_or(started).elapsed();
        // An interval of one second must not fail on one late turn of a busy machine.
        let limit = (interval.get() * 3).max(Duration::from_secs(10));
        match last {
            _ if age > limit => Finding::fail(format!("no sample for {} s; a disk may not answer", age.as_secs())),
            None => Finding::pass("the first sample is being taken"),
            Some(_) => Finding::pass(format!("last sample {} s ago", age.as_secs())),
        }
    }
}

/// Measures for ever, each `interval`; runs on its own thread, which ends with the process.
pub(crate) fn run(latest: &Latest, interval: Interval, each: impl Fn(&Sample)) {
    let pause = interval.get().max(Duration::from_millis(100));
    let mut collector = loop {
        match Collector::new() {
            Ok(collector) => break collector,
            // The check fails meanwhile and says for how long; a machine without /proc may still get one.
            Err(error) => tracing::error!(%error, "this machine cannot be measured"),
        }
        std::thread::sleep(pause);
    };
    std::thread::sleep(FIRST_CPU_GAP);
    loop {
        let sample = collector.sample();
        each(&sample);
        latest.set(sample);
        std::thread::sleep(pause);
    }
}

struct Collector {
    system: System,
    disks: Disks,
    networks: Networks,
}

impl Collector {
    fn new() -> Result<Self, sysinfo::Error> {
        let mut system = System::new()?;
        system.refresh_cpu_usage();
        Ok(Self { system, disks: Disks::new()?, networks: Networks::new()? })
    }

    fn sample(&mut self) -> Sample {
        self.system.refresh_cpu_usage();
        self.system.refresh_memory_specifics(MemoryRefreshKind::everything());
        self.disks.refresh(true);
        self.networks.refresh(true);
        let load = System::load_average().map_or([0.0; 3], |load| [load.one, load.five, load.fifteen]);
        let memory_total = self.system.total_memory();
        Sample {
            cpu_percent: f64::from(self.system.global_cpu_usage()),
            load,
            memory_total,
            memory_used: memory_total.saturating_sub(self.system.available_memory()),
            swap_total: self.system.total_swap(),
            swap_used: self.system.used_swap(),
            disks: disk_samples(&self.disks),
            networks: network_samples(&self.networks),
        }
    }
}

fn disk_samples(disks: &Disks) -> Vec<DiskSample> {
    let mut samples: Vec<DiskSample> = disks
        .iter()
        // Images that are full by nature (squashfs, ISO) are no news.
        .filter(|disk| !disk.is_read_only() && disk.total_space() > 0)
        .map(|disk| DiskSample {
            mount: disk.mount_point().display().to_string(),
            total: disk.total_space(),
            used: disk.total_space().saturating_sub(disk.available_space()),
        })
        .collect();
    samples.sort_by(|a, b| a.mount.cmp(&b.mount));
    samples.dedup_by(|a, b| a.mount == b.mount);
    samples
}

fn network_samples(networks: &Networks) -> Vec<NetworkSample> {
    let mut samples: Vec<NetworkSample> = networks
        .iter()
        .map(|(interface, data)| NetworkSample {
            interface: interface.to_string_lossy().into_owned(),
            received: data.total_received(),
            transmitted: data.total_transmitted(),
        })
        .collect();
    samples.sort_by(|a, b| a.interface.cmp(&b.interface));
    samples
}

/// What does not change while the machine runs: `GET /system`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SystemFacts {
    /// The operating system's family: `Linux`.
    pub(crate) platform: String,
    /// The kernel's version.
    pub(crate) version: Option<String>,
    /// The distribution's name and version.
    pub(crate) os: Option<String>,
    /// The host's name.
    pub(crate) hostname: Option<String>,
    /// The processor's architecture.
    pub(crate) architecture: String,
    /// Logical processors.
    pub(crate) cpu_count: usize,
    /// Memory in bytes.
    pub(crate) memory_total: u64,
    /// When the machine started (seconds since 1970, UTC).
    pub(crate) boot_time: Option<u64>,
}

impl SystemFacts {
    /// Asks the system.
    pub(crate) fn gather() -> Self {
        let memory_total = System::new().map_or(0, |mut system| {
            system.refresh_memory();
            system.total_memory()
        });
        Self {
            platform: "Linux".to_owned(),
            version: System::kernel_version().ok(),
            os: System::long_os_version().ok(),
            hostname: System::host_name().ok(),
            architecture: System::cpu_arch(),
            cpu_count: std::thread::available_parallelism().map_or(1, usize::from),
            memory_total,
            boot_time: System::boot_time().ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_protocol::CheckStatus;

    fn disk(mount: &str, used: u64) -> DiskSample {
        DiskSample { mount: mount.to_owned(), total: 1000, used }
    }

    #[test]
    fn a_disk_warns_from_ninety_percent_on_and_never_fails() {
        let finding =
            |used| Sample { disks: vec![disk("/", 100), disk("/srv", used)], ..Sample::default() }.disk_finding();
        assert_eq!(finding(899).status, CheckStatus::Pass);
        assert_eq!(finding(900).status, CheckStatus::Warn);
        assert_eq!(finding(1000).status, CheckStatus::Warn);
        assert_eq!(finding(452).message, "disk space 45.2% used (/srv)");
    }

    #[test]
    fn this_machine_can_be_measured() {
        let mut collector = Collector::new().unwrap();
        let sample = collector.sample();
        assert!(sample.memory_total > 0 && sample.memory_used <= sample.memory_total, "{sample:?}");
        assert!(!sample.networks.is_empty());
        assert!((0.0..=100.0).contains(&sample.cpu_percent));
    }
}
