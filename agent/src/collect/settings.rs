//! What is measured, and how often: the keys below `collect`.

use super::sample::Group;
use super::schedule::MIN_INTERVAL;
use picket_config::Interval;
use std::time::Duration;

picket_config::settings! {
    /// How often each part of the machine is measured, and which parts.
    pub struct CollectSettings {
        /// How often processor time and load are measured; unset: `collection_interval`.
        pub cpu: Option<Interval> = None,
        /// How often memory and swap are measured; unset: `collection_interval`.
        pub memory: Option<Interval> = None,
        /// How often file systems and disks are measured; unset: `collection_interval`.
        pub disk: Option<Interval> = None,
        /// How often network interfaces are measured; unset: `collection_interval`.
        pub network: Option<Interval> = None,
        /// How often processes are counted; unset: `collection_interval`.
        pub processes: Option<Interval> = None,
        /// How often temperatures are measured; unset: `collection_interval`.
        pub temperatures: Option<Interval> = None,
        /// How often the facts of the machine (host name, uptime, users) are looked at; unset: `collection_interval`.
        pub facts: Option<Interval> = None,
        /// How many of the busiest and of the largest processes are listed, at most 50.
        pub top_processes: u32 = 5,
        /// Whether file systems of other machines (NFS, SMB, FUSE) are measured. One that does not answer is named, and holds up nothing else.
        pub remote_disks: bool = false,
        /// Whether file systems without data of this machine (tmpfs, overlays of containers, images) are measured.
        pub virtual_disks: bool = false,
    }
}

/// How often the agent looks at itself: often enough for the watchdog's window, and it costs next to nothing.
const OWN_INTERVAL: Duration = Duration::from_secs(4);

impl CollectSettings {
    /// How often `group` is measured, `default` being `collection_interval`.
    pub fn interval(&self, group: Group, default: Interval) -> Duration {
        let own = match group {
            Group::Facts => self.facts,
            Group::Cpu => self.cpu,
            Group::Memory => self.memory,
            Group::Disk => self.disk,
            Group::Network => self.network,
            Group::Processes => self.processes,
            Group::Temperatures => self.temperatures,
            Group::Own => return OWN_INTERVAL,
        };
        own.unwrap_or(default).get().max(MIN_INTERVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_without_an_interval_of_its_own_follows_the_common_one() {
        let settings = CollectSettings { disk: Some(Interval::seconds(300)), ..CollectSettings::default() };
        let common = Interval::seconds(30);
        assert_eq!(settings.interval(Group::Cpu, common), Duration::from_secs(30));
        assert_eq!(settings.interval(Group::Disk, common), Duration::from_secs(300));
        assert_eq!(settings.interval(Group::Cpu, Interval::seconds(0)), MIN_INTERVAL);
    }
}
