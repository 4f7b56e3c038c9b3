//! The closed list of tables, and what is in clear of a row.

use picket_seal::{SealError, Sealer};
use sha2::{Digest as _, Sha256};

/// A table of the store. The first six are those of the agent's manual; a table is never renamed or taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// What the machine measured.
    Metrics,
    /// What the agent and its modules logged.
    Logs,
    /// How tasks ran.
    TaskLogs,
    /// What modules keep.
    ModuleData,
    /// What was said to and by the management.
    CommunicationLogs,
    /// Every configuration that was ever in force.
    ConfigBackups,
    /// File and network events.
    Events,
    /// Alerts: raised, acknowledged, cleared.
    Alerts,
}

impl Table {
    /// All tables.
    pub const ALL: [Self; 8] = [
        Self::Metrics,
        Self::Logs,
        Self::TaskLogs,
        Self::ModuleData,
        Self::CommunicationLogs,
        Self::ConfigBackups,
        Self::Events,
        Self::Alerts,
    ];

    /// The name in SQL, in exports, on the command line and in the seal of each row.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Metrics => "metrics",
            Self::Logs => "logs",
            Self::TaskLogs => "task_logs",
            Self::ModuleData => "module_data",
            Self::CommunicationLogs => "communication_logs",
            Self::ConfigBackups => "config_backups",
            Self::Events => "events",
            Self::Alerts => "alerts",
        }
    }

    /// The table of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.as_str() == name)
    }

    /// The place in [`Table::ALL`].
    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl serde::Serialize for Table {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A row as it lies in the file: sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SealedRow {
    pub(crate) table: Table,
    pub(crate) id: i64,
    pub(crate) at: i64,
    pub(crate) sealed: Vec<u8>,
    pub(crate) sha256: Vec<u8>,
}

impl SealedRow {
    /// Seals `plain` for its row.
    pub(crate) fn seal(sealer: &Sealer, table: Table, id: i64, at: i64, plain: &[u8]) -> Result<Self, SealError> {
        let sealed = sealer.seal(place(table, id, &at.to_be_bytes()), plain)?;
        let sha256 = digest(table, id, at, &sealed).to_vec();
        Ok(Self { table, id, at, sealed, sha256 })
    }

    /// Whether the row is, bit for bit, the one that was written. Needs no key.
    pub(crate) fn is_intact(&self) -> bool {
        self.sha256 == digest(self.table, self.id, self.at, &self.sealed)
    }

    /// Opens it.
    pub(crate) fn open(&self, sealer: &Sealer) -> Result<Vec<u8>, SealError> {
        sealer.open(place(self.table, self.id, &self.at.to_be_bytes()), &self.sealed)
    }
}

fn place(table: Table, id: i64, at: &[u8; 8]) -> picket_seal::Place<'_> {
    picket_seal::Place { table: table.as_str(), row: id, context: at }
}

/// SHA-256 over length of the table's name (one byte) ‖ name ‖ id ‖ at ‖ sealed, the numbers of 64 bits big endian.
pub(crate) fn digest(table: Table, id: i64, at: i64, sealed: &[u8]) -> [u8; 32] {
    let name = table.as_str().as_bytes();
    let mut head = [0; 40];
    // No table's name has more than 23 letters; the longest now has 18.
    head[0] = u8::try_from(name.len()).unwrap_or(u8::MAX);
    head[1..=name.len()].copy_from_slice(name);
    let end = 1 + name.len();
    head[end..end + 8].copy_from_slice(&id.to_be_bytes());
    head[end + 8..end + 16].copy_from_slice(&at.to_be_bytes());
    let mut hash = Sha256::new();
    hash.update(&head[..end + 16]);
    hash.update(sealed);
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_is_found_by_its_name_and_stands_at_its_index() {
        for (index, table) in Table::ALL.into_iter().enumerate() {
            assert_eq!(Table::from_name(table.as_str()), Some(table));
            assert_eq!(table.index(), index);
            assert!(table.as_str().len() <= 23 && table.as_str().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        }
        assert_eq!(Table::from_name("sqlite_master"), None);
    }

    #[test]
    fn the_digest_changes_with_each_of_its_parts() {
        let base = digest(Table::Logs, 1, 2, b"x");
        for other in [
            digest(Table::Metrics, 1, 2, b"x"),
            digest(Table::Logs, 2, 2, b"x"),
            digest(Table::Logs, 1, 3, b"x"),
            digest(Table::Logs, 1, 2, b"y"),
        ] {
            assert_ne!(base, other);
        }
    }
}
