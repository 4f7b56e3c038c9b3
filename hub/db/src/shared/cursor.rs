//! Cursors: the sort key of the last row of a page, as text.

use super::{Row, Value};
use crate::{Cursor, DbError, Page, PageRequest, Result};
use jiff::Timestamp;
use std::fmt::Write as _;
use uuid::Uuid;

/// What one part of a sort key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    Int,
    Time,
    Text,
    Uuid,
}

/// A list's name and sort key. The name is in its cursors, so that one of another list is refused.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Order {
    pub(crate) list: &'static str,
    /// The columns to sort by; the last one makes the key unique.
    pub(crate) columns: &'static [(&'static str, Key)],
    pub(crate) descending: bool,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let pairs = digits.len().is_multiple_of(2).then(|| digits.chunks_exact(2))?;
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

impl Order {
    /// The cursor behind the row with this key.
    pub(crate) fn encode(&self, key: &[Value]) -> Cursor {
        let mut text = self.list.to_owned();
        for value in key {
            text.push('.');
            match value {
                Value::Int(number) => text.push_str(&number.to_string()),
                Value::Time(time) => text.push_str(&time.as_microsecond().to_string()),
                Value::Text(word) => text.push_str(&hex(word.as_bytes())),
                Value::Uuid(id) => text.push_str(&id.simple().to_string()),
                Value::Null | Value::Bool(_) | Value::Bytes(_) | Value::Json(_) => {}
            }
        }
        Cursor(text)
    }

    pub(crate) fn decode(&self, cursor: &Cursor) -> Result<Vec<Value>> {
        self.parse(cursor.as_str())
            .ok_or_else(|| DbError::invalid("go on with a list", "the cursor is not one of this list"))
    }

    fn parse(&self, text: &str) -> Option<Vec<Value>> {
        let mut parts = text.split('.');
        if parts.next() != Some(self.list) {
            return None;
        }
        let mut key = Vec::with_capacity(self.columns.len());
        for (_, kind) in self.columns {
            let part = parts.next()?;
            key.push(match kind {
                Key::Int => Value::Int(part.parse().ok()?),
                Key::Time => Value::Time(Timestamp::from_microsecond(part.parse().ok()?).ok()?),
                Key::Text => Value::Text(String::from_utf8(unhex(part)?).ok().filter(|text| !text.contains('\0'))?),
                Key::Uuid => Value::Uuid(Uuid::try_parse(part).ok()?),
            });
        }
        parts.next().is_none().then_some(key)
    }

    /// The rows of a page, of which one more than asked for was read, to see whether there is more. `key` gives the place
    /// of a row by columns from `at` on, in the order of [`Order::columns`].
    pub(crate) fn page<T>(
        &self,
        request: &PageRequest,
        mut rows: Vec<Row>,
        key_at: usize,
        read: impl Fn(&Row) -> Result<T>,
    ) -> Result<Page<T>> {
        let limit = request.bounded() as usize;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = match rows.last() {
            Some(last) if more => Some(self.encode(&self.key_of(last, key_at)?)),
            _ => None,
        };
        Ok(Page { items: rows.iter().map(read).collect::<Result<_>>()?, next })
    }

    fn key_of(&self, row: &Row, at: usize) -> Result<Vec<Value>> {
        let parts = self.columns.iter().enumerate();
        parts
            .map(|(index, (_, kind))| {
                Ok(match kind {
                    Key::Int => Value::Int(row.int(at + index)?),
                    Key::Time => Value::Time(row.time(at + index)?),
                    Key::Text => Value::Text(row.text(at + index)?),
                    Key::Uuid => Value::Uuid(row.uuid(at + index)?),
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ORDER: Order = Order {
        list: "agents",
        columns: &[("name", Key::Text), ("at", Key::Time), ("n", Key::Int), ("id", Key::Uuid)],
        descending: false,
    };

    proptest! {
        #[test]
        fn a_cursor_is_read_as_it_was_given(name in "[^\0]{0,40}", at in -9_000_000_000_000_i64..9_000_000_000_000, n: i64, id: u128) {
            let key = vec![
                Value::Text(name),
                Value::Time(Timestamp::from_microsecond(at).unwrap()),
                Value::Int(n),
                Value::Uuid(Uuid::from_u128(id)),
            ];
            let cursor = ORDER.encode(&key);
            let again = Cursor::parse(cursor.as_str()).unwrap();
            prop_assert_eq!(ORDER.decode(&again).unwrap(), key);
        }

        #[test]
        fn a_cursor_from_anywhere_is_read_or_refused_and_never_panics(text in ".{0,80}", tail in "[a-z0-9.-]{0,80}") {
            for text in [text, format!("agents.{tail}")] {
                if let Ok(cursor) = Cursor::parse(&text) {
                    let _ = ORDER.decode(&cursor);
                }
            }
        }
    }

    #[test]
    fn a_cursor_of_another_list_is_refused() {
        let cursor = Cursor::parse("users.61.0.1.00000000000000000000000000000000").unwrap();
        assert!(ORDER.decode(&cursor).is_err());
    }
}
