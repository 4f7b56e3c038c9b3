//! The folder of versions: how one gets in, which ones are linked, and which may go.

use crate::record::{RecordError, VersionRecord, VersionSource, hash, record_files};
use picket_durable::Context;
use picket_layout::{EXECUTABLE, Layout};
use picket_protocol::TargetTriple;
use semver::Version;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The versions of one installation.
#[derive(Debug, Clone)]
pub struct VersionDirs<'a> {
    layout: &'a Layout,
}

/// A version that could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// A file could not be written.
    #[error("the version cannot be put in place")]
    File(#[from] picket_durable::Error),
    /// Another build of the same version is in use.
    #[error("version {version} is {link} already, with other content (SHA-256 {sha256})")]
    InUse {
        /// The version.
        version: Version,
        /// `current` or `previous`.
        link: &'static str,
        /// The hash of the one in use.
        sha256: picket_protocol::Sha256Digest,
    },
}

impl<'a> VersionDirs<'a> {
    /// The versions of `layout`.
    pub fn new(layout: &'a Layout) -> Self {
        Self { layout }
    }

    /// The version behind the `current` link.
    pub fn current(&self) -> Option<Version> {
        linked(&self.layout.current_link())
    }

    /// The same, where it matters whether there is no such link, or whether it cannot be looked at.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn look_at_current(&self) -> Result<Option<Version>, picket_durable::Error> {
        look_at(&self.layout.current_link())
    }

    /// The version behind the `previous` link, if its folder is complete and it is another than the current one: a switch
    /// that was broken off between the two links leaves them alike.
    pub fn previous(&self) -> Option<Version> {
        let other = linked(&self.layout.previous_link()).filter(|version| Some(version) != self.current().as_ref());
        other.filter(|version| self.record(version).is_ok())
    }

    /// The record of an installed version.
    pub fn record(&self, version: &Version) -> Result<VersionRecord, RecordError> {
        VersionRecord::load(&self.layout.version_dir(version))
    }

    /// The record of an installed version, if every one of its files is what it says.
    pub fn intact(&self, version: &Version) -> Result<VersionRecord, RecordError> {
        let record = self.record(version)?;
        record.check(&self.layout.version_dir(version))?;
        Ok(record)
    }

    /// Every complete version, oldest first.
    pub fn all(&self) -> Vec<Version> {
        let entries = std::fs::read_dir(self.layout.versions_dir()).into_iter().flatten().flatten();
        let mut versions: Vec<Version> = entries
            .filter_map(|entry| Version::parse(entry.file_name().to_str()?).ok())
            .filter(|version| self.record(version).is_ok())
            .collect();
        versions.sort();
        versions
    }

    /// Copies an executable into the staging folder, as the only file of its version.
    pub fn copy(&self, exe: &Path) -> Result<(), PlaceError> {
        let staging = self.fresh_staging()?;
        Ok(picket_durable::copy_file(exe, &staging.join(EXECUTABLE), 0o755)?)
    }

    /// An empty staging folder, for a version to be unpacked into; [`VersionDirs::place`] comes next.
    pub fn fresh_staging(&self) -> Result<PathBuf, picket_durable::Error> {
        let staging = self.layout.staging_dir();
        picket_durable::remove_tree(&staging)?;
        picket_durable::create_dir(&staging, Layout::version_mode())?;
        Ok(staging)
    }

    /// Records what is in the staging folder, syncs all of it, and gives it its final name in one rename.
    ///
    /// A version that is linked and has the same content is left as it is: its folder must not be gone for a moment. One
    /// whose files are damaged is replaced.
    ///
    /// # Errors
    /// When another build of the version is linked. One that is not linked is replaced.
    pub fn place(
        &self,
        version: &Version,
        target: &TargetTriple,
        source: VersionSource,
        now: jiff::Timestamp,
    ) -> Result<(), PlaceError> {
        let staging = self.layout.staging_dir();
        let place = self.layout.version_dir(version);
        let files = record_files(&staging)?;
        let record =
            VersionRecord { schema: 1, version: version.clone(), target: target.clone(), source, files, staged: now };
        for (link, linked) in [("current", self.current()), ("previous", self.previous())] {
            if linked.as_ref() != Some(version) {
                continue;
            }
            let known = match self.record(version) {
                Ok(known) => known,
                // It may well be whole.
                Err(RecordError::File(error)) => return Err(error.into()),
                Err(_) => continue,
            };
            if known.files != record.files {
                let sha256 = known.source.sha256();
                return Err(PlaceError::InUse { version: version.clone(), link, sha256 });
            }
            match known.check(&place) {
                Ok(()) => {}
                Err(RecordError::File(error)) => return Err(error.into()),
                // Its files were these and are damaged: there is nothing in the way that could run.
                Err(_) => continue,
            }
            // The same bytes. A copy that a person installed is known as the signed release from now on.
            if known.source != record.source {
                VersionRecord { source: record.source, ..known }.save(&place)?;
            }
            picket_durable::remove_tree(&staging)?;
            return Ok(());
        }
        record.save(&staging)?;
        picket_durable::sync_tree(&staging)?;
        picket_durable::remove_tree(&place)?;
        picket_durable::rename(&staging, &place)?;
        Ok(())
    }

    /// Puts what is in the staging folder in the place of a damaged version, by one exchange of names: a link to the
    /// version leads to a complete one at every instant.
    ///
    /// # Errors
    /// Also where the file system cannot exchange names (NFS, say); nothing was changed then.
    pub fn exchange(
        &self,
        version: &Version,
        target: &TargetTriple,
        source: VersionSource,
        now: jiff::Timestamp,
    ) -> Result<(), picket_durable::Error> {
        let staging = self.layout.staging_dir();
        let place = self.layout.version_dir(version);
        let files = record_files(&staging)?;
        let record =
            VersionRecord { schema: 1, version: version.clone(), target: target.clone(), source, files, staged: now };
        record.save(&staging)?;
        picket_durable::sync_tree(&staging)?;
        picket_durable::exchange(&staging, &place)?;
        picket_durable::remove_tree(&staging).map(drop)
    }

    /// Removes staged leftovers and versions that are not needed: never `current`, `previous` or one that a process
    /// runs, none of `wanted`, and none that was put here less than `keep` ago. Returns what was removed.
    pub fn prune(
        &self,
        wanted: &BTreeSet<Version>,
        keep: Duration,
        now: jiff::Timestamp,
    ) -> Result<Vec<Version>, picket_durable::Error> {
        picket_durable::remove_tree(&self.layout.staging_dir())?;
        let links = [look_at(&self.layout.current_link())?, look_at(&self.layout.previous_link())?];
        let mut needed: BTreeSet<Version> = links.into_iter().flatten().collect();
        // Without a proven version there is nothing that could tell what is needed.
        if needed.is_empty() {
            return Ok(Vec::new());
        }
        needed.extend(self.running());
        needed.extend(wanted.iter().cloned());
        let mut removed = Vec::new();
        for entry in std::fs::read_dir(self.layout.versions_dir()).into_iter().flatten().flatten() {
            let Some(version) = entry.file_name().to_str().and_then(|name| Version::parse(name).ok()) else { continue };
            let staged = self.record(&version).map(|record| record.staged).ok();
            let young = staged.is_some_and(|staged| now.duration_since(staged).unsigned_abs() < keep);
            if !needed.contains(&version) && !young {
                picket_durable::remove_tree(&entry.path())?;
                removed.push(version);
            }
        }
        Ok(removed)
    }

    /// Removes one version, unless it is linked or runs; says whether it did.
    pub fn remove(&self, version: &Version) -> Result<bool, picket_durable::Error> {
        let links = [look_at(&self.layout.current_link())?, look_at(&self.layout.previous_link())?];
        if links.iter().flatten().any(|linked| linked == version) || self.running().contains(version) {
            return Ok(false);
        }
        picket_durable::remove_tree(&self.layout.version_dir(version))
    }

    /// The versions whose executable some process runs, as far as this process may see.
    fn running(&self) -> BTreeSet<Version> {
        let versions_dir = self.layout.versions_dir();
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        processes
            .filter_map(|process| std::fs::read_link(process.path().join("exe")).ok())
            .filter_map(|exe| {
                let inside = exe.strip_prefix(&versions_dir).ok()?;
                Version::parse(inside.components().next()?.as_os_str().to_str()?).ok()
            })
            .collect()
    }
}

/// The version that a link names.
fn linked(link: &Path) -> Option<Version> {
    look_at(link).ok().flatten()
}

/// The version that a link names, if there is such a link.
fn look_at(link: &Path) -> Result<Option<Version>, picket_durable::Error> {
    match std::fs::read_link(link) {
        Ok(target) => Ok(named(&target)),
        // It is not there, or is no link.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => Ok(None),
        Err(error) => Err(picket_durable::Error::new("read", link, error)),
    }
}

fn named(target: &Path) -> Option<Version> {
    Version::parse(target.file_name()?.to_str()?).ok()
}

/// The SHA-256 of the file at `path`.
pub fn sha256_of(path: &Path) -> Result<picket_protocol::Sha256Digest, picket_durable::Error> {
    let mut file = File::open(path).doing("read", path)?;
    Ok(hash(&mut file).doing("read", path)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_layout::Scope;

    fn version(minor: u64) -> Version {
        Version::new(1, minor, 0)
    }

    fn place(layout: &Layout, minor: u64, content: &[u8], now: jiff::Timestamp) -> Result<(), PlaceError> {
        let dirs = VersionDirs::new(layout);
        let exe = layout.program_dir().join("exe");
        picket_durable::write_atomic(&exe, content, 0o755)?;
        dirs.copy(&exe)?;
        let source = VersionSource::Installed { sha256: sha256_of(&exe)? };
        dirs.place(&version(minor), &"x86_64-unknown-linux-musl".parse().unwrap(), source, now)
    }

    fn layout(dir: &Path) -> Layout {
        let layout = Layout::of(Scope::Prefix(dir.to_owned())).unwrap();
        picket_durable::create_dir(&layout.versions_dir(), 0o755).unwrap();
        layout
    }

    fn point(link: &Path, minor: u64) {
        picket_durable::replace_symlink(link, &Layout::link_target(&version(minor))).unwrap();
    }

    #[test]
    fn a_placed_version_is_complete_and_a_changed_byte_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let dirs = VersionDirs::new(&layout);
        place(&layout, 0, b"one", jiff::Timestamp::now()).unwrap();
        assert!(dirs.intact(&version(0)).is_ok());
        assert!(!layout.staging_dir().exists());
        picket_durable::write_atomic(&layout.version_exe(&version(0)), b"two", 0o755).unwrap();
        let error = dirs.intact(&version(0)).unwrap_err().to_string();
        assert!(error.contains("is not what was put there"), "{error}");
    }

    #[test]
    fn pruning_never_takes_what_is_linked_or_young() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let dirs = VersionDirs::new(&layout);
        let now = jiff::Timestamp::now();
        let long_ago = now - jiff::SignedDuration::from_hours(30 * 24);
        for minor in 0..4 {
            place(&layout, minor, &[b'0', u8::try_from(minor).unwrap()], long_ago).unwrap();
        }
        place(&layout, 4, b"young", now).unwrap();
        let week = Duration::from_secs(7 * 86_400);
        assert_eq!(dirs.prune(&BTreeSet::new(), week, now).unwrap(), [], "without a proven version nothing may go");
        point(&layout.current_link(), 3);
        point(&layout.previous_link(), 2);
        let mut removed = dirs.prune(&BTreeSet::from([version(0)]), week, now).unwrap();
        removed.sort();
        assert_eq!(removed, [version(1)]);
        assert_eq!(dirs.all(), [version(0), version(2), version(3), version(4)]);
        assert!(!dirs.remove(&version(3)).unwrap(), "the current version was removed");
        assert!(dirs.remove(&version(4)).unwrap());
    }

    #[test]
    fn a_linked_version_that_lost_a_file_is_whole_when_it_is_placed_again() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let now = jiff::Timestamp::now();
        place(&layout, 0, b"one", now).unwrap();
        point(&layout.current_link(), 0);
        picket_durable::remove_if_present(&layout.version_exe(&version(0))).unwrap();
        place(&layout, 0, b"one", now).unwrap();
        assert!(VersionDirs::new(&layout).intact(&version(0)).is_ok());
    }

    #[test]
    fn a_linked_version_that_cannot_be_looked_at_is_not_taken_for_a_damaged_one() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let dirs = VersionDirs::new(&layout);
        let now = jiff::Timestamp::now();
        place(&layout, 0, b"one", now).unwrap();
        point(&layout.current_link(), 0);
        let record = layout.version_dir(&version(0)).join("version.json");
        let aside = dir.path().join("aside");
        picket_durable::rename(&record, &aside).unwrap();
        // A link to itself: there is something, and nobody can read it.
        std::os::unix::fs::symlink(&record, &record).unwrap();
        assert!(place(&layout, 0, b"two", now).is_err(), "it was replaced");
        std::fs::remove_file(&record).unwrap();
        picket_durable::rename(&aside, &record).unwrap();
        assert!(dirs.intact(&version(0)).is_ok());
    }

    #[test]
    fn nothing_is_pruned_or_removed_where_the_links_cannot_be_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("loop");
        std::os::unix::fs::symlink(&top, &top).unwrap();
        let layout = Layout::of(Scope::Prefix(top)).unwrap();
        let dirs = VersionDirs::new(&layout);
        assert!(dirs.prune(&BTreeSet::new(), Duration::ZERO, jiff::Timestamp::now()).is_err());
        assert!(dirs.remove(&version(1)).is_err());
    }

    #[test]
    fn what_is_current_is_nothing_to_go_back_to() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let dirs = VersionDirs::new(&layout);
        for minor in [0, 1] {
            place(&layout, minor, &[1, u8::try_from(minor).unwrap()], jiff::Timestamp::now()).unwrap();
        }
        point(&layout.current_link(), 1);
        point(&layout.previous_link(), 0);
        assert_eq!(dirs.previous(), Some(version(0)));
        point(&layout.previous_link(), 1);
        assert_eq!(dirs.previous(), None);
    }

    #[test]
    fn a_linked_version_is_not_replaced_by_another_build_of_the_same_number() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let now = jiff::Timestamp::now();
        place(&layout, 0, b"one", now).unwrap();
        point(&layout.current_link(), 0);
        assert!(matches!(place(&layout, 0, b"other", now), Err(PlaceError::InUse { link: "current", .. })));
        place(&layout, 0, b"one", now).unwrap();
        assert_eq!(VersionDirs::new(&layout).current(), Some(version(0)));
    }
}
