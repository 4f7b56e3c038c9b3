//! What an update interrupts and what the agent costs, measured on a machine of the lab: run by `scripts/bench`.
//!
//! Arguments: `update-gap` or `memory`, the folder that `scripts/bench` filled with builds, their target. Needs root.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads clocks and files directly")]
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
#![expect(clippy::unwrap_used, reason = "a step that fails ends the benchmark")]

use picket_testkit::{Build, Machine, wait_until};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How many updates are measured.
const ROUNDS: usize = 10;
/// How long the agent is left alone before its memory is read: it has measured the machine more than once by then.
const IDLE: Duration = Duration::from_secs(90);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let [what, builds, target] = &arguments[..] else {
        println!("run `scripts/bench`, which builds what is measured");
        return;
    };
    let build = |version: &str| Build::of(version, &Path::new(builds).join(version).join("picket"), target);
    match what.as_str() {
        "update-gap" => update_gap(&build("1.0.0"), &build("2.0.0")),
        "memory" => memory(&build("1.0.0")),
        other => println!("there is no benchmark {other}"),
    }
}

/// From the last good answer of the old version to the first of the new one, ten times.
fn update_gap(old: &Build, new: &Build) {
    let machine = Machine::boot_with("gap", "", old);
    machine.install(old).expect(0);
    machine.assert_on("1.0.0");
    machine.vendor.release(new);
    let mut gaps: Vec<Duration> = Vec::new();
    for round in 1..=ROUNDS {
        let done = AtomicBool::new(false);
        let samples = std::thread::scope(|scope| {
            let watching = scope.spawn(|| machine.watch_versions(&done));
            let applied = machine.picket(&["update", "apply", "2.0.0", "--yes"]);
            done.store(true, Ordering::Relaxed);
            applied.expect(0);
            watching.join().unwrap()
        });
        let first_new = samples.iter().position(|(_, version)| version == "2.0.0").unwrap();
        let gap = samples[first_new].0 - samples[first_new - 1].0;
        println!("round {round}: {} ms", gap.as_millis());
        gaps.push(gap);
        machine.assert_on("2.0.0");
        machine.picket(&["update", "rollback", "--yes"]).expect(0);
        machine.assert_on("1.0.0");
    }
    gaps.sort();
    let median = (gaps[ROUNDS / 2 - 1] + gaps[ROUNDS / 2]) / 2;
    let (least, most) = (gaps[0].as_millis(), gaps[ROUNDS - 1].as_millis());
    println!("service gap of an update, median of {ROUNDS}: {} ms (least {least}, most {most})", median.as_millis());
}

/// The resident set of an agent that has nothing to do but measure the machine.
fn memory(build: &Build) {
    let machine = Machine::boot_with("memory", "", build);
    machine.install(build).expect(0);
    machine.assert_on("1.0.0");
    wait_until("the first sample", || machine.health("/readyz").is_some_and(|(status, _)| status == 200));
    std::thread::sleep(IDLE);
    let status = machine.sh(&format!("cat /proc/{}/status", machine.property("picket-agent", "MainPID")));
    let field = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let (rss, anonymous, peak) = (field("VmRSS:"), field("RssAnon:"), field("VmHWM:"));
    let size = std::fs::metadata(&build.exe).unwrap().len();
    println!("executable: {size} bytes");
    println!("resident after {} s idle: {rss} KiB ({anonymous} KiB of it its own), peak {peak} KiB", IDLE.as_secs());
}
