//! Builds of the real binary: other versions, and versions that are broken on purpose.
//!
//! One executable is built by cargo (feature `faults`), in a target folder of its own so that `target/debug` stays what it is;
//! each build is a copy of it that was told its version and its fault (the agent's module `stamp`). They are kept in
//! `target/test-builds/` until a source file changes.

use picket_protocol::TargetTriple;
use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Before the place for the stamp, and how long that is, in bytes: see the agent's module `stamp`.
const MARK: &[u8] = b"picket-test-build-stamp:";
const STAMP_ROOM: usize = 72;

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

    /// What the executable at `base`, a test build, becomes when it is told its version and how it is broken.
    pub fn stamped(base: &Path, version: &str, fault: Fault) -> Vec<u8> {
        stamped(base, &format!("{version} {}", fault.word()))
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
    let builds = target.join("test-builds");
    let dir = builds.join(format!("{version}-{}", fault.word()));
    fs::create_dir_all(&dir).unwrap();
    // Test processes run side by side; the lock is between them.
    let lock = File::create(builds.join("lock")).unwrap();
    lock.lock().unwrap();
    let (exe, archive) = (dir.join("picket"), dir.join("picket.tar.xz"));
    let build = Build { version: version.to_owned(), exe, archive, target: this_target() };
    let fingerprint = fingerprint(&root);
    let is_fresh = |dir: &Path| fs::read_to_string(dir.join("fingerprint")).is_ok_and(|known| known == fingerprint);
    if is_fresh(&dir) {
        return build;
    }
    let base = builds.join("base");
    if !is_fresh(&base) {
        compile(&root, &target, &base.join("picket"));
        fs::write(base.join("fingerprint"), &fingerprint).unwrap();
    }
    // Under another name first: the one before may be running, and is not written to.
    let fresh = dir.join("picket.new");
    fs::write(&fresh, Build::stamped(&base.join("picket"), version, fault)).unwrap();
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&fresh, &build.exe).unwrap();
    let _ = fs::remove_file(&build.archive);
    picket_release::pack_executable(&build.exe, &build.archive, 0).unwrap();
    fs::write(dir.join("fingerprint"), fingerprint).unwrap();
    build
}

/// Compiles the executable that all builds are made of, and puts it at `to` without its symbols.
fn compile(root: &Path, target: &Path, to: &Path) {
    let own = target.join("test-builds/cargo");
    seed(&target.join("debug"), &own.join("debug"));
    // The smallest test target of the workspace along with it, so that every dependency has the very features that
    // `cargo test --workspace` gave it, and none is compiled again.
    let status = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(["build", "--quiet", "--workspace", "--bin", "picket", "--test", "event_schema"])
        .args(["--features", "picket/faults"])
        .env("CARGO_TARGET_DIR", &own)
        .env_remove("PICKET_BUILD_VERSION")
        .env_remove("PICKET_BUILD_FAULT")
        .status()
        .unwrap();
    assert!(status.success(), "the test builds cannot be compiled");
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    let stripped = Command::new("strip").arg("-o").arg(to).arg(own.join("debug/picket")).status().unwrap();
    assert!(stripped.success(), "strip (binutils) failed");
}

/// The executable at `base` with `words` written where the agent's module `stamp` reads them.
fn stamped(base: &Path, words: &str) -> Vec<u8> {
    let mut bytes = fs::read(base).unwrap();
    let is_mark = |place: &usize| bytes[*place..].starts_with(MARK);
    let places: Vec<usize> = (0..bytes.len()).filter(is_mark).collect();
    let [place] = places[..] else { panic!("{} has {} places for a stamp, not one", base.display(), places.len()) };
    let room = &mut bytes[place + MARK.len()..][..STAMP_ROOM];
    assert!(room.iter().all(|byte| *byte == 0) && words.len() <= STAMP_ROOM, "{words:?} does not fit");
    room[..words.len()].copy_from_slice(words.as_bytes());
    bytes
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
