//! Power cuts: what was written and not synced may be lost. A SIGKILL never shows that, because the kernel keeps what it has.
//!
//! Not a log of blocks (dm-log-writes) but of calls: it needs no root and no kernel module, and the model of [`disk`] may lose
//! more than any one file system does. The whole command is recorded once (`strace`), every state that a cut may leave is
//! made in an installation's folder, and the real binary is started on it.

pub mod disk;
pub mod record;

use crate::run::{Dice, caught};
use crate::scenario::{Deed, Scenario, Stage, assert_after, break_it, clear};
use crate::site::{Saved, Site};
use disk::{Cut, Tree, cuts};
use record::{Op, Recorder, Sources};
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Up to so many things that are not safe, all combinations are tried.
const EXHAUSTIVE: usize = 6;
/// Beyond, so many random ones beside the adversarial.
const RANDOM: usize = 12;

/// What is to be tried.
#[derive(Debug, Clone)]
pub struct Plan {
    /// In which scenarios.
    pub scenarios: Vec<Scenario>,
    /// What all versions are made of; the test builds where there is none. See [`crate::site::World::new`].
    pub base: Option<PathBuf>,
    /// This state only, as a failure names it.
    pub only: Option<usize>,
    /// So many states of all, chosen by the seed; every one where it is `None`.
    pub sample: Option<usize>,
    /// What decides which are chosen, and the random combinations.
    pub seed: u64,
    /// How many are tried side by side.
    pub workers: usize,
    /// No state is begun after this.
    pub limit: Option<Duration>,
    /// Where failures are kept.
    pub folder: PathBuf,
}

/// What came of one scenario.
#[derive(Debug, Clone, Copy, Default)]
pub struct Count {
    /// Changes to the disk that were recorded.
    pub changes: usize,
    /// Syncs among the calls.
    pub syncs: usize,
    /// Different disks that a cut may leave.
    pub states: usize,
    /// Of these, so many were started.
    pub tried: usize,
    /// And so many came up well.
    pub survived: usize,
}

/// What came of a plan.
#[derive(Debug, Default)]
pub struct Outcome {
    /// By scenario.
    pub counts: BTreeMap<usize, Count>,
    /// What was not survived, in words.
    pub failures: Vec<String>,
    /// How long it took.
    pub wall: Duration,
}

/// Whether a scenario is one command whose calls are all.
pub fn is_recorded(scenario: &Scenario) -> bool {
    !matches!(scenario.deed, Deed::Supervisor | Deed::RecoverTwice | Deed::UpdateChildren)
}

/// Everything that a cut may leave of a scenario, and how much was done.
struct Recorded {
    cuts: Vec<Cut>,
    roots: Vec<String>,
    changes: usize,
    syncs: usize,
}

fn record(stage: &Stage, scenario: &Scenario, seed: u64) -> Recorded {
    let (world, saved) = (stage.world(scenario), stage.saved(scenario));
    let mut site = Site::new(world);
    site.recording = true;
    site.restore(saved);
    let traced = break_it(&site, world, scenario, None);
    assert_eq!(traced.code, Some(0), "it fails without a fault: {}", traced.stderr);
    site.prefix.cut_power();
    let build = world.build("2.0.0");
    let sources: Sources = vec![
        (".unverified", fs::read(&build.archive).unwrap().into()),
        ("versions/.staging/picket", fs::read(&build.exe).unwrap().into()),
    ];
    let before = Tree::of(saved.tree());
    let mut after = before.clone();
    let root = site.root();
    let ops = Recorder::new(std::path::Path::new(&root), &mut after, &sources).read(&traced.trace);
    let syncs = ops.iter().filter(|op| matches!(op, Op::Sync(_))).count();
    let cuts = cuts(&before, &after, &ops, EXHAUSTIVE, RANDOM, seed);
    let roots = saved.roots().iter().cloned().chain([root]).collect();
    Recorded { cuts, roots, changes: ops.len() - syncs, syncs }
}

/// Tries what the plan says.
///
/// # Panics
/// When a scenario cannot be recorded.
pub fn run(plan: &Plan) -> Outcome {
    let began = Instant::now();
    let stage = Stage::new(&plan.scenarios, plan.base.as_deref(), true);
    let mut outcome = Outcome::default();
    let mut queue = Vec::new();
    let recorded: Vec<Recorded> = plan
        .scenarios
        .iter()
        .map(|scenario| {
            caught(|| record(&stage, scenario, plan.seed))
                .unwrap_or_else(|words| panic!("{} cannot be recorded: {words}", scenario.name))
        })
        .collect();
    for (index, recorded) in recorded.iter().enumerate() {
        let Recorded { cuts, changes, syncs, .. } = recorded;
        let count = Count { changes: *changes, syncs: *syncs, states: cuts.len(), ..Count::default() };
        outcome.counts.insert(index, count);
        queue.extend(
            (0..cuts.len()).filter(|state| plan.only.is_none_or(|only| only == *state)).map(|state| (index, state)),
        );
    }
    let all = queue.len();
    Dice(plan.seed).shuffle(&mut queue);
    queue.truncate(plan.sample.unwrap_or(usize::MAX));
    println!("{all} states, {} of them to be tried; recorded in {} s", queue.len(), began.elapsed().as_secs());
    let queue = Mutex::new(VecDeque::from(queue));
    let shared = Mutex::new(&mut outcome);
    std::thread::scope(|scope| {
        for _ in 0..plan.workers {
            scope.spawn(|| work(plan, &stage, &recorded, &queue, &shared, began));
        }
    });
    outcome.wall = began.elapsed();
    outcome
}

fn work(
    plan: &Plan,
    stage: &Stage,
    recorded: &[Recorded],
    queue: &Mutex<VecDeque<(usize, usize)>>,
    outcome: &Mutex<&mut Outcome>,
    began: Instant,
) {
    let mut sites: BTreeMap<bool, Site> = BTreeMap::new();
    let scratch = tempfile::Builder::new().prefix("pkp").tempdir().unwrap();
    loop {
        if plan.limit.is_some_and(|limit| began.elapsed() > limit) {
            return;
        }
        let Some((index, state)) = ({ queue.lock().unwrap().pop_front() }) else { return };
        let scenario = &plan.scenarios[index];
        let world = stage.world(scenario);
        let (cut, roots) = (&recorded[index].cuts[state], &recorded[index].roots);
        let site = sites.entry(scenario.crashes).or_insert_with(|| Site::new(world));
        let tree = scratch.path().join("tree");
        let _ = fs::remove_dir_all(&tree);
        cut.tree.materialise(&tree);
        let saved = Saved::new(&tree, roots.clone());
        let result = caught(|| {
            site.restore(&saved);
            assert_after(site, world, scenario, state % 2 == 1);
        });
        let mut outcome = outcome.lock().unwrap();
        let count = outcome.counts.entry(index).or_default();
        count.tried += 1;
        count.survived += usize::from(result.is_ok());
        if let Err(message) = result {
            let kept = plan.folder.join(format!("{}-state-{state}", scenario.name));
            site.keep(&kept);
            crate::site::copy(&tree, &kept.join("as-the-cut-left-it"), &|_| None);
            let words = format!(
                "{} state {state} ({}): {message}\n  kept in {}\n  again: scripts/faults power --scenario {} --state {state} --seed {}",
                scenario.name,
                cut.story,
                kept.display(),
                scenario.name,
                plan.seed
            );
            println!("NOT SURVIVED {words}");
            outcome.failures.push(words);
        }
        let tried: usize = outcome.counts.values().map(|count| count.tried).sum();
        if tried.is_multiple_of(100) {
            println!("{tried} tried, {} not survived, {} s", outcome.failures.len(), began.elapsed().as_secs());
        }
        drop(outcome);
        let _ = caught(|| clear(site));
    }
}

/// Prints the counts: a line a scenario.
pub fn tell(plan: &Plan, outcome: &Outcome) {
    println!("\n{:<16}{:>9}{:>9}{:>9}{:>9}{:>10}", "power cuts", "changes", "syncs", "states", "tried", "survived");
    let mut sum = Count::default();
    for (index, count) in &outcome.counts {
        let Count { changes, syncs, states, tried, survived } = *count;
        println!("{:<16}{changes:>9}{syncs:>9}{states:>9}{tried:>9}{survived:>10}", plan.scenarios[*index].name);
        sum = Count {
            changes: sum.changes + changes,
            syncs: sum.syncs + syncs,
            states: sum.states + states,
            tried: sum.tried + tried,
            survived: sum.survived + survived,
        };
    }
    let share = if sum.tried == 0 { 0.0 } else { 100.0 * sum.survived as f64 / sum.tried as f64 };
    println!(
        "states tried: {} of {}, survived: {} ({share:.2} %), seed {}, {} workers, {} s",
        sum.tried,
        sum.states,
        sum.survived,
        plan.seed,
        plan.workers,
        outcome.wall.as_secs()
    );
    outcome.failures.iter().for_each(|failure| println!("NOT SURVIVED {failure}"));
}
