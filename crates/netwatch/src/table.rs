//! What is known of connections, and what follows from the next look: pure, with no clock and no kernel.
//!
//! Two sources are joined. A dump lists all sockets now; the difference to what is known says what opened and, where
//! nothing better does, what closed. Where the kernel tells of each socket it destroys, that closes a connection at once,
//! and a connection that lived between two dumps is known by its end alone: it is reported as opened and closed together.
//!
//! - A connection is what has a cookie and two ends. A socket that is connected anew (UDP, or TCP after `AF_UNSPEC`) is
//!   another connection of the same cookie.
//! - Sockets are destroyed a moment after they leave the kernel's tables, and a dump of many sockets is taken in pieces
//!   between which the tables move. So a connection is taken for closed by its absence only when it is missing from two
//!   dumps on end; a notice that comes later still is known by [`Table::gone`] and not told twice.
//! - TIME-WAIT is no connection but what is left of one. With notices it is ignored: the notice came when it was entered,
//!   and the kernel gives the remains a cookie of their own if the connection never had been asked for one. Without
//!   notices it is the only trace of a connection that opened and closed between two dumps.

use crate::socket::{Destroyed, Dump, Ends, Listening, Ports, Socket, Traffic};
use picket_protocol::event::{Actor, Confidence, Direction, NetworkAction, NetworkMethod, Protocol};
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// How many dumps a connection that was closed by inference, or its remains, is remembered.
const GONE_DUMPS: u32 = 64;
/// In how many dumps on end a connection must be missing to be taken for closed.
const ABSENCES: u32 = 2;

/// What is watched, and how it is judged.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The ports that matter; none means all.
    pub ports: Ports,
    /// Whether TCP matters.
    pub tcp: bool,
    /// Whether UDP matters.
    pub udp: bool,
    /// Whether loopback matters.
    pub loopback: bool,
    /// How dumps are taken.
    pub method: NetworkMethod,
    /// Whether the kernel tells of each socket it destroys.
    pub notices: bool,
    /// The ports the kernel gives to sockets that did not ask for one (`ip_local_port_range`).
    pub ephemeral: RangeInclusive<u16>,
    /// How many connections are kept in mind.
    pub limit: usize,
}

impl Rules {
    /// Whether a connection is of interest. A port that the kernel has forgotten (0) matches nothing.
    pub fn matter(&self, ends: &Ends) -> bool {
        let port = |port: u16| port != 0 && self.ports.contains(port);
        self.is_asked_for(ends) && (self.ports.is_empty() || port(ends.local_port) || port(ends.remote_port))
    }

    /// Whether a connection may be of interest by a port that the kernel has forgotten.
    fn may_matter(&self, ends: &Ends) -> bool {
        ends.remote_port == 0 && self.is_asked_for(ends) && !self.matter(ends)
    }

    /// Whether it is of interest but for its ports.
    fn is_asked_for(&self, ends: &Ends) -> bool {
        let protocol = match ends.protocol {
            Protocol::Tcp => self.tcp,
            Protocol::Udp => self.udp,
        };
        protocol && (self.loopback || !ends.is_loopback())
    }
}

/// Connections of which less is told than there was: each is counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Missed {
    /// There was no room to keep them in mind.
    pub untracked: u64,
    /// No dump saw them, and the kernel had forgotten the port that would tell whether they matter.
    pub portless: u64,
}

/// Something that happened to a connection.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// What.
    pub action: NetworkAction,
    /// The socket.
    pub cookie: u64,
    /// Its ends.
    pub ends: Ends,
    /// Who began it.
    pub direction: Direction,
    /// Who owns the socket, where a dump told.
    pub uid: Option<u32>,
    /// Whose it was, for a connection that closed.
    pub actor: Option<Arc<Actor>>,
    /// What it carried, for a connection whose end the kernel told.
    pub traffic: Option<Traffic>,
    /// How it was seen.
    pub method: NetworkMethod,
    /// How much that can be relied on.
    pub confidence: Confidence,
}

#[derive(Debug, Clone)]
struct Entry {
    ends: Ends,
    direction: Direction,
    uid: u32,
    inode: u32,
    /// The dump in which it was there last.
    seen: u32,
    actor: Option<Arc<Actor>>,
}

/// The connections that are known.
#[derive(Debug)]
pub struct Table {
    rules: Rules,
    entries: HashMap<u64, Entry>,
    /// Connections that were reported closed by inference, and remains of others: the dump in which they were so last.
    gone: HashMap<u64, u32>,
    listening: Listening,
    /// What was listened on one dump before: a listener may go before its connections do.
    listened: Listening,
    dumps: u32,
    /// Sockets whose owner has not been looked for: cookie and inode.
    unsearched: Vec<(u64, u32)>,
    untracked: u64,
    /// Connections that dumps showed and that are not kept in mind, for want of room or because they do not matter: the
    /// dump in which they were so last. As many as two dumps can hold at most.
    passed_over: HashMap<u64, u32>,
    missed: Missed,
    /// Whether the remains in the next dump are of connections that were told already.
    remains_are_old: bool,
}

impl Table {
    /// What is there at the beginning. It is known from now on, and nothing is reported.
    pub fn baseline(rules: Rules, dump: &Dump) -> Self {
        let mut table = Self {
            rules,
            entries: HashMap::new(),
            gone: HashMap::new(),
            listening: Listening::default(),
            listened: Listening::default(),
            dumps: 0,
            unsearched: Vec::new(),
            untracked: 0,
            passed_over: HashMap::new(),
            missed: Missed::default(),
            remains_are_old: false,
        };
        table.step(Some(dump), &[]);
        table.missed = Missed::default();
        table
    }

    /// Takes one look and says what happened. `destroyed` are the notices since the last step, those that came while the
    /// dump was taken included.
    pub fn step(&mut self, dump: Option<&Dump>, destroyed: &[Destroyed]) -> Vec<Change> {
        let mut changes = Vec::new();
        if let Some(dump) = dump {
            self.dumps = self.dumps.wrapping_add(1);
            self.listened = std::mem::replace(&mut self.listening, dump.listening.clone());
            for socket in &dump.sockets {
                if !self.rules.matter(&socket.ends) {
                    self.passed_over.insert(socket.cookie, self.dumps);
                    continue;
                }
                if socket.live {
                    self.see(socket, &mut changes);
                } else if !self.rules.notices {
                    self.see_remains(socket, &mut changes);
                }
            }
        }
        for socket in destroyed {
            self.destroy(socket, &mut changes);
        }
        if dump.is_some_and(|dump| dump.complete) {
            self.close_absent(&mut changes);
        }
        if dump.is_some() {
            let now = self.dumps;
            self.remains_are_old = false;
            self.passed_over.retain(|_, seen| now.wrapping_sub(*seen) < ABSENCES);
        }
        changes
    }

    /// Learns of listeners that a dump has not told of yet.
    pub fn listen(&mut self, listening: &Listening) {
        self.listening.extend(listening);
    }

    /// Whether `socket` is a connection that was never seen, at a port of which nothing is known: a look at the listeners
    /// would tell who began it.
    pub fn is_puzzled_by(&self, socket: &Destroyed) -> bool {
        socket.established
            && self.rules.matter(&socket.ends)
            && !self.entries.contains_key(&socket.cookie)
            && !self.is_listened(&socket.ends)
    }

    /// The sockets whose owner has not been looked for since the last call: cookie and inode.
    pub fn take_unsearched(&mut self) -> Vec<(u64, u32)> {
        std::mem::take(&mut self.unsearched)
    }

    /// Notes whose socket it is.
    pub fn own(&mut self, cookie: u64, actor: Arc<Actor>) {
        if let Some(entry) = self.entries.get_mut(&cookie) {
            entry.actor = Some(actor);
        }
    }

    /// Whose socket it is.
    pub fn owner(&self, cookie: u64) -> Option<&Arc<Actor>> {
        self.entries.get(&cookie)?.actor.as_ref()
    }

    /// How many connections are known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How often a connection was not kept in mind because there were too many.
    pub fn untracked(&self) -> u64 {
        self.untracked
    }

    /// Judges from now on by notices as well, or by dumps alone.
    pub fn set_notices(&mut self, notices: bool) {
        // What is left of connections whose end the notices told is no news.
        self.remains_are_old |= self.rules.notices && !notices;
        self.rules.notices = notices;
    }

    /// What was missed since the last call.
    pub fn take_missed(&mut self) -> Missed {
        std::mem::take(&mut self.missed)
    }

    /// Counts a connection that there is no room for: as missed only when it is first seen.
    fn pass_over(&mut self, cookie: u64) {
        self.untracked += 1;
        if self.passed_over.insert(cookie, self.dumps).is_none() {
            self.missed.untracked += 1;
        }
    }

    fn is_listened(&self, ends: &Ends) -> bool {
        self.listening.contains(ends) || self.listened.contains(ends)
    }

    fn direction(&self, ends: &Ends, passive: bool) -> Direction {
        if passive || self.is_listened(ends) {
            Direction::Inbound
        } else if self.rules.ephemeral.contains(&ends.local_port) {
            Direction::Outbound
        } else {
            Direction::Unknown
        }
    }

    fn see(&mut self, socket: &Socket, changes: &mut Vec<Change>) {
        if let Some(entry) = self.entries.get_mut(&socket.cookie) {
            let reused = entry.inode != 0 && socket.inode != 0 && entry.inode != socket.inode;
            if entry.ends == socket.ends && !reused {
                entry.seen = self.dumps;
                if entry.inode == 0 && socket.inode != 0 {
                    // Accepted since: now it has an owner.
                    entry.inode = socket.inode;
                    entry.uid = socket.uid;
                    self.unsearched.push((socket.cookie, socket.inode));
                }
                return;
            }
            self.close(socket.cookie, None, self.rules.method, Confidence::Inferred, changes);
        }
        self.gone.remove(&socket.cookie);
        self.open(socket, changes);
    }

    fn open(&mut self, socket: &Socket, changes: &mut Vec<Change>) {
        if self.entries.len() >= self.rules.limit {
            self.pass_over(socket.cookie);
            return;
        }
        let direction = self.direction(&socket.ends, false);
        let entry =
            Entry { ends: socket.ends, direction, uid: socket.uid, inode: socket.inode, seen: self.dumps, actor: None };
        self.entries.insert(socket.cookie, entry);
        if socket.inode != 0 {
            self.unsearched.push((socket.cookie, socket.inode));
        }
        changes.push(self.opened(socket.cookie, socket.ends, direction, Some(socket.uid), self.rules.method));
    }

    /// What is left of a connection, where the kernel does not tell of its end.
    fn see_remains(&mut self, socket: &Socket, changes: &mut Vec<Change>) {
        if self.gone.len() >= self.rules.limit && !self.gone.contains_key(&socket.cookie) {
            self.pass_over(socket.cookie);
            return;
        }
        let known = self.gone.insert(socket.cookie, self.dumps).is_some();
        if self.entries.contains_key(&socket.cookie) {
            self.close(socket.cookie, None, self.rules.method, Confidence::Inferred, changes);
        } else if !known && !self.remains_are_old {
            let direction = self.direction(&socket.ends, false);
            let opened = self.opened(socket.cookie, socket.ends, direction, None, self.rules.method);
            let closed = Change { action: NetworkAction::Closed, ..opened.clone() };
            changes.extend([opened, closed]);
        }
    }

    fn destroy(&mut self, socket: &Destroyed, changes: &mut Vec<Change>) {
        let method = NetworkMethod::SockDestroy;
        if let Some(entry) = self.entries.get(&socket.cookie) {
            let ends = socket.ends.completed_by(&entry.ends);
            if ends == entry.ends || !socket.established {
                self.close(socket.cookie, socket.traffic, method, Confidence::Observed, changes);
                return;
            }
            // Connected anew since the last dump: the one that was known is over, and so is the one that was not.
            self.close(socket.cookie, None, method, Confidence::Inferred, changes);
        } else if self.gone.remove(&socket.cookie).is_some() {
            return;
        }
        if socket.established && self.rules.matter(&socket.ends) {
            let direction = self.direction(&socket.ends, socket.passive);
            let opened = self.opened(socket.cookie, socket.ends, direction, None, method);
            let closed = Change {
                action: NetworkAction::Closed,
                traffic: socket.traffic,
                confidence: Confidence::Observed,
                ..opened.clone()
            };
            changes.extend([opened, closed]);
        } else if socket.established
            && !self.passed_over.contains_key(&socket.cookie)
            && self.rules.may_matter(&socket.ends)
            && self.direction(&socket.ends, socket.passive) != Direction::Inbound
        {
            self.missed.portless += 1;
        }
    }

    fn close_absent(&mut self, changes: &mut Vec<Change>) {
        let now = self.dumps;
        let absent: Vec<u64> = self
            .entries
            .iter()
            .filter(|(_, entry)| now.wrapping_sub(entry.seen) >= ABSENCES)
            .map(|(cookie, _)| *cookie)
            .collect();
        for cookie in absent {
            self.close(cookie, None, self.rules.method, Confidence::Inferred, changes);
            if self.rules.notices {
                self.gone.insert(cookie, now);
            }
        }
        // Remains are there in every dump until they are not; a notice may be late.
        let keep = if self.rules.notices && self.gone.len() < self.rules.limit { GONE_DUMPS } else { ABSENCES };
        self.gone.retain(|_, seen| now.wrapping_sub(*seen) < keep);
    }

    fn opened(&self, cookie: u64, ends: Ends, direction: Direction, uid: Option<u32>, method: NetworkMethod) -> Change {
        let action = NetworkAction::Opened;
        let confidence = Confidence::Inferred;
        Change { action, cookie, ends, direction, uid, actor: None, traffic: None, method, confidence }
    }

    fn close(
        &mut self,
        cookie: u64,
        traffic: Option<Traffic>,
        method: NetworkMethod,
        confidence: Confidence,
        changes: &mut Vec<Change>,
    ) {
        let Some(entry) = self.entries.remove(&cookie) else { return };
        changes.push(Change {
            action: NetworkAction::Closed,
            cookie,
            ends: entry.ends,
            direction: entry.direction,
            uid: Some(entry.uid),
            actor: entry.actor,
            traffic,
            method,
            confidence,
        });
    }
}

#[cfg(test)]
mod tests;
