//! What is to be looked at again, and when: the debounce.

use crate::baseline::Id;
use picket_protocol::event::{Actor, Confidence, FileMethod};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How and when something was seen.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) at: jiff::Timestamp,
    pub(crate) method: FileMethod,
    pub(crate) confidence: Confidence,
    pub(crate) actor: Option<Arc<Actor>>,
}

/// A name in a folder of the baseline.
pub(crate) type Key = (Id, Arc<[u8]>);

/// Why a name is to be looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// To be sure.
    Check,
    /// Another file came under the name by a rename: the change of its inode's time says nothing.
    Moved,
    /// Somebody wrote.
    Wrote,
    /// Somebody who could write closed.
    Closed,
    /// Its attributes changed.
    Attributes,
}

/// What is known of a name since it was looked at last.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) seen: Seen,
    pub(crate) wrote: bool,
    pub(crate) closed: bool,
    pub(crate) attributes: bool,
    pub(crate) moved: bool,
    /// Written, and not closed since.
    open: bool,
    due: Instant,
    /// When it is looked at, whatever happens until then.
    latest: Instant,
    /// The time it stands in the queue with.
    queued: Instant,
}

/// The names to look at, by time.
pub(crate) struct Pending {
    entries: HashMap<Key, Entry>,
    queue: BinaryHeap<Reverse<(Instant, Key)>>,
    debounce: Duration,
    pause: Duration,
}

impl Pending {
    pub(crate) fn new(debounce: Duration, pause: Duration) -> Self {
        Self { entries: HashMap::new(), queue: BinaryHeap::new(), debounce, pause: pause.max(debounce) }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Notes that a name is to be looked at.
    pub(crate) fn note(&mut self, key: &Key, why: Why, seen: &Seen, now: Instant) {
        let latest = now + self.pause;
        let entry = self.entries.entry(key.clone()).or_insert_with(|| Entry {
            seen: seen.clone(),
            wrote: false,
            closed: false,
            attributes: false,
            moved: false,
            open: false,
            due: latest,
            latest,
            queued: latest + self.pause,
        });
        match why {
            Why::Check => {}
            Why::Moved => entry.moved = true,
            Why::Wrote => (entry.wrote, entry.open) = (true, true),
            Why::Closed => (entry.closed, entry.open) = (true, false),
            Why::Attributes => entry.attributes = true,
        }
        if why != Why::Check {
            // Who is told of is who changed something last.
            entry.seen = seen.clone();
        }
        entry.due = if entry.open { entry.latest } else { entry.latest.min(now + self.debounce) };
        if entry.due < entry.queued {
            entry.queued = entry.due;
            self.queue.push(Reverse((entry.due, key.clone())));
        }
    }

    /// A file has another name now: what is known of it goes along.
    pub(crate) fn moved(&mut self, from: &Key, to: &Key, seen: &Seen, now: Instant) {
        self.note(to, Why::Moved, seen, now);
        let Some(before) = self.entries.remove(from) else { return };
        if let Some(entry) = self.entries.get_mut(to) {
            entry.wrote |= before.wrote;
            entry.closed |= before.closed;
            entry.attributes |= before.attributes;
            if before.wrote || before.closed || before.attributes {
                entry.seen = before.seen;
            }
        }
    }

    /// Takes the next name whose time has come; with `force`, whether it has or not.
    pub(crate) fn next(&mut self, now: Instant, force: bool) -> Option<(Key, Entry)> {
        while let Some(Reverse((at, key))) = self.queue.pop() {
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            if entry.queued != at {
                continue;
            }
            if force || entry.due <= now {
                return self.entries.remove_entry(&key);
            }
            if at > now {
                // The earliest is not due: none is.
                self.queue.push(Reverse((at, key)));
                return None;
            }
            entry.queued = entry.due;
            self.queue.push(Reverse((entry.due, key)));
        }
        None
    }

    /// When the next name is due, or earlier.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse((at, _))| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Seen {
        Seen {
            at: jiff::Timestamp::UNIX_EPOCH,
            method: FileMethod::Inotify,
            confidence: Confidence::Observed,
            actor: None,
        }
    }

    fn key(name: &str) -> Key {
        (1, name.as_bytes().into())
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn pending() -> (Pending, Instant) {
        (Pending::new(SECOND, 10 * SECOND), Instant::now())
    }

    #[test]
    fn a_file_is_looked_at_once_it_was_closed_and_left_alone() {
        let (mut pending, start) = pending();
        pending.note(&key("a"), Why::Wrote, &seen(), start);
        assert!(pending.next(start + 5 * SECOND, false).is_none());
        pending.note(&key("a"), Why::Closed, &seen(), start + 5 * SECOND);
        pending.note(&key("a"), Why::Closed, &seen(), start + 5 * SECOND + SECOND / 2);
        assert!(pending.next(start + 6 * SECOND, false).is_none());
        let (_, entry) = pending.next(start + 7 * SECOND, false).unwrap();
        assert!(entry.wrote && entry.closed && !entry.attributes);
        assert!(pending.next(start + 100 * SECOND, false).is_none());
        assert_eq!(pending.len(), 0);
    }

    #[test]
    fn a_writer_that_never_closes_or_never_rests_does_not_put_it_off_for_ever() {
        let (mut pending, start) = pending();
        for half in 0..19 {
            pending.note(&key("open"), Why::Wrote, &seen(), start + half * SECOND / 2);
            pending.note(&key("busy"), Why::Closed, &seen(), start + half * SECOND / 2);
            assert!(pending.next(start + half * SECOND / 2, false).is_none(), "{half}");
        }
        let due = start + 10 * SECOND;
        let mut names = [pending.next(due, false).unwrap().0, pending.next(due, false).unwrap().0];
        names.sort();
        assert_eq!(names, [key("busy"), key("open")]);
    }

    #[test]
    fn what_is_known_of_a_file_goes_along_to_its_new_name() {
        let (mut pending, start) = pending();
        pending.note(&key("tmp"), Why::Wrote, &seen(), start);
        pending.moved(&key("tmp"), &key("final"), &seen(), start);
        let (key_now, entry) = pending.next(start + SECOND, false).unwrap();
        assert_eq!(key_now, key("final"));
        assert!(entry.wrote && entry.moved);
        assert!(pending.next(start, true).is_none());
    }
}
