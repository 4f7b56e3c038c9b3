//! A throw-away NATS server with JetStream: started, killed and started again on the same store.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::wait_until;

/// A running `nats-server`; it ends with the value, and its store with it.
///
/// The program is the one of the path, or the one that `scripts/setup test` put into `target/tools/bin`. Where it can (since
/// 2.10), it syncs every write before it acknowledges it.
pub struct NatsServer {
    folder: tempfile::TempDir,
    program: PathBuf,
    port: u16,
    monitoring: u16,
    child: Option<Child>,
    syncs: bool,
}

impl NatsServer {
    /// Starts a server that asks nobody who they are.
    pub fn start() -> Self {
        Self::start_with(|_| String::new())
    }

    /// Starts a server with more in its configuration; `more` gets the server's folder, to put files into.
    pub fn start_with(more: impl FnOnce(&Path) -> String) -> Self {
        let program = program();
        let version = Command::new(&program).arg("--version").output().unwrap().stdout;
        let version = String::from_utf8(version).unwrap();
        let numbers: Vec<u32> =
            version.trim().rsplit('v').next().unwrap().split('.').map(|n| n.parse().unwrap_or(0)).collect();
        let syncs = (numbers[0], numbers[1]) >= (2, 10);
        Self::launch(program, syncs, syncs, more)
    }

    /// Starts a server that acknowledges writes before it syncs them, as all do by default.
    pub fn start_lazy() -> Self {
        let strict = Self::start_with(|_| String::new());
        let (program, syncs) = (strict.program.clone(), strict.syncs);
        drop(strict);
        Self::launch(program, syncs, false, |_| String::new())
    }

    fn launch(program: PathBuf, syncs: bool, always: bool, more: impl FnOnce(&Path) -> String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (port, monitoring) = (free_port(), free_port());
        let sync = if always { "sync_interval: always" } else { "" };
        let more = more(folder.path());
        let store = folder.path().join("store");
        let configuration = format!(
            "server_name: test\nlisten: 127.0.0.1:{port}\nhttp: 127.0.0.1:{monitoring}\n\
             jetstream {{ store_dir: \"{}\", max_memory_store: 64MB, max_file_store: 1GB, {sync} }}\n{more}\n",
            store.display()
        );
        fs::write(folder.path().join("nats.conf"), configuration).unwrap();
        let mut server = Self { folder, program, port, monitoring, child: None, syncs };
        server.start_again();
        server
    }

    /// Starts it again, on what it left.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let log = File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let child = Command::new(&self.program)
            .arg("--config")
            .arg(self.folder.path().join("nats.conf"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        wait_until(&format!("nats-server to be ready; its log: {}", self.log()), || self.is_ready());
    }

    /// Kills it as a power cut would: SIGKILL, no word of farewell.
    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Its address for clients.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Its address for monitoring.
    pub fn monitoring(&self) -> String {
        format!("http://127.0.0.1:{}", self.monitoring)
    }

    /// Whether it can sync every write: it does, unless it was started lazy.
    pub fn can_sync(&self) -> bool {
        self.syncs
    }

    /// What it said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// `/healthz` says so when JetStream has read its store.
    fn is_ready(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.monitoring)) else { return false };
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        if stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").is_err() {
            return false;
        }
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer.contains("200 OK") && TcpStream::connect(("127.0.0.1", self.port)).is_ok()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/bin");
    std::env::split_paths(&path)
        .chain([tools])
        .map(|folder| folder.join("nats-server"))
        .find(|program| program.is_file())
        .expect("there is no nats-server: run `scripts/setup test`")
}
