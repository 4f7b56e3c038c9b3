//! Which stores tests of a hub use: SQLite and no bus, or PostgreSQL and NATS, where the test program runs itself again.

use crate::postgres::Postgres;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Set in a test program that uses servers.
const VARIABLE: &str = "PICKET_TEST_STORES";

/// Whether this test program uses PostgreSQL and NATS.
pub fn are_servers() -> bool {
    std::env::var_os(VARIABLE).is_some_and(|value| value == "servers")
}

/// The URL of a new database, on a server that all tests of this program share; it ends with the program.
pub fn database() -> String {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let server = SERVER.get_or_init(|| Postgres::start_new(false));
    let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    server.create_database(&name);
    server.url(&name)
}

/// Runs all tests of this program again, with servers.
pub fn run_again() -> Output {
    let program = std::env::current_exe().unwrap();
    Command::new(program).env(VARIABLE, "servers").arg("--test-threads=2").output().unwrap()
}
