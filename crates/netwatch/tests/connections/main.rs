//! Real connections on loopback, each test in a network namespace of its own, so that no other traffic is seen.
//!
//! A namespace needs root; without it these tests say so and check nothing.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]
#![expect(clippy::print_stderr, reason = "a test that cannot run here says so")]

mod sight;

use nix::sched::{CloneFlags, unshare};
use picket_config::Layers;
use picket_netwatch::{Means, NetWatcher, NetworkMonitorSettings, WatchOptions};
use picket_protocol::SightLevel;
use picket_protocol::event::{
    Confidence, Direction, EventBody, GapEvent, GapReason, NetworkAction, NetworkEvent, NetworkMethod, Protocol,
};
use rustix::net::sockopt::set_socket_linger;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long something may take that must happen.
const LONG: Duration = Duration::from_secs(30);
/// An interval at whose end no test is still there: what is seen is seen without a dump.
const NEVER: &str = "1h";

/// Runs a test in a thread with a network of its own.
fn in_own_network(test: fn()) {
    let thread = std::thread::spawn(move || {
        if let Err(e) = unshare(CloneFlags::CLONE_NEWNET) {
            eprintln!("not checked: a network namespace of its own takes root ({e})");
            return;
        }
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.unwrap().success(), "iproute2 is needed");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A watcher and what it reported.
struct Watch {
    watcher: NetWatcher,
    events: Receiver<EventBody>,
}

impl Watch {
    /// With settings as an operator writes them.
    fn start(means: Means, settings: &[(&str, &str)]) -> Self {
        let mut layers = Layers::new::<NetworkMonitorSettings>().flag("test", "enabled", "true");
        for (key, value) in settings {
            layers = layers.flag("test", key, value);
        }
        let resolved = layers.resolve::<NetworkMonitorSettings>();
        assert!(resolved.problems.0.is_empty(), "{:?}", resolved.problems);
        Self::with(&WatchOptions { means, ..WatchOptions::from(resolved.settings) })
    }

    fn with(options: &WatchOptions) -> Self {
        let (send, events) = channel();
        let send = Mutex::new(send);
        let watcher =
            NetWatcher::start(options, Arc::new(move |event| drop(send.lock().unwrap().send(event)))).unwrap();
        let watch = Self { watcher, events };
        if options.settings.enabled {
            watch.expect_beginning();
        }
        watch
    }

    /// The first thing that a watcher tells is that nobody watched before it.
    fn expect_beginning(&self) {
        match self.events.recv_timeout(LONG) {
            Ok(EventBody::Gap(gap)) => {
                assert_eq!((gap.reason, gap.source.as_str(), gap.count), (GapReason::Unwatched, "network", None));
            }
            other => panic!("no beginning but {other:?}"),
        }
    }

    /// The next event of a connection.
    fn next(&self) -> NetworkEvent {
        match self.events.recv_timeout(LONG) {
            Ok(EventBody::Network(event)) => event,
            other => panic!("no event of a connection but {other:?}; {:?}", self.watcher.counters()),
        }
    }

    /// The next `number` events, those that were opened first, then by direction.
    fn take(&self, number: usize) -> Vec<NetworkEvent> {
        let mut events: Vec<NetworkEvent> = (0..number).map(|_| self.next()).collect();
        events.sort_by_key(|event| (event.action == NetworkAction::Closed, event.direction == Direction::Outbound));
        events
    }

    /// Stops it; nothing else was reported.
    fn end(self) {
        self.watcher.stop();
        let rest: Vec<EventBody> = self.events.try_iter().collect();
        assert!(rest.is_empty(), "{rest:#?}");
    }
}

/// Both ends of a connection.
fn connect(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    (client, server)
}

fn reset(socket: TcpStream) {
    set_socket_linger(&socket, Some(Duration::ZERO)).unwrap();
    drop(socket);
}

fn src(event: &NetworkEvent) -> SocketAddr {
    (event.src_ip, event.src_port).into()
}

fn dst(event: &NetworkEvent) -> SocketAddr {
    (event.dst_ip, event.dst_port).into()
}

#[test]
fn a_connection_is_seen_from_both_ends_with_who_and_how_much() {
    in_own_network(|| {
        let watch = Watch::start(Means::Best, &[("interval", "100ms")]);
        assert_eq!(
            (watch.watcher.sight().level, watch.watcher.sight().method.as_str()),
            (SightLevel::Full, "sock_diag")
        );
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut client, mut server) = connect(&listener);
        client.write_all(&[1; 1_000]).unwrap();
        server.read_exact(&mut [0; 1_000]).unwrap();
        let (from, to) = (client.local_addr().unwrap(), client.peer_addr().unwrap());

        let opened = watch.take(2);
        let directions = [Direction::Inbound, Direction::Outbound];
        assert_eq!(opened.iter().map(|e| e.direction).collect::<Vec<_>>(), directions);
        for event in &opened {
            assert_eq!((event.action, src(event), dst(event)), (NetworkAction::Opened, from, to));
            assert_eq!((event.method, event.confidence), (NetworkMethod::SockDiag, Confidence::Inferred));
            assert_eq!(event.uid, Some(rustix::process::getuid().as_raw()));
        }
        // The server's end has an owner once it is accepted, which the dump may have come before.
        let actor = opened[1].actor.as_ref().unwrap();
        assert_eq!(actor.pid, std::process::id());
        assert!(actor.exe.as_ref().unwrap().contains("connections"));
        drop((client, server));
        let closed = watch.take(2);
        for event in &closed {
            assert_eq!((event.action, src(event), dst(event)), (NetworkAction::Closed, from, to));
            assert_eq!((event.method, event.confidence), (NetworkMethod::SockDestroy, Confidence::Observed));
            assert_eq!(event.actor.as_ref().unwrap().pid, std::process::id());
        }
        assert_eq!(closed[1].bytes_sent, Some(1_000));
        // The FIN is counted as one.
        assert!(matches!(closed[0].bytes_received, Some(1_000 | 1_001)), "{:?}", closed[0]);
        watch.end();
    });
}

#[test]
fn what_is_there_at_the_start_is_told_when_it_closes() {
    in_own_network(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (client, server) = connect(&listener);
        let watch = Watch::start(Means::Best, &[("interval", NEVER)]);
        drop((client, server));
        for event in watch.take(2) {
            assert_eq!((event.action, event.confidence), (NetworkAction::Closed, Confidence::Observed));
            assert_eq!(event.actor.unwrap().pid, std::process::id());
        }
        watch.end();
    });
}

#[test]
fn a_connection_shorter_than_the_interval_is_seen_from_both_ends() {
    in_own_network(|| {
        let watch = Watch::start(Means::Best, &[("interval", NEVER)]);
        // Younger than the last dump: that it listens is found out when it is needed.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (client, server) = connect(&listener);
        let (from, to) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        drop((client, server));
        let events = watch.take(4);
        let seen: Vec<_> = events.iter().map(|e| (e.action, e.direction, e.confidence)).collect();
        let expected = [
            (NetworkAction::Opened, Direction::Inbound, Confidence::Inferred),
            (NetworkAction::Opened, Direction::Outbound, Confidence::Inferred),
            (NetworkAction::Closed, Direction::Inbound, Confidence::Observed),
            (NetworkAction::Closed, Direction::Outbound, Confidence::Observed),
        ];
        assert_eq!(seen, expected);
        for event in &events {
            assert_eq!((src(event), dst(event), event.method), (from, to, NetworkMethod::SockDestroy));
        }
        watch.end();
    });
}

#[test]
fn a_connection_that_is_reset_at_once_is_seen_though_its_own_side_forgets_a_port() {
    in_own_network(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let watch = Watch::start(Means::Best, &[("interval", NEVER)]);
        for by_client in [true, false] {
            let (client, server) = connect(&listener);
            let (from, to) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            if by_client {
                reset(client);
                drop(server);
            } else {
                reset(server);
                drop(client);
            }
            let events = watch.take(4);
            let directions: Vec<Direction> = events.iter().map(|e| e.direction).collect();
            let both = [Direction::Inbound, Direction::Outbound];
            assert_eq!(directions, [both, both].concat());
            for event in events {
                let forgetful = (event.direction == Direction::Outbound) == by_client;
                let (src_port, dst_port) = match (forgetful, event.direction) {
                    (false, _) => (from.port(), to.port()),
                    (true, Direction::Outbound) => (from.port(), 0),
                    (true, _) => (0, to.port()),
                };
                assert_eq!((event.src_port, event.dst_port), (src_port, dst_port), "{event:?}");
                let counted = event.action == NetworkAction::Closed && !forgetful;
                assert_eq!(event.bytes_sent.is_some(), counted, "{event:?}");
            }
        }
        watch.end();
    });
}

#[test]
fn a_connection_that_a_dump_saw_keeps_its_ports_when_it_is_reset() {
    in_own_network(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let watch = Watch::start(Means::Best, &[("interval", "100ms")]);
        let (client, server) = connect(&listener);
        let (from, to) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        watch.take(2);
        reset(client);
        drop(server);
        for event in watch.take(2) {
            assert_eq!((event.action, src(&event), dst(&event)), (NetworkAction::Closed, from, to));
        }
        watch.end();
    });
}

#[test]
fn only_connections_of_the_ports_that_matter_are_reported() {
    in_own_network(|| {
        let wanted = TcpListener::bind("127.0.0.1:2222").unwrap();
        let other = TcpListener::bind("127.0.0.1:3333").unwrap();
        let watch = Watch::start(Means::Best, &[("interval", "100ms"), ("ports", "2222")]);
        drop(connect(&other));
        drop(connect(&wanted));
        drop(connect(&other));
        for event in watch.take(4) {
            assert_eq!(event.dst_port, 2222);
        }
        watch.end();
    });
}

#[test]
fn a_short_connection_whose_port_is_forgotten_is_counted_in_a_gap_where_only_ports_matter() {
    in_own_network(|| {
        let other = TcpListener::bind("127.0.0.1:3333").unwrap();
        let watch = Watch::start(Means::Best, &[("interval", NEVER), ("ports", "2222")]);
        let (client, server) = connect(&other);
        reset(client);
        drop(server);
        // The kernel tells of an end a moment after it.
        let deadline = Instant::now() + LONG;
        while watch.watcher.counters().notices < 2 {
            assert!(Instant::now() < deadline, "{:?}", watch.watcher.counters());
            std::thread::yield_now();
        }
        watch.watcher.stop();
        let events: Vec<EventBody> = watch.events.try_iter().collect();
        let [EventBody::Gap(gap)] = &events[..] else { panic!("{events:?}") };
        assert_eq!((gap.reason, gap.count), (GapReason::Unwatched, Some(1)));
    });
}

#[test]
fn attempts_that_nobody_answers_and_listeners_that_end_are_no_connections() {
    in_own_network(|| {
        let watch = Watch::start(Means::Best, &[("interval", "100ms")]);
        assert!(TcpStream::connect("127.0.0.1:1").is_err());
        drop(TcpListener::bind("127.0.0.1:0").unwrap());
        drop(UdpSocket::bind("127.0.0.1:0").unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        drop(connect(&listener));
        // Told in order: what came before would have been reported before.
        for event in watch.take(4) {
            assert_eq!(event.dst_port, listener.local_addr().unwrap().port());
        }
        watch.end();
    });
}

#[test]
fn connections_of_the_machine_with_itself_can_be_left_out() {
    in_own_network(|| {
        let added = Command::new("ip").args(["addr", "add", "10.1.1.1/32", "dev", "lo"]).status();
        assert!(added.unwrap().success());
        let listener = TcpListener::bind("0.0.0.0:4444").unwrap();
        let watch = Watch::start(Means::Best, &[("interval", NEVER), ("loopback", "false")]);
        drop(connect(&TcpListener::bind("127.0.0.1:0").unwrap()));
        let client = TcpStream::connect("10.1.1.1:4444").unwrap();
        drop((client, listener.accept().unwrap()));
        for event in watch.take(4) {
            assert_eq!(event.dst_ip, IpAddr::from([10, 1, 1, 1]));
        }
        watch.end();
    });
}

#[test]
fn ipv6_is_watched_and_an_ipv4_client_of_an_ipv6_listener_is_ipv4() {
    in_own_network(|| {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        for interval in ["100ms", NEVER] {
            for (target, expected) in [
                (IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)),
                ([127, 0, 0, 1].into(), [127, 0, 0, 1].into()),
            ] {
                let watch = Watch::start(Means::Best, &[("interval", interval)]);
                let client = TcpStream::connect((target, port)).unwrap();
                let server = listener.accept().unwrap();
                let opened = if interval == NEVER { Vec::new() } else { watch.take(2) };
                drop((client, server));
                let events = [opened, watch.take(if interval == NEVER { 4 } else { 2 })].concat();
                assert_eq!(events.len(), 4);
                for event in events {
                    assert_eq!((event.src_ip, event.dst_ip, event.dst_port), (expected, expected, port));
                }
                watch.end();
            }
        }
    });
}

#[test]
fn a_udp_socket_with_one_peer_is_a_connection() {
    in_own_network(|| {
        let server = UdpSocket::bind("127.0.0.1:5353").unwrap();
        for interval in ["100ms", NEVER] {
            let watch = Watch::start(Means::Best, &[("interval", interval)]);
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.connect(server.local_addr().unwrap()).unwrap();
            let from = client.local_addr().unwrap();
            let mut events = if interval == NEVER { Vec::new() } else { watch.take(1) };
            drop(client);
            events.extend(watch.take(2 - events.len()));
            assert_eq!(
                events.iter().map(|e| e.action).collect::<Vec<_>>(),
                [NetworkAction::Opened, NetworkAction::Closed]
            );
            for event in events {
                assert_eq!((event.protocol, event.direction), (Protocol::Udp, Direction::Outbound));
                assert_eq!((src(&event), event.dst_port), (from, 5353));
            }
            watch.end();
        }
    });
}

#[test]
fn lost_notices_are_a_gap_and_what_is_left_is_still_told_right() {
    in_own_network(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (kept, kept_server) = connect(&listener);
        let (gone, gone_server) = connect(&listener);
        let gone_port = gone.local_addr().unwrap().port();
        let resolved = Layers::new::<NetworkMonitorSettings>()
            .flag("test", "enabled", "true")
            .flag("test", "interval", "100ms")
            .resolve::<NetworkMonitorSettings>();
        let options = WatchOptions { notice_buffer: 4_096, ..WatchOptions::from(resolved.settings) };
        let (send, events) = channel();
        let (release, held) = sync_channel::<()>(1);
        let state = Mutex::new((send, Some(held)));
        // The sink holds the watcher up at the first connection, until far more was closed than its queue can hold.
        let sink = Arc::new(move |event| {
            let mut state = state.lock().unwrap();
            let is_connection = matches!(event, EventBody::Network(_));
            let _ = state.0.send(event);
            if let Some(held) = state.1.take_if(|_| is_connection) {
                held.recv_timeout(LONG).unwrap();
            }
        });
        let watch = Watch { watcher: NetWatcher::start(&options, sink).unwrap(), events };
        watch.expect_beginning();
        drop(connect(&listener));
        watch.next();
        for _ in 0..200 {
            drop(connect(&listener));
        }
        drop((gone, gone_server));
        release.send(()).unwrap();

        let mut gap: Option<GapEvent> = None;
        let mut closed = 0;
        let deadline = Instant::now() + LONG;
        while gap.is_none() || closed < 2 {
            match watch.events.recv_timeout(deadline.saturating_duration_since(Instant::now())).unwrap() {
                EventBody::Gap(event) => gap = Some(event),
                // By the dump that follows, if its notice is lost, as nearly all are.
                EventBody::Network(event) if event.src_port == gone_port => {
                    assert_eq!(event.action, NetworkAction::Closed);
                    closed += 1;
                }
                _ => {}
            }
        }
        let gap = gap.unwrap();
        assert_eq!((gap.reason, gap.source.as_str(), gap.count), (GapReason::KernelOverflow, "network", None));
        assert!(gap.since.unwrap() <= gap.timestamp);
        assert!(watch.watcher.counters().overflows >= 1);
        // Afterwards all is as before.
        let kept_port = kept.local_addr().unwrap().port();
        drop((kept, kept_server));
        loop {
            match watch.events.recv_timeout(LONG).unwrap() {
                EventBody::Network(event) if event.src_port == kept_port => {
                    assert_eq!((event.action, event.confidence), (NetworkAction::Closed, Confidence::Observed));
                    return;
                }
                _ => {}
            }
        }
    });
}

#[test]
fn what_is_switched_off_starts_nothing_and_says_so() {
    let settings = NetworkMonitorSettings::default();
    let watch = Watch::with(&WatchOptions::from(settings));
    assert_eq!(watch.watcher.sight().level, SightLevel::Off);
    assert_eq!(watch.events.recv_timeout(Duration::ZERO), Err(RecvTimeoutError::Disconnected));
}

#[test]
fn what_the_kernel_knows_when_a_watcher_is_stopped_is_told_first() {
    in_own_network(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let watch = Watch::start(Means::Best, &[("interval", NEVER)]);
        let (_client, _server) = connect(&listener);
        watch.watcher.stop();
        let actions: Vec<NetworkAction> = watch
            .events
            .try_iter()
            .map(|event| match event {
                EventBody::Network(event) => event.action,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(actions, [NetworkAction::Opened; 2]);
    });
}

#[test]
fn a_watcher_that_is_stopped_says_nothing_more() {
    in_own_network(|| {
        let watch = Watch::start(Means::Best, &[("interval", "100ms")]);
        watch.watcher.stop();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        drop(connect(&listener));
        assert_eq!(watch.events.recv_timeout(LONG), Err(RecvTimeoutError::Disconnected));
    });
}
