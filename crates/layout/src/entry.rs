//! The permission table: each place with its kind, owner and mode.

use crate::{Layout, Role, Scope};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// One row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The place.
    pub path: PathBuf,
    /// Folder, file or link.
    pub kind: Kind,
    /// Who owns it.
    pub owner: Owner,
    /// Its permission bits; 0 for a link, which has none of its own.
    pub mode: u32,
    /// What happens to it at uninstall.
    pub class: Class,
}

/// What stands at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A folder.
    Dir,
    /// A file.
    File,
    /// A symbolic link.
    Link,
}

/// The owner of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub user: Account,
    /// The group.
    pub group: Account,
}

/// An account, resolved when it is applied. Outside a system installation both are the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Account {
    /// `root`.
    Root,
    /// [`crate::SERVICE_USER`].
    Service,
    /// [`crate::SENSOR_USER`].
    Sensor,
    /// [`crate::HUB_USER`].
    Hub,
}

/// What uninstall does with a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Removed.
    Program,
    /// Removed; a reboot would do the same.
    Runtime,
    /// Kept, unless `--purge`.
    Data,
    /// A folder of the system that we may have had to create (`/usr/local/lib/systemd/system`): removed only if we
    /// made it and it is empty.
    Shared,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |account| match account {
            Account::Root => "root",
            Account::Service => crate::SERVICE_USER,
            Account::Sensor => crate::SENSOR_USER,
            Account::Hub => crate::HUB_USER,
        };
        write!(f, "{}:{}", name(self.user), name(self.group))
    }
}

const ROOT: Owner = Owner { user: Account::Root, group: Account::Root };
const SERVICE: Owner = Owner { user: Account::Service, group: Account::Service };
const SENSOR: Owner = Owner { user: Account::Sensor, group: Account::Service };
const HUB: Owner = Owner { user: Account::Hub, group: Account::Service };
const ROOT_FOR_SERVICE: Owner = Owner { user: Account::Root, group: Account::Service };

fn row(path: impl Into<PathBuf>, kind: Kind, owner: Owner, mode: u32, class: Class) -> Entry {
    Entry { path: path.into(), kind, owner, mode, class }
}

impl Layout {
    /// The fixed folders and links of an installation, parents before children. Files are in [`Layout::file_entry`];
    /// versions come and go and follow [`Layout::version_mode`].
    pub fn entries(&self) -> Vec<Entry> {
        use Class::{Data, Program, Runtime, Shared};
        use Kind::{Dir, Link};
        let mut entries = vec![
            row(self.program_dir(), Dir, ROOT, 0o755, Program),
            row(self.versions_dir(), Dir, ROOT, 0o755, Program),
            row(self.bin_link().parent().unwrap_or(Path::new("/")), Dir, ROOT, 0o755, Shared),
            row(self.unit_dir(), Dir, ROOT, 0o755, Shared),
            row(self.config_dir(), Dir, ROOT_FOR_SERVICE, 0o750, Data),
            row(self.config_dir().join("health.d"), Dir, ROOT_FOR_SERVICE, 0o750, Data),
            row(self.required_hooks(), Dir, ROOT_FOR_SERVICE, 0o750, Data),
            row(self.wanted_hooks(), Dir, ROOT_FOR_SERVICE, 0o750, Data),
            row(self.config_dir().join("update.d"), Dir, ROOT_FOR_SERVICE, 0o750, Data),
            row(self.busy_hooks(), Dir, ROOT_FOR_SERVICE, 0o750, Data),
            row(self.before_hooks(), Dir, ROOT_FOR_SERVICE, 0o750, Data),
            row(self.after_hooks(), Dir, ROOT_FOR_SERVICE, 0o750, Data),
            row(self.state_dir(), Dir, SERVICE, 0o700, Data),
            row(self.certs_dir(), Dir, SERVICE, 0o700, Data),
            row(self.update_dir(), Dir, ROOT, 0o700, Data),
            row(self.fetch_dir(), Dir, ROOT, 0o755, Runtime),
            row(self.log_dir(), Dir, SERVICE, 0o750, Data),
            row(self.run_dir(), Dir, SERVICE, 0o750, Runtime),
            row(self.update_run_dir(), Dir, ROOT, 0o755, Runtime),
            row(self.sensor_dir(), Dir, SENSOR, 0o700, Data),
            row(self.sensor_run_dir(), Dir, SENSOR, 0o750, Runtime),
            row(self.rules_dir(), Dir, ROOT_FOR_SERVICE, 0o750, Data),
            row(self.hub_dir(), Dir, HUB, 0o700, Data),
            row(self.hub_keys_dir(), Dir, HUB, 0o700, Data),
            row(self.current_link(), Link, ROOT, 0, Program),
            row(self.bin_link(), Link, ROOT, 0, Program),
        ];
        // A prefix has the supervisor, which has no unit files.
        entries.retain(|entry| !(matches!(self.scope(), Scope::Prefix(_)) && entry.path == self.unit_dir()));
        // Without root there is nobody that a second process could be kept from.
        entries.retain(|entry| self.has_sensor() || entry.owner != SENSOR);
        let (agent, hub) = (self.roles().has(Role::Agent), self.roles().has(Role::Hub));
        entries.retain(|entry| agent || entry.owner != SERVICE);
        entries.retain(|entry| hub || (entry.owner != HUB && entry.path != self.rules_dir()));
        entries
    }

    /// A folder above one of ours that has to be made with it: removed again only if it is empty.
    pub fn parent_entry(path: &Path) -> Entry {
        row(path, Kind::Dir, ROOT, 0o755, Class::Shared)
    }

    /// Owner, mode and class of a file the installer or the updater makes at `path`.
    pub fn file_entry(&self, path: &Path) -> Entry {
        if path.starts_with(self.config_dir()) {
            row(path, Kind::File, ROOT_FOR_SERVICE, 0o640, Class::Data)
        } else if path.starts_with(self.versions_dir()) && path.file_name().is_some_and(|n| n == crate::EXECUTABLE) {
            row(path, Kind::File, ROOT, 0o755, Class::Program)
        } else {
            row(path, Kind::File, ROOT, 0o644, Class::Program)
        }
    }

    /// The mode of a version's folder.
    pub const fn version_mode() -> u32 {
        0o755
    }

    /// Whether files and connections are watched by a process of its own: only in a system installation of an agent.
    pub fn has_sensor(&self) -> bool {
        matches!(self.scope(), Scope::System) && self.roles().has(Role::Agent)
    }

    /// Whether owners other than the caller are meant: only root can install for the system.
    pub fn has_service_user(&self) -> bool {
        matches!(self.scope(), Scope::System)
    }
}
