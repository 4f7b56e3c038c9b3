//! What an agent costs its machine, beside prometheus-node-exporter on the same machine in the same run: run by
//! `scripts/bench agent-cost`.
//!
//! Arguments: the agent's executable, the exporter's, and for how many seconds they are watched. Both run at their
//! defaults and are scraped every [`SCRAPE`] seconds, the exporter because that is when it works, the agent because it
//! is treated alike. Processor time is what the scheduler charged their threads (`/proc/PID/task/*/schedstat`); memory
//! is what the kernel counts at the end. The last line is the figures as JSON.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads files and arguments directly")]
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
#![expect(clippy::unwrap_used, reason = "a step that fails ends the benchmark")]

use picket_outbox::{Delays, QueueStatus};
use picket_testkit::{Prefix, wait_until};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often both are scraped: what many a Prometheus is set to.
const SCRAPE: Duration = Duration::from_secs(15);
/// How long both are left alone first: the agent has measured every group by then, the exporter has been scraped once.
const WARM_UP: Duration = Duration::from_secs(20);

/// How many events a second the load makes.
const LOAD: u32 = 2_000;
/// How finely the load is spread.
const TICK: Duration = Duration::from_millis(10);
/// How long each rate is held.
const STEP: Duration = Duration::from_secs(15);

/// A program under watch. It ends with the value.
struct Subject {
    name: &'static str,
    child: Child,
    port: u16,
}

/// What a subject had used at one moment.
struct Reading {
    at: Instant,
    cpu_nanoseconds: u64,
}

/// What a subject cost over a time.
struct Cost {
    name: &'static str,
    cpu_percent: f64,
    rss_kib: u64,
    anonymous_kib: u64,
    peak_kib: u64,
    threads: u64,
    scrape_milliseconds: f64,
    scrape_bytes: usize,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let [agent, exporter, seconds] = &arguments[..] else {
        println!("run `scripts/bench agent-cost`, which builds what is measured");
        return;
    };
    let duration = Duration::from_secs(seconds.parse().unwrap());
    let prefix = Prefix::new("http://127.0.0.1:9");
    let subjects = [start_agent(Path::new(agent), &prefix), start_exporter(Path::new(exporter))];
    for subject in &subjects {
        wait_until(subject.name, || prefix.get(subject.port, "/metrics", "").is_some_and(|(status, _)| status == 200));
    }
    std::thread::sleep(WARM_UP);
    let costs = watch(&subjects, duration, &prefix);
    print("idle", duration, &costs);
    drop(subjects);
    under_load(Path::new(agent), Path::new(exporter), duration);
    until_the_first_gap(Path::new(agent));
}

/// Both again while files come, change and go: 2,000 events a second.
fn under_load(agent: &Path, exporter: &Path, duration: Duration) {
    let folder = tempfile::tempdir().unwrap();
    let prefix = watching(folder.path(), "");
    let subjects = [start_agent(agent, &prefix), start_exporter(exporter)];
    wait_until("files to be watched", || sees_files(&prefix));
    let stop = AtomicBool::new(false);
    let (events, costs, took) = std::thread::scope(|scope| {
        scope.spawn(|| make_files(folder.path(), LOAD, &stop));
        std::thread::sleep(WARM_UP);
        let (before, began) = (queue(&prefix), Instant::now());
        let costs = watch(&subjects, duration, &prefix);
        let (after, took) = (queue(&prefix), began.elapsed());
        stop.store(true, Ordering::Relaxed);
        (after.emitted - before.emitted, costs, took)
    });
    let rate = events as f64 / took.as_secs_f64();
    print(&format!("{rate:.0} file events a second"), duration, &costs);
    let end = queue(&prefix);
    println!(
        "events: {} emitted, {} missing; from event to durable: p50 {:.0} ms, p99 {:.0} ms (by classes, linear within)",
        end.emitted,
        end.missing,
        end.delays.quantile(0.5).unwrap_or_default().as_secs_f64() * 1_000.0,
        end.delays.quantile(0.99).unwrap_or_default().as_secs_f64() * 1_000.0,
    );
}

/// Raises the rate until something is missing. The budgets, which would shed on purpose, are out of the way.
fn until_the_first_gap(agent: &Path) {
    let mut best = 0.0_f64;
    for rate in [2_000, 4_000, 6_000, 8_000, 12_000, 16_000, 24_000] {
        let folder = tempfile::tempdir().unwrap();
        let open = "events: {file_rate: 1000000, file_burst: 1000000}\nlimits: {cpu_percent: 400, memory: 1GiB}\n";
        let prefix = watching(folder.path(), open);
        let _agent = start_agent(agent, &prefix);
        wait_until("files to be watched", || sees_files(&prefix));
        let stop = AtomicBool::new(false);
        let (before, began) = (queue(&prefix), Instant::now());
        let done = std::thread::scope(|scope| {
            let load = scope.spawn(|| make_files(folder.path(), rate, &stop));
            std::thread::sleep(STEP);
            stop.store(true, Ordering::Relaxed);
            load.join().unwrap()
        });
        let seconds = began.elapsed().as_secs_f64();
        let (done, told) = (done as f64 / seconds, (queue(&prefix).emitted - before.emitted) as f64 / seconds);
        // What is still on its way arrives, or is missed.
        std::thread::sleep(Duration::from_secs(3));
        let end = queue(&prefix);
        println!(
            "asked for {rate} file events a second: {done:.0} done, {told:.0} told by then, {} missing",
            end.missing
        );
        // Beyond what the load can do no step says more.
        if end.missing > 0 || done < best {
            break;
        }
        best = done;
    }
    println!("sustained before the first gap: {best:.0} file events a second, for {} s", STEP.as_secs());
}

/// A folder of an agent that watches `folder` and nothing else.
fn watching(folder: &Path, more: &str) -> Prefix {
    let prefix = Prefix::new("http://127.0.0.1:9");
    let path = prefix.path("etc/picket/config.yaml");
    let text = fs::read_to_string(&path).unwrap();
    let files = format!("file_monitor: {{paths: [{}], debounce: 200ms}}\n", folder.display());
    fs::write(&path, format!("{text}\n{files}network_monitor: {{enabled: false}}\n{more}")).unwrap();
    prefix
}

fn sees_files(prefix: &Prefix) -> bool {
    let Some((_, health)) = prefix.health("/health") else { return false };
    health["checks"]["files"]["level"] == "full"
}

/// The books of an agent.
struct Queue {
    emitted: u64,
    missing: u64,
    delays: Delays,
}

fn queue(prefix: &Prefix) -> Queue {
    let (_, text) = prefix.get(prefix.metrics_port, "/queue", "").unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    let status: QueueStatus = serde_json::from_value(report["queue"].clone()).unwrap();
    assert!(status.ledger_holds);
    let total = status.ledger.total();
    Queue { emitted: total.emitted, missing: total.gap_total() + status.unknown_gaps, delays: status.delays }
}

/// Makes files that come, are written, and go a second later: three events each, no two alike. Gives the number of events.
fn make_files(folder: &Path, events_per_second: u32, stop: &AtomicBool) -> u64 {
    let per_tick = f64::from(events_per_second) / 3.0 * TICK.as_secs_f64();
    let (began, mut made, mut ticks) = (Instant::now(), 0_u64, 0_u32);
    let mut living: VecDeque<(Instant, PathBuf)> = VecDeque::new();
    while !stop.load(Ordering::Relaxed) {
        ticks += 1;
        while (made as f64) < f64::from(ticks) * per_tick {
            made += 1;
            let path = folder.join(format!("f{made}"));
            fs::write(&path, b"content").unwrap();
            living.push_back((Instant::now(), path));
        }
        while living.front().is_some_and(|(born, _)| born.elapsed() > Duration::from_secs(1)) {
            let (_, path) = living.pop_front().unwrap();
            fs::remove_file(path).unwrap();
        }
        std::thread::sleep((TICK * ticks).saturating_sub(began.elapsed()));
    }
    made * 3 - living.len() as u64
}

/// An agent with the defaults of a new installation.
fn start_agent(exe: &Path, prefix: &Prefix) -> Subject {
    fs::create_dir_all(prefix.path("var/lib/picket")).unwrap();
    let mut command = Command::new(exe);
    command.args(["agent", "run"]).env("PICKET_PREFIX", prefix.path(""));
    Subject { name: "picket agent", child: silent(command), port: prefix.metrics_port }
}

/// The exporter with its defaults, but on a free port.
fn start_exporter(exe: &Path) -> Subject {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new(exe);
    command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
    Subject { name: "node_exporter", child: silent(command), port }
}

fn silent(mut command: Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Scrapes all subjects in turn for `duration`, and tells what each cost.
fn watch(subjects: &[Subject], duration: Duration, prefix: &Prefix) -> Vec<Cost> {
    let began: Vec<Reading> = subjects.iter().map(Subject::read).collect();
    let deadline = Instant::now() + duration;
    let mut scrapes: Vec<(Duration, usize)> = vec![(Duration::ZERO, 0); subjects.len()];
    let mut count = 0_u32;
    while Instant::now() < deadline {
        for (subject, (took, bytes)) in subjects.iter().zip(&mut scrapes) {
            let start = Instant::now();
            let (status, body) = prefix.get(subject.port, "/metrics", "").unwrap();
            assert_eq!(status, 200, "{} does not answer", subject.name);
            *took += start.elapsed();
            *bytes = body.len();
        }
        count += 1;
        std::thread::sleep(SCRAPE.min(deadline.saturating_duration_since(Instant::now())));
    }
    let scrapes = scrapes.into_iter().map(|(took, bytes)| (took / count.max(1), bytes));
    subjects.iter().zip(&began).zip(scrapes).map(|((subject, began), scrape)| subject.cost(began, scrape)).collect()
}

impl Subject {
    fn read(&self) -> Reading {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap().flatten();
        let charged = tasks.filter_map(|task| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Reading { at: Instant::now(), cpu_nanoseconds: charged.sum() }
    }

    fn cost(&self, began: &Reading, (scrape, scrape_bytes): (Duration, usize)) -> Cost {
        let ended = self.read();
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        let spent = ended.cpu_nanoseconds.saturating_sub(began.cpu_nanoseconds) as f64;
        Cost {
            name: self.name,
            cpu_percent: spent * 100.0 / ended.at.duration_since(began.at).as_nanos() as f64,
            rss_kib: field("VmRSS:"),
            anonymous_kib: field("RssAnon:"),
            peak_kib: field("VmHWM:"),
            threads: field("Threads:"),
            scrape_milliseconds: scrape.as_secs_f64() * 1_000.0,
            scrape_bytes,
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The figures as a table for people and, on the last line, as JSON.
fn print(load: &str, duration: Duration, costs: &[Cost]) {
    let (watched, scrape) = (duration.as_secs(), SCRAPE.as_secs());
    println!("{load}; default intervals; watched for {watched} s, each scraped every {scrape} s");
    println!(
        "{:<14} {:>10} {:>10} {:>12} {:>10} {:>8} {:>11} {:>13}",
        "", "CPU %core", "RSS KiB", "its own KiB", "peak KiB", "threads", "scrape ms", "scrape bytes"
    );
    for cost in costs {
        println!(
            "{:<14} {:>10.3} {:>10} {:>12} {:>10} {:>8} {:>11.2} {:>13}",
            cost.name,
            cost.cpu_percent,
            cost.rss_kib,
            cost.anonymous_kib,
            cost.peak_kib,
            cost.threads,
            cost.scrape_milliseconds,
            cost.scrape_bytes
        );
    }
    let figures = costs.iter().map(|cost| {
        json!({
            "name": cost.name,
            "cpu_percent_of_core": cost.cpu_percent,
            "rss_kib": cost.rss_kib,
            "anonymous_kib": cost.anonymous_kib,
            "peak_kib": cost.peak_kib,
            "threads": cost.threads,
            "scrape_ms": cost.scrape_milliseconds,
            "scrape_bytes": cost.scrape_bytes,
        })
    });
    let figures: Vec<Value> = figures.collect();
    println!("{}", json!({ "load": load, "seconds": watched, "scrape_seconds": scrape, "programs": figures }));
}
