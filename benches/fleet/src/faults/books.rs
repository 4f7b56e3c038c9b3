//! What a hub has in its database, read without the hub.

use picket_protocol::hub::StreamLedger;
use std::collections::HashMap;
use std::path::Path;
use uuid::Uuid;

/// The database of a hub.
pub enum Books {
    /// SQLite's file.
    Sqlite(rusqlite::Connection),
    /// PostgreSQL, and what waits for it.
    Postgres(tokio::runtime::Runtime, tokio_postgres::Client),
}

/// The hub's books of one stream.
#[derive(Debug)]
pub struct Stream {
    /// Whose.
    pub agent: Uuid,
    /// Which.
    pub boot: Uuid,
    /// Events stored.
    pub stored: u64,
    /// Events missing, as gaps told.
    pub gaps: u64,
    /// Events that came again.
    pub duplicates: u64,
}

/// A finding.
#[derive(Debug)]
pub struct Finding {
    /// Its rule's title.
    pub title: String,
    /// Of what it is.
    pub entity: String,
    /// How many events it stands for.
    pub events: u64,
}

const STREAMS: &str = "SELECT agent_id, boot_id, stored, gaps, duplicates FROM streams";
const FINDINGS: &str = "SELECT title, coalesce(entity_value, ''), event_count FROM findings";
/// Events behind the place up to which their shard was judged; `{}` is whether an event lies up to that place.
const UNJUDGED: &str = "SELECT count(*) FROM events e WHERE NOT EXISTS (SELECT 1 FROM progress p \
    WHERE p.tenant_id = e.tenant_id AND p.name = 'judge/' || e.shard AND {})";

fn number(number: i64) -> u64 {
    u64::try_from(number).unwrap()
}

impl Books {
    /// Opens SQLite's file.
    pub fn sqlite(path: &Path) -> Self {
        Self::Sqlite(rusqlite::Connection::open(path).unwrap())
    }

    /// Connects to PostgreSQL.
    pub fn postgres(url: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            client
        });
        Self::Postgres(runtime, client)
    }

    /// Shows each event of agents: whose, its type, its details.
    pub fn each_event(&self, mut show: impl FnMut(Uuid, &str, &str)) {
        match self {
            Self::Sqlite(connection) => {
                let mut events = connection.prepare("SELECT agent_id, type, data FROM events").unwrap();
                let mut rows = events.query([]).unwrap();
                while let Some(row) = rows.next().unwrap() {
                    let agent = Uuid::from_slice(row.get_ref(0).unwrap().as_blob().unwrap()).unwrap();
                    show(agent, row.get_ref(1).unwrap().as_str().unwrap(), row.get_ref(2).unwrap().as_str().unwrap());
                }
            }
            Self::Postgres(runtime, client) => runtime.block_on(async {
                use futures_util::TryStreamExt as _;
                let none: [&str; 0] = [];
                let rows = client.query_raw("SELECT agent_id, type, data::text FROM events", none).await.unwrap();
                let mut rows = std::pin::pin!(rows);
                while let Some(row) = rows.try_next().await.unwrap() {
                    show(row.get(0), row.get(1), row.get(2));
                }
            }),
        }
    }

    /// The books of all streams.
    pub fn streams(&self) -> Vec<Stream> {
        match self {
            Self::Sqlite(connection) => {
                let mut streams = connection.prepare(STREAMS).unwrap();
                let of_row = |row: &rusqlite::Row<'_>| {
                    let id =
                        |at| Ok::<_, rusqlite::Error>(Uuid::from_slice(row.get_ref(at)?.as_blob().unwrap()).unwrap());
                    let count = |at| row.get(at).map(number);
                    Ok(Stream {
                        agent: id(0)?,
                        boot: id(1)?,
                        stored: count(2)?,
                        gaps: count(3)?,
                        duplicates: count(4)?,
                    })
                };
                streams.query_map([], of_row).unwrap().map(Result::unwrap).collect()
            }
            Self::Postgres(runtime, client) => {
                let rows = runtime.block_on(client.query(STREAMS, &[])).unwrap();
                let of_row = |row: &tokio_postgres::Row| Stream {
                    agent: row.get(0),
                    boot: row.get(1),
                    stored: number(row.get(2)),
                    gaps: number(row.get(3)),
                    duplicates: number(row.get(4)),
                };
                rows.iter().map(of_row).collect()
            }
        }
    }

    /// What each agent told of its own books last.
    pub fn told(&self) -> HashMap<Uuid, Vec<StreamLedger>> {
        let rows: Vec<(Uuid, String)> = match self {
            Self::Sqlite(connection) => {
                let mut agents = connection.prepare("SELECT id, coalesce(ledger, '[]') FROM agents").unwrap();
                let of_row = |row: &rusqlite::Row<'_>| {
                    Ok((Uuid::from_slice(row.get_ref(0)?.as_blob().unwrap()).unwrap(), row.get(1)?))
                };
                agents.query_map([], of_row).unwrap().map(Result::unwrap).collect()
            }
            Self::Postgres(runtime, client) => {
                let sql = "SELECT id, coalesce(ledger::text, '[]') FROM agents";
                let rows = runtime.block_on(client.query(sql, &[])).unwrap();
                rows.iter().map(|row| (row.get(0), row.get(1))).collect()
            }
        };
        rows.into_iter().map(|(agent, json)| (agent, serde_json::from_str(&json).unwrap_or_default())).collect()
    }

    /// How many events were not judged yet.
    pub fn unjudged(&self) -> u64 {
        match self {
            Self::Sqlite(connection) => {
                let sql = UNJUDGED.replace("{}", "e.position <= p.position");
                number(connection.query_row(&sql, [], |row| row.get(0)).unwrap())
            }
            Self::Postgres(runtime, client) => {
                let sql = UNJUDGED.replace("{}", "(e.xid::text::bigint, e.position) <= (p.xid, p.position)");
                number(runtime.block_on(client.query_one(&sql, &[])).unwrap().get(0))
            }
        }
    }

    /// All findings.
    pub fn findings(&self) -> Vec<Finding> {
        match self {
            Self::Sqlite(connection) => {
                let mut findings = connection.prepare(FINDINGS).unwrap();
                let of_row = |row: &rusqlite::Row<'_>| {
                    Ok(Finding { title: row.get(0)?, entity: row.get(1)?, events: row.get(2).map(number)? })
                };
                findings.query_map([], of_row).unwrap().map(Result::unwrap).collect()
            }
            Self::Postgres(runtime, client) => {
                let rows = runtime.block_on(client.query(FINDINGS, &[])).unwrap();
                let of_row = |row: &tokio_postgres::Row| Finding {
                    title: row.get(0),
                    entity: row.get(1),
                    events: number(row.get(2)),
                };
                rows.iter().map(of_row).collect()
            }
        }
    }
}
