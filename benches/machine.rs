//! What an update interrupts, how soon a bad one is decided, and what the agent costs, measured on a machine of the lab:
//! run by `scripts/bench`.
//!
//! Arguments: `update-gap` or `memory`, the folder that `scripts/bench` filled with builds, their target; or `decision` and
//! how many runs. Needs root.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads clocks and files directly")]
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]
#![expect(clippy::unwrap_used, reason = "a step that fails ends the benchmark")]

use picket_testkit::{Build, Fault, Machine, wait_until};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How many updates are measured.
const ROUNDS: usize = 10;
/// How long the agent is left alone before its memory is read: it has measured the machine more than once by then.
const IDLE: Duration = Duration::from_secs(90);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let [what, builds, target] = &arguments[..] else {
        match &arguments[..] {
            [what, runs] if what == "decision" => decision(runs.parse().unwrap()),
            _ => println!("run `scripts/bench`, which builds what is measured"),
        }
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

/// How soon a release that dies, and one that never gets ready, is decided about: from the machine's own journal, in which
/// systemd tells of the process and the updater of its decision. With the builds of the tests, which can be broken.
fn decision(runs: usize) {
    let machine = Machine::installed("decision", "");
    // What `Machine` configures.
    let deadline = Duration::from_secs(8);
    let measure = |version: &str, fault: Fault, from: &str| {
        machine.release(version, fault);
        let times = (0..runs).map(|_| {
            let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            machine.picket(&["update", "apply", version, "--yes"]).expect(20);
            machine.assert_on("1.0.0");
            let told = told(&machine, began);
            let when = |text: &str, after: Duration| {
                told.iter().find(|(at, message)| *at >= after && message.contains(text)).map(|(at, _)| *at).unwrap()
            };
            let trial = when(&format!("start version {version}"), began);
            let from = when(from, trial);
            when("go back to version 1.0.0", from).saturating_sub(from)
        });
        let mut times: Vec<Duration> = times.collect();
        times.sort();
        times
    };
    let crash = measure("2.0.0", Fault::Crash, "Main process exited");
    print_times("crash: from the death of the new process to the decision to go back", &crash, Duration::from_secs(5));
    let hang = measure("3.0.0", Fault::Hang, "Starting picket-agent.service");
    let aim = deadline + Duration::from_secs(5);
    print_times(&format!("hang: from the start of the new process (deadline {} s)", deadline.as_secs()), &hang, aim);
}

/// What systemd said of the agent and the updater of itself since `began`, with its time, oldest first.
fn told(machine: &Machine, began: Duration) -> Vec<(Duration, String)> {
    let lines = machine.sh("journalctl --no-pager --output=json --unit=picket-agent --unit=picket-update");
    let entries = lines.lines().filter_map(|line| {
        let entry: serde_json::Value = serde_json::from_str(line).ok()?;
        let at = Duration::from_micros(entry["__REALTIME_TIMESTAMP"].as_str()?.parse().ok()?);
        (at >= began).then(|| entry["MESSAGE"].as_str().map(|message| (at, message.to_owned())))?
    });
    entries.collect()
}

/// Prints the spread of sorted times beside what they are to be at most.
fn print_times(what: &str, times: &[Duration], aim: Duration) {
    let ms = |index: usize| times[index.min(times.len() - 1)].as_millis();
    let (median, p95) = (ms(times.len() / 2), ms((times.len() * 95).div_ceil(100) - 1));
    println!(
        "{what}, {} runs: min {} ms, median {median} ms, p95 {p95} ms, max {} ms (aim: {} ms at most)",
        times.len(),
        ms(0),
        ms(times.len() - 1),
        aim.as_millis()
    );
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
