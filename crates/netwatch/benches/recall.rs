//! How many of many short connections are seen, by each means, against the truth of the load generator.
//!
//! `cargo bench -p picket-netwatch --bench recall [-- --connections 10000 --rate 2000 --sockets 18000]`: a table, then one
//! line of JSON. With root in a network namespace of its own; without, beside whatever else the machine does.
//!
//! A connection on loopback is two sockets, so two ends that open and close. Four kinds take turns: closed by the client
//! or the server first, reset by the client or the server. An end that its own program resets forgets the other side's
//! port; it counts as seen by its own.
#![cfg_attr(not(target_os = "linux"), allow(unused))]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads its arguments and files directly")]
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
#![expect(clippy::unwrap_used, reason = "a step that fails ends the benchmark")]

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("connections are watched on Linux alone");
}

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(target_os = "linux")]
mod linux {
    use nix::sched::{CloneFlags, unshare};
    use picket_config::Layers;
    use picket_netwatch::{Means, NetWatcher, NetworkMonitorSettings, WatchOptions};
    use picket_protocol::event::{Direction, EventBody, NetworkAction, NetworkEvent};
    use rustix::net::sockopt::set_socket_linger;
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    use serde_json::json;
    use std::collections::HashMap;
    use std::net::{TcpListener, TcpStream};
    use std::process::Command;
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, Instant};

    /// The queue of notices that takes no privilege: `net.core.rmem_max`.
    const UNPRIVILEGED_QUEUE: usize = 212_992;

    /// One end of a connection, by its own port and, for the server's, the client's.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    enum End {
        Client(u16),
        Server(u16),
        /// A server's end that was reset there: the client's port is forgotten.
        Nameless,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Kind {
        ClientCloses,
        ServerCloses,
        ClientResets,
        ServerResets,
    }

    const KINDS: [(Kind, &str); 4] = [
        (Kind::ClientCloses, "client closes"),
        (Kind::ServerCloses, "server closes"),
        (Kind::ClientResets, "client resets"),
        (Kind::ServerResets, "server resets"),
    ];

    struct Case {
        name: &'static str,
        means: Means,
        queue: Option<usize>,
        rate: Option<u32>,
    }

    pub fn main() {
        let words: Vec<String> = std::env::args().collect();
        let option = |name: &str, default: u32| {
            let at = words.iter().position(|word| word == name);
            at.and_then(|at| words.get(at + 1)?.parse().ok()).unwrap_or(default)
        };
        let (connections, rate) = (option("--connections", 10_000), option("--rate", 2_000));
        let sockets = option("--sockets", 18_000);
        let own = unshare(CloneFlags::CLONE_NEWNET).is_ok();
        if own {
            assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        }
        let open_files = getrlimit(Resource::Nofile);
        let _ = setrlimit(Resource::Nofile, Rlimit { current: open_files.maximum, ..open_files });

        let paced = Some(rate);
        let cases = [
            Case { name: "sock_diag + notices", means: Means::Best, queue: None, rate: paced },
            Case { name: "same, full speed", means: Means::Best, queue: None, rate: None },
            Case { name: "same, small queue", means: Means::Best, queue: Some(UNPRIVILEGED_QUEUE), rate: paced },
            Case { name: "small queue, full speed", means: Means::Best, queue: Some(UNPRIVILEGED_QUEUE), rate: None },
            Case { name: "sock_diag dumps, 1 s", means: Means::DumpsOnly, queue: None, rate: paced },
            Case { name: "/proc/net, 1 s", means: Means::ProcOnly, queue: None, rate: paced },
        ];
        println!("{connections} connections, a quarter of each kind; own network namespace: {own}; rate {rate}/s");
        println!("| means | kind | opened | closed | of ends |\n|---|---|---|---|---|");
        let recalls: Vec<serde_json::Value> = cases.iter().map(|case| recall(case, connections)).collect();
        println!("\n| means | sockets | look at all | processor time per second | RSS added |\n|---|---|---|---|---|");
        let costs: Vec<serde_json::Value> =
            [Means::Best, Means::ProcOnly].into_iter().filter_map(|means| cost(means, sockets)).collect();
        println!(
            "{}",
            json!({ "connections": connections, "rate": rate, "own_namespace": own, "recall": recalls, "cost": costs })
        );
    }

    fn options(means: Means) -> WatchOptions {
        let layers = Layers::new::<NetworkMonitorSettings>().flag("bench", "enabled", "true");
        WatchOptions { means, ..WatchOptions::from(layers.resolve::<NetworkMonitorSettings>().settings) }
    }

    /// Makes the load, and holds what was reported against it.
    fn recall(case: &Case, connections: u32) -> serde_json::Value {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server_port = listener.local_addr().unwrap().port();
        let mut options = options(case.means);
        options.notice_buffer = case.queue.unwrap_or(options.notice_buffer);
        let events = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&events);
        let watcher = NetWatcher::start(&options, Arc::new(move |event| sink.lock().unwrap().push(event))).unwrap();
        let began = Instant::now();
        let truth = load(&listener, connections, case.rate);
        let took = began.elapsed();
        // Three looks after the last: what is inferred by absence is inferred by then.
        let dumps = watcher.counters().dumps + 3;
        while watcher.counters().dumps < dumps {
            std::thread::sleep(Duration::from_millis(50));
        }
        let counters = watcher.counters();
        watcher.stop();
        let events = std::mem::take(&mut *events.lock().unwrap());
        let mut seen: HashMap<(End, NetworkAction), u32> = HashMap::new();
        let (mut gaps, mut wrong) = (0, 0);
        for event in &events {
            match event {
                EventBody::Network(event) => {
                    let Some((end, right)) = end_of(event, server_port) else { continue };
                    wrong += u32::from(!right);
                    *seen.entry((end, event.action)).or_default() += 1;
                }
                EventBody::Gap(_) => gaps += 1,
                _ => {}
            }
        }
        let mut rows = Vec::new();
        for (kind, name) in KINDS {
            let ends: Vec<[End; 2]> =
                truth.iter().filter(|(k, _)| *k == kind).flat_map(|(_, port)| ends(kind, *port)).collect();
            let mut count = |action| {
                let mut found = 0_usize;
                for names in &ends {
                    let name = names.iter().find(|name| seen.get(&(**name, action)).is_some_and(|left| *left > 0));
                    if let Some(left) = name.and_then(|name| seen.get_mut(&(*name, action))) {
                        *left -= 1;
                        found += 1;
                    }
                }
                found
            };
            let (opened, closed) = (count(NetworkAction::Opened), count(NetworkAction::Closed));
            let percent = |part: usize| format!("{:.2} %", 100.0 * part as f64 / ends.len().max(1) as f64);
            println!("| {} | {name} | {} | {} | {} |", case.name, percent(opened), percent(closed), ends.len());
            rows.push(json!({ "kind": name, "ends": ends.len(), "opened": opened, "closed": closed }));
        }
        let surplus: u32 = seen.values().sum();
        println!(
            "| {} | took {:.1} s; gaps {gaps}; direction wrong {wrong}; reported but not made {surplus} | | | {} |",
            case.name,
            took.as_secs_f64(),
            2 * truth.len()
        );
        json!({ "means": case.name, "seconds": took.as_secs_f64(), "gaps": gaps, "direction_wrong": wrong,
            "surplus": surplus, "overflows": counters.overflows, "kinds": rows })
    }

    /// The two ends of a connection, each by the names it may be reported under: a dump knows the port that a notice of a
    /// reset forgets.
    fn ends(kind: Kind, port: u16) -> [[End; 2]; 2] {
        let server = if kind == Kind::ServerResets { End::Nameless } else { End::Server(port) };
        [[End::Client(port); 2], [End::Server(port), server]]
    }

    /// Which end an event is of, and whether its direction is right.
    fn end_of(event: &NetworkEvent, server_port: u16) -> Option<(End, bool)> {
        let (local, remote) = match event.direction {
            Direction::Inbound => (event.dst_port, event.src_port),
            Direction::Outbound | Direction::Unknown => (event.src_port, event.dst_port),
        };
        if local == server_port {
            let end = if remote == 0 { End::Nameless } else { End::Server(remote) };
            Some((end, event.direction == Direction::Inbound))
        } else if remote == server_port || remote == 0 {
            Some((End::Client(local), event.direction == Direction::Outbound))
        } else {
            None
        }
    }

    /// Makes connections one after the other; returns the kind and the client's port of each.
    fn load(listener: &TcpListener, connections: u32, rate: Option<u32>) -> Vec<(Kind, u16)> {
        let began = Instant::now();
        let mut truth = Vec::new();
        for number in 0..connections {
            if let Some(rate) = rate {
                let due = Duration::from_secs(1) * number / rate;
                std::thread::sleep(due.saturating_sub(began.elapsed()));
            }
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let port = client.local_addr().unwrap().port();
            let (server, _) = listener.accept().unwrap();
            let (kind, _) = KINDS[number as usize % KINDS.len()];
            let (first, second) = match kind {
                Kind::ClientCloses | Kind::ClientResets => (client, server),
                Kind::ServerCloses | Kind::ServerResets => (server, client),
            };
            if matches!(kind, Kind::ClientResets | Kind::ServerResets) {
                set_socket_linger(&first, Some(Duration::ZERO)).unwrap();
            }
            drop(first);
            drop(second);
            truth.push((kind, port));
        }
        truth
    }

    /// What watching many idle connections costs.
    fn cost(means: Means, sockets: u32) -> Option<serde_json::Value> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut held = Vec::new();
        for _ in 0..sockets / 2 {
            let Ok(client) = TcpStream::connect(listener.local_addr().unwrap()) else { break };
            let Ok((server, _)) = listener.accept() else { break };
            held.push((client, server));
        }
        if held.len() < sockets as usize / 2 {
            println!("| {means:?} | not measured: the limit of open files is too low | | | |");
            return None;
        }
        let before = resident();
        let watcher = NetWatcher::start(&options(means), Arc::new(|_| {})).unwrap();
        let (dumps, began, processor) = (watcher.counters().dumps, Instant::now(), processor_time());
        while watcher.counters().dumps < dumps + 10 {
            std::thread::sleep(Duration::from_millis(50));
        }
        let share = processor_time().saturating_sub(processor).as_secs_f64() / began.elapsed().as_secs_f64();
        let (look, added) = (watcher.counters().dump_micros, resident().saturating_sub(before));
        watcher.stop();
        println!(
            "| {means:?} | {sockets} | {:.1} ms | {:.1} ms | {} KiB |",
            look as f64 / 1_000.0,
            share * 1_000.0,
            added >> 10
        );
        Some(
            json!({ "means": format!("{means:?}"), "sockets": sockets, "dump_micros": look, "processor_share": share, "rss_added": added }),
        )
    }

    /// The processor time of this process so far.
    fn processor_time() -> Duration {
        rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime).try_into().unwrap()
    }

    /// The resident memory of this process in bytes.
    fn resident() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
    }
}
