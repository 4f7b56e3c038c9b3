//! Folding: identical events become one that says how many there were.
//!
//! The first of a kind goes through at once. Those that follow within the window are counted, and one event stands for
//! them when the window closes, with `fold` saying how many there were, when the first and when the last was. Nothing
//! is lost by it: the weight of what goes out is what came in.
//!
//! Only what leaves the listing of files as it is gets folded: a file that is written or whose attributes change again and
//! again. That a name came, went or was renamed goes out in its order, and whatever is held for that name goes out before
//! it. So who applies the events in their order has the listing of now.

use picket_protocol::event::{Actor, EventBody, FileAction, FileEvent, FileKind, Fold, NetworkEvent};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

/// How many kinds of events are remembered at once. Beyond it, the oldest quarter of the windows is closed early.
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
    /// Whether connections of one kind are folded though their ports differ.
    coarse: bool,
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
        Self { window, coarse: false, hasher: RandomState::new(), kinds: HashMap::new() }
    }

    /// Another window from now on: while the agent must save, a longer one, and connections are folded though the port
    /// that their beginner was given by chance differs.
    pub(crate) fn fold_more(&mut self, window: Duration, coarse: bool) {
        (self.window, self.coarse) = (window, coarse);
    }

    /// Takes one event; returns what goes out now, in its order.
    pub(crate) fn take(&mut self, body: EventBody, now: Instant) -> Vec<Weighted> {
        let weight = weight_of(&body);
        let mut out = self.release_before(&body);
        let Some(kind) = self.kind_of(&body).filter(|_| !self.window.is_zero()) else {
            out.push(Weighted { body, weight });
            return out;
        };
        out.extend(self.make_room(kind));
        match self.kinds.entry(kind) {
            Entry::Vacant(entry) => {
                entry.insert(Window { opened: now, held: None });
                out.push(Weighted { body, weight });
            }
            Entry::Occupied(mut entry) => {
                let held = &mut entry.get_mut().held;
                // Whoever else did the same is not the same.
                if held.as_ref().is_some_and(|held| actor_of(&held.body) != actor_of(&body)) {
                    out.extend(held.take().map(Held::into_weighted));
                }
                match held {
                    Some(held) => held.add(body, weight),
                    none => *none = Some(Held::new(body, weight)),
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
            out.push(held);
            true
        });
        in_order(out)
    }

    /// Closes every window: the agent stops.
    pub(crate) fn drain(&mut self) -> Vec<Weighted> {
        in_order(self.kinds.drain().filter_map(|(_, kind)| kind.held).collect())
    }

    /// What is held for a name that comes, goes or is renamed, and for all below a folder that does.
    fn release_before(&mut self, body: &EventBody) -> Vec<Weighted> {
        let EventBody::File(event) = body else { return Vec::new() };
        if is_repeatable(event.action) {
            return Vec::new();
        }
        if event.kind == FileKind::Directory && event.action != FileAction::Created {
            let held = self.kinds.values_mut().filter(|kind| matches!(&kind.held, Some(held) if is_file(&held.body)));
            return in_order(held.filter_map(|kind| kind.held.take()).collect());
        }
        let names = [Some((&event.path, &event.path_base64)), event.path_from.as_ref().map(|from| (from, &None))];
        let mut held = Vec::new();
        for (path, exact) in names.into_iter().flatten() {
            for action in [FileAction::Modified, FileAction::Attributes] {
                let kind = self.file_kind(action, path, exact.as_deref());
                held.extend(self.kinds.remove(&kind).and_then(|kind| kind.held));
            }
        }
        in_order(held)
    }

    fn file_kind(&self, action: FileAction, path: &str, exact: Option<&str>) -> u64 {
        self.hasher.hash_one((0_u8, action, path, exact))
    }

    /// What makes two events identical; `None` for what is never folded. Left out are the time, what a file looks like now
    /// and how many bytes went by.
    fn kind_of(&self, body: &EventBody) -> Option<u64> {
        match body {
            EventBody::File(FileEvent { action, path, path_base64, .. }) if is_repeatable(*action) => {
                Some(self.file_kind(*action, path, path_base64.as_deref()))
            }
            EventBody::Network(NetworkEvent {
                action,
                direction,
                protocol,
                src_ip,
                src_port,
                dst_ip,
                dst_port,
                uid,
                ..
            }) => {
                let port = (!self.coarse).then_some(src_port);
                Some(self.hasher.hash_one((1_u8, action, direction, protocol, src_ip, port, dst_ip, dst_port, uid)))
            }
            EventBody::File(_) | EventBody::Alert(_) | EventBody::Gap(_) | EventBody::Config(_) => None,
        }
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
        // Many at once: to look for the oldest at each new kind would take longer than all else.
        let mut ages: Vec<(Instant, u64)> = self.kinds.iter().map(|(kind, window)| (window.opened, *kind)).collect();
        let closed = MAX_KINDS / 4;
        ages.select_nth_unstable(closed);
        let windows = ages.iter().take(closed).filter_map(|(_, kind)| self.kinds.remove(kind));
        in_order(windows.filter_map(|window| window.held).collect())
    }
}

impl Held {
    fn new(body: EventBody, count: u64) -> Self {
        let (first, last) = span_of(&body);
        Self { body, count, first, last }
    }

    fn add(&mut self, mut body: EventBody, weight: u64) {
        let (first, last) = span_of(&body);
        self.count = self.count.saturating_add(weight);
        self.first = self.first.min(first);
        self.last = self.last.max(last);
        if let (EventBody::Network(new), EventBody::Network(old)) = (&mut body, &self.body) {
            new.bytes_sent = sum(old.bytes_sent, new.bytes_sent);
            new.bytes_received = sum(old.bytes_received, new.bytes_received);
        }
        // What is shown is the latest: size, owner and hash as they are now.
        self.body = body;
    }

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

/// Whether a file can go on being there through an event of this kind.
fn is_repeatable(action: FileAction) -> bool {
    matches!(action, FileAction::Modified | FileAction::Attributes)
}

fn is_file(body: &EventBody) -> bool {
    matches!(body, EventBody::File(_))
}

fn actor_of(body: &EventBody) -> Option<&Actor> {
    match body {
        EventBody::File(event) => event.actor.as_ref(),
        EventBody::Network(event) => event.actor.as_ref(),
        EventBody::Alert(_) | EventBody::Gap(_) | EventBody::Config(_) => None,
    }
}

fn sum(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.zip(other).map(|(one, other)| one.saturating_add(other)).or(one).or(other)
}

/// As they happened: by the last of each.
fn in_order(mut held: Vec<Held>) -> Vec<Weighted> {
    held.sort_by_key(|held| held.last);
    held.into_iter().map(Held::into_weighted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use picket_protocol::event::{Confidence, Direction, FileMethod, NetworkAction, NetworkMethod, Protocol};
    use proptest::prelude::*;

    fn modified(path: &str, second: i64) -> EventBody {
        file(FileAction::Modified, path, second)
    }

    fn file(action: FileAction, path: &str, second: i64) -> EventBody {
        EventBody::File(FileEvent {
            timestamp: jiff::Timestamp::from_second(second).unwrap(),
            action,
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

    /// What went out, in its order: the action and the path.
    fn told(out: &[Weighted]) -> Vec<(FileAction, &str)> {
        let told = out.iter().map(|weighted| match &weighted.body {
            EventBody::File(event) => (event.action, event.path.as_str()),
            _ => panic!("not a file"),
        });
        told.collect()
    }

    #[test]
    fn names_that_come_and_go_are_told_in_their_order_and_never_folded() {
        use FileAction::{Created, Deleted, Modified, Renamed};
        let start = Instant::now();
        let mut folder = Folder::new(WINDOW);
        let mut out = Vec::new();
        for (second, action) in (0_i64..).zip([Created, Deleted, Created, Modified, Modified, Modified, Deleted]) {
            out.extend(folder.take(file(action, "/a", second), start));
        }
        let a = "/a";
        assert_eq!(
            told(&out),
            [(Created, a), (Deleted, a), (Created, a), (Modified, a), (Modified, a), (Deleted, a)],
            "what is held for a name goes before its end"
        );
        assert_eq!(out[4].weight, 2);
        // A folder that is renamed: what is held below it goes first.
        folder.take(modified("/d/x", 10), start);
        folder.take(modified("/d/x", 11), start);
        let mut renamed = file(Renamed, "/e", 12);
        if let EventBody::File(event) = &mut renamed {
            event.kind = FileKind::Directory;
        }
        assert_eq!(told(&folder.take(renamed, start)), [(Modified, "/d/x"), (Renamed, "/e")]);
        assert_eq!(folder.held(), 0);
    }

    #[test]
    fn what_goes_out_together_is_in_the_order_in_which_it_happened() {
        let start = Instant::now();
        let mut folder = Folder::new(WINDOW);
        for second in 0..50 {
            let path = format!("/{second:02}");
            folder.take(modified(&path, second), start);
            folder.take(modified(&path, second), start);
        }
        let out = folder.tick(start + WINDOW);
        let paths: Vec<&str> = told(&out).into_iter().map(|(_, path)| path).collect();
        assert!(paths.len() == 50 && paths.is_sorted(), "{paths:?}");
    }

    fn closed(src_port: u16, sent: u64) -> EventBody {
        EventBody::Network(NetworkEvent {
            timestamp: jiff::Timestamp::UNIX_EPOCH,
            action: NetworkAction::Closed,
            direction: Direction::Inbound,
            protocol: Protocol::Tcp,
            src_ip: "192.0.2.1".parse().unwrap(),
            src_port,
            dst_ip: "192.0.2.2".parse().unwrap(),
            dst_port: 22,
            remote_name: None,
            actor: None,
            uid: None,
            bytes_sent: Some(sent),
            bytes_received: None,
            method: NetworkMethod::SockDestroy,
            confidence: Confidence::Observed,
            fold: None,
        })
    }

    #[test]
    fn connections_differ_by_their_ports_unless_the_agent_must_save_and_bytes_are_added_up() {
        let start = Instant::now();
        let mut folder = Folder::new(WINDOW);
        assert!((1..10).all(|port| folder.take(closed(port, 1), start).len() == 1));
        folder.fold_more(WINDOW, true);
        let out: Vec<Weighted> = (1..10).flat_map(|port| folder.take(closed(port, 5), start)).collect();
        assert_eq!(out.len(), 1);
        let out = folder.drain();
        let EventBody::Network(event) = &out[0].body else { panic!() };
        assert_eq!((out[0].weight, event.bytes_sent, event.bytes_received), (8, Some(40), None));
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
