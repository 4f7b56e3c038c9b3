//! What is on the machine now, compared with what the layout says.

use crate::accounts::Accounts;
use crate::receipt::Receipt;
use picket_durable::Error;
use picket_layout::{Entry, Kind, Layout, Role, Roles};
use picket_protocol::Sha256Digest;
use picket_versions::{RecordError, VersionDirs};
use semver::Version;
use std::collections::BTreeMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The largest file whose content is compared, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// A place as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing is there.
    Absent,
    /// It is as it should be.
    Fits,
    /// It is there, but not as it should be.
    Differs(Vec<Misfit>),
    /// Who asks may not look.
    Hidden,
}

/// How a place differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Misfit {
    /// Something of another kind is in its place.
    Kind {
        /// What is there, in words.
        found: &'static str,
    },
    /// The owner differs.
    Owner {
        /// User and group that it has.
        found: (u32, u32),
        /// User and group that it should have.
        wanted: String,
    },
    /// The mode differs.
    Mode {
        /// The mode that it has.
        found: u32,
        /// The mode that it should have.
        wanted: u32,
    },
    /// A link leads elsewhere.
    Target {
        /// Where it leads.
        found: PathBuf,
    },
}

impl std::fmt::Display for Misfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Kind { found } => write!(f, "{found} is in its place"),
            Self::Owner { found, wanted } => {
                write!(f, "owner {}:{} instead of {wanted}", found.0, found.1)
            }
            Self::Mode { found, wanted } => write!(f, "mode {found:04o} instead of {wanted:04o}"),
            Self::Target { found } => write!(f, "leads to {}", found.display()),
        }
    }
}

/// Everything the plan rests on.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The accounts.
    pub accounts: Accounts,
    /// What an earlier run left.
    pub receipt: Option<Receipt>,
    /// Whether the program is there, and not only the data of one that was uninstalled.
    pub installed: bool,
    /// Each fixed place of the layout.
    pub places: Vec<(Entry, Found)>,
    /// The proven version, if it is one of `versions`.
    pub current: Option<Version>,
    /// Versions of which every file is what its record says, with the hash of their executable.
    pub versions: BTreeMap<Version, Sha256Digest>,
    /// The content of each file that may have to be written.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    /// Whether there is neither a key file nor anything in the store: a store without its key gets no other one.
    pub key_wanted: bool,
    /// Whether the hub lacks any of its keys.
    pub hub_wanted: bool,
    /// Whether the service manager starts the agent at boot.
    pub enabled: bool,
}

impl Facts {
    /// Looks at the machine. `files` are the paths whose content matters.
    ///
    /// # Errors
    /// When something cannot be looked at that the plan rests on.
    pub fn gather(layout: &Layout, files: &[PathBuf], enabled: bool) -> Result<Self, Error> {
        let accounts = Accounts::of(layout);
        let mut places: Vec<(Entry, Found)> = Vec::new();
        for entry in layout.entries() {
            for parent in missing_parents(&entry.path) {
                if !places.iter().any(|(known, _)| known.path == parent) {
                    places.push((Layout::parent_entry(&parent), Found::Absent));
                }
            }
            let found = inspect(&entry, layout, &accounts);
            places.push((entry, found));
        }
        // A configuration that was there first, or that an editor gave to somebody else. A link is its owner's business.
        for path in layout.config_files() {
            if std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file()) {
                let entry = layout.file_entry(&path);
                let found = inspect(&entry, layout, &accounts);
                places.push((entry, found));
            }
        }
        let dirs = VersionDirs::new(layout);
        let current = dirs.look_at_current()?;
        let mut versions = BTreeMap::new();
        for version in dirs.all().into_iter().chain(current.clone()) {
            if versions.contains_key(&version) {
                continue;
            }
            // By its bytes: a removal that was cut short leaves a record beside nothing.
            let record = match dirs.intact(&version) {
                Ok(record) => record,
                // It may well be whole, and what is put in the place of a whole one goes through a trial.
                Err(RecordError::File(error)) if current.as_ref() == Some(&version) => return Err(error),
                Err(_) => continue,
            };
            if let Some(executable) = record.files.iter().find(|file| file.path == picket_layout::EXECUTABLE) {
                versions.insert(version, executable.sha256);
            }
        }
        let mut contents = BTreeMap::new();
        for path in files {
            if let Some(bytes) = picket_durable::read_if_present(path, MAX_FILE)? {
                contents.insert(path.clone(), bytes);
            }
        }
        Ok(Self {
            accounts,
            receipt: Receipt::load(layout)?,
            installed: layout.receipt().exists(),
            places,
            current: current.filter(|current| versions.contains_key(current)),
            versions,
            files: contents,
            key_wanted: layout.roles().has(Role::Agent) && is_key_wanted(layout),
            hub_wanted: layout.roles().has(Role::Hub) && is_hub_wanted(layout),
            enabled,
        })
    }
}

impl Facts {
    /// The roles that are installed already; those of an agent where the receipt was lost.
    pub fn roles(&self) -> Option<Roles> {
        self.installed.then(|| self.receipt.as_ref().map(|receipt| receipt.roles).unwrap_or_default())
    }
}

/// The key that is made last.
fn is_hub_wanted(layout: &Layout) -> bool {
    let last = layout.hub_keys_dir().join("seal.key");
    std::fs::symlink_metadata(last).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// What cannot be looked at counts as there.
fn is_key_wanted(layout: &Layout) -> bool {
    let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let no_key = std::fs::symlink_metadata(layout.store_key()).is_err_and(|error| absent(&error));
    let no_store = match std::fs::read_dir(layout.store_dir()) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => absent(&error),
    };
    no_key && no_store
}

/// The folders above `path` that are not there, the highest first.
fn missing_parents(path: &Path) -> Vec<PathBuf> {
    let above = path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty());
    let mut missing: Vec<PathBuf> = above.take_while(|parent| !parent.exists()).map(Path::to_owned).collect();
    missing.reverse();
    missing
}

/// Compares one place with its row of the table.
pub fn inspect(entry: &Entry, layout: &Layout, accounts: &Accounts) -> Found {
    let meta = match std::fs::symlink_metadata(&entry.path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Found::Absent,
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Found::Hidden,
        Err(_) => return Found::Differs(vec![Misfit::Kind { found: "something that cannot be looked at" }]),
    };
    if kind_of(&meta) != Some(entry.kind) {
        // A folder of the system's may well be a link to another.
        let linked_folder = entry.class == picket_layout::Class::Shared && entry.path.is_dir();
        return if linked_folder { Found::Fits } else { Found::Differs(vec![Misfit::Kind { found: describe(&meta) }]) };
    }
    // Somebody else's folder is as it is.
    if entry.class == picket_layout::Class::Shared {
        return Found::Fits;
    }
    let mut misfits = Vec::new();
    if entry.kind == Kind::Link {
        misfits.extend(link_misfit(&entry.path, layout));
    } else {
        let mode = meta.mode() & 0o7777;
        if mode != entry.mode {
            misfits.push(Misfit::Mode { found: mode, wanted: entry.mode });
        }
        let found = (meta.uid(), meta.gid());
        // A user who is not there yet owns nothing.
        let wanted = accounts.numbers(entry.owner);
        if wanted != Some(found) {
            let wanted = wanted.map_or_else(|| entry.owner.to_string(), |(user, group)| format!("{user}:{group}"));
            misfits.push(Misfit::Owner { found, wanted });
        }
    }
    if misfits.is_empty() { Found::Fits } else { Found::Differs(misfits) }
}

/// The link on the PATH must lead to the current executable; which version `current` leads to is the updater's.
fn link_misfit(path: &Path, layout: &Layout) -> Option<Misfit> {
    let found = std::fs::read_link(path).unwrap_or_default();
    (path == layout.bin_link() && found != layout.bin_target()).then_some(Misfit::Target { found })
}

fn kind_of(meta: &Metadata) -> Option<Kind> {
    let kind = meta.file_type();
    if kind.is_symlink() {
        Some(Kind::Link)
    } else if kind.is_dir() {
        Some(Kind::Dir)
    } else if kind.is_file() {
        Some(Kind::File)
    } else {
        None
    }
}

fn describe(meta: &Metadata) -> &'static str {
    match kind_of(meta) {
        Some(Kind::Dir) => "a folder",
        Some(Kind::File) => "a file",
        Some(Kind::Link) => "a link",
        None => "something else",
    }
}
