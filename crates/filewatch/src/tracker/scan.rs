//! Looking through folders and comparing them with the baseline: at the start, after an overflow, and wherever a new
//! folder came up. A folder is watched first and read then, so nothing falls between.

use super::compare::Hints;
use super::pending::Key;
use super::{Look, Result, Tracker, inferred};
use crate::baseline::{Id, Node, TOP};
use crate::folders::{OpenError, is_pseudo, readable};
use crate::stat::Stat;
use crate::watches::{Refusal, Scope};
use rustix::fs::Dir;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How long the scan goes on before notices have their turn; one folder is read in one go all the same.
const SLICE: Duration = Duration::from_millis(10);
/// How many names that are gone may wait for the end of the scan, to be found again elsewhere.
const MISSING_MAX: usize = 100_000;
/// When a folder that fanotify tells of from its first moment is looked through, to be sure.
const LATE: Duration = Duration::from_secs(2);
/// How many such folders may wait.
const LATE_MAX: usize = 1 << 16;

/// The folders to look through.
#[derive(Default)]
pub(super) struct Scan {
    /// Rows of folders: 8 bytes each, as many as there are folders at most.
    stack: Vec<Id>,
    late: VecDeque<(Instant, Id)>,
    /// Rows whose names were not there: gone, or renamed to where the scan did not come yet.
    pub(super) missing: Vec<Id>,
    /// A look through all paths is under way.
    whole: bool,
}

impl Scan {
    pub(super) fn push(&mut self, id: Id) {
        self.stack.push(id);
    }

    /// Looks through a folder after what the kernel has to say of it.
    pub(super) fn push_late(&mut self, id: Id, now: Instant) {
        if self.late.len() < LATE_MAX {
            self.late.push_back((now + LATE, id));
        } else {
            self.stack.push(id);
        }
    }

    pub(super) fn next_late(&self) -> Option<Instant> {
        self.late.front().map(|(at, _)| *at)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.stack.is_empty() && !self.whole
    }
}

impl Tracker {
    /// Takes up the configured paths; what the baseline knows and nobody asks for any more goes without a word.
    pub(super) fn begin(&mut self) -> Result<()> {
        for id in self.baseline.children(TOP)? {
            if let Some(node) = self.baseline.node(id)?
                && !self.roots.contains(&node.name)
            {
                self.forget(&node, None)?;
            }
        }
        self.scan.whole = true;
        let mut missing = Vec::new();
        for root in self.roots.clone() {
            let node = self.baseline.child(TOP, &root)?;
            let look = self.look(TOP, &root)?;
            match (node, look) {
                (None, Look::There(stat)) => {
                    let id = self.baseline.insert(TOP, &root, &stat)?;
                    self.incomplete.insert(id);
                    self.enter(id, TOP, &stat)?;
                }
                (Some(node), Look::There(stat)) => {
                    if !self.baseline.is_complete(node.id)? {
                        self.incomplete.insert(node.id);
                    }
                    self.compare(TOP, &root, Some(node.clone()), &stat, &Hints::default())?;
                    if self.baseline.node(node.id)?.is_some() {
                        self.enter(node.id, TOP, &stat)?;
                    }
                }
                (Some(node), Look::Gone) => self.forget(&node, Some(&inferred()))?,
                (_, Look::Unknown) | (None, Look::Gone) => {}
            }
            if look == Look::Gone {
                missing.push(String::from_utf8_lossy(&root).into_owned());
            }
        }
        self.publish(missing);
        Ok(())
    }

    /// Looks through all paths again.
    pub(super) fn rescan_all(&mut self) -> Result<()> {
        self.scan.whole = true;
        for root in self.roots.clone() {
            self.folders.forget();
            let key: Key = (TOP, root.into());
            self.verify_now(&key)?;
            if let Some(node) = self.baseline.child(TOP, &key.1)?
                && node.stat.is_directory()
            {
                self.scan.push(node.id);
            }
        }
        Ok(())
    }

    /// Looks through some folders; whether there was anything to do.
    pub(super) fn scan_some(&mut self) -> Result<bool> {
        let began = Instant::now();
        while self.scan.late.front().is_some_and(|(at, _)| *at <= began) {
            if let Some((_, id)) = self.scan.late.pop_front() {
                self.scan.push(id);
            }
        }
        if self.scan.stack.is_empty() && !self.scan.whole && self.scan.missing.is_empty() {
            return Ok(false);
        }
        while let Some(id) = self.scan.stack.pop() {
            self.scan_folder(id)?;
            if began.elapsed() > SLICE {
                return Ok(true);
            }
        }
        for id in std::mem::take(&mut self.scan.missing) {
            if let Some(node) = self.baseline.node(id)? {
                self.verify_now(&(node.parent, node.name.into()))?;
            }
        }
        if !self.scan.stack.is_empty() {
            return Ok(true);
        }
        if std::mem::take(&mut self.scan.whole) {
            self.parts.counts.rescans.add(1);
            for id in std::mem::take(&mut self.incomplete) {
                self.baseline.set_complete(id, true)?;
            }
            tracing::debug!("all watched paths were looked through");
            self.next_tick = Instant::now();
        }
        Ok(true)
    }

    fn scan_folder(&mut self, id: Id) -> Result<()> {
        let Some(node) = self.baseline.node(id)? else { return Ok(()) };
        let Some(folder) = self.open_same(&node)? else { return Ok(()) };
        let folder = &*folder;
        if node.parent != TOP
            && let Some(above) = self.baseline.node(node.parent)?
            && above.stat.dev != node.stat.dev
            && is_pseudo(folder)
        {
            return Ok(());
        }
        let scope = if node.parent == TOP { Scope::Root } else { Scope::Folder };
        match self.watches.cover(id, folder, node.stat.dev, scope) {
            Ok(()) => {
                self.unwatched.remove(&id);
            }
            Err(Refusal::Limit) => {
                self.unwatched.insert(id);
            }
            // Reading it fails the same way, below.
            Err(Refusal::Errno(Errno::ACCESS)) => {}
            Err(Refusal::Errno(error)) => {
                tracing::warn!(%error, "a folder cannot be watched and is compared from time to time");
                self.unwatched.insert(id);
            }
        }
        let entries = readable(folder).and_then(Dir::new);
        let Ok(mut entries) = entries else {
            self.unreadable.insert(id);
            return Ok(());
        };
        self.unreadable.remove(&id);
        let mut seen = Vec::new();
        while let Some(entry) = entries.read() {
            let Ok(entry) = entry else {
                // Half a listing proves nothing about what is missing from it.
                tracing::warn!("a folder could not be read to its end");
                return Ok(());
            };
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                seen.extend(self.scan_name(id, folder, name)?);
            }
        }
        seen.sort_unstable();
        for child in self.baseline.children(id)? {
            if seen.binary_search(&child).is_err() {
                if self.scan.missing.len() < MISSING_MAX {
                    self.scan.missing.push(child);
                } else if let Some(node) = self.baseline.node(child)? {
                    self.verify_now(&(node.parent, node.name.into()))?;
                }
            }
        }
        Ok(())
    }

    /// Opens a folder of the baseline if it is still the same one; otherwise its name is looked at again.
    fn open_same(&mut self, node: &Node) -> Result<Option<std::sync::Arc<OwnedFd>>> {
        match self.folders.open(&self.baseline, node.id) {
            Ok(folder) => {
                let same = Stat::of_fd(&*folder).is_ok_and(|stat| stat.same_file(&node.stat));
                if same {
                    return Ok(Some(folder));
                }
                self.folders.forget();
            }
            Err(OpenError::Baseline(error)) => return Err(error),
            Err(OpenError::Io(Errno::ACCESS)) => {
                self.unreadable.insert(node.id);
                return Ok(None);
            }
            Err(OpenError::Io(_)) => self.folders.forget(),
        }
        self.note(node.parent, &node.name, super::Why::Check, &inferred());
        Ok(None)
    }

    /// Compares one name of a folder; gives its row.
    fn scan_name(&mut self, parent: Id, folder: &OwnedFd, name: &[u8]) -> Result<Option<Id>> {
        let node = self.baseline.child(parent, name)?;
        let Ok(stat) = Stat::of(folder, name) else {
            return Ok(node.map(|node| node.id));
        };
        let before = node.as_ref().map(|node| node.id);
        let unchanged = node.as_ref().is_some_and(|node| node.stat == stat);
        let id = if unchanged { before } else { self.compare(parent, name, node, &stat, &Hints::default())? };
        if let Some(id) = id
            && Some(id) == before
            && stat.is_directory()
        {
            self.enter(id, parent, &stat)?;
        }
        Ok(id)
    }
}
