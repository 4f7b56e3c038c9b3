//! Which folder is watched by what: inotify watches and fanotify handles, each standing for a row of the baseline.

use crate::baseline::Id;
use crate::fanotify::Group;
use crate::notice::{Handle, Place};
use rustix::fs::inotify::{self, WatchFlags};
use rustix::io::{self, Errno};
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

/// How one folder is watched.
#[derive(Debug, Clone)]
enum Cover {
    Watch(i32),
    /// A handle, and after how many changes of the mounts it was asked for.
    Handle(Handle, u64),
}

/// Why a folder is not watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There are no more watches.
    Limit,
    /// The system said no.
    Errno(Errno),
}

/// What one watch is to tell of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// What happens in a folder.
    Folder,
    /// That, and what happens to the folder itself: nobody watches the one above.
    Root,
    /// What happens to a single file.
    File,
}

/// The table of all watches. It grows with the number of folders (some 100 bytes each), not of files.
pub(crate) struct Watches {
    inotify: Arc<OwnedFd>,
    fanotify: Option<Arc<Group>>,
    /// Whether a file system could be marked, by device.
    marked: HashMap<u64, bool>,
    descriptors: HashMap<i32, Id>,
    handles: HashMap<Handle, Id>,
    covers: HashMap<Id, Cover>,
    /// How often the mounts changed.
    remounts: u64,
    /// The most inotify watches to take.
    limit: usize,
}

impl Watches {
    pub(crate) fn new(inotify: Arc<OwnedFd>, fanotify: Option<Arc<Group>>, limit: u32) -> Self {
        let limit = if limit == 0 { usize::MAX } else { usize::try_from(limit).unwrap_or(usize::MAX) };
        Self {
            inotify,
            fanotify,
            marked: HashMap::new(),
            descriptors: HashMap::new(),
            handles: HashMap::new(),
            covers: HashMap::new(),
            remounts: 0,
            limit,
        }
    }

    /// How many folders are watched.
    pub(crate) fn len(&self) -> usize {
        self.covers.len()
    }

    /// Whether inotify watches any, and whether fanotify does.
    pub(crate) fn methods(&self) -> (bool, bool) {
        (!self.descriptors.is_empty(), !self.handles.is_empty())
    }

    /// The first marked file system that refused its mark.
    pub(crate) fn refused_marks(&self) -> usize {
        self.marked.values().filter(|marked| !**marked).count()
    }

    /// Which folder the kernel speaks of.
    pub(crate) fn folder(&self, place: &Place) -> Option<Id> {
        match place {
            Place::Watch(watch) => self.descriptors.get(watch).copied(),
            Place::Handle(handle) => self.handles.get(handle).copied(),
        }
    }

    pub(crate) fn covers(&self, id: Id) -> bool {
        self.covers.contains_key(&id)
    }

    /// Watches the folder (or file) behind the descriptor from now on. Already watched is fine.
    pub(crate) fn cover(&mut self, id: Id, folder: &OwnedFd, device: u64, scope: Scope) -> Result<(), Refusal> {
        match self.covers.get(&id) {
            Some(Cover::Handle(_, remounts)) if *remounts < self.remounts => self.uncover(id),
            Some(_) => return Ok(()),
            None => {}
        }
        if scope != Scope::File
            && let Some(group) = self.fanotify.clone()
        {
            let marked = *self.marked.entry(device).or_insert_with(|| match group.mark(folder) {
                Ok(()) => true,
                Err(error) => {
                    tracing::warn!(device, %error, "a file system takes no fanotify mark; inotify watches its folders");
                    false
                }
            });
            if marked && let Ok(handle) = crate::fanotify::handle_of(folder) {
                self.know(id, handle);
                return Ok(());
            }
        }
        if self.descriptors.len() >= self.limit {
            return Err(Refusal::Limit);
        }
        let watch = add_watch(&self.inotify, folder, scope).map_err(|errno| match errno {
            Errno::NOSPC => Refusal::Limit,
            other => Refusal::Errno(other),
        })?;
        // A folder that is watched already, under another row: mounted twice, or moved and not yet told.
        if let Some(before) = self.descriptors.insert(watch, id) {
            self.covers.remove(&before);
        }
        self.covers.insert(id, Cover::Watch(watch));
        Ok(())
    }

    /// Notes that a handle stands for a folder.
    pub(crate) fn know(&mut self, id: Id, handle: Handle) {
        if let Some(before) = self.handles.insert(Arc::clone(&handle), id)
            && before != id
        {
            self.covers.remove(&before);
        }
        self.covers.insert(id, Cover::Handle(handle, self.remounts));
    }

    /// Watches a folder no more.
    pub(crate) fn uncover(&mut self, id: Id) {
        match self.covers.remove(&id) {
            Some(Cover::Watch(watch)) => {
                self.descriptors.remove(&watch);
                // It is gone already where the folder is.
                let _ = inotify::remove_watch(&self.inotify, watch);
            }
            Some(Cover::Handle(handle, _)) => {
                self.handles.remove(&handle);
            }
            None => {}
        }
    }

    /// The mounts changed: a mark ends with its file system, without a word, and a device can be another one now. Each
    /// folder is marked and its handle asked for again when it is covered next.
    pub(crate) fn remounted(&mut self) {
        self.remounts += 1;
        self.marked.clear();
    }

    /// Watches nothing any more.
    pub(crate) fn uncover_all(&mut self) {
        for id in self.covers.keys().copied().collect::<Vec<_>>() {
            self.uncover(id);
        }
    }

    /// The kernel ended a watch: its folder is gone or unmounted.
    pub(crate) fn ended(&mut self, place: &Place) {
        if let Place::Watch(watch) = place
            && let Some(id) = self.descriptors.remove(watch)
        {
            self.covers.remove(&id);
        }
    }
}

/// Adds a watch for what the descriptor stands for. By its name under `/proc/self/fd`, so that it is the folder that
/// was opened and no other.
fn add_watch(inotify: &OwnedFd, folder: &OwnedFd, scope: Scope) -> io::Result<i32> {
    let itself = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
    let content = WatchFlags::MODIFY | WatchFlags::CLOSE_WRITE | WatchFlags::ATTRIB;
    let names = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::MOVED_TO;
    let folder_only = names | WatchFlags::ONLYDIR | WatchFlags::EXCL_UNLINK;
    let flags = match scope {
        Scope::Folder => content | folder_only,
        Scope::Root => content | folder_only | itself,
        Scope::File => content | itself,
    };
    inotify::add_watch(inotify, format!("/proc/self/fd/{}", folder.as_raw_fd()), flags)
}
