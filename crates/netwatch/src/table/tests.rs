//! Tests of the table: single stories, and any order of dumps and notices that a kernel can give.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

fn rules(notices: bool) -> Rules {
    Rules {
        ports: Ports::default(),
        tcp: true,
        udp: true,
        loopback: true,
        method: NetworkMethod::SockDiag,
        notices,
        ephemeral: 32_768..=60_999,
        limit: 1_000,
    }
}

fn ends(local: u16, remote: u16) -> Ends {
    Ends::new(Protocol::Tcp, (IpAddr::from([10, 0, 0, 1]), local), (IpAddr::from([10, 0, 0, 2]), remote))
}

fn socket(cookie: u64, ends: Ends) -> Socket {
    Socket { cookie, ends, live: true, uid: 1_000, inode: u32::try_from(cookie).unwrap() }
}

fn remains(cookie: u64, ends: Ends) -> Socket {
    Socket { live: false, inode: 0, uid: 0, ..socket(cookie, ends) }
}

fn notice(cookie: u64, ends: Ends) -> Destroyed {
    let traffic = Some(Traffic { sent: 1, received: 2 });
    Destroyed { cookie, ends, established: true, passive: false, traffic }
}

fn dump(sockets: &[Socket]) -> Dump {
    Dump { sockets: sockets.to_vec(), listening: Listening::default(), complete: true }
}

fn dump_listening(port: u16, sockets: &[Socket]) -> Dump {
    let mut dump = dump(sockets);
    dump.listening.tcp.insert(port);
    dump
}

/// What happened, short: action, cookie, method, confidence.
fn told(changes: &[Change]) -> Vec<String> {
    let word = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
    changes
        .iter()
        .map(|c| format!("{} {} {} {}", word(&c.action), c.cookie, word(&c.method), word(&c.confidence)))
        .collect()
}

const NOTHING: [&str; 0] = [];

#[test]
fn what_is_there_at_the_start_is_not_reported_until_it_closes() {
    let one = socket(1, ends(40_000, 22));
    let mut table = Table::baseline(rules(true), &dump(&[one]));
    assert_eq!(told(&table.step(Some(&dump(&[one])), &[])), NOTHING);
    let closed = table.step(None, &[notice(1, one.ends)]);
    assert_eq!(told(&closed), ["closed 1 sockdestroy observed"]);
    assert_eq!(closed[0].uid, Some(1_000));
    assert_eq!(closed[0].traffic, Some(Traffic { sent: 1, received: 2 }));
}

#[test]
fn a_connection_between_two_dumps_is_known_by_its_end() {
    let mut table = Table::baseline(rules(true), &dump(&[]));
    let changes = table.step(None, &[notice(1, ends(40_000, 22))]);
    assert_eq!(told(&changes), ["opened 1 sockdestroy inferred", "closed 1 sockdestroy observed"]);
    assert_eq!(changes[0].uid, None);
}

#[test]
fn a_listener_or_an_attempt_that_ends_is_no_connection() {
    let mut table = Table::baseline(rules(true), &dump(&[]));
    let listener = Destroyed { established: false, ..notice(1, ends(22, 0)) };
    assert_eq!(told(&table.step(None, &[listener])), NOTHING);
}

#[test]
fn a_connection_that_there_is_no_room_for_is_missed_once_and_not_in_each_dump() {
    let sockets: Vec<Socket> =
        (1..=5).map(|cookie| socket(cookie, ends(40_000 + u16::try_from(cookie).unwrap(), 22))).collect();
    let mut table = Table::baseline(Rules { limit: 2, ..rules(true) }, &dump(&sockets[..3]));
    assert_eq!(table.take_missed(), Missed::default(), "what was there before did not begin");
    for missed in [2, 0, 0] {
        table.step(Some(&dump(&sockets)), &[]);
        assert_eq!(table.take_missed(), Missed { untracked: missed, portless: 0 });
    }
}

#[test]
fn a_connection_whose_port_the_kernel_forgot_is_missed_where_only_ports_matter_and_no_dump_saw_it() {
    let ports: Ports = [22].into_iter().collect();
    let other = socket(1, ends(40_000, 80));
    let mut table = Table::baseline(Rules { ports, ..rules(true) }, &dump_listening(8080, &[other]));
    let reset = |cookie, local| notice(cookie, ends(local, 0));
    // One that a dump saw to be none that matters, one that came in, and one that may have been one.
    let changes = table.step(None, &[reset(1, 40_000), reset(2, 8080), reset(3, 40_001)]);
    assert_eq!(told(&changes), NOTHING);
    assert_eq!(table.take_missed(), Missed { untracked: 0, portless: 1 });
    let mut table = Table::baseline(rules(true), &dump(&[]));
    assert_eq!(table.step(None, &[reset(3, 40_001)]).len(), 2);
    assert_eq!(table.take_missed(), Missed::default(), "it was told");
}

#[test]
fn when_notices_fail_remains_stand_in_and_those_of_connections_that_were_told_are_no_news() {
    let mut table = Table::baseline(rules(true), &dump(&[]));
    assert_eq!(table.step(None, &[notice(1, ends(40_000, 22))]).len(), 2);
    table.set_notices(false);
    let old = remains(7, ends(40_000, 22));
    assert_eq!(told(&table.step(Some(&dump(&[old])), &[])), NOTHING);
    let new = remains(8, ends(40_001, 22));
    let changes = table.step(Some(&dump(&[old, new])), &[]);
    assert_eq!(told(&changes), ["opened 8 sockdiag inferred", "closed 8 sockdiag inferred"]);
}

#[test]
fn one_missing_dump_closes_nothing_and_two_do() {
    let one = socket(1, ends(40_000, 22));
    let mut table = Table::baseline(rules(true), &dump(&[one]));
    assert_eq!(told(&table.step(Some(&dump(&[])), &[])), NOTHING);
    assert_eq!(told(&table.step(Some(&dump(&[one])), &[])), NOTHING);
    assert_eq!(told(&table.step(Some(&dump(&[])), &[])), NOTHING);
    assert_eq!(told(&table.step(Some(&dump(&[])), &[])), ["closed 1 sockdiag inferred"]);
    // The notice was late, and says nothing new.
    assert_eq!(told(&table.step(None, &[notice(1, one.ends)])), NOTHING);
}

#[test]
fn a_dump_that_was_cut_short_closes_nothing() {
    let one = socket(1, ends(40_000, 22));
    let mut table = Table::baseline(rules(true), &dump(&[one]));
    let cut = Dump { complete: false, ..dump(&[]) };
    for _ in 0..5 {
        assert_eq!(told(&table.step(Some(&cut), &[])), NOTHING);
    }
}

#[test]
fn a_socket_that_a_dump_shows_and_that_was_destroyed_meanwhile_is_closed() {
    let one = socket(1, ends(40_000, 22));
    let mut table = Table::baseline(rules(true), &dump(&[]));
    let changes = table.step(Some(&dump(&[one])), &[notice(1, one.ends)]);
    assert_eq!(told(&changes), ["opened 1 sockdiag inferred", "closed 1 sockdestroy observed"]);
    assert!(table.is_empty());
}

#[test]
fn a_port_that_is_used_again_is_another_connection() {
    let (first, second) = (socket(1, ends(40_000, 22)), socket(2, ends(40_000, 22)));
    let mut table = Table::baseline(rules(true), &dump(&[first]));
    let changes = table.step(Some(&dump(&[second])), &[notice(1, first.ends)]);
    assert_eq!(told(&changes), ["opened 2 sockdiag inferred", "closed 1 sockdestroy observed"]);
}

#[test]
fn a_socket_that_is_connected_anew_is_another_connection() {
    let mut table = Table::baseline(rules(true), &dump(&[socket(1, ends(40_000, 53))]));
    let changes = table.step(Some(&dump(&[socket(1, ends(40_000, 123))])), &[]);
    assert_eq!(told(&changes), ["closed 1 sockdiag inferred", "opened 1 sockdiag inferred"]);
    let changes = table.step(None, &[notice(1, ends(40_000, 443))]);
    let expected = ["closed 1 sockdestroy inferred", "opened 1 sockdestroy inferred", "closed 1 sockdestroy observed"];
    assert_eq!(told(&changes), expected);
    assert_eq!(changes.iter().map(|c| c.ends.remote_port).collect::<Vec<_>>(), [123, 443, 443]);
}

#[test]
fn where_only_the_inode_tells_a_port_that_is_used_again_is_another_connection() {
    let first = Socket { inode: 10, ..socket(1, ends(40_000, 22)) };
    let mut table = Table::baseline(rules(false), &dump(&[first]));
    let changes = table.step(Some(&dump(&[Socket { inode: 11, ..first }])), &[]);
    assert_eq!(told(&changes), ["closed 1 sockdiag inferred", "opened 1 sockdiag inferred"]);
    // Closed by its process, it has no inode, and is still the same.
    assert_eq!(told(&table.step(Some(&dump(&[Socket { inode: 0, ..first }])), &[])), NOTHING);
}

#[test]
fn a_connection_that_was_reset_here_is_completed_by_what_was_known() {
    let one = socket(1, ends(40_000, 22));
    let mut table = Table::baseline(rules(true), &dump(&[one]));
    let forgotten = Ends { remote_port: 0, local_ip: [0, 0, 0, 0].into(), ..one.ends };
    let changes = table.step(None, &[notice(1, forgotten)]);
    assert_eq!(told(&changes), ["closed 1 sockdestroy observed"]);
    assert_eq!(changes[0].ends, one.ends);
}

#[test]
fn without_notices_remains_are_the_trace_of_a_short_connection_and_told_once() {
    let old = remains(9, ends(22, 39_999));
    let mut table = Table::baseline(rules(false), &dump(&[old]));
    let short = remains(1, ends(40_000, 22));
    let changes = table.step(Some(&dump(&[old, short])), &[]);
    assert_eq!(told(&changes), ["opened 1 sockdiag inferred", "closed 1 sockdiag inferred"]);
    for _ in 0..100 {
        assert_eq!(told(&table.step(Some(&dump(&[old, short])), &[])), NOTHING);
    }
}

#[test]
fn without_notices_a_connection_that_turns_into_remains_is_closed_at_once() {
    let one = socket(1, ends(40_000, 22));
    let mut table = Table::baseline(rules(false), &dump(&[one]));
    assert_eq!(told(&table.step(Some(&dump(&[remains(1, one.ends)])), &[])), ["closed 1 sockdiag inferred"]);
    assert_eq!(told(&table.step(Some(&dump(&[remains(1, one.ends)])), &[])), NOTHING);
    // The same ends again, as `/proc` names them by a hash.
    assert_eq!(told(&table.step(Some(&dump(&[one])), &[])), ["opened 1 sockdiag inferred"]);
}

#[test]
fn with_notices_remains_say_nothing_new() {
    let mut table = Table::baseline(rules(true), &dump(&[]));
    table.step(None, &[notice(1, ends(40_000, 22))]);
    assert_eq!(told(&table.step(Some(&dump(&[remains(2, ends(40_000, 22))])), &[])), NOTHING);
}

#[test]
fn who_began_it_is_told_by_the_port_that_is_listened_on() {
    for (local, expected) in [(22, Direction::Inbound), (40_000, Direction::Outbound), (1_000, Direction::Unknown)] {
        let mut table = Table::baseline(rules(true), &dump_listening(22, &[]));
        let changes = table.step(Some(&dump_listening(22, &[socket(1, ends(local, 50_000))])), &[]);
        assert_eq!(changes[0].direction, expected, "port {local}");
    }
}

#[test]
fn a_listener_that_is_gone_tells_for_one_dump_more() {
    let mut table = Table::baseline(rules(true), &dump_listening(40_000, &[]));
    let changes = table.step(Some(&dump(&[socket(1, ends(40_000, 50_000))])), &[]);
    assert_eq!(changes[0].direction, Direction::Inbound);
    table.step(Some(&dump(&[])), &[]);
    let changes = table.step(Some(&dump(&[socket(2, ends(40_000, 50_001))])), &[]);
    assert_eq!(changes[0].direction, Direction::Outbound);
}

#[test]
fn a_listener_that_is_younger_than_the_last_dump_is_asked_for() {
    let mut table = Table::baseline(rules(true), &dump(&[]));
    let short = notice(1, ends(40_000, 50_000));
    assert!(table.is_puzzled_by(&short));
    table.listen(&dump_listening(40_000, &[]).listening);
    assert!(!table.is_puzzled_by(&short));
    assert_eq!(table.step(None, &[short])[0].direction, Direction::Inbound);
}

#[test]
fn what_was_counted_tells_who_began_it_where_nothing_else_does() {
    let mut table = Table::baseline(rules(true), &dump(&[]));
    let passive = Destroyed { passive: true, ..notice(1, ends(40_000, 50_000)) };
    assert_eq!(table.step(None, &[passive])[0].direction, Direction::Inbound);
}

#[test]
fn a_port_matches_on_either_side_and_a_forgotten_one_on_none() {
    let rules = Rules { ports: [22, 80].into_iter().collect(), ..rules(true) };
    for (local, remote, expected) in
        [(22, 40_000, true), (40_000, 80, true), (40_000, 443, false), (40_000, 0, false), (22, 0, true)]
    {
        assert_eq!(rules.matter(&ends(local, remote)), expected, "{local} {remote}");
    }
    let all = Rules { ports: Ports::default(), ..rules };
    assert!(all.matter(&ends(40_000, 0)));
    assert!(!Rules { tcp: false, ..all.clone() }.matter(&ends(1, 2)));
    let loopback = Ends { local_ip: [127, 0, 0, 1].into(), ..ends(1, 2) };
    assert!(all.matter(&loopback) && !Rules { loopback: false, ..all }.matter(&loopback));
}

#[test]
fn there_are_never_more_connections_in_mind_than_the_limit() {
    let mut table = Table::baseline(Rules { limit: 3, ..rules(true) }, &dump(&[]));
    let many: Vec<Socket> = (1..=5).map(|n| socket(n, ends(40_000 + u16::try_from(n).unwrap(), 22))).collect();
    assert_eq!(table.step(Some(&dump(&many)), &[]).len(), 3);
    assert_eq!((table.len(), table.untracked()), (3, 2));
    // The end of one that was not kept in mind is told, and its beginning with it.
    assert_eq!(told(&table.step(None, &[notice(5, many[4].ends)])).len(), 2);
}

#[test]
fn a_socket_that_is_accepted_later_gets_its_owner_then() {
    let waiting = Socket { inode: 0, uid: 0, ..socket(1, ends(22, 40_000)) };
    let mut table = Table::baseline(rules(true), &dump(&[]));
    table.step(Some(&dump(&[waiting])), &[]);
    assert!(table.take_unsearched().is_empty());
    table.step(Some(&dump(&[Socket { inode: 7, uid: 5, ..waiting }])), &[]);
    assert_eq!(table.take_unsearched(), [(1, 7)]);
    table.own(1, Arc::new(Actor { pid: 3, ..Actor::default() }));
    let closed = table.step(None, &[notice(1, waiting.ends)]);
    assert_eq!((closed[0].uid, closed[0].actor.as_ref().unwrap().pid), (Some(5), 3));
}

/// What a kernel may do next.
#[derive(Debug, Clone)]
enum Deed {
    Open,
    /// Closes the nth open one; its notice waits.
    Close(usize),
    /// Delivers the nth waiting notice.
    Tell(usize),
    /// A dump from which the nth socket is missing once, because the tables moved.
    Dump(Option<usize>),
    /// A dump while which the nth closes; the dump still shows it, and its notice comes in the same step.
    DumpAndClose(usize),
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        4 => Just(Deed::Open),
        3 => (0_usize..8).prop_map(Deed::Close),
        3 => (0_usize..8).prop_map(Deed::Tell),
        2 => proptest::option::weighted(0.3, 0_usize..8).prop_map(Deed::Dump),
        1 => (0_usize..8).prop_map(Deed::DumpAndClose),
    ];
    // Fewer dumps than a late notice is remembered for.
    proptest::collection::vec(deed, 0..60)
}

/// What was reported, checked on the way: opened at most once, closed at most once, never closed before opened.
#[derive(Default)]
struct Ledger {
    opened: BTreeSet<u64>,
    closed: BTreeSet<u64>,
}

impl Ledger {
    fn take(&mut self, changes: &[Change]) {
        for change in changes {
            let cookie = change.cookie;
            match change.action {
                NetworkAction::Opened => assert!(self.opened.insert(cookie), "{cookie} opened twice"),
                NetworkAction::Closed => {
                    assert!(self.opened.contains(&cookie), "{cookie} closed before it was opened");
                    assert!(self.closed.insert(cookie), "{cookie} closed twice");
                }
            }
        }
    }
}

fn play(deeds: &[Deed], notices: bool) {
    let mut open: BTreeMap<u64, Socket> = BTreeMap::new();
    let mut waiting: Vec<Destroyed> = Vec::new();
    let mut skipped = BTreeSet::new();
    let mut next = 1;
    let mut ledger = Ledger::default();
    let mut table = Table::baseline(rules(notices), &dump(&[]));
    let nth = |open: &BTreeMap<u64, Socket>, n: usize| open.keys().nth(n % open.len().max(1)).copied();
    for deed in deeds {
        match deed {
            Deed::Open => {
                open.insert(next, socket(next, ends(40_000, 22)));
                next += 1;
            }
            Deed::Close(n) => {
                waiting
                    .extend(nth(&open, *n).and_then(|cookie| open.remove(&cookie)).map(|s| notice(s.cookie, s.ends)));
            }
            Deed::Tell(n) if notices && !waiting.is_empty() => {
                let told = waiting.remove(n % waiting.len());
                ledger.take(&table.step(None, &[told]));
            }
            Deed::Tell(_) => {}
            Deed::Dump(without) => {
                // The same socket is not missed twice on end.
                let without = without.and_then(|n| nth(&open, n)).filter(|cookie| !skipped.contains(cookie));
                skipped = without.into_iter().collect();
                let sockets: Vec<Socket> = open.values().filter(|s| Some(s.cookie) != without).copied().collect();
                ledger.take(&table.step(Some(&dump(&sockets)), &[]));
            }
            Deed::DumpAndClose(n) => {
                skipped.clear();
                let sockets: Vec<Socket> = open.values().copied().collect();
                let closed = nth(&open, *n).and_then(|cookie| open.remove(&cookie)).map(|s| notice(s.cookie, s.ends));
                let told: Vec<Destroyed> = closed.filter(|_| notices).into_iter().collect();
                ledger.take(&table.step(Some(&dump(&sockets)), &told));
            }
        }
    }
    // The machine comes to rest: every notice arrives, and two dumps show what is left.
    let sockets: Vec<Socket> = open.values().copied().collect();
    if notices {
        ledger.take(&table.step(None, &waiting));
    }
    for _ in 0..ABSENCES {
        ledger.take(&table.step(Some(&dump(&sockets)), &[]));
    }
    let still: BTreeSet<u64> = ledger.opened.difference(&ledger.closed).copied().collect();
    assert_eq!(still, open.keys().copied().collect(), "what is open is what was reported so");
    if notices {
        assert_eq!(ledger.opened.len() as u64, next - 1, "every connection was reported");
    }
    assert_eq!(table.len(), open.len());
}

proptest! {
    #[test]
    fn whatever_the_order_each_connection_opens_once_and_closes_once(deeds in deeds()) {
        play(&deeds, true);
    }

    #[test]
    fn without_notices_each_connection_that_is_seen_opens_once_and_closes_once(deeds in deeds()) {
        play(&deeds, false);
    }
}
