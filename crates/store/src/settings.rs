//! How much is kept: the configuration's group `data`.

use crate::Table;
use picket_config::{ByteSize, Interval};
use std::time::Duration;

picket_config::settings! {
    /// What is kept on the machine, and for how long.
    pub struct DataSettings {
        /// How large the store may grow. Beyond it the oldest rows go, except those that are kept for ever.
        pub max_size: ByteSize = ByteSize(1 << 30),
        /// How long each kind of row is kept.
        pub retention: RetentionSettings = RetentionSettings::default(),
    }
}

picket_config::settings! {
    /// How long each kind of row is kept; `0s` keeps it for ever.
    pub struct RetentionSettings {
        /// What the machine measured.
        pub metrics: Interval = Interval::days(30),
        /// What the agent and its modules logged.
        pub logs: Interval = Interval::days(30),
        /// How tasks ran.
        pub task_logs: Interval = Interval::days(90),
        /// What modules keep.
        pub module_data: Interval = Interval::seconds(0),
        /// What was said to and by the management.
        pub communication_logs: Interval = Interval::days(7),
        /// Every configuration that was in force.
        pub config_backups: Interval = Interval::seconds(0),
        /// File and network events.
        pub events: Interval = Interval::days(30),
        /// Alerts: raised, acknowledged, cleared.
        pub alerts: Interval = Interval::days(90),
    }
}

/// What retention works by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    keep: [Option<Duration>; 8],
    max_bytes: Option<u64>,
}

impl Policy {
    /// How long rows of `table` are kept; `None` for ever.
    pub fn keep(&self, table: Table) -> Option<Duration> {
        self.keep[table.index()]
    }

    /// How large the database may grow, in bytes.
    pub fn max_bytes(&self) -> Option<u64> {
        self.max_bytes
    }

    /// The same with another limit of size.
    #[must_use]
    pub fn with_max_bytes(self, max_bytes: Option<u64>) -> Self {
        Self { max_bytes, ..self }
    }

    /// The same with another time for one table.
    #[must_use]
    pub fn with_keep(mut self, table: Table, keep: Option<Duration>) -> Self {
        self.keep[table.index()] = keep;
        self
    }

    /// The same, but nothing that may go at all is kept longer than `keep`: what `data cleanup --days` means. Tables
    /// that are kept for ever stay so.
    #[must_use]
    pub fn at_most(mut self, keep: Duration) -> Self {
        for limit in self.keep.iter_mut().flatten() {
            *limit = keep.min(*limit);
        }
        self
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::from(&DataSettings::default())
    }
}

impl From<&DataSettings> for Policy {
    fn from(settings: &DataSettings) -> Self {
        let retention = &settings.retention;
        let keep = Table::ALL.map(|table| {
            let interval = match table {
                Table::Metrics => retention.metrics,
                Table::Logs => retention.logs,
                Table::TaskLogs => retention.task_logs,
                Table::ModuleData => retention.module_data,
                Table::CommunicationLogs => retention.communication_logs,
                Table::ConfigBackups => retention.config_backups,
                Table::Events => retention.events,
                Table::Alerts => retention.alerts,
            };
            Some(interval.get()).filter(|keep| !keep.is_zero())
        });
        Self { keep, max_bytes: Some(settings.max_size.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_manual() {
        let policy = Policy::default();
        let days = Table::ALL.map(|table| policy.keep(table).map(|keep| keep.as_secs() / 86_400));
        assert_eq!(days, [Some(30), Some(30), Some(90), None, Some(7), None, Some(30), Some(90)]);
    }

    #[test]
    fn a_persons_number_of_days_shortens_and_never_lengthens_and_spares_what_is_kept_for_ever() {
        let policy = Policy::default().at_most(Duration::from_secs(30 * 86_400));
        let days = Table::ALL.map(|table| policy.keep(table).map(|keep| keep.as_secs() / 86_400));
        assert_eq!(days, [Some(30), Some(30), Some(30), None, Some(7), None, Some(30), Some(30)]);
    }
}
