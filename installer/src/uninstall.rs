//! Taking an installation off a machine: exactly what was made, and a look at what is left.
//!
//! It needs neither the service running, nor the binary in its place, nor a network, nor a hub. Without a receipt it
//! goes by the layout. Data is kept unless it is asked for; a folder that is not ours is removed only if we made it and
//! it is empty.

use crate::accounts::{AccountError, remove_user};
use crate::receipt::{Item, Receipt};
use picket_durable::Error;
use picket_layout::{Class, Entry, FETCH_USER, HUB_USER, Kind, Layout, Role, Roles, SENSOR_USER, SERVICE_USER};
use picket_service::{Registrar, ServiceError};
use std::path::{Path, PathBuf};

/// What would be removed and what kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemovalPlan {
    /// What goes, children before parents.
    pub remove: Vec<Removal>,
    /// Data that is kept.
    pub keep: Vec<PathBuf>,
    /// The users that go, too, in this order.
    pub remove_users: Vec<&'static str>,
}

/// One thing that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// A folder with all it holds: everything in it is ours.
    Tree(PathBuf),
    /// A file or link.
    File(PathBuf),
    /// A folder, if it is empty.
    EmptyDir(PathBuf),
}

/// A removal that failed.
#[derive(Debug, thiserror::Error)]
pub enum RemovalError {
    /// The service manager refused.
    #[error("the service cannot be removed")]
    Service(#[from] ServiceError),
    /// A file could not be removed.
    #[error(transparent)]
    File(#[from] Error),
    /// The service user could not be removed.
    #[error(transparent)]
    Account(#[from] AccountError),
}

impl Removal {
    /// The place it is about.
    pub fn path(&self) -> &Path {
        match self {
            Self::Tree(path) | Self::File(path) | Self::EmptyDir(path) => path,
        }
    }

    fn is_tree(&self) -> bool {
        matches!(self, Self::Tree(_))
    }

    fn is_empty_dir(&self) -> bool {
        matches!(self, Self::EmptyDir(_))
    }

    /// The removal in words.
    pub fn describe(&self) -> String {
        match self {
            Self::Tree(path) => format!("remove {} with all it holds", path.display()),
            Self::File(path) => format!("remove {}", path.display()),
            Self::EmptyDir(path) => format!("remove {} if it is empty", path.display()),
        }
    }
}

/// Plans the removal of what `receipt` lists.
pub fn plan_removal(receipt: &Receipt, layout: &Layout, purge: bool) -> RemovalPlan {
    // The service user's last: its group is the others', too.
    let users = [
        (receipt.made_sensor_user, SENSOR_USER),
        (receipt.made_hub_user, HUB_USER),
        (receipt.made_fetch_user, FETCH_USER),
        (receipt.made_user, SERVICE_USER),
    ];
    let remove_users = users.into_iter().filter(|(made, _)| purge && *made).map(|(_, name)| name).collect();
    let mut plan = RemovalPlan { remove: Vec::new(), keep: Vec::new(), remove_users };
    // An older version's installer did not know places that the service manager made for a newer one.
    let mut receipt = receipt.clone();
    for entry in layout.entries().into_iter().filter(|entry| entry.class != Class::Shared) {
        receipt.note(&entry.path, entry.kind, entry.class);
    }
    for item in receipt.items.iter().rev().filter_map(|item| as_ours(item, layout)) {
        let kept = item.class == Class::Data && !purge;
        if std::fs::symlink_metadata(&item.path).is_err() {
            continue;
        }
        if kept {
            plan.keep.push(item.path.clone());
        } else {
            plan.remove.push(removal(&item));
        }
    }
    // Kept folders are told once, not with each folder in them.
    let keep = std::mem::take(&mut plan.keep);
    plan.keep = keep
        .iter()
        .filter(|path| !keep.iter().any(|other| other != *path && path.starts_with(other)))
        .cloned()
        .collect();
    // What goes with its folder is not told apart. The receipt's own folder goes last.
    let trees: Vec<PathBuf> =
        plan.remove.iter().filter(|removal| removal.is_tree()).map(|r| r.path().to_owned()).collect();
    let inside = |path: &Path| trees.iter().any(|tree| path != tree && path.starts_with(tree));
    let program = layout.program_dir();
    plan.remove.retain(|removal| !inside(removal.path()) && removal.path() != program);
    if program.exists() {
        plan.remove.push(Removal::Tree(program.to_owned()));
    }
    // Then the folders that others may use, too: the deepest first, and none that holds something we keep.
    let mut shared: Vec<Removal> = plan.remove.extract_if(.., |removal| removal.is_empty_dir()).collect();
    shared.retain(|removal| !plan.keep.iter().any(|kept| kept.starts_with(removal.path())));
    shared.sort_by_key(|removal| std::cmp::Reverse(removal.path().components().count()));
    plan.remove.extend(shared);
    plan
}

/// Plans taking `role` from an installation that stays for another role: the places that only `role` has. The program, the
/// configuration's folder and the service user stay.
pub fn plan_role_removal(receipt: &Receipt, layout: &Layout, role: Role, purge: bool) -> RemovalPlan {
    let only = |other: Role| Roles::ALL.without(other).unwrap_or(Roles::ALL);
    let stays: Vec<Entry> = layout.clone().with_roles(only(role)).entries();
    let own = layout.clone().with_roles(Roles::from(role)).entries().into_iter();
    let own = own.filter(|entry| !stays.contains(entry) && std::fs::symlink_metadata(&entry.path).is_ok());
    let (keep, remove): (Vec<_>, Vec<_>) = own.partition(|entry| entry.class == Class::Data && !purge);
    let outermost = |entries: &[Entry]| -> Vec<PathBuf> {
        let inside = |path: &Path| entries.iter().any(|other| other.path != path && path.starts_with(&other.path));
        entries.iter().map(|entry| entry.path.clone()).filter(|path| !inside(path)).collect()
    };
    let users = match role {
        Role::Agent => (receipt.made_sensor_user, SENSOR_USER),
        Role::Hub => (receipt.made_hub_user, HUB_USER),
    };
    // An agent's configuration is the updater's, too, and stays.
    let files = layout.clone().with_roles(Roles::HUB).config_files().into_iter();
    let files = files.filter(|path| role == Role::Hub && path.exists());
    let files = files.filter(|path| !layout.clone().with_roles(Roles::AGENT).config_files().contains(path));
    let (mut keep, mut remove) =
        (outermost(&keep), outermost(&remove).into_iter().map(Removal::Tree).collect::<Vec<_>>());
    if purge {
        remove.extend(files.map(Removal::File));
    } else {
        keep.extend(files);
    }
    RemovalPlan {
        remove,
        keep,
        remove_users: [users].into_iter().filter(|(made, _)| purge && *made).map(|(_, name)| name).collect(),
    }
}

/// The item, if an installer of this layout can have made it. Whoever can write the receipt must not choose what root
/// removes elsewhere.
fn as_ours(item: &Item, layout: &Layout) -> Option<Item> {
    // Whatever the roles are now: a role may have been taken away and its data kept.
    let entries = layout.clone().with_roles(Roles::ALL).entries();
    let class = if let Some(entry) = entries.iter().find(|entry| entry.path == item.path) {
        entry.class
    } else if entries.iter().any(|entry| entry.path.starts_with(&item.path)) {
        Class::Shared
    } else if item.path.starts_with(layout.config_dir()) {
        Class::Data
    } else {
        let name = item.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let unit = item.path.parent() == Some(layout.unit_dir()) && name.starts_with("picket-");
        if !unit && !item.path.starts_with(layout.program_dir()) {
            tracing::warn!(path = %item.path.display(), "the receipt lists what no installer of Picket makes; left alone");
            return None;
        }
        Class::Program
    };
    let climbs = item.path.components().any(|part| part == std::path::Component::ParentDir);
    (!climbs).then(|| Item { class, ..item.clone() })
}

fn removal(item: &Item) -> Removal {
    match (item.kind, item.class) {
        (Kind::Dir, Class::Shared) => Removal::EmptyDir(item.path.clone()),
        (Kind::Dir, _) => Removal::Tree(item.path.clone()),
        (Kind::File | Kind::Link, _) => Removal::File(item.path.clone()),
    }
}

/// Does what the plan says: service first, then files, the receipt last. `told` hears of each removal.
pub fn remove(
    plan: &RemovalPlan,
    receipt: &Receipt,
    layout: &Layout,
    registrar: &dyn Registrar,
    told: impl FnMut(&Removal),
) -> Result<(), RemovalError> {
    registrar.unregister()?;
    if !plan.keep.is_empty() && layout.update_dir().is_dir() {
        receipt.save_kept(layout)?;
    }
    remove_places(plan, told)
}

/// Removes the plan's users and places; services are stopped by then.
pub fn remove_places(plan: &RemovalPlan, mut told: impl FnMut(&Removal)) -> Result<(), RemovalError> {
    // Before the folders that may hold the receipt: what is interrupted can be done again.
    for user in &plan.remove_users {
        remove_user(user)?;
    }
    for removal in &plan.remove {
        told(removal);
        match removal {
            Removal::Tree(path) => {
                picket_durable::remove_tree(path)?;
            }
            Removal::File(path) => {
                picket_durable::remove_if_present(path)?;
            }
            Removal::EmptyDir(path) => {
                // Not empty: somebody else uses it by now.
                let _ = std::fs::remove_dir(path);
            }
        }
    }
    Ok(())
}

/// Whatever of the installation is still there after a removal, apart from what was meant to be kept.
pub fn leftovers(layout: &Layout, keep: &[PathBuf]) -> Vec<PathBuf> {
    let places = layout.entries().into_iter().filter(|entry| entry.class != Class::Shared).map(|entry| entry.path);
    let units = std::fs::read_dir(layout.unit_dir()).into_iter().flatten().flatten().map(|entry| entry.path());
    let ours =
        units.filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"picket-")));
    let present = places.chain(ours).filter(|path| std::fs::symlink_metadata(path).is_ok());
    present.filter(|path| !keep.iter().any(|kept| path.starts_with(kept))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_layout::Scope;
    use semver::Version;

    #[test]
    fn data_is_kept_unless_it_is_asked_for_and_foreign_folders_only_if_empty() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::of(Scope::Prefix(dir.path().to_owned())).unwrap();
        let mut receipt = Receipt::new(&layout, &Version::new(1, 0, 0), jiff::Timestamp::UNIX_EPOCH);
        for entry in layout.entries().iter().filter(|entry| entry.kind == Kind::Dir) {
            picket_durable::create_dir(&entry.path, entry.mode).unwrap();
            receipt.note(&entry.path, entry.kind, entry.class);
        }
        let kept = plan_removal(&receipt, &layout, false);
        assert!(kept.keep.contains(&layout.state_dir().to_owned()));
        assert!(!kept.keep.contains(&layout.required_hooks()), "a folder in a kept folder is told twice");
        assert!(!kept.remove.iter().any(|removal| removal.path().starts_with(layout.config_dir())));
        let bin = layout.bin_link().parent().unwrap().to_owned();
        assert!(kept.remove.contains(&Removal::EmptyDir(bin)));

        let purged = plan_removal(&receipt, &layout, true);
        assert!(purged.keep.is_empty());
        assert!(purged.remove.contains(&Removal::Tree(layout.state_dir().to_owned())));
    }

    #[test]
    fn a_role_that_is_taken_away_leaves_what_the_other_one_needs() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::of(Scope::Prefix(dir.path().to_owned())).unwrap().with_roles(Roles::ALL);
        let receipt = Receipt::new(&layout, &Version::new(1, 0, 0), jiff::Timestamp::UNIX_EPOCH);
        for entry in layout.entries().iter().filter(|entry| entry.kind == Kind::Dir) {
            picket_durable::create_dir(&entry.path, entry.mode).unwrap();
        }
        let kept = plan_role_removal(&receipt, &layout, Role::Hub, false);
        assert_eq!((kept.remove, kept.keep), (Vec::new(), vec![layout.rules_dir(), layout.hub_dir()]));
        let purged = plan_role_removal(&receipt, &layout, Role::Hub, true);
        let gone: Vec<&Path> = purged.remove.iter().map(Removal::path).collect();
        assert_eq!(gone, [layout.rules_dir(), layout.hub_dir()]);
        let agent = plan_role_removal(&receipt, &layout, Role::Agent, true);
        let stays = [layout.hub_dir(), layout.program_dir().to_owned(), layout.config_dir().to_owned()];
        assert!(agent.remove.contains(&Removal::Tree(layout.state_dir().to_owned())));
        assert!(!agent.remove.iter().any(|removal| stays.iter().any(|stays| stays.starts_with(removal.path()))));
    }
}
