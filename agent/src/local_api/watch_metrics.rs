//! What the watchers and the way from the sensor count, as metrics at each scrape.
//!
//! Where a sensor process watches, the watchers' own counts are in that process; what it says of its queue is here.

use crate::watch::{Watched, Watching};
use picket_sensorlink::{ClientStatus, Link};
use picket_telemetry::Scrape;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use std::fmt::Error;
use std::sync::Arc;

/// Turns what the watchers counted into metrics.
pub(crate) struct WatchCollector {
    /// The watchers, or the way to them.
    pub(crate) watching: Arc<Watching>,
}

impl std::fmt::Debug for WatchCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WatchCollector")
    }
}

impl Collector for WatchCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let (mut out, watched) = (Scrape(encoder), self.watching.watched());
        encode(&mut out, &watched)
    }
}

fn encode(out: &mut Scrape<'_>, watched: &Watched) -> Result<(), Error> {
    if let Some(files) = &watched.files {
        file_watcher(out, files)?;
    }
    if let Some(network) = &watched.network {
        network_watcher(out, network)?;
    }
    watched.sensor.iter().try_for_each(|sensor| sensor_link(out, sensor))
}

fn file_watcher(out: &mut Scrape<'_>, files: &picket_filewatch::Counters) -> Result<(), Error> {
    let counters = [
        ("file_watch_notices", "What the kernel said of watched folders", files.seen),
        ("file_watch_foreign_notices", "What the kernel said of others on a marked file system", files.foreign),
        ("file_watch_events", "File events that the watcher told", files.told),
        ("file_watch_gaps", "Gaps that the file watcher told", files.gaps),
        ("file_watch_overflows", "How often the kernel's queue of file notices ran over", files.overflows),
        ("file_watch_rescans", "How often paths were compared with the baseline", files.rescans),
        ("file_watch_hashed", "Files whose content was hashed", files.hashed),
        ("file_watch_unhashed", "Files whose content was not hashed for want of time", files.unhashed),
        ("file_watch_dropped", "Notices dropped while the baseline could not be used", files.dropped),
    ];
    for (name, help, value) in counters {
        out.counter(name, help, value)?;
    }
    let folders =
        [("watched", files.watched_dirs), ("unreadable", files.unreadable_dirs), ("unwatched", files.unwatched_dirs)];
    let folders = folders.map(|(state, count)| (vec![("state", state)], count));
    out.family("file_watch_folders", "Folders below the configured paths, by state", MetricType::Gauge, folders)
}

fn network_watcher(out: &mut Scrape<'_>, network: &picket_netwatch::Counters) -> Result<(), Error> {
    let actions = [("opened", network.opened), ("closed", network.closed)];
    let actions = actions.map(|(action, count)| (vec![("action", action)], count));
    let help = "Connections that the network watcher told";
    out.family("network_watch_events", help, MetricType::Counter, actions)?;
    let counters = [
        ("network_watch_notices", "Notices of destroyed sockets", network.notices),
        ("network_watch_overflows", "How often notices of sockets were lost", network.overflows),
        ("network_watch_dumps", "Looks at all sockets", network.dumps),
        ("network_watch_failures", "Looks at all sockets that failed", network.failures),
        ("network_watch_untracked", "Connections that were too many to keep in mind", network.untracked),
    ];
    for (name, help, value) in counters {
        out.counter(name, help, value)?;
    }
    out.gauge("network_watch_tracked", "Connections kept in mind", None, network.tracked as f64)?;
    let last = network.dump_micros as f64 / 1e6;
    out.gauge("network_watch_dump", "How long the last look at all sockets took", Some(&Unit::Seconds), last)
}

fn sensor_link(out: &mut Scrape<'_>, sensor: &ClientStatus) -> Result<(), Error> {
    let connected = f64::from(u8::from(matches!(sensor.link, Link::Connected { .. })));
    out.gauge("sensor_connected", "1 while the sensor is connected", None, connected)?;
    out.counter("sensor_events_delivered", "The sensor's events and gaps made durable here", sensor.delivered)?;
    out.counter("sensor_events_duplicate", "Events of the sensor that came again", sensor.duplicates)?;
    out.counter("sensor_restarts", "How often another life of the sensor was met", sensor.restarts)?;
    let Some(counters) = &sensor.counters else { return Ok(()) };
    let events = [
        ("sensor_events_emitted", "Events that the sensor's watchers told, as it last said", counters.emitted),
        ("sensor_events_acknowledged", "Events that the sensor knows to be durable here", counters.acknowledged),
        ("sensor_events_shed", "Events that the sensor gave up, each in a gap", counters.shed),
    ];
    for (name, help, value) in events {
        out.counter(name, help, value)?;
    }
    out.gauge("sensor_events_queued", "Events that wait in the sensor", None, counters.queued as f64)?;
    let (bytes, limit) = (counters.queued_bytes as f64, counters.limit_bytes as f64);
    out.gauge("sensor_queue_size", "What the sensor's queue takes", Some(&Unit::Bytes), bytes)?;
    out.gauge("sensor_queue_limit", "What the sensor's queue may take", Some(&Unit::Bytes), limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_telemetry::Metrics;

    #[derive(Debug)]
    struct Fixed(Watched);

    impl Collector for Fixed {
        fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
            encode(&mut Scrape(encoder), &self.0)
        }
    }

    #[test]
    fn what_watches_here_and_what_the_sensor_says_are_told_and_what_is_not_there_is_not() {
        let text = |watched| {
            let metrics = Metrics::new("picket_agent");
            metrics.register_collector(Fixed(watched));
            metrics.prometheus()
        };
        let files = picket_filewatch::Counters { overflows: 2, watched_dirs: 7, ..Default::default() };
        let network = picket_netwatch::Counters { opened: 3, dump_micros: 1_500, ..Default::default() };
        let own = text(Watched { files: Some(files), network: Some(network), sensor: None });
        for line in [
            "picket_agent_file_watch_overflows_total 2",
            "picket_agent_file_watch_folders{state=\"watched\"} 7",
            "picket_agent_network_watch_events_total{action=\"opened\"} 3",
            "picket_agent_network_watch_dump_seconds 0.0015",
        ] {
            assert!(own.contains(line), "{line} is missing in\n{own}");
        }
        assert!(!own.contains("sensor"), "{own}");
        let counters = picket_protocol::sensor::Counters {
            emitted: 10,
            acknowledged: 4,
            queued: 5,
            shed: 1,
            queued_bytes: 100,
            limit_bytes: 1_000,
            limit_events: 50,
        };
        let status = ClientStatus {
            link: Link::Waiting { since: jiff::Timestamp::UNIX_EPOCH, reason: String::new() },
            sights: Vec::new(),
            counters: Some(counters),
            delivered: 4,
            duplicates: 0,
            restarts: 1,
        };
        let remote = text(Watched { sensor: Some(status), ..Watched::default() });
        for line in ["sensor_connected 0", "sensor_events_shed_total 1", "sensor_queue_size_bytes 100"] {
            assert!(remote.contains(line), "{line} is missing in\n{remote}");
        }
        assert!(!remote.contains("file_watch"), "{remote}");
    }
}
