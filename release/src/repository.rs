//! The vendor's folder: what was published, what waits for signatures, and the channels as they will be.
//!
//! ```text
//! release.json               how long each role's metadata lives
//! metadata/                  published: N.root.json, N.targets.json, N.snapshot.json, timestamp.json
//! staged/                    drafts that wait for signatures: root.json, targets.json
//! channels/<name>.json       the channel documents as the next publish will sign them
//! artifacts/<version>/       each artifact with its .minisig
//! ```

use crate::error::ReleaseError;
use crate::key::PublicKey;
use crate::metadata::{self, Envelope, Role};
use crate::minisign;
use crate::targets::digest;
use picket_durable::Context;
use picket_protocol::channel::{CHANNEL_SCHEMA, ReleaseFile, is_channel_name, is_safe_path};
use picket_protocol::{Artifact, Channel, PRODUCT, Release, TargetTriple};
use semver::Version;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const SETTINGS: &str = "release.json";
const MAX_SETTINGS: u64 = 64 << 10;

/// A release repository.
#[derive(Debug, Clone)]
pub struct Repository {
    dir: PathBuf,
    settings: Settings,
}

/// How long each role's metadata is valid, in days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifetimes {
    /// The root: renewed by hand, with the offline keys.
    pub root: u32,
    /// The targets: renewed by each publish.
    pub targets: u32,
    /// The snapshot: renewed by `refresh` before half of it is over.
    pub snapshot: u32,
    /// The timestamp: renewed by every `refresh`. Two weeks let a machine that was off for holidays update.
    pub timestamp: u32,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self { root: 365, targets: 180, snapshot: 30, timestamp: 14 }
    }
}

impl Lifetimes {
    pub(crate) fn of(self, role: Role) -> jiff::SignedDuration {
        let days = match role {
            Role::Root => self.root,
            Role::Targets => self.targets,
            Role::Snapshot => self.snapshot,
            Role::Timestamp => self.timestamp,
        };
        jiff::SignedDuration::from_hours(24 * i64::from(days))
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Settings {
    schema: u32,
    product: String,
    lifetime_days: Lifetimes,
}

/// The keys that a root is to name.
#[derive(Debug, Clone, Default)]
pub struct RootPlan {
    /// Root keys.
    pub root: Vec<PublicKey>,
    /// How many of them must sign a root.
    pub root_threshold: usize,
    /// Targets keys.
    pub targets: Vec<PublicKey>,
    /// How many of them must sign a release.
    pub targets_threshold: usize,
    /// Online keys, of which one signs snapshot and timestamp.
    pub online: Vec<PublicKey>,
    /// minisign public keys (the base64 line).
    pub minisign: Vec<String>,
}

impl RootPlan {
    fn check(&self) -> Result<(), ReleaseError> {
        let roles = [
            ("root", self.root.len(), self.root_threshold),
            ("targets", self.targets.len(), self.targets_threshold),
            ("online", self.online.len(), 1),
        ];
        for (role, keys, threshold) in roles {
            if threshold == 0 || threshold > keys {
                let message = format!("{role}: {threshold} signatures of {keys} keys are not possible");
                return Err(ReleaseError::Threshold(message));
            }
        }
        if self.minisign.is_empty() {
            return Err(ReleaseError::Threshold(
                "at least one minisign key is needed: machines require both locks".into(),
            ));
        }
        Ok(())
    }

    fn payload(&self, version: u64, expires: jiff::Timestamp) -> serde_json::Value {
        let keys = BTreeMap::from([
            (Role::Root, (self.root.clone(), self.root_threshold)),
            (Role::Targets, (self.targets.clone(), self.targets_threshold)),
            (Role::Snapshot, (self.online.clone(), 1)),
            (Role::Timestamp, (self.online.clone(), 1)),
        ]);
        metadata::root(version, expires, &keys, &self.minisign)
    }
}

/// An artifact that is to be added.
#[derive(Debug, Clone)]
pub struct Addition {
    /// The channel it goes to.
    pub channel: String,
    /// Its version.
    pub version: Version,
    /// What it was built for.
    pub target: TargetTriple,
    /// The archive.
    pub archive: PathBuf,
    /// The bytes it unpacks to.
    pub unpacked: u64,
    /// The files in it, so that machines can check what they unpacked.
    pub files: BTreeMap<String, ReleaseFile>,
    /// Release notes; `None` leaves what was given with another target.
    pub notes: Option<String>,
    /// Whether every machine should take it at once.
    pub critical: bool,
    /// The state format it writes.
    pub state_format: u32,
}

impl Repository {
    /// Makes a new repository in `dir`, with a first root that waits for its signatures.
    pub fn create(
        dir: &Path,
        plan: &RootPlan,
        lifetimes: Lifetimes,
        now: jiff::Timestamp,
    ) -> Result<Self, ReleaseError> {
        if dir.join(SETTINGS).exists() {
            return Err(ReleaseError::Exists(dir.to_owned()));
        }
        plan.check()?;
        let settings = Settings { schema: 1, product: PRODUCT.to_owned(), lifetime_days: lifetimes };
        let repository = Self { dir: dir.to_owned(), settings };
        for folder in [repository.metadata_dir(), repository.staged_dir(), repository.channels_dir()] {
            picket_durable::create_dir(&folder, 0o755)?;
        }
        picket_durable::create_dir(&dir.join("artifacts"), 0o755)?;
        repository.stage_root(plan, 1, now)?;
        picket_durable::write_json(&dir.join(SETTINGS), &repository.settings, 0o644)?;
        Ok(repository)
    }

    /// Opens the repository in `dir`.
    pub fn open(dir: &Path) -> Result<Self, ReleaseError> {
        let path = dir.join(SETTINGS);
        let bytes = picket_durable::read_if_present(&path, MAX_SETTINGS)?;
        let bytes = bytes.ok_or_else(|| ReleaseError::NoRepository(dir.to_owned()))?;
        let settings: Settings = serde_json::from_slice(&bytes).map_err(|e| ReleaseError::bad_file(&path, e))?;
        if settings.schema != 1 {
            let reason = format!("it was made by a newer version (schema {})", settings.schema);
            return Err(ReleaseError::bad_file(path, reason));
        }
        let repository = Self { dir: dir.to_owned(), settings };
        // Empty folders do not survive git.
        for folder in [repository.staged_dir(), repository.channels_dir()] {
            picket_durable::create_dir(&folder, 0o755)?;
        }
        Ok(repository)
    }

    /// Drafts the next root: with the keys of `plan`, and a new lifetime. It waits for signatures of the old and the new
    /// root keys.
    pub fn stage_next_root(&self, plan: &RootPlan, now: jiff::Timestamp) -> Result<u64, ReleaseError> {
        plan.check()?;
        let version = self.root()?.version() + 1;
        self.stage_root(plan, version, now)?;
        Ok(version)
    }

    fn stage_root(&self, plan: &RootPlan, version: u64, now: jiff::Timestamp) -> Result<(), ReleaseError> {
        let root = Envelope::new(plan.payload(version, now + self.lifetimes().of(Role::Root)));
        Ok(picket_durable::write_atomic(&self.staged(Role::Root), &root.to_bytes(), 0o644)?)
    }

    /// How long metadata lives.
    pub fn lifetimes(&self) -> Lifetimes {
        self.settings.lifetime_days
    }

    pub(crate) fn metadata_dir(&self) -> PathBuf {
        self.dir.join("metadata")
    }

    fn staged_dir(&self) -> PathBuf {
        self.dir.join("staged")
    }

    fn channels_dir(&self) -> PathBuf {
        self.dir.join("channels")
    }

    /// Where a draft of `role` waits for signatures.
    pub fn staged(&self, role: Role) -> PathBuf {
        self.staged_dir().join(format!("{}.json", role.as_str()))
    }

    /// The file of an artifact, by its target path.
    pub(crate) fn artifact(&self, path: &str) -> PathBuf {
        self.dir.join("artifacts").join(path)
    }

    /// Where the channel document with this hash is kept.
    pub(crate) fn kept_channel(&self, sha256: &str) -> PathBuf {
        self.dir.join("artifacts/channel").join(format!("{sha256}.json"))
    }

    /// The newest published root.
    pub(crate) fn root(&self) -> Result<Envelope, ReleaseError> {
        let missing = || ReleaseError::Release("the root is not signed yet: `picket release sign` it first".to_owned());
        let path = self.newest(Role::Root)?.ok_or_else(missing)?;
        Envelope::load(&path)
    }

    /// The file of the newest published metadata of `role`.
    pub(crate) fn newest(&self, role: Role) -> Result<Option<PathBuf>, ReleaseError> {
        let dir = self.metadata_dir();
        if role == Role::Timestamp {
            return Ok(Some(dir.join("timestamp.json")).filter(|path| path.exists()));
        }
        let suffix = format!(".{}.json", role.as_str());
        let mut newest: Option<(u64, PathBuf)> = None;
        for entry in std::fs::read_dir(&dir).doing("list", &dir)? {
            let path = entry.doing("list", &dir)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some(version) = name.strip_suffix(&suffix).and_then(|n| n.parse().ok())
                && newest.as_ref().is_none_or(|(newest, _)| version > *newest)
            {
                newest = Some((version, path));
            }
        }
        Ok(newest.map(|(_, path)| path))
    }

    /// Where published metadata of `role` and `version` is.
    pub(crate) fn published(&self, role: Role, version: u64) -> PathBuf {
        match role {
            Role::Timestamp => self.metadata_dir().join("timestamp.json"),
            _ => self.metadata_dir().join(format!("{version}.{}.json", role.as_str())),
        }
    }

    /// The channels as the next publish will sign them.
    pub fn channels(&self) -> Result<Vec<Channel>, ReleaseError> {
        let dir = self.channels_dir();
        let mut channels = Vec::new();
        for entry in std::fs::read_dir(&dir).doing("list", &dir)? {
            let path = entry.doing("list", &dir)?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                channels.push(load_channel(&path)?);
            }
        }
        channels.sort_by(|a, b| a.channel.cmp(&b.channel));
        Ok(channels)
    }

    pub(crate) fn channel_path(&self, name: &str) -> Result<PathBuf, ReleaseError> {
        if is_channel_name(name) {
            Ok(self.channels_dir().join(format!("{name}.json")))
        } else {
            Err(ReleaseError::Release(format!("{name:?} cannot name a channel (a to z, 0 to 9 and -, at most 32)")))
        }
    }

    /// Adds an artifact: copies it in, signs it with minisign, and lists it in its channel. Returns its target path.
    ///
    /// # Errors
    /// When the version was published already: a published release never changes.
    pub fn add(
        &self,
        addition: &Addition,
        key: &minisign::SecretKey,
        now: jiff::Timestamp,
    ) -> Result<String, ReleaseError> {
        if !self.root()?.minisign_keys().contains(&key.public_line()) {
            let key = key.id_text();
            return Err(ReleaseError::KeyNotAuthorised { key, role: "minisign" });
        }
        let Addition { version, target, archive, .. } = addition;
        let extension = archive_extension(archive)?;
        let path = format!("{version}/{PRODUCT}-{version}-{target}{extension}");
        if !is_safe_path(&path) {
            return Err(ReleaseError::Release(format!("{path:?} cannot be a file name on every server")));
        }
        if self.published_targets()?.contains_key(&path) {
            return Err(ReleaseError::Release(format!(
                "release {version} for {target} is published already; a published release never changes, publish a new \
                 version"
            )));
        }
        let place = self.artifact(&path);
        if let Some(parent) = place.parent() {
            picket_durable::create_dir(parent, 0o755)?;
        }
        picket_durable::copy_file(archive, &place, 0o644)?;
        let comment = format!("{PRODUCT} {version} {target} {}", digest(&place)?.0);
        picket_durable::write_atomic(&signature_path(&place), key.sign(&place, &comment)?.as_bytes(), 0o644)?;
        self.list(addition, &path, now)?;
        Ok(path)
    }

    fn list(&self, addition: &Addition, path: &str, now: jiff::Timestamp) -> Result<(), ReleaseError> {
        let file = self.channel_path(&addition.channel)?;
        let mut channel = if file.exists() { load_channel(&file)? } else { empty_channel(addition) };
        let release = channel.releases.entry(addition.version.clone()).or_insert_with(|| Release {
            notes: String::new(),
            critical: false,
            published: metadata::to_the_second(now),
            state_format: addition.state_format,
            artifacts: BTreeMap::new(),
            rollout: None,
            stop: None,
        });
        release.critical = addition.critical;
        release.state_format = addition.state_format;
        if let Some(notes) = &addition.notes {
            release.notes.clone_from(notes);
        }
        let artifact = Artifact { path: path.to_owned(), unpacked: addition.unpacked, files: addition.files.clone() };
        release.artifacts.insert(addition.target.clone(), artifact);
        if addition.version > channel.head || channel.yanked.contains_key(&channel.head) {
            channel.head.clone_from(&addition.version);
            // Said of another head; with this one, machines go forward.
            channel.allow_downgrade_from.clear();
        }
        self.save_channel(&channel)
    }

    pub(crate) fn save_channel(&self, channel: &Channel) -> Result<(), ReleaseError> {
        channel.check(&channel.channel).map_err(|e| ReleaseError::Release(e.to_string()))?;
        Ok(picket_durable::write_json(&self.channel_path(&channel.channel)?, channel, 0o644)?)
    }
}

/// A channel document's bytes, as they are published.
pub(crate) fn channel_bytes(channel: &Channel) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(channel).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Where an artifact's minisign signature is.
pub(crate) fn signature_path(artifact: &Path) -> PathBuf {
    let mut name = artifact.file_name().unwrap_or_default().to_owned();
    name.push(".minisig");
    artifact.with_file_name(name)
}

fn empty_channel(addition: &Addition) -> Channel {
    Channel {
        schema: CHANNEL_SCHEMA,
        product: PRODUCT.to_owned(),
        channel: addition.channel.clone(),
        head: addition.version.clone(),
        minimum: None,
        releases: BTreeMap::new(),
        yanked: BTreeMap::new(),
        allow_downgrade_from: BTreeSet::new(),
        stop: None,
    }
}

pub(crate) fn load_channel(path: &Path) -> Result<Channel, ReleaseError> {
    let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let bytes = picket_durable::read_if_present(path, picket_protocol::channel::CHANNEL_MAX_BYTES)?
        .ok_or_else(|| ReleaseError::Release(format!("there is no channel {name}; `picket release add` makes it")))?;
    Channel::parse(&bytes, name).map_err(|e| ReleaseError::bad_file(path, e))
}

fn archive_extension(path: &Path) -> Result<&'static str, ReleaseError> {
    let name = path.to_string_lossy();
    match [".tar.xz", ".tar.zst", ".zip"].into_iter().find(|extension| name.ends_with(extension)) {
        Some(extension) => Ok(extension),
        None => Err(ReleaseError::bad_file(path, "machines unpack .tar.xz, .tar.zst and .zip")),
    }
}
