//! A sample as single named numbers, for those who compare numbers: thresholds, summaries, exports.
//!
//! Shares are in percent, sizes in bytes, rates a second. Counters that only ever grow are not among them: no threshold
//! means anything on them. Each name is one quantity; tags tell apart what there are several of.

use super::sample::{Sample, Taken};

/// One number of a sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// What it is: `disk_usage`.
    pub name: &'static str,
    /// How much.
    pub value: f64,
    /// Of what: `percent`, `bytes`, `bytes_per_second`, `celsius`, or empty for a plain count.
    pub unit: &'static str,
    /// Which one of several: `mount`, `device`, `interface`, `sensor`.
    pub tags: Vec<(&'static str, String)>,
}

const PERCENT: &str = "percent";
const BYTES: &str = "bytes";
const RATE: &str = "bytes_per_second";
const COUNT: &str = "";

impl Taken {
    /// Every number of this sample that a threshold could be set on.
    pub fn flat(&self) -> impl Iterator<Item = Reading> {
        self.sample.readings().into_iter()
    }
}

impl Sample {
    /// The sample in a stored row: JSON that was a [`Taken`]. `None` for what this version does not know.
    pub fn from_stored(payload: &[u8]) -> Option<Self> {
        serde_json::from_slice(payload).ok()
    }

    /// [`Taken::flat`] of a sample whose time is known otherwise.
    pub fn readings(&self) -> Vec<Reading> {
        let mut readings = Vec::new();
        self.each_reading(&mut |name, value, unit, tag| {
            let tags = tag.map(|(key, value): (&'static str, &str)| (key, value.to_owned())).into_iter().collect();
            readings.push(Reading { name, value, unit, tags });
        });
        readings
    }

    fn each_reading(&self, put: &mut impl FnMut(&'static str, f64, &'static str, Option<(&'static str, &str)>)) {
        match self {
            Sample::Cpu(cpu) => {
                put("cpu_usage", cpu.usage_percent, PERCENT, None);
                put("cpu_user", cpu.percent.user + cpu.percent.nice, PERCENT, None);
                put("cpu_system", cpu.percent.system + cpu.percent.irq + cpu.percent.softirq, PERCENT, None);
                put("cpu_iowait", cpu.percent.iowait, PERCENT, None);
                put("cpu_steal", cpu.percent.steal, PERCENT, None);
                put("load1", cpu.load1, COUNT, None);
                put("load5", cpu.load5, COUNT, None);
                put("load15", cpu.load15, COUNT, None);
            }
            Sample::Memory(memory) => {
                put("memory_usage", memory.used_percent(), PERCENT, None);
                put("memory_used", memory.used_bytes as f64, BYTES, None);
                put("memory_available", memory.available_bytes as f64, BYTES, None);
                put("swap_usage", memory.swap_used_percent(), PERCENT, None);
                put("swap_used", memory.swap_used_bytes as f64, BYTES, None);
                put("swap_in", memory.swap_in_bytes_per_second, RATE, None);
                put("swap_out", memory.swap_out_bytes_per_second, RATE, None);
            }
            Sample::Disk(disk) => {
                for fs in &disk.file_systems {
                    let mount = Some(("mount", fs.mount.as_str()));
                    put("disk_usage", fs.used_percent(), PERCENT, mount);
                    put("disk_used", fs.used_bytes as f64, BYTES, mount);
                    put("disk_available", fs.available_bytes as f64, BYTES, mount);
                    put("inode_usage", fs.inodes_used_percent(), PERCENT, mount);
                }
                for device in &disk.devices {
                    let tag = Some(("device", device.device.as_str()));
                    put("disk_read", device.read_bytes_per_second, RATE, tag);
                    put("disk_written", device.written_bytes_per_second, RATE, tag);
                    put("disk_busy", device.busy_percent, PERCENT, tag);
                }
                put("disks_unanswered", disk.unanswered.len() as f64, COUNT, None);
            }
            Sample::Network(network) => {
                for interface in &network.interfaces {
                    let tag = Some(("interface", interface.interface.as_str()));
                    put("network_received", interface.received_bytes_per_second, RATE, tag);
                    put("network_transmitted", interface.transmitted_bytes_per_second, RATE, tag);
                    put("network_faults", interface.faults_per_second, "per_second", tag);
                }
            }
            Sample::Processes(processes) => {
                put("threads", processes.threads as f64, COUNT, None);
                put("processes", processes.total as f64, COUNT, None);
                put("processes_running", processes.states.running as f64, COUNT, None);
                put("processes_uninterruptible", processes.states.uninterruptible as f64, COUNT, None);
                put("processes_zombie", processes.states.zombie as f64, COUNT, None);
            }
            Sample::Temperatures(temperatures) => {
                for sensor in &temperatures.sensors {
                    put("temperature", sensor.celsius, "celsius", Some(("sensor", &sensor.sensor)));
                }
            }
            Sample::Facts(facts) => {
                if let Some(uptime) = facts.uptime_seconds {
                    put("uptime", uptime as f64, "seconds", None);
                }
                if let Some(users) = facts.users_logged_in {
                    put("users_logged_in", users as f64, COUNT, None);
                }
            }
            Sample::Own(own) => {
                put("agent_memory", own.rss_bytes as f64, BYTES, None);
                put("agent_state", own.state_dir_bytes as f64, BYTES, None);
                put("agent_files", own.fds as f64, COUNT, None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::disk::{DiskSample, FileSystem};
    use super::*;

    #[test]
    fn what_there_are_several_of_is_told_apart_by_its_tag() {
        let fs = |mount: &str, used: u64| FileSystem {
            mount: mount.to_owned(),
            source: String::new(),
            fs_type: String::new(),
            read_only: false,
            total_bytes: 200,
            available_bytes: 200 - used,
            used_bytes: used,
            inodes: 0,
            inodes_used: 0,
        };
        let disk = DiskSample { file_systems: vec![fs("/", 100), fs("/srv", 50)], ..DiskSample::default() };
        let usage: Vec<(f64, String)> = Taken::now(Sample::Disk(disk))
            .flat()
            .filter(|reading| reading.name == "disk_usage")
            .map(|reading| (reading.value, reading.tags[0].1.clone()))
            .collect();
        assert_eq!(usage, [(50.0, "/".to_owned()), (25.0, "/srv".to_owned())]);
    }

    #[test]
    fn a_stored_sample_of_each_group_gives_the_numbers_it_was_stored_with() {
        use super::super::measure::Measurer;
        use super::super::sample::Group;
        let mut measurer = Measurer::new(&super::super::Plan::default());
        for group in Group::ALL {
            let taken = Taken::now(measurer.sample(group).unwrap());
            let stored = Sample::from_stored(&serde_json::to_vec(&taken).unwrap()).unwrap();
            let (stored, taken) = (stored.readings(), taken.sample.readings());
            assert_eq!(stored.len(), taken.len(), "{group:?}");
            for (stored, taken) in stored.iter().zip(&taken) {
                // A fraction may lose its last bit on the way through JSON.
                let near = (stored.value - taken.value).abs() <= taken.value.abs() * f64::EPSILON * 2.0;
                assert!(near && (stored.name, &stored.tags) == (taken.name, &taken.tags), "{stored:?} {taken:?}");
            }
        }
        assert_eq!(Sample::from_stored(b"{\"from\":\"the future\"}"), None);
    }

    #[test]
    fn every_number_is_finite_on_this_machine() {
        use super::super::measure::Measurer;
        use super::super::sample::Group;
        let mut measurer = Measurer::new(&super::super::Plan::default());
        for group in Group::ALL {
            let taken = Taken::now(measurer.sample(group).unwrap());
            let readings: Vec<Reading> = taken.flat().collect();
            assert!(readings.iter().all(|reading| reading.value.is_finite()), "{readings:?}");
        }
    }
}
