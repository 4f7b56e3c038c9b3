//! What an operator can set of the way events take.

use super::budget::Rate;
use picket_config::{ByteSize, Interval};

picket_config::choice! {
    /// A place that takes events.
    pub enum SinkKind {
        /// The durable queue, from which the hub (or, without one, this machine's own store) is served.
        Outbox = "outbox",
        /// Standard output, a line each.
        Stdout = "stdout",
        /// The file `events.file`.
        File = "file",
        /// The system log: syslog or the systemd journal.
        Syslog = "syslog",
    }
}

picket_config::settings! {
    /// The way events take from the watchers to whoever is told of them.
    pub struct EventSettings {
        /// Where events go. Without `outbox` nothing is kept and nothing is delivered.
        pub sinks: Vec<SinkKind> = vec![SinkKind::Outbox],
        /// The file of the sink `file`; empty is `events.ndjson` in the folder of logs. Turned over by size, three older ones are kept.
        pub file: String = String::new(),
        /// At which size that file is turned over.
        pub file_max_size: ByteSize = ByteSize(64 << 20),
        /// Identical events within this time become one that says how many there were; 0 tells each.
        pub fold: Interval = Interval::seconds(5),
        /// File events a second that may go on, after folding; what is more is shed and counted.
        pub file_rate: u32 = 2500,
        /// File events at once, after a pause.
        pub file_burst: u32 = 50_000,
        /// Network events a second that may go on, after folding; what is more is shed and counted.
        pub network_rate: u32 = 2500,
        /// Network events at once, after a pause.
        pub network_burst: u32 = 50_000,
    }
}

impl EventSettings {
    pub(crate) fn file_budget(&self) -> Rate {
        Rate { per_second: self.file_rate, burst: self.file_burst }
    }

    pub(crate) fn network_budget(&self) -> Rate {
        Rate { per_second: self.network_rate, burst: self.network_burst }
    }
}
