//! Parameters, columns and transactions, as both databases have them.

use crate::{Backend, DbError, Position, Result, TenantId};
use jiff::Timestamp;
use std::collections::BTreeSet;
use uuid::Uuid;

/// A parameter of a statement.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Int(i64),
    Bool(bool),
    Text(String),
    Bytes(Vec<u8>),
    Uuid(Uuid),
    Time(Timestamp),
    /// JSON text.
    Json(String),
}

/// A column of a row.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) enum Cell {
    #[default]
    Null,
    Int(i64),
    Bool(bool),
    Text(String),
    Bytes(Vec<u8>),
    Uuid(Uuid),
    /// Microseconds since 1970.
    Micros(i64),
}

/// A transaction, or a consistent view.
pub(crate) trait Tx {
    /// The rows of a statement that gives some.
    fn query(&mut self, sql: &str, params: &[Value]) -> Result<Vec<Row>>;

    /// How many rows a statement changed.
    fn execute(&mut self, sql: &str, params: &[Value]) -> Result<u64>;

    /// The place of a change that this transaction makes, later than all of this database so far.
    fn next_change(&mut self, tenant: TenantId) -> Result<Position>;

    /// The position behind all events that can be read now.
    fn event_horizon(&mut self, tenant: TenantId) -> Result<Position>;

    /// The position behind all changes of findings that can be read now.
    fn change_horizon(&mut self, tenant: TenantId) -> Result<Position>;

    /// What is being done, for errors.
    fn operation(&self) -> &'static str;

    /// Which database this is, for the few statements that differ.
    fn backend(&self) -> Backend;
}

impl dyn Tx + '_ {
    /// The row of a statement that gives one or none.
    pub(crate) fn row(&mut self, sql: &str, params: &[Value]) -> Result<Option<Row>> {
        Ok(self.query(sql, params)?.into_iter().next())
    }

    /// The number of a statement that gives one row of one number.
    pub(crate) fn number(&mut self, sql: &str, params: &[Value]) -> Result<i64> {
        self.row(sql, params)?.map_or(Ok(0), |row| row.opt_int(0).map(Option::unwrap_or_default))
    }

    /// Whether a statement changed a row.
    pub(crate) fn changes(&mut self, sql: &str, params: &[Value]) -> Result<bool> {
        Ok(self.execute(sql, params)? > 0)
    }

    /// The next number of a counter, from 1.
    pub(crate) fn count_up(&mut self, tenant: TenantId, counter: &str) -> Result<i64> {
        self.number(
            "INSERT INTO counters (tenant_id, name, value) VALUES ($1, $2, 1) \
             ON CONFLICT (tenant_id, name) DO UPDATE SET value = counters.value + 1 RETURNING value",
            params![tenant, counter],
        )
    }

    pub(crate) fn conflict(&self, object: impl Into<String>) -> DbError {
        DbError::conflict(self.operation(), object)
    }

    pub(crate) fn not_found(&self, object: impl Into<String>) -> DbError {
        DbError::not_found(self.operation(), object)
    }

    pub(crate) fn invalid(&self, why: impl Into<String>) -> DbError {
        DbError::invalid(self.operation(), why)
    }
}

/// A row, whose columns are taken by their place.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) cells: Vec<Cell>,
    pub(crate) operation: &'static str,
}

impl Row {
    fn wrong<T>(&self, column: usize) -> Result<T> {
        Err(DbError::corrupt(self.operation, format!("column {column} of a row has a value that was never written")))
    }

    fn cell(&self, column: usize) -> &Cell {
        self.cells.get(column).unwrap_or(&Cell::Null)
    }

    pub(crate) fn opt_int(&self, column: usize) -> Result<Option<i64>> {
        match self.cell(column) {
            Cell::Null => Ok(None),
            Cell::Int(number) => Ok(Some(*number)),
            _ => self.wrong(column),
        }
    }

    pub(crate) fn int(&self, column: usize) -> Result<i64> {
        self.opt_int(column)?.map_or_else(|| self.wrong(column), Ok)
    }

    pub(crate) fn count(&self, column: usize) -> Result<u64> {
        u64::try_from(self.int(column)?).or_else(|_| self.wrong(column))
    }

    pub(crate) fn small(&self, column: usize) -> Result<u32> {
        u32::try_from(self.int(column)?).or_else(|_| self.wrong(column))
    }

    pub(crate) fn bool(&self, column: usize) -> Result<bool> {
        match self.cell(column) {
            Cell::Bool(value) => Ok(*value),
            Cell::Int(number) => Ok(*number != 0),
            _ => self.wrong(column),
        }
    }

    pub(crate) fn opt_text(&self, column: usize) -> Result<Option<String>> {
        match self.cell(column) {
            Cell::Null => Ok(None),
            Cell::Text(text) => Ok(Some(text.clone())),
            _ => self.wrong(column),
        }
    }

    pub(crate) fn text(&self, column: usize) -> Result<String> {
        self.opt_text(column)?.map_or_else(|| self.wrong(column), Ok)
    }

    /// A text that is not asked for again.
    pub(crate) fn take_text(&mut self, column: usize) -> Result<String> {
        match self.cells.get_mut(column).map(std::mem::take) {
            Some(Cell::Text(text)) => Ok(text),
            _ => self.wrong(column),
        }
    }

    /// One of a noun's words.
    pub(crate) fn word<W>(&self, column: usize, read: impl Fn(&str) -> Option<W>) -> Result<W> {
        match self.cell(column) {
            Cell::Text(text) => read(text).map_or_else(|| self.wrong(column), Ok),
            _ => self.wrong(column),
        }
    }

    pub(crate) fn opt_bytes(&self, column: usize) -> Result<Option<Vec<u8>>> {
        match self.cell(column) {
            Cell::Null => Ok(None),
            Cell::Bytes(bytes) => Ok(Some(bytes.clone())),
            _ => self.wrong(column),
        }
    }

    pub(crate) fn bytes(&self, column: usize) -> Result<Vec<u8>> {
        self.opt_bytes(column)?.map_or_else(|| self.wrong(column), Ok)
    }

    pub(crate) fn opt_hash(&self, column: usize) -> Result<Option<[u8; 32]>> {
        match self.opt_bytes(column)? {
            None => Ok(None),
            Some(bytes) => bytes.try_into().map(Some).or_else(|_| self.wrong(column)),
        }
    }

    pub(crate) fn hash(&self, column: usize) -> Result<[u8; 32]> {
        self.opt_hash(column)?.map_or_else(|| self.wrong(column), Ok)
    }

    pub(crate) fn opt_uuid(&self, column: usize) -> Result<Option<Uuid>> {
        match self.cell(column) {
            Cell::Null => Ok(None),
            Cell::Uuid(id) => Ok(Some(*id)),
            Cell::Bytes(bytes) => Uuid::from_slice(bytes).map(Some).or_else(|_| self.wrong(column)),
            _ => self.wrong(column),
        }
    }

    pub(crate) fn uuid(&self, column: usize) -> Result<Uuid> {
        self.opt_uuid(column)?.map_or_else(|| self.wrong(column), Ok)
    }

    pub(crate) fn opt_time(&self, column: usize) -> Result<Option<Timestamp>> {
        match self.cell(column) {
            Cell::Null => Ok(None),
            Cell::Int(micros) | Cell::Micros(micros) => {
                Timestamp::from_microsecond(*micros).map(Some).or_else(|_| self.wrong(column))
            }
            _ => self.wrong(column),
        }
    }

    pub(crate) fn time(&self, column: usize) -> Result<Timestamp> {
        self.opt_time(column)?.map_or_else(|| self.wrong(column), Ok)
    }

    pub(crate) fn opt_json(&self, column: usize) -> Result<Option<serde_json::Value>> {
        match self.cell(column) {
            Cell::Null => Ok(None),
            Cell::Text(text) => serde_json::from_str(text).map(Some).or_else(|_| self.wrong(column)),
            _ => self.wrong(column),
        }
    }

    pub(crate) fn json(&self, column: usize) -> Result<serde_json::Value> {
        self.opt_json(column)?.map_or_else(|| self.wrong(column), Ok)
    }

    /// A list of words that is kept as JSON.
    pub(crate) fn words<C: FromIterator<String>>(&self, column: usize) -> Result<C> {
        match self.cell(column) {
            Cell::Text(text) => match serde_json::from_str::<Vec<String>>(text) {
                Ok(words) => Ok(words.into_iter().collect()),
                Err(_) => self.wrong(column),
            },
            _ => self.wrong(column),
        }
    }

    /// A position in two columns.
    pub(crate) fn position(&self, column: usize) -> Result<Position> {
        Ok(Position::new(self.count(column)?, self.count(column + 1)?))
    }
}

/// What PostgreSQL has no place for in text becomes what stands for the unknown.
fn clean(text: &str) -> String {
    if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text.to_owned() }
}

macro_rules! from {
    ($($from:ty => |$name:ident| $to:expr;)+) => {
        $(impl From<$from> for Value {
            fn from($name: $from) -> Self {
                $to
            }
        })+
    };
}

from! {
    i64 => |number| Self::Int(number);
    u64 => |number| Self::Int(i64::try_from(number).unwrap_or(i64::MAX));
    u32 => |number| Self::Int(i64::from(number));
    u16 => |number| Self::Int(i64::from(number));
    i32 => |number| Self::Int(i64::from(number));
    bool => |value| Self::Bool(value);
    TenantId => |tenant| Self::Int(i64::from(tenant.0));
    &str => |text| Self::Text(clean(text));
    &String => |text| Self::Text(clean(text));
    String => |text| Self::Text(clean(&text));
    &[u8] => |bytes| Self::Bytes(bytes.to_vec());
    &Vec<u8> => |bytes| Self::Bytes(bytes.clone());
    &[u8; 32] => |bytes| Self::Bytes(bytes.to_vec());
    [u8; 32] => |bytes| Self::Bytes(bytes.to_vec());
    Uuid => |id| Self::Uuid(id);
    Timestamp => |time| Self::Time(time);
    &serde_json::Value => |json| Self::Json(json.to_string());
    &BTreeSet<String> => |words| Self::Json(words.iter().map(|word| clean(word)).collect::<serde_json::Value>().to_string());
}

impl<T> From<Option<T>> for Value
where
    Self: From<T>,
{
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Self::from)
    }
}

/// The parameters of a statement.
macro_rules! params {
    ($($value:expr),* $(,)?) => {
        &[$($crate::shared::Value::from($value)),*]
    };
}
pub(crate) use params;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nul_in_text_becomes_the_replacement_character() {
        assert_eq!(Value::from("a\0b"), Value::Text("a\u{fffd}b".into()));
        assert_eq!(Value::from("ab"), Value::Text("ab".into()));
    }
}
