//! A transaction on a connection of SQLite.

use crate::shared::{Cell, Row, Tx, Value};
use crate::{Backend, DbError, Position, Result, TenantId};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, ToSql};

/// A connection within a transaction that somebody else begins and ends.
pub(crate) struct SqliteTx<'c> {
    pub(crate) connection: &'c Connection,
    pub(crate) operation: &'static str,
}

/// What went wrong, in the hub's terms.
pub(crate) fn wrong(operation: &'static str, error: &rusqlite::Error) -> DbError {
    let why = error.to_string();
    let Some(failure) = error.sqlite_error() else {
        // A value of a type that was never written, or a statement that this code has wrong.
        return match error {
            rusqlite::Error::InvalidColumnType(..) | rusqlite::Error::FromSqlConversionFailure(..) => {
                DbError::corrupt(operation, why)
            }
            _ => DbError::Io { operation, why },
        };
    };
    match failure.code {
        ErrorCode::DiskFull => DbError::Full { operation, why },
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => DbError::corrupt(operation, why),
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => DbError::Busy { operation, why },
        ErrorCode::ConstraintViolation => match failure.extended_code {
            rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE
            | rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY
            | rusqlite::ffi::SQLITE_CONSTRAINT_ROWID => DbError::conflict(operation, "a row with the same key"),
            rusqlite::ffi::SQLITE_CONSTRAINT_FOREIGNKEY => DbError::not_found(operation, "row that this one refers to"),
            _ => DbError::Invalid { operation, why },
        },
        ErrorCode::TooBig => DbError::Invalid { operation, why },
        _ => DbError::Io { operation, why },
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Self::Null => ToSqlOutput::Borrowed(ValueRef::Null),
            Self::Int(number) => (*number).into(),
            Self::Bool(value) => (*value).into(),
            Self::Text(text) | Self::Json(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
            Self::Bytes(bytes) => ToSqlOutput::Borrowed(ValueRef::Blob(bytes)),
            Self::Uuid(id) => ToSqlOutput::Borrowed(ValueRef::Blob(id.as_bytes())),
            Self::Time(time) => time.as_microsecond().into(),
        })
    }
}

fn cell(value: ValueRef<'_>) -> Option<Cell> {
    Some(match value {
        ValueRef::Null => Cell::Null,
        ValueRef::Integer(number) => Cell::Int(number),
        ValueRef::Real(_) => return None,
        ValueRef::Text(text) => Cell::Text(String::from_utf8(text.to_vec()).ok()?),
        ValueRef::Blob(bytes) => Cell::Bytes(bytes.to_vec()),
    })
}

impl SqliteTx<'_> {
    fn rows(&self, sql: &str, params: &[Value]) -> rusqlite::Result<Result<Vec<Row>>> {
        let mut statement = self.connection.prepare_cached(&sql.replace('$', "?"))?;
        let width = statement.column_count();
        let mut rows = statement.query(rusqlite::params_from_iter(params))?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            let mut cells = Vec::with_capacity(width);
            for column in 0..width {
                let Some(cell) = cell(row.get_ref(column)?) else {
                    let why = format!("column {column} of a row has a value that was never written");
                    return Ok(Err(DbError::corrupt(self.operation, why)));
                };
                cells.push(cell);
            }
            all.push(Row { cells, operation: self.operation });
        }
        Ok(Ok(all))
    }
}

impl Tx for SqliteTx<'_> {
    fn query(&mut self, sql: &str, params: &[Value]) -> Result<Vec<Row>> {
        self.rows(sql, params).map_err(|error| wrong(self.operation, &error))?
    }

    fn execute(&mut self, sql: &str, params: &[Value]) -> Result<u64> {
        let run = || {
            let mut statement = self.connection.prepare_cached(&sql.replace('$', "?"))?;
            statement.execute(rusqlite::params_from_iter(params))
        };
        run().map(|rows| rows as u64).map_err(|error| wrong(self.operation, &error))
    }

    fn next_change(&mut self, tenant: TenantId) -> Result<Position> {
        let number = (self as &mut dyn Tx).count_up(tenant, "changes")?;
        Ok(Position::new(0, u64::try_from(number).unwrap_or_default()))
    }

    fn event_horizon(&mut self, _: TenantId) -> Result<Position> {
        let last = (self as &mut dyn Tx).number("SELECT max(position) FROM events", &[])?;
        Ok(Position::new(0, u64::try_from(last).unwrap_or_default()))
    }

    fn change_horizon(&mut self, tenant: TenantId) -> Result<Position> {
        let sql = "SELECT value FROM counters WHERE tenant_id = $1 AND name = 'changes'";
        let last = (self as &mut dyn Tx).number(sql, &[tenant.into()])?;
        Ok(Position::new(0, u64::try_from(last).unwrap_or_default()))
    }

    fn operation(&self) -> &'static str {
        self.operation
    }

    fn backend(&self) -> Backend {
        Backend::Sqlite
    }
}
