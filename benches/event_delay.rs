//! From the write of a file until its event is durable in the queue, at 2,000 files a second: run by
//! `scripts/bench agent-cost`.
//!
//! Watcher and queue as the agent has them, in one process, so that the moment of the write is known: it is the file's
//! name. What lies between the two in the agent (folding, budgets) passes the first of its kind on at once. Arguments: the
//! folder to make files in, and for how many seconds.
#![expect(clippy::disallowed_methods, reason = "a benchmark makes files directly")]
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
#![expect(clippy::unwrap_used, reason = "a step that fails ends the benchmark")]

use jiff::Timestamp;
use picket_filewatch::{FileMonitorSettings, FileWatcher, Options, Privileged, WatchPath};
use picket_outbox::{BatchLimits, Draft, Options as QueueOptions, Outbox, OutboxSettings, SystemClock};
use picket_protocol::event::{EventBody, FileAction};
use picket_seal::{Keyring, Sealer};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Files a second.
const RATE: u32 = 2_000;
/// How finely the load is spread.
const TICK: Duration = Duration::from_millis(5);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let [folder, seconds] = &arguments[..] else {
        println!("run `scripts/bench agent-cost`, which says where and for how long");
        return;
    };
    for (method, privileged) in [("fanotify", Privileged::Auto), ("inotify", Privileged::Never)] {
        measure(method, privileged, Path::new(folder), Duration::from_secs(seconds.parse().unwrap()));
    }
}

fn measure(method: &str, privileged: Privileged, folder: &Path, duration: Duration) {
    let dir = tempfile::tempdir_in(folder).unwrap();
    let (watched, state) = (dir.path().join("watched"), dir.path().join("state"));
    fs::create_dir(&watched).unwrap();
    fs::create_dir(&state).unwrap();
    let outbox = Arc::new(open_queue(&dir.path().join("queue")));
    let to = Arc::clone(&outbox);
    let options = Options {
        settings: FileMonitorSettings { paths: vec![WatchPath::new(&watched).unwrap()], ..Default::default() },
        state_dir: state,
        own: Vec::new(),
        privileged,
        ignore_self: false,
    };
    let told = move |event: EventBody| {
        let EventBody::File(file) = &event else { return };
        let Some(written) = written_at(&file.path).filter(|_| file.action == FileAction::Created) else { return };
        to.emit(Draft { at_ms: written.as_millisecond(), ..Draft::event(&event).unwrap() });
    };
    let watcher = FileWatcher::start(options, Arc::new(told)).unwrap();
    let made = make_files(&watched, duration);
    // The rest arrives within the batch delay; what is durable is taken out, as the uplink would.
    let deadline = Instant::now() + Duration::from_secs(10);
    while outbox.status().delays.count() < made && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    let (method_used, delays) = (watcher.sight().method, outbox.status().delays);
    watcher.stop();
    let quantile = |share| delays.quantile(share).unwrap_or_default().as_secs_f64() * 1_000.0;
    println!(
        "write to durable, {method} ({method_used}), {RATE} files/s for {} s: {made} made, {} durable, p50 {:.1} ms, p99 {:.1} ms",
        duration.as_secs(),
        delays.count(),
        quantile(0.5),
        quantile(0.99),
    );
}

fn open_queue(folder: &Path) -> Outbox {
    fs::create_dir_all(folder).unwrap();
    let keyring = Arc::new(Keyring::open_or_create(&folder.join("key")).unwrap());
    let outbox = Outbox::open(QueueOptions {
        folder: folder.join("outbox"),
        sealer: Arc::new(Sealer::new(keyring).unwrap()),
        limits: OutboxSettings::default().limits(),
        kernel_boot: "bench".to_owned(),
        clock: Arc::new(SystemClock),
    });
    let outbox = outbox.unwrap();
    assert!(outbox.next_batch(BatchLimits { bytes: 1 << 20, records: 1 }).unwrap().is_none());
    outbox
}

/// The moment that a file's name says.
fn written_at(path: &str) -> Option<Timestamp> {
    let name = Path::new(path).file_name()?.to_str()?;
    Timestamp::from_nanosecond(name.parse().ok()?).ok()
}

fn make_files(folder: &Path, duration: Duration) -> u64 {
    let per_tick = f64::from(RATE) * TICK.as_secs_f64();
    let (began, mut made, mut ticks) = (Instant::now(), 0_u64, 0_u32);
    while began.elapsed() < duration {
        ticks += 1;
        while (made as f64) < f64::from(ticks) * per_tick {
            made += 1;
            fs::write(folder.join(Timestamp::now().as_nanosecond().to_string()), b"content").unwrap();
        }
        std::thread::sleep((TICK * ticks).saturating_sub(began.elapsed()));
    }
    made
}
