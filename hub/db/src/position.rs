//! Where a reader is in the order in which rows were committed.

use crate::{DbError, Result};
use serde::{Deserialize, Serialize};

/// A place in the order of commits. Rows after a position are read once each and none is missed, whoever else writes.
/// Ordered; opaque but for its text, which two databases do not share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Position {
    /// The transaction that wrote it (PostgreSQL); 0 where one writer makes it needless (SQLite).
    pub(crate) transaction: u64,
    /// Which row.
    pub(crate) row: u64,
}

impl Position {
    /// Before everything.
    pub const START: Self = Self { transaction: 0, row: 0 };

    pub(crate) const fn new(transaction: u64, row: u64) -> Self {
        Self { transaction, row }
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.transaction, self.row)
    }
}

impl std::str::FromStr for Position {
    type Err = DbError;

    fn from_str(text: &str) -> Result<Self> {
        // Both parts are bigint columns: what does not fit there was never given out.
        let part = |text: &str| text.parse::<u64>().ok().filter(|n| i64::try_from(*n).is_ok());
        text.split_once('-')
            .and_then(|(transaction, row)| Some(Self::new(part(transaction)?, part(row)?)))
            .ok_or_else(|| DbError::invalid("read a position", "it is not one that was given out"))
    }
}

impl Serialize for Position {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
