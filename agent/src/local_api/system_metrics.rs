//! The machine's and the agent's own figures as metrics, made from the latest samples at each scrape.
//!
//! Names are `<namespace>_system_…` for the machine, `<namespace>_process_…` for the agent (the Prometheus client
//! libraries' convention). Units are base units. Each label has a bounded number of values: what could grow without
//! number (processes, containers' links) is in the JSON form or left out. A figure that was not measured is absent,
//! never 0.

use crate::collect::{
    CpuSample, DeviceSample, DiskSample, Facts, FileSystem, InterfaceSample, Latest, MemorySample, NetworkSample,
    OwnUsage, ProcessSample, TemperatureSample,
};
use crate::watchdog::Degradation;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use std::fmt::Error;

/// Turns the latest samples into metrics at each scrape.
#[derive(Debug)]
pub(crate) struct SystemCollector {
    /// The latest samples.
    pub(crate) latest: Latest,
    /// How much the agent does.
    pub(crate) degradation: Degradation,
}

impl Collector for SystemCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut out = Out(encoder);
        let latest = &self.latest;
        // `None` is a group without a sample yet, or one that cannot be measured here.
        latest.cpu(|cpu| encode_cpu(&mut out, cpu)).transpose()?;
        latest.memory(|memory| encode_memory(&mut out, memory)).transpose()?;
        latest.disk(|disk| encode_disk(&mut out, disk)).transpose()?;
        latest.network(|network| encode_network(&mut out, network)).transpose()?;
        latest.processes(|processes| encode_processes(&mut out, processes)).transpose()?;
        latest.temperatures(|temperatures| encode_temperatures(&mut out, temperatures)).transpose()?;
        latest.facts(|facts| encode_facts(&mut out, facts)).transpose()?;
        latest.own(|own| encode_own(&mut out, own)).transpose()?;
        let step = self.degradation.step();
        out.gauge(
            "degradation_step",
            "How much the agent does: 0 everything, 1 measures less often, 2 folds like events, 3 drops low classes",
            None,
            f64::from(step.number()),
        )
    }
}

/// The encoder, with the few shapes that are used here.
struct Out<'e>(DescriptorEncoder<'e>);

/// Labels of one series.
type Label = [(&'static str, String); 1];

impl Out<'_> {
    fn gauge(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: f64) -> Result<(), Error> {
        let gauge = ConstGauge::new(value);
        gauge.encode(self.0.encode_descriptor(name, help, unit, gauge.metric_type())?)
    }

    fn counter(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: f64) -> Result<(), Error> {
        let counter = ConstCounter::new(value);
        counter.encode(self.0.encode_descriptor(name, help, unit, counter.metric_type())?)
    }

    fn family(
        &mut self,
        (name, help, unit, kind): (&str, &str, Option<&Unit>, MetricType),
        values: impl Iterator<Item = (Label, f64)>,
    ) -> Result<(), Error> {
        let mut values = values.peekable();
        if values.peek().is_none() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, unit, kind)?;
        for (label, value) in values {
            let series = family.encode_family(&label)?;
            match kind {
                MetricType::Counter => ConstCounter::new(value).encode(series)?,
                _ => ConstGauge::new(value).encode(series)?,
            }
        }
        Ok(())
    }
}

const BYTES: Option<&Unit> = Some(&Unit::Bytes);
const SECONDS: Option<&Unit> = Some(&Unit::Seconds);
const GAUGE: MetricType = MetricType::Gauge;
const COUNTER: MetricType = MetricType::Counter;

fn encode_cpu(out: &mut Out<'_>, cpu: &CpuSample) -> Result<(), Error> {
    out.gauge("system_cpu_usage_percent", "CPU time not idle, percent of all cores", None, cpu.usage_percent)?;
    let cores = cpu.cores.iter().map(|core| ([("core", core.core.to_string())], core.usage_percent));
    out.family(("system_cpu_core_usage_percent", "CPU time not idle, percent of each core", None, GAUGE), cores)?;
    let modes = cpu.seconds.each().into_iter().map(|(mode, seconds)| ([("mode", mode.to_owned())], seconds));
    out.family(("system_cpu", "CPU time of all cores since the machine started", SECONDS, COUNTER), modes)?;
    out.gauge("system_load1", "Load average over one minute", None, cpu.load1)?;
    out.gauge("system_load5", "Load average over five minutes", None, cpu.load5)?;
    out.gauge("system_load15", "Load average over fifteen minutes", None, cpu.load15)
}

fn encode_memory(out: &mut Out<'_>, memory: &MemorySample) -> Result<(), Error> {
    for (name, help, value) in [
        ("system_memory_total", "Physical memory", memory.total_bytes),
        ("system_memory_used", "Memory not available to new programs", memory.used_bytes),
        ("system_memory_available", "Memory a new program could get without swapping", memory.available_bytes),
        ("system_memory_free", "Memory that nobody uses for anything", memory.free_bytes),
        ("system_memory_buffers", "Caches of block devices", memory.buffers_bytes),
        ("system_memory_cached", "Caches of files, shared memory included", memory.cached_bytes),
        ("system_swap_total", "Swap space", memory.swap_total_bytes),
        ("system_swap_used", "Swap space in use", memory.swap_used_bytes),
    ] {
        out.gauge(name, help, BYTES, value as f64)?;
    }
    out.counter("system_swap_in", "Read back from swap", BYTES, memory.swap_in_bytes as f64)?;
    out.counter("system_swap_out", "Written to swap", BYTES, memory.swap_out_bytes as f64)
}

fn encode_disk(out: &mut Out<'_>, disk: &DiskSample) -> Result<(), Error> {
    let mut spaces = |name: &str, help: &str, unit: Option<&Unit>, field: fn(&FileSystem) -> f64| {
        let values = disk.file_systems.iter().map(|fs| ([("mount", fs.mount.clone())], field(fs)));
        out.family((name, help, unit, GAUGE), values)
    };
    spaces("system_disk_total", "Size of each file system", BYTES, |fs| fs.total_bytes as f64)?;
    spaces("system_disk_used", "Space not available to unprivileged writers", BYTES, |fs| fs.used_bytes as f64)?;
    spaces("system_disk_available", "Space unprivileged writers can use", BYTES, |fs| fs.available_bytes as f64)?;
    spaces("system_disk_inodes", "Files each file system can hold", None, |fs| fs.inodes as f64)?;
    spaces("system_disk_inodes_used", "Files each file system holds", None, |fs| fs.inodes_used as f64)?;
    spaces("system_disk_read_only", "1 where nothing can be written", None, |fs| f64::from(u8::from(fs.read_only)))?;
    let unanswered = disk.unanswered.len() as f64;
    out.gauge("system_disk_unanswered", "File systems that did not answer in time", None, unanswered)?;

    let mut devices = |name: &str, help: &str, unit: Option<&Unit>, field: fn(&DeviceSample) -> f64| {
        let values = disk.devices.iter().map(|device| ([("device", device.device.clone())], field(device)));
        out.family((name, help, unit, COUNTER), values)
    };
    devices("system_device_reads", "Reads each disk completed", None, |device| device.reads as f64)?;
    devices("system_device_writes", "Writes each disk completed", None, |device| device.writes as f64)?;
    devices("system_device_read", "Read from each disk", BYTES, |device| device.read_bytes as f64)?;
    devices("system_device_written", "Written to each disk", BYTES, |device| device.written_bytes as f64)?;
    devices("system_device_busy", "Time with a request under way", SECONDS, |device| device.busy_seconds)
}

fn encode_network(out: &mut Out<'_>, network: &NetworkSample) -> Result<(), Error> {
    let mut each = |name: &str, help: &str, unit: Option<&Unit>, field: fn(&InterfaceSample) -> u64| {
        let interfaces = network.interfaces.iter();
        let values =
            interfaces.map(|interface| ([("interface", interface.interface.clone())], field(interface) as f64));
        out.family((name, help, unit, COUNTER), values)
    };
    each("system_network_received", "Bytes received by each interface", BYTES, |i| i.received_bytes)?;
    each("system_network_transmitted", "Bytes sent by each interface", BYTES, |i| i.transmitted_bytes)?;
    each("system_network_received_packets", "Packets received", None, |i| i.received_packets)?;
    each("system_network_transmitted_packets", "Packets sent", None, |i| i.transmitted_packets)?;
    each("system_network_received_errors", "Packets that came damaged", None, |i| i.received_errors)?;
    each("system_network_transmitted_errors", "Packets that could not be sent", None, |i| i.transmitted_errors)?;
    each("system_network_received_drops", "Packets that came and found no room", None, |i| i.received_drops)?;
    each("system_network_transmitted_drops", "Packets to be sent that found no room", None, |i| i.transmitted_drops)
}

fn encode_processes(out: &mut Out<'_>, processes: &ProcessSample) -> Result<(), Error> {
    // Of our own user's processes alone the machine's count cannot be told.
    if !processes.sees_all {
        return Ok(());
    }
    let states =
        processes.states.each().into_iter().map(|(state, count)| ([("state", state.to_owned())], count as f64));
    out.family(("system_processes", "Processes in each state", None, GAUGE), states)?;
    out.gauge("system_threads", "Threads of all processes", None, processes.threads as f64)
}

fn encode_temperatures(out: &mut Out<'_>, temperatures: &TemperatureSample) -> Result<(), Error> {
    let sensors = temperatures.sensors.iter().map(|sensor| ([("sensor", sensor.sensor.clone())], sensor.celsius));
    out.family(("system_temperature", "What each sensor shows", Some(&Unit::Celsius), GAUGE), sensors)
}

fn encode_facts(out: &mut Out<'_>, facts: &Facts) -> Result<(), Error> {
    if let Some(boot_time) = facts.boot_time {
        out.gauge("system_boot_time", "When the machine started, in seconds since 1970", SECONDS, boot_time as f64)?;
    }
    if let Some(uptime) = facts.uptime_seconds {
        out.gauge("system_uptime", "Time since the machine started", SECONDS, uptime as f64)?;
    }
    if let Some(users) = facts.users_logged_in {
        out.gauge("system_users_logged_in", "Different users with a login", None, users as f64)?;
    }
    let unknown = |text: &Option<String>| text.clone().unwrap_or_default();
    let labels = [
        ("architecture", facts.architecture.clone()),
        ("cpu_model", unknown(&facts.cpu_model)),
        ("kernel", unknown(&facts.version)),
        ("os", unknown(&facts.os)),
        ("virtualisation", unknown(&facts.virtualisation)),
    ];
    let mut family = out.0.encode_descriptor("system_info", "1, with what the machine is", None, GAUGE)?;
    ConstGauge::new(1_i64).encode(family.encode_family(&labels)?)
}

fn encode_own(out: &mut Out<'_>, own: &OwnUsage) -> Result<(), Error> {
    out.counter("process_cpu", "CPU time of the agent itself", SECONDS, own.cpu_seconds)?;
    out.gauge("process_resident_memory", "Memory of the agent itself", BYTES, own.rss_bytes as f64)?;
    out.gauge("process_virtual_memory", "Address space of the agent itself", BYTES, own.virtual_bytes as f64)?;
    out.gauge("process_open_fds", "Files the agent itself has open", None, own.fds as f64)?;
    if let Some(max) = own.max_fds {
        out.gauge("process_max_fds", "Files the agent itself may have open", None, max as f64)?;
    }
    out.gauge("process_threads", "Threads of the agent itself", None, own.threads as f64)?;
    out.gauge("process_state", "Space of the agent's state on disk", BYTES, own.state_dir_bytes as f64)
}
