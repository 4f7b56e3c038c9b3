//! From verified bytes to a complete version folder: unpacked with limits, recorded, renamed into place.

mod archive;
mod record;
mod version_dir;

pub use archive::{ArchiveError, Format, unpack};
pub use record::{FileRecord, RecordError, VersionRecord, VersionSource};
pub use version_dir::{StageError, VersionDirs, sha256_of};
