//! The partitions of events: one a day of the hub's time (UTC), made ahead and when they are needed.

use super::tx::{Failure, wrong};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use std::collections::BTreeSet;
use tokio_postgres::Client;

/// The key of the advisory lock under which partitions are made: "PCKTPART" in ASCII.
const LOCK: i64 = 0x5043_4B54_5041_5254;

/// The day that an event received at `time` belongs to.
pub(super) fn day(time: Timestamp) -> Date {
    time.to_zoned(TimeZone::UTC).date()
}

/// The name of a day's partition.
pub(super) fn name(day: Date) -> String {
    format!("events_{:04}{:02}{:02}", day.year(), day.month(), day.day())
}

/// The day of a partition's name.
pub(super) fn day_of(name: &str) -> Option<Date> {
    let digits = name.strip_prefix("events_").filter(|digits| digits.len() == 8)?;
    let part = |range: std::ops::Range<usize>| digits.get(range)?.parse::<i16>().ok();
    let (year, month, day) = (part(0..4)?, part(4..6)?, part(6..8)?);
    Date::new(year, i8::try_from(month).ok()?, i8::try_from(day).ok()?).ok()
}

/// Makes the partitions of these days, unless they are there.
pub(super) async fn make(client: &Client, days: &BTreeSet<Date>) -> Result<(), Failure> {
    for day in days {
        make_one(client, *day).await.map_err(|error| wrong("make a partition", &error))?;
    }
    Ok(())
}

async fn make_one(client: &Client, day: Date) -> Result<(), tokio_postgres::Error> {
    let name = name(day);
    let exists = "SELECT to_regclass($1) IS NOT NULL";
    if client.query_one(exists, &[&name]).await?.get(0) {
        return Ok(());
    }
    // Attached, not made as a partition: that would wait for everybody who reads events, and make all others wait for it.
    let next = day.saturating_add(1.day());
    let made = client
        .batch_execute(&format!(
            "BEGIN; SELECT pg_advisory_xact_lock({LOCK}); \
             DO $do$ BEGIN IF to_regclass('{name}') IS NULL THEN \
             CREATE TABLE {name} (LIKE events INCLUDING DEFAULTS); \
             ALTER TABLE events ATTACH PARTITION {name} FOR VALUES FROM ('{day} 00:00:00+00') TO ('{next} 00:00:00+00'); \
             END IF; END $do$; COMMIT"
        ))
        .await;
    if made.is_err() {
        client.batch_execute("ROLLBACK").await?;
    }
    made
}

/// All partitions and how many rows the server thinks they have, the oldest first.
pub(super) async fn all(client: &Client) -> Result<Vec<(Date, u64)>, tokio_postgres::Error> {
    let rows = client
        .query(
            "SELECT c.relname::text, greatest(c.reltuples, pg_stat_get_live_tuples(c.oid), 0)::bigint FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
             WHERE i.inhparent = 'events'::regclass ORDER BY c.relname",
            &[],
        )
        .await?;
    let partition = |row: &tokio_postgres::Row| Some((day_of(row.get(0))?, row.get::<_, i64>(1).unsigned_abs()));
    Ok(rows.iter().filter_map(partition).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_named_after_its_day_in_utc() {
        let time: Timestamp = "2026-11-21T23:59:59.999999Z".parse().unwrap();
        assert_eq!(name(day(time)), "events_20261121");
        assert_eq!(day_of("events_20261121"), Some(day(time)));
        for other in ["events_2026112", "events_20261321", "events_default", "agents", "events_2026112x"] {
            assert_eq!(day_of(other), None);
        }
    }
}
