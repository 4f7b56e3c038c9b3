//! What is broken: one command of the product each, from a known state, and what must hold after the machine's next start.

use crate::call::Point;
use crate::sameness::fingerprint;
use crate::site::{Saved, Site, Traced, World, empty};
use crate::survive::{assert_survived, assert_updates, assert_well};
use picket_testkit::wait_until;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// A state that a scenario begins with, at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Start {
    /// A configuration and nothing else.
    Empty,
    /// 1.0.0 is installed, beside an old version that nobody needs.
    Installed,
    /// 2.0.0 is current and 1.0.0 previous; an old version and part of a download lie around.
    Second,
    /// The update to 2.0.0 was killed at this place, and the power went.
    Interrupted(&'static str),
}

/// The command that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// `update run`, asked for 2.0.0.
    Update,
    /// The same; what is broken are the processes it starts: the fetcher, self-tests.
    UpdateChildren,
    /// `update run`, asked for a rollback.
    Rollback,
    /// `update clean`.
    Clean,
    /// `update recover`, before the agent, as at boot.
    Recover,
    /// `update recover`, and once more, killed at another call of the same name.
    RecoverTwice,
    /// `update recover` beside the supervisor whose trial is on.
    RecoverLive,
    /// `install` on an empty machine.
    Install,
    /// `install` of 2.0.0 over 1.0.0.
    Upgrade,
    /// `uninstall`, with or without `--purge`.
    Uninstall {
        /// With all data.
        purge: bool,
    },
    /// `service run`, while 2.0.0 is applied.
    Supervisor,
}

/// One scenario.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Its word on the command line and in the report.
    pub name: &'static str,
    /// What it begins with.
    pub start: Start,
    /// What is broken.
    pub deed: Deed,
    /// Whether 2.0.0 crashes at its start.
    pub crashes: bool,
}

const fn scenario(name: &'static str, start: Start, deed: Deed) -> Scenario {
    Scenario { name, start, deed, crashes: false }
}

/// All scenarios, in the order of the report.
pub const ALL: [Scenario; 16] = [
    scenario("update", Start::Installed, Deed::Update),
    Scenario { name: "revert", start: Start::Installed, deed: Deed::Update, crashes: true },
    scenario("children", Start::Installed, Deed::UpdateChildren),
    scenario("rollback", Start::Second, Deed::Rollback),
    scenario("clean", Start::Second, Deed::Clean),
    scenario("recover-drop", Start::Interrupted("stage-unpacked"), Deed::Recover),
    scenario("recover-revert", Start::Interrupted("trial-started"), Deed::Recover),
    scenario("recover-commit", Start::Interrupted("gate-done-after"), Deed::Recover),
    scenario("recover-settle", Start::Interrupted("settle-remembered"), Deed::Recover),
    scenario("recover-recover", Start::Interrupted("gate-done-after"), Deed::RecoverTwice),
    scenario("recover-trial", Start::Installed, Deed::RecoverLive),
    scenario("install", Start::Empty, Deed::Install),
    scenario("upgrade", Start::Installed, Deed::Upgrade),
    scenario("uninstall", Start::Installed, Deed::Uninstall { purge: false }),
    scenario("purge", Start::Installed, Deed::Uninstall { purge: true }),
    scenario("supervisor", Start::Installed, Deed::Supervisor),
];

/// The scenario of this name.
pub fn named(name: &str) -> Option<Scenario> {
    ALL.into_iter().find(|scenario| scenario.name == name)
}

/// The worlds and the saved states, shared by all threads.
pub struct Stage {
    good: World,
    bad: World,
    saved: BTreeMap<(bool, Start), Saved>,
    each: bool,
    survived: Mutex<HashSet<(&'static str, bool, u64)>>,
    _folder: tempfile::TempDir,
}

impl Stage {
    /// Makes what `scenarios` need, of the executable `base` or of the test builds. `each`: every disk is started, even one
    /// that was started before.
    pub fn new(scenarios: &[Scenario], base: Option<&Path>, each: bool) -> Self {
        let (good, bad) = (World::new(false, base), World::new(true, base));
        let folder = tempfile::Builder::new().prefix("pkf").tempdir().unwrap();
        let mut saved = BTreeMap::new();
        for scenario in scenarios {
            let world = if scenario.crashes { &bad } else { &good };
            let key = (scenario.crashes, scenario.start);
            let folder = folder.path().join(saved.len().to_string());
            saved.entry(key).or_insert_with(|| prepare(world, scenario.start, &folder));
        }
        Self { good, bad, saved, each, survived: Mutex::default(), _folder: folder }
    }

    /// The world of a scenario.
    pub fn world(&self, scenario: &Scenario) -> &World {
        if scenario.crashes { &self.bad } else { &self.good }
    }

    /// How many different disks were started and were well.
    pub fn disks(&self) -> usize {
        self.survived.lock().unwrap().len()
    }

    /// The state that a scenario begins with.
    pub fn saved(&self, scenario: &Scenario) -> &Saved {
        &self.saved[&(scenario.crashes, scenario.start)]
    }
}

/// Makes a state and saves it.
fn prepare(world: &World, start: Start, to: &Path) -> Saved {
    let site = Site::new(world);
    if start != Start::Empty {
        site.prefix.install(world.build("1.0.0"), &world.root_file());
        old_version(&site);
    }
    match start {
        Start::Empty | Start::Installed => {}
        Start::Second => {
            site.prefix.picket(&["update", "apply", "2.0.0", "--yes"]).expect(0);
            old_version(&site);
            let downloads = site.prefix.path("var/lib/picket-fetch/downloads");
            fs::create_dir_all(&downloads).unwrap();
            fs::write(downloads.join("part.unverified"), [7; 1000]).unwrap();
        }
        Start::Interrupted(place) => {
            site.request(&apply());
            let ran = site.picket_with(("PICKET_FAILPOINT", place), &["update", "run"]);
            assert!(
                ran.code != 0 && site.prefix.path("var/lib/picket-update/journal.json").exists(),
                "{place}: {ran:?}"
            );
        }
    }
    site.save(to)
}

/// A version that nobody needs, put there a year ago.
fn old_version(site: &Site) {
    let versions = site.prefix.path("opt/picket/versions");
    let (from, old) = (versions.join("1.0.0"), versions.join("0.9.0"));
    if old.exists() {
        return;
    }
    crate::site::copy(&from, &old, &|path| {
        let mut record: Value = serde_json::from_slice(&fs::read(path.parent()?.join("version.json")).ok()?).ok()?;
        record["version"] = "0.9.0".into();
        record["staged"] = "2020-01-01T00:00:00Z".into();
        path.ends_with("version.json").then(|| record.to_string().into_bytes())
    });
}

fn apply() -> Value {
    json!({ "verb": "apply", "version": "2.0.0", "now": false })
}

/// Tries one point of a scenario: state, fault, power cut, next start. `None` tries without a fault. Says what the traced
/// process did.
///
/// # Panics
/// When the machine does not survive it.
pub fn try_point(site: &Site, stage: &Stage, scenario: &Scenario, point: Option<&Point>) -> Traced {
    let world = stage.world(scenario);
    site.restore(stage.saved(scenario));
    let traced = break_it(site, world, scenario, point);
    // A child that panicked told it to its parent, who ends well or says why.
    let panicked = traced.code == Some(101) || traced.stderr.contains("panicked at");
    assert!(!panicked, "it panicked: {}", traced.stderr);
    // The supervisor ends with the power.
    if point.is_none() && scenario.deed != Deed::Supervisor {
        assert_eq!(traced.code, Some(0), "it fails without a fault: {}", traced.stderr);
    }
    if point.is_none() && scenario.deed == Deed::Supervisor {
        assert_eq!(site.prefix.current(), "2.0.0", "it does not update without a fault");
    }
    let updater = matches!(
        scenario.deed,
        Deed::Update | Deed::UpdateChildren | Deed::Rollback | Deed::Recover | Deed::RecoverLive
    );
    let journal = site.prefix.path("var/lib/picket-update/journal.json").exists();
    // Whatever ends well is not recovered by a service manager.
    assert!(!updater || traced.code != Some(0) || !journal, "it ends well and leaves a journal: {}", traced.stderr);
    site.prefix.cut_power();
    let odd = point.is_some_and(|point| point.nth % 2 == 1);
    let disk = (scenario.name, odd, fingerprint(&site.prefix.path("")));
    if stage.each || !stage.survived.lock().unwrap().contains(&disk) {
        assert_after(site, world, scenario, odd);
        stage.survived.lock().unwrap().insert(disk);
    }
    traced
}

/// Makes the traced command, with a fault or without.
pub fn break_it(site: &Site, world: &World, scenario: &Scenario, point: Option<&Point>) -> Traced {
    let exe = site.exe();
    let root = world.root_file();
    let root = root.to_str().unwrap();
    let live = !matches!(scenario.deed, Deed::Recover | Deed::RecoverTwice | Deed::Install | Deed::Supervisor);
    if live {
        site.prefix.boot();
    }
    site.follow.set(scenario.deed == Deed::UpdateChildren);
    match scenario.deed {
        Deed::Update | Deed::UpdateChildren => {
            site.request(&apply());
            site.traced(&exe, &["update", "run"], point)
        }
        Deed::Rollback => {
            site.request(&json!({ "verb": "rollback" }));
            site.traced(&exe, &["update", "run"], point)
        }
        Deed::Clean => site.traced(&exe, &["update", "clean"], point),
        Deed::Recover => site.traced(&exe, &["update", "recover"], point),
        Deed::RecoverTwice => {
            let traced = site.traced(&exe, &["update", "recover"], point);
            if let Some(point) = point {
                let again = Point { nth: 1 + point.nth * 7 % 11, ..point.clone() };
                let second = site.traced(&exe, &["update", "recover"], Some(&again));
                assert!(!second.stderr.contains("panicked at"), "the second panicked: {}", second.stderr);
            }
            traced
        }
        Deed::RecoverLive => {
            site.request(&apply());
            let ran = site.picket_with(("PICKET_FAILPOINT", "gate-decided"), &["update", "run"]);
            assert_ne!(ran.code, 0, "the updater was not ended");
            site.traced(&exe, &["update", "recover"], point)
        }
        Deed::Install => site.traced(&world.build("1.0.0").exe, &["install", "--root-keys", root], point),
        Deed::Upgrade => site.traced(&world.build("2.0.0").exe, &["install", "--root-keys", root], point),
        Deed::Uninstall { purge } => site.traced(&exe, uninstall(purge), point),
        Deed::Supervisor => {
            let child = site.start_traced(&exe, &["service", "run", "--detached"], point);

            apply_beside(site);
            site.end_by_cut(child)
        }
    }
}

/// Waits for a supervisor that may have a fault, and asks it for the update as a person would; how that ends is not looked at.
fn apply_beside(site: &Site) {
    let began = std::time::Instant::now();
    let limit = std::time::Duration::from_secs(5);
    while site.prefix.running_version().is_none() && began.elapsed() < limit {
        if site.trace().contains("+++ ") {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    site.prefix.picket(&["update", "apply", "2.0.0", "--yes"]);
}

fn uninstall(purge: bool) -> &'static [&'static str] {
    if purge { &["uninstall", "--purge", "--yes"] } else { &["uninstall", "--yes"] }
}

/// Starts the machine again and looks at what the scenario promises. Where there are two ways on, `odd` chooses.
pub fn assert_after(site: &Site, world: &World, scenario: &Scenario, odd: bool) {
    match scenario.deed {
        Deed::Update | Deed::UpdateChildren | Deed::RecoverLive | Deed::Supervisor | Deed::Rollback
            if !scenario.crashes =>
        {
            assert_survived(site, world, &["1.0.0", "2.0.0"]);
        }
        Deed::Update | Deed::UpdateChildren | Deed::RecoverLive | Deed::Supervisor | Deed::Rollback => {
            assert_survived(site, world, &["1.0.0"]);
        }
        Deed::Clean => assert_survived(site, world, &["2.0.0"]),
        Deed::Recover | Deed::RecoverTwice => match scenario.start {
            Start::Interrupted("stage-unpacked" | "trial-started") => assert_survived(site, world, &["1.0.0"]),
            // A switch that cannot be made is gone back from.
            _ => assert_survived(site, world, &["1.0.0", "2.0.0"]),
        },
        Deed::Install => assert_installs(site, world, odd, "1.0.0"),
        Deed::Upgrade => {
            site.prefix.boot();
            // An installer that was broken off says so until it is called again, whatever runs.
            assert_well(site, world, &["1.0.0", "2.0.0"], &["installed"]);
            if odd {
                assert_updates(site, world);
            } else {
                assert_installs(site, world, false, "2.0.0");
            }
        }
        Deed::Uninstall { purge } => {
            if odd {
                assert_starts_whole_or_not(site, world);
                site.prefix.cut_power();
                // What was purged comes back with whoever configures the machine anew.
                site.configure();
                assert_installs(site, world, false, "1.0.0");
            } else {
                assert_uninstalls(site, world, purge);
            }
        }
    }
}

/// A second install succeeds with no manual step, and what it made takes the next update.
pub fn assert_installs(site: &Site, world: &World, look_first: bool, version: &str) {
    if look_first {
        assert_starts_whole_or_not(site, world);
    }
    let root = world.root_file();
    let arguments = ["install", "--root-keys", root.to_str().unwrap()];
    let again = site.prefix.run_with(&world.build(version).exe, &arguments);
    assert_eq!(again.code, 0, "the second install fails: {}{}", again.stdout, again.stderr);
    // What was stopped stays so: whether it is started is not the installer's to say where it is installed already.
    if site.prefix.running_version().is_none() {
        site.prefix.boot();
    }
    wait_until("the installed version to answer", || site.prefix.running_version().is_some());
    assert_well(site, world, &[version], &[]);
    assert_updates(site, world);
}

/// What a half-made or half-removed installation starts is a whole, healthy version, or nothing.
pub fn assert_starts_whole_or_not(site: &Site, world: &World) {
    if fs::metadata(site.exe()).is_err() {
        return;
    }
    let started = site.prefix.picket(&["service", "start"]);
    assert!(!started.stderr.contains("panicked at"), "{}", started.stderr);
    if let Some(live) = site.prefix.running_version() {
        let exe = fs::read(site.exe()).unwrap();
        assert!(exe == fs::read(&world.build(&live).exe).unwrap(), "what was started is not the vendor's {live}");
    } else {
        assert_ne!(started.code, 0, "it says that it started, and nothing is live: {}", started.stdout);
    }
}

/// A second uninstallation gets to its end and leaves nothing but what is to be kept.
pub fn assert_uninstalls(site: &Site, world: &World, purge: bool) {
    let ran = site.prefix.run_with(&world.build("1.0.0").exe, uninstall(purge));
    let nothing = ran.stderr.contains("is not installed");
    assert!(ran.code == 0 || nothing, "the second uninstall fails: {}{}", ran.stdout, ran.stderr);
    let mut gone = vec!["opt/picket", "usr/local/bin/picket", "run/picket"];
    if purge {
        gone.extend(["etc/picket", "var/lib/picket", "var/log/picket"]);
    }
    let left: Vec<String> =
        site.prefix.listing().into_iter().filter(|path| gone.iter().any(|gone| path.starts_with(gone))).collect();
    assert!(left.is_empty(), "the second uninstall leaves behind: {left:?}");
    if !purge {
        let kept: Vec<PathBuf> = ["etc/picket/config.yaml", "var/lib/picket"].map(|path| site.prefix.path(path)).into();
        assert!(kept.iter().all(|path| path.exists()), "data that was to be kept is gone");
    }
}

/// Leaves nothing in the installation's folder.
pub fn clear(site: &Site) {
    site.prefix.cut_power();
    empty(&site.prefix.path(""));
}
