//! Reading events and books over SQL. How events are stored is each database's own.

use super::cursor::{Key, Order};
use super::select::{Select, by, newest};
use super::{Engine, Row, Store, Tx, Value, params, tail};
use crate::events::{id_floor, id_time};
use crate::{
    AgentBook, EventFilter, Events, IngestBatch, IngestOutcome, PAGE_MAX, Page, PageRequest, Position, Result,
    SeqRange, Shard, StoredEvent, StreamBook, Tail, TenantId, Totals,
};
use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use picket_protocol::event::Priority;
use std::collections::BTreeSet;
use uuid::Uuid;

/// The columns of [`stored_event`].
pub(super) const EVENT_COLUMNS: &str =
    "id, xid, position, agent_id, boot_id, seq, received_at, timestamp, type, class, data";

const NEWEST: Order = newest("events", &[("id", Key::Uuid)]);
const OLDEST: Order = by("events_oldest", &[("id", Key::Uuid)]);
const STREAMS: Order = newest("streams", &[("last_seen", Key::Time), ("boot_id", Key::Uuid)]);
const BOOKS: Order = by("books", &[("agent_id", Key::Uuid)]);

/// An event of a row of [`EVENT_COLUMNS`].
pub(super) fn stored_event(mut row: Row) -> Result<StoredEvent> {
    let class = |word: &str| Priority::ALL.into_iter().find(|class| class.as_str() == word);
    Ok(StoredEvent {
        id: row.uuid(0)?,
        position: row.position(1)?,
        agent: row.uuid(3)?,
        boot_id: row.uuid(4)?,
        seq: row.count(5)?,
        received_at: row.time(6)?,
        timestamp: row.time(7)?,
        kind: row.take_text(8)?,
        class: row.word(9, class)?,
        data: row.take_text(10)?,
    })
}

fn find(tx: &mut dyn Tx, tenant: TenantId, id: Uuid) -> Result<Option<StoredEvent>> {
    // The id tells when it was received, and so in which partition it is.
    let Some(from) = id_time(id) else { return Ok(None) };
    let until = from.checked_add(SignedDuration::from_millis(1)).unwrap_or(Timestamp::MAX);
    let sql = format!(
        "SELECT {EVENT_COLUMNS} FROM events WHERE tenant_id = $1 AND id = $2 AND received_at >= $3 AND received_at < $4"
    );
    tx.row(&sql, params![tenant, id, from, until])?.map(stored_event).transpose()
}

/// Of how many agents' events a page is put together at most, and how many rows are read for it.
const MERGED_AGENTS: usize = 100;
const MERGED_ROWS: usize = 20_000;

fn list(tx: &mut dyn Tx, tenant: TenantId, filter: &EventFilter, page: &PageRequest) -> Result<Page<StoredEvent>> {
    if let (Some(tags), None) = (&filter.within, filter.agent) {
        let most = (MERGED_ROWS / page.bounded() as usize).min(MERGED_AGENTS);
        let agents = tagged(tx, tenant, tags, most + 1)?;
        // Few agents among many: going through everybody's events for theirs could take for ever. Many: they are found soon.
        if agents.len() <= most {
            return merged(tx, tenant, &agents, filter, page);
        }
    }
    listed(tx, tenant, filter, page)
}

/// The first `limit` agents that have one of these tags.
fn tagged(tx: &mut dyn Tx, tenant: TenantId, tags: &BTreeSet<String>, limit: usize) -> Result<Vec<Uuid>> {
    let mut values: Vec<Value> = vec![tenant.into(), i64::try_from(limit).unwrap_or(i64::MAX).into()];
    values.extend(tags.iter().map(Value::from));
    let places = (3..=values.len()).map(|number| format!("${number}")).collect::<Vec<_>>().join(", ");
    if places.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT DISTINCT agent_id FROM agent_tags WHERE tenant_id = $1 AND tag IN ({places}) ORDER BY agent_id LIMIT $2"
    );
    tx.query(&sql, &values)?.iter().map(|row| row.uuid(0)).collect()
}

/// A page of the events of these agents: the first of each, in one order.
fn merged(
    tx: &mut dyn Tx,
    tenant: TenantId,
    agents: &[Uuid],
    filter: &EventFilter,
    page: &PageRequest,
) -> Result<Page<StoredEvent>> {
    let order = order(filter);
    if let Some(cursor) = &page.after {
        // Where there is no agent, nobody else looks at it.
        order.decode(cursor)?;
    }
    let (mut items, mut more) = (Vec::new(), false);
    for agent in agents {
        let filter = EventFilter { agent: Some(*agent), within: None, ..filter.clone() };
        let part = listed(tx, tenant, &filter, page)?;
        more |= part.next.is_some();
        items.extend(part.items);
    }
    items.sort_by_key(|event| event.id);
    if order.descending {
        items.reverse();
    }
    let limit = page.bounded() as usize;
    more |= items.len() > limit;
    items.truncate(limit);
    let next = items.last().filter(|_| more).map(|last| order.encode(&[Value::Uuid(last.id)]));
    Ok(Page { items, next })
}

fn order(filter: &EventFilter) -> &'static Order {
    if filter.oldest_first { &OLDEST } else { &NEWEST }
}

fn listed(tx: &mut dyn Tx, tenant: TenantId, filter: &EventFilter, page: &PageRequest) -> Result<Page<StoredEvent>> {
    let mut select = Select::new(EVENT_COLUMNS, "events", tenant);
    select
        .when_some("agent_id = ?", filter.agent)
        .when_some("type = ?", filter.kind.as_ref())
        .when_some("class = ?", filter.class.map(Priority::as_str))
        .within("events.agent_id", filter.within.as_ref());
    // The time decides, the id leads the index there.
    if let Some(since) = filter.since {
        select.when("received_at >= ?", since).when("id >= ?", id_floor(since));
    }
    if let Some(until) = filter.until {
        let above = until.checked_add(SignedDuration::from_millis(1)).unwrap_or(Timestamp::MAX);
        select.when("received_at < ?", until).when("id < ?", id_floor(above));
    }
    select.page(tx, order(filter), page, |row| stored_event(row.clone()))
}

const STREAM: &str =
    "agent_id, boot_id, stored, gaps, records, duplicates, rejected, last_seq, first_seen, last_seen, ledger";

fn stream(row: &Row) -> Result<StreamBook> {
    Ok(StreamBook {
        agent: row.uuid(0)?,
        boot_id: row.uuid(1)?,
        totals: totals(row, 2)?,
        last_seq: row.count(7)?,
        first_seen: row.time(8)?,
        last_seen: row.time(9)?,
        ledger: row.opt_json(10)?,
    })
}

fn totals(row: &Row, at: usize) -> Result<Totals> {
    Ok(Totals {
        stored: row.count(at)?,
        gaps: row.count(at + 1)?,
        records: row.count(at + 2)?,
        duplicates: row.count(at + 3)?,
        rejected: row.count(at + 4)?,
    })
}

/// The sum over the streams of each agent.
const BOOK: &str = "SELECT s.agent_id, count(*), CAST(sum(s.stored) AS bigint), CAST(sum(s.gaps) AS bigint), \
    CAST(sum(s.records) AS bigint), CAST(sum(s.duplicates) AS bigint), CAST(sum(s.rejected) AS bigint), \
    max(s.last_seen), (SELECT a.ledger FROM agents a WHERE a.tenant_id = $1 AND a.id = s.agent_id), s.agent_id \
    FROM streams s WHERE s.tenant_id = $1";

fn book(row: &Row) -> Result<AgentBook> {
    Ok(AgentBook {
        agent: row.uuid(0)?,
        streams: row.count(1)?,
        totals: totals(row, 2)?,
        last_seen: row.time(7)?,
        ledger: row.opt_json(8)?,
    })
}

fn books(tx: &mut dyn Tx, tenant: TenantId, page: &PageRequest) -> Result<Page<AgentBook>> {
    let from = match &page.after {
        Some(cursor) => BOOKS.decode(cursor)?.remove(0),
        None => Value::Uuid(Uuid::nil()),
    };
    let sql = format!("{BOOK} AND s.agent_id > $2 GROUP BY s.agent_id ORDER BY s.agent_id LIMIT $3");
    let rows = tx.query(&sql, &[tenant.into(), from, (i64::from(page.bounded()) + 1).into()])?;
    BOOKS.page(page, rows, 9, book)
}

fn missing(tx: &mut dyn Tx, tenant: TenantId, agent: Uuid, boot: Uuid, limit: u32) -> Result<Vec<SeqRange>> {
    let limit = limit.clamp(1, PAGE_MAX);
    let rows = tx.query(
        "SELECT first, last FROM stream_ranges WHERE tenant_id = $1 AND agent_id = $2 AND boot_id = $3 \
         ORDER BY first LIMIT $4",
        params![tenant, agent, boot, i64::from(limit) + 1],
    )?;
    let (mut holes, mut expected) = (Vec::new(), 1);
    for row in rows {
        let (first, last) = (row.count(0)?, row.count(1)?);
        if first > expected {
            holes.push(SeqRange { first: expected, last: first - 1 });
        }
        expected = last.saturating_add(1);
    }
    holes.truncate(limit as usize);
    Ok(holes)
}

#[async_trait]
impl<E: Engine> Events for Store<E> {
    async fn ingest(&self, tenant: TenantId, batches: &[IngestBatch]) -> Result<Vec<IngestOutcome>> {
        let events: usize = batches.iter().map(|batch| batch.events.len()).sum();
        if events > crate::INGEST_MAX_EVENTS {
            let why = format!("{events} events are more than the {} of one call", crate::INGEST_MAX_EVENTS);
            return Err(crate::DbError::invalid("store events", why));
        }
        self.engine.ingest(tenant, batches).await
    }

    async fn event(&self, tenant: TenantId, id: Uuid) -> Result<Option<StoredEvent>> {
        self.engine.read("read an event", move |tx| find(tx, tenant, id)).await
    }

    async fn events_by_id(&self, tenant: TenantId, ids: &[Uuid]) -> Result<Vec<StoredEvent>> {
        let ids: Vec<Uuid> = ids.iter().take(PAGE_MAX as usize).copied().collect();
        self.engine
            .read("read events", move |tx| {
                let found = ids.iter().map(|id| find(tx, tenant, *id)).collect::<Result<Vec<_>>>()?;
                Ok(found.into_iter().flatten().collect())
            })
            .await
    }

    async fn events(&self, tenant: TenantId, filter: &EventFilter, page: &PageRequest) -> Result<Page<StoredEvent>> {
        let (filter, page) = (filter.clone(), page.clone());
        self.engine.read("list events", move |tx| list(tx, tenant, &filter, &page)).await
    }

    async fn events_after(&self, tenant: TenantId, position: Position, shards: &[Shard], limit: u32) -> Result<Tail> {
        let shards = shards.to_vec();
        self.engine.read("follow events", move |tx| tail::after(tx, tenant, position, &shards, limit)).await
    }

    async fn events_horizon(&self, tenant: TenantId) -> Result<Position> {
        self.engine.read("find the end of the events", move |tx| tx.event_horizon(tenant)).await
    }

    async fn stream_books(&self, tenant: TenantId, agent: Uuid, page: &PageRequest) -> Result<Page<StreamBook>> {
        let page = page.clone();
        self.engine
            .read("read the books of an agent's streams", move |tx| {
                let mut select = Select::new(STREAM, "streams", tenant);
                select.when("agent_id = ?", agent);
                select.page(tx, &STREAMS, &page, stream)
            })
            .await
    }

    async fn agent_book(&self, tenant: TenantId, agent: Uuid) -> Result<Option<AgentBook>> {
        self.engine
            .read("read the books of an agent", move |tx| {
                let sql = format!("{BOOK} AND s.agent_id = $2 GROUP BY s.agent_id");
                tx.row(&sql, params![tenant, agent])?.as_ref().map(book).transpose()
            })
            .await
    }

    async fn agent_books(&self, tenant: TenantId, page: &PageRequest) -> Result<Page<AgentBook>> {
        let page = page.clone();
        self.engine.read("read the books", move |tx| books(tx, tenant, &page)).await
    }

    async fn missing(&self, tenant: TenantId, agent: Uuid, boot_id: Uuid, limit: u32) -> Result<Vec<SeqRange>> {
        self.engine.read("find missing events", move |tx| missing(tx, tenant, agent, boot_id, limit)).await
    }
}
