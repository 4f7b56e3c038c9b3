//! Builds of the real binary: other versions, and versions that are broken on purpose.
//!
//! Each is built once by cargo (feature `faults`, the version and the fault from the environment), in a target folder of its
//! own so that `target/debug` stays what it is, and kept in `target/test-builds/` until a source file changes.

use picket_protocol::TargetTriple;
use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// How a build is broken. See the agent's `fault` module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Not at all.
    None,
    /// Ends at once.
    Crash,
    /// Never becomes ready.
    Hang,
    /// Says it is unhealthy.
    Unhealthy,
    /// Ends again and again.
    Flap,
    /// Its main loop stands still.
    Stuck,
    /// Cannot fetch release metadata.
    NoFetch,
}

impl Fault {
    fn word(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Crash => "crash",
            Self::Hang => "hang",
            Self::Unhealthy => "unhealthy",
            Self::Flap => "flap",
            Self::Stuck => "stuck",
            Self::NoFetch => "no-fetch",
        }
    }
}

/// A build that is there.
#[derive(Debug, Clone)]
pub struct Build {
    /// Its version.
    pub version: String,
    /// The executable.
    pub exe: PathBuf,
    /// The executable as a release archive.
    pub archive: PathBuf,
    /// What it was built for.
    pub target: TargetTriple,
}

impl Build {
    /// An executable that is there already, packed beside it.
    pub fn of(version: &str, exe: &Path, target: &str) -> Self {
        let archive = exe.with_extension("tar.xz");
        picket_release::pack_executable(exe, &archive, 0).unwrap();
        Self { version: version.to_owned(), exe: exe.to_owned(), archive, target: target.parse().unwrap() }
    }
}

/// The target triple that the test builds are for.
pub fn this_target() -> TargetTriple {
    let libc = if cfg!(target_env = "musl") { "musl" } else { "gnu" };
    format!("{}-unknown-linux-{libc}", std::env::consts::ARCH).parse().unwrap()
}

/// The workspace's root.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The build of `version` with `fault`, made if it is not there.
pub fn build(version: &str, fault: Fault) -> Build {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let root = workspace();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let dir = target.join("test-builds").join(format!("{version}-{}", fault.word()));
    fs::create_dir_all(&dir).unwrap();
    // Test processes run side by side; the lock is between them.
    let lock = File::create(target.join("test-builds/lock")).unwrap();
    lock.lock().unwrap();
    let (exe, archive) = (dir.join("picket"), dir.join("picket.tar.xz"));
    let build = Build { version: version.to_owned(), exe, archive, target: this_target() };
    let fingerprint = fingerprint(&root);
    if fs::read_to_string(dir.join("fingerprint")).is_ok_and(|known| known == fingerprint) {
        return build;
    }
    let own = target.join("test-builds/cargo");
    seed(&target.join("debug"), &own.join("debug"));
    // The smallest test target of the workspace along with it, so that every dependency has the very features that
    // `cargo test --workspace` gave it, and none is compiled again.
    let status = Command::new(env!("CARGO"))
        .current_dir(&root)
        .args(["build", "--quiet", "--workspace", "--bin", "picket", "--test", "event_schema"])
        .args(["--features", "picket/faults"])
        .env("CARGO_TARGET_DIR", &own)
        .env("PICKET_BUILD_VERSION", version)
        .env("PICKET_BUILD_FAULT", fault.word())
        .status()
        .unwrap();
    assert!(status.success(), "the build of {version} ({fault:?}) failed");
    // Under another name first: the one before may be running, and is not written to.
    let fresh = dir.join("picket.new");
    let stripped = Command::new("strip").arg("-o").arg(&fresh).arg(own.join("debug/picket")).status().unwrap();
    assert!(stripped.success(), "strip (binutils) failed");
    fs::rename(&fresh, &build.exe).unwrap();
    let _ = fs::remove_file(&build.archive);
    picket_release::pack_executable(&build.exe, &build.archive, 0).unwrap();
    fs::write(dir.join("fingerprint"), fingerprint).unwrap();
    build
}

/// Lets the test builds begin with the dependencies that the tests were built with. Without them they are compiled, which
/// takes some minutes longer and harms nothing: so failures are not looked at.
fn seed(from: &Path, to: &Path) {
    if to.exists() || !from.join("deps").exists() {
        return;
    }
    fs::create_dir_all(to).unwrap();
    let copy = |how: &str, name: &str| {
        let _ = Command::new("cp").args([how, "--"]).arg(from.join(name)).arg(to).status();
    };
    // Cargo writes to these in place, and never to those.
    copy("-a", ".fingerprint");
    copy("-a", "build");
    copy("-al", "deps");
}

/// Changes when a source file does: names, sizes and times of all of them.
fn fingerprint(root: &Path) -> String {
    let mut hasher = DefaultHasher::new();
    let mut folders: Vec<PathBuf> =
        ["src", "agent", "crates", "hub", "installer", "protocol", "release", "sensor", "service", "update"]
            .iter()
            .map(|name| root.join(name))
            .collect();
    let mut files = vec![root.join("Cargo.toml"), root.join("Cargo.lock"), root.join("build.rs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    for file in files {
        let meta = fs::metadata(&file).unwrap();
        (file, meta.len(), meta.modified().unwrap()).hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}
