//! A list's statement, put together from what is asked for.

use super::Value;
use super::cursor::{Key, Order};
use crate::shared::{Row, Tx};
use crate::{Page, PageRequest, Result};
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// `SELECT columns FROM table WHERE …`, growing by conditions that all must hold.
#[derive(Debug)]
pub(crate) struct Select {
    sql: String,
    params: Vec<Value>,
    /// How many columns the caller reads; the sort key follows them.
    width: usize,
    columns: &'static str,
    from: String,
}

impl Select {
    /// From `table`, the rows of one tenant.
    pub(crate) fn new(columns: &'static str, from: &str, tenant: crate::TenantId) -> Self {
        let width = columns.split(',').count();
        Self { sql: "tenant_id = $1".into(), params: vec![tenant.into()], width, columns, from: from.to_owned() }
    }

    /// Adds a condition in which `?` stands for the value.
    pub(crate) fn when(&mut self, condition: &str, value: impl Into<Value>) -> &mut Self {
        self.params.push(value.into());
        let number = format!("${}", self.params.len());
        self.sql.push_str(" AND ");
        self.sql.push_str(&condition.replace('?', &number));
        self
    }

    /// Adds a condition if there is a value for it.
    pub(crate) fn when_some<V: Into<Value>>(&mut self, condition: &str, value: Option<V>) -> &mut Self {
        match value {
            Some(value) => self.when(condition, value),
            None => self,
        }
    }

    /// Adds a condition in which `?` stands for all these values; with none of them nothing can hold.
    pub(crate) fn when_any<V: Into<Value>>(
        &mut self,
        condition: &str,
        values: impl IntoIterator<Item = V>,
    ) -> &mut Self {
        let before = self.params.len();
        self.params.extend(values.into_iter().map(Into::into));
        let places: Vec<String> = (before + 1..=self.params.len()).map(|number| format!("${number}")).collect();
        if places.is_empty() {
            return self.and("1 = 0");
        }
        self.and(&condition.replace('?', &places.join(", ")))
    }

    /// Adds that the agent in `column` has one of these tags, if there are any to be within. What may not be seen is left
    /// out before a page is cut, so that neither a page nor its cursor tells of it.
    pub(crate) fn within(&mut self, column: &str, tags: Option<&BTreeSet<String>>) -> &mut Self {
        let Some(tags) = tags else { return self };
        // Counted, so that no planner takes the tags for a better beginning than the order of the list, and sorts it all.
        let condition = format!(
            "(SELECT count(*) FROM agent_tags t WHERE t.tenant_id = $1 AND t.agent_id = {column} AND t.tag IN (?)) > 0"
        );
        self.when_any(&condition, tags)
    }

    /// Adds a condition without a value.
    pub(crate) fn and(&mut self, condition: &str) -> &mut Self {
        self.sql.push_str(" AND ");
        self.sql.push_str(condition);
        self
    }

    /// A page of it.
    pub(crate) fn page<T>(
        mut self,
        tx: &mut dyn Tx,
        order: &Order,
        request: &PageRequest,
        read: impl Fn(&Row) -> Result<T>,
    ) -> Result<Page<T>> {
        if let Some(cursor) = &request.after {
            self.params.extend(order.decode(cursor)?);
            let first = self.params.len() - order.columns.len() + 1;
            let names = order.columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            let places = (first..=self.params.len()).map(|n| format!("${n}")).collect::<Vec<_>>().join(", ");
            let beyond = if order.descending { '<' } else { '>' };
            let _ = write!(self.sql, " AND ({names}) {beyond} ({places})");
        }
        self.params.push(Value::Int(i64::from(request.bounded()) + 1));
        let direction = if order.descending { " DESC" } else { "" };
        let keys = order.columns.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let sorted = order.columns.iter().map(|(name, _)| format!("{name}{direction}")).collect::<Vec<_>>().join(", ");
        let sql = format!(
            "SELECT {}, {keys} FROM {} WHERE {} ORDER BY {sorted} LIMIT ${}",
            self.columns,
            self.from,
            self.sql,
            self.params.len()
        );
        let rows = tx.query(&sql, &self.params)?;
        order.page(request, rows, self.width, read)
    }
}

/// The order of lists whose newest comes first.
pub(crate) const fn newest(list: &'static str, columns: &'static [(&'static str, Key)]) -> Order {
    Order { list, columns, descending: true }
}

/// The order of lists by name.
pub(crate) const fn by(list: &'static str, columns: &'static [(&'static str, Key)]) -> Order {
    Order { list, columns, descending: false }
}
