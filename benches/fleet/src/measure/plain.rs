//! What the store can do alone: the same rows with the same columns and indexes, and nothing else. One transaction a batch by
//! rusqlite; COPY by as many connections as there are agents' threads. No books, no look for duplicates, no network, no TLS.

use crate::event::details;
use crate::machine::Machine;
use crate::process::{cpu_seconds, family_cpu_seconds};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::SinkExt as _;
use jiff::Timestamp;
use picket_testkit::postgres::Postgres;
use std::path::Path;
use std::time::{Duration, Instant};
use uuid::Uuid;

const COLUMNS: &str = "tenant_id, id, agent_id, boot_id, seq, received_at, timestamp, type, class, shard, data";

/// A row as the hub keeps it.
struct Row {
    id: Uuid,
    agent: Uuid,
    boot: Uuid,
    seq: i64,
    at: Timestamp,
    data: String,
}

/// The rows of a machine's events, made before the time is taken.
fn rows(machine: &Machine, events: u64) -> Vec<Row> {
    let row = |number: u64| {
        let at = Timestamp::now();
        let seq = i64::try_from(number).unwrap();
        let data = details(machine.index, number, at).to_string();
        Row { id: Uuid::now_v7(), agent: machine.id, boot: machine.boot, seq, at, data }
    };
    (1..=events).map(row).collect()
}

/// Events a second by rusqlite, each machine's in batches, by turns; and the processor time that it took, in seconds.
pub fn sqlite(file: &Path, machines: &[Machine], a_machine: u64, batch: usize) -> (f64, f64) {
    let mut connection = rusqlite::Connection::open(file).unwrap();
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
    let all: Vec<Vec<Row>> = machines.iter().map(|machine| rows(machine, a_machine)).collect();
    let batches = all[0].len().div_ceil(batch);
    let sql = format!("INSERT INTO events ({COLUMNS}) VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11)");
    let (began, cpu) = (Instant::now(), cpu_seconds(std::process::id()));
    for number in 0..batches {
        for rows in &all {
            let transaction = connection.transaction().unwrap();
            {
                let mut insert = transaction.prepare_cached(&sql).unwrap();
                for row in rows.iter().skip(number * batch).take(batch) {
                    let at = row.at.as_microsecond();
                    let ids = (row.id.as_bytes(), row.agent.as_bytes(), row.boot.as_bytes());
                    let values =
                        rusqlite::params![1, ids.0, ids.1, ids.2, row.seq, at, at, "file", "normal", "file", row.data];
                    insert.execute(values).unwrap();
                }
            }
            transaction.commit().unwrap();
        }
    }
    (rate(machines.len(), a_machine, began.elapsed()), cpu_seconds(std::process::id()) - cpu)
}

fn rate(machines: usize, a_machine: u64, took: Duration) -> f64 {
    machines as f64 * a_machine as f64 / took.as_secs_f64()
}

fn copy_bytes(rows: &[Row]) -> Bytes {
    let mut out = BytesMut::from(&b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0"[..]);
    for row in rows {
        // PostgreSQL counts from 2000.
        let at = (row.at.as_microsecond() - 946_684_800_000_000).to_be_bytes();
        let fields: [&[u8]; 11] = [
            &1_i32.to_be_bytes(),
            row.id.as_bytes(),
            row.agent.as_bytes(),
            row.boot.as_bytes(),
            &row.seq.to_be_bytes(),
            &at,
            &at,
            b"file",
            b"normal",
            b"file",
            row.data.as_bytes(),
        ];
        out.put_i16(11);
        for field in fields {
            out.put_i32(i32::try_from(field.len()).unwrap());
            out.put_slice(field);
        }
    }
    out.put_i16(-1);
    out.freeze()
}

/// The processor time of a server's processes, in seconds.
pub fn server_cpu(server: &Postgres) -> f64 {
    let file = server.socket().parent().unwrap().join("data/postmaster.pid");
    let text = std::fs::read_to_string(file).unwrap();
    family_cpu_seconds(text.lines().next().unwrap().trim().parse().unwrap())
}

/// Events a second by COPY: a transaction a batch, a connection for each `machines`' share; and the processor time that the
/// server took, in seconds.
pub fn copy(
    server: &Postgres,
    database: &str,
    machines: &[Machine],
    a_machine: u64,
    batch: usize,
    writers: usize,
) -> (f64, f64) {
    server.sql(
        database,
        "DROP TABLE IF EXISTS plain; CREATE SEQUENCE IF NOT EXISTS plain_positions CACHE 1000; CREATE TABLE plain (tenant_id \
         integer NOT NULL, id uuid NOT NULL, agent_id uuid NOT NULL, boot_id uuid NOT NULL, seq bigint NOT NULL, received_at \
         timestamptz NOT NULL, timestamp timestamptz NOT NULL, type text COLLATE \"C\" NOT NULL, class text COLLATE \"C\" NOT \
         NULL, shard text COLLATE \"C\" NOT NULL, data json NOT NULL, xid xid8 NOT NULL DEFAULT pg_current_xact_id(), position \
         bigint NOT NULL DEFAULT nextval('plain_positions')); CREATE INDEX ON plain (tenant_id, id); CREATE INDEX ON plain \
         (tenant_id, agent_id, id); CREATE INDEX ON plain (tenant_id, xid, position, shard)",
    );
    let url = server.url(database);
    let share = machines.len().div_ceil(writers);
    let ready: Vec<Vec<Bytes>> = machines
        .chunks(share)
        .map(|machines| {
            let of_one = |machine: &Machine| rows(machine, a_machine).chunks(batch).map(copy_bytes).collect::<Vec<_>>();
            machines.iter().flat_map(of_one).collect()
        })
        .collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let cpu = server_cpu(server);
    let took = runtime.block_on(async {
        let mut clients = Vec::new();
        for _ in &ready {
            let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            clients.push(client);
        }
        let began = Instant::now();
        let mut writers = Vec::new();
        for (batches, client) in ready.into_iter().zip(clients) {
            writers.push(tokio::spawn(async move {
                for bytes in batches {
                    let sql = format!("COPY plain ({COLUMNS}) FROM STDIN BINARY");
                    let sink = client.copy_in::<_, Bytes>(&sql).await.unwrap();
                    let mut sink = std::pin::pin!(sink);
                    sink.send(bytes).await.unwrap();
                    sink.finish().await.unwrap();
                }
            }));
        }
        for writer in writers {
            writer.await.unwrap();
        }
        began.elapsed()
    });
    (rate(machines.len(), a_machine, took), server_cpu(server) - cpu)
}
