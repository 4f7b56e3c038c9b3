//! A throw-away installation under the supervisor, run by the real binary.

use crate::builds::Build;
use crate::wait_until;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What a command printed and said.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Checks the exit code.
    ///
    /// # Panics
    /// When it is another, with everything the command printed.
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Standard output as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// What a command did, and what it took.
#[derive(Debug)]
pub struct Watched {
    /// What it printed and said.
    pub ran: Ran,
    /// The most memory that it, or another process of the installation meanwhile, ever had (`VmHWM`), in bytes.
    pub peak_bytes: u64,
    /// How long it took.
    pub took: Duration,
}

/// A throw-away installation. Its processes end with the value.
pub struct Prefix {
    dir: TempDir,
    /// The health server's port.
    pub health_port: u16,
    /// The metrics server's port.
    pub metrics_port: u16,
    environment: Vec<(String, String)>,
}

impl Prefix {
    /// An empty prefix whose configuration follows `releases` and is quick: a trial takes a second.
    pub fn new(releases: &str) -> Self {
        Self::with_config(&format!("update:\n  releases: {releases}\n"))
    }

    /// An empty prefix with more configuration; keys of `update` may follow on it.
    pub fn with_config(config: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("pk").tempdir().unwrap();
        let (health_port, metrics_port) = (free_port(), free_port());
        let etc = dir.path().join("etc/picket");
        fs::create_dir_all(&etc).unwrap();
        let text = format!(
            "health: {{listen: \"127.0.0.1:{health_port}\"}}\nmetrics: {{listen: \"127.0.0.1:{metrics_port}\"}}\n\
             {config}  soak: 700ms\n  start_deadline: 4s\n  network_patience: 2s\n  disk_reserve: 1MiB\n  stall_limit: 2s\n"
        );
        fs::write(etc.join("config.yaml"), text).unwrap();
        Self { dir, health_port, metrics_port, environment: Vec::new() }
    }

    /// Sets a variable for every command from now on, and for the supervisor started by one.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Takes a variable back.
    pub fn unset(&mut self, name: &str) {
        self.environment.retain(|(known, _)| known != name);
    }

    /// A path below the prefix.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Runs `exe` on this prefix.
    pub fn run_with(&self, exe: &Path, arguments: &[&str]) -> Ran {
        let mut command = Command::new(exe);
        command.args(arguments).env_remove("NO_COLOR").env("PICKET_PREFIX", self.dir.path()).stdin(Stdio::null());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.output().unwrap().into()
    }

    /// Runs the installed executable on this prefix.
    pub fn picket(&self, arguments: &[&str]) -> Ran {
        self.run_with(&self.path("usr/local/bin/picket"), arguments)
    }

    /// The same, and looks at what it takes.
    pub fn watched(&self, arguments: &[&str]) -> Watched {
        let began = Instant::now();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let mut peak = 0;
                while !done.load(Ordering::Relaxed) {
                    peak = self.processes().into_iter().map(peak_of).fold(peak, u64::max);
                    std::thread::sleep(Duration::from_millis(5));
                }
                peak
            });
            let ran = self.picket(arguments);
            let took = began.elapsed();
            done.store(true, Ordering::Relaxed);
            Watched { ran, peak_bytes: watch.join().unwrap(), took }
        })
    }

    /// Installs `build` with `root` and starts it.
    pub fn install(&self, build: &Build, root: &Path) {
        let root = root.to_str().unwrap();
        self.run_with(&build.exe, &["install", "--root-keys", root]).expect(0);
    }

    /// An answer of the agent's health server: status and JSON body; `None` when it does not answer.
    pub fn health(&self, path: &str) -> Option<(u16, Value)> {
        let (status, body) = self.get(self.health_port, path, "")?;
        Some((status, serde_json::from_str(&body).ok()?))
    }

    /// An answer of a server of the agent: status and body.
    pub fn get(&self, port: u16, path: &str, headers: &str) -> Option<(u16, String)> {
        get(port, path, headers)
    }

    /// The version that answers, if one does.
    pub fn running_version(&self) -> Option<String> {
        Some(self.health("/livez")?.1["version"].as_str()?.to_owned())
    }

    /// The version behind the `current` link.
    pub fn current(&self) -> String {
        link_version(&self.path("opt/picket/current"))
    }

    /// The version behind the `previous` link.
    pub fn previous(&self) -> String {
        link_version(&self.path("opt/picket/previous"))
    }

    /// `update status --json`.
    pub fn status(&self) -> Value {
        self.picket(&["update", "status", "--json"]).expect(0).json()
    }

    /// The supervisor's process.
    pub fn supervisor(&self) -> Option<i32> {
        fs::read_to_string(self.path("run/picket/supervisor.lock")).ok()?.trim().parse().ok()
    }

    /// Ends everything of the installation at once, as a power cut would: no signal is handled, nothing is told.
    pub fn cut_power(&self) {
        for _ in 0..50 {
            let processes = self.processes();
            if processes.is_empty() {
                return;
            }
            // The supervisor first, so that it starts nothing new.
            let supervisor = self.supervisor();
            let (first, rest): (Vec<i32>, Vec<i32>) = processes.into_iter().partition(|pid| Some(*pid) == supervisor);
            for pid in first.into_iter().chain(rest) {
                let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("something of {} cannot be killed: {:?}", self.dir.path().display(), self.processes());
    }

    /// Starts the supervisor again, as a boot would, and waits until the agent answers.
    pub fn boot(&self) {
        self.picket(&["service", "start"]).expect(0);
        wait_until("the agent to answer after the boot", || self.running_version().is_some());
    }

    /// The processes that run an executable of this prefix, zombies left out.
    pub fn processes(&self) -> Vec<i32> {
        let root = self.dir.path().canonicalize().unwrap();
        let all = fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.starts_with(&root))).collect()
    }

    /// What the supervisor, the agent and the updater logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("var/log/picket/picket.log")).unwrap_or_default()
    }

    /// Every file, folder and link below the prefix, sorted.
    pub fn listing(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut folders = vec![self.dir.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                names.push(entry.path().strip_prefix(self.dir.path()).unwrap().display().to_string());
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                }
            }
        }
        names.sort();
        names
    }
}

impl Drop for Prefix {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the failed test's installation ---\n{}", self.log());
        }
        self.cut_power();
    }
}

/// The most memory a process ever had, in bytes; 0 when it is gone.
fn peak_of(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.unwrap_or(0_u64) << 10
}

fn link_version(link: &Path) -> String {
    fs::read_link(link).ok().and_then(|target| Some(target.file_name()?.to_str()?.to_owned())).unwrap_or_default()
}

/// A GET over loopback: status and body.
pub(crate) fn get(port: u16, path: &str, headers: &str) -> Option<(u16, String)> {
    use std::io::Write as _;
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(5))).ok()?;
    let host = if headers.to_ascii_lowercase().contains("host:") { "" } else { "host: 127.0.0.1\r\n" };
    write!(stream, "GET {path} HTTP/1.1\r\n{host}{headers}connection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
}

/// A port that nobody listens on now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
