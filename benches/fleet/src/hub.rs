//! A hub as a process: the built `picket hub serve`, with keys, configuration and folders of its own.

use crate::event::RULES;
use picket_pki::EnrolmentToken;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// How long a hub may take to serve.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How a hub is made.
pub struct HubPlan<'a> {
    /// The program.
    pub exe: &'a Path,
    /// An empty folder for all of it.
    pub folder: &'a Path,
    /// The database's address; `None` is SQLite in the hub's own folder.
    pub database: Option<String>,
    /// How often agents beat.
    pub heartbeat: &'a str,
    /// More lines of the configuration.
    pub more: &'a str,
}

/// A hub. Its process ends with the value.
pub struct Hub {
    exe: PathBuf,
    folder: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Hub {
    /// Makes keys, configuration and administrator, and starts nothing.
    pub fn make(plan: &HubPlan<'_>) -> Self {
        let etc = plan.folder.join("etc/picket");
        fs::create_dir_all(etc.join("rules.d")).unwrap();
        let (port, api, health) = (free_port(), free_port(), free_port());
        let database = plan.database.as_ref().map(|url| format!("database: \"{url}\"\n")).unwrap_or_default();
        let text = format!(
            "names: [127.0.0.1]\nlisten: {{agents: \"127.0.0.1:{port}\", api: \"127.0.0.1:{api}\", \
             health: \"127.0.0.1:{health}\"}}\nheartbeat: {}\n{database}{}",
            plan.heartbeat, plan.more
        );
        fs::write(etc.join("hub.yaml"), text).unwrap();
        fs::write(plan.folder.join("password"), "correct horse battery\n").unwrap();
        for (name, rule) in RULES {
            fs::write(etc.join("rules.d").join(name), rule).unwrap();
        }
        let hub = Self { exe: plan.exe.to_owned(), folder: plan.folder.to_owned(), port, child: None };
        let password = plan.folder.join("password").display().to_string();
        let made = hub.picket(&["hub", "init", "--password-file", &password]);
        assert!(made.status.success(), "hub init: {}", String::from_utf8_lossy(&made.stderr));
        hub
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.exe);
        command.args(arguments).env("PICKET_PREFIX", &self.folder).env("NO_COLOR", "1").stdin(Stdio::null());
        command
    }

    /// Runs a command of the same installation.
    pub fn picket(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Starts it; it need not serve yet.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "the hub runs");
        let log = File::options().create(true).append(true).open(self.folder.join("hub.log")).unwrap();
        let out = log.try_clone().unwrap();
        self.child = Some(self.command(&["hub", "serve"]).stdout(out).stderr(log).spawn().unwrap());
    }

    /// Starts it and waits until agents are heard.
    pub fn start(&mut self) {
        self.spawn();
        let began = Instant::now();
        while !self.listens() {
            assert!(self.ended().is_none(), "the hub ended; its log:\n{}", self.log_tail(20));
            assert!(began.elapsed() < START_LIMIT, "the hub does not serve; its log:\n{}", self.log_tail(20));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether agents are heard.
    pub fn listens(&self) -> bool {
        let address: SocketAddr = ([127, 0, 0, 1], self.port).into();
        TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok()
    }

    /// How the process ended, if it did by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().unwrap()?;
        self.child = None;
        Some(status)
    }

    /// Kills it as a crash would (SIGKILL).
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            child.wait().unwrap();
        }
    }

    /// Tells it to stop, and waits for it.
    pub fn stop(&mut self) -> Option<ExitStatus> {
        let mut child = self.child.take()?;
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        Some(child.wait().unwrap())
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// A token with which so many machines may enrol.
    pub fn token(&self, uses: usize) -> EnrolmentToken {
        let file = self.folder.join("token");
        let (path, uses) = (file.display().to_string(), uses.to_string());
        let create = ["hub", "token", "create", "--ttl", "24h", "--max-uses", &uses, "--tag", "load", "--out", &path];
        let made = self.picket(&create);
        assert!(made.status.success(), "token create: {}", String::from_utf8_lossy(&made.stderr));
        EnrolmentToken::parse(fs::read_to_string(file).unwrap().trim()).unwrap()
    }

    /// Where agents find it.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Its SQLite database.
    pub fn database(&self) -> PathBuf {
        self.folder.join("var/lib/picket-hub/hub.db")
    }

    /// Everything of it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The last lines that it logged.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read_to_string(self.folder.join("hub.log")).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that is free now, and hardly taken by another before it is used.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
