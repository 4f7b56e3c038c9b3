//! A throw-away PostgreSQL of the machine's own packages: on loopback and a socket, gone with the value or the process.

use crate::wait_until;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

/// Where Debian's packages put the programs of each major version.
const VERSIONS: &str = "/usr/lib/postgresql";
/// Runs a server until its standard input ends, which it does when the process that holds the other end is gone, however
/// it went; then ends the server at once. Who goes in good order says so and keeps the folder; else nobody is left who
/// would remove it.
const WATCHDOG: &str = r#"
folder=$1; shift
"$@" & server=$!
read -r word
kill -QUIT "$server" 2>/dev/null
wait "$server"
if [ "$word" != keep ]; then rm -rf "$folder"; fi
"#;

/// A server. Its superuser is `postgres`, without a password.
pub struct Postgres {
    programs: PathBuf,
    folder: tempfile::TempDir,
    port: u16,
    fsync: bool,
    running: Option<Running>,
}

struct Running {
    watchdog: Child,
    /// Closed when the value goes.
    lifeline: ChildStdin,
}

impl Running {
    /// Ends the server at once, and keeps its files.
    fn end(mut self) {
        let _ = self.lifeline.write_all(b"keep\n");
        drop(self.lifeline);
        let _ = self.watchdog.wait();
    }
}

/// The user that the server runs as: it refuses to be root.
struct Account {
    user: u32,
    group: u32,
}

fn account() -> Option<Account> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let accounts = fs::read_to_string("/etc/passwd").unwrap();
    let line = accounts.lines().find(|line| line.starts_with("postgres:"));
    let fields: Vec<&str> = line.expect("there is no user postgres: scripts/setup test").split(':').collect();
    Some(Account { user: fields[2].parse().unwrap(), group: fields[3].parse().unwrap() })
}

fn as_account(command: &mut Command) {
    command.current_dir("/").env("LC_ALL", "C.UTF-8");
    if let Some(account) = account() {
        command.uid(account.user).gid(account.group);
    }
}

fn programs() -> PathBuf {
    let mut versions: Vec<PathBuf> = fs::read_dir(VERSIONS)
        .expect("PostgreSQL is not installed: scripts/setup test")
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    versions.sort();
    versions.pop().expect("PostgreSQL is not installed: scripts/setup test")
}

impl Postgres {
    /// A new server, running. Without `fsync` it is faster, and what a power cut would leave of it is nobody's business;
    /// a killed process loses nothing either way.
    ///
    /// # Panics
    /// When PostgreSQL is not installed, or does not start.
    pub fn start_new(fsync: bool) -> Self {
        let folder = tempfile::Builder::new().prefix("picket-pg-").tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["data", "socket"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        if let Some(account) = account() {
            for path in [folder.path().to_owned(), folder.path().join("data"), folder.path().join("socket")] {
                chown(path, Some(account.user), Some(account.group)).unwrap();
            }
        }
        // Free now, and hardly taken by another before the server has it.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server = Self { programs: programs(), folder, port, fsync, running: None };
        let made = server
            .command("initdb")
            .args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"])
            .arg("--pgdata")
            .arg(server.data())
            .output()
            .unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        server.start();
        server
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The folder of its socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// Its port, on loopback and in the socket's name.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of one of its databases, over TCP on loopback.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        as_account(&mut command);
        command
    }

    /// Starts it (again), and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub fn start(&mut self) {
        assert!(self.running.is_none(), "it runs already");
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", WATCHDOG, "sh"])
            .arg(self.folder.path())
            .arg(self.programs.join("postgres"))
            .arg("-D")
            .arg(self.data());
        let settings = [
            format!("port={}", self.port),
            "listen_addresses=127.0.0.1".into(),
            format!("unix_socket_directories={}", self.socket().display()),
            format!("fsync={}", if self.fsync { "on" } else { "off" }),
            "max_connections=200".into(),
            "logging_collector=off".into(),
        ];
        command.args(settings.iter().flat_map(|setting| ["-c", setting.as_str()]));
        as_account(&mut command);
        let mut watchdog = command.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let lifeline = watchdog.stdin.take().unwrap();
        self.running = Some(Running { watchdog, lifeline });
        wait_until("PostgreSQL to answer", || self.answers());
    }

    fn answers(&self) -> bool {
        let mut command = self.command("pg_isready");
        command.args(["--quiet", "--host=127.0.0.1"]).arg(format!("--port={}", self.port));
        command.status().unwrap().success()
    }

    /// Its process, from the file that it writes about itself.
    fn pid(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.data().join("postmaster.pid")).ok()?;
        Pid::from_raw(text.lines().next()?.parse().ok()?)
    }

    /// Kills it as a crash would (SIGKILL), and waits until it and its helpers are gone.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self) {
        let helpers = self.pid().map(|pid| (pid, children(pid))).expect("it does not run");
        kill_process(helpers.0, Signal::KILL).unwrap();
        self.running.take().expect("it does not run").end();
        // They end by themselves once they see that it is gone; until then a new one does not start.
        wait_until("PostgreSQL's helpers to end", || helpers.1.iter().all(|pid| test_kill_process(*pid).is_err()));
    }

    /// Makes an empty database.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn create_database(&self, name: &str) {
        let mut command = self.command("createdb");
        command.args(["--host=127.0.0.1", "--username=postgres"]).arg(format!("--port={}", self.port)).arg(name);
        let made = command.output().unwrap();
        assert!(made.status.success(), "createdb: {}", String::from_utf8_lossy(&made.stderr));
    }

    /// Runs SQL as the superuser, and gives what it prints.
    ///
    /// # Panics
    /// When it fails.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let mut command = self.command("psql");
        command.args(["--host=127.0.0.1", "--username=postgres", "--no-psqlrc", "--tuples-only", "--no-align"]);
        command.args(["--set=ON_ERROR_STOP=1", "--command", sql]).arg(format!("--port={}", self.port)).arg(database);
        let ran = command.output().unwrap();
        assert!(ran.status.success(), "{sql}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap().trim().to_owned()
    }

    /// The server's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

/// The processes that `parent` started.
fn children(parent: Pid) -> Vec<Pid> {
    let parent_of = |status: &Path| -> Option<i32> {
        let text = fs::read_to_string(status).ok()?;
        text.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw)?;
            (parent_of(&entry.path().join("status"))? == parent.as_raw_nonzero().get()).then_some(pid)
        })
        .collect()
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.end();
        }
    }
}
