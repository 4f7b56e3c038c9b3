//! Which entries of an archive are taken, and where they go: decided before anything is written.

use super::{ArchiveError, MAX_ENTRIES};
use std::collections::BTreeMap;

/// The longest path in an archive, in bytes, and the deepest, in folders.
const MAX_PATH: usize = 512;
const MAX_DEPTH: usize = 16;
/// The longest name of one file or folder, in bytes (`NAME_MAX` of Linux).
const MAX_NAME: usize = 255;
/// What some system cannot have in a name, or takes for a separator (Windows: "Naming Files, Paths, and Namespaces").
const FOREIGN: &str = "\\:*?\"<>|";

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A folder.
    Folder,
    /// A file of so many bytes.
    File(u64),
}

impl Kind {
    pub(crate) fn length(self) -> Option<u64> {
        match self {
            Self::Folder => None,
            Self::File(length) => Some(length),
        }
    }
}

/// The entries so far.
#[derive(Debug)]
pub(super) struct Plan {
    entries: Vec<(Vec<String>, Kind)>,
    /// By their paths in lower case, with the folders that only other paths name.
    known: BTreeMap<String, Known>,
    room: u64,
    limit: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Folder,
    File,
}

impl Plan {
    /// An empty one, of files with at most `max_bytes` together.
    pub(super) fn new(max_bytes: u64) -> Self {
        Self { entries: Vec::new(), known: BTreeMap::new(), room: max_bytes, limit: max_bytes }
    }

    /// Takes in the next entry, by the name that the archive has for it.
    pub(super) fn add(&mut self, name: &str, kind: Kind) -> Result<(), ArchiveError> {
        if self.entries.len() >= MAX_ENTRIES {
            return Err(ArchiveError::TooMany);
        }
        let parts = parts(name, kind)?;
        self.room = self
            .room
            .checked_sub(kind.length().unwrap_or_default())
            .ok_or(ArchiveError::TooLarge { limit: self.limit })?;
        self.know(name, &parts, kind)?;
        self.entries.push((parts, kind));
        Ok(())
    }

    fn know(&mut self, name: &str, parts: &[String], kind: Kind) -> Result<(), ArchiveError> {
        let clash = || ArchiveError::forbidden("a file where a folder is", name);
        let mut path = String::new();
        for (at, part) in parts.iter().enumerate() {
            if at > 0 {
                path.push('/');
            }
            path.push_str(&part.to_ascii_lowercase());
            let here = if at + 1 == parts.len() && kind != Kind::Folder { Known::File } else { Known::Folder };
            match (self.known.insert(path.clone(), here), here) {
                (None, _) | (Some(Known::Folder), Known::Folder) => {}
                (Some(Known::File), Known::File) => {
                    return Err(ArchiveError::forbidden("two files of one name (upper case counts as lower)", name));
                }
                (Some(Known::File), Known::Folder) | (Some(Known::Folder), Known::File) => return Err(clash()),
            }
        }
        Ok(())
    }

    /// Where each entry goes, in order; `None` for the folder that is left out of the names.
    pub(super) fn places(self) -> Result<Vec<(Option<String>, Kind)>, ArchiveError> {
        let skip = usize::from(has_common_folder(&self.entries));
        let place = |parts: &[String]| parts.get(skip..).filter(|rest| !rest.is_empty()).map(|rest| rest.join("/"));
        let places: Vec<(Option<String>, Kind)> =
            self.entries.iter().map(|(parts, kind)| (place(parts), *kind)).collect();
        let is_executable = |(place, kind): &(Option<String>, Kind)| {
            place.as_deref() == Some(picket_layout::EXECUTABLE) && *kind != Kind::Folder
        };
        if places.iter().any(is_executable) { Ok(places) } else { Err(ArchiveError::NoExecutable) }
    }
}

/// The folders and the name of a path, checked; empty for `./`.
fn parts(name: &str, kind: Kind) -> Result<Vec<String>, ArchiveError> {
    let forbidden = |what| Err(ArchiveError::forbidden(what, name));
    let inside: Vec<&str> = name.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if name.starts_with('/') || inside.contains(&"..") {
        return forbidden("a path that leaves its folder");
    }
    if kind != Kind::Folder && (inside.is_empty() || name.ends_with('/')) {
        return forbidden("a file without a name");
    }
    if name.len() > MAX_PATH || inside.len() > MAX_DEPTH || inside.iter().any(|part| part.len() > MAX_NAME) {
        return forbidden("a path that is too long");
    }
    let odd = |c: char| !(c.is_ascii_graphic() || c == ' ') || FOREIGN.contains(c);
    if name.contains(odd) || inside.iter().any(|part| part.ends_with(['.', ' ']) || part.starts_with(' ')) {
        return forbidden("a name that not every system can have");
    }
    Ok(inside.into_iter().map(str::to_owned).collect())
}

/// Whether one folder holds everything.
fn has_common_folder(entries: &[(Vec<String>, Kind)]) -> bool {
    let Some(first) = entries.iter().find_map(|(parts, _)| parts.first()) else { return false };
    // The folder itself, `./`, or something in it.
    let inside = |(parts, kind): &(Vec<String>, Kind)| match parts.as_slice() {
        [] => true,
        [only] => only == first && *kind == Kind::Folder,
        [folder, ..] => folder == first,
    };
    entries.iter().all(inside)
}
