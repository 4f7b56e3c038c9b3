//! Reading events in the order of commits, from a position on: what is read is what is new, however much is behind it.

use super::events::{EVENT_COLUMNS, stored_event};
use super::{Row, Tx, Value, params};
use crate::events::{TAIL_MAX_BYTES, TAIL_MAX_EVENTS};
use crate::{Backend, Position, Result, Shard, Tail, TenantId};
use std::collections::BTreeSet;

/// How many positions are passed over in one go while looking for events of few shards (SQLite).
const WINDOW: u64 = 20_000;

/// What was looked at.
struct Look {
    rows: Vec<Row>,
    /// Where it ends, unless there were more rows than were wanted.
    until: Position,
    /// Nothing that can be read is behind that.
    at_end: bool,
}

/// [`crate::Events::events_after`].
pub(super) fn after(
    tx: &mut dyn Tx,
    tenant: TenantId,
    position: Position,
    shards: &[Shard],
    limit: u32,
) -> Result<Tail> {
    let limit = limit.clamp(1, TAIL_MAX_EVENTS);
    let look = match tx.backend() {
        Backend::Sqlite => in_window(tx, tenant, position, shards, limit)?,
        Backend::Postgres => by_commit(tx, tenant, position, shards, limit)?,
    };
    let mut more = look.rows.len() >= limit as usize;
    let (mut events, mut bytes) = (Vec::with_capacity(look.rows.len()), 0);
    for row in look.rows {
        let event = stored_event(row)?;
        bytes += event.data.len();
        if bytes > TAIL_MAX_BYTES && !events.is_empty() {
            more = true;
            break;
        }
        events.push(event);
    }
    let last = events.last().map_or(position, |event| event.position);
    // All of what was looked at is behind the reader now, also what is for others.
    let next = if more { last } else { look.until.max(last) };
    Ok(Tail { events, next, at_end: look.at_end && !more })
}

/// Positions follow each other, and so a window of them is a bounded part of the table: read by its own order, whatever
/// other index the statement could go by.
fn in_window(tx: &mut dyn Tx, tenant: TenantId, position: Position, shards: &[Shard], limit: u32) -> Result<Look> {
    let end = tx.event_horizon(tenant)?;
    // What was removed leaves a hole, which may be larger than a window.
    let next = "SELECT position FROM events WHERE position > $1 ORDER BY position LIMIT 1";
    let Some(first) = tx.row(next, params![position.row])? else {
        return Ok(Look { rows: Vec::new(), until: end, at_end: true });
    };
    let until = first.count(0)?.saturating_add(WINDOW - 1).min(end.row);
    let mut values: Vec<Value> = params![tenant, position.row, until, limit].to_vec();
    let rows = tx.query(&window_sql(shards, &mut values), &values)?;
    Ok(Look { rows, until: Position::new(0, until), at_end: until == end.row })
}

/// The statement of [`in_window`]; its values are tenant, beginning, end and limit, to which those of the shards are added.
fn window_sql(shards: &[Shard], values: &mut Vec<Value>) -> String {
    let mut wanted = String::new();
    if !shards.is_empty() {
        let places: Vec<String> = shards.iter().map(|shard| place(values, shard.as_str())).collect();
        wanted = format!(" AND shard IN ({})", places.join(", "));
    }
    // The sum keeps SQLite from going through all of the tenant's events by an index that begins with it.
    format!(
        "SELECT {EVENT_COLUMNS} FROM events WHERE position > $2 AND position <= $3 AND tenant_id + 0 = $1{wanted} \
         ORDER BY position LIMIT $4"
    )
}

/// By the index that has the order of commits and the shards. What a transaction that still runs may have written comes
/// after everything that is read here.
fn by_commit(tx: &mut dyn Tx, tenant: TenantId, position: Position, shards: &[Shard], limit: u32) -> Result<Look> {
    let mut values: Vec<Value> = params![tenant, position.transaction, position.row, limit].to_vec();
    let of = |condition: &str| {
        format!(
            "SELECT {EVENT_COLUMNS} FROM events WHERE tenant_id = $1 AND (xid, position) > ($2, $3) \
             AND xid < pg_snapshot_xmin(pg_current_snapshot()){condition} ORDER BY xid, position LIMIT $4"
        )
    };
    let sql = if shards.is_empty() {
        // A day's partition is new: the server believes that there are few rows, and would sort all that wait, page by page.
        tx.execute("SET LOCAL enable_bitmapscan = off", &[])?;
        of("")
    } else {
        // Each by itself: the index leaves out what is of another shard, but not of several others.
        let shards: BTreeSet<Shard> = shards.iter().copied().collect();
        let one = |shard: &Shard| of(&format!(" AND shard = {}", place(&mut values, shard.as_str())));
        let each: Vec<String> = shards.iter().map(one).collect();
        match each.as_slice() {
            [one] => one.clone(),
            _ => format!("SELECT * FROM (({})) AS next ORDER BY xid, position LIMIT $4", each.join(") UNION ALL (")),
        }
    };
    let rows = tx.query(&sql, &values)?;
    let until = tx.event_horizon(tenant)?;
    Ok(Look { rows, until, at_end: true })
}

/// The place of one more value.
fn place(values: &mut Vec<Value>, value: &str) -> String {
    values.push(value.into());
    format!("${}", values.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plan that goes by the tenant's index reads and sorts all events that there are, for each look.
    #[test]
    fn sqlite_reads_a_window_by_the_order_of_commits_and_sorts_nothing() {
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("../../migrations/sqlite/V1__what_the_hub_keeps.sql")).unwrap();
        for shards in [&[][..], &[Shard::File], &[Shard::Network, Shard::Other]] {
            let mut values = params![TenantId::DEFAULT, 5_u64, 10_u64, 100_u32].to_vec();
            let sql = format!("EXPLAIN QUERY PLAN {}", window_sql(shards, &mut values).replace('$', "?"));
            let mut statement = connection.prepare(&sql).unwrap();
            let steps = statement.query_map(rusqlite::params_from_iter(&values), |row| row.get::<_, String>(3));
            let steps = steps.unwrap().collect::<rusqlite::Result<Vec<String>>>().unwrap();
            assert_eq!(steps, ["SEARCH events USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"]);
        }
    }
}
