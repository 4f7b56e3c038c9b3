//! Rollouts that need no hub: waves, windows, deferral, the emergency stop, and releases that are taken back.

use crate::update::Fleet;
use picket_protocol::{Rollout, Window, WindowTime};
use picket_testkit::{Behaviour, Fault, Prefix, Ran, Vendor, build, wait_until};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn seconds(seconds: i64) -> jiff::SignedDuration {
    jiff::SignedDuration::from_secs(seconds)
}

fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// A daily window in UTC that is closed now and for the next hours.
fn closed_window() -> String {
    let hour = (now().to_zoned(jiff::tz::TimeZone::UTC).hour() + 12) % 24;
    format!("{hour:02}:00-{hour:02}:30")
}

fn waiting(fleet: &Fleet) -> String {
    fleet.prefix.status()["available"]["waiting"].as_str().unwrap_or_default().to_owned()
}

fn busy(fleet: &Fleet, script: &str) {
    let hook = fleet.prefix.path("etc/picket/update.d/busy/10-backup");
    fs::write(&hook, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs the updater so that it ends where `place` is, as if killed, and lets the next one clean up.
fn interrupted_at(fleet: &mut Fleet, place: &str) {
    fleet.prefix.set("PICKET_FAILPOINT", place);
    let ran = fleet.prefix.picket(&["update", "run"]);
    assert_ne!(ran.code, 0, "{place} was never reached: {ran:?}");
    fleet.prefix.unset("PICKET_FAILPOINT");
    fleet.prefix.picket(&["update", "recover"]).expect(0);
}

#[test]
fn a_machine_waits_for_its_wave_says_so_and_takes_the_release_when_it_opens_without_being_asked() {
    let fleet = Fleet::with_config("  auto: all\n");
    fleet.release("2.0.0", Fault::None);
    fleet.vendor.in_waves("2.0.0", now(), &[(3600, 100)]);
    fleet.daily_check();
    fleet.assert_on("1.0.0");
    let status = fleet.prefix.status();
    let available = &status["available"];
    assert_eq!((&available["turn"]["wave"], &available["turn"]["waves"]), (&1.into(), &1.into()), "{available}");
    assert_eq!(available["due"], available["turn"]["at"]);
    assert!(waiting(&fleet).contains("its turn is at"), "{available}");
    let told = fleet.prefix.picket(&["update", "status"]).expect(0).stdout;
    assert!(told.contains("Rollout: wave 1 of 1") && told.contains("Due: "), "{told}");
    let checked = fleet.prefix.picket(&["update", "check"]).expect(0);
    assert!(checked.stdout.contains("Rollout: wave 1 of 1"), "{}", checked.stdout);
    let due = fleet.prefix.picket(&["update", "check", "--json"]).expect(0).json()["due"].clone();
    assert_eq!(due, available["due"]);
    // A person who does not insist is told, too.
    let refused = fleet.prefix.picket(&["update", "apply", "--yes"]).expect(21);
    assert!(refused.stdout.contains("`picket update apply 2.0.0` does not wait"), "{refused:?}");

    // The vendor moves the wave forward; the machine hears of it, and nobody says a word when it opens.
    fleet.vendor.in_waves("2.0.0", now() + seconds(8), &[(0, 100)]);
    fleet.daily_check();
    fleet.assert_on("2.0.0");
    assert_eq!(fleet.prefix.status()["available"], serde_json::Value::Null);
    assert!(!fleet.prefix.path("var/lib/picket-update/due.json").exists(), "it is still waited for");
}

#[test]
fn whoever_asks_by_name_or_insists_does_not_wait_for_a_wave() {
    let fleet = Fleet::with_config("  auto: all\n");
    fleet.release("2.0.0", Fault::None);
    fleet.vendor.in_waves("2.0.0", now(), &[(3600, 100)]);
    fleet.prefix.picket(&["update", "apply", "2.0.0", "--yes"]).expect(0);
    fleet.assert_on("2.0.0");
    fleet.release("3.0.0", Fault::None);
    fleet.vendor.in_waves("3.0.0", now(), &[(3600, 100)]);
    fleet.prefix.picket(&["update", "apply", "--now", "--yes"]).expect(0);
    fleet.assert_on("3.0.0");
}

#[test]
fn a_critical_release_waits_for_no_wave_and_no_window_of_the_vendors() {
    let fleet = Fleet::new();
    fleet.vendor.release_critical(&build("2.0.0", Fault::None));
    let window: Window = closed_window().parse().unwrap();
    let waves = vec![picket_protocol::Wave { after_seconds: 86_400, percent: 100 }];
    let (windows, window_time) = (vec![window], WindowTime::Utc);
    fleet.vendor.roll_out("2.0.0", Rollout { start: None, waves, windows, window_time, ..Rollout::default() });
    fleet.daily_check();
    fleet.assert_on("2.0.0");
}

#[test]
fn a_stop_keeps_a_machine_that_waits_or_has_staged_the_release_from_taking_it() {
    let mut fleet = Fleet::with_config("  auto: all\n");
    fleet.release("2.0.0", Fault::None);
    interrupted_at(&mut fleet, "preflight-began-after");
    let staged = fleet.prefix.path("opt/picket/versions/2.0.0");
    assert!(staged.exists(), "it was not staged");
    fleet.vendor.in_waves("2.0.0", now(), &[(3600, 100)]);
    fleet.daily_check();
    fleet.assert_on("1.0.0");
    assert!(staged.exists(), "a machine that waits drops nothing");

    fleet.vendor.stop("2.0.0", "it fills disks");
    fleet.vendor.in_waves("2.0.0", now() - seconds(7200), &[(3600, 100)]);
    fleet.daily_check();
    fleet.assert_on("1.0.0");
    assert!(waiting(&fleet).contains("it fills disks"), "{}", waiting(&fleet));
    assert!(!fleet.prefix.path("var/lib/picket-update/due.json").exists(), "it would be woken for nothing");
    let refused = fleet.prefix.picket(&["update", "apply", "--now", "--yes"]).expect(21);
    assert!(refused.stdout.contains("it fills disks"), "{refused:?}");
    let wish = fleet.prefix.path("var/lib/picket/update-wish");
    fs::write(&wish, "2.0.0\n").unwrap();
    wait_until("the wish to be taken away", || !wish.exists());
    fleet.daily_check();
    fleet.assert_on("1.0.0");

    fleet.vendor.repository().resume("stable", Some(&"2.0.0".parse().unwrap()), now()).unwrap();
    fleet.vendor.publish();
    fleet.daily_check();
    fleet.assert_on("2.0.0");
    // Whoever runs it stays on it when it is stopped again.
    fleet.vendor.stop("2.0.0", "it fills disks after all");
    fleet.daily_check();
    fleet.assert_on("2.0.0");
}

#[test]
fn a_machine_that_only_staged_a_yanked_release_drops_it() {
    let mut fleet = Fleet::with_config("  auto: all\n");
    fleet.release("2.0.0", Fault::None);
    interrupted_at(&mut fleet, "preflight-began-after");
    fleet.release("3.0.0", Fault::None);
    interrupted_at(&mut fleet, "fetch-downloaded");
    let staged = fleet.prefix.path("opt/picket/versions/2.0.0");
    let downloads = || fs::read_dir(fleet.prefix.path("var/lib/picket-fetch/downloads")).unwrap().count();
    assert!(staged.exists() && downloads() > 0, "nothing was staged or downloaded");
    fleet.vendor.yank("2.0.0", "it loses events");
    fleet.vendor.yank("3.0.0", "so does this");
    fleet.prefix.picket(&["update", "check"]).expect(0);
    assert!(!staged.exists(), "the staged version is still there");
    assert_eq!(downloads(), 0, "something of the download is still there");
    fleet.daily_check();
    fleet.assert_on("1.0.0");
}

#[test]
fn a_machine_that_runs_a_yanked_release_goes_back_under_the_same_trial_and_returns_only_by_force() {
    let fleet = Fleet::with_config("  auto: critical\n");
    fleet.release("2.0.0", Fault::None);
    fleet.prefix.picket(&["update", "apply", "--yes"]).expect(0);
    fleet.assert_on("2.0.0");
    fleet.vendor.yank("2.0.0", "it loses events");
    fleet.prefix.picket(&["update", "check"]).expect(0);
    let told = fleet.prefix.picket(&["update", "status"]).expect(0).stdout;
    assert!(told.contains("the vendor took this version back: it loses events"), "{told}");
    fleet.daily_check();
    fleet.assert_on("1.0.0");
    assert_eq!(fleet.prefix.status()["taken_back"], serde_json::Value::Null);
    let history = fleet.prefix.picket(&["update", "history", "--json"]).expect(0).json();
    let steps: Vec<&str> = history[0]["phases"].as_array().unwrap().iter().filter_map(|e| e["step"].as_str()).collect();
    for step in ["preflight", "trial", "gate", "commit"] {
        assert!(steps.contains(&step), "it went back without {step}: {steps:?}");
    }

    // The way back is known to be bad though no server answers.
    fleet.server.misbehave("/", Behaviour::Status(500));
    let refused = fleet.prefix.picket(&["update", "rollback", "--yes"]).expect(21);
    assert!(refused.stderr.contains("it loses events") && refused.stderr.contains("--force"), "{}", refused.stderr);
    // Whoever goes round the command meets the updater itself.
    let request = r#"{"id":"x","wanted":{"verb":"rollback"},"by":"somebody"}"#;
    fs::write(fleet.prefix.path("var/lib/picket-update/request.json"), request).unwrap();
    fleet.prefix.picket(&["update", "run"]).expect(0);
    fleet.assert_on("1.0.0");
    fleet.prefix.picket(&["update", "rollback", "--force", "--yes"]).expect(0);
    fleet.assert_on("2.0.0");
    assert_eq!(fleet.prefix.status()["taken_back"], "it loses events");
    // It was somebody's will: the next check leaves it.
    fleet.server.behave();
    fleet.daily_check();
    fleet.assert_on("2.0.0");
}

#[test]
fn an_older_head_alone_moves_nobody_and_with_the_vendors_word_those_it_names() {
    let fleet = Fleet::with_config("  auto: all\n");
    fleet.release("2.0.0", Fault::None);
    fleet.daily_check();
    fleet.assert_on("2.0.0");
    let (old, new) = ("1.0.0".parse().unwrap(), "2.0.0".parse().unwrap());
    fleet.vendor.repository().set_head("stable", &old, &[]).unwrap();
    fleet.vendor.publish();
    fleet.daily_check();
    fleet.assert_on("2.0.0");
    fleet.vendor.repository().set_head("stable", &old, &[new]).unwrap();
    fleet.vendor.publish();
    fleet.daily_check();
    fleet.assert_on("1.0.0");
}

#[test]
fn a_busy_hook_puts_an_update_off_shows_why_and_does_so_no_longer_than_it_may() {
    let fleet = Fleet::with_config("  auto: all\n  defer_at_most: 12s\n");
    busy(&fleet, "echo a backup runs >&2\nexit 75");
    fleet.release("2.0.0", Fault::None);
    fleet.daily_check();
    let status = fleet.prefix.status();
    assert_eq!(status["current"], "1.0.0");
    let why = status["available"]["waiting"].as_str().unwrap_or_default();
    assert!(why.contains("a backup runs") && why.contains("at most until 12s after"), "{status}");
    assert!(status["available"]["due"].is_string(), "{status}");
    // The limit ends the wait, though the hook never gives in, and nobody asks.
    fleet.assert_on("2.0.0");
    assert!(fleet.prefix.log().contains("12s are over"), "{}", fleet.prefix.log());
}

#[test]
fn outside_this_machines_windows_an_update_waits_and_a_person_does_not() {
    let fleet = Fleet::with_config(&format!("  auto: all\n  windows: [\"{}\"]\n  window_time: utc\n", closed_window()));
    fleet.release("2.0.0", Fault::None);
    // The vendor's windows do not count where the operator has some.
    let windows = vec!["00:00-24:00".parse().unwrap()];
    fleet.vendor.roll_out("2.0.0", Rollout { start: None, windows, ..Rollout::default() });
    fleet.daily_check();
    fleet.assert_on("1.0.0");
    assert!(waiting(&fleet).contains("update.windows"), "{}", waiting(&fleet));
    fleet.prefix.picket(&["update", "apply", "--yes"]).expect(0);
    fleet.assert_on("2.0.0");
    // What is critical waits for them, too, but an hour at most and not a week.
    fleet.vendor.release_critical(&build("3.0.0", Fault::None));
    fleet.daily_check();
    fleet.assert_on("2.0.0");
    assert!(waiting(&fleet).contains("at most until 1h"), "{}", waiting(&fleet));
}

/// Runs the plain build, as on a vendor's desk.
fn vendors(arguments: &[&str]) -> Ran {
    Prefix::new("http://127.0.0.1:9").run_with(Path::new(env!("CARGO_BIN_EXE_picket")), arguments)
}

#[test]
fn a_plan_says_who_gets_a_release_when_and_what_a_stop_would_spare() {
    let vendor = Vendor::new();
    vendor.release(&build("1.0.0", Fault::None));
    let repository = vendor.tree().parent().unwrap().join("repository");
    let repository = repository.to_str().unwrap();
    let start = "2026-12-01T06:00:00Z";
    let waves = ["--waves", "0h:1,1d:10,3d:100", "--soak", "12h", "--jitter", "2h", "--start", start];
    vendors(&[&["release", "rollout", "1.0.0", "--repo", repository], &waves[..]].concat()).expect(0);
    let plan = ["release", "plan", "--repo", repository, "--machines", "20000", "--failure-rate", "5%"];
    let planned = vendors(&[&plan[..], &["--json"]].concat()).expect(0).json();
    let waves = planned["waves"].as_array().unwrap();
    let number = |wave: usize, name: &str| waves[wave][name].as_i64().unwrap();
    assert_eq!(waves.len(), 3);
    assert_eq!((&waves[1]["opens"], number(2, "machines_so_far")), (&"2026-12-02T06:00:00Z".into(), 20_000));
    assert!((150..250).contains(&number(0, "machines")), "{planned}");
    assert_eq!(number(0, "failed_so_far") + number(0, "spared"), number(2, "failed_so_far"));
    assert!((850..1150).contains(&number(2, "failed_so_far")) && number(0, "spared") > 800, "{planned}");
    let told = vendors(&plan).expect(0).stdout;
    assert!(told.contains("spared by a stop") && told.contains("2026-12-04T06:00:00Z"), "{told}");

    // The very machines, as each of them will reckon.
    let ids = tempfile::NamedTempFile::new().unwrap();
    fs::write(&ids, "b\na\n\n").unwrap();
    let named = ["release", "plan", "--repo", repository, "--ids", ids.path().to_str().unwrap(), "--json"];
    let turns = vendors(&named).expect(0).json()["turns"].clone();
    let rollout = vendor.repository().channel("stable").unwrap().releases.pop_first().unwrap().1;
    for turn in turns.as_array().unwrap() {
        let id = turn["id"].as_str().unwrap();
        let own = picket_update::rollout::turn(
            &rollout.rollout.clone().unwrap(),
            rollout.published,
            id,
            &"1.0.0".parse().unwrap(),
        );
        assert_eq!(turn["at"], own.unwrap().at.to_string(), "{turns}");
    }
    assert_eq!(turns.as_array().unwrap().len(), 2);
    let bad = vendors(&["release", "rollout", "1.0.0", "--repo", repository, "--waves", "0h:1,1d:50"]).expect(1);
    assert!(bad.stderr.contains("50 % and not everybody"), "{}", bad.stderr);
}
