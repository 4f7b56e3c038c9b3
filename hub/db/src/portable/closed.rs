//! A database that takes no writes, because its data is on its way somewhere else, or there already.
//!
//! The reason is a setting of the default tenant. In SQLite the file says so, too (`PRAGMA user_version`), and the writer
//! looks at that in each of its transactions: from the commit that closes the file no process stores anything in it, and
//! so acknowledges nothing that would be lost.

use super::import::mark;
use crate::shared::{Tx, params};
use crate::{Backend, Result, TenantId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The setting that holds the reason.
pub(crate) const KEY: &str = "database.closed";

/// Why a database is closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Closed {
    /// A hub's data is being copied into it.
    Filling {
        /// Which move it is.
        id: uuid::Uuid,
    },
    /// The last of its data is being copied away.
    Moving {
        /// Which move it is.
        id: uuid::Uuid,
        /// Where to.
        to: String,
    },
    /// Its data is somewhere else.
    Moved {
        /// Which move it was.
        id: uuid::Uuid,
        /// Where it is.
        to: String,
        /// Since when.
        at: Timestamp,
    },
    /// A backup is being put in its place.
    Restoring {
        /// Since when.
        at: Timestamp,
    },
}

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Filling { .. } => f.write_str(
                "the data of another database is being copied into it, and not all of it is here; finish with the same \
                 picket hub migrate as before",
            ),
            Self::Moving { to, .. } => write!(
                f,
                "the last of its data is being copied to {to}; if that was broken off, run the same picket hub migrate \
                 again, or with --abort to stay here"
            ),
            Self::Moved { to, at, .. } => {
                write!(
                    f,
                    "its data moved to {to} at {at}; name that in hub.yaml (database_file) and start the hub again"
                )
            }
            Self::Restoring { at } => write!(
                f,
                "a backup was put in its place at {at}: start the hub again; if that restore did not come to its end, run \
                 picket hub restore --replace again"
            ),
        }
    }
}

/// Why the database is closed; none when it is open.
pub(crate) fn closed(tx: &mut dyn Tx) -> Result<Option<Closed>> {
    let sql = "SELECT value FROM settings WHERE tenant_id = $1 AND key = $2";
    let Some(row) = tx.row(sql, params![TenantId::DEFAULT, KEY])? else { return Ok(None) };
    let read = serde_json::from_slice(&row.bytes(0)?);
    read.map(Some).map_err(|_| crate::DbError::corrupt("open the database", "why it is closed cannot be read"))
}

/// Closes or opens it, in the transaction of the caller.
pub(crate) fn set_closed(tx: &mut dyn Tx, why: Option<&Closed>) -> Result<()> {
    match why {
        Some(why) => {
            let value = serde_json::to_vec(why).unwrap_or_default();
            mark(tx, &[(KEY, value)])?;
        }
        None => {
            tx.execute("DELETE FROM settings WHERE tenant_id = $1 AND key = $2", params![TenantId::DEFAULT, KEY])?;
        }
    }
    if tx.backend() == Backend::Sqlite {
        tx.execute(if why.is_some() { "PRAGMA user_version = 1" } else { "PRAGMA user_version = 0" }, &[])?;
    }
    Ok(())
}
