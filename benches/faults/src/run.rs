//! Trying points: which there are, many side by side, counted, with every failure kept and told how to be seen again.

use crate::call::{Call, Fault, Point, of_children, points, read_trace};
use crate::scenario::{Deed, Scenario, Stage, clear, try_point};
use crate::site::Site;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What is to be tried.
#[derive(Debug, Clone)]
pub struct Plan {
    /// In which scenarios.
    pub scenarios: Vec<Scenario>,
    /// What all versions are made of; the test builds where there is none. See [`crate::site::World::new`].
    pub base: Option<PathBuf>,
    /// This one point only.
    pub only: Option<Point>,
    /// So many points of all, chosen by the seed; every one where it is `None`.
    pub sample: Option<usize>,
    /// What decides which are chosen.
    pub seed: u64,
    /// Of a long transfer: so many calls at each end, and so many between.
    pub ends: usize,
    /// See `ends`.
    pub between: usize,
    /// Whether the machine is started after each point, even where the disk is one that was started before.
    pub each: bool,
    /// How many are tried side by side.
    pub workers: usize,
    /// No point is begun after this.
    pub limit: Option<Duration>,
    /// Where failures are kept, and what was tried is noted so that a later run goes on from there.
    pub folder: PathBuf,
}

/// How often a fault was put in, and how often the machine survived it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Faults put in.
    pub tried: usize,
    /// Machines that were well after the next start.
    pub survived: usize,
    /// Points that the run ended before: a call fewer than in the dry run. Not among the tried.
    pub unreached: usize,
}

/// A point that was not survived.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The scenario's name.
    pub scenario: &'static str,
    /// The point.
    pub point: String,
    /// What did not hold.
    pub message: String,
    /// Where everything is kept.
    pub kept: PathBuf,
}

/// What came of a plan.
#[derive(Debug, Default)]
pub struct Outcome {
    /// By scenario and fault.
    pub counts: BTreeMap<(usize, Fault), Count>,
    /// Calls that the dry runs saw: by scenario, by name.
    pub calls: BTreeMap<usize, BTreeMap<String, usize>>,
    /// What was not survived.
    pub failures: Vec<Failure>,
    /// Points that were left out because the time was over.
    pub left_out: usize,
    /// How many different disks the faults left, as far as the next start can tell.
    pub disks: usize,
    /// How long it took.
    pub wall: Duration,
}

impl Outcome {
    /// The sum over scenarios and faults.
    pub fn sum(&self) -> Count {
        let add = |a: Count, b: &Count| Count {
            tried: a.tried + b.tried,
            survived: a.survived + b.survived,
            unreached: a.unreached + b.unreached,
        };
        self.counts.values().fold(Count::default(), add)
    }
}

thread_local! {
    static LAST_WORDS: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs `act`.
///
/// # Errors
/// What it panicked with, if it did.
pub fn caught<T>(act: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(act)).map_err(|_| LAST_WORDS.take())
}

/// Makes panics of this program words to be caught, not lines on the terminal.
pub fn quiet_panics() {
    std::panic::set_hook(Box::new(|info| {
        let words = info.payload_as_str().unwrap_or("it panicked").to_owned();
        let place = info.location().map(|place| format!(" ({}:{})", place.file(), place.line())).unwrap_or_default();
        LAST_WORDS.set(words + &place);
    }));
}

/// Numbers from a seed (SplitMix64, Steele et al. 2014): the same on every machine.
#[derive(Debug, Clone)]
pub struct Dice(pub u64);

impl Dice {
    /// The next number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % limit.max(1) as u64).unwrap_or(0)
    }

    /// Brings `items` into another order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// The calls of a scenario without a fault.
fn dry_run(stage: &Stage, scenario: &Scenario) -> (Vec<Call>, String) {
    let site = Site::new(stage.world(scenario));
    let traced = try_point(&site, stage, scenario, None);
    let trace = read_trace(&traced.trace);
    (if scenario.deed == Deed::UpdateChildren { of_children(trace) } else { trace }, site.root())
}

/// Tries what the plan says.
///
/// # Panics
/// When a scenario does not even work without a fault.
pub fn run(plan: &Plan) -> Outcome {
    let began = Instant::now();
    let stage = Stage::new(&plan.scenarios, plan.base.as_deref(), plan.each);
    println!("builds and starting states: {} s", began.elapsed().as_secs());
    let mut outcome = Outcome::default();
    let noted = noted(&plan.folder);
    let mut queue = Vec::new();
    let dry = Mutex::new((0..plan.scenarios.len()).collect::<VecDeque<_>>());
    let seen = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..plan.workers.min(plan.scenarios.len()) {
            scope.spawn(|| {
                while let Some(index) = { dry.lock().unwrap().pop_front() } {
                    let trace = caught(|| dry_run(&stage, &plan.scenarios[index]));
                    seen.lock().unwrap().insert(index, trace);
                }
            });
        }
    });
    for (index, trace) in seen.into_inner().unwrap() {
        let name = plan.scenarios[index].name;
        let (trace, root) = trace.unwrap_or_else(|words| panic!("{name} fails without a fault: {words}"));
        let mut names: BTreeMap<String, usize> = BTreeMap::new();
        for call in trace.iter().filter(|call| call.is_ours(&root)) {
            *names.entry(call.name.clone()).or_default() += 1;
        }
        outcome.calls.insert(index, names);
        let points = match &plan.only {
            Some(point) => vec![point.clone()],
            None => points(&trace, &root, plan.ends, plan.between),
        };
        println!("{name}: {} calls, {} points", outcome.calls[&index].values().sum::<usize>(), points.len());
        queue.extend(points.into_iter().map(|point| (index, point)));
    }
    let all = queue.len();
    let mut dice = Dice(plan.seed);
    dice.shuffle(&mut queue);
    queue.truncate(plan.sample.unwrap_or(usize::MAX));
    println!(
        "{all} points in {} scenarios, {} of them to be tried; dry runs: {} s",
        plan.scenarios.len(),
        queue.len(),
        began.elapsed().as_secs()
    );
    let total = queue.len();
    let queue = Mutex::new(VecDeque::from(queue));
    let shared = Mutex::new(&mut outcome);
    std::thread::scope(|scope| {
        for _ in 0..plan.workers {
            scope.spawn(|| work(plan, &stage, &queue, &shared, &noted, (began, total)));
        }
    });
    outcome.left_out = queue.into_inner().unwrap().len();
    outcome.disks = stage.disks();
    outcome.wall = began.elapsed();
    outcome
}

/// One thread: an installation for each world, one point after the other.
fn work(
    plan: &Plan,
    stage: &Stage,
    queue: &Mutex<VecDeque<(usize, Point)>>,
    outcome: &Mutex<&mut Outcome>,
    noted: &HashSet<String>,
    (began, total): (Instant, usize),
) {
    let mut sites: BTreeMap<bool, Site> = BTreeMap::new();
    loop {
        if plan.limit.is_some_and(|limit| began.elapsed() > limit) {
            return;
        }
        let Some((index, point)) = ({ queue.lock().unwrap().pop_front() }) else { return };
        let scenario = &plan.scenarios[index];
        let note = format!("{} {point}", scenario.name);
        if noted.contains(&note) {
            count(&mut outcome.lock().unwrap(), (index, point.fault), true, true);
            continue;
        }
        let site = sites.entry(scenario.crashes).or_insert_with(|| Site::new(stage.world(scenario)));
        let result = caught(|| try_point(site, stage, scenario, Some(&point)).was_hit());
        let mut outcome = outcome.lock().unwrap();
        match result {
            Ok(hit) => {
                count(&mut outcome, (index, point.fault), hit, true);
                if hit {
                    remember(&plan.folder, &note);
                }
            }
            Err(message) => {
                count(&mut outcome, (index, point.fault), true, false);
                let kept = plan.folder.join(format!("{}-{point}", scenario.name));
                site.keep(&kept);
                fs::write(kept.join("message"), &message).unwrap();
                println!(
                    "NOT SURVIVED {note}: {message}\n  kept in {}\n  again: {}",
                    kept.display(),
                    again(scenario.name, &point)
                );
                outcome.failures.push(Failure { scenario: scenario.name, point: point.to_string(), message, kept });
            }
        }
        let done = outcome.sum();
        if (done.tried + done.unreached).is_multiple_of(100) {
            let seconds = began.elapsed().as_secs();
            println!(
                "{} of {total} tried, {} not survived, {seconds} s",
                done.tried + done.unreached,
                outcome.failures.len()
            );
        }
        let _ = caught(|| clear(site));
    }
}

/// The command that tries a point again.
pub fn again(scenario: &str, point: &Point) -> String {
    format!("scripts/faults update --scenario {scenario} --point {point}")
}

fn count(outcome: &mut Outcome, key: (usize, Fault), hit: bool, survived: bool) {
    let count = outcome.counts.entry(key).or_default();
    count.tried += usize::from(hit);
    count.survived += usize::from(hit && survived);
    count.unreached += usize::from(!hit);
}

/// The points that an earlier run in this folder survived.
fn noted(folder: &Path) -> HashSet<String> {
    fs::create_dir_all(folder).unwrap();
    let text = fs::read_to_string(folder.join("survived")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn remember(folder: &Path, note: &str) {
    let mut file = fs::OpenOptions::new().append(true).create(true).open(folder.join("survived")).unwrap();
    writeln!(file, "{note}").unwrap();
}

/// Prints the counts as a table: a line a scenario, a column a fault, survived of tried.
pub fn tell(plan: &Plan, outcome: &Outcome) {
    let faults: Vec<Fault> =
        Fault::ALL.into_iter().filter(|fault| outcome.counts.keys().any(|(_, known)| known == fault)).collect();
    let cell =
        |count: Count| if count.tried == 0 { "-".to_owned() } else { format!("{}/{}", count.survived, count.tried) };
    print!("\n{:<16}{:>8}", "survived/tried", "calls");
    faults.iter().for_each(|fault| print!("{:>14}", fault.word()));
    println!("{:>14}", "all");
    let mut sums: BTreeMap<Fault, Count> = BTreeMap::new();
    for (index, scenario) in plan.scenarios.iter().enumerate() {
        let calls: usize = outcome.calls.get(&index).map_or(0, |names| names.values().sum());
        print!("{:<16}{calls:>8}", scenario.name);
        let mut line = Count::default();
        for fault in &faults {
            let count = outcome.counts.get(&(index, *fault)).copied().unwrap_or_default();
            print!("{:>14}", cell(count));
            for sum in [&mut line, sums.entry(*fault).or_default()] {
                sum.tried += count.tried;
                sum.survived += count.survived;
            }
        }
        println!("{:>14}", cell(line));
    }
    print!("{:<16}{:>8}", "all", "");
    faults.iter().for_each(|fault| print!("{:>14}", cell(sums.get(fault).copied().unwrap_or_default())));
    let sum = outcome.sum();
    println!("{:>14}", cell(sum));
    let share = if sum.tried == 0 { 0.0 } else { 100.0 * sum.survived as f64 / sum.tried as f64 };
    println!(
        "points tried: {}, survived: {} ({share:.2} %), disks started: {}, ended before the call: {}, left out: {}, \
         seed {}, {} workers, {} s",
        sum.tried,
        sum.survived,
        if plan.each { sum.tried } else { outcome.disks },
        sum.unreached,
        outcome.left_out,
        plan.seed,
        plan.workers,
        outcome.wall.as_secs()
    );
    for failure in &outcome.failures {
        println!(
            "NOT SURVIVED {} {}: {} (kept in {})",
            failure.scenario,
            failure.point,
            failure.message,
            failure.kept.display()
        );
    }
}
