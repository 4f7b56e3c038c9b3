//! Events stored a second, beside the same rows by plain `SQLite` and by plain COPY, in one run.
//!
//! `cargo bench -p picket-hub-db`. The neighbours get the same columns and indexes and do nothing else: one transaction a
//! batch, no books, no look for duplicates. Each transaction is one wait for the disk (`synchronous=FULL`, `fsync=on`).
//! Rounds are interleaved, and medians are told. Options: `--batches N` (of 500 events, a round), `--rounds N`,
//! `--writers N` (calls at once), `--dir DIR` (the file system to measure), `--no-postgres`.
#![expect(clippy::print_stdout, clippy::unwrap_used, clippy::disallowed_methods, reason = "a measuring program")]

use jiff::{SignedDuration, Timestamp};
use picket_hub_db::{Database, IngestBatch, NewAgent, NewEvent, Options, TenantId, event_id, open};
use picket_protocol::event::Priority;
use picket_testkit::postgres::Postgres;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

const EVENTS: u64 = 500;
const T: TenantId = TenantId::DEFAULT;

struct Plan {
    batches: u64,
    rounds: u32,
    writers: u64,
    dir: PathBuf,
    postgres: bool,
}

fn plan() -> Plan {
    let mut plan = Plan { batches: 100, rounds: 5, writers: 4, dir: std::env::temp_dir(), postgres: true };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse().ok()).unwrap();
        match argument.as_str() {
            "--batches" => plan.batches = number(),
            "--rounds" => plan.rounds = u32::try_from(number()).unwrap(),
            "--writers" => plan.writers = number(),
            "--dir" => plan.dir = arguments.next().unwrap().into(),
            "--no-postgres" => plan.postgres = false,
            _ => {}
        }
    }
    plan
}

fn now() -> Timestamp {
    "2026-11-21T12:00:00Z".parse().unwrap()
}

/// About 400 bytes of details.
fn event(seq: u64) -> NewEvent {
    let data = format!(
        r#"{{"timestamp":"2026-11-21T12:00:00.{:06}Z","action":"modified","path":"/srv/app/releases/{:06}/config/settings.yaml","kind":"file","meta":{{"size":{},"mode":33188,"uid":1000,"gid":1000,"inode":{},"modified":"2026-11-21T12:00:00Z"}},"sha256":"{:064x}","actor":{{"pid":{},"exe":"/usr/bin/python3.11","uid":1000,"user":"deploy"}},"method":"fanotify","confidence":"observed"}}"#,
        seq % 1_000_000,
        seq % 999_983,
        seq * 7 % 100_000,
        seq + 1_000_000,
        u128::from(seq) * 0x9E37_79B9_7F4A_7C15,
        seq % 32_768,
    );
    NewEvent {
        seq,
        kind: "file".into(),
        class: Priority::Normal,
        timestamp: now(),
        weight: 1,
        gap: 0,
        data: data.into(),
    }
}

fn agent(writer: u64) -> Uuid {
    Uuid::from_u128(u128::from(writer) + 1)
}

/// The batches of a round, for each writer its own.
fn batches(plan: &Plan, round: u32) -> Vec<Vec<IngestBatch>> {
    let a_writer = plan.batches / plan.writers;
    let batch = |writer: u64, number: u64| {
        let first = (u64::from(round) * a_writer + number) * EVENTS + 1;
        IngestBatch {
            agent: agent(writer),
            boot_id: Uuid::from_u128(77),
            received_at: now()
                + SignedDuration::from_millis(i64::try_from(u64::from(round) * a_writer + number).unwrap() * 10),
            ledger: None,
            events: (first..first + EVENTS).map(event).collect(),
        }
    };
    (0..plan.writers).map(|writer| (0..a_writer).map(|number| batch(writer, number)).collect()).collect()
}

async fn prepare(db: &Arc<dyn Database>, plan: &Plan) {
    db.ensure_default_tenant(now()).await.unwrap();
    db.maintain(now()).await.unwrap();
    for writer in 0..plan.writers {
        let new = NewAgent {
            id: agent(writer),
            name: format!("machine-{writer}"),
            kind: "server".into(),
            tags: std::collections::BTreeSet::new(),
            config: serde_json::json!({}),
        };
        db.create_agent(T, &new, now()).await.unwrap();
    }
}

async fn hub(db: &Arc<dyn Database>, batches: Vec<Vec<IngestBatch>>) -> Duration {
    let began = Instant::now();
    let writers: Vec<_> = batches
        .into_iter()
        .map(|batches| {
            let db = Arc::clone(db);
            tokio::spawn(async move {
                for batch in batches {
                    let outcome = db.ingest(T, std::slice::from_ref(&batch)).await.unwrap().remove(0);
                    assert_eq!(outcome.records, EVENTS);
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    began.elapsed()
}

const COLUMNS: &str = "tenant_id, id, agent_id, boot_id, seq, received_at, timestamp, type, class, shard, data";

fn plain_sqlite(path: &Path) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection
        .execute_batch(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=4000; PRAGMA cache_size=-65536;
             CREATE TABLE events (position INTEGER PRIMARY KEY AUTOINCREMENT, tenant_id INTEGER NOT NULL, id BLOB NOT NULL,
             agent_id BLOB NOT NULL, boot_id BLOB NOT NULL, seq INTEGER NOT NULL, received_at INTEGER NOT NULL,
             timestamp INTEGER NOT NULL, type TEXT NOT NULL, class TEXT NOT NULL, shard TEXT NOT NULL, data TEXT NOT NULL) STRICT;
             CREATE INDEX events_by_id ON events (tenant_id, id);
             CREATE INDEX events_by_agent ON events (tenant_id, agent_id, id);",
        )
        .unwrap();
    connection
}

/// The same rows, the ids made before: one transaction a batch.
fn plain_sqlite_round(connection: &mut rusqlite::Connection, batches: &[Vec<IngestBatch>]) -> Duration {
    let ids: Vec<Vec<Uuid>> = batches.iter().flatten().map(ids_of).collect();
    let began = Instant::now();
    for (batch, ids) in batches.iter().flatten().zip(ids) {
        let transaction = connection.transaction().unwrap();
        {
            let sql = format!("INSERT INTO events ({COLUMNS}) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11)");
            let mut insert = transaction.prepare_cached(&sql).unwrap();
            for (event, id) in batch.events.iter().zip(ids) {
                insert
                    .execute(rusqlite::params![
                        1,
                        id.as_bytes(),
                        batch.agent.as_bytes(),
                        batch.boot_id.as_bytes(),
                        i64::try_from(event.seq).unwrap(),
                        batch.received_at.as_microsecond(),
                        event.timestamp.as_microsecond(),
                        event.kind,
                        event.class.as_str(),
                        "file",
                        event.data.as_str(),
                    ])
                    .unwrap();
            }
        }
        transaction.commit().unwrap();
    }
    began.elapsed()
}

fn ids_of(batch: &IngestBatch) -> Vec<Uuid> {
    batch.events.iter().map(|event| event_id(T, batch.agent, batch.boot_id, event.seq, batch.received_at)).collect()
}

/// The same rows by COPY into a table of the same shape, one transaction a batch, as many connections as writers.
async fn plain_copy_round(url: &str, batches: Vec<Vec<IngestBatch>>) -> Duration {
    use futures_util::SinkExt as _;
    // The bytes are made before: what is measured is the server's part.
    let ready: Vec<Vec<bytes::Bytes>> = batches.iter().map(|of_one| of_one.iter().map(copy_bytes).collect()).collect();
    let mut clients = Vec::new();
    for _ in &ready {
        let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        clients.push(client);
    }
    let began = Instant::now();
    let writers: Vec<_> = ready
        .into_iter()
        .zip(clients)
        .map(|(batches, client)| {
            tokio::spawn(async move {
                for bytes in batches {
                    let sql = format!("COPY plain ({COLUMNS}) FROM STDIN BINARY");
                    let sink = client.copy_in::<_, bytes::Bytes>(&sql);
                    let mut sink = std::pin::pin!(sink.await.unwrap());
                    sink.send(bytes).await.unwrap();
                    assert_eq!(sink.finish().await.unwrap(), EVENTS);
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    began.elapsed()
}

fn copy_bytes(batch: &IngestBatch) -> bytes::Bytes {
    use bytes::BufMut as _;
    let mut out = bytes::BytesMut::from(&b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0"[..]);
    let micros = |time: Timestamp| (time.as_microsecond() - 946_684_800_000_000).to_be_bytes();
    for (event, id) in batch.events.iter().zip(ids_of(batch)) {
        out.put_i16(11);
        let fields: [&[u8]; 11] = [
            &1_i32.to_be_bytes(),
            id.as_bytes(),
            batch.agent.as_bytes(),
            batch.boot_id.as_bytes(),
            &event.seq.to_be_bytes(),
            &micros(batch.received_at),
            &micros(event.timestamp),
            event.kind.as_bytes(),
            event.class.as_str().as_bytes(),
            b"file",
            event.data.as_bytes(),
        ];
        for field in fields {
            out.put_i32(i32::try_from(field.len()).unwrap());
            out.put_slice(field);
        }
    }
    out.put_i16(-1);
    out.freeze()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn tell(what: &str, plan: &Plan, ours: Vec<Duration>, plain: Vec<Duration>) {
    let events = (plan.batches / plan.writers * plan.writers * EVENTS) as f64;
    let rate = |times: Vec<Duration>| events / median(times).as_secs_f64();
    let (ours, plain) = (rate(ours), rate(plain));
    println!("{what:10} ingest {ours:>9.0} events/s   plain {plain:>9.0} events/s   ratio {:.2}", ours / plain);
}

async fn sqlite(plan: &Plan) {
    let folder = tempfile::tempdir_in(&plan.dir).unwrap();
    let db = open(folder.path().join("hub.db").to_str().unwrap(), &Options::default()).await.unwrap();
    prepare(&db, plan).await;
    let mut plain = plain_sqlite(&folder.path().join("plain.db"));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..plan.rounds {
        let batches = batches(plan, round);
        theirs.push(plain_sqlite_round(&mut plain, &batches));
        ours.push(hub(&db, batches).await);
    }
    tell("SQLite", plan, ours, theirs);
    db.close().await;
}

async fn postgres(plan: &Plan) {
    let server = tokio::task::block_in_place(|| Postgres::start_new(true));
    tokio::task::block_in_place(|| {
        server.create_database("hub");
        server.sql(
            "hub",
            "CREATE SEQUENCE plain_positions CACHE 1000; CREATE TABLE plain (tenant_id integer NOT NULL, id uuid NOT NULL, \
             agent_id uuid NOT NULL, boot_id uuid NOT NULL, seq bigint NOT NULL, received_at timestamptz NOT NULL, \
             timestamp timestamptz NOT NULL, type text COLLATE \"C\" NOT NULL, class text COLLATE \"C\" NOT NULL, \
             shard text COLLATE \"C\" NOT NULL, data json NOT NULL, xid xid8 NOT NULL DEFAULT pg_current_xact_id(), \
             position bigint NOT NULL DEFAULT nextval('plain_positions')); \
             CREATE INDEX plain_by_id ON plain (tenant_id, id); \
             CREATE INDEX plain_by_agent ON plain (tenant_id, agent_id, id); \
             CREATE INDEX plain_by_position ON plain (tenant_id, xid, position, shard);",
        );
    });
    let url = server.url("hub");
    let db = open(&url, &Options::default()).await.unwrap();
    prepare(&db, plan).await;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..plan.rounds {
        theirs.push(plain_copy_round(&url, batches(plan, round)).await);
        ours.push(hub(&db, batches(plan, round)).await);
    }
    tell("PostgreSQL", plan, ours, theirs);
    db.close().await;
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let plan = plan();
    println!(
        "{} batches of {EVENTS} events of {} bytes of JSON, {} writers, {} rounds",
        plan.batches,
        event(1).data.len(),
        plan.writers,
        plan.rounds
    );
    sqlite(&plan).await;
    if plan.postgres {
        postgres(&plan).await;
    }
}
