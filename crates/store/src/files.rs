//! Opening files of the store's folder, in which a less privileged user may have put anything.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Opens a regular file for reading; `None` where there is none. Waits on no pipe and follows no link: whoever works as
/// root must neither hang nor be led away (`open(2)`: `O_NONBLOCK`, `O_NOFOLLOW`).
pub(crate) fn open(path: &Path) -> io::Result<Option<File>> {
    use rustix::fs::OFlags;
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    match OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path) {
        Ok(file) if file.metadata()?.is_file() => Ok(Some(file)),
        Ok(_) => Err(io::Error::other("it is not a regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
