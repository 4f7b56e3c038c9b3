//! Files and servers that are not what they should be.

use crate::bench::{Bench, T, batch};
use picket_hub_db::{DbError, Options, open};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::PathBuf;

fn file(bench: &Bench) -> PathBuf {
    bench.location().strip_prefix("sqlite:").unwrap().into()
}

async fn refusal(location: &str) -> DbError {
    open(location, &Options::default()).await.map(drop).unwrap_err()
}

#[tokio::test]
async fn a_torn_file_is_told_with_what_to_do_and_is_no_panic() {
    let bench = Bench::sqlite().await;
    bench.agent(1).await;
    bench.db.ingest(T, &[batch(1, 100, 1..=500)]).await.unwrap();
    bench.db.close().await;
    let file = std::fs::OpenOptions::new().write(true).open(file(&bench)).unwrap();
    let pages = file.metadata().unwrap().len() / 4096;
    for page in 1..pages {
        file.write_all_at(&[0xA5; 2048], page * 4096).unwrap();
    }
    drop(file);
    let told = match open(&bench.location(), &Options::default()).await {
        Err(error) => error,
        Ok(db) => {
            let written = db.ingest(T, &[batch(1, 100, 501..=600)]).await;
            let read = db.agent(T, crate::bench::id(1)).await;
            written.map(drop).and(read.map(drop)).unwrap_err()
        }
    };
    assert!(matches!(told, DbError::Corrupt { .. }), "{told:?}");
    assert!(told.to_string().contains("restore"), "{told}");
}

#[tokio::test]
async fn a_file_that_is_no_database_and_one_of_somebody_else_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("notes.txt");
    std::fs::write(&text, "these are my notes\n".repeat(500)).unwrap();
    let told = refusal(text.to_str().unwrap()).await;
    assert!(matches!(told, DbError::Corrupt { .. }), "{told:?}");
    assert_eq!(std::fs::read_to_string(&text).unwrap(), "these are my notes\n".repeat(500));
    let foreign = folder.path().join("browser.sqlite");
    rusqlite::Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE places(url TEXT)").unwrap();
    let told = refusal(foreign.to_str().unwrap()).await;
    assert!(matches!(told, DbError::Invalid { .. }) && told.to_string().contains("not a hub's database"), "{told:?}");
    std::os::unix::fs::symlink(&text, folder.path().join("link.db")).unwrap();
    let told = refusal(folder.path().join("link.db").to_str().unwrap()).await;
    assert!(matches!(told, DbError::Io { .. }), "{told:?}");
}

#[tokio::test]
async fn a_database_of_a_later_version_is_refused_with_both_versions() {
    let bench = Bench::sqlite().await;
    bench.db.close().await;
    let later = "INSERT INTO refinery_schema_history (version, name, applied_on, checksum) \
                 VALUES (999, 'later', '2030-01-01T00:00:00Z', '1')";
    rusqlite::Connection::open(file(&bench)).unwrap().execute_batch(later).unwrap();
    let told = refusal(&bench.location()).await;
    assert!(matches!(told, DbError::Newer { found: 999, .. }), "{told:?}");
    assert!(told.to_string().contains("999"));
}

#[tokio::test]
async fn a_full_disk_is_told_and_what_was_there_stays_readable() {
    let bench = Bench::sqlite().await;
    bench.agent(1).await;
    bench.db.ingest(T, &[batch(1, 100, 1..=10)]).await.unwrap();
    bench.db.close().await;
    // The limit is the file's own: a file system that is full reaches SQLite's users as the same error.
    let limited = Options { max_bytes: Some(600 << 10), ..Options::default() };
    let db = open(&bench.location(), &limited).await.unwrap();
    let mut told = None;
    for call in 0..200 {
        let first = 11 + call * 100;
        if let Err(error) = db.ingest(T, &[batch(1, 100, first..first + 100)]).await {
            told = Some(error);
            break;
        }
    }
    let told = told.unwrap();
    assert!(matches!(told, DbError::Full { .. }), "{told:?}");
    assert!(told.to_string().contains("free some"), "{told}");
    let book = db.agent_book(T, crate::bench::id(1)).await.unwrap().unwrap();
    let tail = db.events_after(T, picket_hub_db::Position::START, &[], 5000).await.unwrap();
    assert_eq!(book.totals.records, tail.events.len() as u64, "all of a call or nothing");
    assert!(db.ping().await.is_ok());
}

#[tokio::test]
async fn the_file_is_its_owners_alone() {
    let bench = Bench::sqlite().await;
    assert_eq!(file(&bench).metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn nothing_that_is_told_holds_a_password() {
    for url in [
        "postgres://ada:hunter2@127.0.0.1:1/db",
        "postgres://ada:hunter2@127.0.0.1:1/db?sslmode=disable",
        "postgres://ada:hun@ter2@127.0.0.1:99999/db",
        "postgres://ada:hunter2@[::1",
        "postgres://127.0.0.1:1/db?password=hunter2&user=ada&sslmode=disable",
        "postgres://ada:hun?ter2@127.0.0.1:1/db",
        "mysql://ada:hunter2@127.0.0.1/db",
    ] {
        let error = refusal(url).await;
        let told = format!("{error} {error:?}");
        assert!(!told.contains("hunter2") && !told.contains("ter2"), "{told}");
    }
}
