//! A vendor with keys in memory, who publishes builds into a tree.

use crate::builds::{Build, Fault, build};
use picket_protocol::channel::ReleaseFile;
use picket_protocol::{Rollout, Sha256Digest, Wave};
use picket_release::{Addition, Lifetimes, PublicKey, PublishOptions, Repository, Role, RootPlan, SecretKey, minisign};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A vendor.
pub struct Vendor {
    dir: TempDir,
    repository: Repository,
    root: SecretKey,
    signers: Vec<SecretKey>,
    minisign: minisign::SecretKey,
}

impl Vendor {
    /// A vendor with new keys and a signed first root, who has published nothing yet.
    pub fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let key = || SecretKey::generate().unwrap();
        let (root, targets, online) = (key(), key(), key());
        let minisign = minisign::SecretKey::generate().unwrap();
        let plan = RootPlan {
            root: vec![root.public()],
            root_threshold: 1,
            targets: vec![targets.public()],
            targets_threshold: 1,
            online: vec![online.public()],
            minisign: vec![minisign.public_line()],
        };
        let now = jiff::Timestamp::now();
        let repository = Repository::create(&dir.path().join("repository"), &plan, Lifetimes::default(), now).unwrap();
        repository.sign_staged(&root).unwrap();
        Self { dir, repository, root, signers: vec![targets, online], minisign }
    }

    /// The tree that a server offers.
    pub fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    /// The first root: what `install --root-keys` is given.
    pub fn root_file(&self) -> PathBuf {
        self.dir.path().join("repository/metadata/1.root.json")
    }

    /// The public half of the root key.
    pub fn root_key(&self) -> PublicKey {
        self.root.public()
    }

    /// The minisign key, for signing what the vendor would not.
    pub fn minisign(&self) -> &minisign::SecretKey {
        &self.minisign
    }

    /// Adds a build for this machine and publishes.
    pub fn release(&self, build: &Build) {
        self.release_as(build, false, &build.archive);
    }

    /// The same, as a critical release.
    pub fn release_critical(&self, build: &Build) {
        self.release_as(build, true, &build.archive);
    }

    /// Publishes any archive as `version`: the way to a release that cannot even be executed.
    pub fn release_archive(&self, version: &str, archive: &Path) {
        let build = Build { version: version.to_owned(), ..build("1.0.0", Fault::None) };
        self.release_as(&build, false, archive);
    }

    fn release_as(&self, build: &Build, critical: bool, archive: &Path) {
        // An archive that is not the build's own has who knows what in it: its files are not listed.
        let own = archive == build.archive;
        let files = own.then(|| (picket_layout::EXECUTABLE.to_owned(), release_file(&build.exe)));
        let addition = Addition {
            channel: "stable".to_owned(),
            version: build.version.parse().unwrap(),
            target: build.target.clone(),
            archive: archive.to_owned(),
            unpacked: std::fs::metadata(&build.exe).unwrap().len().max(100 << 20),
            files: files.into_iter().collect(),
            notes: Some(format!("What is new in {}", build.version)),
            critical,
            state_format: 1,
        };
        self.repository.add(&addition, &self.minisign, jiff::Timestamp::now()).unwrap();
        self.publish();
    }

    /// Takes a release back and publishes that.
    pub fn yank(&self, version: &str, reason: &str) {
        let version = version.parse().unwrap();
        self.repository.yank("stable", &version, reason, None, jiff::Timestamp::now()).unwrap();
        self.publish();
    }

    /// Brings a release out in these waves (seconds after `start`, percent) and publishes that.
    pub fn in_waves(&self, version: &str, start: jiff::Timestamp, waves: &[(u32, u8)]) {
        let wave = |wave: &(u32, u8)| Wave { after_seconds: wave.0, percent: wave.1 };
        let waves = waves.iter().map(wave).collect();
        self.roll_out(version, Rollout { start: Some(start), waves, ..Rollout::default() });
    }

    /// Says how a release comes out and publishes that.
    pub fn roll_out(&self, version: &str, rollout: Rollout) {
        self.repository.set_rollout("stable", &version.parse().unwrap(), Some(rollout)).unwrap();
        self.publish();
    }

    /// Stops the rollout of a release and publishes that.
    pub fn stop(&self, version: &str, reason: &str) {
        let version = version.parse().unwrap();
        self.repository.stop("stable", Some(&version), reason, jiff::Timestamp::now()).unwrap();
        self.publish();
    }

    /// Signs and writes the tree as of now.
    pub fn publish(&self) {
        self.publish_at(jiff::Timestamp::now());
    }

    /// Signs and writes the tree as of `now`: the way to metadata that has expired since.
    pub fn publish_at(&self, now: jiff::Timestamp) {
        let options = PublishOptions { keys: &self.signers, now };
        self.repository.publish(&options).unwrap().unwrap();
        self.repository.write_tree(&self.tree()).unwrap();
    }

    /// The repository, for what the verbs above do not say.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Where a draft of the root waits.
    pub fn staged_root(&self) -> PathBuf {
        self.repository.staged(Role::Root)
    }
}

fn release_file(path: &Path) -> ReleaseFile {
    let bytes = std::fs::read(path).unwrap();
    let sha256 = Sha256Digest::new(Sha256::digest(&bytes).into());
    ReleaseFile { length: bytes.len() as u64, sha256 }
}

impl Default for Vendor {
    fn default() -> Self {
        Self::new()
    }
}
