//! Working in the agent's folders as their owner, whoever calls.
//!
//! In a system installation the store belongs to the user `picket`, and a person works on it as root. Files that root made
//! there would lock out the agent, and a link that a subverted agent planted there could lead root anywhere. So root
//! becomes the owner of the state folder for as long as it works there: what it makes is the owner's, and it reaches no
//! more than the owner does. Only the effective ids change, and come back at the end; a process of the owner can neither
//! trace nor signal this one meanwhile (its real user is root, and it is not dumpable, `prctl(2)`).

use crate::error::CommandError;
use nix::unistd::{Gid, Uid, getegid, geteuid, getgroups, setegid, seteuid, setgroups};
use picket_layout::Layout;
use picket_store::{DATABASE, StoreError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Lets `work` run as the owner of the state folder.
///
/// # Errors
/// [`CommandError::NotOwner`] for whoever is neither the owner nor root, and that there is no store where there is no
/// state folder.
pub(crate) fn as_owner<T>(layout: &Layout, work: impl FnOnce() -> Result<T, CommandError>) -> Result<T, CommandError> {
    let folder = layout.state_dir();
    if let Err(error) = std::fs::symlink_metadata(folder)
        && error.kind() == io::ErrorKind::NotFound
    {
        return Err(StoreError::Absent(layout.store_dir().join(DATABASE)).into());
    }
    as_owner_of(folder, work)
}

/// Lets `work` run as the owner of `folder`.
///
/// # Errors
/// [`CommandError::NotOwner`] for whoever is neither the owner nor root, and when there is no such folder.
pub(crate) fn as_owner_of<T>(folder: &Path, work: impl FnOnce() -> Result<T, CommandError>) -> Result<T, CommandError> {
    let meta = match std::fs::symlink_metadata(folder) {
        Ok(meta) if meta.is_dir() => meta,
        Ok(_) => return Err(CommandError::system(format!("{} is not a folder", folder.display()), not_a_folder())),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(CommandError::NotOwner(folder.to_owned()));
        }
        Err(error) => return Err(CommandError::system(format!("cannot look at {}", folder.display()), error)),
    };
    if geteuid() == Uid::from_raw(meta.uid()) {
        return work();
    }
    if !geteuid().is_root() {
        return Err(CommandError::NotOwner(folder.to_owned()));
    }
    let become_owner = |error: nix::Error| {
        CommandError::system(format!("cannot work as the owner of {}", folder.display()), error.into())
    };
    let _guard = Guise::put_on(Uid::from_raw(meta.uid()), Gid::from_raw(meta.gid())).map_err(become_owner)?;
    work()
}

fn not_a_folder() -> io::Error {
    io::ErrorKind::NotADirectory.into()
}

/// Another user's effective ids; taken off when dropped.
struct Guise {
    group: Gid,
    groups: Vec<Gid>,
}

impl Guise {
    fn put_on(user: Uid, group: Gid) -> nix::Result<Self> {
        let guise = Self { group: getegid(), groups: getgroups()? };
        // Groups first: without root they can no longer be changed. A step that fails drops the value, which undoes all.
        setgroups(&[group])?;
        setegid(group)?;
        seteuid(user)?;
        Ok(guise)
    }
}

impl Drop for Guise {
    fn drop(&mut self) {
        // The saved user is root still. Should it fail all the same, the process goes on with fewer rights, not more.
        let _ = seteuid(Uid::from_raw(0));
        let _ = setegid(self.group);
        let _ = setgroups(&self.groups);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_layout::Scope;
    use std::os::unix::fs::chown;

    #[test]
    fn root_leaves_nothing_of_its_own_in_the_folder_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::of(Scope::Prefix(dir.path().to_owned())).unwrap();
        let (folder, file) = (layout.state_dir(), layout.state_dir().join("file"));
        picket_durable::create_dir(folder, 0o700).unwrap();
        if rustix::process::geteuid().is_root() {
            chown(folder, Some(65_534), Some(65_534)).unwrap();
            chown(dir.path(), Some(65_534), Some(65_534)).unwrap();
        }
        let owner = std::fs::metadata(folder).unwrap().uid();
        as_owner(&layout, || Ok(picket_durable::write_atomic(&file, b"x", 0o600)?)).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().uid(), owner);
        // And this thread is still who it was.
        let own = rustix::process::geteuid().as_raw();
        let mine = tempfile::tempdir().unwrap();
        assert_eq!(std::fs::metadata(mine.path()).unwrap().uid(), own);
    }
}
