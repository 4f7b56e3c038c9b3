//! A build with the feature `otel` sends the agent's spans to a collector: a real agent, a real HTTP receiver.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test's servers and helpers fail the test")]

use picket_testkit::{Prefix, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);

/// A collector that takes every request; what it got comes out of the channel.
fn collector() -> (u16, Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, requests) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            stream.set_read_timeout(Some(LONG)).unwrap();
            let mut stream = BufReader::new(stream);
            let (mut header, mut length) = (String::new(), 0);
            while !header.ends_with("\r\n\r\n") {
                let from = header.len();
                if stream.read_line(&mut header).unwrap_or(0) == 0 {
                    break;
                }
                let line = header[from..].to_ascii_lowercase();
                length = line.strip_prefix("content-length: ").map_or(length, |text| text.trim_end().parse().unwrap());
            }
            let mut body = vec![0; length];
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            if stream.read_exact(&mut body).and_then(|()| stream.get_mut().write_all(answer)).is_ok() {
                let _ = sender.send((header, body));
            }
        }
    });
    (port, requests)
}

fn holds(body: &[u8], part: &[u8]) -> bool {
    body.windows(part.len()).any(|window| window == part)
}

#[test]
fn the_agents_spans_reach_a_collector_in_the_trace_of_their_cause() {
    let (port, requests) = collector();
    let prefix = Prefix::new("http://127.0.0.1:9");
    fs::create_dir_all(prefix.path("var/lib/picket")).unwrap();
    let headers = prefix.path("otlp-headers");
    fs::write(&headers, "X-Api-Key: s3cret\n").unwrap();
    let mut agent = Command::new(Path::new(env!("CARGO_BIN_EXE_picket")))
        .args([
            "agent",
            "run",
            "--set",
            &format!("otlp.endpoint=http://127.0.0.1:{port}"),
            "--set",
            "otlp.interval=200ms",
        ])
        .args(["--set", &format!("otlp.headers_file={}", headers.display())])
        .env("PICKET_PREFIX", prefix.path(""))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the agent to answer", || prefix.health("/livez").is_some());
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let cause = format!("traceparent: 00-{trace}-00f067aa0ba902b7-01\r\nx-correlation-id: cause-of-this-test\r\n");
    assert_eq!(prefix.get(prefix.health_port, "/livez", &cause).unwrap().0, 200);
    let id: Vec<u8> = (0..16).map(|at| u8::from_str_radix(&trace[at * 2..at * 2 + 2], 16).unwrap()).collect();
    let deadline = Instant::now() + LONG;
    let mut found = None;
    while found.is_none() && Instant::now() < deadline {
        found = requests.recv_timeout(LONG).ok().filter(|(_, body)| holds(body, &id));
    }
    kill_process(Pid::from_child(&agent), Signal::TERM).unwrap();
    assert!(agent.wait().unwrap().success());
    let (header, body) = found.expect("no span of the request's trace came");
    assert!(header.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{header}");
    let header = header.to_ascii_lowercase();
    assert!(
        header.contains("x-api-key: s3cret") && header.contains("content-type: application/x-protobuf"),
        "{header}"
    );
    for part in ["picket-agent", "service.instance.id", "cause-of-this-test", "/livez"] {
        assert!(holds(&body, part.as_bytes()), "{part} is missing");
    }
}
