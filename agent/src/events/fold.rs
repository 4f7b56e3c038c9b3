//! Folding: identical events become one that says how many there were.
//!
//! The first of a kind goes through at once. Those that follow within the window are counted, and one event stands for
//! them when the window closes, with `fold` saying how many there were, when the first and when the last was. Nothing
//! is lost by it: the weight of what goes out is what came in.

use picket_protocol::event::{EventBody, FileEvent, Fold, NetworkEvent};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher as _, Hash, Hasher, RandomState};
use std::time::{Duration, Instant};

/// How many kinds of events are remembered at once. Beyond it, the oldest window is closed early.
const MAX_KINDS: usize = 4096;

/// An event with the number of events it stands for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Weighted {
    /// The event.
    pub(crate) body: EventBody,
    /// How many events it stands for, itself included.
    pub(crate) weight: u64,
}

/// Folds events of one kind within a window.
pub(crate) struct Folder {
    window: Duration,
    // With keys of this process' own: who can choose names must not be able to choose two that are taken for one.
    hasher: RandomState,
    kinds: HashMap<u64, Window>,
}

struct Window {
    opened: Instant,
    held: Option<Held>,
}

struct Held {
    body: EventBody,
    count: u64,
    first: jiff::Timestamp,
    last: jiff::Timestamp,
}

impl Folder {
    /// Folds within `window`; zero folds nothing.
    pub(crate) fn new(window: Duration) -> Self {
        Self { window, hasher: RandomState::new(), kinds: HashMap::new() }
    }

    /// Another window from now on: while the agent must save, a longer one.
    pub(crate) fn set_window(&mut self, window: Duration) {
        self.window = window;
    }

    /// Takes one event; returns what goes out now.
    pub(crate) fn take(&mut self, body: EventBody, now: Instant) -> Vec<Weighted> {
        let weight = weight_of(&body);
        let Some(kind) = kind_of(&body, &self.hasher).filter(|_| !self.window.is_zero()) else {
            return vec![Weighted { body, weight }];
        };
        let mut out = self.make_room(kind);
        match self.kinds.entry(kind) {
            Entry::Vacant(entry) => {
                entry.insert(Window { opened: now, held: None });
                out.push(Weighted { body, weight });
            }
            Entry::Occupied(mut entry) => {
                let (first, last) = span_of(&body);
                match &mut entry.get_mut().held {
                    Some(held) => {
                        held.count = held.count.saturating_add(weight);
                        held.first = held.first.min(first);
                        held.last = held.last.max(last);
                        // What is shown is the latest: size, owner and hash as they are now.
                        held.body = body;
                    }
                    none => *none = Some(Held { body, count: weight, first, last }),
                }
            }
        }
        out
    }

    /// Closes the windows that are over; returns what goes out now. To be called about once a second.
    pub(crate) fn tick(&mut self, now: Instant) -> Vec<Weighted> {
        let window = self.window;
        let mut out = Vec::new();
        self.kinds.retain(|_, kind| {
            if now.duration_since(kind.opened) < window {
                return true;
            }
            let Some(held) = kind.held.take() else { return false };
            // It goes on: the next window begins where this one ended.
            kind.opened = now;
            out.push(held.into_weighted());
            true
        });
        out
    }

    /// Closes every window: the agent stops.
    pub(crate) fn drain(&mut self) -> Vec<Weighted> {
        let held = self.kinds.drain().filter_map(|(_, kind)| kind.held);
        held.map(Held::into_weighted).collect()
    }

    /// How many events are held back at present.
    #[cfg(test)]
    pub(crate) fn held(&self) -> u64 {
        self.kinds.values().filter_map(|kind| kind.held.as_ref()).map(|held| held.count).sum()
    }

    fn make_room(&mut self, kind: u64) -> Vec<Weighted> {
        if self.kinds.len() < MAX_KINDS || self.kinds.contains_key(&kind) {
            return Vec::new();
        }
        let oldest = self.kinds.iter().min_by_key(|(_, window)| window.opened).map(|(kind, _)| *kind);
        let window = oldest.and_then(|oldest| self.kinds.remove(&oldest));
        window.and_then(|window| window.held).map(Held::into_weighted).into_iter().collect()
    }
}

impl Held {
    fn into_weighted(self) -> Weighted {
        let Self { mut body, count, first, last } = self;
        if count > 1 {
            let fold = Some(Fold { count, first, last });
            match &mut body {
                EventBody::File(event) => event.fold = fold,
                EventBody::Network(event) => event.fold = fold,
                EventBody::Alert(_) | EventBody::Gap(_) | EventBody::Config(_) => {}
            }
        }
        Weighted { body, weight: count }
    }
}

fn fold_of(body: &EventBody) -> Option<&Fold> {
    match body {
        EventBody::File(event) => event.fold.as_ref(),
        EventBody::Network(event) => event.fold.as_ref(),
        EventBody::Alert(_) | EventBody::Gap(_) | EventBody::Config(_) => None,
    }
}

/// How many events `body` stands for.
pub(crate) fn weight_of(body: &EventBody) -> u64 {
    fold_of(body).map_or(1, |fold| fold.count.max(1))
}

fn span_of(body: &EventBody) -> (jiff::Timestamp, jiff::Timestamp) {
    fold_of(body).map_or((body.timestamp(), body.timestamp()), |fold| (fold.first, fold.last))
}

/// What makes two events identical; `None` for what is never folded.
///
/// Left out are the time, what a file looks like now, how many bytes went by, and the port that a connection's beginner was
/// given by chance: a thousand connections from one address to one service are one kind.
fn kind_of(body: &EventBody, keys: &RandomState) -> Option<u64> {
    let mut hasher = keys.build_hasher();
    match body {
        EventBody::File(FileEvent { action, path, path_base64, path_from, kind, actor, .. }) => {
            (0u8, action, path, path_base64, path_from, kind).hash(&mut hasher);
            actor.as_ref().map(|actor| (actor.pid, actor.uid)).hash(&mut hasher);
        }
        EventBody::Network(NetworkEvent {
            action, direction, protocol, src_ip, dst_ip, dst_port, actor, uid, ..
        }) => {
            (1u8, action, direction, protocol, src_ip, dst_ip, dst_port, uid).hash(&mut hasher);
            actor.as_ref().map(|actor| (actor.pid, &actor.exe)).hash(&mut hasher);
        }
        EventBody::Alert(_) | EventBody::Gap(_) | EventBody::Config(_) => return None,
    }
    Some(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_protocol::event::{Confidence, FileAction, FileKind, FileMethod};
    use proptest::prelude::*;

    fn modified(path: &str, second: i64) -> EventBody {
        EventBody::File(FileEvent {
            timestamp: jiff::Timestamp::from_second(second).unwrap(),
            action: FileAction::Modified,
            path: path.to_owned(),
            path_base64: None,
            path_from: None,
            kind: FileKind::File,
            meta: None,
            sha256: None,
            actor: None,
            method: FileMethod::Inotify,
            confidence: Confidence::Observed,
            fold: None,
        })
    }

    const WINDOW: Duration = Duration::from_secs(10);

    #[test]
    fn the_first_goes_out_at_once_and_the_rest_as_one_that_counts_them() {
        let start = Instant::now();
        let mut folder = Folder::new(WINDOW);
        assert_eq!(folder.take(modified("/a", 0), start).len(), 1);
        for second in 1..6 {
            assert_eq!(folder.take(modified("/a", second), start + Duration::from_secs(1)), []);
        }
        assert_eq!(folder.take(modified("/b", 5), start).len(), 1, "another file is another kind");
        assert_eq!(folder.tick(start + Duration::from_secs(9)), []);
        let out = folder.tick(start + WINDOW);
        assert_eq!((out.len(), out[0].weight), (1, 5));
        let EventBody::File(event) = &out[0].body else { panic!() };
        let fold = event.fold.as_ref().unwrap();
        assert_eq!((fold.first.as_second(), fold.last.as_second(), fold.count), (1, 5, 5));
    }

    #[test]
    fn one_that_came_twice_is_told_twice_and_is_not_called_folded() {
        let start = Instant::now();
        let mut folder = Folder::new(WINDOW);
        folder.take(modified("/a", 0), start);
        folder.take(modified("/a", 1), start);
        let out = folder.tick(start + WINDOW);
        let EventBody::File(event) = &out[0].body else { panic!() };
        assert_eq!((out[0].weight, &event.fold), (1, &None));
        assert_eq!(folder.tick(start + WINDOW * 2), [], "an empty window ends the kind");
        assert_eq!(folder.take(modified("/a", 30), start + WINDOW * 3).len(), 1);
    }

    proptest! {
        #[test]
        fn what_goes_out_weighs_what_came_in(kinds in proptest::collection::vec(0..6000u32, 0..9000), step in 0..2000u64) {
            let mut now = Instant::now();
            let mut folder = Folder::new(WINDOW);
            let mut out = 0;
            for (index, kind) in kinds.iter().enumerate() {
                out += folder.take(modified(&kind.to_string(), 0), now).iter().map(|w| w.weight).sum::<u64>();
                if index % 100 == 0 {
                    now += Duration::from_millis(step);
                    out += folder.tick(now).iter().map(|w| w.weight).sum::<u64>();
                }
                prop_assert_eq!(out + folder.held(), index as u64 + 1);
            }
            out += folder.drain().iter().map(|w| w.weight).sum::<u64>();
            prop_assert_eq!(out, kinds.len() as u64);
        }
    }
}
