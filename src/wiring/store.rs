//! Reading what is kept, for commands that only look.

use super::as_owner;
use crate::error::CommandError;
use picket_layout::Layout;
use picket_store::{Reader, StoreError};
use std::io;

/// Gives a reader of the installation's store to `work`, as the store's owner. Works beside a running agent and without
/// one.
///
/// # Errors
/// [`StoreError::Absent`] where nothing was kept yet; else what the store or `work` says.
pub(crate) fn read_store<T>(
    layout: &Layout,
    work: impl FnOnce(&Reader) -> Result<T, StoreError>,
) -> Result<T, CommandError> {
    let folder = layout.store_dir();
    match std::fs::symlink_metadata(folder.join(picket_store::DATABASE)) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(StoreError::Absent(folder).into()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && layout.scope().needs_root() => {
            return Err(CommandError::NeedsRoot("reading the store"));
        }
        Err(error) => return Err(picket_durable::Error::new("inspect", &folder, error).into()),
    }
    as_owner(layout, || {
        // There is a database, so no key is made here.
        let keyring = picket_store::keyring(&layout.store_key(), &folder)?;
        Ok(work(&Reader::open(&folder, &keyring)?)?)
    })
}
