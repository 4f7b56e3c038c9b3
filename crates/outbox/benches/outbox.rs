//! From emit to durable, and the highest rate: `cargo bench -p picket-outbox [-- FOLDER]`.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "it is a program that prints"
)]

use picket_outbox::{BatchLimits, Draft, Options, Outbox, OutboxSettings, SystemClock};
use picket_protocol::event::EventBody;
use picket_seal::{Keyring, Sealer};
use std::sync::Arc;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

/// A network event as the seeds have it, about 330 bytes of JSON.
fn draft() -> Draft {
    let event: EventBody = serde_json::from_str(
        r#"{"type":"network","details":{"timestamp":"2026-11-21T12:34:56Z","action":"opened","direction":"outbound",
            "protocol":"tcp","src_ip":"10.1.2.3","src_port":40000,"dst_ip":"192.0.2.7","dst_port":443,
            "actor":{"pid":4711,"exe":"/usr/bin/curl","uid":1000,"user":"somebody"},"uid":1000,
            "method":"sock_diag","confidence":"observed"}}"#,
    )
    .unwrap();
    Draft::event(&event).unwrap()
}

fn open(folder: &std::path::Path) -> Outbox {
    let keyring = Arc::new(Keyring::open_or_create(&folder.join("key")).unwrap());
    let options = Options {
        folder: folder.join("outbox"),
        sealer: Arc::new(Sealer::new(keyring).unwrap()),
        limits: OutboxSettings::default().limits(),
        kernel_boot: "bench".into(),
        clock: Arc::new(SystemClock),
    };
    Outbox::open(options).unwrap()
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

/// CPU time of this process so far.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap())
}

fn show(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let [p50, p99, max] = [50, 99, 100].map(|percent| percentile(&times, percent));
    println!("{name:<34} p50 {p50:>10.1?}  p99 {p99:>10.1?}  max {max:>10.1?}");
}

fn main() {
    let given = std::env::args().skip(1).find(|word| !word.starts_with("--"));
    let dir = given.map_or_else(tempfile::tempdir, tempfile::tempdir_in).unwrap();
    let outbox = open(dir.path());

    let one_by_one = (0..500).map(|_| {
        let begun = Instant::now();
        outbox.emit_durable(draft(), LIMIT).unwrap();
        begun.elapsed()
    });
    show("emit_durable, one by one", one_by_one.collect());

    // As in life: 2,000 a second, spread evenly; how long a caller is held, and how long until an event is durable.
    let (mut calls, mut durable) = (Vec::new(), Vec::new());
    let (begun, cpu_before) = (Instant::now(), cpu());
    for n in 0..20_000_u32 {
        let due = begun + Duration::from_micros(500) * n;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let draft = draft();
        let called = Instant::now();
        assert!(outbox.emit(draft));
        calls.push(called.elapsed());
        // Looked at now and then, without hurrying the writer: when is what was just emitted in the books on disk?
        if n % 997 == 0 {
            let before = outbox.status().queued.total() + outbox.status().in_memory;
            while outbox.status().queued.total() < before {
                std::thread::sleep(Duration::from_micros(200));
            }
            durable.push(called.elapsed());
        }
    }
    outbox.flush(LIMIT).unwrap();
    let (wall, used) = (begun.elapsed(), cpu().saturating_sub(cpu_before));
    show("emit at 2,000/s, the call", calls);
    show("emit at 2,000/s, until durable", durable);
    println!("{:<34} {:.1} % of a core", "emit at 2,000/s, CPU", 100.0 * used.as_secs_f64() / wall.as_secs_f64());

    let (begun, cpu_before, total) = (Instant::now(), cpu(), 100_000_u32);
    for n in 0..total {
        // As fast as it takes them, without losing any.
        if n % 4096 == 0 {
            outbox.flush(LIMIT).unwrap();
        }
        assert!(outbox.emit(draft()));
    }
    outbox.flush(LIMIT).unwrap();
    let (wall, used) = (begun.elapsed(), cpu().saturating_sub(cpu_before));
    println!(
        "{:<34} {:.0} events/s, {:.1} µs of CPU each",
        "highest rate, 4,096 in flight",
        f64::from(total) / wall.as_secs_f64(),
        used.as_secs_f64() * 1e6 / f64::from(total)
    );
    let status = outbox.status();
    println!("{:<34} {} bytes", "a stored event", status.bytes / status.queued.total());

    let (begun, mut records, mut sent, mut plain) = (Instant::now(), 0, 0, 0);
    while let Some(batch) = outbox.next_batch(BatchLimits { bytes: 512 << 10, records: 2000 }).unwrap() {
        let encoded = batch.encode("agent-123").unwrap();
        (records, sent, plain) =
            (records + encoded.records, sent + encoded.bytes.len(), plain + encoded.uncompressed_bytes);
        outbox.acknowledge(&batch).unwrap();
    }
    println!(
        "{:<34} {:.0} events/s, {plain} bytes became {sent}",
        "hand out, encode, acknowledge",
        records as f64 / begun.elapsed().as_secs_f64()
    );
    assert!(outbox.ledger().holds());
}
