//! A throw-away machine with a real systemd (`tests/lab/machine.sh`), a release server on its loopback, and a vendor.

use crate::builds::{Build, Fault, build, workspace};
use crate::prefix::{Ran, get};
use crate::server::ReleaseServer;
use crate::vendor::Vendor;
use crate::wait_until;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long one command on a machine may take; the longest, an update, takes some ten seconds.
const SCRIPT_LIMIT: Duration = Duration::from_secs(180);

/// The health server's port: the default.
const HEALTH_PORT: u16 = 9091;

/// A machine. It ends with the value.
pub struct Machine {
    name: String,
    /// Who publishes releases.
    pub vendor: Vendor,
    /// Who offers them to the machine.
    pub server: ReleaseServer,
    /// Last: the server lives in the container's network.
    _container: Container,
}

/// What the script made; ended with the value.
struct Container(String);

impl Machine {
    /// A new machine, booted, with a configuration that follows a new vendor's releases. `keys` are more keys of
    /// `update`, each on a line of its own and indented by two spaces.
    ///
    /// # Panics
    /// When the caller is not root, or the machine cannot be made.
    pub fn boot_new(test: &str, keys: &str) -> Self {
        Self::boot_with(test, keys, &build("1.0.0", Fault::None))
    }

    /// The same with another first release.
    pub fn boot_with(test: &str, keys: &str, first: &Build) -> Self {
        assert!(rustix::process::geteuid().is_root(), "a machine needs root: sudo -E cargo test --test lab");
        let name = format!("{test}-{}", std::process::id());
        let vendor = Vendor::new();
        vendor.release(first);
        let container = Container(name.clone());
        script(&["up", &name]).expect(0);
        let server = ReleaseServer::start_in(&namespace(&name), &vendor.tree());
        let machine = Self { name, vendor, server, _container: container };
        // Soak and deadlines are short; everything else is as it would be.
        machine.put(
            format!(
                "update:\n  releases: {}\n  soak: 2s\n  start_deadline: 8s\n  network_patience: 3s\n  \
                 disk_reserve: 16MiB\n{keys}",
                machine.server.url()
            )
            .as_bytes(),
            "/etc/picket/config.yaml",
            0o640,
        );
        machine.put(&std::fs::read(machine.vendor.root_file()).unwrap(), "/root/root.json", 0o600);
        machine
    }

    /// The same, with version 1.0.0 installed and healthy.
    pub fn installed(test: &str, keys: &str) -> Self {
        let machine = Self::boot_new(test, keys);
        machine.install(&build("1.0.0", Fault::None)).expect(0);
        machine.assert_on("1.0.0");
        machine
    }

    /// Copies a build in and lets it install itself.
    pub fn install(&self, build: &Build) -> Ran {
        self.put(&std::fs::read(&build.exe).unwrap(), "/root/picket", 0o755);
        self.run(&["/root/picket", "install", "--root-keys", "/root/root.json"])
    }

    /// Publishes a build.
    pub fn release(&self, version: &str, fault: Fault) {
        self.vendor.release(&build(version, fault));
    }

    /// Runs a command as root inside.
    pub fn run(&self, words: &[&str]) -> Ran {
        script(&[&["exec", &self.name], words].concat())
    }

    /// Starts a command inside without waiting for it; its output is dropped.
    pub fn start(&self, words: &[&str]) -> std::process::Child {
        let mut command = script_command(&[&["exec", &self.name], words].concat());
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// What a shell command that succeeds prints, without the last newline.
    pub fn sh(&self, text: &str) -> String {
        self.run(&["sh", "-c", text]).expect(0).stdout.trim_end().to_owned()
    }

    /// Runs the installed executable.
    pub fn picket(&self, words: &[&str]) -> Ran {
        self.run(&[&["picket"], words].concat())
    }

    /// Writes a file inside, and has it on the disk.
    pub fn put(&self, bytes: &[u8], path: &str, mode: u32) {
        let text = format!("mkdir -p \"$(dirname {path})\" && cat > {path} && chmod {mode:o} {path} && sync {path}");
        let mut child = script_command(&["exec", &self.name, "sh", "-c", &text]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        assert!(child.wait().unwrap().success(), "{path} could not be written");
    }

    /// An orderly reboot.
    pub fn reboot(&self) {
        script(&["reboot", &self.name]).expect(0);
    }

    /// A power cut: nothing that was not synced survives. The machine is off then.
    pub fn cut_power(&self) {
        script(&["cut", &self.name]).expect(0);
    }

    /// Boots it after a power cut.
    pub fn boot(&self) {
        script(&["up", &self.name]).expect(0);
    }

    /// Its network namespace.
    pub fn namespace(&self) -> PathBuf {
        namespace(&self.name)
    }

    /// Its files, sockets among them, as they are now; another folder after a reboot.
    pub fn root(&self) -> PathBuf {
        let pid = script(&["pid", &self.name]).expect(0).stdout;
        Path::new("/proc").join(pid.trim()).join("root")
    }

    /// An answer of the agent's health server: status and body.
    pub fn health(&self, path: &'static str) -> Option<(u16, Value)> {
        let (status, body) = inside(&self.namespace(), move || get(HEALTH_PORT, path, ""))?;
        Some((status, serde_json::from_str(&body).ok()?))
    }

    /// The version that answers, if one does.
    pub fn running_version(&self) -> Option<String> {
        Some(self.health("/livez")?.1["version"].as_str()?.to_owned())
    }

    /// Asks `/livez` about every millisecond until told to stop: when each answer came, and from which version.
    pub fn watch_versions(&self, done: &AtomicBool) -> Vec<(Instant, String)> {
        let version = |body: &str| Some(serde_json::from_str::<Value>(body).ok()?["version"].as_str()?.to_owned());
        inside(&self.namespace(), || {
            let mut answers = Vec::new();
            while !done.load(Ordering::Relaxed) {
                if let Some(version) = get(HEALTH_PORT, "/livez", "").and_then(|(_, body)| version(&body)) {
                    answers.push((Instant::now(), version));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            answers
        })
    }

    /// The version behind the `current` link.
    pub fn current(&self) -> String {
        self.sh("basename \"$(readlink /opt/picket/current)\"")
    }

    /// The version behind the `previous` link.
    pub fn previous(&self) -> String {
        self.sh("basename \"$(readlink /opt/picket/previous)\"")
    }

    /// `update status --json`.
    pub fn status(&self) -> Value {
        self.picket(&["update", "status", "--json"]).expect(0).json()
    }

    /// What a unit's property is.
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.sh(&format!("systemctl show --value --property={name} {unit}"))
    }

    /// How often the agent was started since the machine was made.
    pub fn starts(&self) -> usize {
        let journal = "journalctl --no-pager --output=cat --unit=picket-agent | grep -c 'the agent serves'";
        self.run(&["sh", "-c", journal]).stdout.trim().parse().unwrap()
    }

    /// The daily check, as the timer starts it: returns when it is over.
    pub fn daily_check(&self) {
        self.sh("systemctl start picket-update.service");
    }

    /// Waits until `version` answers and is the proven one, with nothing under way.
    ///
    /// # Panics
    /// When it does not, or the status says otherwise.
    pub fn assert_on(&self, version: &str) {
        wait_until(&format!("version {version} to answer, proven"), || {
            // The switch is made a moment before the update is settled.
            self.running_version().as_deref() == Some(version)
                && self.current() == version
                && self.status()["running"].is_null()
        });
        let status = self.status();
        assert_eq!((&status["current"], &status["running"]), (&version.into(), &Value::Null), "{status}");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.run(&["sh", "-c", "journalctl --no-pager | grep picket | tail -n 60"]);
            eprintln!("--- journal of the failed test's machine ---\n{}", log.stdout);
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        script(&["down", &self.0]);
    }
}

fn namespace(name: &str) -> PathBuf {
    Path::new("/run/netns").join(format!("picket-lab-{name}"))
}

fn script_command(words: &[&str]) -> Command {
    // Whatever hangs inside must not hang the test.
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", &SCRIPT_LIMIT.as_secs().to_string()]);
    command.arg(workspace().join("tests/lab/machine.sh")).args(words).stdin(Stdio::null());
    command
}

fn script(words: &[&str]) -> Ran {
    script_command(words).output().unwrap().into()
}

/// Does something in another network namespace. Sockets made there stay there.
pub fn inside<T: Send>(namespace: &Path, act: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(namespace).unwrap();
    let entered = move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        act()
    };
    // The thread ends there: nothing else of this process changes its network.
    std::thread::scope(|scope| scope.spawn(entered).join().unwrap())
}
