//! What the kernel says, in the words both of its interfaces have in common.

use picket_protocol::event::Actor;
use std::sync::Arc;

/// A folder, as the kernel names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// An inotify watch descriptor.
    Watch(i32),
    /// A file handle: file system id, type and bytes, as in `fanotify(7)`.
    Handle(Handle),
}

/// A file handle with the id of its file system, byte for byte as fanotify reports it after the record's header:
/// 8 bytes `fsid`, then `struct file_handle` without its length (4 bytes type, then the handle).
pub(crate) type Handle = std::sync::Arc<[u8]>;

/// What happened, as a set of bits; several where the kernel merged events of one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct What(u16);

impl What {
    /// A name came into being.
    pub(crate) const CREATED: Self = Self(1);
    /// A name went.
    pub(crate) const DELETED: Self = Self(1 << 1);
    /// A name went elsewhere; where, says the notice with the same cookie.
    pub(crate) const MOVED_FROM: Self = Self(1 << 2);
    /// A name came from elsewhere.
    pub(crate) const MOVED_TO: Self = Self(1 << 3);
    /// A name became another: both are in the notice.
    pub(crate) const RENAMED: Self = Self(1 << 4);
    /// Somebody wrote.
    pub(crate) const WROTE: Self = Self(1 << 5);
    /// Somebody who could write closed.
    pub(crate) const CLOSED: Self = Self(1 << 6);
    /// Mode, owner, times, extended attributes or the number of links changed.
    pub(crate) const ATTRIBUTES: Self = Self(1 << 7);
    /// The folder itself went, or went elsewhere.
    pub(crate) const SELF_GONE: Self = Self(1 << 8);
    /// The watch is no more.
    pub(crate) const UNWATCHED: Self = Self(1 << 9);
    /// It is about a folder.
    pub(crate) const DIRECTORY: Self = Self(1 << 10);
    /// The kernel's queue ran over before this.
    pub(crate) const OVERFLOW: Self = Self(1 << 11);
    /// The file system that it lies on was unmounted.
    pub(crate) const UNMOUNTED: Self = Self(1 << 12);

    pub(crate) fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(crate) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// One thing the kernel said.
#[derive(Debug, Clone)]
pub(crate) struct Notice {
    /// When it was read.
    pub(crate) at: jiff::Timestamp,
    /// The folder; `None` with an overflow.
    pub(crate) place: Option<Place>,
    /// The name in it; `None` where it is about the folder itself.
    pub(crate) name: Option<Box<[u8]>>,
    pub(crate) what: What,
    /// What ties the two halves of a rename together (inotify).
    pub(crate) cookie: u32,
    /// The new place and name (fanotify).
    pub(crate) to: Option<(Place, Box<[u8]>)>,
    /// The handle of the file itself (fanotify, Linux 5.17).
    pub(crate) child: Option<Handle>,
    /// Who did it (fanotify).
    pub(crate) actor: Option<Arc<Actor>>,
}

impl Notice {
    /// A notice of nothing but `what`.
    pub(crate) fn bare(at: jiff::Timestamp, what: What) -> Self {
        Self { at, place: None, name: None, what, cookie: 0, to: None, child: None, actor: None }
    }
}
