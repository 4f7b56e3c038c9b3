//! One measurer for all groups: it makes what a group needs when that group is first asked for.

use super::cpu::CpuCollector;
use super::disk::DiskCollector;
use super::facts::Facts;
use super::memory::MemoryCollector;
use super::mounts::Wanted;
use super::network::NetworkCollector;
use super::own::OwnCollector;
use super::processes::ProcessCollector;
use super::sample::{Group, Sample};
use super::temperature::TemperatureCollector;
use super::{Plan, settings::CollectSettings};
use picket_durable::Error;
use std::time::Instant;

/// Measures any group; each thread has one of its own, with the groups it asks for.
pub struct Measurer {
    facts: Option<Facts>,
    cpu: CpuCollector,
    memory: MemoryCollector,
    disk: DiskCollector,
    network: NetworkCollector,
    processes: ProcessCollector,
    temperatures: Option<TemperatureCollector>,
    own: OwnCollector,
}

impl Measurer {
    /// A measurer for `plan`. Processor time is counted from here on.
    pub fn new(plan: &Plan) -> Self {
        Self {
            facts: None,
            cpu: CpuCollector::new(),
            memory: MemoryCollector::new(),
            disk: DiskCollector::new(wanted(&plan.settings)),
            network: NetworkCollector::new(),
            processes: ProcessCollector::new(plan.settings.top_processes),
            temperatures: None,
            own: OwnCollector::new(&plan.state_dir),
        }
    }

    /// Takes over settings that changed.
    pub(super) fn reload(&mut self, settings: &CollectSettings) {
        self.disk.want(wanted(settings));
        self.processes.want(settings.top_processes);
    }

    /// Measures `group` now.
    ///
    /// # Errors
    /// Which file of the kernel's could not be read.
    pub fn sample(&mut self, group: Group) -> Result<Sample, Error> {
        let now = Instant::now();
        Ok(match group {
            Group::Facts => {
                let facts = self.facts.get_or_insert_with(Facts::gather);
                facts.refresh();
                Sample::Facts(facts.clone())
            }
            Group::Cpu => Sample::Cpu(self.cpu.sample()?),
            Group::Memory => Sample::Memory(self.memory.sample(now)?),
            Group::Disk => Sample::Disk(self.disk.sample(now)?),
            Group::Network => Sample::Network(self.network.sample(now)?),
            Group::Processes => Sample::Processes(self.processes.sample(now)?),
            Group::Temperatures => {
                Sample::Temperatures(self.temperatures.get_or_insert_with(TemperatureCollector::new).sample())
            }
            Group::Own => Sample::Own(self.own.sample(now)?),
        })
    }
}

fn wanted(settings: &CollectSettings) -> Wanted {
    Wanted { remote: settings.remote_disks, virtual_: settings.virtual_disks }
}
