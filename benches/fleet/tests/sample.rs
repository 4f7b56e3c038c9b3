//! A short sample of what `scripts/faults` and `scripts/bench hub` do at length: the same code, a minute at most each.

use picket_load::faults::{self, Nats, Plan, damage};
use picket_load::measure::{Bench, beats};
use picket_testkit::{Fault, build};
use std::path::PathBuf;
use std::time::Duration;

fn killed_for(seconds: u64, postgres: bool, nats: Nats, seed: u64) {
    let folder = faults::folder(&std::env::temp_dir());
    let plan = Plan {
        picket: build("1.0.0", Fault::None).exe,
        load: PathBuf::from(env!("CARGO_BIN_EXE_picket-load")),
        agents: 4,
        rate: 100,
        duration: Duration::from_secs(seconds),
        seed,
        postgres,
        nats,
        quick: true,
        patience: Duration::from_secs(120),
        folder: folder.path().to_owned(),
    };
    let outcome = faults::run(&plan);
    faults::tell("sample", &plan, &outcome);
    assert_eq!(outcome.verdict.wrong, Vec::<String>::new());
    assert!(outcome.kills.hub > 0 && outcome.kills.agents > 0, "{:?}", outcome.kills);
    assert!(nats == Nats::No || outcome.kills.nats > 0, "{:?}", outcome.kills);
    assert!(!postgres || outcome.kills.postgres > 0, "{:?}", outcome.kills);
    assert!(outcome.verdict.stored > 500 && outcome.verdict.findings > 0, "{:?}", outcome.verdict);
}

#[test]
fn nothing_is_lost_or_doubled_while_agents_and_hub_are_killed() {
    killed_for(20, false, Nats::No, 338);
}

#[test]
fn nothing_is_lost_or_doubled_while_postgresql_is_killed_too() {
    killed_for(20, true, Nats::No, 82);
}

#[test]
fn nothing_is_lost_or_doubled_while_events_go_through_nats_that_is_killed_too() {
    killed_for(20, false, Nats::Events, 60);
}

#[test]
fn a_hub_with_a_torn_database_serves_or_says_so_and_ends() {
    let picket = build("1.0.0", Fault::None).exe;
    assert_eq!(damage::torn(&picket, &std::env::temp_dir()), Vec::<String>::new());
}

#[test]
fn a_hub_whose_disk_is_full_loses_nothing_and_goes_on_when_there_is_room() {
    let picket = build("1.0.0", Fault::None).exe;
    match damage::full(&picket, &std::env::temp_dir()) {
        Some(wrong) => assert_eq!(wrong, Vec::<String>::new()),
        None => println!("not tested: no file system may be mounted here"),
    }
}

#[test]
fn a_fleet_comes_back_within_a_minute_after_a_restart_of_the_hub() {
    let bench = Bench { picket: build("1.0.0", Fault::None).exe, dir: std::env::temp_dir() };
    let folder = faults::folder(&bench.dir);
    // Fewer may come in at a time than there are: some are sent away, and come back when they were told to.
    let more = "enrolment: {per_second: 10000}\nlimits: {connects_per_second: 40}\n";
    let (mut hub, fleet) = beats::beating(&bench, folder.path(), 100, more);
    let came = beats::come_back(&mut hub, &fleet, true, Duration::from_secs(60));
    assert_eq!(came.back, came.agents, "{came:?}");
    assert!(came.shed > 0, "{came:?}");
    fleet.end();
}
