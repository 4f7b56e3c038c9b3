//! Storing events in bulk: few statements a call, whatever the number of agents, and the rows by COPY.

use super::engine::{Postgres, told};
use super::partitions;
use super::tx::{EPOCH_MICROS, Failure, wrong};
use crate::shared::{Prepared, Ranges, number};
use crate::{DbError, IngestBatch, IngestOutcome, Result, Shard, TenantId};
use bytes::{BufMut as _, Bytes, BytesMut};
use deadpool_postgres::Object;
use futures_util::SinkExt as _;
use jiff::Timestamp;
use jiff::civil::Date;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

const OPERATION: &str = "store events";
/// How often a call is tried that lost against another one or lacks a partition.
const ATTEMPTS: u32 = 8;
/// How many bytes are given to the connection at a time.
const COPY_CHUNK: usize = 256 << 10;
/// The beginning of COPY's binary format (PostgreSQL manual, COPY, "Binary Format"): signature, flags, no extension.
const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const COPY_COLUMNS: i16 = 11;

type Key = (Uuid, Uuid);
type Step<T> = std::result::Result<T, Failure>;

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err wants")]
fn doing(error: tokio_postgres::Error) -> Failure {
    let no_partition = error.code() == Some(&SqlState::CHECK_VIOLATION);
    let failure = wrong(OPERATION, &error);
    // Somebody removed the partition since it was made.
    Failure { again: failure.again || no_partition, ..failure }
}

/// What a call changes of one stream.
#[derive(Debug, Default)]
struct Stream {
    ranges: Ranges,
    sum: IngestOutcome,
    last_seq: u64,
    first_seen: Timestamp,
    last_seen: Timestamp,
    ledger: Option<String>,
    /// The numbers that came, for finding the ranges they touch.
    low: i64,
    high: i64,
}

impl Postgres {
    /// [`crate::Events::ingest`]: in a task of its own, which ends what it began whether somebody waits or not.
    pub(super) async fn store(&self, tenant: TenantId, batches: &[IngestBatch]) -> Result<Vec<IngestOutcome>> {
        let prepared: Vec<Prepared> = batches.iter().map(|batch| Prepared::of(tenant, batch)).collect();
        let days: BTreeSet<Date> = batches.iter().map(|batch| partitions::day(batch.received_at)).collect();
        let (client, known) = (self.client(OPERATION).await?, self.days.clone());
        let task = tokio::spawn(async move {
            let mut attempt = 1;
            loop {
                let unknown = |day: &Date| !known.lock().unwrap_or_else(PoisonError::into_inner).contains(day);
                let missing: BTreeSet<Date> = days.iter().filter(|day| unknown(day)).copied().collect();
                let done = match partitions::make(&client, &missing).await {
                    Ok(()) => {
                        known.lock().unwrap_or_else(PoisonError::into_inner).extend(&missing);
                        transact(&client, tenant, &prepared).await
                    }
                    Err(failure) => Err(failure),
                };
                match done {
                    Ok(outcomes) => return Ok(outcomes),
                    Err(failure) if failure.again && attempt < ATTEMPTS => {
                        known.lock().unwrap_or_else(PoisonError::into_inner).clear();
                        attempt += 1;
                    }
                    Err(failure) => return Err(told(client, failure)),
                }
            }
        });
        task.await.map_err(|error| DbError::Io { operation: OPERATION, why: error.to_string() })?
    }
}

async fn transact(client: &Object, tenant: TenantId, batches: &[Prepared]) -> Step<Vec<IngestOutcome>> {
    client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED").await.map_err(doing)?;
    let done = match store(client, tenant, batches).await {
        Ok(outcomes) => client.batch_execute("COMMIT").await.map_err(doing).map(|()| outcomes),
        Err(failure) => Err(failure),
    };
    if done.is_err() {
        // Nothing to do about a failure here: the connection is gone then, and the transaction with it.
        let _ = client.batch_execute("ROLLBACK").await;
    }
    done
}

async fn store(client: &Object, tenant: TenantId, batches: &[Prepared]) -> Step<Vec<IngestOutcome>> {
    let known = agents(client, tenant, batches).await?;
    let taken = || batches.iter().filter(|batch| known.contains(&batch.batch.agent));
    let mut streams: BTreeMap<Key, Stream> = BTreeMap::new();
    for prepared in taken() {
        let key = (prepared.batch.agent, prepared.batch.boot_id);
        let at = prepared.batch.received_at;
        let new = || Stream { first_seen: at, last_seen: at, low: i64::MAX, high: 0, ..Stream::default() };
        let stream = streams.entry(key).or_insert_with(new);
        stream.first_seen = stream.first_seen.min(at);
        stream.last_seen = stream.last_seen.max(at);
        if let Some((low, high)) = prepared.span() {
            stream.low = stream.low.min(low);
            stream.high = stream.high.max(high);
        }
    }
    if streams.is_empty() {
        return Ok(vec![IngestOutcome { refused: true, ..IngestOutcome::default() }; batches.len()]);
    }
    lock(client, tenant, &streams).await?;
    load(client, tenant, &mut streams).await?;
    let mut outcomes = Vec::with_capacity(batches.len());
    let mut rows = Rows::with_room(taken().map(Prepared::bytes).sum());
    for prepared in batches {
        let Some(stream) = streams.get_mut(&(prepared.batch.agent, prepared.batch.boot_id)) else {
            outcomes.push(IngestOutcome { refused: true, ..IngestOutcome::default() });
            continue;
        };
        let sifted = prepared.sift(&mut stream.ranges);
        rows.add(tenant, prepared, &sifted.new);
        stream.last_seq = stream.last_seq.max(sifted.last_seq);
        stream.sum.records += sifted.outcome.records;
        stream.sum.stored = stream.sum.stored.saturating_add(sifted.outcome.stored);
        stream.sum.gaps = stream.sum.gaps.saturating_add(sifted.outcome.gaps);
        stream.sum.duplicates += sifted.outcome.duplicates;
        stream.sum.rejected += sifted.outcome.rejected;
        if prepared.ledger.is_some() {
            stream.ledger.clone_from(&prepared.ledger);
        }
        outcomes.push(sifted.outcome);
    }
    rows.copy(client).await?;
    save(client, tenant, &streams).await?;
    Ok(outcomes)
}

/// Which of the agents are there and not retired.
async fn agents(client: &Object, tenant: TenantId, batches: &[Prepared]) -> Step<BTreeSet<Uuid>> {
    let asked: BTreeSet<Uuid> = batches.iter().map(|batch| batch.batch.agent).collect();
    let asked: Vec<Uuid> = asked.into_iter().collect();
    let sql = "SELECT id FROM agents WHERE tenant_id = $1 AND id = ANY($2) AND status <> 'retired'";
    let statement = client.prepare_cached(sql).await.map_err(doing)?;
    let rows = client.query(&statement, &[&tenant.0, &asked]).await.map_err(doing)?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Locks the streams in the order of their keys, after making those that are new.
async fn lock(client: &Object, tenant: TenantId, streams: &BTreeMap<Key, Stream>) -> Step<()> {
    let (agents, boots): (Vec<Uuid>, Vec<Uuid>) = streams.keys().copied().unzip();
    let lock = client
        .prepare_cached(
            "SELECT 1 FROM streams s JOIN unnest($2::uuid[], $3::uuid[]) AS w(agent_id, boot_id) \
             ON s.agent_id = w.agent_id AND s.boot_id = w.boot_id WHERE s.tenant_id = $1 \
             ORDER BY s.agent_id, s.boot_id FOR UPDATE OF s",
        )
        .await
        .map_err(doing)?;
    let locked = client.query(&lock, &[&tenant.0, &agents, &boots]).await.map_err(doing)?;
    if locked.len() == streams.len() {
        return Ok(());
    }
    let times: Vec<Timestamp> = streams.values().map(|stream| stream.first_seen).collect();
    let insert = client
        .prepare_cached(
            "INSERT INTO streams (tenant_id, agent_id, boot_id, stored, gaps, records, duplicates, rejected, last_seq, \
             first_seen, last_seen) SELECT $1::integer, w.agent_id, w.boot_id, 0, 0, 0, 0, 0, 0, w.at, w.at \
             FROM unnest($2::uuid[], $3::uuid[], $4::timestamptz[]) AS w(agent_id, boot_id, at) \
             ORDER BY w.agent_id, w.boot_id ON CONFLICT DO NOTHING",
        )
        .await
        .map_err(doing)?;
    client.execute(&insert, &[&tenant.0, &agents, &boots, &times]).await.map_err(doing)?;
    client.query(&lock, &[&tenant.0, &agents, &boots]).await.map_err(doing).map(drop)
}

/// Reads the ranges that what came holds or touches; after the lock, by a statement of its own, so that it sees what
/// whoever had the lock before committed.
async fn load(client: &Object, tenant: TenantId, streams: &mut BTreeMap<Key, Stream>) -> Step<()> {
    let (agents, boots): (Vec<Uuid>, Vec<Uuid>) = streams.keys().copied().unzip();
    let lows: Vec<i64> = streams.values().map(|stream| stream.low).collect();
    let highs: Vec<i64> = streams.values().map(|stream| stream.high.saturating_add(1)).collect();
    // The last range that begins before all of them may hold or touch the lowest; no earlier one can.
    let sql = "SELECT r.agent_id, r.boot_id, r.first, r.last \
         FROM unnest($2::uuid[], $3::uuid[], $4::bigint[], $5::bigint[]) AS w(agent_id, boot_id, low, high) \
         JOIN stream_ranges r ON r.tenant_id = $1 AND r.agent_id = w.agent_id AND r.boot_id = w.boot_id \
         AND r.first <= w.high AND r.first >= coalesce((SELECT max(b.first) FROM stream_ranges b WHERE b.tenant_id = $1 \
         AND b.agent_id = w.agent_id AND b.boot_id = w.boot_id AND b.first <= w.low), w.low)";
    let statement = client.prepare_cached(sql).await.map_err(doing)?;
    let rows = client.query(&statement, &[&tenant.0, &agents, &boots, &lows, &highs]).await.map_err(doing)?;
    let mut ranges: BTreeMap<Key, Vec<(u64, u64)>> = BTreeMap::new();
    for row in rows {
        let (first, last): (i64, i64) = (row.get(2), row.get(3));
        ranges.entry((row.get(0), row.get(1))).or_default().push((first.unsigned_abs(), last.unsigned_abs()));
    }
    for (key, ranges) in ranges {
        if let Some(stream) = streams.get_mut(&key) {
            stream.ranges = Ranges::load(ranges);
        }
    }
    Ok(())
}

/// Writes books and ranges.
async fn save(client: &Object, tenant: TenantId, streams: &BTreeMap<Key, Stream>) -> Step<()> {
    let (mut removed, mut written) =
        ((Vec::new(), Vec::new(), Vec::new()), (Vec::new(), Vec::new(), Vec::new(), Vec::new()));
    for ((agent, boot), stream) in streams {
        let taken = stream.ranges.taken();
        for first in taken.removed {
            removed.0.push(*agent);
            removed.1.push(*boot);
            removed.2.push(number(first));
        }
        for (first, last) in taken.written {
            written.0.push(*agent);
            written.1.push(*boot);
            written.2.push(number(first));
            written.3.push(number(last));
        }
    }
    if !removed.0.is_empty() {
        let sql = "DELETE FROM stream_ranges r USING unnest($2::uuid[], $3::uuid[], $4::bigint[]) \
             AS w(agent_id, boot_id, first) WHERE r.tenant_id = $1 AND r.agent_id = w.agent_id \
             AND r.boot_id = w.boot_id AND r.first = w.first";
        let statement = client.prepare_cached(sql).await.map_err(doing)?;
        client.execute(&statement, &[&tenant.0, &removed.0, &removed.1, &removed.2]).await.map_err(doing)?;
    }
    if !written.0.is_empty() {
        let sql = "INSERT INTO stream_ranges (tenant_id, agent_id, boot_id, first, last) \
             SELECT $1::integer, * FROM unnest($2::uuid[], $3::uuid[], $4::bigint[], $5::bigint[]) \
             ON CONFLICT (tenant_id, agent_id, boot_id, first) DO UPDATE SET last = excluded.last";
        let statement = client.prepare_cached(sql).await.map_err(doing)?;
        client
            .execute(&statement, &[&tenant.0, &written.0, &written.1, &written.2, &written.3])
            .await
            .map_err(doing)?;
    }
    books(client, tenant, streams).await
}

/// Adds to the streams' books.
async fn books(client: &Object, tenant: TenantId, streams: &BTreeMap<Key, Stream>) -> Step<()> {
    let (agents, boots): (Vec<Uuid>, Vec<Uuid>) = streams.keys().copied().unzip();
    let column = |of: fn(&Stream) -> u64| -> Vec<i64> { streams.values().map(|stream| number(of(stream))).collect() };
    let stored = column(|stream| stream.sum.stored);
    let gaps = column(|stream| stream.sum.gaps);
    let records = column(|stream| stream.sum.records);
    let duplicates = column(|stream| stream.sum.duplicates);
    let rejected = column(|stream| stream.sum.rejected);
    let last_seqs = column(|stream| stream.last_seq);
    let seen: Vec<Timestamp> = streams.values().map(|stream| stream.last_seen).collect();
    let ledgers: Vec<Option<&str>> = streams.values().map(|stream| stream.ledger.as_deref()).collect();
    let sql = "UPDATE streams s SET stored = s.stored + w.stored, gaps = s.gaps + w.gaps, records = s.records + w.records, \
         duplicates = s.duplicates + w.duplicates, rejected = s.rejected + w.rejected, \
         last_seq = greatest(s.last_seq, w.last_seq), last_seen = greatest(s.last_seen, w.last_seen), \
         ledger = coalesce(w.ledger::json, s.ledger) FROM unnest($2::uuid[], $3::uuid[], $4::bigint[], $5::bigint[], \
         $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::timestamptz[], $11::text[]) \
         AS w(agent_id, boot_id, stored, gaps, records, duplicates, rejected, last_seq, last_seen, ledger) \
         WHERE s.tenant_id = $1 AND s.agent_id = w.agent_id AND s.boot_id = w.boot_id";
    let statement = client.prepare_cached(sql).await.map_err(doing)?;
    client
        .execute(
            &statement,
            &[
                &tenant.0,
                &agents,
                &boots,
                &stored,
                &gaps,
                &records,
                &duplicates,
                &rejected,
                &last_seqs,
                &seen,
                &ledgers,
            ],
        )
        .await
        .map_err(doing)
        .map(drop)
}

/// Rows of events in COPY's binary format.
struct Rows {
    bytes: BytesMut,
    count: u64,
}

impl Rows {
    /// For events of about so many bytes.
    fn with_room(bytes: usize) -> Self {
        let mut bytes = BytesMut::with_capacity(bytes + COPY_CHUNK);
        bytes.put_slice(COPY_HEADER);
        Self { bytes, count: 0 }
    }

    fn field(&mut self, value: &[u8]) {
        // No field is longer than an event's data, which is bounded.
        self.bytes.put_i32(i32::try_from(value.len()).unwrap_or(i32::MAX));
        self.bytes.put_slice(value);
    }

    fn add(&mut self, tenant: TenantId, prepared: &Prepared, new: &[usize]) {
        let batch = &prepared.batch;
        let received_at = (batch.received_at.as_microsecond() - EPOCH_MICROS).to_be_bytes();
        for (event, id) in new.iter().filter_map(|at| prepared.event(*at)) {
            self.bytes.put_i16(COPY_COLUMNS);
            self.field(&tenant.0.to_be_bytes());
            self.field(id.as_bytes());
            self.field(batch.agent.as_bytes());
            self.field(batch.boot_id.as_bytes());
            self.field(&number(event.seq).to_be_bytes());
            self.field(&received_at);
            self.field(&(event.timestamp.as_microsecond().saturating_sub(EPOCH_MICROS)).to_be_bytes());
            self.field(event.kind.as_bytes());
            self.field(event.class.as_str().as_bytes());
            self.field(Shard::of(&event.kind).as_str().as_bytes());
            self.field(event.data.as_bytes());
            self.count += 1;
        }
    }

    async fn copy(mut self, client: &Client) -> Step<()> {
        if self.count == 0 {
            return Ok(());
        }
        self.bytes.put_i16(-1);
        let sql = "COPY events (tenant_id, id, agent_id, boot_id, seq, received_at, timestamp, type, class, shard, data) \
             FROM STDIN BINARY";
        let sink = client.copy_in::<_, Bytes>(sql).await.map_err(doing)?;
        let mut sink = std::pin::pin!(sink);
        let mut bytes = self.bytes.freeze();
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(COPY_CHUNK));
            sink.send(chunk).await.map_err(doing)?;
        }
        sink.finish().await.map_err(doing).map(drop)
    }
}
