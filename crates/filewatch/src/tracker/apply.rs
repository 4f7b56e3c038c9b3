//! Applying what the kernel says to the baseline, in its order.

use super::pending::{Seen, Why};
use super::{Look, RESCAN_AFTER_MOST, Result, Tracker};
use crate::baseline::{Id, ghost};
use crate::notice::{Handle, Notice, Place, What};
use crate::reader::GATHER;
use crate::stat::Stat;
use picket_protocol::event::{Confidence, FileAction, FileMethod, GapReason};
use std::time::{Duration, Instant};

/// How far ahead the other half of a rename is looked for: the kernel queues both at once, but other processors may
/// put something in between.
const PARTNER_WITHIN: usize = 128;
/// How long the other half is waited for when nothing came after the first: it was queued in the same call, and the reader
/// has it in hand at most for its time of gathering.
const PARTNER_WAIT: Duration = GATHER.saturating_add(Duration::from_millis(5));

/// A name in a folder of the baseline, while it is spoken of.
type Spot<'a> = (Id, &'a [u8]);

impl Tracker {
    /// Applies one notice.
    pub(super) fn apply(&mut self, notice: &Notice) -> Result<()> {
        if notice.what.has(What::OVERFLOW) {
            self.overflow();
            return Ok(());
        }
        let folder = notice.place.as_ref().and_then(|place| self.watches.folder(place));
        let target = notice.to.as_ref().and_then(|(place, _)| self.watches.folder(place));
        if folder.is_none() && target.is_none() {
            self.parts.counts.foreign.add(1);
            return Ok(());
        }
        self.parts.counts.seen.add(1);
        self.last_notice = notice.at;
        if notice.what.has(What::UNWATCHED) {
            if let Some(place) = &notice.place {
                self.watches.ended(place);
            }
            return Ok(());
        }
        let seen = seen(notice);
        let is_directory = notice.what.has(What::DIRECTORY);
        let name = notice.name.as_deref();
        if notice.what.has(What::RENAMED) {
            let from = folder.zip(name);
            let to = target.zip(notice.to.as_ref().map(|(_, name)| &**name));
            return self.renamed(from, to, is_directory, &seen);
        }
        let Some(folder) = folder else { return Ok(()) };
        let Some(name) = name else { return self.about_itself(folder, notice.what, &seen) };
        if notice.what.has(What::MOVED_FROM) {
            let partner = self.partner(notice.cookie);
            let target = partner.as_ref().and_then(|partner| self.watches.folder(partner.place.as_ref()?));
            let to = target.zip(partner.as_ref().and_then(|partner| partner.name.as_deref()));
            return self.renamed(Some((folder, name)), to, is_directory, &seen);
        }
        if notice.what.has(What::MOVED_TO) {
            return self.renamed(None, Some((folder, name)), is_directory, &seen);
        }
        self.named(folder, name, notice, &seen)
    }

    /// Something about a watched folder (or single file) itself.
    fn about_itself(&mut self, id: Id, what: What, seen: &Seen) -> Result<()> {
        if what.has(What::UNMOUNTED) {
            // What is mounted there next may have the same number and device: the next look must not take it for this.
            self.mounts.suspect();
        }
        let Some(node) = self.baseline.node(id)? else { return Ok(()) };
        if what.has(What::SELF_GONE) {
            self.folders.forget();
            // Should the same name stand for the same inode again, it is to be watched anew.
            if node.parent == crate::baseline::TOP {
                self.watches.uncover(id);
                self.next_tick = Instant::now();
            }
        }
        for why in reasons(what) {
            self.note(node.parent, &node.name, why, seen);
        }
        Ok(())
    }

    /// Something about a name in a folder; several things where the kernel merged them.
    fn named(&mut self, folder: Id, name: &[u8], notice: &Notice, seen: &Seen) -> Result<()> {
        let what = notice.what;
        let is_directory = what.has(What::DIRECTORY);
        let path = self.baseline.path_of(folder, name)?;
        if !self.parts.filter.wants(&path, is_directory) {
            return Ok(());
        }
        let child = notice.child.as_ref();
        match (what.has(What::CREATED), what.has(What::DELETED)) {
            (true, false) => self.created((folder, name), is_directory, child, seen)?,
            (false, true) => self.deleted((folder, name), is_directory, seen)?,
            (true, true) => self.created_and_deleted((folder, name), is_directory, child, seen)?,
            (false, false) => {}
        }
        for why in reasons(what) {
            self.note(folder, name, why, seen);
        }
        Ok(())
    }

    fn created(&mut self, spot: Spot, is_directory: bool, child: Option<&Handle>, seen: &Seen) -> Result<()> {
        let (folder, name) = spot;
        self.note(folder, name, Why::Check, seen);
        if self.baseline.child(folder, name)?.is_some() {
            // A scan was here before.
            return Ok(());
        }
        let stat = match self.look(folder, name)? {
            Look::There(stat) if stat.is_directory() == is_directory => stat,
            // It is gone already, or something else is there.
            _ => ghost(is_directory),
        };
        let id = self.insert_entered(spot, &stat, child)?;
        let path = self.baseline.path_of(folder, name)?;
        self.tell(FileAction::Created, &path, None, &stat, seen, None);
        tracing::trace!(id, "created");
        Ok(())
    }

    /// Adds a file to the baseline; a folder is watched and looked through: at once where only a watch tells of it,
    /// later where the kernel does from its first moment.
    fn insert_entered(&mut self, (folder, name): Spot, stat: &Stat, child: Option<&Handle>) -> Result<Id> {
        let id = self.baseline.insert(folder, name, stat)?;
        if stat.is_directory() && self.parts.settings.recursive {
            match child {
                Some(handle) => {
                    self.watches.know(id, Handle::clone(handle));
                    self.scan.push_late(id, Instant::now());
                }
                None if stat.is_known() => self.scan.push(id),
                None => {}
            }
        }
        Ok(id)
    }

    fn deleted(&mut self, (folder, name): Spot, is_directory: bool, seen: &Seen) -> Result<()> {
        self.note(folder, name, Why::Check, seen);
        match self.baseline.child(folder, name)? {
            Some(node) => self.forget(&node, Some(seen)),
            None if self.is_first_look(folder)? => {
                // Not known because not yet looked at.
                let path = self.baseline.path_of(folder, name)?;
                self.tell(FileAction::Deleted, &path, None, &ghost(is_directory), seen, None);
                Ok(())
            }
            // A scan has told it.
            None => Ok(()),
        }
    }

    /// Both in one notice, in an order the kernel does not tell: the fewest steps that end where things are now.
    fn created_and_deleted(
        &mut self,
        spot: Spot,
        is_directory: bool,
        child: Option<&Handle>,
        seen: &Seen,
    ) -> Result<()> {
        let node = self.baseline.child(spot.0, spot.1)?;
        let look = self.look(spot.0, spot.1)?;
        match (node, look) {
            (None, Look::There(_)) => {
                self.created(spot, is_directory, child, seen)?;
                self.deleted(spot, is_directory, seen)?;
                self.created(spot, is_directory, child, seen)
            }
            (None, _) => {
                self.created(spot, is_directory, child, seen)?;
                self.deleted(spot, is_directory, seen)
            }
            (Some(node), Look::There(stat)) if node.stat.same_file(&stat) => Ok(()),
            (Some(_), Look::There(_)) => {
                self.deleted(spot, is_directory, seen)?;
                self.created(spot, is_directory, child, seen)
            }
            (Some(_), _) => self.deleted(spot, is_directory, seen),
        }
    }

    /// A name became another; one side may lie outside of what is watched or wanted.
    fn renamed(&mut self, from: Option<Spot>, to: Option<Spot>, is_directory: bool, seen: &Seen) -> Result<()> {
        let from_path = from.map(|(folder, name)| self.baseline.path_of(folder, name)).transpose()?;
        let to_path = to.map(|(folder, name)| self.baseline.path_of(folder, name)).transpose()?;
        let wants =
            |path: &Option<Vec<u8>>| path.as_ref().is_some_and(|path| self.parts.filter.wants(path, is_directory));
        let (from_wanted, to_wanted) = (wants(&from_path), wants(&to_path));
        match (from.filter(|_| from_wanted), to.filter(|_| to_wanted)) {
            (None, None) => Ok(()),
            (Some(from), None) => {
                self.folders.forget();
                self.deleted(from, is_directory, seen)
            }
            (from, Some(to)) => {
                self.renamed_to(from, to, from_path.as_deref(), &to_path.unwrap_or_default(), is_directory, seen)
            }
        }
    }

    fn renamed_to(
        &mut self,
        from: Option<Spot>,
        to: Spot,
        from_path: Option<&[u8]>,
        to_path: &[u8],
        is_directory: bool,
        seen: &Seen,
    ) -> Result<()> {
        if is_directory {
            self.folders.forget();
        }
        let stat = match self.look(to.0, to.1)? {
            Look::There(stat) if stat.is_directory() == is_directory => Some(stat),
            _ => None,
        };
        let node = from.map(|(folder, name)| self.baseline.child(folder, name)).transpose()?.flatten();
        let over = self.baseline.child(to.0, to.1)?;
        let to_key = (to.0, to.1.into());
        if let Some((folder, name)) = from {
            self.pending.moved(&(folder, name.into()), &to_key, seen, Instant::now());
            self.note(folder, name, Why::Check, seen);
        } else {
            self.pending.note(&to_key, Why::Moved, seen, Instant::now());
        }
        let Some(node) = node else {
            let scanned = over.as_ref().zip(stat).is_some_and(|(over, stat)| over.stat.same_file(&stat));
            if scanned {
                // A scan found it there already, and told.
                return Ok(());
            }
            if let Some(over) = over {
                self.forget(&over, None)?;
            }
            return self.moved_in(to, from_path, to_path, stat.unwrap_or_else(|| ghost(is_directory)), seen);
        };
        if over.as_ref().is_some_and(|over| over.id == node.id) {
            return Ok(());
        }
        if self.baseline.is_within(to.0, node.id)? {
            // The baseline is behind: on disk no folder lies in itself.
            self.forget(&node, Some(seen))?;
            self.note(to.0, to.1, Why::Check, seen);
            return Ok(());
        }
        if let Some(over) = over {
            self.forget(&over, None)?;
        }
        self.baseline.rename(&node, to.0, to.1)?;
        let told = stat.unwrap_or(node.stat);
        self.tell(FileAction::Renamed, to_path, from_path, &told, seen, None);
        if node.stat.is_directory() && (self.parts.filter.depends_on_folders() || !self.watches.covers(node.id)) {
            self.enter(node.id, to.0, &node.stat)?;
        }
        Ok(())
    }

    /// Something came from a place that is not watched, or was not known there.
    fn moved_in(&mut self, to: Spot, from: Option<&[u8]>, path: &[u8], stat: Stat, seen: &Seen) -> Result<()> {
        let id = self.baseline.insert(to.0, to.1, &stat)?;
        let hash = self.hash_job(to.0, to.1, &stat);
        self.tell(FileAction::Renamed, path, from, &stat, seen, hash);
        if stat.is_known() {
            self.enter(id, to.0, &stat)?;
        }
        Ok(())
    }

    /// The other half of a rename, taken out of what waits to be applied.
    fn partner(&mut self, cookie: u32) -> Option<Notice> {
        let is_partner = |notice: &Notice| notice.what.has(What::MOVED_TO) && notice.cookie == cookie;
        let mut from = 0;
        for wait in [true, true, false] {
            let until = self.buffer.len().min(PARTNER_WITHIN);
            let found = self.buffer.range(from.min(until)..until).position(is_partner);
            if let Some(at) = found {
                return self.buffer.remove(from + at);
            }
            if !wait || self.closing || until == PARTNER_WITHIN {
                break;
            }
            from = until;
            self.wait_until(Instant::now() + PARTNER_WAIT);
            if self.buffer.len() == from {
                break;
            }
        }
        None
    }

    /// The kernel's queue ran over: what was in it is lost, and found again by comparison.
    fn overflow(&mut self) {
        self.parts.counts.overflows.add(1);
        tracing::warn!("the kernel's queue of file events ran over; all watched paths are compared with the baseline");
        self.tell_gap(
            GapReason::KernelOverflow,
            None,
            Some(self.last_notice),
            "the kernel's queue of file events ran over; a comparison of all watched paths with the baseline follows",
        );
        if self.rescan_at.is_none() {
            self.rescan_at = Some(Instant::now() + self.rescan_after);
            self.rescan_after = (self.rescan_after * 2).min(RESCAN_AFTER_MOST);
        }
    }
}

fn seen(notice: &Notice) -> Seen {
    let method = match notice.place {
        Some(Place::Watch(_)) => FileMethod::Inotify,
        _ => FileMethod::Fanotify,
    };
    Seen { at: notice.at, method, confidence: Confidence::Observed, actor: notice.actor.clone() }
}

/// Why a name is looked at again after such a notice.
fn reasons(what: What) -> impl Iterator<Item = Why> {
    let table = [
        (What::WROTE, Why::Wrote),
        (What::CLOSED, Why::Closed),
        (What::ATTRIBUTES, Why::Attributes),
        (What::SELF_GONE, Why::Check),
    ];
    table.into_iter().filter(move |(bit, _)| what.has(*bit)).map(|(_, why)| why)
}
