//! Sealed inserts a second and bytes a row, beside the same rows in plain SQLite and in `SQLCipher`, in one run.
//!
//! `cargo bench -p picket-store`. All three have the same schema, page size, write-ahead log and `synchronous=FULL`, so each
//! transaction is one fsync; the rounds are interleaved, and medians are told. `SQLCipher` is Debian's command-line tool
//! fed with a script of the same transactions: parsing that text is in its time, and in the time of the same script
//! through Debian's `sqlite3`, which is measured beside it so that the share can be seen. Nothing is subtracted.
//! Options: `--rows N`, `--rounds N`, `--batch N` (of 1, 16, 256), `--dir DIR` (the file system to measure; a memory file system has no fsync).
#![expect(clippy::print_stdout, clippy::unwrap_used, clippy::disallowed_methods, reason = "a measuring program")]

use jiff::Timestamp;
use picket_seal::Keyring;
use picket_store::{DATABASE, Store, StoreOptions, Table};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const BATCHES: [usize; 3] = [1, 16, 256];
const PRAGMAS: &str = "PRAGMA page_size=4096; PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL; \
                       PRAGMA synchronous=FULL; PRAGMA secure_delete=FAST; PRAGMA cache_size=-4096;";
const SCHEMA: &str = "CREATE TABLE events(id INTEGER PRIMARY KEY, at INTEGER NOT NULL, payload BLOB NOT NULL); \
                      CREATE INDEX events_at ON events(at);";
/// Debian's `SQLCipher` is of the third series, whose pages are of 1,024 bytes unless each connection says otherwise.
const KEY: &str = "PRAGMA key = \"x'000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f'\"; \
                   PRAGMA cipher_page_size=4096;";

/// Who is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Sealed,
    Plain,
    CipherTool,
    PlainTool,
}

impl Who {
    const ALL: [Self; 4] = [Self::Sealed, Self::Plain, Self::CipherTool, Self::PlainTool];

    fn name(self) -> &'static str {
        match self {
            Self::Sealed => "picket-store",
            Self::Plain => "rusqlite",
            Self::CipherTool => "sqlcipher-cli",
            Self::PlainTool => "sqlite3-cli",
        }
    }

    fn is_there(self) -> bool {
        let tool = match self {
            Self::Sealed | Self::Plain => return true,
            Self::CipherTool => "sqlcipher",
            Self::PlainTool => "sqlite3",
        };
        Command::new(tool).arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success())
    }
}

/// An event as the agent writes it: 300 bytes of JSON, no two alike.
fn payload(i: usize) -> Vec<u8> {
    let mut text = format!(
        r#"{{"schema":1,"device_id":"agent-4711","boot_id":"01938b7e-0000-7000-8000-000000000000","seq":{i},"class":"normal","type":"network","details":{{"timestamp":"2026-11-21T12:{:02}:{:02}Z","action":"opened","src_ip":"10.1.{}.{}","dst_port":{},"comm":""#,
        i / 60 % 60,
        i % 60,
        i / 251 % 251,
        i % 251,
        1024 + i % 60_000
    );
    while text.len() < 297 {
        text.push(char::from(b'a' + u8::try_from((i + text.len()) % 26).unwrap()));
    }
    text.push_str("\"}}");
    text.into_bytes()
}

fn at(i: usize) -> Timestamp {
    Timestamp::from_millisecond(1_800_000_000_000 + i64::try_from(i).unwrap()).unwrap()
}

/// Seconds for all rows, and bytes of the database after a checkpoint.
fn measure(who: Who, dir: &Path, rows: usize, batch: usize) -> (f64, u64) {
    match who {
        Who::Sealed => sealed(dir, rows, batch),
        Who::Plain => plain(dir, rows, batch),
        Who::CipherTool => tool("sqlcipher", KEY, dir, rows, batch),
        Who::PlainTool => tool("sqlite3", "", dir, rows, batch),
    }
}

fn sealed(dir: &Path, rows: usize, batch: usize) -> (f64, u64) {
    let keyring = Arc::new(Keyring::create(&dir.join("key")).unwrap());
    let store = Store::open(StoreOptions::new(dir.join("store"), keyring)).unwrap();
    let batches = batches(rows, batch);
    let began = Instant::now();
    for batch in batches {
        // Each batch is durable before the next begins, as with the others.
        store
            .append_all(batch.into_iter().map(|(i, payload)| (Table::Events, at(i), payload)))
            .unwrap()
            .wait()
            .unwrap();
    }
    let took = began.elapsed();
    store.close().unwrap();
    (took.as_secs_f64(), size(&dir.join("store").join(DATABASE)))
}

fn batches(rows: usize, batch: usize) -> Vec<Vec<(usize, Vec<u8>)>> {
    let all: Vec<_> = (0..rows).map(|i| (i, payload(i))).collect();
    all.chunks(batch).map(<[_]>::to_vec).collect()
}

fn plain(dir: &Path, rows: usize, batch: usize) -> (f64, u64) {
    let path = dir.join("plain.db");
    let mut connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute_batch(PRAGMAS).unwrap();
    connection.execute_batch(SCHEMA).unwrap();
    let batches = batches(rows, batch);
    let began = Instant::now();
    for batch in batches {
        let transaction = connection.transaction().unwrap();
        {
            let mut insert =
                transaction.prepare_cached("INSERT INTO events(id, at, payload) VALUES(?1, ?2, ?3)").unwrap();
            for (i, payload) in batch {
                insert.execute((i64::try_from(i).unwrap() + 1, at(i).as_millisecond(), payload)).unwrap();
            }
        }
        transaction.commit().unwrap();
    }
    let took = began.elapsed();
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    (took.as_secs_f64(), size(&path))
}

fn tool(program: &str, key: &str, dir: &Path, rows: usize, batch: usize) -> (f64, u64) {
    let path = dir.join("tool.db");
    let mut prepare = format!("{key}\n{PRAGMAS}\n{SCHEMA}\n");
    run(program, &path, &prepare, &dir.join("prepare.sql"));
    prepare.clear();
    let mut script = format!("{key}\nPRAGMA synchronous=FULL; PRAGMA secure_delete=FAST; PRAGMA cache_size=-4096;\n");
    for batch in batches(rows, batch) {
        script.push_str("BEGIN IMMEDIATE;\n");
        for (i, payload) in batch {
            let payload = String::from_utf8(payload).unwrap();
            let _ = writeln!(
                script,
                "INSERT INTO events(id, at, payload) VALUES({}, {}, '{payload}');",
                i + 1,
                at(i).as_millisecond()
            );
        }
        script.push_str("COMMIT;\n");
    }
    let took = run(program, &path, &script, &dir.join("script.sql"));
    run(program, &path, &format!("{key}\nPRAGMA wal_checkpoint(TRUNCATE);\n"), &dir.join("end.sql"));
    (took.as_secs_f64(), size(&path))
}

fn run(program: &str, database: &Path, script: &str, file: &Path) -> Duration {
    picket_durable::write_atomic(file, script.as_bytes(), 0o600).unwrap();
    let began = Instant::now();
    let status = Command::new(program)
        .arg("-batch")
        .arg(database)
        .stdin(std::fs::File::open(file).unwrap())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{program}");
    began.elapsed()
}

fn size(path: &Path) -> u64 {
    path.metadata().unwrap().len()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let option = |name: &str| arguments.iter().position(|a| a == name).and_then(|at| arguments.get(at + 1)).cloned();
    let rows: usize = option("--rows").and_then(|text| text.parse().ok()).unwrap_or(20_000);
    let rounds: usize = option("--rounds").and_then(|text| text.parse().ok()).unwrap_or(5);
    let dir = option("--dir").map_or_else(std::env::temp_dir, PathBuf::from);
    let who: Vec<_> = Who::ALL.into_iter().filter(|who| who.is_there()).collect();
    println!("{rounds} interleaved rounds in {}; payloads of {} bytes; medians", dir.display(), payload(0).len());
    println!("{:>6} {:>14} {:>8} {:>12} {:>10} {:>9}", "batch", "who", "rows", "rows/s", "bytes/row", "of plain");
    let mut json = Vec::new();
    let only: Option<usize> = option("--batch").and_then(|text| text.parse().ok());
    for batch in BATCHES.into_iter().filter(|batch| only.is_none_or(|only| only == *batch)) {
        // One fsync a row is slow: fewer rows say the same.
        let rows = rows.min(batch * 2_000);
        let mut results: Vec<(Vec<f64>, u64)> = vec![Default::default(); who.len()];
        for round in 0..rounds {
            for turn in 0..who.len() {
                // Who begins changes, so that nobody always comes after the same one.
                let index = (turn + round) % who.len();
                let folder = tempfile::tempdir_in(&dir).unwrap();
                let (seconds, bytes) = measure(who[index], folder.path(), rows, batch);
                results[index].0.push(rows as f64 / seconds);
                results[index].1 = bytes;
            }
        }
        let medians: Vec<_> = results.iter().map(|(rates, _)| median(rates.clone())).collect();
        let plain = who.iter().position(|who| *who == Who::Plain).map_or(1.0, |at| medians[at]);
        for ((who, (rates, bytes)), rate) in who.iter().zip(&results).zip(&medians) {
            let per_row = *bytes as f64 / rows as f64;
            let share = rate / plain;
            println!("{batch:>6} {:>14} {rows:>8} {rate:>12.0} {per_row:>10.1} {share:>9.2}", who.name());
            json.push(serde_json::json!({
                "batch": batch, "who": who.name(), "rows": rows, "rows_per_second": rate, "rounds": rates,
                "bytes_per_row": per_row, "of_plain": share,
            }));
        }
    }
    println!("{}", serde_json::Value::Array(json));
}
