//! What measuring costs: processor time for each sample of each group, and all groups once a second as a share of a core.
//!
//! The time is what the scheduler charged this thread (`/proc/thread-self/schedstat`, kernel time included), so that
//! other programs on the machine do not count. The first samples, which open files and look for what does not change,
//! are not in the figures. Beside it, in the same run: the process list as sysinfo refreshes it.
//!
//! Run: `cargo bench -p picket-agent --bench collect [-- --json]`.
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads its own arguments")]

use picket_agent::collect::{Group, Latest, Measurer, Plan, Taken};
use std::path::Path;
use std::time::Instant;
use sysinfo::{ProcessesToUpdate, System};

/// Samples before the figures begin.
const WARM_UP: u32 = 20;
/// Samples in each figure.
const SAMPLES: u32 = 500;
/// Samples of those that cost milliseconds each.
const SLOW_SAMPLES: u32 = 50;

/// What one kind of sample cost.
struct Cost {
    name: &'static str,
    cpu_microseconds: f64,
    wall_microseconds: f64,
}

fn main() {
    let json = std::env::args().any(|argument| argument == "--json");
    let before = resident_kib();
    let (mut measurer, latest) = (Measurer::new(&Plan::default()), Latest::default());
    let mut costs: Vec<Cost> = Vec::new();
    for group in Group::ALL {
        costs.push(cost(group.as_str(), SAMPLES, || {
            if let Ok(sample) = measurer.sample(group) {
                latest.set(Taken::now(sample).into());
            }
        }));
    }
    let all: f64 = costs.iter().map(|cost| cost.cpu_microseconds).sum();
    let after = resident_kib();
    let rival = System::new().ok().map(|mut system| {
        cost("sysinfo processes", SLOW_SAMPLES, || {
            system.refresh_processes(ProcessesToUpdate::All, true);
        })
    });
    let processes = latest.processes(|processes| processes.total).unwrap_or(0);
    let share = all / 10_000.0;
    if json {
        let mut figures: serde_json::Map<String, serde_json::Value> =
            costs.iter().chain(&rival).map(|cost| (cost.name.to_owned(), cost.cpu_microseconds.into())).collect();
        figures.insert("cpu_percent_at_1s".to_owned(), share.into());
        figures.insert("processes".to_owned(), processes.into());
        println!("{}", serde_json::Value::Object(figures));
        return;
    }
    println!("{SAMPLES} samples a group, {processes} processes on the machine");
    println!("{:<20} {:>12} {:>12}", "group", "cpu us", "wall us");
    for cost in costs.iter().chain(&rival) {
        println!("{:<20} {:>12.1} {:>12.1}", cost.name, cost.cpu_microseconds, cost.wall_microseconds);
    }
    println!("all groups once a second: {all:.0} us of processor time, {share:.3} % of a core");
    println!("resident: {before} KiB before, {after} KiB after {} samples", Group::ALL.len() * SAMPLES as usize);
}

fn cost(name: &'static str, samples: u32, mut sample: impl FnMut()) -> Cost {
    for _ in 0..WARM_UP {
        sample();
    }
    let (began, cpu) = (Instant::now(), thread_nanoseconds());
    for _ in 0..samples {
        sample();
    }
    let each = |nanoseconds: f64| nanoseconds / 1_000.0 / f64::from(samples);
    let spent = thread_nanoseconds().saturating_sub(cpu);
    Cost { name, cpu_microseconds: each(spent as f64), wall_microseconds: each(began.elapsed().as_nanos() as f64) }
}

/// Processor time of this thread so far; 0 where the kernel does not say.
fn thread_nanoseconds() -> u64 {
    let text = picket_durable::read_text(Path::new("/proc/thread-self/schedstat"), 256).unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// Memory of this process.
fn resident_kib() -> u64 {
    let text = picket_durable::read_text(Path::new("/proc/self/status"), 8 << 10).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}
