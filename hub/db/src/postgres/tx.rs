//! A transaction on a connection of PostgreSQL.

use crate::shared::{Cell, Row, Tx, Value};
use crate::{Backend, DbError, Position, Result, TenantId};
use bytes::{BufMut as _, BytesMut};
use deadpool_postgres::ClientWrapper;
use std::error::Error;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

/// When to ask again when the server is away.
const RETRY: Duration = Duration::from_secs(1);
/// Microseconds from 1970 to 2000, from where PostgreSQL counts.
pub(super) const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// A connection within a transaction that somebody else begins and ends. It blocks: never to be used on a thread that
/// drives the runtime.
pub(super) struct PgTx<'c> {
    pub(super) handle: Handle,
    pub(super) client: &'c ClientWrapper,
    pub(super) operation: &'static str,
    /// A statement failed: nothing of the transaction can be kept.
    pub(super) failed: Option<Failure>,
}

/// How a statement failed.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) error: DbError,
    /// It may succeed in a new transaction (a deadlock, a failure to serialise).
    pub(super) again: bool,
    /// The connection is of no use any more: it leads to a server that takes no writes.
    pub(super) leave: bool,
}

/// What went wrong, in the hub's terms. No text of the driver holds what the rows hold: details are left out.
pub(super) fn wrong(operation: &'static str, error: &tokio_postgres::Error) -> Failure {
    let why = || match error.as_db_error() {
        Some(server) => format!("{} ({})", server.message(), server.code().code()),
        // The texts of the chain, without that of a configuration.
        None => error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}")),
    };
    let again =
        |code: &SqlState| *code == SqlState::T_R_SERIALIZATION_FAILURE || *code == SqlState::T_R_DEADLOCK_DETECTED;
    let Some(code) = error.code() else {
        let error = DbError::Unavailable { operation, why: why(), retry: RETRY };
        return Failure { error, again: false, leave: false };
    };
    let class = code.code().get(..2).unwrap_or_default();
    let told = match class {
        "23" if *code == SqlState::UNIQUE_VIOLATION => DbError::conflict(operation, "a row with the same key"),
        "23" if *code == SqlState::FOREIGN_KEY_VIOLATION => {
            DbError::not_found(operation, "row that this one refers to")
        }
        "22" | "23" | "54" => DbError::Invalid { operation, why: why() },
        // Nothing is wrong with what was asked: a password, a right or a database is being changed, or is gone.
        "28" | "3D" => {
            let why = format!("the server does not let the hub in: {}", why());
            DbError::Unavailable { operation, why, retry: RETRY }
        }
        // The server became a standby, or a pooler leads to one.
        "25" if *code == SqlState::READ_ONLY_SQL_TRANSACTION => {
            DbError::Unavailable { operation, why: why(), retry: RETRY }
        }
        "40" | "55" => DbError::Busy { operation, why: why() },
        "53" if *code == SqlState::DISK_FULL => DbError::Full { operation, why: why() },
        "57" if *code == SqlState::QUERY_CANCELED => DbError::Busy { operation, why: why() },
        "08" | "53" | "57" => DbError::Unavailable { operation, why: why(), retry: RETRY },
        "XX" if *code == SqlState::DATA_CORRUPTED || *code == SqlState::INDEX_CORRUPTED => {
            DbError::corrupt(operation, why())
        }
        _ => DbError::Io { operation, why: why() },
    };
    Failure { error: told, again: again(code), leave: *code == SqlState::READ_ONLY_SQL_TRANSACTION }
}

impl ToSql for Value {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> std::result::Result<IsNull, Box<dyn Error + Sync + Send>> {
        match (self, kind) {
            (Self::Null, _) => return Ok(IsNull::Yes),
            (Self::Int(number), &Type::INT8) => out.put_i64(*number),
            (Self::Int(number), &Type::XID8) => out.put_u64(u64::try_from(*number)?),
            (Self::Int(number), &Type::INT4) => out.put_i32(i32::try_from(*number)?),
            (Self::Bool(value), &Type::BOOL) => out.put_u8(u8::from(*value)),
            (Self::Text(text), &Type::TEXT | &Type::VARCHAR) | (Self::Json(text), &Type::JSON) => {
                out.put_slice(text.as_bytes());
            }
            (Self::Bytes(bytes), &Type::BYTEA) => out.put_slice(bytes),
            (Self::Uuid(id), &Type::UUID) => out.put_slice(id.as_bytes()),
            (Self::Time(time), &Type::TIMESTAMPTZ) => out.put_i64(time.as_microsecond() - EPOCH_MICROS),
            (_, kind) => return Err(format!("a parameter of type {kind} gets another type").into()),
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

impl<'r> FromSql<'r> for Cell {
    fn from_sql(kind: &Type, raw: &'r [u8]) -> std::result::Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(match *kind {
            Type::INT8 => Self::Int(i64::from_be_bytes(raw.try_into()?)),
            Type::INT4 => Self::Int(i64::from(i32::from_be_bytes(raw.try_into()?))),
            Type::XID8 => Self::Int(i64::try_from(u64::from_be_bytes(raw.try_into()?))?),
            Type::BOOL => Self::Bool(raw.first().is_some_and(|byte| *byte != 0)),
            Type::TEXT | Type::VARCHAR | Type::NAME | Type::JSON => Self::Text(std::str::from_utf8(raw)?.to_owned()),
            Type::BYTEA => Self::Bytes(raw.to_vec()),
            Type::UUID => Self::Uuid(uuid::Uuid::from_slice(raw)?),
            Type::TIMESTAMPTZ => Self::Micros(i64::from_be_bytes(raw.try_into()?).saturating_add(EPOCH_MICROS)),
            ref kind => return Err(format!("a column of type {kind} was not expected").into()),
        })
    }

    fn from_sql_null(_: &Type) -> std::result::Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self::Null)
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// The statement as PostgreSQL gets it: with what is a comment to SQLite.
fn own(sql: &str) -> String {
    sql.replace("/*pg", "").replace("pg*/", "")
}

/// Parameters as the driver takes them.
fn borrowed(params: &[Value]) -> Vec<&(dyn ToSql + Sync)> {
    params.iter().map(|value| value as &(dyn ToSql + Sync)).collect()
}

impl PgTx<'_> {
    fn fail(&mut self, error: &tokio_postgres::Error) -> DbError {
        let failure = wrong(self.operation, error);
        self.failed.insert(failure).error.clone()
    }
}

impl Tx for PgTx<'_> {
    fn query(&mut self, sql: &str, params: &[Value]) -> Result<Vec<Row>> {
        let run = async {
            let statement = self.client.prepare_cached(&own(sql)).await?;
            let rows = self.client.query(&statement, &borrowed(params)).await?;
            let row = |row: tokio_postgres::Row| {
                let cells = (0..row.len()).map(|column| row.try_get(column)).collect::<std::result::Result<_, _>>()?;
                Ok(Row { cells, operation: self.operation })
            };
            rows.into_iter().map(row).collect::<std::result::Result<Vec<Row>, tokio_postgres::Error>>()
        };
        self.handle.block_on(run).map_err(|error| self.fail(&error))
    }

    fn execute(&mut self, sql: &str, params: &[Value]) -> Result<u64> {
        let run = async {
            let statement = self.client.prepare_cached(&own(sql)).await?;
            self.client.execute(&statement, &borrowed(params)).await
        };
        self.handle.block_on(run).map_err(|error| self.fail(&error))
    }

    fn next_change(&mut self, _: TenantId) -> Result<Position> {
        let row = (self as &mut dyn Tx).row("SELECT pg_current_xact_id(), nextval('changes')", &[])?;
        row.map_or(Ok(Position::START), |row| row.position(0))
    }

    fn event_horizon(&mut self, _: TenantId) -> Result<Position> {
        let xmin = (self as &mut dyn Tx).number("SELECT pg_snapshot_xmin(pg_current_snapshot())", &[])?;
        Ok(Position::new(u64::try_from(xmin).unwrap_or_default(), 0))
    }

    fn change_horizon(&mut self, tenant: TenantId) -> Result<Position> {
        self.event_horizon(tenant)
    }

    fn operation(&self) -> &'static str {
        self.operation
    }

    fn backend(&self) -> Backend {
        Backend::Postgres
    }
}
