//! Both sides over real Unix sockets: restarts of either, copies, strangers, nonsense and agents that do not keep up.

use crate::queue::tests::file;
use crate::{Backoff, ClientOptions, Counters, DeliverError, Limits, Link, SensorClient, SensorServer, ServerOptions};
use picket_protocol::event::Sink;
use picket_protocol::sensor::{Ack, FRAME_MAX_BYTES, Frame, Hello, VERSIONS, VersionRange};
use picket_protocol::{EventBody, GapReason, Sight, SightLevel};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

fn options(dir: &Path, limits: Limits) -> ServerOptions {
    ServerOptions {
        socket: dir.join("sensor.sock"),
        socket_mode: 0o660,
        state_dir: dir.to_owned(),
        allowed: Vec::new(),
        limits,
        program: "1.0.0".to_owned(),
    }
}

fn server(dir: &TempDir) -> SensorServer {
    SensorServer::start(options(dir.path(), Limits::default())).unwrap()
}

fn client_options(dir: &TempDir) -> ClientOptions {
    ClientOptions {
        socket: dir.path().join("sensor.sock"),
        mark: dir.path().join("mark"),
        program: "1.0.0".to_owned(),
        backoff: Backoff { first: Duration::from_millis(5), longest: Duration::from_millis(40) },
    }
}

/// An agent that calls everything durable at once, and what it got.
fn client(dir: &TempDir) -> (SensorClient, Receiver<EventBody>) {
    let (send, received) = channel();
    let client = SensorClient::start(client_options(dir), move |events| {
        events.into_iter().for_each(|event| send.send(event).unwrap());
        Ok(())
    });
    (client.unwrap(), received)
}

/// Waits for a condition that another thread brings about.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "waited in vain for: {what}");
        std::thread::yield_now();
    }
}

fn emit(sink: &Sink, names: std::ops::Range<usize>) {
    names.for_each(|number| sink(file(&format!("/f{number}"))));
}

fn path(body: &EventBody) -> &str {
    if let EventBody::File(event) = body { &event.path } else { body.type_name() }
}

fn expect(received: &Receiver<EventBody>, names: std::ops::Range<usize>) {
    for number in names {
        let event = received.recv_timeout(PATIENCE).unwrap();
        assert_eq!(path(&event), format!("/f{number}"), "{event:?}");
    }
}

fn assert_ledger(counters: Counters) {
    let Counters { emitted, acknowledged, queued, shed, .. } = counters;
    assert_eq!(emitted, acknowledged + queued + shed, "{counters:?}");
}

/// A peer of the sensor's that this test plays itself.
fn peer(dir: &TempDir, versions: VersionRange) -> (UnixStream, Option<Frame>) {
    let mut stream = UnixStream::connect(dir.path().join("sensor.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let hello = Hello { versions, program: "9.9.9".to_owned(), incarnation: None, mark: None };
    Frame::Hello(hello).write(&mut stream).unwrap();
    let answer = Frame::read(&mut stream).unwrap();
    (stream, answer)
}

fn next_events(stream: &mut UnixStream) -> Vec<u64> {
    loop {
        match Frame::read(stream).unwrap().unwrap() {
            Frame::Events(events) => return events.events.iter().map(|numbered| numbered.seq).collect(),
            Frame::Bye(bye) => panic!("{bye:?}"),
            _ => {}
        }
    }
}

fn ends(mut stream: &UnixStream) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rest = Vec::new();
    // A reset is an end, too; a timeout is none.
    !matches!(stream.read_to_end(&mut rest), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn events_arrive_in_order_and_are_forgotten_once_they_are_durable() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir);
    let sink = server.sink();
    emit(&sink, 0..500);
    let (client, received) = client(&dir);
    expect(&received, 0..500);
    emit(&sink, 500..1_000);
    expect(&received, 500..1_000);
    until("everything to be acknowledged", || server.counters().queued == 0);
    assert_eq!(server.counters().acknowledged, 1_000);
    assert_eq!((client.status().delivered, client.status().duplicates), (1_000, 0));
    assert!(matches!(client.status().link, Link::Connected { ref program, .. } if program == "1.0.0"));
}

#[test]
fn the_agent_hears_how_much_is_seen_and_when_that_changes() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir);
    let sight = |level| vec![Sight { source: "files".into(), level, method: "fanotify".into(), detail: String::new() }];
    server.set_sights(sight(SightLevel::Full));
    let (client, _received) = client(&dir);
    until("the first sight", || client.status().sights == sight(SightLevel::Full));
    until("the first counters", || client.status().counters.is_some());
    server.set_sights(sight(SightLevel::Blind));
    until("the change", || client.status().sights == sight(SightLevel::Blind));
    drop(server);
    until("the sensor to be missed", || matches!(client.status().link, Link::Waiting { .. }));
    assert_eq!(client.status().sights, Vec::new(), "nothing is known of a sensor that is gone");
}

#[test]
fn an_agent_that_restarts_gets_what_came_meanwhile_and_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir);
    let sink = server.sink();
    let (first, received) = client(&dir);
    emit(&sink, 0..10);
    expect(&received, 0..10);
    first.stop();
    emit(&sink, 10..20);
    let (second, received) = client(&dir);
    expect(&received, 10..20);
    assert_eq!((second.status().duplicates, second.status().restarts), (0, 0));
}

#[test]
fn an_agent_that_dies_before_it_acknowledges_does_not_take_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir);
    emit(&server.sink(), 0..5);
    // It made them durable and noted its mark, and died before its acknowledgement went out.
    let (mut dying, _) = peer(&dir, VERSIONS);
    assert_eq!(next_events(&mut dying), [1, 2, 3, 4, 5]);
    drop(dying);
    let mark = crate::Mark { incarnation: server.incarnation(), seq: 5 };
    crate::mark::save(&dir.path().join("mark"), mark).unwrap();
    let (_client, received) = client(&dir);
    until("the mark to count as an acknowledgement", || server.counters().acknowledged == 5);
    emit(&server.sink(), 5..6);
    expect(&received, 5..6);
}

#[test]
fn a_sensor_that_ends_in_good_order_hands_everything_to_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let first = server(&dir);
    let incarnation = first.incarnation();
    let (client_one, received) = client(&dir);
    emit(&first.sink(), 0..10);
    expect(&received, 0..10);
    // What is received is acknowledged a little later: an agent that ends in between gets it again.
    until("the first to be acknowledged", || first.counters().acknowledged == 10);
    client_one.stop();
    emit(&first.sink(), 10..30);
    assert_eq!(first.drain(Duration::from_secs(5)).unwrap().counters.queued, 20);
    let second = server(&dir);
    assert_eq!(second.incarnation(), incarnation);
    emit(&second.sink(), 30..40);
    let (client_two, received) = client(&dir);
    expect(&received, 10..40);
    until("everything to be acknowledged", || second.counters().queued == 0);
    assert_eq!((second.counters().emitted, client_two.status().restarts), (40, 0));
    assert_ledger(second.counters());
}

#[test]
fn a_sensor_that_drains_lets_the_agent_take_what_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir);
    let (client, received) = client(&dir);
    until("the agent", || server.is_connected());
    emit(&server.sink(), 0..5_000);
    let drained = server.drain(PATIENCE).unwrap();
    assert_eq!((drained.counters.acknowledged, drained.counters.queued), (5_000, 0));
    expect(&received, 0..5_000);
    until(
        "the end to be told",
        || matches!(client.status().link, Link::Waiting { ref reason, .. } if !reason.is_empty()),
    );
}

#[test]
fn a_sensor_that_is_killed_is_met_again_as_another_with_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let first = server(&dir);
    let (client, received) = client(&dir);
    emit(&first.sink(), 0..3);
    expect(&received, 0..3);
    // Dropped, not drained: nothing is handed on, as after a kill.
    drop(first);
    let second = server(&dir);
    let gap = received.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(&gap, EventBody::Gap(gap) if gap.reason == GapReason::ProcessLost && gap.count.is_none()));
    // Numbers begin again and are not taken for copies.
    emit(&second.sink(), 3..6);
    expect(&received, 3..6);
    assert_eq!(client.status().restarts, 1);
}

#[test]
fn events_that_could_not_be_made_durable_come_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir);
    emit(&server.sink(), 0..3);
    let (send, received) = channel();
    let mut failures = 3;
    let client = SensorClient::start(client_options(&dir), move |events| {
        if failures > 0 {
            failures -= 1;
            return Err(DeliverError::from("the disk is full"));
        }
        events.into_iter().for_each(|event| send.send(event).unwrap());
        Ok(())
    })
    .unwrap();
    expect(&received, 0..3);
    until("the acknowledgement", || server.counters().acknowledged == 3);
    assert_eq!(client.status().delivered, 3);
}

#[test]
fn an_agent_that_does_not_keep_up_costs_the_oldest_and_every_one_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let server = SensorServer::start(options(dir.path(), Limits { bytes: 1 << 20, events: 100 })).unwrap();
    let (mut slow, _) = peer(&dir, VERSIONS);
    emit(&server.sink(), 0..1);
    assert_eq!(next_events(&mut slow), [1]);
    emit(&server.sink(), 1..1_000);
    let counters = server.counters();
    assert_eq!((counters.queued, counters.shed), (100, 900));
    assert_ledger(counters);
    // It takes up again where it stood, and hears how many are missing.
    drop(slow);
    let (_client, received) = client(&dir);
    let mut gaps = 0;
    let mut events = 0;
    until("everything to be there or counted", || {
        match received.recv_timeout(PATIENCE).unwrap() {
            EventBody::Gap(gap) => gaps += gap.count.unwrap(),
            _ => events += 1,
        }
        gaps + events == 1_000
    });
    assert_eq!((events, gaps), (100, 900));
}

#[test]
fn an_agent_that_stands_still_never_stops_the_watchers() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir);
    // Connected, greeted, and never reads again: the socket's own buffer runs full.
    let (_stuck, _) = peer(&dir, VERSIONS);
    let began = Instant::now();
    emit(&server.sink(), 0..60_000);
    assert!(began.elapsed() < PATIENCE);
    assert_eq!(server.counters().emitted, 60_000);
    assert!(server.counters().queued <= 50_000 && server.counters().queued_bytes <= 8 << 20);
    assert_ledger(server.counters());
}

#[test]
fn the_newest_agent_takes_the_place_of_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir);
    let (old, _) = peer(&dir, VERSIONS);
    let (mut new, _) = peer(&dir, VERSIONS);
    assert!(ends(&old));
    emit(&server.sink(), 0..2);
    let mut got = next_events(&mut new);
    if got.len() == 1 {
        got.extend(next_events(&mut new));
    }
    assert_eq!(got, [1, 2]);
}

#[test]
fn neighbouring_versions_speak_and_strangers_are_told_why_not() {
    let dir = tempfile::tempdir().unwrap();
    let _server = server(&dir);
    let next = VersionRange { oldest: VERSIONS.newest, newest: VERSIONS.newest + 1 };
    let (stream, answer) = peer(&dir, next);
    assert!(matches!(answer, Some(Frame::Hello(_))));
    drop(stream);
    let far = VersionRange { oldest: VERSIONS.newest + 1, newest: VERSIONS.newest + 2 };
    let (mut stream, answer) = peer(&dir, far);
    assert!(matches!(answer, Some(Frame::Hello(_))));
    assert!(matches!(Frame::read(&mut stream), Ok(Some(Frame::Bye(bye))) if bye.reason.contains("versions")));

    let strange = SensorClient::start_with(client_options(&dir), far, |_| Ok(())).unwrap();
    until(
        "the reason to be told",
        || matches!(strange.status().link, Link::Waiting { ref reason, .. } if reason.contains("versions")),
    );
}

#[test]
fn nonsense_ends_its_own_connection_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir);
    let (_client, received) = client(&dir);
    emit(&server.sink(), 0..1);
    expect(&received, 0..1);
    let long = u32::try_from(FRAME_MAX_BYTES + 1).unwrap().to_be_bytes();
    for nonsense in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 100], &long, b"\0\0\0\x02{}", b"\0\0"] {
        let mut stream = UnixStream::connect(dir.path().join("sensor.sock")).unwrap();
        let _ = stream.write_all(nonsense);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        assert!(ends(&stream), "{nonsense:?}");
    }
    // After the hello, too: an oversize frame, garbage, and an acknowledgement of what was never sent.
    for nonsense in [long.to_vec(), b"\0\0\0\x04nope".to_vec(), Frame::Ack(Ack { up_to: 77 }).encode().unwrap()] {
        let (mut stream, _) = peer(&dir, VERSIONS);
        // It may have hung up before the last byte.
        let _ = stream.write_all(&nonsense);
        assert!(ends(&stream), "{nonsense:?}");
    }
    emit(&server.sink(), 1..20);
    expect(&received, 1..20);
}

#[test]
fn a_sensor_that_talks_nonsense_is_left_and_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("sensor.sock");
    let liar = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let (client, received) = client(&dir);
    for nonsense in [&[0xff_u8; 64][..], b"\0\0\0\x04nope", b""] {
        let (mut stream, _) = liar.accept().unwrap();
        stream.write_all(nonsense).unwrap();
    }
    drop(liar);
    let server = server(&dir);
    emit(&server.sink(), 0..3);
    expect(&received, 0..3);
    assert!(matches!(client.status().link, Link::Connected { .. }));
}

/// Users that no system has.
const SERVICE: u32 = 61_000;
const STRANGER: u32 = 61_001;

#[test]
fn only_root_the_sensor_itself_and_the_service_user_may_connect() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path(), Limits::default());
    options.allowed = vec![SERVICE];
    let socket = options.socket.clone();
    let _server = SensorServer::start(options).unwrap();
    // The file's own mode is not what is tested here.
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o666)).unwrap();
    let greeted = |user: u32| {
        let socket = socket.clone();
        // Credentials belong to a thread: this one connects as somebody else, and ends.
        let connected = std::thread::spawn(move || {
            let user = rustix::process::Uid::from_raw(user);
            rustix::thread::set_thread_res_uid(user, user, user).unwrap();
            let mut stream = UnixStream::connect(socket).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let hello = Hello { versions: VERSIONS, program: String::new(), incarnation: None, mark: None };
            let _ = Frame::Hello(hello).write(&mut stream);
            matches!(Frame::read(&mut stream), Ok(Some(Frame::Hello(_))))
        });
        connected.join().unwrap()
    };
    assert!(greeted(0));
    assert!(greeted(SERVICE));
    assert!(!greeted(STRANGER));
}

#[test]
fn a_second_sensor_of_the_same_installation_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let _first = server(&dir);
    let error = SensorServer::start(options(dir.path(), Limits::default())).err().unwrap();
    assert!(matches!(error, crate::ServerError::Lock(_)), "{error:?}");
}

#[test]
fn either_side_may_go_at_any_moment_and_every_event_is_there_or_counted() {
    let dir = tempfile::tempdir().unwrap();
    let received: Arc<Mutex<Vec<EventBody>>> = Arc::default();
    let agent = || {
        let received = Arc::clone(&received);
        let taken = move |events: Vec<EventBody>| -> Result<(), DeliverError> {
            received.lock().unwrap().extend(events);
            Ok(())
        };
        SensorClient::start(client_options(&dir), taken).unwrap()
    };
    let mut emitted = 0;
    let mut running = Some(agent());
    for round in 0..20 {
        let server = SensorServer::start(options(dir.path(), Limits { bytes: 1 << 20, events: 300 })).unwrap();
        for _ in 0..4 {
            emit(&server.sink(), emitted..emitted + 97);
            emitted += 97;
            match running.take() {
                Some(client) if round % 3 != 0 => client.stop(),
                Some(client) => running = Some(client),
                None => running = Some(agent()),
            }
        }
        server.drain(Duration::from_millis(round)).unwrap();
    }
    let server = server(&dir);
    let _last = running.unwrap_or_else(agent);
    until("everything to be taken", || server.counters().queued == 0);
    assert_ledger(server.counters());
    until("the sum to be right", || {
        let received = received.lock().unwrap();
        let sum: u64 =
            received.iter().map(|body| if let EventBody::Gap(gap) = body { gap.count.unwrap() } else { 1 }).sum();
        sum >= emitted as u64
    });
    let received = received.lock().unwrap();
    let mut paths: Vec<&str> = received.iter().filter(|body| body.type_name() == "file").map(path).collect();
    let all = paths.len();
    paths.sort_unstable();
    paths.dedup();
    assert_eq!(paths.len(), all, "an event came twice");
    let gaps: u64 =
        received.iter().filter_map(|body| if let EventBody::Gap(gap) = body { gap.count } else { None }).sum();
    assert_eq!(all as u64 + gaps, emitted as u64);
}
