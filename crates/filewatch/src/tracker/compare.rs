//! Comparing a name with the baseline, and telling the difference.

use super::pending::{Entry, Key, Seen};
use super::{Look, Result, Tracker, inferred};
use crate::baseline::{Id, Node, TOP};
use crate::stat::Stat;
use crate::watches::Scope;
use picket_protocol::event::{Confidence, FileAction, FileMethod};
use rustix::fs::{CWD, Mode, OFlags, openat};

/// What is known besides the two sides.
#[derive(Debug, Clone, Default)]
pub(super) struct Hints {
    /// What the kernel said, and when.
    pub(super) seen: Option<Seen>,
    pub(super) wrote: bool,
    pub(super) closed: bool,
    pub(super) attributes: bool,
    pub(super) moved: bool,
}

impl Tracker {
    /// Looks at a name that came to rest.
    pub(super) fn verify(&mut self, key: &Key, entry: &Entry) -> Result<()> {
        let hints = Hints {
            seen: Some(entry.seen.clone()),
            wrote: entry.wrote,
            closed: entry.closed,
            attributes: entry.attributes,
            moved: entry.moved,
        };
        self.verify_with(key, &hints)
    }

    /// Looks at a name of which nothing was said.
    pub(super) fn verify_now(&mut self, key: &Key) -> Result<()> {
        self.verify_with(key, &Hints::default())
    }

    fn verify_with(&mut self, (parent, name): &Key, hints: &Hints) -> Result<()> {
        if *parent != TOP && self.baseline.node(*parent)?.is_none() {
            return Ok(());
        }
        let node = self.baseline.child(*parent, name)?;
        match self.look(*parent, name)? {
            Look::There(stat) => self.compare(*parent, name, node, &stat, hints).map(drop),
            Look::Gone => match node {
                Some(node) => self.forget(&node, Some(&inferred())),
                None => Ok(()),
            },
            Look::Unknown => Ok(()),
        }
    }

    /// Compares what is there with the baseline, tells what differs, and keeps it. Gives the row it has now; none if
    /// the name is not wanted.
    pub(super) fn compare(
        &mut self,
        parent: Id,
        name: &[u8],
        node: Option<Node>,
        stat: &Stat,
        hints: &Hints,
    ) -> Result<Option<Id>> {
        let path = self.baseline.path_of(parent, name)?;
        if !self.parts.filter.wants(&path, stat.is_directory()) {
            if let Some(node) = node {
                self.forget(&node, None)?;
            }
            return Ok(None);
        }
        let Some(node) = node else {
            return self.appeared(parent, name, &path, stat, hints).map(Some);
        };
        if !node.stat.is_known() {
            // It was told of already, before anybody could look at it.
            self.baseline.update(node.id, stat)?;
            self.enter(node.id, parent, stat)?;
            if hints.wrote || hints.closed {
                self.tell_modified(parent, name, &path, stat, hints);
            }
            return Ok(Some(node.id));
        }
        let other_file = !node.stat.same_file(stat);
        if !node.stat.same_kind(stat) || (other_file && stat.is_directory()) {
            self.folders.forget();
            self.forget(&node, Some(&inferred()))?;
            return self.appeared(parent, name, &path, stat, hints).map(Some);
        }
        self.changed(parent, name, &path, &node, stat, hints)?;
        Ok(Some(node.id))
    }

    /// Tells what changed of a file that is still of the same kind.
    fn changed(&mut self, parent: Id, name: &[u8], path: &[u8], node: &Node, stat: &Stat, hints: &Hints) -> Result<()> {
        let content = !stat.is_directory()
            && (hints.wrote || !node.stat.same_file(stat) || (stat.is_regular() && !node.stat.same_content(stat)));
        let unexplained = !stat.is_directory() && !hints.moved && hints.seen.is_none() && node.stat.ctime != stat.ctime;
        if content {
            self.tell_modified(parent, name, path, stat, hints);
        }
        if !node.stat.same_attributes(stat) || hints.attributes {
            let seen = if hints.attributes { hints.seen.clone() } else { None };
            self.tell(FileAction::Attributes, path, None, stat, &seen.unwrap_or_else(inferred), None);
        } else if unexplained && !content {
            // Links, extended attributes, or a time of change that was set back after a write: the hash tells.
            let hash = self.hash_job(parent, name, stat);
            self.tell(FileAction::Attributes, path, None, stat, &inferred(), hash);
        }
        if node.stat != *stat {
            self.baseline.update(node.id, stat)?;
        }
        Ok(())
    }

    fn tell_modified(&mut self, parent: Id, name: &[u8], path: &[u8], stat: &Stat, hints: &Hints) {
        let seen = if hints.wrote || hints.closed { hints.seen.clone() } else { None };
        let hash = self.hash_job(parent, name, stat);
        self.tell(FileAction::Modified, path, None, stat, &seen.unwrap_or_else(inferred), hash);
    }

    /// A name that the baseline does not have.
    fn appeared(&mut self, parent: Id, name: &[u8], path: &[u8], stat: &Stat, hints: &Hints) -> Result<Id> {
        let quiet = self.is_first_look(parent)? && !self.is_younger(stat);
        if !quiet && let Some(id) = self.found_again(parent, name, path, stat, hints)? {
            return Ok(id);
        }
        let id = self.baseline.insert(parent, name, stat)?;
        if quiet {
            if hints.wrote || hints.closed {
                self.tell_modified(parent, name, path, stat, hints);
            }
        } else {
            let hash = self.hash_job(parent, name, stat);
            self.tell(FileAction::Created, path, None, stat, &inferred(), hash);
        }
        if parent == TOP {
            // It came while we watched for it: all in it is new.
            self.baseline.set_complete(id, true)?;
        }
        self.enter(id, parent, stat)?;
        Ok(id)
    }

    /// Whether the file is one that the baseline has under another name, where it is no more. Then it was renamed.
    fn found_again(&mut self, parent: Id, name: &[u8], path: &[u8], stat: &Stat, hints: &Hints) -> Result<Option<Id>> {
        if parent == TOP {
            return Ok(None);
        }
        for candidate in self.baseline.with_inode(stat.ino)? {
            if candidate.parent == TOP || !candidate.stat.moved_to(stat) {
                continue;
            }
            let still_there = match self.look(candidate.parent, &candidate.name)? {
                Look::There(there) => there.same_file(stat),
                Look::Gone => false,
                Look::Unknown => true,
            };
            // A folder never lies in itself; where the baseline says so it is behind, and the comparison goes on.
            if still_there || self.baseline.is_within(parent, candidate.id)? {
                continue;
            }
            let from = self.baseline.path_of(candidate.parent, &candidate.name)?;
            self.baseline.rename(&candidate, parent, name)?;
            self.folders.forget();
            self.tell(FileAction::Renamed, path, Some(&from), stat, &inferred(), None);
            let hints = Hints { moved: true, ..hints.clone() };
            self.changed(parent, name, path, &candidate, stat, &hints)?;
            self.enter(candidate.id, parent, stat)?;
            return Ok(Some(candidate.id));
        }
        Ok(None)
    }

    /// Whether the configured path that the folder lies in is looked at for the first time.
    pub(super) fn is_first_look(&self, mut folder: Id) -> Result<bool> {
        if self.incomplete.is_empty() {
            return Ok(false);
        }
        while let Some(node) = if folder == TOP { None } else { self.baseline.node(folder)? } {
            if node.parent == TOP {
                return Ok(self.incomplete.contains(&node.id));
            }
            folder = node.parent;
        }
        Ok(false)
    }

    /// Whether the file was made after we began to watch, or in the same step of the clock.
    fn is_younger(&self, stat: &Stat) -> bool {
        stat.btime != 0 && stat.btime >= self.started
    }

    /// Watches and looks through a folder (or a single configured file) that was found.
    pub(super) fn enter(&mut self, id: Id, parent: Id, stat: &Stat) -> Result<()> {
        if stat.is_directory() {
            if parent == TOP || self.parts.settings.recursive {
                self.scan.push(id);
            }
        } else if parent == TOP {
            let path = self.baseline.path(id)?;
            if let Ok(file) = openat(CWD, &*path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                && self.watches.cover(id, &file, stat.dev, Scope::File).is_err()
            {
                self.unwatched.insert(id);
            }
            self.incomplete.remove(&id);
            self.baseline.set_complete(id, true)?;
        }
        Ok(())
    }

    /// Takes a file, and all below it, out of the baseline; tells of it as seen, and of what lay below as inferred.
    pub(super) fn forget(&mut self, node: &Node, seen: Option<&Seen>) -> Result<()> {
        let path = self.baseline.path_of(node.parent, &node.name)?;
        let below = Seen {
            method: FileMethod::Rescan,
            confidence: Confidence::Inferred,
            ..seen.cloned().unwrap_or_else(inferred)
        };
        let mut way = vec![(node.clone(), path)];
        while let Some((last, path)) = way.last() {
            let child = if last.stat.is_directory() { self.baseline.any_child(last.id)? } else { None };
            if let Some(child) = child {
                let path = crate::baseline::join(path, &child.name);
                way.push((child, path));
                continue;
            }
            let Some((gone, path)) = way.pop() else { break };
            if gone.stat.is_directory() || gone.parent == TOP {
                self.watches.uncover(gone.id);
                self.unwatched.remove(&gone.id);
                self.unreadable.remove(&gone.id);
                self.incomplete.remove(&gone.id);
            }
            if gone.parent == TOP {
                self.baseline.set_complete(gone.id, false)?;
            }
            self.baseline.remove(gone.id)?;
            if let Some(seen) = seen {
                let seen = if gone.id == node.id { seen } else { &below };
                self.tell(FileAction::Deleted, &path, None, &gone.stat, seen, None);
            }
        }
        if node.stat.is_directory() {
            self.folders.forget();
        }
        Ok(())
    }
}
