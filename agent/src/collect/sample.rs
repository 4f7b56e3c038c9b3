//! The groups of measurements, one sample of a group, and the latest of each.

use super::cpu::CpuSample;
use super::disk::DiskSample;
use super::facts::Facts;
use super::memory::MemorySample;
use super::network::NetworkSample;
use super::own::OwnUsage;
use super::processes::ProcessSample;
use super::temperature::TemperatureSample;
use picket_telemetry::Finding;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// What is measured together, at one interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// What the machine is.
    Facts,
    /// Processor time and load.
    Cpu,
    /// Memory and swap.
    Memory,
    /// File systems and devices.
    Disk,
    /// Interfaces.
    Network,
    /// Processes.
    Processes,
    /// Sensors.
    Temperatures,
    /// The agent itself.
    Own,
}

impl Group {
    /// All of them, facts first, so that they are there before anybody asks.
    pub const ALL: [Self; 8] = [
        Self::Facts,
        Self::Own,
        Self::Memory,
        Self::Network,
        Self::Temperatures,
        Self::Cpu,
        Self::Processes,
        Self::Disk,
    ];

    /// The word for it in configuration, logs and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Facts => "facts",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Network => "network",
            Self::Processes => "processes",
            Self::Temperatures => "temperatures",
            Self::Own => "own",
        }
    }

    fn index(self) -> usize {
        Self::ALL.iter().position(|group| *group == self).unwrap_or(0)
    }
}

/// What was measured of one group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Sample {
    /// What the machine is.
    Facts(Facts),
    /// Processor time and load.
    Cpu(CpuSample),
    /// Memory and swap.
    Memory(MemorySample),
    /// File systems and devices.
    Disk(DiskSample),
    /// Interfaces.
    Network(NetworkSample),
    /// Processes.
    Processes(ProcessSample),
    /// Sensors.
    Temperatures(TemperatureSample),
    /// The agent itself.
    Own(OwnUsage),
}

/// A sample with the time it was taken. As JSON: the sample's fields with `at` (RFC 3339, UTC) beside them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Taken {
    /// When, by the clock on the wall.
    pub at: jiff::Timestamp,
    /// When, by the clock that only goes forward.
    #[serde(skip)]
    pub instant: Instant,
    /// What.
    #[serde(flatten)]
    pub sample: Sample,
}

impl Taken {
    /// A sample that was just taken.
    pub fn now(sample: Sample) -> Self {
        Self { at: jiff::Timestamp::now(), instant: Instant::now(), sample }
    }

    /// Which group it is of.
    pub fn group(&self) -> Group {
        match self.sample {
            Sample::Facts(_) => Group::Facts,
            Sample::Cpu(_) => Group::Cpu,
            Sample::Memory(_) => Group::Memory,
            Sample::Disk(_) => Group::Disk,
            Sample::Network(_) => Group::Network,
            Sample::Processes(_) => Group::Processes,
            Sample::Temperatures(_) => Group::Temperatures,
            Sample::Own(_) => Group::Own,
        }
    }
}

/// The latest sample of each group, shared with those who show it. Each group is replaced whole.
#[derive(Debug, Clone, Default)]
pub struct Latest(Arc<RwLock<[Option<Arc<Taken>>; Group::ALL.len()]>>);

/// A getter for the sample of one group.
macro_rules! latest {
    ($($(#[doc = $doc:literal])* $name:ident: $group:ident -> $type:ty;)*) => {
        impl Latest {
            $(
                $(#[doc = $doc])*
                pub fn $name<R>(&self, read: impl FnOnce(&$type) -> R) -> Option<R> {
                    match &self.get(Group::$group)?.sample {
                        Sample::$group(sample) => Some(read(sample)),
                        _ => None,
                    }
                }
            )*
        }
    };
}

latest! {
    /// Reads the latest facts; `None` before the first.
    facts: Facts -> Facts;
    /// Reads the latest sample of processors; `None` before the first.
    cpu: Cpu -> CpuSample;
    /// Reads the latest sample of memory; `None` before the first.
    memory: Memory -> MemorySample;
    /// Reads the latest sample of disks; `None` before the first.
    disk: Disk -> DiskSample;
    /// Reads the latest sample of interfaces; `None` before the first.
    network: Network -> NetworkSample;
    /// Reads the latest sample of processes; `None` before the first.
    processes: Processes -> ProcessSample;
    /// Reads the latest sample of sensors; `None` before the first.
    temperatures: Temperatures -> TemperatureSample;
    /// Reads the latest sample of the agent itself; `None` before the first.
    own: Own -> OwnUsage;
}

impl Latest {
    /// The latest sample of `group`; `None` before the first.
    pub fn get(&self, group: Group) -> Option<Arc<Taken>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)[group.index()].clone()
    }

    /// Puts `taken` in the place of the sample before it.
    pub fn set(&self, taken: Arc<Taken>) {
        let index = taken.group().index();
        self.0.write().unwrap_or_else(PoisonError::into_inner)[index] = Some(taken);
    }

    /// Everything as JSON, group by group; groups without a sample are absent.
    pub fn to_json(&self) -> serde_json::Value {
        let groups = Group::ALL.into_iter().filter_map(|group| {
            Some((group.as_str().to_owned(), serde_json::to_value(self.get(group)?.as_ref()).ok()?))
        });
        serde_json::Value::Object(groups.collect())
    }

    /// The finding of the collector's own check: the last sample of each group may be at most three intervals old.
    ///
    /// `interval_of` is the interval in force, `started` when measuring began.
    pub(crate) fn finding(&self, interval_of: impl Fn(Group) -> Duration, started: Instant) -> Finding {
        let mut late: Vec<(Group, Duration)> = Vec::new();
        let mut newest: Option<Duration> = None;
        let mut all = true;
        for group in Group::ALL {
            let last = self.get(group).map(|taken| taken.instant);
            let age = last.unwrap_or(started).elapsed();
            // An interval of one second must not fail on one late turn of a busy machine.
            let limit = (interval_of(group) * 3).max(Duration::from_secs(10));
            if age > limit {
                late.push((group, age));
            }
            all &= last.is_some();
            if last.is_some() {
                newest = Some(newest.map_or(age, |newest| newest.min(age)));
            }
        }
        late.sort_by_key(|(_, age)| std::cmp::Reverse(*age));
        match (late.first(), newest) {
            (Some((group, age)), _) => {
                let others =
                    if late.len() > 1 { format!(" (and {} more groups)", late.len() - 1) } else { String::new() };
                let why = if *group == Group::Disk { "; a disk may not answer" } else { "" };
                Finding::fail(format!("no {} sample for {} s{others}{why}", group.as_str(), age.as_secs()))
            }
            (None, Some(age)) if all => Finding::pass(format!("last sample {} s ago", age.as_secs())),
            (None, _) => Finding::pass("the first samples are being taken"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_protocol::CheckStatus;

    fn taken(sample: Sample, age: Duration) -> Arc<Taken> {
        Arc::new(Taken { instant: Instant::now().checked_sub(age).unwrap(), ..Taken::now(sample) })
    }

    fn all_at(age: Duration) -> Latest {
        let latest = Latest::default();
        for sample in [
            Sample::Facts(Facts::default()),
            Sample::Own(OwnUsage::default()),
            Sample::Memory(MemorySample::default()),
            Sample::Network(NetworkSample::default()),
            Sample::Temperatures(TemperatureSample::default()),
            Sample::Cpu(CpuSample::default()),
            Sample::Processes(ProcessSample::default()),
            Sample::Disk(DiskSample::default()),
        ] {
            latest.set(taken(sample, age));
        }
        latest
    }

    #[test]
    fn three_intervals_without_a_sample_of_a_group_fail_and_it_is_named() {
        let minute = |_| Duration::from_secs(60);
        let now = Instant::now();
        let latest = all_at(Duration::from_secs(170));
        assert_eq!(latest.finding(minute, now).status, CheckStatus::Pass);
        latest.set(taken(Sample::Disk(DiskSample::default()), Duration::from_secs(190)));
        let finding = latest.finding(minute, now);
        assert_eq!(finding.status, CheckStatus::Fail);
        assert_eq!(finding.message, "no disk sample for 190 s; a disk may not answer");
        let slow_disks = |group| Duration::from_secs(if group == Group::Disk { 600 } else { 60 });
        assert_eq!(latest.finding(slow_disks, now).status, CheckStatus::Pass);
    }

    #[test]
    fn an_interval_of_a_second_forgives_ten_and_a_start_is_no_failure() {
        let second = |_| Duration::from_secs(1);
        let now = Instant::now();
        assert_eq!(all_at(Duration::from_secs(9)).finding(second, now).status, CheckStatus::Pass);
        assert_eq!(all_at(Duration::from_secs(11)).finding(second, now).status, CheckStatus::Fail);
        assert_eq!(Latest::default().finding(second, now).status, CheckStatus::Pass);
        let long_ago = now.checked_sub(Duration::from_secs(11)).unwrap();
        assert_eq!(Latest::default().finding(second, long_ago).status, CheckStatus::Fail);
    }

    #[test]
    fn the_json_of_a_sample_has_its_time_beside_its_fields() {
        let json = serde_json::to_value(Taken::now(Sample::Memory(MemorySample::default()))).unwrap();
        assert!(json["at"].as_str().is_some_and(|at| at.ends_with('Z')));
        assert_eq!(json["total_bytes"], 0);
    }
}
