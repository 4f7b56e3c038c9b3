//! Updates under the supervisor: good ones, bad ones, interrupted ones, unwanted ones.

use picket_testkit::{Behaviour, Build, Fault, Prefix, ReleaseServer, Vendor, build, wait_until};
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// A vendor whose 1.0.0 is installed and running, and the server it is followed on.
pub(crate) struct Fleet {
    pub(crate) vendor: Vendor,
    pub(crate) server: ReleaseServer,
    pub(crate) prefix: Prefix,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        Self::with_config("")
    }

    /// More keys of `update`, each on a line of its own and indented by two spaces.
    pub(crate) fn with_config(keys: &str) -> Self {
        let vendor = Vendor::new();
        let first = build("1.0.0", Fault::None);
        vendor.release(&first);
        let server = ReleaseServer::start(&vendor.tree());
        let prefix = Prefix::with_config(&format!("update:\n  releases: {}\n{keys}", server.url()));
        prefix.install(&first, &vendor.root_file());
        Self { vendor, server, prefix }
    }

    pub(crate) fn release(&self, version: &str, fault: Fault) -> Build {
        let build = build(version, fault);
        self.vendor.release(&build);
        build
    }

    /// The daily check, as the supervisor starts it.
    pub(crate) fn daily_check(&self) {
        let before = self.prefix.status()["last_check"]["at"].clone();
        // Checks are told apart by their second.
        wait_until("the clock to move on", || {
            self.prefix.picket(&["update", "run"]).expect(0);
            self.prefix.status()["last_check"]["at"] != before
        });
    }

    pub(crate) fn assert_on(&self, version: &str) {
        wait_until(&format!("version {version} to answer, proven"), || {
            self.prefix.running_version().as_deref() == Some(version) && self.prefix.current() == version
        });
        assert_eq!(self.prefix.status()["current"], version);
    }
}

#[test]
fn a_good_release_is_kept_after_one_restart_and_can_be_gone_back_from_without_a_server() {
    let fleet = Fleet::new();
    let starts = |fleet: &Fleet| fleet.prefix.log().matches("the agent serves").count();
    fleet.release("2.0.0", Fault::None);
    let check = fleet.prefix.picket(&["update", "check"]).expect(0);
    assert_eq!(
        check.stdout,
        "Update available: v2.0.0\nCurrent version: v1.0.0\nRelease notes: What is new in 2.0.0\nCritical: false\n"
    );
    let before = starts(&fleet);
    let applied = fleet.prefix.picket(&["update", "apply", "--yes", "--json"]).expect(0).json();
    assert_eq!((&applied["outcome"], &applied["version"]), (&"committed".into(), &"2.0.0".into()));
    fleet.assert_on("2.0.0");
    assert_eq!(fleet.prefix.previous(), "1.0.0");
    assert_eq!(starts(&fleet) - before, 1, "more than one restart:\n{}", fleet.prefix.log());

    fleet.server.misbehave("/", Behaviour::Status(500));
    fleet.prefix.picket(&["update", "rollback", "--yes"]).expect(0);
    fleet.assert_on("1.0.0");
    assert_eq!(fleet.prefix.previous(), "2.0.0");

    // What a person left is not taken again by itself.
    fleet.server.behave();
    fleet.daily_check();
    fleet.assert_on("1.0.0");
    assert!(fleet.prefix.status()["held"][0]["reason"].as_str().unwrap().contains("went back from it"));
    fleet.prefix.picket(&["update", "apply", "2.0.0", "--yes"]).expect(0);
    fleet.assert_on("2.0.0");
}

/// A release that fails its trial: the old version is back, the reason is told, the next daily check leaves it alone.
fn assert_rolled_back(fault: Fault, reason: &str) {
    let fleet = Fleet::with_config("  auto: all\n");
    fleet.release("2.0.0", Fault::None);
    fleet.prefix.picket(&["update", "apply", "--yes"]).expect(0);
    fleet.release("3.0.0", fault);
    let ran = fleet.prefix.picket(&["update", "apply", "--yes", "--json"]).expect(20);
    let told = ran.json();
    assert_eq!(told["outcome"], "rolled-back");
    assert!(told["reason"].as_str().unwrap().contains(reason), "{told}");
    assert!(told["hint"].as_str().unwrap().contains("not tried again before"), "{told}");
    fleet.assert_on("2.0.0");

    fleet.server.forget();
    fleet.daily_check();
    fleet.assert_on("2.0.0");
    assert!(!fleet.server.requests().iter().any(|request| request.contains("picket-3.0.0")), "it was fetched again");
    let status = fleet.prefix.status();
    assert_eq!(status["last"]["to"], "3.0.0");
    assert_eq!(status["held"][0]["version"], "3.0.0");
    assert!(!fleet.prefix.path("opt/picket/versions/3.0.0").exists(), "a convicted version takes up space");
}

#[test]
fn a_release_that_crashes_at_its_start_is_rolled_back() {
    assert_rolled_back(Fault::Crash, "it ended by itself");
}

#[test]
fn a_release_that_hangs_before_it_is_ready_is_rolled_back() {
    assert_rolled_back(Fault::Hang, "it was not ready after 4 s");
}

#[test]
fn a_release_that_says_it_is_unhealthy_is_rolled_back() {
    assert_rolled_back(Fault::Unhealthy, "health is worse than before: collector");
}

#[test]
fn a_release_that_cannot_take_the_next_update_is_rolled_back() {
    assert_rolled_back(Fault::NoFetch, "cannot fetch and verify the release metadata");
}

#[test]
fn a_release_that_dies_again_and_again_is_rolled_back() {
    let fleet = Fleet::new();
    // Its first second is good; the trial is longer than that.
    let config = fleet.prefix.path("etc/picket/config.yaml");
    let text = fs::read_to_string(&config).unwrap().replace("soak: 700ms", "soak: 4s");
    fs::write(&config, text).unwrap();
    fleet.release("2.0.0", Fault::Flap);
    let told = fleet.prefix.picket(&["update", "apply", "--yes", "--json"]).expect(20).json();
    assert!(told["reason"].as_str().unwrap().contains("it ended by itself"), "{told}");
    fleet.assert_on("1.0.0");
}

#[test]
fn a_release_whose_main_loop_stands_still_is_rolled_back() {
    let fleet = Fleet::new();
    let config = fleet.prefix.path("etc/picket/config.yaml");
    let text = fs::read_to_string(&config).unwrap().replace("soak: 700ms", "soak: 30s");
    fs::write(&config, text).unwrap();
    fleet.release("2.0.0", Fault::Stuck);
    let told = fleet.prefix.picket(&["update", "apply", "--yes", "--json"]).expect(20).json();
    assert!(told["reason"].as_str().unwrap().contains("health is worse than before: event_loop"), "{told}");
    fleet.assert_on("1.0.0");
}

#[test]
fn a_release_that_cannot_be_executed_never_gets_to_its_trial() {
    let fleet = Fleet::with_config("  auto: all\n");
    let dir = tempfile::tempdir().unwrap();
    let junk = dir.path().join("junk");
    fs::write(&junk, "\u{7f}ELF but not really").unwrap();
    let archive = dir.path().join("a.tar.xz");
    picket_release::pack_executable(&junk, &archive, 0).unwrap();
    fleet.vendor.release_archive("2.0.0", &archive);
    let pid = fleet.prefix.health("/livez").unwrap().1["pid"].clone();
    let told = fleet.prefix.picket(&["update", "apply", "--yes", "--json"]).expect(21).json();
    assert_eq!(told["outcome"], "refused");
    assert!(told["reason"].as_str().unwrap().contains("Exec format error"), "{told}");
    assert_eq!(fleet.prefix.health("/livez").unwrap().1["pid"], pid, "the agent was restarted");
    fleet.daily_check();
    assert_eq!(fleet.prefix.status()["held"][0]["version"], "2.0.0");
    fleet.assert_on("1.0.0");
}

#[test]
fn an_agent_that_was_stopped_stays_stopped_after_an_update() {
    let fleet = Fleet::with_config("  auto: all\n");
    fleet.release("2.0.0", Fault::None);
    fleet.prefix.picket(&["service", "stop"]).expect(0);
    // The daily check does not start what a person stopped, not even for a trial.
    fleet.daily_check();
    assert_eq!(fleet.prefix.current(), "1.0.0");
    assert!(fleet.prefix.running_version().is_none());
    // A person who asks for it gets the trial, and the agent as it was.
    fleet.prefix.picket(&["update", "apply", "--yes"]).expect(0);
    assert_eq!(fleet.prefix.current(), "2.0.0");
    wait_until("the agent to be stopped", || fleet.prefix.running_version().is_none());
    assert_eq!(fleet.prefix.picket(&["service", "status", "--json"]).json()["state"], "stopped");
}

#[test]
fn the_daily_check_takes_critical_releases_by_itself_and_only_offers_the_others() {
    let fleet = Fleet::new();
    fleet.release("2.0.0", Fault::None);
    fleet.daily_check();
    fleet.assert_on("1.0.0");
    assert!(fleet.prefix.status()["available"]["waiting"].as_str().unwrap().contains("update.auto is critical"));
    fleet.vendor.release_critical(&build("3.0.0", Fault::None));
    fleet.daily_check();
    fleet.assert_on("3.0.0");
}

#[test]
fn the_agents_wish_starts_an_update_and_no_more_than_that() {
    let fleet = Fleet::new();
    fleet.release("2.0.0", Fault::None);
    fs::write(fleet.prefix.path("var/lib/picket/update-wish"), "2.0.0\n").unwrap();
    fleet.assert_on("2.0.0");
    assert!(!fleet.prefix.path("var/lib/picket/update-wish").exists());
    fs::write(fleet.prefix.path("var/lib/picket/update-wish"), "9.9.9; rm -rf /\n").unwrap();
    wait_until("the wish to be taken away", || !fleet.prefix.path("var/lib/picket/update-wish").exists());
    fleet.assert_on("2.0.0");
}

#[test]
fn a_pinned_machine_stays_and_an_unpinned_one_goes_on() {
    let fleet = Fleet::with_config("  auto: all\n");
    fleet.prefix.picket(&["update", "pin", "1.0.0"]).expect(0);
    fleet.release("2.0.0", Fault::None);
    fleet.daily_check();
    fleet.assert_on("1.0.0");
    let check = fleet.prefix.picket(&["update", "check"]).expect(0);
    assert!(check.stderr.contains("pinned"), "{}", check.stderr);
    fleet.prefix.picket(&["update", "unpin"]).expect(0);
    fleet.daily_check();
    fleet.assert_on("2.0.0");
}

#[test]
fn a_yanked_release_is_left_again() {
    let fleet = Fleet::with_config("  auto: critical\n");
    fleet.release("2.0.0", Fault::None);
    fleet.prefix.picket(&["update", "apply", "--yes"]).expect(0);
    fleet.assert_on("2.0.0");
    fleet.vendor.yank("2.0.0", "it loses events");
    let refused = fleet.prefix.picket(&["update", "check"]).expect(0);
    assert!(refused.stdout.starts_with("Update available: v1.0.0\n"), "{}", refused.stdout);
    fleet.daily_check();
    fleet.assert_on("1.0.0");
    let named = fleet.prefix.picket(&["update", "apply", "2.0.0", "--yes"]);
    assert!(named.stdout.contains("it loses events") || named.stderr.contains("it loses events"), "{named:?}");
    fleet.assert_on("1.0.0");
}

#[test]
fn a_required_health_hook_decides_and_a_wanted_one_is_only_heard() {
    let fleet = Fleet::new();
    let hook = |folder: &str, script: &str| {
        let path = fleet.prefix.path(&format!("etc/picket/health.d/{folder}/10-queue"));
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    hook("wanted", "echo just so you know >&2; exit 1");
    hook("required", "echo the queue is full >&2; exit 1");
    fleet.release("2.0.0", Fault::None);
    let told = fleet.prefix.picket(&["update", "apply", "--yes", "--json"]).expect(20).json();
    assert!(told["reason"].as_str().unwrap().contains("the queue is full"), "{told}");
    fleet.assert_on("1.0.0");

    hook("required", "exit 0");
    fleet.prefix.picket(&["update", "apply", "2.0.0", "--yes"]).expect(0);
    fleet.assert_on("2.0.0");
    let history = fleet.prefix.picket(&["update", "history", "--json"]).expect(0).json();
    assert!(history[0]["evidence"]["hooks"].to_string().contains("just so you know"), "{}", history[0]["evidence"]);
}

#[test]
fn a_busy_machine_puts_a_scheduled_update_off_and_a_person_can_insist() {
    let fleet = Fleet::with_config("  auto: all\n");
    let hook = fleet.prefix.path("etc/picket/update.d/busy/10-backup");
    fs::write(&hook, "#!/bin/sh\necho a backup runs >&2\nexit 75\n").unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    fleet.release("2.0.0", Fault::None);
    fleet.daily_check();
    fleet.assert_on("1.0.0");
    let told = fleet.prefix.picket(&["update", "apply", "--yes"]).expect(0);
    assert!(told.stdout.contains("a backup runs") && told.stdout.contains("--now"), "{}", told.stdout);
    fleet.prefix.picket(&["update", "apply", "--yes", "--now"]).expect(0);
    fleet.assert_on("2.0.0");
}

#[test]
fn the_network_failing_during_a_trial_is_nobodys_fault_but_keeps_the_release_from_being_kept() {
    let fleet = Fleet::new();
    fleet.release("2.0.0", Fault::None);
    // Metadata and artifact arrive; the server is gone by the time of the trial.
    let prefix = &fleet.prefix;
    std::thread::scope(|scope| {
        let apply = scope.spawn(|| prefix.picket(&["update", "apply", "--yes", "--json"]));
        wait_until("the trial to begin", || prefix.status()["running"]["step"] == "gate");
        fleet.server.misbehave("/", Behaviour::Status(503));
        let told = apply.join().unwrap().expect(20).json();
        assert!(told["reason"].as_str().unwrap().contains("could not be reached"), "{told}");
        assert!(told["hint"].as_str().unwrap().contains("next daily check"), "{told}");
    });
    fleet.assert_on("1.0.0");
    fleet.server.behave();
    fleet.prefix.picket(&["update", "apply", "--yes"]).expect(0);
    fleet.assert_on("2.0.0");
}

#[test]
fn closing_the_terminal_does_not_stop_an_update() {
    let fleet = Fleet::new();
    fleet.release("2.0.0", Fault::None);
    let mut apply = std::process::Command::new(fleet.prefix.path("usr/local/bin/picket"))
        .args(["update", "apply", "--yes"])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the update to begin", || !fleet.prefix.status()["running"].is_null());
    apply.kill().unwrap();
    apply.wait().unwrap();
    fleet.assert_on("2.0.0");
}

#[test]
fn a_second_updater_is_told_that_one_is_at_work() {
    let fleet = Fleet::new();
    fleet.release("2.0.0", Fault::Hang);
    let prefix = &fleet.prefix;
    std::thread::scope(|scope| {
        let apply = scope.spawn(|| prefix.picket(&["update", "apply", "--yes"]));
        wait_until("the trial to begin", || prefix.status()["running"]["step"] == "gate");
        let second = prefix.picket(&["update", "check"]).expect(5);
        assert!(second.stderr.contains("another updater is at work"), "{}", second.stderr);
        prefix.picket(&["update", "recover"]).expect(0);
        apply.join().unwrap().expect(20);
    });
    fleet.assert_on("1.0.0");
}

#[test]
fn a_configuration_that_only_the_new_version_understands_does_not_outlive_its_rollback() {
    let fleet = Fleet::new();
    fleet.release("2.0.0", Fault::Hang);
    let config = fleet.prefix.path("etc/picket/config.yaml");
    let before = fs::read_to_string(&config).unwrap();
    let prefix = &fleet.prefix;
    std::thread::scope(|scope| {
        let apply = scope.spawn(|| prefix.picket(&["update", "apply", "--yes", "--json"]));
        wait_until("the trial to begin", || prefix.status()["running"]["step"] == "gate");
        fs::write(&config, before.replace("health:", "health: {listen: nowhere}\nwas:")).unwrap();
        // The gate asks on the address it began with; the proven version could not even start with this one.
        let told = apply.join().unwrap().expect(20).json();
        assert!(told["reason"].as_str().unwrap().contains("the configuration was put back"), "{told}");
    });
    assert_eq!(fs::read_to_string(&config).unwrap(), before);
    fleet.assert_on("1.0.0");
}

/// Changes one byte of an installed executable, as a bad disk would: without a trace in the folder's times.
fn rot(fleet: &Fleet, version: &str) {
    let exe = fleet.prefix.path(&format!("opt/picket/versions/{version}/picket"));
    let mut bytes = fs::read(&exe).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    // Another file in its place: the one that runs is busy.
    let other = exe.with_extension("rotten");
    fs::write(&other, bytes).unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&other, &exe).unwrap();
}

#[test]
fn an_installed_version_that_rots_is_fetched_again_by_the_next_daily_run() {
    let fleet = Fleet::new();
    rot(&fleet, "1.0.0");
    let doctor = fleet.prefix.picket(&["doctor", "--json"]);
    assert!(doctor.stdout.contains("is not what was put there"), "{}", doctor.stdout);
    let ran = fleet.prefix.picket(&["update", "run"]).expect(0);
    fleet.assert_on("1.0.0");
    fleet.prefix.picket(&["doctor"]).expect(0);
    let said = ran.stderr;
    assert!(
        said.contains("version 1.0.0 is damaged on disk") && said.contains("was fetched again and is whole"),
        "{said}"
    );
    assert!(!fleet.prefix.path("opt/picket/versions/.staging").exists());
}

#[test]
fn a_rotten_version_that_cannot_be_fetched_again_is_left_for_the_one_before() {
    let fleet = Fleet::new();
    fleet.release("2.0.0", Fault::None);
    fleet.prefix.picket(&["update", "apply", "--yes"]).expect(0);
    rot(&fleet, "2.0.0");
    fleet.server.misbehave("/", Behaviour::Status(503));
    fleet.prefix.picket(&["update", "run"]).expect(0);
    fleet.assert_on("1.0.0");
    // That says nothing against the release: once the server is back, it is taken again.
    fleet.server.behave();
    assert_eq!(fleet.prefix.status()["held"].as_array().unwrap().len(), 0);
    fleet.prefix.picket(&["update", "apply", "--yes"]).expect(0);
    fleet.assert_on("2.0.0");
    fleet.prefix.picket(&["doctor"]).expect(0);
}

#[test]
fn what_was_fetched_of_a_release_that_another_overtook_takes_up_no_space_for_ever() {
    let fleet = Fleet::new();
    let parts = || fs::read_dir(fleet.prefix.path("var/lib/picket-fetch/downloads")).map_or(0, Iterator::count);
    fleet.release("2.0.0", Fault::None);
    fleet.server.misbehave("picket-2.0.0", Behaviour::CutAfter(100_000));
    let broken_off = fleet.prefix.picket(&["update", "apply", "--yes"]);
    assert!(broken_off.code != 0 && parts() > 0, "there is nothing to go on with: {broken_off:?}");
    fleet.server.behave();
    fleet.release("3.0.0", Fault::None);
    fleet.prefix.picket(&["update", "apply", "--yes"]).expect(0);
    fleet.assert_on("3.0.0");
    assert_eq!(parts(), 0, "part of 2.0.0 is still there");
}
