//! The receipt: each thing the installer made, written before it is made.

use picket_durable::Error;
use picket_layout::{Class, Kind, Layout, Roles, Scope};
use semver::Version;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The largest receipt, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// What an installation is made of. Versions come and go and are not in it; their folder is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The receipt's own format: 1.
    pub schema: u32,
    /// Which kind of installation this is.
    pub scope: Scope,
    /// What it is for.
    #[serde(default)]
    pub roles: Roles,
    /// The version that made it.
    pub installed_by: Version,
    /// When it was first made.
    pub installed: jiff::Timestamp,
    /// Whether the last run of the installer got to its end.
    pub complete: bool,
    /// Whether the service user was made by us.
    pub made_user: bool,
    /// Whether the sensor's user was made by us.
    #[serde(default)]
    pub made_sensor_user: bool,
    /// Whether the hub's user was made by us.
    #[serde(default)]
    pub made_hub_user: bool,
    /// Whether the installer made the user of the updater's unprivileged half.
    #[serde(default)]
    pub made_fetch_user: bool,
    /// Everything we made, parents before children.
    pub items: Vec<Item>,
}

/// One thing we made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Where.
    pub path: PathBuf,
    /// Folder, file or link.
    pub kind: Kind,
    /// What uninstall does with it.
    pub class: Class,
}

impl Receipt {
    /// An empty receipt of an installation that is about to begin.
    pub fn new(layout: &Layout, version: &Version, now: jiff::Timestamp) -> Self {
        Self {
            schema: 1,
            scope: layout.scope().clone(),
            roles: layout.roles(),
            installed_by: version.clone(),
            installed: now,
            complete: false,
            made_user: false,
            made_sensor_user: false,
            made_hub_user: false,
            made_fetch_user: false,
            items: Vec::new(),
        }
    }

    /// Reads the bytes of a receipt's file.
    ///
    /// # Errors
    /// When they are not a receipt.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// Reads the receipt of an installation, or of what an uninstallation kept; `None` when there is neither. One that
    /// cannot be read counts as none: the layout then says what could have been made.
    pub fn load(layout: &Layout) -> Result<Option<Self>, Error> {
        let bytes = match picket_durable::read_if_present(&layout.receipt(), MAX_BYTES)? {
            Some(bytes) => Some(bytes),
            None => Self::read_kept(layout)?,
        };
        let receipt: Option<Self> = bytes.and_then(|bytes| {
            Self::parse(&bytes)
                .inspect_err(|error| tracing::warn!(%error, "the receipt is damaged; going by the layout"))
                .ok()
        });
        // A copied or moved folder brings the receipt of where it came from.
        Ok(receipt.filter(|receipt| {
            let ours = receipt.scope == *layout.scope();
            if !ours {
                tracing::warn!(scope = %receipt.scope, "the receipt is of another installation; going by the layout");
            }
            ours
        }))
    }

    fn read_kept(layout: &Layout) -> Result<Option<Vec<u8>>, Error> {
        match picket_durable::read_if_present(&layout.kept_receipt(), MAX_BYTES) {
            // Its folder is root's alone; whoever only looks does without.
            Err(error) if error.source.kind() == std::io::ErrorKind::PermissionDenied => Ok(None),
            result => result,
        }
    }

    /// Writes the receipt of what stays when the program goes: the data, the folders around it, and whether the service user is ours.
    pub fn save_kept(&self, layout: &Layout) -> Result<(), Error> {
        let mut kept = self.clone();
        kept.items.retain(|item| matches!(item.class, Class::Data | Class::Shared));
        picket_durable::write_json(&layout.kept_receipt(), &kept, 0o600)
    }

    /// Writes the receipt.
    pub fn save(&self, layout: &Layout) -> Result<(), Error> {
        picket_durable::write_json(&layout.receipt(), self, 0o644)
    }

    /// Notes that `path` is about to be made.
    pub fn note(&mut self, path: &Path, kind: Kind, class: Class) {
        if !self.items.iter().any(|item| item.path == path) {
            self.items.push(Item { path: path.to_owned(), kind, class });
        }
    }

    /// A receipt of everything that the layout could have made: for an installation whose own was lost.
    pub fn from_layout(layout: &Layout, version: &Version, now: jiff::Timestamp) -> Self {
        let mut receipt = Self::new(layout, version, now);
        for entry in layout.entries() {
            // A folder of the system's is removed only when we know that we made it.
            if entry.class != Class::Shared {
                receipt.note(&entry.path, entry.kind, entry.class);
            }
        }
        receipt
    }
}
