//! Where points are tried: a release world, and an installation that is put back as it was before each of them.

use crate::call::{Point, WATCHED};
use crate::stored;
use picket_testkit::{Build, Fault, Prefix, Ran, ReleaseServer, Vendor, build, this_target};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// How long a traced command may take: every limit in it is some seconds.
const LIMIT: Duration = Duration::from_secs(90);

/// So many bytes of each write are in a recorded trace: all of what is no executable and no archive.
const RECORDED: usize = 24 << 10;

/// One vendor with 1.0.0, a 2.0.0 and 3.0.0, and the server that offers them.
pub struct World {
    vendor: Vendor,
    server: ReleaseServer,
    builds: BTreeMap<String, (Build, String)>,
    _folder: tempfile::TempDir,
}

impl World {
    /// A world whose 2.0.0 crashes at its start, or does not. Its builds are made of the executable `base`, or the test
    /// builds.
    pub fn new(crashes: bool, base: Option<&Path>) -> Self {
        let (vendor, folder) = (Vendor::new(), tempfile::tempdir().unwrap());
        let mut builds = BTreeMap::new();
        for (version, crashes) in [("1.0.0", false), ("2.0.0", crashes), ("3.0.0", false)] {
            let fault = if crashes { Fault::Crash } else { Fault::None };
            let exe = match base {
                Some(base) => {
                    let exe = folder.path().join(version);
                    fs::write(&exe, Build::stamped(base, version, fault)).unwrap();
                    fs::set_permissions(&exe, fs::Permissions::from_mode(0o755)).unwrap();
                    exe
                }
                None => build(version, fault).exe,
            };
            let archive = folder.path().join(format!("{version}.tar.xz"));
            stored::pack(&exe, &archive);
            let build = Build { version: version.to_owned(), exe, archive, target: this_target() };
            vendor.release(&build);
            let sha256 = sha256_of(&build.exe);
            builds.insert(version.to_owned(), (build, sha256));
        }
        let server = ReleaseServer::start(&vendor.tree());
        Self { vendor, server, builds, _folder: folder }
    }

    /// One of its builds.
    pub fn build(&self, version: &str) -> &Build {
        &self.builds[version].0
    }

    /// The hash of a build's executable.
    pub fn sha256(&self, version: &str) -> &str {
        &self.builds[version].1
    }

    /// The root that installations trust.
    pub fn root_file(&self) -> PathBuf {
        self.vendor.root_file()
    }
}

/// The hash of a file, in hex.
pub fn sha256_of(path: &Path) -> String {
    let hash = Sha256::digest(fs::read(path).unwrap());
    hash.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// A tree as it was at some moment, with the roots that its files name.
pub struct Saved {
    tree: PathBuf,
    roots: Vec<String>,
}

impl Saved {
    /// The tree at `tree`, whose files name these roots.
    pub fn new(tree: &Path, roots: Vec<String>) -> Self {
        Self { tree: tree.to_owned(), roots }
    }

    /// Where it is.
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// The roots that its files name.
    pub fn roots(&self) -> &[String] {
        &self.roots
    }
}

/// What a traced command did.
#[derive(Debug)]
pub struct Traced {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it said.
    pub stderr: String,
    /// Its calls.
    pub trace: String,
}

impl Traced {
    /// Whether the fault was put in.
    pub fn was_hit(&self) -> bool {
        self.trace.contains("(INJECTED)") || self.trace.contains("+++ killed by SIGKILL +++")
    }
}

/// One installation, for one thread.
pub struct Site {
    /// The installation.
    pub prefix: Prefix,
    /// Whether traces keep what is written.
    pub recording: bool,
    /// Whether the processes that a traced one starts are traced, too.
    pub follow: std::cell::Cell<bool>,
    scratch: tempfile::TempDir,
    config: String,
}

impl Site {
    /// An empty installation that follows `world`. A trial takes as long as its agent needs.
    pub fn new(world: &World) -> Self {
        let mut prefix = Prefix::new(&world.server.url());
        let file = prefix.path("etc/picket/config.yaml");
        let mut config = fs::read_to_string(&file).unwrap();
        // Outside the range that the kernel gives to clients, who would hold them for a moment.
        for port in [&mut prefix.health_port, &mut prefix.metrics_port] {
            let own = free_port();
            config = config.replace(&format!(":{port}\""), &format!(":{own}\""));
            *port = own;
        }
        // Many are tried side by side on a busy machine, and none of them is about slowness.
        for (quick, patient) in [("soak: 700ms", "soak: 1ms"), ("stall_limit: 2s", "stall_limit: 30s")] {
            config = config.replace(quick, patient);
        }
        config = config.replace("start_deadline: 4s", "start_deadline: 60s");
        fs::write(&file, &config).unwrap();
        Self { prefix, recording: false, follow: false.into(), scratch: tempfile::tempdir().unwrap(), config }
    }

    /// The installation's folder, as traces spell it.
    pub fn root(&self) -> String {
        self.prefix.path("").canonicalize().unwrap().display().to_string()
    }

    /// Keeps the tree as it is now in `to`.
    pub fn save(&self, to: &Path) -> Saved {
        self.prefix.cut_power();
        copy(&self.prefix.path(""), to, &|_| None);
        Saved::new(to, vec![self.root()])
    }

    /// Ends everything and puts the tree back as it was saved.
    pub fn restore(&self, saved: &Saved) {
        self.prefix.cut_power();
        let (here, root) = (self.prefix.path(""), self.root());
        empty(&here);
        let config = Path::new("etc/picket/config.yaml");
        let rewrite = |path: &Path| -> Option<Vec<u8>> {
            if path.ends_with(config) {
                return Some(self.config.clone().into_bytes());
            }
            // Receipts name the installation that they are of.
            let text = path.extension().is_some_and(|e| e == "json").then(|| fs::read_to_string(path).ok())??;
            let named = saved.roots.iter().any(|known| text.contains(known));
            named.then(|| saved.roots.iter().fold(text, |text, known| text.replace(known, &root)).into_bytes())
        };
        copy(&saved.tree, &here, &rewrite);
    }

    /// Writes the configuration where there is none.
    pub fn configure(&self) {
        let file = self.prefix.path("etc/picket/config.yaml");
        if !file.exists() {
            fs::create_dir_all(self.prefix.path("etc/picket")).unwrap();
            fs::write(file, &self.config).unwrap();
        }
    }

    /// Leaves a request for the updater, as `picket update apply` and its like do.
    pub fn request(&self, wanted: &Value) {
        let request = serde_json::json!({ "id": "faults", "wanted": wanted, "by": "faults" });
        fs::write(self.prefix.path("var/lib/picket-update/request.json"), request.to_string()).unwrap();
    }

    fn log(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Starts `exe` under strace, with a fault.
    pub fn start_traced(&self, exe: &Path, arguments: &[&str], point: Option<&Point>) -> std::process::Child {
        let mut options: Vec<String> = point.map(Point::option).into_iter().collect();
        options.push(format!("--string-limit={}", if self.recording { RECORDED } else { 96 }));
        if self.follow.get() {
            options.push("--follow-forks".to_owned());
        }
        let mut command = Command::new("strace");
        command.args(["-y", "-o"]).arg(self.log("trace")).arg(format!("--trace={WATCHED}")).args(options);
        command.arg("--").arg(exe).args(arguments);
        command.env("PICKET_PREFIX", self.prefix.path("")).env_remove("NO_COLOR").stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(fs::File::create(self.log("stderr")).unwrap());
        command.spawn().expect("strace: scripts/setup test installs it")
    }

    /// Waits until a traced process ends.
    pub fn end_traced(&self, mut child: std::process::Child) -> Traced {
        let began = Instant::now();
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None if began.elapsed() > LIMIT => {
                    let _ = child.kill();
                    let _ = child.wait();
                    let last = self.trace().lines().last().unwrap_or_default().to_owned();
                    panic!("it did not end within {} s; its last call: {last}", LIMIT.as_secs());
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let stderr = String::from_utf8_lossy(&fs::read(self.log("stderr")).unwrap()).into_owned();
        Traced { code: status.code(), stderr, trace: self.trace() }
    }

    /// Cuts the power until a traced process is gone: one that had not become the program yet is not seen by the first cut.
    pub fn end_by_cut(&self, mut child: std::process::Child) -> Traced {
        picket_testkit::wait_until("the traced process to end with the power", || {
            self.prefix.cut_power();
            child.try_wait().unwrap().is_some()
        });
        self.end_traced(child)
    }

    /// The trace so far.
    pub fn trace(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log("trace")).unwrap_or_default()).into_owned()
    }

    /// Runs `exe` under strace, with a fault.
    pub fn traced(&self, exe: &Path, arguments: &[&str], point: Option<&Point>) -> Traced {
        self.end_traced(self.start_traced(exe, arguments, point))
    }

    /// Runs the installed executable with a variable set.
    pub fn picket_with(&self, variable: (&str, &str), arguments: &[&str]) -> Ran {
        let mut command = Command::new(self.exe());
        command.args(arguments).env("PICKET_PREFIX", self.prefix.path("")).env(variable.0, variable.1);
        command.env_remove("NO_COLOR").stdin(Stdio::null()).output().unwrap().into()
    }

    /// The executable that people call.
    pub fn exe(&self) -> PathBuf {
        self.prefix.path("usr/local/bin/picket")
    }

    /// Copies the installation and the last trace to `to`, for whoever looks into a failure.
    pub fn keep(&self, to: &Path) {
        self.prefix.cut_power();
        copy(&self.prefix.path(""), &to.join("prefix"), &|_| None);
        for name in ["trace", "stderr"] {
            let _ = fs::copy(self.log(name), to.join(name));
        }
    }
}

/// A port below the range that the kernel gives to clients (`ip_local_port_range`).
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 10_000).unwrap_or(0);
    loop {
        let port = 12_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 18_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Removes everything in `folder`.
pub fn empty(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            fs::remove_dir_all(entry.path()).unwrap();
        } else {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

/// Copies the tree `from` to `to`. Files of versions, which nobody writes to, are linked; sockets are left out. `rewrite`
/// gives a file other content.
pub fn copy(from: &Path, to: &Path, rewrite: &dyn Fn(&Path) -> Option<Vec<u8>>) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy(&path, &target, rewrite);
        } else if kind.is_symlink() {
            symlink(fs::read_link(&path).unwrap(), &target).unwrap();
        } else if kind.is_file() {
            if let Some(bytes) = rewrite(&path) {
                fs::write(&target, bytes).unwrap();
                let mode = fs::metadata(&path).unwrap().permissions().mode();
                fs::set_permissions(&target, fs::Permissions::from_mode(mode)).unwrap();
            } else if !path.to_string_lossy().contains("/opt/picket/versions/")
                || fs::hard_link(&path, &target).is_err()
            {
                fs::copy(&path, &target).unwrap();
            }
        }
    }
}
