//! Storing events: what the hub does most, and so without detours.

use super::tx::{SqliteTx, wrong};
use crate::shared::{Prepared, Ranges, Sifted, number};
use crate::{IngestBatch, IngestOutcome, Result, Shard, TenantId};
use rusqlite::{OptionalExtension as _, params};

/// Stores batches within the writer's transaction.
pub(super) fn ingest(tx: &SqliteTx<'_>, tenant: TenantId, batches: &[Prepared]) -> Result<Vec<IngestOutcome>> {
    let one = |prepared| batch(tx, tenant, prepared).map_err(|error| wrong(tx.operation, &error));
    batches.iter().map(one).collect()
}

fn batch(tx: &SqliteTx<'_>, tenant: TenantId, prepared: &Prepared) -> rusqlite::Result<IngestOutcome> {
    let batch = &prepared.batch;
    let (agent, boot) = (batch.agent.as_bytes(), batch.boot_id.as_bytes());
    let known = tx
        .connection
        .prepare_cached("SELECT 1 FROM agents WHERE tenant_id = ?1 AND id = ?2 AND status <> 'retired'")?
        .exists(params![tenant.0, agent])?;
    if !known {
        return Ok(IngestOutcome { refused: true, ..IngestOutcome::default() });
    }
    let mut ranges = load(tx, tenant, prepared)?;
    let sifted = prepared.sift(&mut ranges);
    let mut insert = tx.connection.prepare_cached(
        "INSERT INTO events (tenant_id, id, agent_id, boot_id, seq, received_at, timestamp, type, class, shard, data) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    )?;
    let received_at = batch.received_at.as_microsecond();
    for (event, id) in sifted.new.iter().filter_map(|at| prepared.event(*at)) {
        insert.execute(params![
            tenant.0,
            id.as_bytes(),
            agent,
            boot,
            number(event.seq),
            received_at,
            event.timestamp.as_microsecond(),
            event.kind,
            event.class.as_str(),
            Shard::of(&event.kind).as_str(),
            event.data.as_str(),
        ])?;
    }
    note(tx, tenant, prepared, &sifted)?;
    save(tx, tenant, batch, &ranges)?;
    Ok(sifted.outcome)
}

/// The ranges of the stream that hold or touch numbers of the batch.
fn load(tx: &SqliteTx<'_>, tenant: TenantId, prepared: &Prepared) -> rusqlite::Result<Ranges> {
    let Some((lowest, highest)) = prepared.span() else { return Ok(Ranges::default()) };
    let batch = &prepared.batch;
    let (agent, boot) = (batch.agent.as_bytes(), batch.boot_id.as_bytes());
    // The last range that begins before all of them may hold or touch the lowest; no earlier one can.
    let from: Option<i64> = tx
        .connection
        .prepare_cached(
            "SELECT first FROM stream_ranges WHERE tenant_id = ?1 AND agent_id = ?2 AND boot_id = ?3 AND first <= ?4 \
             ORDER BY first DESC LIMIT 1",
        )?
        .query_row(params![tenant.0, agent, boot, lowest], |row| row.get(0))
        .optional()?;
    let mut statement = tx.connection.prepare_cached(
        "SELECT first, last FROM stream_ranges WHERE tenant_id = ?1 AND agent_id = ?2 AND boot_id = ?3 \
         AND first >= ?4 AND first <= ?5",
    )?;
    let until = highest.saturating_add(1);
    let rows = statement.query_map(params![tenant.0, agent, boot, from.unwrap_or(lowest), until], |row| {
        Ok((row.get::<_, i64>(0)?.unsigned_abs(), row.get::<_, i64>(1)?.unsigned_abs()))
    })?;
    Ok(Ranges::load(rows.collect::<rusqlite::Result<Vec<_>>>()?))
}

/// Adds to the stream's books.
fn note(tx: &SqliteTx<'_>, tenant: TenantId, prepared: &Prepared, sifted: &Sifted) -> rusqlite::Result<()> {
    let (batch, outcome) = (&prepared.batch, &sifted.outcome);
    tx.connection
        .prepare_cached(
            "INSERT INTO streams (tenant_id, agent_id, boot_id, stored, gaps, records, duplicates, rejected, last_seq, \
             first_seen, last_seen, ledger) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?10, ?11) \
             ON CONFLICT (tenant_id, agent_id, boot_id) DO UPDATE SET stored = stored + excluded.stored, \
             gaps = gaps + excluded.gaps, records = records + excluded.records, \
             duplicates = duplicates + excluded.duplicates, rejected = rejected + excluded.rejected, \
             last_seq = max(last_seq, excluded.last_seq), last_seen = max(last_seen, excluded.last_seen), \
             ledger = coalesce(excluded.ledger, ledger)",
        )?
        .execute(params![
            tenant.0,
            batch.agent.as_bytes(),
            batch.boot_id.as_bytes(),
            number(outcome.stored),
            number(outcome.gaps),
            number(outcome.records),
            number(outcome.duplicates),
            number(outcome.rejected),
            number(sifted.last_seq),
            batch.received_at.as_microsecond(),
            prepared.ledger,
        ])
        .map(drop)
}

/// Writes what changed of the ranges; the stream's row is there already.
fn save(tx: &SqliteTx<'_>, tenant: TenantId, batch: &IngestBatch, ranges: &Ranges) -> rusqlite::Result<()> {
    let (agent, boot) = (batch.agent.as_bytes(), batch.boot_id.as_bytes());
    let taken = ranges.taken();
    for first in taken.removed {
        tx.connection
            .prepare_cached(
                "DELETE FROM stream_ranges WHERE tenant_id = ?1 AND agent_id = ?2 AND boot_id = ?3 AND first = ?4",
            )?
            .execute(params![tenant.0, agent, boot, number(first)])?;
    }
    for (first, last) in taken.written {
        tx.connection
            .prepare_cached(
                "INSERT INTO stream_ranges (tenant_id, agent_id, boot_id, first, last) VALUES (?1, ?2, ?3, ?4, ?5) \
                 ON CONFLICT (tenant_id, agent_id, boot_id, first) DO UPDATE SET last = excluded.last",
            )?
            .execute(params![tenant.0, agent, boot, number(first), number(last)])?;
    }
    Ok(())
}
