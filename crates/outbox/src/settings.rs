//! What an operator can set, and the limits that follow.

use picket_config::{ByteSize, Interval};

picket_config::settings! {
    /// The queue between what happens and whoever is told of it, and how it is delivered.
    pub struct OutboxSettings {
        /// How many bytes of undelivered events are kept. Beyond that the oldest of class low go first, then normal, then high; what goes is counted and reported as a gap.
        pub max_size: ByteSize = ByteSize(256 << 20),
        /// How long an undelivered event is kept. Measured in time that passed, not by the wall clock: a clock that jumps evicts nothing.
        pub max_age: Interval = Interval::days(7),
        /// How many bytes of events wait in memory for the disk. Beyond that the lowest class is given up first.
        pub memory: ByteSize = ByteSize(8 << 20),
        /// How many bytes of events, before compression, are sent at once.
        pub batch_size: ByteSize = ByteSize(512 << 10),
        /// How many events are sent at once.
        pub batch_events: u32 = 2000,
        /// How long a batch waits to be filled.
        pub batch_wait: Interval = Interval::seconds(1),
        /// The first wait after a failed delivery; it doubles with each further failure, and the actual wait is random below it.
        pub retry_base: Interval = Interval::seconds(1),
        /// The longest wait between two attempts.
        pub retry_cap: Interval = Interval::seconds(300),
        /// After how many failures in a row the circuit breaker opens.
        pub breaker_failures: u32 = 5,
        /// How long an open circuit breaker lets nothing through before one attempt is made.
        pub breaker_open: Interval = Interval::seconds(60),
    }
}

/// The smallest batch in bytes: one event of the greatest length with its envelope must fit.
const BATCH_BYTES_MIN: u64 = 128 << 10;
/// The largest batch in bytes: what two sides hold in memory at once, several times over.
const BATCH_BYTES_MAX: u64 = 8 << 20;

/// The limits the queue works within; [`OutboxSettings::limits`] keeps them sane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of undelivered records.
    pub max_bytes: u64,
    /// Age of undelivered records in milliseconds.
    pub max_age_ms: i64,
    /// Bytes of records in memory that are not durable yet.
    pub memory_bytes: usize,
    /// Records in memory that are not durable yet.
    pub memory_records: usize,
}

impl OutboxSettings {
    /// The queue's limits.
    pub fn limits(&self) -> Limits {
        let memory = usize::try_from(self.memory.0).unwrap_or(usize::MAX).max(256 << 10);
        Limits {
            max_bytes: self.max_size.0.max(1 << 20),
            max_age_ms: i64::try_from(self.max_age.get().as_millis()).unwrap_or(i64::MAX),
            memory_bytes: memory,
            // An event takes some hundred bytes; small ones must not make the count the limit long before the bytes.
            memory_records: (memory / 128).max(1024),
        }
    }

    /// How much a batch holds.
    pub fn batch(&self) -> BatchLimits {
        BatchLimits {
            bytes: usize::try_from(self.batch_size.0.clamp(BATCH_BYTES_MIN, BATCH_BYTES_MAX)).unwrap_or(1 << 20),
            records: usize::try_from(self.batch_events.clamp(1, 20_000)).unwrap_or(2000),
        }
    }
}

/// How much a batch holds at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Bytes of events before compression.
    pub bytes: usize,
    /// Events.
    pub records: usize,
}

impl BatchLimits {
    /// Half of it, and never less than one event: after a hub called a batch too large.
    #[must_use]
    pub fn halved(self) -> Self {
        Self { bytes: (self.bytes / 2).max(1), records: (self.records / 2).max(1) }
    }
}
