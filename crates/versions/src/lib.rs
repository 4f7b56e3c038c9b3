//! The folder of installed versions: complete or absent, recorded byte for byte.
//!
//! The installer puts the first version there, the updater every later one. A version is prepared in a staging folder
//! on the same volume, recorded, synced, and given its name by one rename; which one counts is said by two links.

mod dirs;
mod record;

pub use dirs::{PlaceError, VersionDirs, sha256_of};
pub use record::{FileRecord, RecordError, VersionRecord, VersionSource, record_files};
